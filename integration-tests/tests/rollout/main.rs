//! The shipped playbooks against real servers: done whole and twice, and made to fail at each of their steps.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod conditions;
mod faults;
mod fingerprint;
mod gates;
mod greeting;
mod hands;
mod kit;
mod undo;
mod verifications;
mod whole;

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use muster_integration_tests::{
    lab::Lab,
    process::{Process, binary, checkout, tail, wait_for},
    system::{System, path},
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(180);

/// A shipped playbook, as it is shipped.
fn shipped(name: &str) -> String {
    fs::read_to_string(checkout().join(format!("playbooks/{name}.yaml"))).unwrap()
}

/// The inputs of `revenue-engine-rollout`, with the roadmap's limits of time. How much slower a new release may be is not among
/// them, and a debug build beside other tests is slow.
fn rollout_inputs(lab: &Lab) -> Value {
    let mut inputs = serde_json::to_value(lab.inputs().unwrap()).unwrap();
    inputs["slower_by_ms"] = 5000.0.into();
    inputs["watch_ms"] = 500.into();
    inputs
}

/// The inputs of `blue-green-release`, without a statement about time.
fn release_inputs(lab: &Lab) -> Value {
    let all = lab.inputs().unwrap();
    json!({
        "release": all.release, "package": all.package, "sha256": all.package_sha256, "program": all.program,
        "releases": all.releases, "blue": all.blue, "green": all.green, "front": all.front,
        "nginx_binary": all.nginx_binary, "nginx_config": all.front_nginx_config,
        "nginx_upstream": all.front_nginx_upstream, "nginx_pid_file": all.front_nginx_pid_file,
        "watch_ms": 500, "latency_p95_ms": 5000.0, "requests": 200,
    })
}

/// A coordinator and the three agents, each a process of its own.
fn three_agents(lab: &Lab) -> Result<System> {
    let mut system = System::start()?;
    system.start_agent("infra-1", "infra", &[])?;
    for role in ["integration", "deployment"] {
        let allow = lab.allow_file(role)?;
        system.start_agent(&format!("{role}-1"), role, &["--allow", path(&allow)?])?;
    }
    Ok(system)
}

/// Runs a playbook to its end; the run. One watcher waits, since asking again and again takes the time of what is waited for.
fn run(system: &System, playbook: &str, inputs: &Value) -> Result<Value> {
    ended(system, &start(system, playbook, inputs)?)
}

/// Waits for the end of a run; the run.
fn ended(system: &System, run: &str) -> Result<Value> {
    let mut watch = Command::new(binary("muster", "muster"));
    system.environment(&mut watch);
    let mut watch = Process::start("watch", system.dir.path(), watch.args(["run", "watch", run]))?;
    wait_for("the run ends", LONG, || Ok((!watch.is_running()).then_some(())))
        .with_context(|| tail(&watch.output()))?;
    system.json(&["run", "get", run])
}

#[test]
fn the_shipped_playbooks_have_no_findings() {
    for entry in fs::read_dir(checkout().join("playbooks")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        let mut lint = Command::new(binary("muster", "muster"));
        let said = lint.args(["playbook", "lint", "--offline", "--strict"]).arg(&file).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    }
}

/// Starts a run; its id.
fn start(system: &System, playbook: &str, inputs: &Value) -> Result<String> {
    let file = system.dir.path().join(format!("{playbook}.json"));
    fs::write(&file, inputs.to_string())?;
    let run = system.json(&["run", "start", playbook, "--inputs", path(&file)?])?;
    Ok(run["runId"].as_str().context("a run has an id")?.to_owned())
}
