//! The data directory: full, damaged, copied, put back, moved, written by another version.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    process::{Process, binary, wait_for},
    system::{SOON, path},
};

use crate::stage::Stage;

/// A coordinator whose data directory is a file system of its own, in a namespace that `nsenter` enters.
pub(crate) fn disk_full(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    let run = stage.run("undo")?;
    stage.stop()?;
    let (data, aside) = (stage.system.data_dir(), stage.file("aside"));
    let script = "cp -a \"$0\" \"$1\" && mount -t tmpfs -o size=200m none \"$0\" && cp -a \"$1/.\" \"$0\" && chmod 700 \"$0\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, path(&data)?, path(&aside)?])
        .arg(binary("muster", "muster"))
        .args(["serve", "--nats", &stage.system.nats.url(), "--listen", stage.system.address(), "--data-dir"])
        .arg(&data);
    let process = Process::start("small", stage.system.dir.path(), &mut command)?;
    let pid = process.pid().to_string();
    stage.system.coordinator = Some(process);
    wait_for("the coordinator answers from its small disk", SOON, || {
        Ok(stage.system.cli(&["run", "list"])?.status.success().then_some(()))
    })
    .context("it needs user namespaces: unshare --user --mount")?;
    let enter = ["nsenter", "--target", &pid, "--user", "--mount", "--preserve-credentials"];
    stage.inside = enter.iter().map(|&word| word.to_owned()).collect();
    let ballast = stage.system.data_dir().join("ballast");
    let mut fill = Command::new(enter[0]);
    fill.args(&enter[1..]).args(["sh", "-c", "dd if=/dev/zero of=\"$0\" bs=1M 2>/dev/null; true"]).arg(&ballast);
    ensure!(fill.status()?.success(), "the disk can be filled");
    // Something to list that the store does not have yet.
    stage.run("undo")?;
    stage.set("RUN", &run);
    stage.ends_with(1)?;
    stage.next()?;
    let mut free = Command::new(enter[0]);
    ensure!(free.args(&enter[1..]).arg("rm").arg(&ballast).status()?.success(), "there is room again");
    wait_for("lists are answered again", SOON, || {
        Ok(stage.system.cli(&["run", "list"])?.status.success().then_some(()))
    })?;
    stage.next()?;
    stage.end()
}

/// The end of the log is gone.
pub(crate) fn damaged(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    let run = stage.run_at_work()?;
    let lost = stage.run("undo")?;
    stage.set("RUN", &run);
    stage.stop()?;
    let segment = stage.file("data/log/00000000000000000001.jsonl");
    let bytes = fs::read(&segment)?;
    let at = bytes.windows(9).rposition(|w| w == b"{\"batch\":").context("there is a batch")?;
    let mut cut = bytes.clone();
    cut[at..].fill(0);
    fs::write(&segment, cut)?;
    stage.ends_with(1)?;
    stage.ends_with(1)?;
    stage.serve()?;
    stage.finish_work()?;
    let listed = stage.next()?;
    ensure!(!listed.contains(&lost), "what is lost is not there:\n{listed}");
    restart_agent(&mut stage, &run)?;
    stage.next()?;
    stage.end()
}

/// Its step was given out in another life of the log: nobody but a person says how it has ended.
fn restart_agent(stage: &mut Stage, run: &str) -> Result<()> {
    stage.system.agents.remove("infra-1").context("it runs")?.kill()?;
    stage.agent("infra-1")?;
    wait_for("the step asks", SOON, || {
        let seen = stage.system.json(&["run", "get", run])?;
        Ok((seen["steps"][0]["state"] == "STATE_ASKING").then_some(()))
    })
}

pub(crate) fn store_gone(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    let run = stage.run("undo")?;
    stage.stop()?;
    stage.next()?;
    ensure!(!stage.system.data_dir().join("store").exists(), "it is gone");
    stage.serve()?;
    ensure!(stage.system.json(&["run", "list"])?["runs"][0]["runId"] == run.as_str(), "the run is listed");
    stage.end()
}

