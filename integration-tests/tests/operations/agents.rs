//! Agents, NATS, keys and tokens.

use anyhow::{Context as _, Result, ensure};
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    process::{Process, binary, wait_for},
    system::{SOON, path},
};

use crate::stage::{LEASE, Stage};

pub(crate) fn agent_lost(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    let run = stage.run_at_work()?;
    stage.agent("infra-2")?;
    for name in ["infra-1", "infra-2"] {
        stage.system.agents.get_mut(name).context("it runs")?.kill()?;
    }
    for name in ["infra-1", "infra-2"] {
        stage.system.wait_agent(name, "LOST")?;
    }
    stage.next()?;
    stage.ends_with(1)?;
    stage.agent("infra-1")?;
    stage.system.wait_run(&run, &["WAITING"], LEASE)?;
    stage.next()?;
    stage.end()
}

pub(crate) fn nats_gone(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    stage.finish_work()?;
    stage.system.nats.kill()?;
    let run = stage.run("undo")?;
    wait_for("it is noticed", SOON, || {
        let explained = stage.system.cli(&["run", "explain", &run])?;
        Ok(String::from_utf8_lossy(&explained.stdout).contains("NATS").then_some(()))
    })?;
    stage.next()?;
    stage.ends_with(1)?;
    stage.next()?;
    stage.system.nats.start_again()?;
    stage.next()?;
    stage.end()
}

pub(crate) fn rolling_upgrade(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    stage.set("AGENT", "infra-1");
    stage.run_at_work()?;
    stage.next()?;
    let mut agent = stage.system.agents.remove("infra-1").context("it runs")?;
    ensure!(agent.is_running(), "it ends with work in its hands:\n{}", agent.output());
    stage.finish_work()?;
    wait_for("the drained agent ends", SOON, || Ok((!agent.is_running()).then_some(())))?;
    stage.agent("infra-1")?;
    stage.next()?;
    std::fs::remove_file(stage.file("gate"))?;
    stage.run_at_work()?;
    let pid = stage.system.coordinator.as_ref().context("it runs")?.pid().to_string();
    stage.set("COORDINATOR_PID", &pid);
    stage.next()?;
    stage.ended()?;
    stage.finish_work()?;
    stage.serve()?;
    stage.next()?;
    stage.end()
}

pub(crate) fn maintenance(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    stage.run_at_work()?;
    stage.next()?;
    stage.ends_with(1)?;
    stage.ends_with(4)?;
    wait_for("the figure is there", SOON, || Ok(stage.metrics()?.contains("\nmuster_draining 1").then_some(())))?;
    stage.finish_work()?;
    stage.next()?;
    let pid = stage.system.coordinator.as_ref().context("it runs")?.pid().to_string();
    stage.set("COORDINATOR_PID", &pid);
    stage.next()?;
    stage.ended()?;
    stage.serve()?;
    stage.next()?;
    stage.end()
}

pub(crate) fn token_leaked(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    let token = stage.system.json(&["token", "create", "person/dba-1", "--role", "operator"])?;
    let id = token["token"]["name"].as_str().context("a token has a name")?.trim_start_matches("tokens/");
    stage.set("TOKEN_ID", id);
    std::fs::write(stage.file("leaked.token"), token["secret"].as_str().context("it has a secret")?)?;
    let leaked = stage.file("leaked.token");
    let old = ["run", "list", "--token-file", path(&leaked)?];
    ensure!(stage.system.cli(&old)?.status.success(), "the token is good at first");
    let playbook = stage.system.submit(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: waits, owner: ops}\nspec: {phases: [{id: all, steps: [{id: w, wait: {signal: go}}]}]}\n",
    )?;
    let run = stage.system.start_run(&playbook)?;
    let calls: [&[&str]; 3] = [&["run", "watch", &run], &["run", "logs", &run, "-f"], &["run", "wait", &run]];
    let mut open = Vec::new();
    for call in calls {
        let mut command = std::process::Command::new(binary("muster", "muster"));
        stage.system.environment(&mut command);
        command.args(call).args(["--token-file", path(&leaked)?]);
        open.push(Process::start(&call[..2].join("-"), stage.system.dir.path(), &mut command)?);
    }
    wait_for("all three are open", SOON, || Ok(stage.metrics()?.contains("muster_api_watches 3").then_some(())))?;
    stage.next()?;
    for (call, process) in calls.iter().zip(&mut open) {
        wait_for(&format!("{call:?} ends"), SOON, || Ok((!process.is_running()).then_some(())))?;
        let log = std::fs::read_to_string(stage.file(&format!("{}.log", call[..2].join("-"))))?;
        ensure!(log.contains("TOKEN_REVOKED"), "{call:?}: {log}");
    }
    let refused = stage.system.cli(&old)?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("TOKEN_REVOKED"), "{refused:?}");
    stage.next()?;
    stage.end()
}

pub(crate) fn nats_key_leaked(scene: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let muster = muster_integration_tests::process::binary("muster", "muster");
    let keys = dir.path().join("nats");
    let made = std::process::Command::new(muster)
        .args(["nats", "config", "--out", path(&keys)?, "--agent", "infra-1", "--agent", "infra-2"])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    let nats = NatsServer::start_with(&["-c", path(&keys.join("nats.conf"))?])?;
    let pid = nats.pid().to_string();
    let seed = |name: &str| format!("{}/seeds/{name}.nk", keys.display());
    let (coordinator, one, two) = (seed("coordinator"), seed("infra-1"), seed("infra-2"));
    let mut stage = Stage::open_on(scene, dir, nats, &["--nats-nkey", &coordinator])?;
    stage.set("NATS_PID", &pid);
    stage.system.start_agent("infra-1", "infra", &["--nats-nkey", &one])?;
    stage.system.start_agent("infra-2", "infra", &["--nats-nkey", &two])?;
    let before = std::fs::read_to_string(&one)?;
    stage.next()?;
    ensure!(std::fs::read_to_string(&one)? != before, "infra-1 has another seed");
    ensure!(!std::path::Path::new(&two).exists(), "the seed of infra-2 is gone");
    // The key of before is of no use: the running process is cut off, and comes back with its new one alone.
    stage.system.wait_agent("infra-1", "LOST")?;
    stage.system.wait_agent("infra-2", "LOST")?;
    stage.system.agents.clear();
    stage.system.start_agent("infra-1", "infra", &["--nats-nkey", &one])?;
    stage.end()
}
