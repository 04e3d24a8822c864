//! NATS cut, slow and frozen under agents at work.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{process::wait_for, proxy::Proxy};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{House, LONG};

const APPEND: (&str, &str, &str, &str) = ("s", "ledger.append", ", undo: irreversible", "");

fn proxied(house: &mut House, name: &str) -> Result<Proxy> {
    let proxy = Proxy::start(house.system.nats.url().trim_start_matches("nats://"))?;
    house.agent_through(name, &format!("nats://{}", proxy.address()))?;
    house.system.wait_agent(name, "READY")?;
    Ok(proxy)
}

#[test]
fn an_agent_that_is_cut_off_while_it_works_is_heard_when_the_way_is_back() -> Result<()> {
    let mut house = House::start()?;
    let proxy = proxied(&mut house, "fault-1")?;
    house.hold("run")?;
    // Its time is longer than the cut: nothing is concluded meanwhile.
    let run = house.run_of(&[("s", "ledger.append", ", undo: irreversible", "")])?;
    house.wait_at("run")?;
    proxy.cut();
    house.release("run")?;
    house.wait_word("end", &run, "s", 1)?;
    house.system.wait_agent("fault-1", "SUSPECT")?;
    proxy.heal();
    house.ends(&run, "SUCCEEDED")?;
    ensure!(house.count("begin", &run, "s") == 1, "done twice");
    house.nobody_is_woken()
}

#[test]
fn an_agent_that_is_cut_off_beyond_its_lease_begins_nothing_that_another_one_has_taken_over() -> Result<()> {
    let mut house = House::start()?;
    let proxy = proxied(&mut house, "fault-1")?;
    house.hold("prepare")?;
    house.hold("run")?;
    let race = house.run_of(&[("s", "ledger.race", ", timeout: 90s", "")])?;
    let append = house.run_of(&[APPEND])?;
    house.wait_at("prepare")?;
    house.wait_word("begin", &append, "s", 1)?;
    house.agent("fault-2")?;
    proxy.cut();
    house.release("run")?;
    // Done where nobody hears of it.
    house.wait_word("end", &append, "s", 1)?;
    house.system.wait_agent("fault-1", "LOST")?;
    house.wait_word("prepare", &race, "s", 2)?;
    // Both go on. One of them can't say what it would need to undo, and so changes nothing.
    house.release("prepare")?;
    house.ends(&race, "SUCCEEDED")?;
    house.ends(&append, "WAITING")?;
    ensure!(house.count("begin", &race, "s") == 1, "both have begun it");
    let before = house.system.events(&race)?.len();
    proxy.heal();
    house.system.wait_agent("fault-1", "READY")?;
    wait_for("what was done out of hearing is heard", LONG, || {
        let late = house.system.events(&append)?.iter().any(|e| e["type"] == "report_arrived_stale");
        let state = house.system.json(&["run", "get", &append])?["state"].clone();
        Ok((late || state == "STATE_SUCCEEDED").then_some(()))
    })?;
    if house.system.json(&["run", "get", &append])?["state"] == "STATE_WAITING" {
        let answer = ["step", "resolve", &append, "s", "succeeded", "--reason", "the ledger has its end"];
        ensure!(house.system.cli(&answer)?.status.success(), "the question can be answered");
    }
    house.ends(&append, "SUCCEEDED")?;
    for run in [&race, &append] {
        ensure!(house.count("begin", run, "s") == 1 && house.count("end", run, "s") == 1, "not done once: {run}");
        house.agrees(run)?;
    }
    let after = house.system.events(&race)?;
    let late = after.get(before..).unwrap_or_default();
    ensure!(late.iter().all(|e| e["type"] == "report_arrived_stale"), "a late word changed the run: {late:?}");
    house.nobody_is_woken()
}

#[test]
fn a_way_that_is_slow_and_cut_again_and_again_only_takes_time() -> Result<()> {
    let mut house = House::start()?;
    let proxy = proxied(&mut house, "fault-1")?;
    proxy.delay(Duration::from_millis(60));
    let steps = [APPEND, ("t", "ledger.append", ", undo: irreversible", ""), ("u", "ledger.put", "", "")];
    let runs = (0..4).map(|_| house.run_of(&steps)).collect::<Result<Vec<_>>>()?;
    for _ in 0..4 {
        proxy.cut();
        thread::sleep(Duration::from_millis(700));
        proxy.heal();
        thread::sleep(Duration::from_millis(500));
    }
    for run in &runs {
        house.ends(run, "SUCCEEDED")?;
        for step in ["s", "t"] {
            ensure!(house.count("begin", run, step) == 1, "{step} was done twice");
        }
        house.agrees(run)?;
    }
    house.nobody_is_woken()
}

#[test]
fn a_broker_that_stands_still_for_a_while_loses_nothing() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    let broker = Pid::from_raw(i32::try_from(house.system.nats.pid())?).context("a pid")?;
    let steps = [APPEND, ("t", "ledger.append", ", undo: irreversible", "")];
    let runs = (0..6).map(|_| house.run_of(&steps)).collect::<Result<Vec<_>>>()?;
    for _ in 0..3 {
        kill_process(broker, Signal::STOP)?;
        thread::sleep(Duration::from_secs(2));
        kill_process(broker, Signal::CONT)?;
        thread::sleep(Duration::from_millis(300));
    }
    for run in &runs {
        house.ends(run, "SUCCEEDED")?;
        for step in ["s", "t"] {
            ensure!(house.count("begin", run, step) == 1, "{step} was done twice");
        }
    }
    house.nobody_is_woken()
}
