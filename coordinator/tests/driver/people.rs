//! What people ask, and what they are told.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_bus::message::{FailureKind, Order, Outcome, ReportBody, ReportReply, TaskReply};
use muster_coordinator::control::{Caller, Control, PlaybookSource, RunFilter};
use muster_engine::run::{
    Command, Resolution,
    event::RunOutcome,
    state::{RunState, StepState},
};
use serde_json::json;

use crate::harness::{Agent, House, chain, ns, operator, playbook, succeeded};

fn outcome_of(run: &muster_engine::run::Run) -> RunOutcome {
    match &run.state {
        RunState::Ended { outcome, .. } => *outcome,
        RunState::Running | RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } => {
            panic!("not ended: {:?}", run.state)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_tells_its_agent_and_ends_when_that_has_stopped() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(2)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let cancel = Command::Cancel { reason: "wrong cluster".into(), force: false };
    let after = house.up.command_run(&ns(), &run.id, cancel, &operator()).await.unwrap();
    assert_eq!(after.state, RunState::Cancelling);
    let order = Order::Cancel { key: task.key.clone() };
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if agent.heard.lock().unwrap().last().unwrap().orders.contains(&order) {
            break;
        }
    }
    assert!(agent.heard.lock().unwrap().last().unwrap().orders.contains(&order), "within a beat");
    let outcome = Outcome::Cancelled { may_have_changed: false };
    agent.report(&task, ReportBody::Finished { outcome }).await;
    assert_eq!(outcome_of(&*house.ended(&run.id).await), RunOutcome::Cancelled);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(agent.heard.lock().unwrap().last().unwrap().orders, vec![], "an order ends with its attempt");
}

