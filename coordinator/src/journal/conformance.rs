//! What every [`Journal`] has to do, run for each of them.

use serde_json::{json, value::RawValue};

use super::{AppendError, Journal, MAX_APPEND_BYTES, NewRecord, Position, Record, StreamAppend, StreamId};

/// Runs the suite; `fresh` gives an empty journal, and something that keeps it alive, each time.
pub(crate) fn run<J: Journal, K>(fresh: impl Fn() -> (J, K)) {
    let cases: [fn(&dyn Journal); 10] = [
        an_empty_one_is_empty,
        records_come_back_as_they_were_given,
        records_are_numbered_and_hashed_by_stream,
        an_append_over_several_streams_is_one_batch,
        a_conflict_writes_nothing,
        a_stream_may_be_named_twice,
        an_append_without_records_is_a_check,
        what_is_too_large_is_refused,
        answers_come_in_the_order_of_the_log,
        reading_begins_where_it_is_told_to,
    ];
    for case in cases {
        let (journal, _keep) = fresh();
        case(&journal);
    }
}

/// An event with some text in it.
pub(crate) fn new_record(text: &str) -> NewRecord {
    NewRecord {
        at: "2026-01-07T10:00:00.000001Z".parse().unwrap(),
        by: "person/dba-1".into(),
        event: RawValue::from_string(json!({"type": "test", "text": text}).to_string()).unwrap(),
    }
}

/// Records for one stream.
pub(crate) fn to(stream: &str, expected_seq: u64, texts: &[&str]) -> StreamAppend {
    let records = texts.iter().map(|text| new_record(text)).collect();
    StreamAppend { stream: id(stream), expected_seq, records }
}

pub(crate) fn id(stream: &str) -> StreamId {
    StreamId(stream.into())
}

/// Appends and waits for the answer.
pub(crate) fn append(journal: &dyn Journal, appends: Vec<StreamAppend>) -> Result<Position, AppendError> {
    let dropped = |_| Err(AppendError::Unavailable("the answer was dropped".into()));
    journal.append(appends).blocking_recv().unwrap_or_else(dropped)
}

/// All records, as position, stream, number and text.
pub(crate) fn all(journal: &dyn Journal, after: u64) -> Vec<(u64, String, u64, String)> {
    let records = journal.read(Position(after)).map(Result::unwrap);
    records.map(|(position, record)| (position.0, record.stream.0.to_string(), record.seq, text(&record))).collect()
}

pub(crate) fn text(record: &Record) -> String {
    let event: serde_json::Value = serde_json::from_str(record.event.get()).unwrap();
    event["text"].as_str().unwrap().to_owned()
}

fn texts(journal: &dyn Journal, stream: &str, after_seq: u64, limit: usize) -> Vec<String> {
    journal.read_stream(&id(stream), after_seq, limit).unwrap().iter().map(text).collect()
}

fn an_empty_one_is_empty(journal: &dyn Journal) {
    assert_eq!(journal.head().position, Position(0));
    assert_eq!(all(journal, 0), []);
    assert_eq!(texts(journal, "run/1", 0, 10), [""; 0]);
}

fn records_come_back_as_they_were_given(journal: &dyn Journal) {
    let new = new_record("a \"quoted\" text\nof two lines, with 日本");
    let append_one = StreamAppend { stream: id("run/1"), expected_seq: 0, records: vec![new.clone()] };
    let position = append(journal, vec![append_one]).unwrap();
    let record = journal.read(Position(0)).next().unwrap().unwrap();
    assert_eq!(record.0, position);
    assert_eq!((record.1.v, record.1.seq, record.1.at, &record.1.by), (1, 1, new.at, &new.by));
    assert_eq!(record.1.event.get(), new.event.get());
    assert_eq!(journal.head().position, position);
}

fn records_are_numbered_and_hashed_by_stream(journal: &dyn Journal) {
    append(journal, vec![to("run/1", 0, &["a", "b"]), to("run/2", 0, &["x"])]).unwrap();
    append(journal, vec![to("run/1", 2, &["c"])]).unwrap();
    let records = journal.read_stream(&id("run/1"), 0, 10).unwrap();
    assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(records[0].prev, "");
    for pair in records.windows(2) {
        let mut line = serde_json::to_string(&pair[0]).unwrap();
        let hash = super::record::hash_line(line.as_bytes());
        assert_eq!(pair[1].prev, super::record::hex(&super::record::prev_of(&hash)), "{line}");
        line.clear();
    }
    assert_eq!(texts(journal, "run/2", 0, 10), ["x"]);
}

