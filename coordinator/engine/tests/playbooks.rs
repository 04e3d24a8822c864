//! Bad documents: everything that is wrong, at once, with line and column; never a panic, on a small stack.
//!
//! Each file in `bad_playbooks/` ends with what has to be found in it. `UPDATE=1 cargo test -p muster-engine --test
//! playbooks` writes it again; read the difference.

#![expect(clippy::disallowed_methods, reason = "tests read and write files, and start threads")]

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use muster_engine::{
    plan::{ActionFacts, ActionScope, Catalogue, CatalogueEntry},
    playbook::{Finding, Level, MAX_DOCUMENT_BYTES, MAX_FINDINGS, Reading, read},
};
use serde_json::json;

const MARK: &str = "# --- has to be found:\n";

fn facts(read_only: bool, undoable: bool) -> ActionFacts {
    ActionFacts {
        idempotent: undoable || read_only,
        undoable,
        checkable: undoable || read_only,
        concurrent_safe: read_only,
        read_only,
        scope: ActionScope::Host,
    }
}

fn catalogue() -> Catalogue {
    let entry = |facts, params, output| CatalogueEntry {
        version: "1.0.0".to_owned(),
        facts,
        params_schema: Some(params),
        output_schema: Some(output),
    };
    Catalogue::from([
        (
            "command.run".into(),
            entry(
                facts(false, false),
                json!({"type": "object", "required": ["command"], "additionalProperties": false, "properties": {
                    "command": {"type": "string"}, "args": {"type": "array", "items": {"type": "string"}}}}),
                json!({"type": "object", "properties": {"exit_code": {"type": "integer"}, "stdout": {"type": "string"}}}),
            ),
        ),
        (
            "http.check".into(),
            entry(
                facts(true, false),
                json!({"type": "object", "required": ["url"], "additionalProperties": false, "properties": {
                    "url": {"type": "string"}, "status": {"type": "integer"}, "headers": {"type": "object"}}}),
                json!({"type": "object", "properties": {"status": {"type": "integer"}, "ttfb_ms": {"type": "number"}}}),
            ),
        ),
        (
            "tls.certificate".into(),
            entry(
                facts(false, true),
                json!({"type": "object", "required": ["domain"], "properties": {
                    "domain": {"type": "string"}, "days": {"type": "integer"},
                    "names": {"type": "array", "items": {"type": "string"}}}}),
                json!({"type": "object", "additionalProperties": false, "properties": {"path": {"type": "string"}}}),
            ),
        ),
        (
            "tls.inspect".into(),
            entry(
                facts(true, false),
                json!({"type": "object", "required": ["address"], "properties": {"address": {"type": "string"}}}),
                json!({"type": "object", "additionalProperties": false, "properties": {
                    "chain_valid": {"type": "boolean"}, "days_left": {"type": "integer"}}}),
            ),
        ),
    ])
}

/// Reads on a thread with three quarters of the stack that the reader promises to fit.
fn read_on_a_small_stack(document: Vec<u8>) -> Reading {
    std::thread::Builder::new()
        .stack_size(1536 * 1024)
        .spawn(move || read(&document, &catalogue()))
        .expect("a thread starts")
        .join()
        .expect("reading does not panic")
}

fn lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding { level, code, message, path, line, column, hint } = finding;
        let level = if *level == Level::Error { "error" } else { "warning" };
        writeln!(text, "# {line}:{column} {level} {code} {path}: {message} ({hint})").expect("a String can be written");
    }
    text
}

#[test]
fn every_bad_playbook_is_told_everything_at_once() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/bad_playbooks");
    let update = std::env::var_os("UPDATE").is_some();
    let (mut seen, mut wrong) = (0, Vec::new());
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let whole = std::fs::read_to_string(&file).unwrap();
        let (document, expected) = whole.split_once(MARK).unwrap_or((&whole, ""));
        let reading = read_on_a_small_stack(document.as_bytes().to_vec());
        let found = lines(&reading.findings);
        let has_error = reading.findings.iter().any(|finding| finding.level == Level::Error);
        assert_eq!(reading.playbook.is_none(), has_error, "{}", file.display());
        assert!(!reading.findings.is_empty(), "{} is not bad", file.display());
        if found != expected {
            if update {
                std::fs::write(&file, format!("{document}{MARK}{found}")).unwrap();
            }
            wrong.push(format!("{}\nexpected:\n{expected}found:\n{found}", file.display()));
        }
        seen += 1;
    }
    assert!(seen >= 40, "only {seen} bad playbooks");
    assert!(update || wrong.is_empty(), "{}\nUPDATE=1 writes what was found", wrong.join("\n"));
}

