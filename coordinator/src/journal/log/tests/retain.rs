//! What is let go is gone, what is kept is whole, and a log says itself where it begins.

use super::*;
use crate::journal::{LetGoError, Old, RETENTION, ReadError, StreamId, conformance::new_record, tools};

const OLD: &str = "2026-01-07T10:00:00.000001Z";

const FILLER: u64 = 60;

fn after_old() -> Timestamp {
    OLD.parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_hours(1)
}

fn now() -> Timestamp {
    after_old() + jiff::SignedDuration::from_hours(1)
}

/// A record that is not old.
fn fresh(stream: &str, expected_seq: u64, text: &str) -> crate::journal::StreamAppend {
    let record = crate::journal::NewRecord { at: now(), ..new_record(text) };
    crate::journal::StreamAppend { stream: id(stream), expected_seq, records: vec![record] }
}

/// Segments of old records of `run/0` to `run/2`, and of `run/filler`; then newer ones of `run/0` and `run/new`.
fn aged() -> (TempDir, LogJournal) {
    let dir = filled(120);
    let (journal, _) = open(&dir);
    for n in 0..FILLER {
        append(&journal, vec![to("run/filler", n, &["x"])]).unwrap();
    }
    for n in 0..60 {
        append(&journal, vec![fresh("run/0", 40 + n, &format!("new {n}")), fresh("run/new", n, "x")]).unwrap();
    }
    assert!(segment_files(&dir).len() > 5, "{:?}", segment_files(&dir));
    (dir, journal)
}

fn old(journal: &LogJournal) -> Old {
    journal.old(after_old()).unwrap().expect("there are old records")
}

fn let_go(journal: &LogJournal, old: &Old, keep: &[&str]) -> Result<Position, LetGoError> {
    let keep: Vec<StreamId> = keep.iter().map(|stream| id(stream)).collect();
    journal.carry(old, &keep)?;
    journal.let_go(old, &keep, now(), &"muster".into())
}

fn stream(journal: &LogJournal, name: &str) -> Vec<String> {
    journal.read_stream(&id(name), 0, usize::MAX).unwrap().iter().map(conformance::text).collect()
}

fn reopened(dir: &TempDir, journal: LogJournal) -> LogJournal {
    drop(journal);
    let report = tools::verify(dir.path()).unwrap();
    assert!(report.whole, "{report:?}");
    let (journal, opening) = open(dir);
    assert!(opening.losses.is_empty() && opening.cut_bytes == 0, "{opening:?}");
    journal
}

#[test]
fn nothing_is_old_where_all_is_new() {
    let (_dir, journal) = aged();
    assert_eq!(journal.old(OLD.parse().unwrap()).unwrap(), None);
    assert_eq!(journal.begins(), Position(0));
}

#[test]
fn what_is_let_go_is_gone_and_what_is_kept_is_whole() {
    let (dir, journal) = aged();
    let (before, files) = (stream(&journal, "run/0"), segment_files(&dir).len());
    let old = old(&journal);
    let mut streams = old.streams.clone();
    streams.sort_unstable();
    let whole = [("run/0", false), ("run/1", true), ("run/2", true), ("run/filler", false)];
    assert_eq!(streams, whole.map(|(stream, is_whole)| (id(stream), is_whole)));
    let_go(&journal, &old, &["run/2"]).unwrap();

    let check = |journal: &LogJournal| {
        assert!(journal.begins().0 > 50 && journal.begins().0 < old.before.0, "{:?}", journal.begins());
        assert_eq!(stream(journal, "run/0"), before);
        assert_eq!(stream(journal, "run/1"), [""; 0]);
        assert_eq!(stream(journal, "run/2").len(), 40);
        assert_eq!(stream(journal, "run/new").len(), 60);
        assert_eq!(journal.read_stream(&id("run/0"), 98, 10).unwrap().len(), 2);
    };
    check(&journal);
    assert!(segment_files(&dir).len() < files, "nothing was removed");
    let journal = reopened(&dir, journal);
    check(&journal);

    // A stream goes on, and one that was let go begins anew.
    append(&journal, vec![fresh("run/0", 100, "last"), fresh("run/1", 0, "again")]).unwrap();
    assert_eq!(stream(&journal, "run/1"), ["again"]);
    let journal = reopened(&dir, journal);
    assert_eq!((stream(&journal, "run/0").len(), stream(&journal, "run/1").len()), (101, 1));
    assert!(matches!(append(&journal, vec![to("run/2", 0, &["x"])]), Err(AppendError::Conflict { actual: 40, .. })));
}

