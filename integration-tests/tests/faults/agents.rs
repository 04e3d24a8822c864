//! Agents killed, frozen, started twice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    process::{Process, wait_for},
    system::SOON,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{House, block_on};

const PUT: (&str, &str, &str, &str) = ("s", "ledger.put", "", "");
const APPEND: (&str, &str, &str, &str) = ("s", "ledger.append", ", undo: irreversible", "");

fn agent<'a>(house: &'a mut House, name: &str) -> Result<&'a mut Process> {
    house.system.agents.get_mut(name).context("the agent runs")
}

#[test]
fn an_agent_killed_in_each_phase_of_an_attempt_leaves_nothing_undone_and_nothing_twice() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    for phase in ["check", "prepare", "run", "done"] {
        house.hold(phase)?;
        let run = house.run_of(&[PUT, ("t", "ledger.put", "", "")])?;
        house.wait_at(phase)?;
        agent(&mut house, "fault-1")?.kill()?;
        house.release(phase)?;
        house.agent("fault-1")?;
        house.ends(&run, "SUCCEEDED").context(phase)?;
        house.agrees(&run).context(phase)?;
        ensure!(house.is_put(&run, "s") && house.is_put(&run, "t"), "{phase}: the work is not there");
        let begun = house.count("begin", &run, "s");
        // After its work was done, its check says so; before, it is done (again).
        let expected = if phase == "run" { 2 } else { 1 };
        ensure!(begun == expected, "{phase}: begun {begun} times");
        for at in ["check", "prepare", "run", "done"] {
            // A file of this round must not speak for the next.
            let _ = std::fs::remove_file(house.system.dir.path().join(format!("shared/at-{at}")));
        }
    }
    for phase in ["undo", "undone"] {
        house.hold(phase)?;
        let run = house.run_of(&[PUT, ("t", "ledger.put", "", ", fails: true")])?;
        house.wait_at(phase)?;
        agent(&mut house, "fault-1")?.kill()?;
        house.release(phase)?;
        house.agent("fault-1")?;
        house.ends(&run, "FAILED").context(phase)?;
        ensure!(!house.is_put(&run, "s") && !house.is_put(&run, "t"), "{phase}: the work is still there");
        let _ = std::fs::remove_file(house.system.dir.path().join(format!("shared/at-{phase}")));
    }
    house.nobody_is_woken()
}

#[test]
fn a_report_that_was_not_answered_outlives_its_agent() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    house.hold("run")?;
    let run = house.run_of(&[APPEND, ("t", "ledger.put", "", "")])?;
    house.wait_at("run")?;
    house.system.coordinator.as_ref().context("it runs")?.signal(Signal::STOP)?;
    house.release("run")?;
    house.wait_word("end", &run, "s", 1)?;
    let spool = house.system.dir.path().join("fault-1/spool");
    wait_for("the report is spooled", SOON, || {
        Ok(std::fs::read_dir(&spool).is_ok_and(|mut entries| entries.next().is_some()).then_some(()))
    })?;
    agent(&mut house, "fault-1")?.kill()?;
    house.system.coordinator.as_ref().context("it runs")?.signal(Signal::CONT)?;
    house.agent("fault-1")?;
    house.ends(&run, "SUCCEEDED")?;
    ensure!(house.count("begin", &run, "s") == 1, "done twice");
    house.nobody_is_woken()
}

#[test]
fn an_agent_frozen_beyond_its_lease_and_woken_changes_nothing_that_counts() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    house.hold("run")?;
    let put = house.run_of(&[PUT])?;
    let append = house.run_of(&[APPEND])?;
    house.wait_word("begin", &put, "s", 1)?;
    house.wait_word("begin", &append, "s", 1)?;
    agent(&mut house, "fault-1")?.signal(Signal::STOP)?;
    house.release("run")?;
    house.agent("fault-2")?;
    // By the clock: nobody has said that the first one is dead.
    house.ends(&put, "SUCCEEDED")?;
    house.ends(&append, "WAITING")?;
    ensure!(house.count("begin", &put, "s") == 2 && house.count("begin", &append, "s") == 1, "not as it should be");
    let before = house.system.events(&put)?.len();
    agent(&mut house, "fault-1")?.signal(Signal::CONT)?;
    house.wait_word("end", &put, "s", 2)?;
    let answer = ["step", "resolve", &append, "s", "succeeded", "--reason", "the ledger has its end"];
    house.wait_word("end", &append, "s", 1)?;
    let seen = house.system.wait_run(&append, &["WAITING", "SUCCEEDED"], SOON)?;
    if seen["state"] == "STATE_WAITING" {
        ensure!(house.system.cli(&answer)?.status.success(), "the question can be answered");
    }
    house.ends(&append, "SUCCEEDED")?;
    house.agrees(&put)?;
    house.agrees(&append)?;
    let after = house.system.events(&put)?;
    let late = after.get(before..).unwrap_or_default();
    ensure!(late.iter().all(|e| e["type"] == "report_arrived_stale"), "a late word changed the run: {late:?}");
    house.nobody_is_woken()
}

