//! What a person can ask of the log of a stopped coordinator. Nothing here changes a byte.

use std::{collections::HashMap, io, io::Write, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    Head, StreamId,
    log::{Loss, OpenError, files, walk},
    record,
};

/// What a log is and whether it is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The log's present life.
    pub cluster: String,
    /// Its last intact batch.
    pub head: Head,
    /// Files.
    pub segments: usize,
    /// Intact batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Streams that they belong to.
    pub streams: usize,
    /// Bytes behind the last batch that nobody was answered for; the next start cuts them off.
    pub torn_bytes: u64,
    /// What is missing or not what was written.
    pub losses: Vec<Loss>,
    /// Nothing is.
    pub whole: bool,
}

/// Reads the whole log of a data directory and checks every byte: checksums, chain, the numbers and hashes of each
/// stream, and `HEAD`.
///
/// # Errors
/// If it can't be read, or a coordinator has it open. Damage is no error; it is in the report.
pub fn verify(data: &Path) -> Result<Report, OpenError> {
    visit(data, &mut |_| Ok(()))
}

/// The end of the log.
///
/// # Errors
/// As [`verify`].
pub fn head(data: &Path) -> Result<Head, OpenError> {
    verify(data).map(|report| report.head)
}

/// Writes the records of all streams, or of one, as they are in the log: one line of JSON each. Damaged batches are left
/// out; the report says which.
///
/// # Errors
/// As [`verify`], and those of the writer.
pub fn export(data: &Path, stream: Option<&StreamId>, out: &mut dyn Write) -> Result<Report, OpenError> {
    #[derive(Deserialize)]
    struct Envelope {
        stream: StreamId,
        seq: u64,
    }
    let unwritten = |source: io::Error| OpenError::Io { path: "the output".into(), source };
    let is_cut = files::segments(data)?.first().is_some_and(|(first, _)| *first > 1);
    // The next number of each stream. What is carried stands in the log twice, or behind later records of its stream.
    let mut next: HashMap<StreamId, u64> = HashMap::new();
    let report = visit(data, &mut |lines| {
        lines.split_inclusive(|b| *b == b'\n').try_for_each(|line| {
            let Ok(Envelope { stream: of, seq }) = serde_json::from_slice(line) else {
                return if stream.is_none() { out.write_all(line).map_err(unwritten) } else { Ok(()) };
            };
            if stream.is_some_and(|stream| *stream != of) {
                return Ok(());
            }
            let expected = next.entry(of).or_insert(1);
            let begins_later = is_cut && *expected == 1 && seq > 1;
            if seq < *expected || begins_later {
                return Ok(());
            }
            *expected = seq + 1;
            out.write_all(line).map_err(unwritten)
        })
    })?;
    out.flush().map_err(unwritten)?;
    Ok(report)
}