fn an_append_over_several_streams_is_one_batch(journal: &dyn Journal) {
    let position = append(journal, vec![to("run/1", 0, &["a"]), to("agent/x", 0, &["b"])]).unwrap();
    let found = all(journal, 0);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|(p, ..)| *p == position.0));
    let conflict = append(journal, vec![to("run/2", 0, &["c"]), to("agent/x", 0, &["d"])]);
    assert!(matches!(conflict, Err(AppendError::Conflict { .. })));
    assert_eq!(all(journal, 0), found, "one stream's conflict keeps all of the append out");
}

fn a_conflict_writes_nothing(journal: &dyn Journal) {
    append(journal, vec![to("run/1", 0, &["a"])]).unwrap();
    let before = (all(journal, 0), journal.head());
    for expected in [0, 2, u64::MAX] {
        let conflict = AppendError::Conflict { stream: id("run/1"), expected, actual: 1 };
        assert_eq!(append(journal, vec![to("run/1", expected, &["b"])]), Err(conflict));
    }
    assert_eq!((all(journal, 0), journal.head()), before);
    append(journal, vec![to("run/1", 1, &["b"])]).unwrap();
}

fn a_stream_may_be_named_twice(journal: &dyn Journal) {
    append(journal, vec![to("run/1", 0, &["a"]), to("run/2", 0, &["x"]), to("run/1", 1, &["b"])]).unwrap();
    assert_eq!(texts(journal, "run/1", 0, 10), ["a", "b"]);
    let conflict = append(journal, vec![to("run/1", 2, &["c"]), to("run/1", 2, &["d"])]);
    assert!(matches!(conflict, Err(AppendError::Conflict { actual: 3, .. })), "{conflict:?}");
    assert_eq!(texts(journal, "run/1", 0, 10), ["a", "b"]);
}

fn an_append_without_records_is_a_check(journal: &dyn Journal) {
    let position = append(journal, vec![to("run/1", 0, &["a"])]).unwrap();
    assert_eq!(append(journal, vec![to("run/1", 1, &[])]), Ok(position));
    assert_eq!(append(journal, vec![]), Ok(position));
    assert!(matches!(append(journal, vec![to("run/1", 0, &[])]), Err(AppendError::Conflict { .. })));
    assert_eq!(journal.head().position, position);
}

fn what_is_too_large_is_refused(journal: &dyn Journal) {
    let large = "x".repeat(MAX_APPEND_BYTES);
    assert!(matches!(append(journal, vec![to("run/1", 0, &[&large])]), Err(AppendError::TooLarge { .. })));
    assert_eq!(all(journal, 0), []);
    let fits = "x".repeat(MAX_APPEND_BYTES - 1000);
    append(journal, vec![to("run/1", 0, &[&fits])]).unwrap();
    assert_eq!(texts(journal, "run/1", 0, 1), [fits]);
}

fn answers_come_in_the_order_of_the_log(journal: &dyn Journal) {
    let waiting: Vec<_> = (0..100).map(|n| journal.append(vec![to("run/1", n, &[&n.to_string()])])).collect();
    let positions: Vec<_> = waiting.into_iter().map(|answer| answer.blocking_recv().unwrap().unwrap()).collect();
    assert!(positions.is_sorted());
    let found: Vec<_> = all(journal, 0).into_iter().map(|(.., text)| text).collect();
    assert_eq!(found, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

fn reading_begins_where_it_is_told_to(journal: &dyn Journal) {
    let positions: Vec<_> = (0..5).map(|n| append(journal, vec![to("run/1", n, &[&n.to_string()])]).unwrap()).collect();
    let after: Vec<_> = all(journal, positions[2].0).into_iter().map(|(.., text)| text).collect();
    assert_eq!(after, ["3", "4"]);
    assert_eq!(all(journal, positions[4].0), []);
    assert_eq!(all(journal, u64::MAX - 1), []);
    assert_eq!(texts(journal, "run/1", 3, 10), ["3", "4"]);
    assert_eq!(texts(journal, "run/1", 1, 2), ["1", "2"]);
    assert_eq!(texts(journal, "run/1", 5, 10), [""; 0]);
    assert_eq!(texts(journal, "run/1", 0, 0), [""; 0]);
}

#[test]
fn memory_conforms() {
    run(|| (super::memory::MemoryJournal::new(), ()));
}