#[test]
fn every_code_has_its_place() {
    // What stands in the reference is what is found.
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/bad_playbooks");
    let mut codes = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let whole = std::fs::read(entry.unwrap().path()).unwrap();
        for finding in read_on_a_small_stack(whole).findings {
            *codes.entry(finding.code).or_insert(0) += 1;
        }
    }
    let reference =
        std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/playbook.md"))
            .unwrap();
    for code in codes.keys() {
        assert!(reference.contains(&format!("`{code}`")), "docs/reference/playbook.md does not explain {code}");
    }
}

#[test]
fn huge_and_deep_documents_are_refused() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    let block: String = (0..2000).fold(String::new(), |mut text, level| {
        writeln!(text, "{}a:", " ".repeat(level)).unwrap();
        text
    });
    let dashes = "- ".repeat(10_000);
    let wide = format!("a: [{}]", "1,".repeat(200_000));
    let anchors: String = (0..5000).fold(String::new(), |mut text, n| {
        writeln!(text, "a{n}: &a{n} 1").unwrap();
        text
    });
    let bomb = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(1000), "*a,".repeat(900));
    let keys: String = (0..20_000).fold(String::new(), |mut text, n| {
        writeln!(text, "k{n}: 1").unwrap();
        text
    });
    for (what, document, code) in [
        ("10 MB", "# x\n".repeat(2_500_000), "DOCUMENT_TOO_LARGE"),
        ("one more byte", " ".repeat(MAX_DOCUMENT_BYTES + 1), "DOCUMENT_TOO_LARGE"),
        ("deep lists", deep("[", "]"), "DOCUMENT_TOO_LARGE"),
        ("deep maps", deep("{a: ", "}"), "DOCUMENT_TOO_LARGE"),
        ("deep blocks", block, "DOCUMENT_TOO_LARGE"),
        ("deep dashes", dashes, "DOCUMENT_TOO_LARGE"),
        ("many values", wide, "DOCUMENT_TOO_LARGE"),
        ("many anchors", anchors, "DOCUMENT_TOO_LARGE"),
        ("aliases", bomb, "DOCUMENT_TOO_LARGE"),
        ("many unknown keys", keys, "UNKNOWN_KEY"),
        ("a long line", "x".repeat(MAX_DOCUMENT_BYTES - 10), "INVALID_TYPE"),
    ] {
        let reading = read_on_a_small_stack(document.into_bytes());
        let codes: Vec<&str> = reading.findings.iter().map(|finding| finding.code).collect();
        assert!(codes.contains(&code), "{what}: {}", lines(&reading.findings));
        assert!(reading.playbook.is_none() && codes.len() <= MAX_FINDINGS, "{what}");
    }
}

#[test]
fn a_document_at_the_limits_fits_the_stack() {
    let nested = format!("{}\"{{{{ {}true{} }}}}\"{}", "[".repeat(16), "!(".repeat(11), ")".repeat(11), "]".repeat(16));
    let sum = "1 + ".repeat(22) + "1 == 23";
    let schema = format!("{}{{type: string}}{}", "{type: object, properties: {a: ".repeat(10), "}}".repeat(10));
    let document = format!(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: deep, owner: devops}}\nspec:\n  \
         inputs: {schema}\n  phases:\n    - id: a\n      steps:\n        - id: a\n          agent: {{role: infra}}\n          \
         action: http.check\n          with: {{url: 'https://shop.example/', headers: {{x: {nested}}}}}\n          when: {sum}\n"
    );
    let reading = read_on_a_small_stack(document.into_bytes());
    assert_eq!(lines(&reading.findings), "");
}

