//! Under `strace`: every answer follows a successful `fdatasync` that began after the answered batch was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{this_program, writer};

const APPENDS: u64 = 60;

pub(crate) fn every_answer_follows_the_sync_that_covers_it() {
    let trace = traced();
    let answers = check(&trace).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert_eq!(answers as u64, APPENDS * writer::STREAMS);
}

pub(crate) fn the_check_finds_an_answer_without_a_sync() {
    let line = |text: &str| format!("7 {text}\n");
    let write = line(r#"pwrite64(5, "{\"v\":1}\n{\"batch\":3,\"records\":1}\n", 30, 100) = 30"#);
    let (sync, answer) = (line("fdatasync(5) = 0"), line(r#"write(1, "answered run/1 9 3\n", 19) = 19"#));
    assert_eq!(check(&[&*write, &sync, &answer].concat()), Ok(1));
    let begun = line("fdatasync(5 <unfinished ...>");
    let ended = line("<... fdatasync resumed>) = 0");
    assert_eq!(check(&[&*write, &begun, &ended, &answer].concat()), Ok(1));
    let failed = line("fdatasync(5) = -1 EIO (Input/output error)");
    let other = line("fdatasync(6) = 0");
    for wrong in [
        [&*write, &answer, &sync].concat(),
        [&*sync, &write, &answer].concat(),
        [&*write, &failed, &answer].concat(),
        [&*write, &other, &answer].concat(),
        [&*begun, &write, &ended, &answer].concat(),
        [&*write, &begun, &answer, &ended].concat(),
    ] {
        assert!(check(&wrong).is_err(), "{wrong}");
    }
}

fn traced() -> String {
    let dir = TempDir::new().expect("a directory");
    let (data, trace) = (dir.path().join("data"), dir.path().join("trace"));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-s", "100000", "-e", "trace=pwrite64,fdatasync,write", "-o"]).arg(&trace);
    strace.arg(this_program().get_program()).arg("writer").arg(data).arg(APPENDS.to_string());
    match strace.stdout(Stdio::null()).status() {
        Ok(status) => assert!(status.success(), "{status}"),
        Err(e) if e.kind() == ErrorKind::NotFound => panic!("strace is missing: apt-get install strace"),
        Err(e) => panic!("strace: {e}"),
    }
    fs::read_to_string(trace).expect("strace wrote it")
}

/// How many answers there were, or the first one that came too early. A call counts as done where its result is, and as
/// begun where its name is.
fn check(trace: &str) -> Result<usize, String> {
    let mut written: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    let mut begun: BTreeMap<&str, (&str, BTreeSet<u64>)> = BTreeMap::new();
    let mut writing: BTreeMap<&str, (&str, Option<u64>)> = BTreeMap::new();
    let mut synced = BTreeSet::new();
    let mut answers = 0;
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').ok_or(line)?;
        let call = call.trim_start();
        let done = call.rsplit_once(" = ").is_some_and(|(_, result)| !result.starts_with('-'));
        if let Some(args) = call.strip_prefix("pwrite64(") {
            let (file, bytes) = args.split_once(',').ok_or(line)?;
            writing.insert(thread, (file, batch_in(bytes)));
        } else if let Some(args) = call.strip_prefix("fdatasync(") {
            let file = args.split([')', ' ']).next().ok_or(line)?;
            begun.insert(thread, (file, written.get(file).cloned().unwrap_or_default()));
        } else if let Some(said) = call.strip_prefix("write(1, \"answered ") {
            let position = said.split(' ').nth(2).and_then(|word| word.split('\\').next()).ok_or(line)?;
            let position: u64 = position.parse().map_err(|e| format!("{e}: {line}"))?;
            if !synced.contains(&position) {
                return Err(format!("batch {position} was answered before it was synced: {line}"));
            }
            answers += 1;
        }
        if done && (call.starts_with("pwrite64(") || call.contains("pwrite64 resumed")) {
            if let Some((file, Some(batch))) = writing.remove(thread) {
                written.entry(file).or_default().insert(batch);
            }
        } else if done
            && (call.starts_with("fdatasync(") || call.contains("fdatasync resumed"))
            && let Some((_, covered)) = begun.remove(thread)
        {
            synced.extend(covered);
        }
    }
    Ok(answers)
}

/// The number of the batch that is written: its commit line is a line of its own behind the records.
fn batch_in(bytes: &str) -> Option<u64> {
    let (_, commit) = bytes.split_once(r#"\n{\"batch\":"#)?;
    commit.split(',').next()?.parse().ok()
}