#[test]
fn two_processes_under_one_name_do_not_share_the_work() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    let url = house.system.nats.url();
    let holder = house.system.json(&["agent", "get", "fault-1"])?;
    let mut second = house.process("fault-1", "second", &url)?;
    wait_for("the second one is told that its name is taken", SOON, || {
        ensure!(second.is_running(), "it has ended: {}", second.output());
        Ok(second.output().contains("another process of this name answers; waiting").then_some(()))
    })
    .with_context(|| second.output())?;
    let runs = (0..10).map(|_| house.run_of(&[APPEND])).collect::<Result<Vec<_>>>()?;
    for run in &runs {
        house.ends(run, "SUCCEEDED")?;
        ensure!(house.count("begin", run, "s") == 1, "done twice");
    }
    let now = house.system.json(&["agent", "get", "fault-1"])?;
    ensure!(now["instance"] == holder["instance"], "the second one has taken the name: {now}");
    agent(&mut house, "fault-1")?.kill()?;
    wait_for("the second one takes its place", Duration::from_secs(60), || {
        let now = house.system.json(&["agent", "get", "fault-1"])?;
        Ok((now["instance"] != holder["instance"] && now["state"] == "STATE_READY").then_some(()))
    })?;
    let run = house.run_of(&[APPEND])?;
    house.ends(&run, "SUCCEEDED")?;
    drop(second);
    house.nobody_is_woken()
}

/// How many tasks an instance has looked at; it answers the usual NATS tools.
fn tasks_of(house: &House, instance: &str) -> Result<u64> {
    let (url, subject) = (house.system.nats.url(), format!("$SRV.STATS.muster-fault.{instance}"));
    let answer = block_on(async {
        let client = async_nats::connect(&url).await?;
        Ok(client.request(subject, "".into()).await?)
    })?;
    let stats: Value = serde_json::from_slice(&answer.payload)?;
    stats["endpoints"][0]["num_requests"].as_u64().context("it counts its tasks")
}

#[test]
fn a_task_that_comes_after_its_attempt_was_given_up_is_not_begun() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    let instance = house.system.json(&["agent", "get", "fault-1"])?["instance"].as_str().unwrap_or_default().to_owned();
    agent(&mut house, "fault-1")?.signal(Signal::STOP)?;
    let run = house.run_of(&[APPEND])?;
    wait_for("the frozen one is given the step", SOON, || {
        Ok(house.system.events(&run)?.iter().any(|e| e["type"] == "attempt_assigned").then_some(()))
    })?;
    house.agent("fault-2")?;
    // By the clock; all copies of the task lie in the frozen one's connection.
    house.ends(&run, "WAITING")?;
    ensure!(house.count("begin", &run, "s") == 0, "somebody has begun it");
    let answer = ["step", "resolve", &run, "s", "retry", "--reason", "the ledger has no beginning of it"];
    ensure!(house.system.cli(&answer)?.status.success(), "the question can be answered");
    house.ends(&run, "SUCCEEDED")?;
    agent(&mut house, "fault-1")?.signal(Signal::CONT)?;
    wait_for("the woken one looks at what has come", SOON, || Ok((tasks_of(&house, &instance)? > 0).then_some(())))?;
    house.system.wait_agent("fault-1", "READY")?;
    ensure!(house.count("begin", &run, "s") == 1, "begun {} times", house.count("begin", &run, "s"));
    house.agrees(&run)?;
    house.nobody_is_woken()
}

#[test]
fn an_agent_that_is_stopped_as_planned_has_ended_and_is_not_lost() -> Result<()> {
    let mut house = House::start()?;
    house.system.start_agent("infra-1", "infra", &[])?;
    agent(&mut house, "infra-1")?.terminate(SOON)?;
    house.system.wait_agent("infra-1", "ENDED")?;
    let lease_is_over = Instant::now() + Duration::from_secs(33);
    wait_for("its lease would be over", SOON * 2, || Ok((Instant::now() > lease_is_over).then_some(())))?;
    let agents = house.system.cli(&["agent", "list"])?;
    let listed = String::from_utf8_lossy(&agents.stdout).into_owned();
    ensure!(listed.contains("ended"), "{listed}");
    let log = house.log()?;
    ensure!(log.contains("an agent has ended") && !log.contains("lease has run out"), "{log}");
    house.system.start_agent("infra-1", "infra", &[])?;
    let log = house.log()?;
    ensure!(!log.contains("has taken the place of"), "{log}");
    house.verify()
}

/// Its last reports are answered with the next tasks while it goes.
#[test]
fn an_agent_that_is_stopped_as_planned_again_and_again_asks_nobody() -> Result<()> {
    const STOPS: usize = 12;
    const BETWEEN: usize = 12;
    let mut house = House::start()?;
    house.agent("fault-1")?;
    let ids: Vec<String> = (0..STOPS * BETWEEN).map(|n| format!("s{n}")).collect();
    let steps: Vec<_> = ids.iter().map(|id| (id.as_str(), APPEND.1, APPEND.2, APPEND.3)).collect();
    let run = house.run_of(&steps)?;
    for stop in 1..STOPS {
        house.wait_word("begin", &run, &ids[stop * BETWEEN], 1)?;
        agent(&mut house, "fault-1")?.terminate(SOON)?;
        house.agent("fault-1").with_context(|| format!("stop {stop}"))?;
    }
    house.ends(&run, "SUCCEEDED")?;
    house.agrees(&run)?;
    let twice: Vec<_> = ids.iter().filter(|id| house.count("begin", &run, id) != 1).collect();
    ensure!(twice.is_empty(), "these were not begun once: {twice:?}");
    let log = house.log()?;
    ensure!(!log.contains("lease has run out") && !log.contains("has taken the place of"), "{log}");
    house.nobody_is_woken()
}
