//! The store: what is written is read again, and what is doubtful is thrown away and built anew.

use std::{fs, path::PathBuf};

use serde_json::{json, value::RawValue};
use tempfile::TempDir;

use super::*;

const CLUSTER: &str = "0199f0e0-0000-7000-8000-000000000001";

fn ns() -> Namespace {
    Namespace::from("default")
}

fn run(n: usize, state: &str) -> RunRow {
    RunRow {
        id: RunId::from(format!("run-{n:05}")),
        namespace: ns(),
        playbook: if n.is_multiple_of(2) { "even".into() } else { "odd".into() },
        state: state.into(),
        state_reason: String::new(),
        waiting: None,
        started_at: jiff::Timestamp::from_second(1_767_780_000 + i64::try_from(n).unwrap()).unwrap(),
        started_by: "person/dba-1".into(),
        ended_at: (state == "SUCCEEDED").then(|| jiff::Timestamp::from_second(1_767_790_000).unwrap()),
        rest: None,
        seq: 1,
    }
}

fn playbook(revision: &str) -> StoreWrite {
    StoreWrite::Playbook(PlaybookRow {
        namespace: ns(),
        name: "hello".into(),
        revision: revision.into(),
        yaml: "spec: {}".into(),
        owner: "devops".into(),
        submitted_at: jiff::Timestamp::UNIX_EPOCH,
        submitted_by: "person/dba-1".into(),
        warnings: serde_json::Value::Null,
    })
}

fn open(dir: &TempDir, head: u64) -> (Store, Opening) {
    Store::open(&dir.path().join("store"), CLUSTER, Position(head)).unwrap()
}

fn filled(dir: &TempDir, runs: usize) {
    let (store, _) = open(dir, 0);
    for n in 1..=runs {
        store.apply_batch(Position(n as u64), vec![StoreWrite::Run(run(n, "RUNNING"))]).unwrap();
    }
    store.close().unwrap();
}

fn largest_file(dir: &TempDir) -> PathBuf {
    let files = fs::read_dir(dir.path().join("store/sled")).unwrap().map(|e| e.unwrap().path());
    files.filter(|f| f.is_file()).max_by_key(|f| f.metadata().unwrap().len()).unwrap()
}

#[test]
fn what_was_applied_is_there_after_it_was_opened_again() {
    let dir = TempDir::new().unwrap();
    filled(&dir, 3);
    let (store, opening) = open(&dir, 3);
    assert_eq!((opening, store.position()), (Opening::Kept, Position(3)));
    assert_eq!(store.run(&"run-00002".into()).unwrap(), Some(run(2, "RUNNING")));
    assert_eq!(store.run(&"run-00004".into()).unwrap(), None);
}

#[test]
fn a_position_is_applied_once() {
    let dir = TempDir::new().unwrap();
    let (store, opening) = open(&dir, 0);
    assert_eq!(opening, Opening::Created);
    store.apply_batch(Position(5), vec![StoreWrite::Run(run(1, "RUNNING"))]).unwrap();
    store.apply_batch(Position(5), vec![StoreWrite::Run(run(1, "SUCCEEDED"))]).unwrap();
    assert_eq!(store.run(&"run-00001".into()).unwrap().unwrap().state, "RUNNING");
    store.apply_batch(Position(9), vec![]).unwrap();
    assert_eq!(store.position(), Position(9));
}

#[test]
fn runs_are_listed_page_by_page_the_newest_first() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    let rows = (1..=10).map(|n| StoreWrite::Run(run(n, if n <= 5 { "SUCCEEDED" } else { "RUNNING" })));
    store.apply_batch(Position(1), rows.collect()).unwrap();
    let mut seen = Vec::new();
    let mut token = String::new();
    let filter = |row: &RunRow| row.playbook == "even";
    loop {
        let page = store.list_runs(&ns(), filter, 2, &token).unwrap();
        seen.extend(page.items.into_iter().map(|row| row.id.to_string()));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["run-00010", "run-00008", "run-00006", "run-00004", "run-00002"]);
    let ended = |row: &RunRow| row.state == "SUCCEEDED";
    assert_eq!(store.list_runs(&ns(), ended, 100, "").unwrap().items.len(), 5);
    assert_eq!(store.open_runs().unwrap().len(), 5);
    assert!(store.list_runs(&"other".into(), |_| true, 100, "").unwrap().items.is_empty());
    for token in ["zz", "+1", "00", "6", "日本"] {
        assert_eq!(store.list_runs(&ns(), filter, 2, token).unwrap_err(), StoreError::BadPageToken, "{token}");
    }
}

