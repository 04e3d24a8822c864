//! The log under damage, a full disk, failing syncs and restarts.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::journal::conformance::{self, all, append, id, to};

mod damage;
mod faults;
mod pack;
mod retain;

/// Small, so that a few appends fill a segment.
const SEGMENT_BYTES: u64 = 8 << 10;

fn options() -> LogOptions {
    LogOptions { segment_bytes: SEGMENT_BYTES, ..LogOptions::default() }
}

/// In memory where there is such a place: what these tests do to files a thousand times over needs no disk.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn open(dir: &TempDir) -> (LogJournal, Opening) {
    LogJournal::open(dir.path(), options()).unwrap()
}

/// Batches of one append each, to a few streams in turn.
fn filled(batches: u64) -> TempDir {
    let dir = scratch();
    let (journal, _) = open(&dir);
    for n in 0..batches {
        append(&journal, vec![to(&format!("run/{}", n % 3), n / 3, &[&format!("text {n}")])]).unwrap();
    }
    dir
}

fn segment_files(dir: &TempDir) -> Vec<PathBuf> {
    files::segments(dir.path()).unwrap().into_iter().map(|(_, path)| path).collect()
}

#[test]
fn the_log_conforms() {
    conformance::run(|| {
        let dir = scratch();
        (open(&dir).0, dir)
    });
}

#[test]
fn everything_is_there_after_it_was_opened_again() {
    let dir = scratch();
    let (journal, opening) = open(&dir);
    assert!(opening.created);
    for n in 0..200 {
        append(&journal, vec![to(&format!("run/{}", n % 7), n / 7, &[&format!("text {n}")])]).unwrap();
    }
    let before = (all(&journal, 0), journal.head());
    let cluster = journal.cluster().to_owned();
    drop(journal);
    assert!(segment_files(&dir).len() > 3, "it went through several segments");
    let (journal, opening) = open(&dir);
    assert_eq!((opening.created, opening.losses.len(), opening.cut_bytes, opening.records), (false, 0, 0, 200));
    assert_eq!(journal.cluster(), cluster);
    assert_eq!((all(&journal, 0), journal.head()), before);
    assert_eq!(journal.read_stream(&id("run/3"), 0, 1000).unwrap().len(), 29);
    append(&journal, vec![to("run/0", 29, &["after"])]).unwrap();
    assert_eq!(all(&journal, 200).len(), 1);
}

#[test]
fn a_segment_that_is_full_is_plain_text() {
    let dir = filled(200);
    let files = segment_files(&dir);
    // Trimming is not on the hot path, but the thread that does it gets its orders one after the other.
    let (journal, _) = open(&dir);
    drop(journal);
    for file in &files[..files.len() - 1] {
        let text = fs::read_to_string(file).unwrap();
        for line in text.trim_end_matches('\0').lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }
}

#[test]
fn a_data_directory_is_for_one_process() {
    let dir = scratch();
    let (_journal, _) = open(&dir);
    assert!(matches!(LogJournal::open(dir.path(), options()), Err(OpenError::InUse { .. })));
}

#[test]
fn a_start_that_was_cut_short_is_made_again() {
    let dir = scratch();
    drop(open(&dir));
    fs::remove_file(dir.path().join("cluster")).unwrap();
    fs::write(dir.path().join("log/fresh"), "half").unwrap();
    let (journal, opening) = open(&dir);
    assert!(opening.created);
    append(&journal, vec![to("run/1", 0, &["a"])]).unwrap();
}

#[test]
fn an_append_larger_than_a_segment_is_taken() {
    let dir = scratch();
    let (journal, _) = open(&dir);
    let large = "x".repeat(3 * usize::try_from(SEGMENT_BYTES).unwrap());
    for n in 0..3 {
        append(&journal, vec![to("run/1", n, &[&large])]).unwrap();
    }
    drop(journal);
    let (journal, _) = open(&dir);
    assert_eq!(all(&journal, 0).len(), 3);
    assert_eq!(journal.read_stream(&id("run/1"), 1, 1).unwrap()[0].seq, 2);
}