#[tokio::test(start_paused = true)]
async fn a_stored_playbook_whose_actions_nobody_offers_waits_for_an_agent_to_start() {
    let house = House::open().await;
    let yaml = playbook(&["id: s0, action: acme.rename"], "");
    house.up.submit_playbook(&ns(), &yaml, false, &operator()).await.unwrap();
    let source = PlaybookSource::Stored { name: "chain".into(), revision: None };
    let refused = house.up.start_run(&ns(), &source, json!({}), "", None, false, &operator()).await.unwrap_err();
    assert_eq!(refused.code, "PLAN_INVALID");
    assert!(refused.hint.starts_with("start an agent that offers it"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn lists_say_why_a_run_is_where_it_is() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let yaml =
        playbook(&["id: s0, action: test.work, onFailure: pause", "id: s1, action: test.work, onFailure: pause"], "");
    let run = house.start(&yaml).await;
    let mut tasks = Vec::new();
    for _ in 0..2 {
        tasks.push(agent.next(TaskReply::Accepted).await);
    }
    tasks.sort_by(|a, b| a.key.step.cmp(&b.key.step));
    let why = async |house: &House| {
        let listed = house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
        listed.items[0].state_reason.clone()
    };
    assert_eq!(why(&house).await, "", "it is simply running");
    for (task, message) in tasks.iter().zip(["no room".to_owned(), "ä".repeat(300)]) {
        let outcome = Outcome::Failed { error: FailureKind::Permanent, message, output: None };
        agent.report(task, ReportBody::Finished { outcome }).await;
    }
    assert_eq!(why(&house).await, "step s0 asks: no room");
    // The state stays, and the question is another one.
    let resolve = Command::ResolveStep {
        step: "s0".into(),
        resolution: Resolution::Skip,
        reason: "not needed".into(),
        output: None,
    };
    house.up.command_run(&ns(), &run.id, resolve, &operator()).await.unwrap();
    let said = why(&house).await;
    assert!(said.starts_with("step s1 asks: ää") && said.ends_with("ä…") && said.chars().count() == 201, "{said}");
    let cancel = Command::Cancel { reason: "wrong cluster".into(), force: false };
    house.up.command_run(&ns(), &run.id, cancel, &operator()).await.unwrap();
    house.ended(&run.id).await;
    assert_eq!(why(&house).await, "wrong cluster");
    // Runs that ended before the start are in the store alone.
    house.crash_and_reopen().await;
    assert_eq!(why(&house).await, "wrong cluster");
}

#[tokio::test(start_paused = true)]
async fn explain_says_for_what_on_whom_since_when_and_what_is_next() {
    let house = House::open().await;
    // No agent.
    let yaml = playbook(
        &["id: s0, action: test.work, onFailure: pause"],
        "      gate: {successCondition: [\"steps.s0.output.latency_ms < 50\"]}\n",
    );
    let run = house.start(&yaml).await;
    let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert_eq!(waits[0].subject, "step s0");
    assert!(waits[0].waits_for.contains("no agent of role infra has registered"), "{waits:?}");
    assert!(waits[0].next_at.is_some());
    // Running.
    let mut agent = house.agent("infra-1").await;
    let task = agent.next(TaskReply::Accepted).await;
    let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert!(waits[0].on_whom.contains("agent infra-1"), "{waits:?}");
    // A question.
    let failed = Outcome::Failed { error: FailureKind::Permanent, message: "no room".into(), output: None };
    agent.report(&task, ReportBody::Finished { outcome: failed }).await;
    let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert!(waits[0].waits_for.contains("no room"), "{waits:?}");
    assert_eq!(waits[0].on_whom, "devops");
    let announced = waits[0].next_at.unwrap();
    house
        .until(
            &run.id,
            "reminded",
            |r| matches!(&r.steps[0].state, StepState::Asking { remind_at, .. } if *remind_at > announced),
        )
        .await;
    // A gate that can't be judged.
    let resolve = Command::ResolveStep {
        step: "s0".into(),
        resolution: Resolution::Succeeded,
        reason: "done by hand".into(),
        output: Some(std::sync::Arc::new(json!({"note": "no latency here"}))),
    };
    house.up.command_run(&ns(), &run.id, resolve, &operator()).await.unwrap();
    let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert_eq!(waits[0].subject, "gate of phase only", "{waits:?}");
    let cancel = Command::Cancel { reason: "enough".into(), force: false };
    house.up.command_run(&ns(), &run.id, cancel, &operator()).await.unwrap();
    assert!(house.ended(&run.id).await.has_ended());
    assert_eq!(house.up.explain_run(&ns(), &run.id).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_same_request_twice_is_one_request_even_after_a_crash() {
    let mut house = House::open().await;
    let caller = Caller { request_id: Some("6a9f4c1e-0000-4000-8000-000000000001".into()), ..operator() };
    let source = PlaybookSource::Inline(chain(1));
    let start = async |house: &House, note: &str| {
        house.up.start_run(&ns(), &source, json!({}), note, None, false, &caller).await
    };
    let first = start(&house, "once").await.unwrap();
    assert_eq!(start(&house, "once").await.unwrap().id, first.id);
    house.crash_and_reopen().await;
    assert_eq!(start(&house, "once").await.unwrap().id, first.id);
    assert_eq!(start(&house, "other").await.unwrap_err().code, "REQUEST_ID_REUSED");
    assert_eq!(house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap().items.len(), 1);
    let again = Caller { request_id: Some("6a9f4c1e-0000-4000-8000-000000000002".into()), ..operator() };
    let cancel = || Command::Cancel { reason: "enough".into(), force: false };
    let cancelled = house.up.command_run(&ns(), &first.id, cancel(), &again).await.unwrap();
    let repeated = house.up.command_run(&ns(), &first.id, cancel(), &again).await.unwrap();
    assert_eq!((cancelled.seq, outcome_of(&repeated)), (repeated.seq, RunOutcome::Cancelled));
    let another = house.up.command_run(&ns(), &first.id, cancel(), &operator()).await.unwrap_err();
    assert_eq!(another.code, "RUN_ENDED");
}

#[tokio::test(start_paused = true)]
async fn a_playbook_is_kept_in_revisions_and_planned_from_the_newest() {
    let mut house = House::open().await;
    let first = house.up.submit_playbook(&ns(), &chain(1), false, &operator()).await.unwrap();
    let same = house.up.submit_playbook(&ns(), &chain(1), false, &operator()).await.unwrap();
    assert_eq!((&first.revision, first.submitted_at), (&same.revision, same.submitted_at));
    let second = house.up.submit_playbook(&ns(), &chain(2), false, &operator()).await.unwrap();
    assert_ne!(first.revision, second.revision);
    house.crash_and_reopen().await;
    let stored = |revision| PlaybookSource::Stored { name: "chain".into(), revision };
    let newest = house.up.plan(&ns(), &stored(None), json!({})).await.unwrap();
    assert_eq!(newest.plan.steps.len(), 2);
    let older = house.up.plan(&ns(), &stored(Some(first.revision.clone())), json!({})).await.unwrap();
    assert_eq!(older.plan.steps.len(), 1);
    let wrong = house.up.start_run(&ns(), &stored(None), json!({}), "", Some(&older.digest), false, &operator()).await;
    assert_eq!(wrong.unwrap_err().code, "PLAN_CHANGED");
    let bad = house.up.submit_playbook(&ns(), "kind: Nothing", false, &operator()).await.unwrap_err();
    assert!(!bad.findings.is_empty());
    assert_eq!(house.up.list_playbooks(&ns(), 10, "").await.unwrap().items.len(), 1);
    assert_eq!(house.up.playbook(&ns(), "other", None).await.unwrap_err().code, "PLAYBOOK_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn a_paused_run_gives_its_place_away_and_takes_one_again() {
    let house = House::open().await;
    let run = house.start(&chain(1)).await;
    let pause = Command::Pause { reason: "wait".into() };
    house.up.command_run(&ns(), &run.id, pause, &operator()).await.unwrap();
    let mut agent = house.agent("infra-1").await;
    assert!(agent.gets_nothing_for(Duration::from_secs(30)).await);
    let resume = Command::Resume { reason: "go".into() };
    house.up.command_run(&ns(), &run.id, resume, &operator()).await.unwrap();
    let task = agent.next(TaskReply::Accepted).await;
    let answer = agent.report(&task, succeeded(json!({}))).await;
    assert_eq!(answer, ReportReply::recorded());
    assert_eq!(outcome_of(&*house.ended(&run.id).await), RunOutcome::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn an_id_of_a_request_serves_one_request_of_any_kind() {
    let house = House::open().await;
    let _agent = house.agent("infra-1").await;
    let id = |n: u32| Caller { request_id: Some(format!("6a9f4c1e-0000-4000-8000-{n:012}")), ..operator() };
    let (one, other) = (chain(1), chain(2));
    let first = house.up.submit_playbook(&ns(), &one, false, &id(1)).await.unwrap();
    let newer = house.up.submit_playbook(&ns(), &other, false, &id(2)).await.unwrap();
    let again = house.up.submit_playbook(&ns(), &one, false, &id(1)).await.unwrap();
    assert_eq!(again.revision, first.revision);
    let newest = house.up.playbook(&ns(), &newer.name, None).await.unwrap();
    assert_eq!(newest.revision, newer.revision, "a repeated request does nothing again");
    let reused = house.up.submit_playbook(&ns(), &other, false, &id(1)).await.unwrap_err();
    assert_eq!(reused.code, "REQUEST_ID_REUSED");
    let reused = house.up.drain_agent(&ns(), &"infra-1".into(), &id(1)).await.unwrap_err();
    assert_eq!(reused.code, "REQUEST_ID_REUSED");
    for _ in 0..2 {
        assert_eq!(house.up.drain_agent(&ns(), &"infra-1".into(), &id(3)).await.unwrap().state, "DRAINING");
    }
    let source = PlaybookSource::Inline(one);
    let reused = house.up.start_run(&ns(), &source, json!({}), "", None, false, &id(3)).await.unwrap_err();
    assert_eq!(reused.code, "REQUEST_ID_REUSED");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_drain_does_not_drain_the_next_process() {
    let house = House::open().await;
    let agent = house.agent("infra-1").await;
    let caller = Caller { request_id: Some("6a9f4c1e-0000-4000-8000-000000000004".into()), ..operator() };
    let drain = async || house.up.drain_agent(&ns(), &"infra-1".into(), &caller).await.unwrap().state;
    assert_eq!(drain().await, "DRAINING");
    agent.fall_silent();
    Agent::start(house.bus.clone(), "infra-1", "i2", |r| r.dead = vec!["i1".into()]).await;
    assert_eq!(drain().await, "READY");
}

#[tokio::test(start_paused = true)]
async fn one_id_serves_one_request_also_when_both_come_at_once() {
    let house = House::open().await;
    let caller = Caller { request_id: Some("6a9f4c1e-0000-4000-8000-000000000009".into()), ..operator() };
    let (run, ns) = (house.start(&chain(1)).await, ns());
    let ask = |command| house.up.command_run(&ns, &run.id, command, &caller);
    let pause = || Command::Pause { reason: "look".into() };
    let (one, same) = tokio::join!(ask(pause()), ask(pause()));
    assert_eq!(
        (one.unwrap().seq, same.unwrap().seq),
        (run.seq + 1, run.seq + 1),
        "it was done once, and both are told so"
    );

    let caller = Caller { request_id: Some("6a9f4c1e-0000-4000-8000-00000000000a".into()), ..operator() };
    let ask = |command| house.up.command_run(&ns, &run.id, command, &caller);
    let resume = Command::Resume { reason: "go on".into() };
    let (one, other) = tokio::join!(ask(resume), ask(Command::Cancel { reason: "enough".into(), force: false }));
    assert_eq!((one.unwrap().pause.is_none(), other.unwrap_err().code), (true, "REQUEST_ID_REUSED"));
    assert_eq!(house.run(&run.id).await.state, RunState::Running);
}

/// What the coordinator's log says.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_reminder_is_a_warning_that_names_the_owner() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
    let _while_this_is_here = tracing::subscriber::set_default(subscriber.with_writer(move || writer.clone()).finish());
    let house = House::open().await;
    let run = house.start(&chain(1)).await;
    for reminders in 1..=3 {
        tokio::time::sleep(Duration::from_secs(901)).await;
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = said.lines().filter(|line| line.contains("step s0 waits for an agent")).collect();
        assert_eq!(lines.len(), reminders, "{said}");
        assert!(
            lines[0].contains("WARN") && lines[0].contains("devops") && lines[0].contains(run.id.as_str()),
            "{said}"
        );
    }
}
