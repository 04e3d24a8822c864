//! A data directory on a small file system of its own, which is really full.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    process::{Process, binary, wait_for},
    system::{SOON, path},
};

use crate::harness::House;

const APPEND: (&str, &str, &str, &str) = ("s", "ledger.append", ", undo: irreversible", "");
const PUT: (&str, &str, &str, &str) = ("t", "ledger.put", "", "");

/// A tmpfs over the data directory, in a namespace that stays as long as this does.
struct SmallDisk {
    _keeper: Process,
    enter: Vec<String>,
}

impl SmallDisk {
    /// Put a house that stands onto it.
    fn under(house: &mut House) -> Result<Self> {
        house.system.coordinator.take().context("it runs")?.terminate(SOON)?;
        let (data, dir) = (house.system.data_dir(), house.system.dir.path().to_owned());
        let (aside, ready) = (dir.join("aside"), dir.join("ready"));
        let script = "cp -a \"$0\" \"$1\" && mount -t tmpfs -o size=160m none \"$0\" && cp -a \"$1/.\" \"$0\" \
            && chmod 700 \"$0\" && : > \"$2\" && exec sleep 600";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command.args([path(&data)?, path(&aside)?, path(&ready)?]);
        let mut keeper =
            Process::start("disk", &dir, &mut command).context("unshare is missing: apt-get install util-linux")?;
        wait_for("a tmpfs is mounted", SOON, || {
            ensure!(keeper.is_running(), "no tmpfs can be mounted in a user namespace: {}", keeper.output());
            Ok(ready.exists().then_some(()))
        })?;
        let enter = ["nsenter", "--target", &keeper.pid().to_string(), "--user", "--mount", "--preserve-credentials"]
            .map(str::to_owned)
            .to_vec();
        house.system.wrap(&enter.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(Self { _keeper: keeper, enter })
    }

    fn run(&self, house: &House, script: &str) -> Result<()> {
        let mut command = self.command();
        let status = command.args(["sh", "-c", script]).arg(house.system.data_dir()).status()?;
        ensure!(status.success(), "{script}: {status}");
        Ok(())
    }

    /// `muster journal` with this word; how it ended, and what it said.
    fn journal(&self, house: &House, word: &str) -> Result<(bool, String)> {
        let mut command = self.command();
        command.arg(binary("muster", "muster")).args(["journal", word, "--data-dir"]).arg(house.system.data_dir());
        let ended = command.env("NO_COLOR", "1").output()?;
        Ok((ended.status.success(), String::from_utf8(ended.stderr)?))
    }

    /// What is started on it.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.enter[0]);
        command.args(&self.enter[1..]);
        command
    }

    /// Nothing is left, not even what a start throws away.
    fn fill(&self, house: &House) -> Result<()> {
        self.run(
            house,
            "rm -f \"$0/log/spare\" \"$0/log/fresh\"; dd if=/dev/zero bs=64k >> \"$0/ballast\" 2>/dev/null; \
             dd if=/dev/zero bs=1 count=4096 >> \"$0/ballast\" 2>/dev/null; ! echo full 2>/dev/null > \"$0/probe\"",
        )
    }

    fn make_room(&self, house: &House) -> Result<()> {
        self.run(house, "rm \"$0/ballast\"")
    }
}

#[test]
fn a_coordinator_that_is_killed_on_a_full_disk_waits_for_room_and_goes_on() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    let disk = SmallDisk::under(&mut house)?;
    house.system.start_coordinator()?;
    house.hold("run")?;
    let steps = [APPEND, PUT];
    let mut runs = vec![house.run_of(&steps)?, house.run_of(&steps)?];
    for run in &runs {
        house.wait_word("begin", run, "s", 1)?;
    }
    disk.fill(&house)?;
    // The log has taken its room beforehand: what is at work goes on, and more begins.
    runs.push(house.run_of(&steps)?);
    house.wait_word("begin", &runs[2], "s", 1)?;
    house.system.kill_coordinator()?;
    disk.fill(&house)?;
    house.system.launch_coordinator()?;
    house.release("run")?;
    for run in &runs {
        // Nobody hears of it yet.
        house.wait_word("end", run, "s", 1)?;
    }
    wait_for("the start has no room for its first file, and says so", SOON, || {
        let log = house.log()?;
        Ok(log.lines().any(|line| line.contains("no room to start") && line.contains("/HEAD")).then_some(()))
    })?;
    house.system.kill_coordinator()?;
    house.system.launch_coordinator()?;
    disk.make_room(&house)?;
    house.system.wait_coordinator()?;
    for run in &runs {
        house.ends(run, "SUCCEEDED")?;
        house.agrees(run)?;
        ensure!(house.count("begin", run, "s") == 1 && house.is_put(run, "t"), "not done once: {run}");
    }
    house.nobody_is_woken()?;
    house.system.coordinator.take().context("it runs")?.terminate(SOON)?;
    let (whole, said) = disk.journal(&house, "verify")?;
    ensure!(whole, "{said}");
    Ok(())
}

/// Nobody is there who could wait: what to do is said instead, and then it can be done.
#[test]
fn a_journal_that_is_opened_by_hand_on_a_full_disk_asks_for_room_and_is_as_it_was() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    let disk = SmallDisk::under(&mut house)?;
    house.system.start_coordinator()?;
    let run = house.run_of(&[APPEND])?;
    house.ends(&run, "SUCCEEDED")?;
    house.system.kill_coordinator()?;
    disk.fill(&house)?;
    let (done, said) = disk.journal(&house, "restored")?;
    ensure!(!done && said.contains("NO_ROOM"), "{said}");
    ensure!(said.contains("make room on the disk of the data directory"), "{said}");
    let (whole, said) = disk.journal(&house, "verify")?;
    ensure!(whole, "looking needs no room, and nothing is lost: {said}");
    disk.make_room(&house)?;
    let (done, said) = disk.journal(&house, "restored")?;
    ensure!(done, "there is room, and it says {said}");
    house.system.start_coordinator()?;
    house.agrees(&run)
}