#[test]
fn a_read_sees_what_was_synced_when_it_began() {
    let dir = filled(5);
    let (journal, _) = open(&dir);
    let reader = journal.read(Position(2));
    append(&journal, vec![to("run/9", 0, &["later"])]).unwrap();
    let positions: Vec<_> = reader.map(|record| record.unwrap().0.0).collect();
    assert_eq!(positions, [3, 4, 5]);
}

#[test]
fn appends_over_the_queues_limit_are_refused_at_once() {
    let dir = scratch();
    let (journal, _) = LogJournal::open(dir.path(), LogOptions { queue_bytes: 10_000, ..options() }).unwrap();
    let large = "x".repeat(9_000);
    let answers: Vec<_> = (0..200).map(|n| journal.append(vec![to(&format!("run/{n}"), 0, &[&large])])).collect();
    let results: Vec<_> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap()).collect();
    let taken = results.iter().filter(|result| result.is_ok()).count();
    assert!(taken < 200, "nothing was refused");
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(AppendError::Unavailable(_)))));
    assert_eq!(all(&journal, 0).len(), taken);
}

/// A child between `fork` and `exec` holds the same open file.
#[test]
fn the_lock_is_given_back_though_a_child_is_being_started() {
    let dir = scratch();
    let lock = files::lock(dir.path()).unwrap();
    let _held_by_a_child = lock.file.try_clone().unwrap();
    drop(lock);
    assert!(files::lock(dir.path()).is_ok());
}

/// The first line, or the last batch, as a newer muster would write it.
fn rewrite(dir: &TempDir, edit: impl Fn(&mut Vec<u8>)) {
    let file = segment_files(dir).pop().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    edit(&mut bytes);
    fs::write(&file, bytes).unwrap();
}

#[test]
fn what_a_newer_muster_has_written_is_not_opened_and_not_touched() {
    let refused = |dir: &TempDir| {
        let before = fs::read(segment_files(dir).pop().unwrap()).unwrap();
        let error = LogJournal::open(dir.path(), options()).err().expect("it is refused");
        assert_eq!(fs::read(segment_files(dir).pop().unwrap()).unwrap(), before);
        error.to_string()
    };
    let newer = filled(3);
    rewrite(&newer, |bytes| {
        let end = bytes.iter().position(|b| *b == b'\n').unwrap();
        let line = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut line = line.split(",\"crc32c\"").next().unwrap().replace("\"segment\":1", "\"segment\":3").into_bytes();
        format::seal(&mut line, 0);
        bytes.splice(..=end, line);
    });
    assert!(refused(&newer).contains("has a record of version 3, which a newer muster has written"));

    let newer = filled(1);
    rewrite(&newer, |bytes| {
        let lines: Vec<usize> = (0..bytes.len()).filter(|n| bytes[*n] == b'\n').collect();
        let (start, end) = (lines[0] + 1, lines[2]);
        let record = String::from_utf8(bytes[start..=lines[1]].to_vec()).unwrap().replace("{\"v\":1", "{\"v\":2");
        let commit: format::CommitLine = serde_json::from_slice(&bytes[lines[1] + 1..=end]).unwrap();
        let hash = record::hash_line(record.trim_end().as_bytes());
        let chain = record::next_chain(&record::NO_CHAIN, commit.batch, [hash].iter());
        let mut batch = record.into_bytes();
        let names: Vec<String> = commit.streams.iter().map(|s| s.0.to_string()).collect();
        format::write_commit(
            &mut batch,
            format::Commit {
                batch: commit.batch,
                records: 1,
                chain: &chain,
                streams: names.iter().map(String::as_str),
                before: [].into_iter(),
                carried: false,
            },
        );
        bytes.splice(start..=end, batch);
    });
    assert!(refused(&newer).contains("version 2"));
}
