//! Watching a run: complete, in order, from any number on; bounded when nobody reads.

use std::sync::{Arc, atomic::Ordering};

use muster_coordinator::api::Limits;
use muster_proto::v1::{self as pb, run::State};
use serde_json::json;
use tonic::{Code, Streaming, transport::Endpoint};

use crate::{
    harness::{Served, get, reason, served, served_within, soon},
    methods::done,
};

async fn watch(served: &Served, request: pb::WatchRunRequest) -> Streaming<pb::WatchRunResponse> {
    served.runs().await.watch_run(request).await.unwrap().into_inner()
}

async fn to_the_end(mut stream: Streaming<pb::WatchRunResponse>) -> Vec<pb::WatchRunResponse> {
    let mut seen = Vec::new();
    while let Some(item) = soon("an event", stream.message()).await.unwrap() {
        seen.push(item);
    }
    seen
}

#[tokio::test]
async fn a_watcher_sees_every_event_live_to_the_end() {
    let served = served().await;
    let run = served.started("playbook hello\nstep a\nstep b").await;
    let stream = watch(&served, pb::WatchRunRequest { name: run.name.clone(), ..Default::default() }).await;
    let reader = tokio::spawn(to_the_end(stream));
    served.fake.work(&run.run_id, "a", done(json!(1)));
    served.fake.work(&run.run_id, "b", done(json!(1)));
    let seen = soon("the end of the watch", reader).await.unwrap();
    let numbers: Vec<u64> = seen.iter().map(|s| s.event.as_ref().unwrap().sequence).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(numbers.len(), served.fake.events_of(&run.run_id));
    let last = seen.last().unwrap();
    assert_eq!((last.event.as_ref().unwrap().r#type.as_str(), last.state()), ("run_ended", State::Succeeded));
    let assigned = seen.iter().find(|s| s.event.as_ref().unwrap().r#type == "attempt_assigned").unwrap();
    assert_eq!(assigned.step.as_ref().unwrap().state(), pb::step::State::Active);
    assert_eq!(assigned.phase.as_ref().unwrap().id, "critical");
    assert!(seen.iter().all(|s| s.run.is_none()));
}

#[tokio::test]
async fn a_watcher_goes_on_from_where_it_was() {
    let served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    served.fake.work(&run.run_id, "a", done(json!(1)));
    let request = pb::WatchRunRequest { name: run.name.clone(), after_sequence: run.sequence, include_run: true };
    let seen = to_the_end(watch(&served, request).await).await;
    assert_eq!(seen[0].event.as_ref().unwrap().sequence, run.sequence + 1);
    let whole = seen.last().unwrap().run.as_ref().unwrap();
    assert_eq!(*whole, served.runs().await.get_run(get(&run.name)).await.unwrap().into_inner());
    let ended = seen.iter().find(|s| s.event.as_ref().unwrap().r#type == "attempt_ended").unwrap();
    assert!(ended.run.is_none(), "the run comes with the last event of those that were journalled together");
}

#[tokio::test]
async fn an_expired_number_is_out_of_range() {
    let served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    served.fake.forget(2);
    let request = pb::WatchRunRequest { name: run.name.clone(), after_sequence: 1, ..Default::default() };
    let status = served.runs().await.watch_run(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::OutOfRange, "SEQUENCE_EXPIRED"));
}

#[tokio::test]
async fn a_watcher_who_does_not_read_costs_little() {
    let mut served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    served.fake.flood();
    let window = 64 * 1024;
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    served.channel = endpoint.initial_stream_window_size(window).initial_connection_window_size(window).connect_lazy();
    let mut stream = watch(&served, pb::WatchRunRequest { name: run.name.clone(), ..Default::default() }).await;
    let other = Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    served.channel = other.connect_lazy();
    let given = || served.fake.flooded.load(Ordering::SeqCst);
    let mut client = served.runs().await;
    let mut before = usize::MAX;
    let settled = async {
        while given() != before || before == 0 {
            before = given();
            assert!(before < 3_000, "{before} events were taken for a watcher who reads none");
            for _ in 0..50 {
                client.get_run(get(&run.name)).await.unwrap();
            }
        }
    };
    soon("a standstill", settled).await;
    for _ in 0..before {
        soon("an event", stream.message()).await.unwrap().unwrap();
    }
    soon("more events for a watcher who reads again", async {
        while given() <= before {
            client.get_run(get(&run.name)).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn watches_and_waits_have_a_limit_and_give_their_place_back() {
    let served = served_within(Limits { watches: 1, ..Limits::default() }).await;
    let run = served.started("playbook hello\nstep a").await;
    let stream = watch(&served, pb::WatchRunRequest { name: run.name.clone(), ..Default::default() }).await;
    let mut client = served.runs().await;
    let timeout = Some(prost_types::Duration { seconds: 0, nanos: 1 });
    let wait = pb::WaitRunRequest { name: run.name.clone(), timeout, only_end: false };
    let status = client.wait_run(wait.clone()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "TOO_MANY_WATCHES"));
    drop(stream);
    soon("a free place", async { while client.wait_run(wait.clone()).await.is_err() {} }).await;
}

#[tokio::test]
async fn connections_have_a_limit_and_give_their_place_back() {
    let mut served = served_within(Limits { connections: 1, ..Limits::default() }).await;
    let run = served.started("playbook hello\nstep a").await;
    let other = Endpoint::from_shared(format!("http://{}", served.address)).unwrap().connect_lazy();
    let first = std::mem::replace(&mut served.channel, other);
    let mut second = served.runs().await;
    soon("a refusal", second.get_run(get(&run.name))).await.unwrap_err();
    drop(first);
    soon("a free place", async { while second.get_run(get(&run.name)).await.is_err() {} }).await;
}

#[tokio::test]
async fn requests_have_a_limit() {
    let served = Arc::new(served_within(Limits { requests: 1, ..Limits::default() }).await);
    let run = served.started("playbook hello\nstep a").await;
    let mut waiter = served.runs().await;
    let name = run.name.clone();
    let wait = tokio::spawn(async move { waiter.wait_run(pb::WaitRunRequest { name, ..Default::default() }).await });
    let mut client = served.runs().await;
    let refused = soon("a refusal", async {
        loop {
            if let Err(status) = client.get_run(get(&run.name)).await {
                return status;
            }
        }
    })
    .await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "TOO_MANY_REQUESTS"));
    served.fake.work(&run.run_id, "a", done(json!(1)));
    assert!(soon("the end of the wait", wait).await.unwrap().is_ok());
}