#[test]
fn a_run_that_ends_is_no_longer_open() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    let writes = vec![StoreWrite::Run(run(1, "RUNNING")), StoreWrite::Run(run(1, "SUCCEEDED"))];
    store.apply_batch(Position(1), writes).unwrap();
    assert!(store.open_runs().unwrap().is_empty());
    assert_eq!(store.list_runs(&ns(), |_| true, 10, "").unwrap().items.len(), 1);
}

#[test]
fn the_newest_revision_is_the_one_submitted_last() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    store.apply_batch(Position(1), vec![playbook("sha256:b"), playbook("sha256:a")]).unwrap();
    assert_eq!(store.playbook(&ns(), "hello", None).unwrap().unwrap().revision, "sha256:a".into());
    assert!(store.playbook(&ns(), "hello", Some(&"sha256:b".into())).unwrap().is_some());
    assert!(store.playbook(&ns(), "hello", Some(&"sha256:c".into())).unwrap().is_none());
    assert_eq!(store.list_playbooks(&ns(), 10, "").unwrap().items.len(), 1);
}

#[test]
fn milestones_come_by_run_and_in_the_order_of_the_plan() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    let mut writes = Vec::new();
    for (run, ordinal) in [("run-1", 0), ("run-1", 1), ("run-2", 0), ("run-2", 255), ("run-2", 256)] {
        writes.push(StoreWrite::Milestone(MilestoneRow {
            namespace: ns(),
            run: run.into(),
            playbook: "hello".into(),
            phase: "p".into(),
            ordinal,
            name: format!("{run}/{ordinal}"),
            state: muster_engine::run::state::MilestoneState::Pending,
            since: jiff::Timestamp::UNIX_EPOCH,
            due_at: None,
        }));
    }
    store.apply_batch(Position(1), writes).unwrap();
    let names = |run: Option<&str>| -> Vec<String> {
        let run = run.map(RunId::from);
        let page = store.list_milestones(&ns(), run.as_ref(), 10, "").unwrap();
        page.items.into_iter().map(|row| row.name).collect()
    };
    assert_eq!(names(Some("run-1")), ["run-1/0", "run-1/1"]);
    assert_eq!(names(None), ["run-2/0", "run-2/255", "run-2/256", "run-1/0", "run-1/1"]);
}

