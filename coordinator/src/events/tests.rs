//! What is told, word for word; and that it is told in order and not lost, whatever breaks.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc, time::Duration};

use muster_bus::{
    event::{CloudEvent, SinkError},
    testkit::MemoryEvents,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::to_raw_value};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{CHECK_EVERY, Events, OFF_PAUSE, Source, follow, map};
use crate::{
    driver::Clock,
    journal::{Journal, NewRecord, Position, Record, StreamAppend, StreamId, memory::MemoryJournal},
    store::{EventsRow, Store, StoreWrite},
};

const CLUSTER: &str = "0d6cf4cc-7e4c-4f0c-a6a1-6f9b4a1d2e30";
const RUN: &str = "run/0199c1d2-0000-7000-8000-000000000001";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A record, and what is told of it.
#[derive(Deserialize, Serialize)]
struct Golden {
    record: Record,
    told: Option<CloudEvent>,
}

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events.jsonl")
}

fn read_goldens() -> Vec<Golden> {
    let text = fs::read_to_string(goldens()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn told_of(record: &Record) -> Option<CloudEvent> {
    let topic = map::Topic::of(record)?;
    let told = map::tell(&topic, &"default".into(), record).unwrap()?;
    Some(map::envelope(told, CLUSTER, record))
}

/// With `UPDATE=1` the file is written anew from its records.
#[test]
fn what_is_told_is_told_in_these_words() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut text = String::new();
    for Golden { record, told } in read_goldens() {
        let now = told_of(&record);
        text.push_str(&serde_json::to_string(&Golden { record, told: now.clone() }).unwrap());
        text.push('\n');
        assert!(update || now == told, "{now:#?}\nis not\n{told:#?}");
    }
    if update {
        fs::write(goldens(), text).unwrap();
    }
}

#[test]
fn every_kind_is_golden_and_on_the_page() {
    let page = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/events.md")).unwrap();
    let mut kinds = BTreeSet::new();
    for event in read_goldens().into_iter().filter_map(|golden| golden.told) {
        let kind = event.kind.strip_prefix("dev.muster.v1.").unwrap().to_owned();
        if kinds.insert(kind.clone()) {
            let example = format!("| `{kind}` | `{}` |", event.data);
            assert!(page.contains(&example), "the page on events needs\n{example}");
        }
    }
    let all = [
        "agent_drained",
        "agent_ended",
        "agent_forgotten",
        "agent_registered",
        "cancel_requested",
        "finish_started",
        "gate_judged",
        "milestone_at_risk",
        "milestone_missed",
        "milestone_reached",
        "phase_ended",
        "phase_started",
        "rollback_started",
        "run_ended",
        "run_paused",
        "run_resumed",
        "run_started",
        "step_asking",
    ];
    assert_eq!(kinds, all.into_iter().map(str::to_owned).collect());
}

#[test]
fn a_text_without_an_end_is_cut() {
    let event = json!({"type": "run_resumed", "reason": "é".repeat(100_000)});
    let record = Record {
        v: 1,
        stream: StreamId(RUN.into()),
        seq: 2,
        at: "2026-01-07T10:00:00Z".parse().unwrap(),
        by: "person/ops-1".into(),
        prev: String::new(),
        event: to_raw_value(&event).unwrap(),
    };
    let told = told_of(&record).unwrap();
    let reason = told.data["reason"].as_str().unwrap();
    assert!(reason.ends_with('…') && reason.len() < 2_100, "{} bytes", reason.len());
}

/// A journal, a store and a stream that outlive the task.
struct House {
    journal: Arc<MemoryJournal>,
    store: Arc<Store>,
    sink: Arc<MemoryEvents>,
    dir: tempfile::TempDir,
    stores: u32,
    task: Option<(CancellationToken, JoinHandle<()>)>,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("0"), CLUSTER, Position(u64::MAX)).unwrap();
        let (journal, sink) = (Arc::new(MemoryJournal::default()), Arc::default());
        Self { journal, store: Arc::new(store), sink, dir, stores: 1, task: None }
    }

    fn start(&mut self) {
        let stop = CancellationToken::new();
        let source = Source {
            journal: Arc::clone(&self.journal) as _,
            store: Arc::clone(&self.store),
            clock: Clock::new(|| "2026-01-07T12:00:00Z".parse().unwrap()),
            cluster: CLUSTER.to_owned(),
            namespace_of: Box::new(|_| None),
            stop: stop.clone(),
        };
        let events = Events { sink: Arc::clone(&self.sink) as _, keep: DAY };
        self.task = Some((stop, tokio::spawn(follow(events, source))));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.task.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }

    fn lose_store(&mut self) {
        let path = self.dir.path().join(self.stores.to_string());
        self.stores += 1;
        self.store = Arc::new(Store::open(&path, CLUSTER, Position(u64::MAX)).unwrap().0);
    }

    /// Records for a stream that has `after` of them.
    async fn append(&self, stream: &str, after: u64, events: &[Value]) {
        let records = events.iter().map(|event| NewRecord {
            at: "2026-01-07T10:00:00Z".parse().unwrap(),
            by: "muster".into(),
            event: to_raw_value(event).unwrap(),
        });
        let records = records.collect();
        let append = StreamAppend { stream: StreamId(stream.into()), expected_seq: after, records };
        self.journal.append(vec![append]).await.unwrap().unwrap();
    }

    /// So many resumptions of a run, behind its first record.
    async fn resume(&self, stream: &str, count: usize) {
        self.append(stream, 0, &[first()]).await;
        for seq in 1..=count as u64 {
            self.append(stream, seq, &[json!({"type": "run_resumed", "reason": "go on"})]).await;
        }
    }

    fn ids(&self) -> Vec<String> {
        self.sink.all().into_iter().map(|(_, event)| event.id).collect()
    }

    /// Wait until so many are there, for an hour of the paused clock at most.
    async fn published(&self, count: usize) -> Vec<String> {
        self.until("published", || self.ids().len() >= count).await;
        self.ids()
    }

    async fn until(&self, what: &str, so: impl Fn() -> bool) {
        for _ in 0..36_000 {
            if so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never {what}: {:?}", self.ids());
    }

    async fn all_is_published(&self) {
        self.until("at the end", || {
            self.store.events().unwrap().is_some_and(|row| row.position == self.journal.head().position)
        })
        .await;
    }
}