#[test]
fn who_reads_from_the_start_sees_each_kept_record_once_and_in_order() {
    let (dir, journal) = aged();
    let everything = all(&journal, 0);
    let head = journal.head().position;
    let_go(&journal, &old(&journal), &["run/2"]).unwrap();
    let journal = reopened(&dir, journal);
    let mut seen: std::collections::BTreeMap<String, Vec<u64>> = std::collections::BTreeMap::new();
    for item in journal.read(Position(0)) {
        let (_, record) = item.unwrap();
        seen.entry(record.stream.0.to_string()).or_default().push(record.seq);
    }
    let numbers = |count: u64| (1..=count).collect::<Vec<_>>();
    let retention = format!("{RETENTION}{:020}", journal.begins().0 + 1);
    let expected = [(retention.as_str(), 1), ("run/0", 100), ("run/2", 40), ("run/filler", FILLER), ("run/new", 60)];
    let expected: Vec<_> = expected.map(|(stream, count)| (stream.to_owned(), numbers(count))).into();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);

    // Who has read up to somewhere behind the beginning gets what is new, and nothing twice.
    let from = journal.begins().0 + 3;
    let after: Vec<_> = journal.read(Position(from)).map(|item| item.unwrap().1).collect();
    let ordinary = after.iter().filter(|record| !record.stream.0.starts_with(RETENTION)).count();
    assert_eq!(ordinary, everything.iter().filter(|(position, ..)| *position > from).count());
    assert_eq!(journal.read(head).map(Result::unwrap).filter(|(_, r)| !r.stream.0.starts_with(RETENTION)).count(), 0);
}

#[test]
fn it_can_be_done_again_and_again() {
    let (dir, mut journal) = aged();
    for round in 0..3_u64 {
        let old = journal.old(now() + jiff::SignedDuration::from_hours(1)).unwrap().expect("all of it is old");
        let_go(&journal, &old, &["run/0", "run/2"]).unwrap();
        journal = reopened(&dir, journal);
        let n = 100 + 30 * round;
        assert_eq!((stream(&journal, "run/0").len() as u64, stream(&journal, "run/2").len()), (n, 40));
        // Its newest records are in the segment that is written, so it is carried.
        assert_eq!(stream(&journal, "run/b").len() as u64, 30 * round);
        for k in 0..30 {
            append(&journal, vec![fresh("run/0", n + k, "x"), fresh("run/b", 30 * round + k, "x")]).unwrap();
        }
    }
}

#[test]
fn a_stream_that_got_a_record_since_is_not_let_go() {
    let (dir, journal) = aged();
    let old = old(&journal);
    append(&journal, vec![fresh("run/1", 40, "late")]).unwrap();
    let result = let_go(&journal, &old, &[]);
    assert!(matches!(result, Err(LetGoError::Append(AppendError::Conflict { .. }))), "{result:?}");
    let journal = reopened(&dir, journal);
    assert_eq!((stream(&journal, "run/1").len(), journal.begins()), (41, Position(0)));
}

#[test]
fn a_log_without_its_beginning_is_not_served() {
    let (dir, journal) = aged();
    drop(journal);
    fs::remove_file(&segment_files(&dir)[0]).unwrap();
    let Err(OpenError::Loss { losses }) = LogJournal::open(dir.path(), options()) else { panic!("it was served") };
    assert!(losses[0].what.contains("does not say that what was before may go"), "{losses:?}");

    // More is missing than was let go.
    let (dir, journal) = aged();
    let_go(&journal, &old(&journal), &["run/2"]).unwrap();
    drop(journal);
    fs::remove_file(&segment_files(&dir)[0]).unwrap();
    let result = LogJournal::open(dir.path(), options());
    assert!(matches!(result, Err(OpenError::Loss { .. })), "{:?}", result.err());
}

