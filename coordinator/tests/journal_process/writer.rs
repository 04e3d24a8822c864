//! Appends to a few streams at once and says on standard output what was answered, one line and one system call each.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    thread,
};

use muster_coordinator::journal::{
    Journal, NewRecord, StreamAppend, StreamId,
    log::{LogJournal, LogOptions},
};
use serde_json::value::RawValue;

pub(crate) const STREAMS: u64 = 4;
/// So that a run goes through many of them.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;

pub(crate) fn options() -> LogOptions {
    LogOptions { segment_bytes: SEGMENT_BYTES, ..LogOptions::default() }
}

/// Goes on where the log ends, for so many appends to each stream.
pub(crate) fn run(data: &Path, appends: u64) {
    let (journal, opening) = LogJournal::open(data, options()).expect("the log opens");
    assert!(opening.losses.is_empty(), "{opening:?}");
    let journal = Arc::new(journal);
    let writers: Vec<_> = (0..STREAMS)
        .map(|n| {
            let journal = journal.clone();
            thread::spawn(move || write(&journal, &StreamId(format!("run/{n}").into()), appends))
        })
        .collect();
    for writer in writers {
        writer.join().expect("no writer panics");
    }
}

fn write(journal: &LogJournal, stream: &StreamId, appends: u64) {
    let last = journal.read_stream(stream, 0, usize::MAX).expect("the stream is whole").last().map_or(0, |r| r.seq);
    let mut line = String::new();
    for seq in last + 1..=last + appends {
        let append = StreamAppend { stream: stream.clone(), expected_seq: seq - 1, records: vec![record(stream, seq)] };
        let answer = journal.append(vec![append]).blocking_recv().expect("every append is answered");
        let position = answer.expect("nothing stands in the way").0;
        line.clear();
        writeln!(line, "answered {} {seq} {position}", stream.0).expect("a String takes every write");
        // Standard output is buffered by lines, and this is one: a single write.
        io::stdout().write_all(line.as_bytes()).expect("someone reads it");
    }
}

/// The event says which record it is, so that another one in its place is found.
pub(crate) fn record(stream: &StreamId, seq: u64) -> NewRecord {
    let event = format!("{{\"stream\":\"{}\",\"seq\":{seq},\"padding\":\"{}\"}}", stream.0, "x".repeat(300));
    NewRecord {
        at: "2026-01-07T10:00:00Z".parse().expect("a time"),
        by: "muster".into(),
        event: RawValue::from_string(event).expect("it is JSON"),
    }
}
