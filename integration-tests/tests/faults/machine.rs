//! The machine under the coordinator: syncs that fail, a disk without room, a clock that is set.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{process::wait_for, system::SOON};

use crate::harness::House;

const APPEND: (&str, &str, &str, &str) = ("s", "ledger.append", ", undo: irreversible", "");
const THEN: (&str, &str, &str, &str) = ("t", "ledger.append", ", undo: irreversible", "");

/// Calls of one thread that fail, by their number: late enough that it is the journal's.
fn some_calls_fail(call: &str, error: &str, when: &str) -> Result<()> {
    ensure!(Command::new("strace").arg("-V").output().is_ok(), "strace is missing: apt-get install strace");
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={error}:when={when}"));
    let mut house = House::start_under(&[
        "strace",
        "-f",
        "-qq",
        "-e",
        "signal=none",
        "-e",
        &trace,
        "-e",
        &inject,
        "-o",
        "/dev/null",
    ])?;
    house.agent("fault-1")?;
    let runs = (0..60).map(|_| house.run_of(&[APPEND, THEN])).collect::<Result<Vec<_>>>()?;
    for run in &runs {
        house.ends(run, "SUCCEEDED")?;
        for step in ["s", "t"] {
            ensure!(house.count("begin", run, step) == 1, "{step} was begun {} times", house.count("begin", run, step));
        }
    }
    let log = house.log()?;
    ensure!(
        log.contains("the log could not be written") && log.contains("the log stands again"),
        "nothing has failed, so nothing is shown:\n{log}"
    );
    house.verify()
}

#[test]
fn a_sync_that_fails_is_not_believed_and_nothing_is_lost() -> Result<()> {
    some_calls_fail("fdatasync", "EIO", "100")
}

#[test]
fn a_disk_without_room_is_waited_for_and_nothing_is_lost() -> Result<()> {
    some_calls_fail("pwrite64", "ENOSPC", "100..104")
}

/// The library that gives one process another clock.
fn faketime() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?.filter_map(|entry| Some(entry.ok()?.path().join("faketime")));
    let libraries = folders.map(|folder| folder.join("libfaketimeMT.so.1"));
    libraries.into_iter().find(|file| file.exists()).context("libfaketime is missing: apt-get install faketime")
}

#[test]
fn a_clock_that_is_set_back_an_hour_and_forward_a_day_moves_no_timer() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("clock");
    let set = |to: &str| -> Result<()> {
        let fresh = dir.path().join("fresh");
        fs::write(&fresh, to)?;
        Ok(fs::rename(fresh, &file)?)
    };
    set("+0")?;
    let preload = format!("LD_PRELOAD={}", faketime()?.display());
    let clock = format!("FAKETIME_TIMESTAMP_FILE={}", file.display());
    let more = ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
    let mut house = House::start_under(&["env", &preload, &clock, more[0], more[1]])?;
    house.agent("fault-1")?;
    let long = house.system.submit(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: waits, owner: ops}\nspec: {phases: [{id: all, steps: [{id: w, wait: {for: 30m}}]}]}\n",
    )?;
    let waits = house.system.start_run(&long)?;
    for (n, jump) in ["-1h", "+1d", "+0"].into_iter().enumerate() {
        house.hold("run")?;
        let run = house.run_of(&[APPEND, THEN])?;
        house.wait_word("begin", &run, "s", 1)?;
        set(jump)?;
        wait_for("the jump is noticed", SOON, || {
            Ok((house.log()?.matches("the wall clock has jumped").count() > n).then_some(()))
        })?;
        house.release("run")?;
        house.ends(&run, "SUCCEEDED").context(jump)?;
        for step in ["s", "t"] {
            ensure!(house.count("begin", &run, step) == 1, "{jump}: {step} was done twice");
        }
        let state = house.system.json(&["run", "get", &waits])?["state"].clone();
        ensure!(state == "STATE_RUNNING", "{jump}: a wait of half an hour is {state}");
    }
    house.verify()
}
