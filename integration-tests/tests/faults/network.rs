//! NATS cut, slow and frozen under agents at work.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::proxy::Proxy;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::House;

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