/// While runs are started, and with the coordinator stopped.
pub(crate) fn backup(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    let first = stage.run("undo")?;
    let (address, dir) = (stage.system.address().to_owned(), stage.file("more"));
    let more = format!("until [ -e {} ]; do muster run start rollout >/dev/null 2>&1; done", dir.display());
    let muster = binary("muster", "muster");
    let mut load = Command::new("bash");
    let path_of = format!("{}:{}", muster.parent().context("it is in a folder")?.display(), std::env::var("PATH")?);
    stage.system.environment(&mut load);
    let mut load = Process::start(
        "load",
        stage.system.dir.path(),
        load.args(["-c", &more]).env("PATH", path_of).env("MUSTER_SERVER", format!("http://{address}")),
    )?;
    stage.next()?;
    fs::write(&dir, "")?;
    wait_for("the load ends", SOON, || Ok((!load.is_running()).then_some(())))?;
    let exported = stage.next()?;
    ensure!(exported.contains(&first), "the run is in the export:\n{exported}");
    stage.end()
}

pub(crate) fn restored(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    let run = stage.run_at_work()?;
    let dir = stage.system.dir.path();
    for (from, to) in [("data/HEAD", "backup/HEAD"), ("data/cluster", "backup/cluster")] {
        fs::create_dir_all(dir.join("backup/log"))?;
        fs::copy(dir.join(from), dir.join(to))?;
    }
    let segment = "log/00000000000000000001.jsonl";
    fs::copy(dir.join("data").join(segment), dir.join("backup").join(segment))?;
    fs::copy(dir.join("data/admin.token"), dir.join("backup/admin.token"))?;
    // What the backup does not have: another run, and the end of the first.
    let later = stage.run("undo")?;
    stage.set("RUN", &run);
    stage.finish_work()?;
    stage.system.wait_run(&run, &["SUCCEEDED"], SOON)?;
    stage.stop()?;
    stage.next()?;
    stage.serve()?;
    let listed = stage.next()?;
    ensure!(!listed.contains(&later), "the later run is gone:\n{listed}");
    restart_agent(&mut stage, &run)?;
    stage.next()?;
    stage.system.wait_run(&run, &["SUCCEEDED"], SOON)?;
    stage.end()
}

pub(crate) fn moved(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.agent("infra-1")?;
    let run = stage.run_at_work()?;
    stage.stop()?;
    let new = stage.file("new-place");
    stage.set("NEW_DATA_DIR", path(&new)?);
    let aside = stage.file("admin.token");
    fs::copy(stage.system.data_dir().join("admin.token"), &aside)?;
    stage.next()?;
    // The command line of the tests reads its token in the old place.
    fs::create_dir(stage.system.data_dir())?;
    fs::copy(&aside, stage.system.data_dir().join("admin.token"))?;
    stage.serve()?;
    stage.finish_work()?;
    stage.system.wait_run(&run, &["SUCCEEDED"], SOON)?;
    stage.end()
}

/// A log whose first line says that a newer version has written it, with a checksum that holds.
pub(crate) fn way_back(scene: &str) -> Result<()> {
    let mut stage = Stage::open(scene)?;
    stage.stop()?;
    let segment = stage.file("data/log/00000000000000000001.jsonl");
    let mut bytes = fs::read(&segment)?;
    let end = bytes.iter().position(|b| *b == b'\n').context("it has a line")?;
    let line = String::from_utf8(bytes[..end].to_vec())?;
    let (head, _) = line.split_once(",\"crc32c\"").context("it is sealed")?;
    let head = head.replacen("\"segment\":1", "\"segment\":3", 1);
    let line = format!("{head},\"crc32c\":\"{:08x}\"}}", crc32c(head.as_bytes()));
    ensure!(line.len() == end && line.contains("\"segment\":3"), "{line}");
    bytes[..end].copy_from_slice(line.as_bytes());
    fs::write(&segment, &bytes)?;
    stage.ends_with(1)?;
    ensure!(fs::read(&segment)? == bytes, "a refused start changes nothing");
    stage.end()
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}