#[test]
fn an_error_is_never_lost_behind_warnings() {
    let mut document = String::from(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: long, owner: devops}\nspec:\n  phases:\n    - id: a\n      steps:\n",
    );
    for step in 0..300 {
        let when = if step == 299 { "inputs.nobody" } else { "true" };
        writeln!(document, "        - {{id: s{step}, agent: {{role: infra}}, action: nobody.knows, when: '{when}'}}")
            .unwrap();
    }
    let reading = read_on_a_small_stack(document.into_bytes());
    let errors: Vec<_> = reading.findings.iter().filter(|finding| finding.level == Level::Error).collect();
    assert_eq!((reading.playbook.is_none(), reading.findings.len(), errors.len()), (true, MAX_FINDINGS, 1));
    assert_eq!((errors[0].code, errors[0].line), ("UNDEFINED_VARIABLE", 307));
}

#[test]
fn what_is_not_shown_is_counted() {
    let head = "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: long, owner: devops}\nspec:\n  phases:\n    - id: a\n      steps:\n";
    let of = |steps: usize, rest: &str| {
        let mut document = head.to_owned();
        for step in 0..steps {
            writeln!(document, "        - {{id: s{step}, agent: {{role: infra}}, action: {rest}}}").unwrap();
        }
        let findings = read_on_a_small_stack(document.into_bytes()).findings;
        let last = findings.last().cloned().unwrap();
        (findings.len(), last.level, last.code, last.message)
    };
    let long = |rest: &str| of(1000, rest);
    let more = |level, message: &str| (MAX_FINDINGS, level, "MORE_FINDINGS", message.to_owned());
    let url = "with: {url: 'https://shop.example/'}";
    assert_eq!(long("nobody.knows"), more(Level::Warning, "and 901 more"));
    assert_eq!(long(&format!("http.check, {url}, when: nobody, timeout: never")), more(Level::Error, "and 1,901 more"));
    let unread = "and 1 more; the rest of the document was not looked at";
    assert_eq!(long(&format!("http.check, {url}, colour: red")), more(Level::Error, unread));
    assert_ne!(of(MAX_FINDINGS, "nobody.knows").2, "MORE_FINDINGS");
}

#[test]
fn a_long_document_is_read_to_its_end() {
    // Work that grows with the square of the length would take so long here that somebody looks.
    let head = "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: long, owner: devops}\nspec:\n  phases:\n    - id: a\n      steps:\n";
    let texts = format!(
        "        - {{id: a, agent: {{role: infra}}, action: http.check, with: {{url: '{}'}}}}\n",
        "{{ a.b + c ? d : e }} ".repeat(40_000)
    );
    let mut chain = String::new();
    for step in 0..1000 {
        let needs = if step == 0 { String::new() } else { format!("s{}", step - 1) };
        writeln!(
            chain,
            "        - {{id: s{step}, needs: [{needs}], agent: {{role: infra}}, action: http.check, with: {{url: '{{{{ x }}}}', a: 1}}}}"
        )
        .unwrap();
    }
    for steps in [texts, chain] {
        let reading = read_on_a_small_stack(format!("{head}{steps}").into_bytes());
        assert!(reading.playbook.is_none());
    }
}

#[test]
fn a_schema_of_an_agent_can_do_no_harm() {
    let document = std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../playbooks/hello.yaml")).unwrap();
    for schema in [
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"properties": {"args": {"$ref": "https://shop.example/schema.json"}}}),
        json!({"properties": {"command": {"pattern": "(a+)+$", "type": 5}}}),
        json!({"properties": {"command": {"pattern": "(?=a)"}}}),
        json!("no schema"),
    ] {
        let mut catalogue = catalogue();
        let entry = catalogue.get_mut("command.run").unwrap();
        (entry.params_schema, entry.output_schema) = (Some(schema), None);
        assert_eq!(lines(&read(&document, &catalogue).findings), "");
    }
}

#[test]
fn bytes_that_are_no_text_are_found() {
    let reading = read_on_a_small_stack(b"apiVersion: muster.dev/v1\nkind: \xff\n".to_vec());
    assert_eq!(
        lines(&reading.findings),
        "# 2:7 error YAML_SYNTAX : the document is not UTF-8 here (save it as UTF-8)\n"
    );
}
