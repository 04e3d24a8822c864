//! The machine under the coordinator: syncs that fail, a disk without room, a clock that is set.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
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

/// The wall clock of a coordinator, and of nobody else.
struct WallClock {
    dir: tempfile::TempDir,
}

impl WallClock {
    fn new() -> Result<Self> {
        let clock = Self { dir: tempfile::tempdir()? };
        clock.write("+0")?;
        Ok(clock)
    }

    fn write(&self, to: &str) -> Result<()> {
        let fresh = self.dir.path().join("fresh");
        fs::write(&fresh, to)?;
        Ok(fs::rename(fresh, self.dir.path().join("clock"))?)
    }

    /// A house whose coordinator goes by it.
    fn start(&self) -> Result<House> {
        let preload = format!("LD_PRELOAD={}", faketime()?.display());
        let clock = format!("FAKETIME_TIMESTAMP_FILE={}", self.dir.path().join("clock").display());
        House::start_under(&["env", &preload, &clock, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"])
    }

    /// Set it so far away from the true one, and wait until the coordinator has noticed.
    fn set(&self, house: &House, to: &str) -> Result<()> {
        let jumps = || Ok::<_, anyhow::Error>(house.log()?.matches("the wall clock has jumped").count());
        let before = jumps()?;
        self.write(to)?;
        wait_for("the jump is noticed", SOON, || Ok((jumps()? > before).then_some(())))
    }
}

fn waits(house: &House, wait: &str) -> Result<String> {
    let playbook = house.system.submit(&format!(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: waits, owner: ops}}\nspec: {{phases: [{{id: all, steps: [{{id: w, wait: {wait}}}]}}]}}\n",
    ))?;
    house.system.start_run(&playbook)
}

fn state_of(house: &House, run: &str) -> Result<String> {
    Ok(house.system.json(&["run", "get", run])?["state"].as_str().unwrap_or_default().to_owned())
}

/// In true time.
fn until(from_now: SignedDuration) -> String {
    format!("{{until: \"{}\"}}", Timestamp::now() + from_now)
}

#[test]
fn a_moment_comes_when_the_wall_clock_says_so_also_after_it_was_set() -> Result<()> {
    let clock = WallClock::new()?;
    let mut house = clock.start()?;
    let (soon, tomorrow) = (SignedDuration::from_secs(6), SignedDuration::from_hours(20));
    let over = Instant::now() + soon.unsigned_abs();
    let (early, far) = (waits(&house, &until(soon))?, waits(&house, &until(tomorrow))?);
    clock.set(&house, "-1h")?;
    wait_for("the moment of the clock that was set is over", SOON, || {
        Ok((Instant::now() > over + Duration::from_secs(2)).then_some(()))
    })?;
    for run in [&early, &far] {
        ensure!(state_of(&house, run)? == "STATE_RUNNING", "it has not come by the wall clock");
    }
    let explained = house.system.cli(&["run", "explain", &early])?;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    ensure!(explained.contains("by the wall clock"), "{explained}");
    // A clock that is mended while the coordinator is away is mended all the same.
    clock.write("+0")?;
    house.system.kill_coordinator()?;
    house.system.start_coordinator()?;
    house.ends(&early, "SUCCEEDED")?;
    ensure!(state_of(&house, &far)? == "STATE_RUNNING", "tomorrow has not come");
    clock.set(&house, "+1d")?;
    house.ends(&far, "SUCCEEDED")?;
    house.verify()
}

#[test]
fn a_clock_that_is_set_back_an_hour_and_forward_a_day_moves_no_timer() -> Result<()> {
    let clock = WallClock::new()?;
    let mut house = clock.start()?;
    house.agent("fault-1")?;
    let waits = waits(&house, "{for: 30m}")?;
    for jump in ["-1h", "+1d", "+0"] {
        house.hold("run")?;
        let run = house.run_of(&[APPEND, THEN])?;
        house.wait_word("begin", &run, "s", 1)?;
        clock.set(&house, jump)?;
        house.release("run")?;
        house.ends(&run, "SUCCEEDED").context(jump)?;
        for step in ["s", "t"] {
            ensure!(house.count("begin", &run, step) == 1, "{jump}: {step} was done twice");
        }
        let state = state_of(&house, &waits)?;
        ensure!(state == "STATE_RUNNING", "{jump}: a wait of half an hour is {state}");
    }
    house.verify()
}
