//! The worker against a scripted coordinator on the in-process bus, on a clock that jumps to the next thing to happen.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use muster_agent::WorkerError;
use muster_bus::{
    Bus, BusError, LocalBus,
    message::{
        AttemptKey, BeatReply, FailureKind, Order, Outcome, Purpose, RegisterReply, ReportBody, ReportReply, Task,
        TaskReply,
    },
    subject::Subjects,
    testkit::{Faults, FaultyBus},
};
use serde_json::{Value, json};
use support::{AGENT, Agent, Coordinator, SOON, Setup, both};

fn succeeded(output: Value) -> Outcome {
    Outcome::Succeeded { output, unchanged: false, observations: Vec::new(), truncated: false }
}

fn failed(outcome: &Outcome) -> (FailureKind, &str) {
    match outcome {
        Outcome::Failed { error, message, .. } => (*error, message),
        Outcome::Succeeded { .. } | Outcome::NotSatisfied { .. } | Outcome::Cancelled { .. } => {
            panic!("{outcome:?} is no failure")
        }
    }
}

fn is_accepted(reply: &Result<TaskReply, BusError>) -> bool {
    *reply == Ok(TaskReply::Accepted)
}

#[tokio::test(start_paused = true)]
async fn registers_beats_and_works() {
    let (coordinator, agent) = both(Setup::default()).await;
    let register = coordinator.registered(1).await;
    assert_eq!((register.agent.as_str(), register.role.as_str(), register.slots), (AGENT, "infra", 1));
    assert!(!register.durable, "it has no data folder");
    let names: Vec<&str> = register.actions.iter().map(|offer| offer.name.as_str()).collect();
    assert_eq!(names, ["command.run", "noop.run", "test.act"]);
    let task = coordinator.task("a", json!({"output": {"x": 1}}));
    assert_eq!(coordinator.carry_out(&task).await, succeeded(json!({"x": 1})));
    let report = coordinator.heard().reports[0].clone();
    assert_eq!((report.cluster, report.instance), (task.cluster, register.instance.clone()));
    let beat = coordinator.wait("a beat", |heard| heard.beats.last().cloned()).await;
    assert_eq!((beat.instance, beat.holds, beat.draining), (register.instance, vec![], false));
    agent.shutdown.cancel();
    agent.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn each_purpose_calls_its_part() {
    let (coordinator, agent) = both(Setup::default()).await;
    let satisfied = coordinator.task("satisfied", json!({"check": "satisfied"}));
    let unchanged =
        Outcome::Succeeded { output: json!({"found": true}), unchanged: true, observations: vec![], truncated: false };
    assert_eq!(coordinator.carry_out(&satisfied).await, unchanged);
    let mut probe = coordinator.task("probe", json!({"check": "it is red"}));
    probe.purpose = Purpose::Probe;
    assert_eq!(coordinator.carry_out(&probe).await, Outcome::NotSatisfied { diff: "it is red".to_owned() });
    let mut unknown = coordinator.task("unknown", json!({}));
    unknown.purpose = Purpose::Probe;
    assert_eq!(failed(&coordinator.carry_out(&unknown).await).0, FailureKind::Permanent);
    assert_eq!(agent.act.runs(), 0, "a check changes nothing");
    let mut verify = coordinator.task("verify", json!({"check": "satisfied", "output": {"v": 1}}));
    verify.purpose = Purpose::Verify;
    assert_eq!(coordinator.carry_out(&verify).await, succeeded(json!({"v": 1})), "it looks, and does not check first");
    let mut undo = coordinator.task("undo", json!({}));
    (undo.purpose, undo.undo) = (Purpose::Undo, Some(json!({"old": 1})));
    coordinator.carry_out(&undo).await;
    assert_eq!(*agent.act.undone.lock().unwrap(), [json!({"old": 1})]);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_started_once_however_often_it_comes() {
    let (coordinator, agent) = both(Setup::default()).await;
    let task = coordinator.task("a", json!({"do": "wait", "output": {"x": 1}}));
    for _ in 0..5 {
        assert!(is_accepted(&coordinator.send(&task).await));
    }
    agent.act.go.notify_one();
    coordinator.outcome(&task).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut copy = task.clone();
    copy.sent_at_ms = coordinator.now_ms();
    assert!(is_accepted(&coordinator.send(&copy).await), "it repeats what it said");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((agent.act.runs(), coordinator.heard().reports.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_ends_at_once_is_reported_and_its_copies_are_accepted() {
    let (coordinator, agent) = both(Setup::default()).await;
    let instance = coordinator.registered(1).await.instance;
    let subject = Subjects::new("default").task(AGENT, &instance);
    let once = |task: &Task| coordinator.bus.request(&subject, support::bytes(task), Duration::from_secs(1));
    let quick = coordinator.task("quick", json!({"output": {"x": 1}}));
    assert!(matches!(once(&quick).await, Err(BusError::Timeout(_))), "its report says as much");
    assert_eq!(coordinator.outcome(&quick).await, succeeded(json!({"x": 1})));
    assert_eq!(once(&quick).await.as_deref(), Ok(&br#"{"answer":"accepted"}"#[..]));
    let slow = coordinator.task("slow", json!({"do": "wait"}));
    assert_eq!(once(&slow).await.as_deref(), Ok(&br#"{"answer":"accepted"}"#[..]), "it is at work");
    agent.act.go.notify_one();
    coordinator.outcome(&slow).await;
    assert_eq!(agent.act.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_late_copy_and_another_coordinators_task_are_not_started() {
    let (coordinator, agent) = both(Setup::default()).await;
    let mut late = coordinator.task("late", json!({}));
    late.sent_at_ms -= 6_000;
    let denied = coordinator.send(&late).await;
    assert_eq!(denied, Ok(TaskReply::Busy), "another attempt may come in time");
    late.sent_at_ms = coordinator.now_ms();
    assert_eq!(coordinator.send(&late).await, denied, "it repeats its denial to a fresh copy");
    let mut other = coordinator.task("other", json!({}));
    other.cluster = "another".to_owned();
    assert!(matches!(coordinator.send(&other).await, Err(BusError::Timeout(_))));
    let mut old = coordinator.task("old", json!({}));
    old.term -= 1;
    assert!(matches!(coordinator.send(&old).await, Err(BusError::Timeout(_))));
    assert_eq!(agent.act.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn refuses_what_it_can_not_do() {
    let (coordinator, agent) = both(Setup::default()).await;
    let mut unknown = coordinator.task("a", json!({}));
    unknown.action = "test.other".to_owned();
    assert!(matches!(coordinator.send(&unknown).await, Ok(TaskReply::Refused { .. })));
    let mut version = coordinator.task("b", json!({}));
    version.version = "2.0.0".to_owned();
    assert!(matches!(coordinator.send(&version).await, Ok(TaskReply::Refused { .. })));
    let wrong = coordinator.task("c", json!({"output": 7}));
    let outcome = coordinator.carry_out(&wrong).await;
    assert_eq!(failed(&outcome).0, FailureKind::Permanent);
    assert!(failed(&outcome).1.contains("/output"), "{outcome:?}");
    assert_eq!(agent.act.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_agent_says_so_and_a_report_takes_no_slot() {
    let (coordinator, agent) = both(Setup::default()).await;
    let first = coordinator.task("first", json!({"do": "wait"}));
    assert!(is_accepted(&coordinator.send(&first).await));
    let second = coordinator.task("second", json!({}));
    assert_eq!(coordinator.send(&second).await, Ok(TaskReply::Busy));
    coordinator
        .wait("a beat that names it", |h| h.beats.iter().any(|b| b.holds == [first.key.clone()]).then_some(()))
        .await;
    coordinator.heard().report_answers.push_back(None);
    agent.act.go.notify_one();
    coordinator.wait("the report", |heard| (heard.reports.len() == 1).then_some(())).await;
    assert_eq!(coordinator.send(&second).await, Ok(TaskReply::Busy), "it stays with its answer");
    let third = coordinator.task("third", json!({"output": {}}));
    coordinator.carry_out(&third).await;
    assert_eq!(coordinator.heard().recorded[0].key, third.key, "the first report still waits");
    coordinator.outcome(&first).await;
    assert_eq!(agent.act.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_changes_before_prepared_is_recorded() {
    let (coordinator, agent) = both(Setup::default()).await;
    let mut task = coordinator.task("a", json!({"prepare": {"old": 1}}));
    task.prepare = true;
    let retry = Some(ReportReply::Retry { why: "soon".to_owned() });
    coordinator.heard().report_answers.extend([retry.clone(), None, retry]);
    assert!(is_accepted(&coordinator.send(&task).await));
    coordinator.wait("three tries", |heard| (heard.reports.len() == 3).then_some(())).await;
    assert_eq!(agent.act.runs(), 0);
    coordinator.outcome(&task).await;
    let prepared = ReportBody::Prepared { undo: json!({"old": 1}) };
    assert!(coordinator.heard().reports[..4].iter().all(|report| report.report == prepared));
    assert_eq!(agent.act.runs(), 1);
    for (step, answer) in [("s", ReportReply::Stale), ("c", ReportReply::Conflict), ("g", ReportReply::Gone)] {
        let mut unwanted = coordinator.task(step, json!({"prepare": {}}));
        unwanted.prepare = true;
        coordinator.heard().report_answers.push_back(Some(answer));
        assert!(is_accepted(&coordinator.send(&unwanted).await));
        // The slot is free again: it has ended.
        coordinator.carry_out(&coordinator.task(&format!("after_{step}"), json!({"check": "satisfied"}))).await;
    }
    assert_eq!(agent.act.runs(), 1, "on any other answer nothing is changed");
    let mut never = coordinator.task("never", json!({"prepare": {}}));
    (never.prepare, never.timeout_ms) = (true, 20_000);
    coordinator.heard().report_answers.extend(vec![None; 4]);
    let outcome = coordinator.carry_out(&never).await;
    assert!(failed(&outcome).1.contains("nothing was changed"), "{outcome:?}");
    assert_eq!(agent.act.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_report_is_sent_until_its_answer_is_final() {
    let (coordinator, agent) = both(Setup::default()).await;
    let task = coordinator.task("a", json!({"output": {"x": 1}}));
    let retry = Some(ReportReply::Retry { why: "soon".to_owned() });
    coordinator.heard().report_answers.extend([None, retry.clone(), None, retry]);
    coordinator.carry_out(&task).await;
    assert_eq!(coordinator.heard().reports.len(), 5);
    assert!(coordinator.heard().reports.windows(2).all(|two| two[0] == two[1]), "the same every time");
    for (step, answer) in [("s", ReportReply::Stale), ("c", ReportReply::Conflict), ("g", ReportReply::Gone)] {
        coordinator.heard().report_answers.push_back(Some(answer));
        assert!(is_accepted(&coordinator.send(&coordinator.task(step, json!({}))).await));
    }
    coordinator.wait("three more", |heard| (heard.reports.len() == 8).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(coordinator.heard().reports.len(), 8, "a final answer empties the spool");
    assert_eq!(coordinator.heard().beats.last().unwrap().holds, []);
    drop(agent);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_attempt_stops_and_says_what_may_have_changed() {
    let (coordinator, agent) = both(Setup { slots: 3, ..Setup::default() }).await;
    for (step, what) in [("obeys", "wait_or_stop"), ("ignores", "wait"), ("crosses", "finish_when_stopped")] {
        let task = coordinator.task(step, json!({"do": what}));
        assert!(is_accepted(&coordinator.send(&task).await));
        coordinator.order(Order::Cancel { key: task.key.clone() });
        let outcome = coordinator.outcome(&task).await;
        if step == "crosses" {
            assert!(matches!(outcome, Outcome::Succeeded { .. }), "a success that crosses is a success: {outcome:?}");
        } else {
            assert_eq!(outcome, Outcome::Cancelled { may_have_changed: true }, "{step}");
        }
    }
    let mut early = coordinator.task("early", json!({"prepare": {}}));
    early.prepare = true;
    let key = early.key.clone();
    coordinator.heard().report_answers.push_back(Some(ReportReply::Retry { why: "soon".to_owned() }));
    assert!(is_accepted(&coordinator.send(&early).await));
    coordinator.wait("prepared", |heard| heard.reports.iter().find(|r| r.key == key).cloned()).await;
    coordinator.order(Order::Cancel { key: early.key.clone() });
    assert_eq!(coordinator.outcome(&early).await, Outcome::Cancelled { may_have_changed: false });
    let unknown = AttemptKey { run: "r-9".to_owned(), step: "s".to_owned(), attempt: 1 };
    coordinator.order(Order::Cancel { key: unknown });
    coordinator.carry_out(&coordinator.task("alive", json!({}))).await;
    drop(agent);
}

#[tokio::test(start_paused = true)]
async fn time_is_up_by_the_agents_own_clock() {
    let (coordinator, agent) = both(Setup { slots: 2, ..Setup::default() }).await;
    for (step, what, wanted) in [("obeys", "wait_or_stop", "stopped"), ("ignores", "wait", "did not stop")] {
        let mut task = coordinator.task(step, json!({"do": what}));
        task.timeout_ms = 3_000;
        let started = tokio::time::Instant::now();
        let outcome = coordinator.carry_out(&task).await;
        assert_eq!(failed(&outcome).0, FailureKind::Retry);
        assert!(failed(&outcome).1.contains("limit of 3s") && failed(&outcome).1.contains(wanted), "{outcome:?}");
        assert!((3..10).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    }
    drop(agent);
}

#[tokio::test(start_paused = true)]
async fn every_failure_is_reported_as_its_kind() {
    let (coordinator, agent) = both(Setup::default()).await;
    for (what, kind, message) in [
        ("retry", FailureKind::Retry, "busy"),
        ("permanent", FailureKind::Permanent, "wrong"),
        ("person", FailureKind::NeedsPerson, "sign it"),
        ("panic", FailureKind::Permanent, "panicked: test.act has a fault in its code: a bug"),
    ] {
        let outcome = coordinator.carry_out(&coordinator.task(what, json!({"do": what}))).await;
        assert_eq!(failed(&outcome), (kind, message));
    }
    assert!(!agent.ended.is_finished(), "a panic in an action is not one of the agent");
}

#[tokio::test(start_paused = true)]
async fn speaks_while_at_work() {
    let secrets = [("token".to_owned(), "hunter2".to_owned())].into();
    let (coordinator, agent) = both(Setup { slots: 2, secrets, ..Setup::default() }).await;
    let with = json!({"do": "wait", "progress": "with hunter2", "observe": 12.5, "log": ["one hunter2", "two"]});
    let mut task = coordinator.task("a", with);
    task.status_ms = 60_000;
    coordinator.heard().patience = 2 * SOON;
    let sent = tokio::time::Instant::now();
    task.timeout_ms = 1_000_000;
    assert!(is_accepted(&coordinator.send(&task).await));
    let status = coordinator.wait("a status", |heard| heard.statuses.first().cloned()).await;
    assert_eq!(
        (status.message.as_str(), status.percent, status.observations.len()),
        ("with [secret token]", Some(40), 1)
    );
    assert!(sent.elapsed() < Duration::from_secs(3), "at change");
    let again = coordinator.wait("another", |heard| heard.statuses.get(1).cloned()).await;
    assert_eq!((again.message.as_str(), again.observations.len()), ("with [secret token]", 0));
    assert!((60..63).contains(&sent.elapsed().as_secs()), "at its interval: {:?}", sent.elapsed());
    let lines = coordinator.heard().lines.iter().map(|l| (l.line, l.text.clone())).collect::<Vec<_>>();
    assert_eq!(lines, [(1, "one [secret token]".to_owned()), (2, "two".to_owned())]);
    agent.act.go.notify_one();
    let Outcome::Succeeded { observations, .. } = coordinator.outcome(&task).await else { panic!("it succeeds") };
    assert_eq!(observations.len(), 1, "the report has all of them");

    let unlisted = coordinator.carry_out(&coordinator.task("b", json!({"secret": "token"}))).await;
    assert_eq!(unlisted, succeeded(json!({"secret": null})), "a task has to name a secret");
    let mut listed = coordinator.task("c", json!({"secret": "token"}));
    listed.secrets = vec!["token".to_owned()];
    assert_eq!(coordinator.carry_out(&listed).await, succeeded(json!({"secret": "[secret token]"})));
    let mut kept = coordinator.task("d", json!({"prepare": {"old": "hunter2"}}));
    kept.prepare = true;
    assert!(failed(&coordinator.carry_out(&kept).await).1.contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_cut_and_flagged() {
    let (coordinator, agent) = both(Setup::default()).await;
    let limit = coordinator.bus.max_payload();
    let long = json!({"code": 7, "stdout": "x".repeat(limit - 1000)});
    let outcome = coordinator.carry_out(&coordinator.task("fits", json!({"output": long}))).await;
    assert_eq!(outcome, succeeded(long));
    for how in ["grow", "grow_list"] {
        let with = json!({"output": {"code": 7}, how: limit});
        let outcome = coordinator.carry_out(&coordinator.task(how, with)).await;
        let Outcome::Succeeded { output, truncated: true, .. } = outcome else { panic!("{how} is not cut") };
        assert_eq!(output["code"], 7, "what is small stays");
        assert!(output.to_string().len() > 1000, "something of it is left");
    }
    let outcome =
        coordinator.carry_out(&coordinator.task("deep", json!({"output": {"code": 7}, "grow_keys": limit}))).await;
    assert!(matches!(&outcome, Outcome::Succeeded { truncated: true, .. }), "nothing else helps");
    let mut undo = coordinator.task("undo", json!({"prepare_bytes": limit}));
    undo.prepare = true;
    let outcome = coordinator.carry_out(&undo).await;
    assert!(failed(&outcome).1.contains("what undo would need"), "{outcome:?}");
    assert_eq!(agent.act.runs(), 4, "what can't be undone is not done");
}

#[tokio::test(start_paused = true)]
async fn waits_for_its_name_and_gives_up_when_refused() {
    let bus = Arc::new(LocalBus::new());
    let coordinator = Coordinator::start(bus.clone()).await;
    let in_use = RegisterReply::IdInUse { instance: "other".to_owned() };
    let later = RegisterReply::Retry { why: "starting".to_owned() };
    coordinator.heard().register_answers.extend([in_use.clone(), later, in_use]);
    let agent = Agent::start(bus.clone(), Setup::default());
    coordinator.registered(4).await;
    coordinator.carry_out(&coordinator.task("a", json!({}))).await;
    let instances =
        coordinator.heard().registers.iter().map(|r| r.instance.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(instances.len(), 1, "it is the same instance all the time");
    agent.shutdown.cancel();
    agent.end().await.unwrap();
    coordinator.heard().register_answers.push_back(RegisterReply::Refused { why: "no".to_owned() });
    let refused = Agent::start(bus, Setup::default()).end().await;
    assert!(matches!(refused, Err(WorkerError::Refused { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn registers_again_when_told_and_names_what_it_holds() {
    let (coordinator, agent) = both(Setup { slots: 2, ..Setup::default() }).await;
    let holds = coordinator.task("holds", json!({"do": "wait"}));
    let waits = coordinator.task("waits", json!({}));
    assert!(is_accepted(&coordinator.send(&holds).await));
    coordinator.heard().report_answers.push_back(None);
    assert!(is_accepted(&coordinator.send(&waits).await));
    coordinator.wait("the report", |heard| (heard.reports.len() == 1).then_some(())).await;
    let again = BeatReply { now_ms: coordinator.now_ms(), register_again: true, orders: vec![] };
    {
        let mut heard = coordinator.heard();
        heard.term += 1;
        heard.beat_answers.push_back(again);
    }
    let register = coordinator.registered(2).await;
    assert_eq!((register.holds, register.spooled), (vec![holds.key.clone()], vec![waits.key.clone()]));
    coordinator.wait("what waited", |heard| heard.recorded.iter().find(|r| r.key == waits.key).cloned()).await;
    let mut old_term = coordinator.task("old_term", json!({}));
    assert!(matches!(coordinator.send(&old_term).await, Err(BusError::Timeout(_))));
    old_term.term += 1;
    old_term.sent_at_ms = coordinator.now_ms();
    assert!(is_accepted(&coordinator.send(&old_term).await), "it was ignored, not refused");
    agent.act.go.notify_one();
    coordinator.outcome(&holds).await;
}

#[tokio::test(start_paused = true)]
async fn drains_when_told_by_either_side() {
    for by_order in [false, true] {
        let (coordinator, agent) = both(Setup { slots: 2, ..Setup::default() }).await;
        let task = coordinator.task("a", json!({"do": "wait"}));
        assert!(is_accepted(&coordinator.send(&task).await));
        if by_order {
            coordinator.order(Order::Drain);
        } else {
            agent.shutdown.cancel();
        }
        coordinator.wait("a draining beat", |heard| heard.beats.iter().any(|beat| beat.draining).then_some(())).await;
        let late = coordinator.task("late", json!({}));
        assert_eq!(coordinator.send(&late).await, Ok(TaskReply::Draining));
        assert!(is_accepted(&coordinator.send(&task).await), "what is held stays held");
        assert!(!agent.ended.is_finished());
        agent.act.go.notify_one();
        coordinator.outcome(&task).await;
        agent.end().await.unwrap();
        let heard = coordinator.heard();
        let last = heard.beats.last().unwrap();
        assert_eq!((last.ending, last.draining, last.holds.len()), (true, true, 0), "its last word");
        assert_eq!(heard.beats.iter().filter(|beat| beat.ending).count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_outlives_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let setup = || Setup { data_dir: Some(folder.path().to_owned()), ..Setup::default() };
    let bus = Arc::new(LocalBus::new());
    let coordinator = Coordinator::start(bus.clone()).await;
    let agent = Agent::start(bus.clone(), setup());
    let task = coordinator.task("a", json!({"output": {"x": 1}}));
    coordinator.heard().report_answers.extend(vec![Some(ReportReply::Retry { why: "no disk".to_owned() }); 3]);
    assert!(is_accepted(&coordinator.send(&task).await));
    coordinator.wait("two tries", |heard| (heard.reports.len() == 2).then_some(())).await;
    agent.shutdown.cancel();
    agent.end().await.unwrap();
    let first = coordinator.registered(1).await;
    assert!(first.durable && first.spooled.is_empty());
    let agent = Agent::start(bus, setup());
    let second = coordinator.registered(2).await;
    assert_eq!((second.spooled, second.holds), (vec![task.key.clone()], vec![]));
    assert_ne!(second.instance, first.instance);
    coordinator.outcome(&task).await;
    assert_eq!(coordinator.heard().recorded[0].instance, first.instance, "it names who did the work");
    tokio::time::timeout(SOON, async {
        while std::fs::read_dir(folder.path().join("spool")).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the spool is emptied");
    assert_eq!(agent.act.runs(), 0, "the work is not done again");
}

#[tokio::test(start_paused = true)]
async fn a_bad_bus_changes_nothing_but_the_time() {
    for seed in 1..=5 {
        let local: Arc<dyn Bus> = Arc::new(LocalBus::new());
        let faults =
            Faults { seed, lose: 150, lose_reply: 150, repeat: 150, delay: 150, delay_at_most: Duration::from_secs(3) };
        let lossy: Arc<dyn Bus> = Arc::new(FaultyBus::new(local, faults));
        let coordinator = Coordinator::start(lossy.clone()).await;
        coordinator.heard().patience = Duration::from_secs(3600);
        let agent = Agent::start(lossy, Setup { slots: 8, ..Setup::default() });
        let mut started = 0;
        for number in 0..40 {
            let mut task = coordinator.task(&format!("s{number}"), json!({"output": {"n": number}, "prepare": {}}));
            (task.prepare, task.timeout_ms) = (number % 2 == 0, 1_000_000);
            let answer = loop {
                task.sent_at_ms = coordinator.now_ms();
                if let Ok(answer) = coordinator.send(&task).await {
                    break answer;
                }
            };
            match answer {
                TaskReply::Accepted => {
                    started += 1;
                    let outcome = coordinator.outcome(&task).await;
                    assert_eq!(outcome, succeeded(json!({"n": number})), "seed {seed}");
                }
                TaskReply::Refused { why } => assert!(why.contains("had to start"), "seed {seed}: {why}"),
                TaskReply::Busy => {}
                TaskReply::Draining => panic!("seed {seed}: nobody drains"),
            }
            assert_eq!(agent.act.runs(), started, "seed {seed}, step {number}");
        }
        assert!(started > 20, "seed {seed}: only {started} were started");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_agent_still_fits_into_its_messages() {
    let (coordinator, agent) = both(Setup { slots: 3000, ..Setup::default() }).await;
    let long = "s".repeat(63);
    for number in 0..3000 {
        let task = coordinator.task(&format!("{long}{number:04}"), json!({"do": "wait"}));
        assert!(is_accepted(&coordinator.send(&task).await));
    }
    let beats = coordinator.heard().beats.len();
    let beat = coordinator.wait("a full beat", |heard| heard.beats.get(beats + 1).cloned()).await;
    let size = support::bytes(&beat).len();
    assert!(size <= coordinator.bus.max_payload() && beat.holds.len() > 1500, "{} in {size} bytes", beat.holds.len());
    let again = BeatReply { now_ms: coordinator.now_ms(), register_again: true, orders: vec![] };
    coordinator.heard().beat_answers.push_back(again);
    assert!(coordinator.registered(2).await.holds.len() > 300);
    drop(agent);
}

#[tokio::test(start_paused = true)]
async fn the_usual_tools_see_it() {
    let (coordinator, _agent) = both(Setup::default()).await;
    coordinator.carry_out(&coordinator.task("a", json!({}))).await;
    let mut late = coordinator.task("late", json!({}));
    late.sent_at_ms -= 6_000;
    coordinator.send(&late).await.unwrap();
    let instance = coordinator.registered(1).await.instance;
    for what in ["PING", "INFO", "STATS"] {
        for subject in [
            format!("$SRV.{what}"),
            format!("$SRV.{what}.muster-infra"),
            format!("$SRV.{what}.muster-infra.{instance}"),
        ] {
            let reply = coordinator.bus.request(&subject, bytes::Bytes::new(), SOON).await.unwrap();
            let reply: Value = serde_json::from_slice(&reply).unwrap();
            assert_eq!((&reply["id"], &reply["name"]), (&json!(instance), &json!("muster-infra")), "{subject}");
            if what == "STATS" {
                let endpoint = &reply["endpoints"][0];
                assert_eq!((&endpoint["num_requests"], &endpoint["num_errors"]), (&json!(2), &json!(1)));
            }
        }
    }
}