/// What is not told, but says in which namespace the run is.
fn first() -> Value {
    json!({"type": "of_a_later_version", "namespace": "blue"})
}

fn ids_of(stream: &str, seqs: std::ops::RangeInclusive<u64>) -> Vec<String> {
    seqs.map(|seq| format!("{stream}/{seq}")).collect()
}

#[tokio::test(start_paused = true)]
async fn events_come_in_the_order_of_their_stream() {
    let mut house = House::new();
    house.start();
    house.resume("run/a", 700).await;
    house.resume("run/b", 3).await;
    let ids = house.published(703).await;
    assert_eq!(ids, [ids_of("run/a", 2..=701), ids_of("run/b", 2..=4)].concat());
    let (subject, event) = house.sink.all().remove(0);
    assert_eq!(subject, "muster.v1.blue.event.run_resumed");
    assert_eq!(event.subject, "namespaces/blue/runs/a");
    house.stop().await;
    assert_eq!(house.store.events().unwrap().unwrap().position, house.journal.head().position);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_the_stream_comes_again_after_a_crash_before_its_position_is_stored() {
    let mut house = House::new();
    house.resume("run/a", 9).await;
    house.sink.take_only(5);
    house.start();
    house.published(5).await;
    // A crash: nothing is stored any more, and the server has forgotten the ids by the time that we are back.
    house.task.take().unwrap().1.abort();
    assert_eq!(house.store.events().unwrap(), None);
    house.sink.trouble(None);
    house.sink.forget_ids();
    house.start();
    let ids = house.published(14).await;
    assert_eq!(ids, [ids_of("run/a", 2..=6), ids_of("run/a", 2..=10)].concat());
}

#[tokio::test(start_paused = true)]
async fn a_stored_position_spares_what_is_in_the_stream_and_a_lost_one_brings_it_again_with_the_same_ids() {
    let mut house = House::new();
    house.resume("run/a", 3).await;
    house.start();
    house.all_is_published().await;
    house.stop().await;
    house.sink.forget_ids();
    house.start();
    house.append("run/a", 4, &[json!({"type": "run_resumed", "reason": "again"})]).await;
    house.all_is_published().await;
    assert_eq!(house.ids(), ids_of("run/a", 2..=5));
    house.stop().await;
    house.lose_store();
    house.sink.forget_ids();
    house.start();
    assert_eq!(house.published(8).await[4..], ids_of("run/a", 2..=5));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_deleted_is_filled_again() {
    let mut house = House::new();
    house.resume("run/a", 3).await;
    house.start();
    house.all_is_published().await;
    house.sink.delete();
    assert_eq!(house.published(3).await, ids_of("run/a", 2..=4), "though nothing happens");
    house.sink.delete();
    house.append("run/a", 4, &[json!({"type": "run_resumed", "reason": "again"})]).await;
    assert_eq!(house.published(4).await, ids_of("run/a", 2..=5));
    house.stop().await;
    house.sink.delete();
    house.start();
    assert_eq!(house.published(4).await, ids_of("run/a", 2..=5), "while we were away");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_lost_its_end_is_filled_again() {
    let mut house = House::new();
    house.resume("run/a", 3).await;
    house.start();
    house.all_is_published().await;
    house.stop().await;
    let EventsRow { position, mut stream } = house.store.events().unwrap().unwrap();
    assert_eq!(stream.last_seq, 3);
    stream.last_seq = 4;
    house.store.amend(vec![StoreWrite::Events(EventsRow { position, stream })]).unwrap();
    house.sink.forget_ids();
    house.start();
    assert_eq!(house.published(6).await[3..], ids_of("run/a", 2..=4));
}

#[tokio::test(start_paused = true)]
async fn while_the_stream_can_not_be_reached_events_wait_in_the_log() {
    let mut house = House::new();
    house.start();
    house.resume("run/a", 2).await;
    house.published(2).await;
    house.sink.trouble(Some(SinkError::Unavailable("cut off".to_owned())));
    for seq in 3..2_000 {
        house.append("run/a", seq, &[json!({"type": "run_resumed", "reason": "go on"})]).await;
    }
    let asked = house.sink.asked();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(house.sink.asked() - asked < 500, "it is not asked all the time: {}", house.sink.asked() - asked);
    house.sink.trouble(None);
    assert_eq!(house.published(1_999).await, ids_of("run/a", 2..=2_000));
}

#[tokio::test(start_paused = true)]
async fn without_a_stream_it_is_asked_for_now_and_then() {
    let mut house = House::new();
    house.sink.trouble(Some(SinkError::Off("a test says so".to_owned())));
    house.resume("run/a", 2).await;
    house.start();
    tokio::time::sleep(OFF_PAUSE * 10).await;
    let asked = house.sink.asked();
    assert!((5..=12).contains(&asked), "{asked}");
    house.sink.trouble(None);
    house.published(2).await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_told_or_is_refused_holds_up_nothing() {
    let mut house = House::new();
    let resumed = json!({"type": "run_resumed", "reason": "go on"});
    house.append("run/a", 0, &[first(), resumed.clone(), json!({"type": "run_ended"}), resumed.clone()]).await;
    house.append("run/of-nowhere", 0, &[json!({"type": "run_resumed", "reason": "go on"})]).await;
    house.append("agent/blue/x", 0, &[json!({"type": "agent_promoted"})]).await;
    house.append("run/a", 4, &[resumed.clone(), resumed]).await;
    house.sink.refuse("run/a/5");
    house.start();
    assert_eq!(house.published(3).await, ["run/a/2", "run/a/4", "run/a/6"]);
    house.all_is_published().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_not_told() {
    let mut house = House::new();
    let old = NewRecord {
        at: "2026-01-06T11:00:00Z".parse().unwrap(),
        by: "muster".into(),
        event: to_raw_value(&json!({"type": "agent_drained", "instance": "i-1"})).unwrap(),
    };
    let stream = StreamId("agent/blue/x".into());
    house.journal.append(vec![StreamAppend { stream, expected_seq: 0, records: vec![old] }]).await.unwrap().unwrap();
    house.append("agent/blue/x", 1, &[json!({"type": "agent_drained", "instance": "i-2"})]).await;
    house.start();
    house.all_is_published().await;
    tokio::time::sleep(CHECK_EVERY).await;
    assert_eq!(house.ids(), ["agent/blue/x/2"]);
}
