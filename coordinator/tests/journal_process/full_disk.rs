//! A disk that is really full: a small tmpfs in a user namespace of its own.

use std::{fs, path::Path, process::Command, time::Duration};

use muster_coordinator::journal::{
    Journal as _, Position, StreamAppend, StreamId,
    log::{Health, LogJournal},
    tools,
};
use tempfile::TempDir;

use crate::{this_program, writer};

const WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn a_full_disk_is_waited_for() {
    on_a_disk_of("1m", "full-disk");
}

/// Run a part of this program on a file system of its own.
///
/// # Panics
/// When none can be had: then nothing is shown.
pub(crate) fn on_a_disk_of(size: &str, part: &str) {
    let place = TempDir::new().expect("a directory");
    let mount = format!("mount -t tmpfs -o size={size} none \"$0\"");
    let tried = unshare(&mount).arg(place.path()).output().expect("unshare is missing: apt-get install util-linux");
    let why = String::from_utf8_lossy(&tried.stderr);
    assert!(
        tried.status.success(),
        "no tmpfs can be mounted in a user namespace: {why}\nallow these: sysctl kernel.unprivileged_userns_clone=1 (and kernel.apparmor_restrict_unprivileged_userns=0)"
    );
    let mut there = unshare(&format!("{mount} && exec \"$1\" {part} \"$0\""));
    let status = there.arg(place.path()).arg(this_program().get_program()).status().expect("unshare was there");
    assert!(status.success(), "{status}");
}

fn unshare(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    command
}

/// On a file system of one MiB: the ballast leaves room for little more than the first segment.
pub(crate) fn run(place: &Path) {
    let (data, ballast) = (place.join("data"), place.join("ballast"));
    fs::write(&ballast, vec![1; 600 << 10]).expect("there is room for it");
    let (journal, _) = LogJournal::open(&data, writer::options()).expect("there is room for a segment");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut health = journal.health();
    let stream = StreamId("run/1".into());
    let mut seq = 0;
    let mut unanswered = None;
    runtime.block_on(async {
        while unanswered.is_none() {
            let records = vec![writer::record(&stream, seq + 1)];
            let mut answer = journal.append(vec![StreamAppend { stream: stream.clone(), expected_seq: seq, records }]);
            seq += 1;
            tokio::select! {
                answered = &mut answer => {
                    answered.expect("it is answered").expect("there is room");
                }
                full = health.wait_for(|h| matches!(h, Health::WaitingForRoom { .. })) => {
                    full.expect("the journal is there");
                    unanswered = Some(answer);
                }
            }
        }
    });
    assert!(seq > 100, "{seq}");
    assert_eq!(journal.head().position, Position(seq - 1), "what does not fit is not answered");
    fs::remove_file(&ballast).expect("it is there");
    runtime.block_on(async {
        let answer = tokio::time::timeout(WITHIN, unanswered.expect("one waits")).await.expect("there is room in time");
        answer.expect("it is answered").expect("there is room");
    });
    assert_eq!(*journal.health().borrow(), Health::Standing);
    drop(journal);
    let report = tools::verify(&data).expect("it can be read");
    assert!(report.whole && report.records == seq, "{seq} {report:?}");
}
