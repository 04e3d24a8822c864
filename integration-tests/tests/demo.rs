//! `make demo`: what it shows, and that it leaves nothing.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    canary::nothing_of_the_lab,
    process::{Process, binary, checkout, tail, wait_for},
};

/// What the rollout changes; all the others look, or try out.
const CHANGING: [&str; 8] =
    ["tls_certificate", "redirect", "pgbouncer", "redis", "balance", "backup", "put_in_place", "switch"];
const LOOKING: [&str; 11] = [
    "pool_probe",
    "replication",
    "tls_check",
    "site_check",
    "database_check",
    "cache_before",
    "cache_load",
    "cache_probe",
    "verify_package",
    "smoke",
    "load",
];

/// What stands below a heading.
fn below<'a>(said: &'a str, heading: &str) -> Result<Vec<&'a str>> {
    let begins = format!("== {heading}");
    let lines = said.lines().skip_while(|line| !line.starts_with(&begins)).skip(1);
    let lines: Vec<_> = lines.take_while(|line| !line.starts_with("== ")).collect();
    ensure!(!lines.is_empty(), "nothing stands below {heading:?}:\n{said}");
    Ok(lines)
}

/// Each of these steps has a line that begins with its name and goes on like this.
fn each(lines: &[&str], steps: &[&str], goes_on: impl Fn(&[&str]) -> bool) -> Result<()> {
    for step in steps {
        let words = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut of_step = words.filter(|words| words.first() == Some(step));
        ensure!(of_step.any(|words| goes_on(&words[1..])), "{step}:\n{}", lines.join("\n"));
    }
    Ok(())
}

#[test]
fn the_demo_mends_what_is_broken_and_finds_it_unchanged_the_second_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // The lab's servers run as ordinary users.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let muster = binary("muster", "muster");
    for program in ["muster-lab", "sample-service"] {
        binary("muster-integration-tests", program);
    }
    let left = dir.path().join("left");
    fs::create_dir(&left)?;
    let mut demo = Process::start(
        "demo",
        dir.path(),
        Command::new("make")
            .arg("demo")
            .current_dir(checkout())
            .env_remove("MAKEFLAGS")
            .env("MUSTER_BINARIES", muster.parent().context("it lies in a folder")?)
            .env("TMPDIR", &left)
            .env("NO_COLOR", "1"),
    )?;
    wait_for("the demo ends", Duration::from_secs(400), || Ok((!demo.is_running()).then_some(())))
        .with_context(|| tail(&demo.output()))?;
    let (status, said) = (demo.terminate(Duration::from_secs(1))?, demo.output());
    ensure!(status.success(), "{status}:\n{said}");
    nothing_of_the_lab("what the demo says", said.as_bytes())?;

    for (when, mark) in [("before", "BROKEN "), ("after", "ok ")] {
        let lines = below(&said, when)?;
        let marked = lines.iter().filter(|line| line.starts_with(mark)).count();
        ensure!(marked == 8, "{when}, {marked} of 8 are {mark}:\n{}", lines.join("\n"));
    }
    let second = below(&said, "the same again")?;
    each(&second, &CHANGING, |words| words.get(1) == Some(&"unchanged"))?;
    each(&second, &LOOKING, |words| words.get(1) == Some(&"succeeded"))?;
    let saw = below(&said, "what the steps saw that change nothing")?;
    each(&saw, &LOOKING, |words| words.len() >= 3 && words.iter().any(|word| word.parse::<f64>().is_ok()))?;
    ensure!(fs::read_dir(&left)?.next().is_none(), "it leaves something in {}", left.display());
    Ok(())
}
