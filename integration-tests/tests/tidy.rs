//! House rules as a test: who may import whom, how long a file may be, which words may not stand in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Which of our crates a crate may depend on. Arrows go one way; what is not here is forbidden.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("muster-proto", &[]),
    ("muster-bus", &[]),
    ("muster-engine", &[]),
    ("muster-agent", &["muster-bus"]),
    ("muster-kit", &["muster-agent", "muster-bus"]),
    ("muster-infra", &["muster-agent", "muster-kit", "muster-bus"]),
    ("muster-integration", &["muster-agent", "muster-kit", "muster-bus"]),
    ("muster-deployment", &["muster-agent", "muster-kit", "muster-bus"]),
    ("muster-coordinator", &["muster-engine", "muster-bus", "muster-proto"]),
    (
        "muster",
        &[
            "muster-proto",
            "muster-bus",
            "muster-engine",
            "muster-coordinator",
            "muster-agent",
            "muster-infra",
            "muster-integration",
            "muster-deployment",
        ],
    ),
];

/// Crates that would make the pure engine impure.
const ENGINE_MAY_NOT_IMPORT: &[&str] = &["tokio", "async-nats", "tonic", "sled", "uuid", "tracing", "getrandom"];

const MAX_LINES: usize = 800;

/// Words with what to write instead.
const BANNED: &[(&str, &str)] = &[
    ("todo!(", "the code itself"),
    ("unimplemented!(", "the code itself"),
    ("#[ignore", "a test that runs"),
    ("FIXME", "TODO-correctness or TODO-robustness, with what is at risk"),
    ("dbg!(", "tracing"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

fn tracked(suffixes: &[&str]) -> Vec<PathBuf> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files of the checkout");
    assert!(out.status.success(), "git ls-files: {}", String::from_utf8_lossy(&out.stderr));
    let files = String::from_utf8(out.stdout).expect("paths are UTF-8");
    files
        .lines()
        .filter(|f| suffixes.iter().any(|s| f.ends_with(s)))
        .map(|f| root().join(f))
        .filter(|f| f.exists())
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn imports_go_one_way() {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let rules: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        if name == "muster-integration-tests" {
            continue;
        }
        let Some(allowed) = rules.get(name) else {
            wrong.push(format!("{name} has no line in MAY_IMPORT"));
            continue;
        };
        for dep in &package.dependencies {
            let for_tests = dep.kind == DependencyKind::Development;
            let itself = dep.name == name;
            // The engine gains no workspace dependency in its tests either.
            if ours.contains(&dep.name)
                && !itself
                && !allowed.contains(&dep.name.as_str())
                && (!for_tests || name == "muster-engine")
            {
                wrong.push(format!("{name} imports {}", dep.name));
            }
            if name == "muster-engine" && ENGINE_MAY_NOT_IMPORT.contains(&dep.name.as_str()) {
                wrong.push(format!("the pure engine imports {}", dep.name));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the house's order:\n{}", wrong.join("\n"));
}

#[test]
fn no_source_file_is_too_long() {
    let long: Vec<String> = tracked(&[".rs", ".proto", ".sh", ".py"])
        .into_iter()
        .map(|f| (read(&f).lines().count(), f))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .map(|(lines, f)| format!("{} has {lines} lines", f.display()))
        .collect();
    assert!(long.is_empty(), "split these (aim for 300 to 500, never over {MAX_LINES}):\n{}", long.join("\n"));
}

#[test]
fn no_banned_words() {
    let mut found = Vec::new();
    for file in tracked(&[".rs"]) {
        if file.ends_with("integration-tests/tests/tidy.rs") {
            continue;
        }
        for (number, line) in read(&file).lines().enumerate() {
            for (word, instead) in BANNED {
                if line.contains(word) {
                    found.push(format!("{}:{}: {word} — write {instead}", file.display(), number + 1));
                }
            }
            if line.contains("TODO") && !line.contains("TODO-correctness") && !line.contains("TODO-robustness") {
                found.push(format!("{}:{}: a TODO says what is at risk", file.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_rust_file_says_what_it_is_for() {
    let silent: Vec<String> = tracked(&[".rs"])
        .into_iter()
        .filter(|f| !read(f).lines().take(3).any(|l| l.starts_with("//!")))
        .map(|f| f.display().to_string())
        .collect();
    assert!(silent.is_empty(), "the first lines of a file tell its rule (//! …):\n{}", silent.join("\n"));
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for file in tracked(&[".md"]) {
        let text = read(&file);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            let from = file.parent().expect("a file has a folder");
            if !from.join(path).exists() {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn the_top_level_holds_only_the_agreed_folders() {
    let agreed = ["proto", "coordinator", "agents", "playbooks", "integration-tests", "docs", ".ci", ".cargo"];
    let strangers: BTreeSet<String> = tracked(&[""])
        .iter()
        .filter_map(|f| f.strip_prefix(root()).ok().map(Path::to_path_buf))
        .filter(|f| f.components().count() > 1)
        .filter_map(|f| f.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned()))
        .filter(|d| !agreed.contains(&d.as_str()))
        .collect();
    assert!(strangers.is_empty(), "folders nobody agreed on: {strangers:?}");
}