#[test]
fn snapshots_requests_and_agents_are_found_by_their_keys() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    let state = RawValue::from_string(r#"{"steps":[1,2]}"#.into()).unwrap();
    let request = RequestRow {
        id: "4b0e".into(),
        actor: "person/dba-1".into(),
        body: "sha256:1".into(),
        answer: json!({"run": "run-1"}),
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    let agent = AgentRow { namespace: ns(), name: "infra-1".into(), detail: json!({"role": "infra"}) };
    let writes = vec![
        StoreWrite::Snapshot { run: "run-1".into(), snapshot: Snapshot { seq: 7, state } },
        StoreWrite::Request(request.clone()),
        StoreWrite::Agent(agent.clone()),
    ];
    store.apply_batch(Position(1), writes).unwrap();
    let snapshot = store.snapshot(&"run-1".into()).unwrap().unwrap();
    assert_eq!((snapshot.seq, snapshot.state.get()), (7, r#"{"steps":[1,2]}"#));
    assert_eq!(store.request("4b0e").unwrap(), Some(request));
    assert_eq!(store.list_agents(&ns(), 10, "").unwrap().items, [agent]);
    let drops = vec![StoreWrite::DropSnapshot("run-1".into()), StoreWrite::DropRequest("4b0e".into())];
    store.apply_batch(Position(2), drops).unwrap();
    assert!(store.snapshot(&"run-1".into()).unwrap().is_none() && store.request("4b0e").unwrap().is_none());
}

#[test]
fn a_store_ahead_of_the_log_or_of_another_cluster_is_rebuilt() {
    let dir = TempDir::new().unwrap();
    filled(&dir, 3);
    let (store, opening) = open(&dir, 2);
    assert!(matches!(opening, Opening::Rebuilt { .. }), "{opening:?}");
    assert_eq!(store.position(), Position(0));
    store.apply_batch(Position(1), vec![StoreWrite::Run(run(1, "RUNNING"))]).unwrap();
    store.close().unwrap();
    let (store, opening) = Store::open(&dir.path().join("store"), "another", Position(9)).unwrap();
    assert!(matches!(opening, Opening::Rebuilt { .. }), "{opening:?}");
    assert!(store.run(&"run-00001".into()).unwrap().is_none());
}

#[test]
fn a_store_that_was_open_when_the_machine_went_down_is_rebuilt() {
    let dir = TempDir::new().unwrap();
    filled(&dir, 1);
    let mark = dir.path().join("store/mark");
    fs::write(&mark, json!({"cluster": CLUSTER, "boot": "an earlier start"}).to_string()).unwrap();
    let (_store, opening) = open(&dir, 1);
    assert!(matches!(opening, Opening::Rebuilt { .. }), "{opening:?}");
}

#[test]
fn a_reset_store_is_empty_and_usable() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    store.apply_batch(Position(4), vec![StoreWrite::Run(run(1, "RUNNING"))]).unwrap();
    store.reset("the test says so").unwrap();
    assert_eq!(store.position(), Position(0));
    assert!(store.run(&"run-00001".into()).unwrap().is_none());
    store.apply_batch(Position(1), vec![StoreWrite::Run(run(2, "RUNNING"))]).unwrap();
    store.close().unwrap();
    assert_eq!(open(&dir, 1).1, Opening::Kept);
}

#[test]
fn nothing_is_written_or_deleted_without_room() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    store.apply_batch(Position(1), vec![StoreWrite::Run(run(1, "RUNNING"))]).unwrap();
    store.keep_free(u64::MAX);
    let refused = store.apply_batch(Position(2), vec![StoreWrite::Run(run(2, "RUNNING"))]);
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{refused:?}");
    assert!(matches!(store.reset("the test says so"), Err(StoreError::NoRoom { .. })));
    assert_eq!((store.broken(), store.position()), (None, Position(1)), "it is as it was");
    assert!(store.run(&"run-00001".into()).unwrap().is_some());
    store.keep_free(0);
    store.apply_batch(Position(2), vec![StoreWrite::Run(run(2, "RUNNING"))]).unwrap();
    store.close().unwrap();
    let path = dir.path().join("store");
    let refused = Store::open_keeping(u64::MAX, &path, CLUSTER, Position(2)).map(|(_, opening)| opening);
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{refused:?}");
    assert_eq!(open(&dir, 2).1, Opening::Kept);
}

#[test]
fn a_broken_store_says_nothing_until_it_is_made_anew() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    store.apply_batch(Position(1), vec![StoreWrite::Run(run(1, "RUNNING"))]).unwrap();
    store.give_up("the test says so");
    let io = || StoreError::Io("the test says so".into());
    assert_eq!(store.run(&"run-00001".into()).unwrap_err(), io());
    assert_eq!(store.list_runs(&ns(), |_| true, 10, "").unwrap_err(), io());
    assert_eq!(store.apply_batch(Position(2), vec![]).unwrap_err(), io());
    store.reset("the test says so").unwrap();
    assert_eq!((store.broken(), store.position()), (None, Position(0)));
    store.apply_batch(Position(2), vec![StoreWrite::Run(run(2, "RUNNING"))]).unwrap();
    store.close().unwrap();
    assert_eq!(open(&dir, 2).1, Opening::Kept, "the one that was given up holds no lock");
}

#[test]
fn a_store_that_breaks_again_and_again_stays_broken() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir, 0);
    for _ in 0..ABANDONED_AT_MOST {
        store.give_up("the test says so");
        store.reset("the test says so").unwrap();
    }
    store.give_up("the test says so");
    let refused = store.reset("the test says so").unwrap_err();
    assert!(refused.to_string().contains("restart"), "{refused}");
}

/// Either the damage is found and the store rebuilt, or everything in it is as it was at its position: sled may give up
/// a tail without a word, and then the position is an earlier one, from which the log is read again.
#[test]
fn no_flipped_byte_goes_unnoticed() {
    let pristine = TempDir::new().unwrap();
    filled(&pristine, 40);
    let file = largest_file(&pristine);
    let bytes = fs::read(&file).unwrap();
    let used = bytes.iter().rposition(|b| *b != 0).unwrap();
    let mut lost = 0;
    for n in 0..40 {
        let dir = TempDir::new().unwrap();
        copy_dir(&pristine.path().join("store"), &dir.path().join("store"));
        let mut damaged = bytes.clone();
        damaged[used * n / 40] ^= 1 << (n % 8);
        fs::write(dir.path().join("store/sled").join(file.file_name().unwrap()), damaged).unwrap();
        let (store, opening) = open(&dir, 40);
        let position = usize::try_from(store.position().0).unwrap();
        lost += usize::from(matches!(opening, Opening::Rebuilt { .. }) || position < 40);
        for n in 1..=40 {
            let row = store.run(&RunId::from(format!("run-{n:05}"))).unwrap();
            assert_eq!(row, (n <= position).then(|| run(n, "RUNNING")));
        }
    }
    assert!(lost > 0, "none of the flips was in anything that is read");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