#[test]
fn files_that_a_crash_has_left_are_removed_at_the_next_start() {
    let (dir, journal) = aged();
    let old = old(&journal);
    let saved = scratch();
    for file in segment_files(&dir) {
        fs::copy(&file, saved.path().join(file.file_name().unwrap())).unwrap();
    }
    let_go(&journal, &old, &["run/2"]).unwrap();
    let everything = |journal: &LogJournal| {
        let records = journal.read(Position(0)).map(Result::unwrap);
        records.map(|(position, record)| (position, record.stream, record.seq)).collect::<Vec<_>>()
    };
    let expected = (everything(&journal), segment_files(&dir));
    drop(journal);
    let gone: Vec<_> = fs::read_dir(saved.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let mut gone: Vec<_> = gone.into_iter().filter(|name| !dir.path().join("log").join(name).exists()).collect();
    gone.sort_unstable();
    assert!(gone.len() > 1, "{gone:?}");
    // All of them are still there, then only the last one.
    for left in [0, gone.len() - 1] {
        for name in &gone[left..] {
            fs::copy(saved.path().join(name), dir.path().join("log").join(name)).unwrap();
        }
        let (journal, opening) = open(&dir);
        assert!(opening.losses.is_empty(), "{left}: {opening:?}");
        assert_eq!((everything(&journal), segment_files(&dir)), expected);
    }
}

#[test]
fn damage_anywhere_in_what_is_carried_is_named() {
    let (dir, journal) = aged();
    let_go(&journal, &old(&journal), &["run/2"]).unwrap();
    append(&journal, vec![fresh("run/new", 60, "behind")]).unwrap();
    drop(journal);
    let path = segment_files(&dir).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap();
    for at in (0..end).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, &bytes).unwrap();
        let report = tools::verify(dir.path()).unwrap();
        assert!(
            !report.losses.is_empty() || report.torn_bytes > 0,
            "byte {at} is flipped, and nobody sees it: {report:?}"
        );
    }
}

/// What was carried before the damage is found is no victim of it.
#[test]
fn a_stream_that_is_carried_is_whole_though_its_old_records_are_damaged() {
    let (dir, journal) = aged();
    let before = stream(&journal, "run/2");
    journal.carry(&old(&journal), &[id("run/2")]).unwrap();
    drop(journal);
    let path = &segment_files(&dir)[1];
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    (middle..middle + 2_000).for_each(|at| bytes[at] = b'x');
    fs::write(path, bytes).unwrap();
    let (journal, opening) = LogJournal::open(dir.path(), LogOptions { accept_loss: true, ..options() }).unwrap();
    assert!(opening.losses.iter().any(|loss| loss.streams.contains(&id("run/2"))), "{:?}", opening.losses);
    assert_eq!(stream(&journal, "run/2"), before);
    let damaged = journal.damaged();
    assert!(!damaged.contains(&id("run/2")) && damaged.contains(&id("run/1")), "{damaged:?}");
}

/// The record that says what went is damaged; its stream's name says it as well.
#[test]
fn a_log_whose_word_on_its_beginning_is_damaged_is_served_all_the_same() {
    let (dir, journal) = aged();
    let_go(&journal, &old(&journal), &["run/2"]).unwrap();
    append(&journal, vec![fresh("run/new", 60, "behind")]).unwrap();
    drop(journal);
    for path in segment_files(&dir) {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = memchr::memmem::find(&bytes, b"records_let_go") {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let (journal, opening) = open(&dir);
    assert!(opening.losses.iter().all(|loss| loss.all_named), "{:?}", opening.losses);
    assert!(journal.damaged().iter().all(|stream| stream.0.starts_with(RETENTION)), "{:?}", journal.damaged());
    assert!(journal.begins() > Position(0));
}

#[test]
fn a_damaged_segment_stays_and_all_behind_it() {
    let (dir, journal) = aged();
    drop(journal);
    let path = &segment_files(&dir)[1];
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
    let (journal, opening) = open(&dir);
    assert!(!opening.losses.is_empty());
    match journal.old(after_old()).unwrap() {
        None => {}
        Some(old) => assert!(old.before.0 <= files::segments(dir.path()).unwrap()[1].0, "{old:?}"),
    }
    assert!(matches!(journal.read_stream(&journal.damaged()[0], 0, 1), Err(ReadError::Damaged { .. })));
}

#[test]
fn an_older_muster_refuses_what_it_would_take_for_damage() {
    let (dir, journal) = aged();
    let_go(&journal, &old(&journal), &["run/2"]).unwrap();
    drop(journal);
    let first_line = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().next().unwrap().to_owned();
    let carrying: Vec<_> = segment_files(&dir).iter().map(|file| first_line(file).contains("\"segment\":2")).collect();
    assert!(carrying.contains(&true) && !carrying[0], "{carrying:?}");
}

#[test]
fn appends_go_on_while_old_records_go() {
    let (dir, journal) = aged();
    let old = old(&journal);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..300 {
                append(&journal, vec![fresh("run/0", 100 + n, "busy")]).unwrap();
            }
        });
        let_go(&journal, &old, &["run/2"]).unwrap();
        writer.join().unwrap();
    });
    let journal = reopened(&dir, journal);
    assert_eq!((stream(&journal, "run/0").len(), stream(&journal, "run/1").len()), (400, 0));
}
