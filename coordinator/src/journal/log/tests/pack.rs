//! Packed segments read as they did before, and damage in them is found and named.

use std::collections::BTreeSet;

use super::*;
use crate::journal::{
    ReadError, StreamId,
    log::packed::{Packed, packed_file},
    tools,
};

/// As [`all`] gives it.
type Everything = Vec<(u64, String, u64, String)>;

/// Segments of some hundred KiB, so that a packed one has several members; all but the last one packed.
fn packed() -> (TempDir, LogJournal, Everything) {
    let dir = scratch();
    let (journal, _) = LogJournal::open(dir.path(), large()).unwrap();
    for n in 0..700 {
        let text = format!("{n} {}", "some words that are said again and again; ".repeat(60));
        append(&journal, vec![to(&format!("run/{}", n % 97), n / 97, &[&text])]).unwrap();
    }
    let before = all(&journal, 0);
    let plain = segment_files(&dir);
    assert!(plain.len() > 3, "{plain:?}");
    assert_eq!(journal.pack("2026-01-01T00:00:00Z".parse().unwrap()).unwrap(), 0, "all of it is newer");
    assert_eq!(journal.pack(Timestamp::now()).unwrap(), plain.len() - 1);
    assert_eq!(journal.pack(Timestamp::now()).unwrap(), 0);
    for path in &plain[..plain.len() - 1] {
        assert!(!path.exists() && packed_file(path).exists());
    }
    (dir, journal, before)
}

fn large() -> LogOptions {
    LogOptions { segment_bytes: 600 << 10, ..LogOptions::default() }
}

fn packed_files(dir: &TempDir) -> Vec<PathBuf> {
    segment_files(dir).iter().map(|path| packed_file(path)).filter(|path| path.exists()).collect()
}

#[test]
fn what_is_packed_reads_as_it_did() {
    let (dir, journal, before) = packed();
    let check = |journal: &LogJournal| {
        assert_eq!(all(journal, 0), before);
        assert_eq!(all(journal, 321), before[321..]);
        for stream in 0..97 {
            let records = journal.read_stream(&id(&format!("run/{stream}")), 0, 100).unwrap();
            assert_eq!(records.len(), 700 / 97 + usize::from(stream < 700 % 97), "run/{stream}");
        }
    };
    check(&journal);
    let head = journal.head();
    drop(journal);
    let report = tools::verify(dir.path()).unwrap();
    assert!(report.whole && report.records == 700, "{report:?}");
    let (journal, opening) = LogJournal::open(dir.path(), large()).unwrap();
    assert_eq!((opening.losses.len(), opening.records, journal.head()), (0, 700, head));
    check(&journal);
    append(&journal, vec![to("run/0", 8, &["after"])]).unwrap();
}

#[test]
fn who_reads_while_it_is_packed_reads_on() {
    let dir = filled(200);
    let (journal, _) = open(&dir);
    let mut reader = journal.read(Position(0));
    reader.next().unwrap().unwrap();
    assert!(journal.pack(Timestamp::now()).unwrap() > 2);
    assert_eq!(reader.map(Result::unwrap).count(), 199);
}

#[test]
fn packed_segments_are_let_go_as_well() {
    let (dir, journal, _) = packed();
    let old = journal.old(Timestamp::now()).unwrap().unwrap();
    let keep = [id("run/5"), id("run/96")];
    journal.carry(&old, &keep).unwrap();
    journal.let_go(&old, &keep, Timestamp::now(), &"muster".into()).unwrap();
    assert_eq!(packed_files(&dir), [""; 0].map(PathBuf::from));
    drop(journal);
    let (journal, opening) = LogJournal::open(dir.path(), large()).unwrap();
    assert_eq!(opening.losses, []);
    for stream in keep {
        assert_eq!(journal.read_stream(&stream, 0, 100).unwrap().len(), 700 / 97 + usize::from(&*stream.0 == "run/5"));
    }
}

#[test]
fn of_two_files_of_a_segment_the_plain_one_counts() {
    let (dir, journal, before) = packed();
    drop(journal);
    let path = segment_files(&dir).remove(0);
    let mut both = Packed::open(&path).unwrap();
    fs::write(&path, both.text().0).unwrap();
    fs::write(packed_file(&path), "half of it").unwrap();
    assert!(tools::verify(dir.path()).unwrap().whole);
    let (journal, opening) = LogJournal::open(dir.path(), large()).unwrap();
    assert_eq!((opening.losses.len(), all(&journal, 0)), (0, before));
    assert!(!packed_file(&path).exists(), "half of it");
    assert!(journal.pack(Timestamp::now()).unwrap() > 0, "it is packed again");
}

#[test]
fn damage_in_a_packed_segment_names_its_victims_and_nobody_else_is_lost() {
    let (dir, journal, before) = packed();
    drop(journal);
    let files = packed_files(&dir);
    let path = &files[1];
    let whole = fs::read(path).unwrap();
    let everybody: BTreeSet<StreamId> = before.iter().map(|(_, stream, ..)| id(stream)).collect();
    for at in (0..whole.len()).step_by(whole.len() / 20) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(path, &bytes).unwrap();
        let (journal, opening) = match LogJournal::open(dir.path(), large()) {
            Ok(opened) => opened,
            Err(error) => panic!("byte {at}: {error}"),
        };
        let victims: BTreeSet<StreamId> = opening.losses.iter().flat_map(|loss| loss.streams.clone()).collect();
        assert!(victims.len() < everybody.len(), "byte {at}: not all are lost");
        assert_eq!(journal.damaged().into_iter().collect::<BTreeSet<_>>(), victims, "byte {at}");
        for stream in everybody.iter().skip(at % 8).step_by(8) {
            let read = journal.read_stream(stream, 0, 100);
            assert_eq!(read.is_err(), victims.contains(stream), "byte {at}: {stream:?}: {read:?}");
        }
        let mut read = (0, BTreeSet::new());
        for item in journal.read(Position(0)) {
            match item {
                Ok(_) => read.0 += 1,
                Err(ReadError::Damaged { streams, .. }) => read.1.extend(streams),
                Err(e @ ReadError::Io { .. }) => panic!("byte {at}: {e}"),
            }
        }
        assert!(read.1.is_superset(&victims), "byte {at}: the reader names {:?}, not {victims:?}", read.1);
        assert_eq!(read.0 == 700, victims.is_empty(), "byte {at}");
        assert_eq!(journal.pack(Timestamp::now()).unwrap(), 0);
    }
}

#[test]
fn a_packed_segment_that_is_gone_or_cut_is_not_served_without_consent() {
    let (dir, journal, _) = packed();
    drop(journal);
    let path = &packed_files(&dir)[1];
    let whole = fs::read(path).unwrap();
    fs::write(path, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(LogJournal::open(dir.path(), large()), Err(OpenError::Loss { .. })));
    fs::remove_file(path).unwrap();
    assert!(matches!(LogJournal::open(dir.path(), large()), Err(OpenError::Loss { .. })));
}
