//! What agents report, how often, and how late.

use std::sync::atomic::Ordering;

use futures_util::{StreamExt, stream::FuturesUnordered};
use muster_bus::message::{
    AttemptKey, FailureKind, Outcome, Report, ReportBody, ReportReply, Status, StatusReply, TaskReply,
};
use muster_coordinator::control::Control;
use muster_engine::run::{Event, state::StepState};
use serde_json::json;

use crate::harness::{CLUSTER, House, chain, ns, subjects, succeeded};

fn failed(message: &str) -> ReportBody {
    let outcome = Outcome::Failed { error: FailureKind::Permanent, message: message.to_owned(), output: None };
    ReportBody::Finished { outcome }
}

#[tokio::test(start_paused = true)]
async fn a_report_is_recorded_once_and_answered_every_time() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(2)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let recorded = ReportReply::recorded();
    assert_eq!(agent.report(&task, succeeded(json!({"n": 0}))).await, recorded);
    let appends = house.journal.appends.load(Ordering::SeqCst);
    assert_eq!(agent.report(&task, succeeded(json!({"n": 0}))).await, recorded);
    assert_eq!(house.journal.appends.load(Ordering::SeqCst), appends, "a repetition costs no append");
    assert_eq!(agent.report(&task, failed("no")).await, ReportReply::Conflict);
    let run = house.run(&run.id).await;
    assert_eq!(run.steps[0].state, StepState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn an_observation_without_a_time_is_the_same_when_it_is_repeated() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let observation = json!({"name": "latency_p95", "value": 12.5, "unit": "ms"});
    let outcome = json!({"result": "succeeded", "output": {}, "observations": [observation]});
    let body = ReportBody::Finished { outcome: serde_json::from_value(outcome).unwrap() };
    let recorded = ReportReply::recorded();
    assert_eq!(agent.report(&task, body.clone()).await, recorded);
    tokio::time::sleep(std::time::Duration::from_secs(7)).await;
    assert_eq!(agent.report(&task, body).await, recorded);
}

#[tokio::test(start_paused = true)]
async fn a_report_of_another_instance_is_stale_evidence_and_changes_nothing() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    assert_eq!(agent.report_as("i0", &task, succeeded(json!({}))).await, ReportReply::Stale);
    let run = house.run(&run.id).await;
    assert_eq!(run.steps[0].state, StepState::Active);
    let events = house.up.run_events(&ns(), &run.id, 0, 100).await.unwrap();
    assert!(events.iter().any(|e| matches!(&*e.event, Event::ReportArrivedStale { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_report_of_what_was_never_here_is_gone() {
    let house = House::open().await;
    let agent = house.agent("infra-1").await;
    let key = AttemptKey { run: "nobody".into(), step: "s0".into(), attempt: 1 };
    let report = |cluster: &str| Report {
        cluster: cluster.into(),
        instance: "i1".into(),
        key: key.clone(),
        report: succeeded(json!({})),
    };
    let subject = subjects().report(7, "infra-1");
    assert_eq!(agent.ask::<_, ReportReply>(&subject, &report(CLUSTER)).await, ReportReply::Gone);
    let payload = serde_json::to_vec(&report("another")).unwrap().into();
    let sent = muster_bus::Bus::request(&*agent.bus, &subject, payload, std::time::Duration::from_secs(5)).await;
    assert!(sent.is_err(), "messages of another cluster are ignored");
}

#[tokio::test(start_paused = true)]
async fn a_late_report_finds_a_run_that_has_left_memory() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let first = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.report(&task, succeeded(json!({"n": 0}))).await;
    house.ended(&first.id).await;
    for _ in 0..300 {
        let run = house.start(&chain(1)).await;
        agent.succeed(1).await;
        house.ended(&run.id).await;
    }
    let recorded = ReportReply::recorded();
    assert_eq!(agent.report(&task, succeeded(json!({"n": 0}))).await, recorded);
    assert_eq!(agent.report(&task, failed("no")).await, ReportReply::Conflict);
    assert!(house.run(&first.id).await.has_ended());
    let listed =
        house.up.list_runs(&ns(), &muster_coordinator::control::RunFilter::default(), 1_000, "").await.unwrap();
    assert_eq!(listed.items.len(), 301);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_reports_to_runs_that_are_not_in_memory_is_answered_to_the_last() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let mut runs = Vec::new();
    for _ in 0..10 {
        let run = house.start(&chain(1)).await;
        agent.succeed(1).await;
        house.ended(&run.id).await;
        runs.push(run.id.as_str().to_owned());
    }
    house.crash_and_reopen().await;
    runs.extend((0..1_000).map(|n| format!("nobody-{n}")));
    house.journal.hold_reads();
    let asking = runs.into_iter().map(|run| {
        let key = AttemptKey { run, step: "s0".into(), attempt: 9 };
        let report = Report { cluster: CLUSTER.into(), instance: "i1".into(), key, report: succeeded(json!({})) };
        let agent = &agent;
        async move { agent.ask::<_, ReportReply>(&subjects().report(7, "infra-1"), &report).await }
    });
    let mut asking: FuturesUnordered<_> = asking.collect();
    let (mut gone, mut told_to_retry) = (0, 0);
    while let Some(answer) = asking.next().await {
        match answer {
            ReportReply::Gone => gone += 1,
            ReportReply::Retry { .. } => told_to_retry += 1,
            other @ (ReportReply::Recorded { .. } | ReportReply::Stale | ReportReply::Conflict) => panic!("{other:?}"),
        }
        // Those who found room wait for the journal until somebody has found none.
        if told_to_retry == 1 {
            house.journal.let_reads_go();
        }
    }
    assert_eq!(gone + told_to_retry, 1_010);
    assert!(gone >= 10 && told_to_retry > 0, "{gone} gone, {told_to_retry} to come again");
}

#[tokio::test(start_paused = true)]
async fn a_status_is_journalled_when_it_is_new_and_not_too_often() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let appends = house.journal.appends.load(Ordering::SeqCst);
    for i in 0..200 {
        let status = Status {
            cluster: CLUSTER.to_owned(),
            instance: "i1".to_owned(),
            key: task.key.clone(),
            message: format!("step {}", i / 100),
            percent: Some(if i < 100 { 10 } else { 90 }),
            observations: Vec::new(),
        };
        let _: StatusReply = agent.ask(&subjects().status("infra-1"), &status).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let run = house.run(&run.id).await;
    let said = run.steps[0].attempts[0].status.as_ref().unwrap();
    assert_eq!((said.message.as_str(), said.percent), ("step 1", Some(90)));
    assert_eq!(house.journal.appends.load(Ordering::SeqCst) - appends, 2, "200 statuses in 20 s said two things");
}
