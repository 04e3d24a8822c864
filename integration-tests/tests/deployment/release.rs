//! The shipped playbook of a release, done by a coordinator and agents that are processes of their own.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    lab::{DOMAIN, FIRST, NEXT},
    process::checkout,
    system::{System, path},
};
use serde_json::json;

use crate::{
    names, sha256, shell,
    side::{Front, front, get, says},
};

const LONG: Duration = Duration::from_secs(120);

/// Asks the front for the release, and writes down whether it was the right one.
const SMOKE: &str = r#"#!/bin/sh
case $(curl -s --noproxy '*' "http://$2/version") in
  *"\"$3\""*) failure= ;;
  *) failure='<failure message="another release"/>' ;;
esac
printf '<testsuites><testsuite name="smoke"><testcase classname="smoke" name="release">%s</testcase></testsuite></testsuites>' \
  "$failure" >"$1"
"#;

fn allow(file: &Path, programs: &[&Path]) -> Result<()> {
    let entry = |program: &&Path| {
        let (name, sha256) = (program.file_name().unwrap_or_default().display(), sha256(program));
        format!("[commands.{name}]\npath = \"{}\"\nsha256 = \"{sha256}\"\n", program.display())
    };
    let text: String = programs.iter().map(entry).collect();
    Ok(fs::write(file, text)?)
}

fn start(system: &mut System, front: &Front) -> Result<()> {
    let dir = front.dir.path();
    let suite = dir.join("smoke-suite");
    fs::write(&suite, SMOKE)?;
    fs::set_permissions(&suite, fs::Permissions::from_mode(0o755))?;
    let sides = [front.sides.start_program(), front.sides.stop_program()];
    for (role, programs) in [("deployment", [&*sides[0], &*sides[1]].as_slice()), ("integration", &[&*suite])] {
        let file = dir.join(format!("{role}.toml"));
        allow(&file, programs)?;
        system.start_agent(&format!("{role}-1"), role, &["--allow", path(&file)?])?;
    }
    Ok(())
}

/// Runs the playbook for a release, to its end; the state of the run.
fn run(system: &System, front: &Front, release: &str, latency_p95_ms: f64) -> Result<String> {
    let dir = front.dir.path();
    shell(&front.sides.releases().join(NEXT), &format!("tar -chzf {}/{release}.tar.gz sample-service", dir.display()));
    let package = dir.join(format!("{release}.tar.gz"));
    let nginx = &front.sides.nginx;
    let inputs = json!({
        "release": release, "package": package, "sha256": sha256(&package), "program": "sample-service",
        "releases": front.sides.releases(), "blue": front.sides.blue(), "green": front.sides.green(), "domain": DOMAIN,
        "front": nginx.http_address(), "nginx_config": nginx.config(), "nginx_upstream": front.sides.upstream_file(),
        "nginx_pid_file": nginx.pid_file(), "watch_ms": 1000, "latency_p95_ms": latency_p95_ms, "requests": 200,
    });
    let file = dir.join("inputs.json");
    fs::write(&file, inputs.to_string())?;
    let run = system.json(&["run", "start", "blue-green-release", "--inputs", path(&file)?])?;
    let run = run["runId"].as_str().context("a run has an id")?.to_owned();
    let ended = system.wait_run(&run, &["SUCCEEDED", "FAILED", "CANCELLED", "WAITING"], LONG)?;
    let state = ended["state"].as_str().unwrap_or_default().trim_start_matches("STATE_").to_owned();
    Ok(format!("{state}: {}", ended["stateReason"].as_str().unwrap_or_default()))
}

#[test]
fn the_shipped_playbook_brings_a_release_and_takes_a_bad_one_back() -> Result<()> {
    let front = front();
    let mut system = System::start()?;
    start(&mut system, &front)?;
    system.submit(&fs::read_to_string(checkout().join("playbooks/blue-green-release.yaml"))?)?;

    let good = run(&system, &front, "1.2.0", 5000.0)?;
    ensure!(good.starts_with("SUCCEEDED"), "a good release is brought: {good}");
    ensure!(front.release() == says("1.2.0") && get(front.sides.blue()) == says(FIRST), "blue stands by");
    // What it started is not its child: it outlives the attempt, and the agent.
    system.agents.get_mut("deployment-1").context("the agent was started")?.kill()?;
    ensure!(front.release() == says("1.2.0"), "the release outlives its agent");
    system.agents.remove("deployment-1");
    let file = front.dir.path().join("deployment.toml");
    system.start_agent("deployment-1", "deployment", &["--allow", path(&file)?])?;

    // No answer is that fast: a breach while it is watched.
    let slow = run(&system, &front, "1.3.0", 0.001)?;
    ensure!(slow.starts_with("FAILED"), "a breach fails the run: {slow}");
    ensure!(front.release() == says("1.2.0"), "the requests go where they went before");
    ensure!(get(front.sides.blue()) == "down", "what was started for it is stopped");
    ensure!(names(&front.sides.releases()) == [FIRST, NEXT, "1.2.0"], "what was put in place is gone");
    Ok(())
}
