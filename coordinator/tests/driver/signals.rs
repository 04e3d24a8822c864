//! Signals of outsiders over the bus: answered after the sync, in the sender's name, and without end to nobody.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use muster_bus::{
    Bus as _, BusError,
    message::{PROTOCOL, Signal, SignalReply},
};
use muster_coordinator::control::Control as _;
use muster_engine::{
    ids::RunId,
    run::{Event, state::StepState},
};
use serde_json::{Value, json};

use crate::harness::{House, ns, playbook, subjects};

const RECORDED: SignalReply = SignalReply::Recorded;

fn waiting() -> String {
    let yaml = playbook(&["id: s0, action: test.work"], "");
    yaml.replace("        - {id: s0", "        - {id: w, wait: {signal: approved}}\n        - {id: s0, needs: [w]")
}

/// What comes back for these bytes on a subject.
async fn ask(house: &House, subject: &str, message: impl Into<Bytes>) -> Result<SignalReply, BusError> {
    let reply = house.bus.request(subject, message.into(), Duration::from_secs(5)).await?;
    Ok(serde_json::from_slice(&reply).unwrap())
}

async fn signal(house: &House, run: &RunId, name: &str, payload: Value) -> SignalReply {
    let message = serde_json::to_vec(&Signal { protocol: PROTOCOL, payload, reason: "by hand".to_owned() }).unwrap();
    ask(house, &subjects().signal(run.as_str(), name, "ci"), message).await.unwrap()
}

fn reason(reply: SignalReply) -> String {
    match reply {
        SignalReply::Refused { reason, .. } => reason,
        SignalReply::Recorded | SignalReply::Retry { .. } => panic!("not refused: {reply:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_signal_is_recorded_once_in_its_senders_name() {
    let mut house = House::open().await;
    let run = house.start(&waiting()).await;
    assert_eq!(signal(&house, &run.id, "approved", json!({ "n": 3 })).await, RECORDED);
    house.crash_and_reopen().await;
    assert_eq!(signal(&house, &run.id, "approved", json!({ "n": 4 })).await, RECORDED);
    let run = house.until(&run.id, "the wait is over", |r| r.steps[0].state == StepState::Succeeded).await;
    assert_eq!(run.signals["approved"]["n"], 3, "the first one counts");
    let events = house.up.run_events(&ns(), &run.id, 0, 100).await.unwrap();
    let signals: Vec<_> = events.iter().filter(|e| matches!(&*e.event, Event::SignalReceived { .. })).collect();
    assert_eq!((signals.len(), signals[0].by.as_str()), (1, "signal/ci"));
}

#[tokio::test(start_paused = true)]
async fn nothing_comes_with_a_signal_that_says_nothing() {
    let house = House::open().await;
    let run = house.start(&waiting()).await;
    assert_eq!(signal(&house, &run.id, "approved", Value::Null).await, RECORDED);
    assert_eq!(*house.run(&run.id).await.signals["approved"], json!({}));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_has_a_stable_reason() {
    let house = House::open().await;
    let run = house.start(&waiting()).await;
    let id = run.id.as_str();
    let approved = subjects().signal(id, "approved", "ci");
    assert_eq!(reason(signal(&house, &run.id, "other", json!({})).await), "SIGNAL_NOT_FOUND");
    assert_eq!(reason(signal(&house, &"gone".into(), "approved", json!({})).await), "RUN_NOT_FOUND");
    let elsewhere = muster_bus::subject::Subjects::new("blue").signal(id, "approved", "ci");
    assert_eq!(reason(ask(&house, &elsewhere, r#"{"protocol":1}"#).await.unwrap()), "RUN_NOT_FOUND");
    // Another protocol, no protocol (an event, an answer of JetStream), no JSON.
    for bad in [r#"{"protocol":2}"#, r#"{"specversion":"1.0","data":{}}"#, r#"{"type":"io.nats","payload":1}"#, "{"] {
        assert_eq!(reason(ask(&house, &approved, bad).await.unwrap()), "MESSAGE_INVALID", "{bad}");
    }
    let large = json!({"protocol": 1, "payload": "x".repeat(64 * 1024)}).to_string();
    assert_eq!(reason(ask(&house, &approved, large).await.unwrap()), "MESSAGE_TOO_LARGE");
    house.bus.publish(&approved, r#"{"protocol":1}"#.into()).await.unwrap();
    assert_eq!(reason(signal(&house, &run.id, "other", json!({})).await), "SIGNAL_NOT_FOUND");
    assert!(house.run(&run.id).await.signals.is_empty(), "what wants no answer is not taken either");
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_told_to_come_again_and_takes_nothing_from_agents() {
    let house = House::open().await;
    let run = house.start(&waiting()).await;
    house.journal.hold();
    let before = house.journal.appends.load(Ordering::SeqCst);
    let all = futures_util::future::join_all((0..200).map(|_| signal(&house, &run.id, "approved", json!({}))));
    let freed = async {
        while house.journal.appends.load(Ordering::SeqCst) == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        house.journal.let_go();
    };
    let (answers, ()) = tokio::join!(all, freed);
    let recorded = answers.iter().filter(|answer| **answer == RECORDED).count();
    let later = answers.iter().filter(|answer| matches!(answer, SignalReply::Retry { .. })).count();
    assert_eq!((recorded, later), (64, 136));
    assert_eq!(signal(&house, &run.id, "approved", json!({})).await, RECORDED);
    house.agent("infra-1").await.succeed(1).await;
    house.ended(&run.id).await;
    assert_eq!(reason(signal(&house, &run.id, "approved", json!({})).await), "RUN_ENDED");
}

#[tokio::test(start_paused = true)]
async fn what_the_journal_does_not_take_is_to_be_said_again() {
    let house = House::open().await;
    let run = house.start(&waiting()).await;
    house.journal.fails.store(true, Ordering::SeqCst);
    let answer = signal(&house, &run.id, "approved", json!({})).await;
    assert!(matches!(answer, SignalReply::Retry { .. }), "{answer:?}");
    house.journal.fails.store(false, Ordering::SeqCst);
    for _ in 0..100 {
        if signal(&house, &run.id, "approved", json!({})).await == RECORDED {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never recorded");
}