fn visit(data: &Path, each: &mut dyn FnMut(&[u8]) -> Result<(), OpenError>) -> Result<Report, OpenError> {
    let _lock = files::lock_shared(data)?;
    let clusters = files::clusters(data)?;
    let walked = walk::walk(data, files::read_head(data)?, &mut |batch| each(batch.lines))?;
    let mut losses = walked.losses;
    if clusters.is_empty() {
        losses.push(Loss::no_cluster());
    }
    Ok(Report {
        cluster: clusters.last().map(|cluster| cluster.id.clone()).unwrap_or_default(),
        head: Head { position: walked.index.position, chain: record::hex(&walked.index.chain) },
        segments: walked.index.segments.len(),
        batches: walked.batches,
        records: walked.records,
        streams: walked.index.streams(),
        torn_bytes: walked.tail.map_or(0, |tail| tail.to - tail.from),
        whole: losses.is_empty(),
        losses,
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::PathBuf};

    use tempfile::TempDir;

    use super::*;
    use crate::journal::{
        Journal as _, Position,
        conformance::{append, id, to},
        log::{LogJournal, LogOptions},
    };

    fn filled() -> (TempDir, Head) {
        let dir = TempDir::new().unwrap();
        let options = LogOptions { segment_bytes: 8 << 10, ..LogOptions::default() };
        let (journal, _) = LogJournal::open(dir.path(), options).unwrap();
        for n in 0..40 {
            append(&journal, vec![to("run/1", n, &[&n.to_string()]), to("run/2", n, &["x"])]).unwrap();
        }
        (dir, journal.head())
    }

    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(contents(&path));
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        found
    }

    #[test]
    fn a_whole_log_is_said_to_be_whole_and_not_touched() {
        let (dir, expected) = filled();
        let before = contents(dir.path());
        let report = verify(dir.path()).unwrap();
        assert!(report.whole && report.losses.is_empty() && report.segments > 1, "{report:?}");
        assert_eq!((report.batches, report.records, report.streams), (40, 80, 2));
        assert_eq!((head(dir.path()).unwrap(), report.head), (expected.clone(), expected));
        assert_eq!(contents(dir.path()), before);
    }

    #[test]
    fn a_log_in_use_is_left_alone() {
        let (dir, _) = filled();
        let (journal, _) = LogJournal::open(dir.path(), LogOptions::default()).unwrap();
        assert!(matches!(verify(dir.path()), Err(OpenError::InUse { .. })));
        drop(journal);
        assert!(verify(dir.path()).unwrap().whole);
    }

    #[test]
    fn what_is_not_a_log_is_an_error() {
        let dir = TempDir::new().unwrap();
        assert!(matches!(verify(dir.path()), Err(OpenError::Io { .. })));
    }

    #[test]
    fn records_are_exported_as_they_are() {
        let (dir, _) = filled();
        let (mut all, mut one, mut none) = (Vec::new(), Vec::new(), Vec::new());
        export(dir.path(), None, &mut all).unwrap();
        export(dir.path(), Some(&id("run/1")), &mut one).unwrap();
        export(dir.path(), Some(&id("run/3")), &mut none).unwrap();
        let lines = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().lines().count();
        assert_eq!((lines(all), lines(one.clone()), lines(none)), (80, 40, 0));
        let first: crate::journal::Record = serde_json::from_slice(one.split(|b| *b == b'\n').next().unwrap()).unwrap();
        assert_eq!((first.stream, first.seq), (id("run/1"), 1));
    }

    #[test]
    fn what_is_carried_is_exported_once() {
        let (dir, _) = filled();
        let exported = || {
            let mut out = Vec::new();
            export(dir.path(), Some(&id("run/1")), &mut out).unwrap();
            out
        };
        let before = exported();
        let options = LogOptions { segment_bytes: 8 << 10, ..LogOptions::default() };
        let (journal, _) = LogJournal::open(dir.path(), options).unwrap();
        let old = journal.old(jiff::Timestamp::now()).unwrap().unwrap();
        let keep = [id("run/1"), id("run/2")];
        journal.carry(&old, &keep).unwrap();
        drop(journal);
        assert!(exported() == before, "while both are there");
        let (journal, _) = LogJournal::open(dir.path(), LogOptions::default()).unwrap();
        journal.let_go(&old, &keep, jiff::Timestamp::now(), &"muster".into()).unwrap();
        drop(journal);
        assert!(verify(dir.path()).unwrap().whole);
        assert!(exported() == before, "when the first one is gone");
    }

    #[test]
    fn damage_is_named_and_the_rest_exported() {
        let (dir, expected) = filled();
        let segment = files::segment_file(dir.path(), 1);
        let mut bytes = fs::read(&segment).unwrap();
        let middle = bytes.len() / 3;
        bytes[middle] ^= 1;
        fs::write(&segment, bytes).unwrap();
        let mut out = Vec::new();
        let report = export(dir.path(), None, &mut out).unwrap();
        assert!(!report.whole && report.head == expected, "{report:?}");
        assert_eq!(report.losses[0].streams, [id("run/1"), id("run/2")]);
        let text = report.losses[0].to_string();
        assert!(text.starts_with("log/00000000000000000001.jsonl, bytes ") && text.ends_with("run/1, run/2"), "{text}");
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 78);
    }

    #[test]
    fn a_torn_tail_is_no_loss() {
        let (dir, expected) = filled();
        let last = files::segments(dir.path()).unwrap().pop().unwrap().1;
        let bytes = fs::read(&last).unwrap();
        let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
        let mut torn = bytes[..end].to_vec();
        torn.extend_from_slice(b"{\"v\":1,\"stream\":\"run/1\",\"se");
        fs::write(&last, torn).unwrap();
        let report = verify(dir.path()).unwrap();
        assert_eq!((report.whole, report.torn_bytes, report.head.position), (true, 27, Position(40)));
        assert_eq!(report.head, expected);
    }
}
