//! Runs that wait: what is seen, and the ways out.

use std::fs;

use anyhow::{Result, ensure};
use muster_integration_tests::{process::wait_for, system::SOON};

use crate::stage::Stage;

pub(crate) fn first_look(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    fs::write(stage.file("fail"), "")?;
    let run = stage.run("pause")?;
    stage.system.wait_run(&run, &["WAITING"], SOON)?;
    stage.next()?;
    stage.next()?;
    stage.end()
}

pub(crate) fn no_agent(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.run("undo")?;
    stage.next()?;
    stage.finish_work()?;
    stage.agent("infra-1")?;
    stage.next()?;
    stage.end()
}

pub(crate) fn asks(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    fs::write(stage.file("fail"), "")?;
    let run = stage.run("pause")?;
    stage.system.wait_run(&run, &["WAITING"], SOON)?;
    stage.next()?;
    fs::remove_file(stage.file("fail"))?;
    stage.finish_work()?;
    stage.next()?;
    stage.end()
}

pub(crate) fn may_have_run(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    let run = stage.run_at_work()?;
    stage.system.agents.get_mut("infra-1").expect("it runs").kill()?;
    stage.agent("infra-1")?;
    stage.system.wait_run(&run, &["WAITING"], SOON)?;
    stage.next()?;
    stage.next()?;
    stage.next()?;
    stage.end()
}

pub(crate) fn paused(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    let run = stage.run("undo")?;
    stage.next()?;
    stage.finish_work()?;
    stage.agent("infra-1")?;
    ensure!(stage.system.json(&["run", "get", &run])?["state"] == "STATE_PAUSED", "it goes on by itself");
    stage.next()?;
    stage.end()
}

pub(crate) fn cancelled(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    stage.run_at_work()?;
    // An agent that stands still stops nothing.
    stage.system.agents["infra-1"].signal(rustix::process::Signal::STOP)?;
    stage.next()?;
    stage.next()?;
    stage.system.agents["infra-1"].signal(rustix::process::Signal::CONT)?;
    stage.end()
}

/// Before anything has happened.
pub(crate) fn alerts(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    wait_for("everything is measured once", SOON, || {
        Ok(stage.metrics()?.contains("\nmuster_agents_alive").then_some(()))
    })?;
    stage.next()?;
    stage.end()
}

/// One byte of a record in the middle of the log.
pub(crate) fn quarantined(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    let run = stage.run("undo")?;
    stage.run("undo")?;
    stage.set("RUN", &run);
    stage.stop()?;
    let segment = stage.file("data/log/00000000000000000001.jsonl");
    let mut bytes = fs::read(&segment)?;
    let id = format!("\"run/{run}\",\"seq\":1");
    let at = bytes.windows(id.len()).position(|w| w == id.as_bytes()).expect("the run has a first record");
    bytes[at - 3] ^= 1;
    fs::write(&segment, bytes)?;
    stage.system.start_coordinator()?;
    wait_for("the run is listed", SOON, || {
        let listed = stage.system.json(&["run", "list", "--state", "quarantined"])?;
        Ok((!listed["runs"].as_array().is_none_or(Vec::is_empty)).then_some(()))
    })?;
    stage.next()?;
    stage.next()?;
    stage.ends_with(1)?;
    stage.stop()?;
    stage.ends_with(1)?;
    stage.end()
}
