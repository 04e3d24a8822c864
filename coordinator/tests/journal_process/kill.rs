//! What was answered is there, however the process ended. (A kill leaves the page cache alone and says nothing about
//! syncs: the trace does.)

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
};

use muster_coordinator::journal::{Journal as _, Position, log::LogJournal, tools};
use tempfile::TempDir;

use crate::{this_program, writer};

const KILLS: u64 = 20;

/// Stream and number of a record, with the position that was answered.
type Answered = BTreeMap<(String, u64), u64>;

pub(crate) fn what_was_answered_outlives_twenty_kills() {
    let dir = TempDir::new().expect("a directory");
    let mut answered = Answered::new();
    let mut random = 4711_u64;
    for _ in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        kill_after(dir.path(), 1 + (random >> 33) % 300, &mut answered);
        let report = tools::verify(dir.path()).expect("the log can be read");
        assert!(report.whole, "{report:?}");
        let last = answered.values().max().copied().unwrap_or_default();
        assert!(report.head.position.0 >= last, "batch {last} was answered: {report:?}");
    }
    let (journal, _) = LogJournal::open(dir.path(), writer::options()).expect("the log opens");
    let mut found = Answered::new();
    for record in journal.read(Position(0)) {
        let (position, record) = record.expect("nothing is damaged");
        assert_eq!(record.event.get(), writer::record(&record.stream, record.seq).event.get());
        found.insert((record.stream.0.to_string(), record.seq), position.0);
    }
    assert!(answered.len() as u64 > KILLS, "{} answers", answered.len());
    for (record, position) in &answered {
        assert_eq!(found.get(record), Some(position), "{record:?} was answered");
    }
}

/// Ends the writer in the middle of its work, when it has said so many lines; takes what else it managed to say.
fn kill_after(data: &Path, lines: u64, answered: &mut Answered) {
    let mut command = this_program();
    let command = command.arg("writer").arg(data).arg("1000000");
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the writer starts");
    let mut said = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut n = 0;
    while let Some(Ok(line)) = said.next() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, stream, seq, position] = words[..] else { panic!("{line}") };
        let number = |word: &str| word.parse().expect("a number");
        answered.insert((stream.to_owned(), number(seq)), number(position));
        n += 1;
        if n == lines {
            child.kill().expect("the writer was still at work");
        }
    }
    child.wait().expect("it was started here");
    assert!(n >= lines, "the writer ended by itself");
}
