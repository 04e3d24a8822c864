//! Instances that come and go, attempts that nobody knows the end of, late and doubled reports.

mod common;

use common::{World, at, failed, ok, simple, step};
use muster_engine::{
    plan::{ActionScope, OnLost, Plan},
    run::{
        Command, Event, Fence, Outstanding, Rejection, Report, Resolution, Verdict, Wake,
        event::{AttemptEnd, EndedBy, FailureKind, NotStarted, Outcome, Purpose, QuestionKind, RunOutcome, StatusNote},
        state::StepState,
    },
};
use serde_json::json;
use std::sync::Arc;

fn one(change: impl FnOnce(&mut muster_engine::plan::PlannedStep)) -> Plan {
    let mut a = step("a", &[]);
    change(&mut a);
    simple(vec![a])
}

/// A run whose only attempt was lost with its process.
fn buried(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.assign("a");
    world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
    world
}

fn asks(world: &World, wanted: QuestionKind) -> bool {
    matches!(world.state("a"), StepState::Asking { kind, .. } if *kind == wanted)
}

#[test]
fn lost_is_not_stopped() {
    let mut world = World::new(one(|_| {}));
    world.assign("a");
    let events = world.command(&Command::LoseInstance { instance: "infra-1-a".into() });
    assert!(matches!(events[..], [Event::AttemptLost { .. }]));
    assert_eq!(*world.state("a"), StepState::Active);
    assert_eq!(world.places(), []);
    assert_eq!(world.command(&Command::LoseInstance { instance: "infra-1-a".into() }), []);
    world.finish("a", ok(json!({})));
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded), "its report counts, however late");
}

/// The agent may still be at it: what it says later is evidence, and nothing else.
#[test]
fn what_may_be_done_twice_at_once_is_done_again_as_soon_as_its_agent_is_lost() {
    let mut world = World::new(one(|a| {
        (a.on_lost, a.retry.max_attempts) = (OnLost::Retry, 1);
        a.action.facts.concurrent_safe = true;
    }));
    let late = world.assign("a");
    world.command(&Command::LoseInstance { instance: "infra-1-a".into() });
    assert!(world.is_queued("a", Purpose::Run), "{:?}", world.state("a"));
    assert!(matches!(
        world.run.steps[0].attempts[0].end,
        Some((_, AttemptEnd::Unknown { ended_by: EndedBy::Superseded }))
    ));
    world.assign_soon("a");
    let events = world.command(&Command::Finish { fence: late, outcome: ok(json!({ "late": true })) });
    assert!(matches!(events[..], [Event::ReportArrivedStale { .. }]));
    world.finish("a", ok(json!({})));
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));

    let mut asks_first = World::new(one(|a| {
        a.on_lost = OnLost::Ask;
        a.action.facts.concurrent_safe = true;
    }));
    asks_first.assign("a");
    asks_first.command(&Command::LoseInstance { instance: "infra-1-a".into() });
    assert!(asks(&asks_first, QuestionKind::MayHaveRun));
}

#[test]
fn what_follows_a_loss_is_written_in_a_table() {
    use OnLost::{Ask, Probe, Retry};
    // on_lost, checkable, idempotent, read_only → what follows
    let table = [
        (Probe, true, true, false, Some(Purpose::Probe)),
        (Probe, true, false, false, Some(Purpose::Probe)),
        (Probe, false, true, false, None),
        (Probe, false, false, true, Some(Purpose::Run)),
        (Retry, true, true, false, Some(Purpose::Run)),
        (Retry, true, false, false, None),
        (Ask, true, true, false, None),
    ];
    for (on_lost, checkable, idempotent, read_only, next) in table {
        let world = buried(one(|a| {
            a.on_lost = on_lost;
            a.action.facts.checkable = checkable;
            a.action.facts.idempotent = idempotent;
            a.action.facts.read_only = read_only;
        }));
        match next {
            Some(purpose) => assert!(world.is_queued("a", purpose), "{on_lost:?} {:?}", world.state("a")),
            None => assert!(asks(&world, QuestionKind::MayHaveRun), "{on_lost:?} {:?}", world.state("a")),
        }
    }
}

#[test]
fn a_probe_that_finds_it_done_ends_the_step_with_the_probes_output() {
    let mut world = buried(one(|_| {}));
    world.assign("a");
    world.finish("a", ok(json!({ "found": true })));
    assert_eq!(world.run.steps[0].output.as_deref(), Some(&json!({ "found": true })));
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn a_probe_that_finds_nothing_leads_to_a_new_try_or_to_a_question() {
    for (idempotent, again) in [(true, true), (false, false)] {
        let mut world = buried(one(|a| a.action.facts.idempotent = idempotent));
        world.assign("a");
        world.finish("a", Outcome::NotSatisfied { diff: "no file".to_owned() });
        assert_eq!(world.is_queued("a", Purpose::Run), again);
        assert_eq!(asks(&world, QuestionKind::MayHaveRun), !again);
    }
}

/// That a process died says nothing about the action: it is no failed attempt. But who dies again and again may die of it.
#[test]
fn lost_attempts_do_not_count_as_failed_ones_and_the_third_is_a_question() {
    for (on_lost, read_only) in [(OnLost::Retry, false), (OnLost::Probe, true)] {
        let plan = one(|a| {
            (a.on_lost, a.action.facts.read_only, a.retry.max_attempts) = (on_lost, read_only, 1);
            a.on_failure = muster_engine::plan::OnFailure::Pause;
        });
        let mut world = World::new(plan);
        for _ in 0..2 {
            world.assign_soon("a");
            world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
            assert!(world.is_queued("a", Purpose::Run), "{:?}", world.state("a"));
        }
        let mut fails = world.clone();
        fails.assign_soon("a");
        fails.finish("a", failed(FailureKind::Retry));
        assert!(asks(&fails, QuestionKind::Failed), "its only try has failed: {:?}", fails.state("a"));

        world.assign_soon("a");
        world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
        assert!(asks(&world, QuestionKind::MayHaveRun), "{:?}", world.state("a"));
        world.command(&Command::RetryStep { step: "a".into(), reason: "looked".to_owned() });
        world.assign("a");
        world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
        assert!(world.is_queued("a", Purpose::Run), "a person has asked for more: {:?}", world.state("a"));
    }
}

#[test]
fn a_probe_that_fails_is_a_question_and_one_that_is_lost_is_asked_again_three_times() {
    let mut world = buried(one(|_| {}));
    world.assign("a");
    world.finish("a", failed(FailureKind::Retry));
    assert!(asks(&world, QuestionKind::MayHaveRun));

    let mut world = buried(one(|_| {}));
    for _ in 0..2 {
        world.assign("a");
        world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
        assert!(world.is_queued("a", Purpose::Probe));
    }
    world.assign("a");
    world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
    assert!(asks(&world, QuestionKind::MayHaveRun));
}

#[test]
fn an_attempt_ends_by_the_clock_and_a_later_report_is_evidence_only() {
    let mut world = World::new(one(|a| a.on_lost = OnLost::Ask));
    let fence = world.assign("a");
    let wake = world.run.wake_up(world.now).unwrap();
    assert_eq!((wake.at, wake.why), (at(30 + 600 + 10), Wake::AttemptClock("a".into(), 1)));
    world.go_to(639);
    assert_eq!(world.tick(), [], "too early does nothing");
    world.now = wake.at;
    let events = world.tick();
    let unknown = muster_engine::run::event::AttemptEnd::Unknown { ended_by: EndedBy::Clock };
    assert!(matches!(&events[0], Event::AttemptEnded { end, .. } if *end == unknown));
    let outcome = ok(json!({}));
    assert_eq!(world.run.verdict(&fence, Report::Finished(&outcome)), Verdict::Stale);
    let events = world.command(&Command::Finish { fence, outcome });
    assert!(matches!(events[..], [Event::ReportArrivedStale { .. }]));
    assert!(world.is_asking("a"));
}

#[test]
fn the_clock_does_not_run_out_while_the_instance_says_that_it_holds_the_attempt() {
    let mut world = World::new(one(|_| {}));
    world.assign("a");
    world.go_to(640);
    let holds = vec![("a".into(), 1)];
    let events = world.command(&Command::FindInstance { instance: "infra-1-a".into(), holds });
    assert!(matches!(events[..], [Event::AttemptExtended { .. }]));
    assert_eq!(world.tick(), []);
    let waiting = world.run.explain(world.now);
    assert!(waiting[0].waits_for.contains("past its timeout"), "{waiting:?}");
    assert_eq!(waiting[0].next_at, Some(at(640 + 900)));
    let resolve = Command::ResolveStep {
        step: "a".into(),
        resolution: Resolution::Succeeded,
        reason: "it is done, the agent hangs".to_owned(),
        output: None,
    };
    world.command(&resolve);
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn clocks_start_again_in_full() {
    let mut world = World::new(one(|_| {}));
    world.assign("a");
    world.go_to(500).command(&Command::RestartClocks);
    assert_eq!(world.run.wake_up(world.now).unwrap().at, at(500 + 600 + 10));
    world.go_to(1110);
    assert!(world.tick().iter().any(|e| matches!(e, Event::AttemptEnded { .. })));
}

/// Nobody could be asked: that is no reason to give up the wait for an agent, of an undo least of all.
#[test]
fn waits_for_an_agent_start_again_as_well() {
    let mut world = World::new(one(|step| step.queue_timeout_ms = Some(60_000)));
    assert_eq!(world.run.wake_up(world.now).unwrap().at, at(60));
    assert_eq!(world.go_to(30).command(&Command::RestartQueueClocks), [Event::QueueClocksRestarted]);
    assert_eq!(world.go_to(59).command(&Command::RestartClocks), [Event::QueueClocksRestarted]);
    assert_eq!(world.go_to(118).tick(), []);
    assert!(world.go_to(119).tick().iter().any(|event| matches!(event, Event::StepMoved { .. })));
    let mut world = World::new(one(|_| {}));
    assert_eq!(world.go_to(59).command(&Command::RestartClocks), [], "it waits without end");
}

#[test]
fn a_found_instance_takes_its_mark_away_and_denies_what_it_never_had_once_nothing_can_reach_it() {
    let mut world = World::new(one(|_| {}));
    world.assign("a");
    let find = |holds| Command::FindInstance { instance: "infra-1-a".into(), holds };
    assert_eq!(world.command(&find(Vec::new())), [], "the task may still be on its way");
    assert!(matches!(world.run.outstanding(world.now)[0], Outstanding::Dispatch(_)));
    world.command(&Command::LoseInstance { instance: "infra-1-a".into() });
    let events = world.command(&find(vec![("a".into(), 1)]));
    assert!(matches!(events[..], [Event::AttemptFound { .. }]));
    world.go_to(35);
    let events = world.command(&find(Vec::new()));
    let denied = muster_engine::run::event::AttemptEnd::NotStarted { why: NotStarted::Denied };
    assert!(matches!(&events[0], Event::AttemptEnded { end, .. } if *end == denied));
    assert_eq!(world.places(), [("a".into(), Purpose::Run)]);
}

#[test]
fn an_attempt_that_has_prepared_cannot_be_denied_any_more() {
    let mut world = World::new(one(|_| {}));
    let fence = world.assign("a");
    world.prepare("a", json!("was"));
    assert_eq!(world.command(&Command::Deny { fence, why: NotStarted::Busy }), []);
    world.go_to(60);
    assert_eq!(world.command(&Command::FindInstance { instance: "infra-1-a".into(), holds: Vec::new() }), []);
    assert_eq!(*world.state("a"), StepState::Active);
}

#[test]
fn host_scoped_work_stays_on_the_host_where_it_began() {
    let mut world = World::new(one(|a| a.action.facts.scope = ActionScope::Host));
    world.assign("a");
    let fence = world.fence("a");
    world.command(&Command::Deny { fence, why: NotStarted::Busy });
    assert_eq!(world.run.host_for(0, Purpose::Run), None, "it has not begun");
    world.go_to(5).assign("a");
    world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
    assert_eq!(world.run.host_for(0, Purpose::Probe), Some(&"host-1".into()));
    let elsewhere = Command::Assign {
        step: "a".into(),
        agent: "infra-2".into(),
        instance: "infra-2-a".into(),
        host: Some("host-2".into()),
        dispatch_until: at(40),
    };
    assert!(matches!(world.try_command(&elsewhere), Err(Rejection::Forbidden { .. })));
    let waiting = world.run.explain(world.now);
    assert!(waiting[0].on_whom.contains("on host host-1"), "{waiting:?}");
}

#[test]
fn a_person_may_end_an_attempt_that_is_lost_but_not_one_that_is_well() {
    let mut world = World::new(one(|_| {}));
    let fence = world.assign("a");
    let resolve = Command::ResolveStep {
        step: "a".into(),
        resolution: Resolution::Retry,
        reason: "the host is off".to_owned(),
        output: None,
    };
    assert!(matches!(world.try_command(&resolve), Err(Rejection::Forbidden { .. })));
    world.command(&Command::LoseInstance { instance: "infra-1-a".into() });
    world.command(&resolve);
    assert!(world.is_queued("a", Purpose::Run));
    let outcome = ok(json!({}));
    assert_eq!(world.run.verdict(&fence, Report::Finished(&outcome)), Verdict::Stale);
}

#[test]
fn every_kind_of_report_gets_its_verdict() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[0])]));
    let fence = world.assign("a");
    let (good, bad) = (ok(json!({})), failed(FailureKind::Permanent));
    let (was, another) = (Arc::new(json!("was")), Arc::new(json!("another")));
    let of = |world: &World, fence: &Fence, report| world.run.verdict(fence, report);
    assert_eq!(of(&world, &fence, Report::Prepared(&was)), Verdict::New);
    world.prepare("a", json!("was"));
    assert_eq!(of(&world, &fence, Report::Prepared(&was)), Verdict::Repeated);
    assert_eq!(of(&world, &fence, Report::Prepared(&another)), Verdict::Conflict);
    assert_eq!(of(&world, &fence, Report::Finished(&good)), Verdict::New);
    let impostor = Fence { instance: "infra-1-b".into(), ..fence.clone() };
    assert_eq!(of(&world, &impostor, Report::Finished(&good)), Verdict::Stale);
    world.finish("a", good.clone());
    assert_eq!(of(&world, &fence, Report::Finished(&good)), Verdict::Repeated);
    assert_eq!(of(&world, &fence, Report::Finished(&bad)), Verdict::Conflict);
    assert_eq!(of(&world, &fence, Report::Prepared(&was)), Verdict::Stale, "it must not go on and change something");
    let unknown = Fence { attempt: 2, ..fence.clone() };
    assert_eq!(of(&world, &unknown, Report::Finished(&good)), Verdict::Unknown);
    let nowhere = Fence { step: "zz".into(), ..fence.clone() };
    assert_eq!(of(&world, &nowhere, Report::Finished(&good)), Verdict::Unknown);

    assert_eq!(world.command(&Command::Finish { fence: fence.clone(), outcome: good.clone() }), []);
    let conflict = world.try_command(&Command::Finish { fence, outcome: bad });
    assert_eq!(conflict, Err(Rejection::Conflict { step: "a".into(), attempt: 1 }));
    let unknown = world.try_command(&Command::Finish { fence: unknown, outcome: good.clone() });
    assert_eq!(unknown, Err(Rejection::UnknownAttempt { step: "a".into(), attempt: 2 }));
    assert_eq!(
        world.try_command(&Command::Finish { fence: nowhere, outcome: good }),
        Err(Rejection::UnknownStep("zz".into()))
    );
}

#[test]
fn a_status_is_journalled_when_it_says_something_new() {
    let mut world = World::new(one(|_| {}));
    let fence = world.assign("a");
    let status = StatusNote { message: "copying".to_owned(), percent: Some(40), observations: Vec::new() };
    let command = Command::ReportStatus { fence, status };
    assert_eq!(world.command(&command).len(), 1);
    assert_eq!(world.command(&command), []);
    assert!(world.run.explain(world.now)[0].waits_for.contains("copying"));
    world.finish("a", ok(json!({})));
    assert_eq!(world.command(&command), [], "of an attempt that is over");
}

#[test]
fn what_happens_to_one_process_is_nothing_to_the_attempts_of_another() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[])]));
    world.assign_to("a", "infra-1-a");
    world.assign_to("b", "infra-1-b");
    let lost = world.command(&Command::LoseInstance { instance: "infra-1-a".into() });
    assert!(matches!(&lost[..], [Event::AttemptLost { step, .. }] if step.as_str() == "a"), "{lost:?}");
    world.go_to(60);
    let denied = world.command(&Command::FindInstance { instance: "infra-1-a".into(), holds: Vec::new() });
    assert!(matches!(&denied[..], [Event::AttemptEnded { step, .. }] if step.as_str() == "a"), "{denied:?}");
    assert_eq!(world.command(&Command::BuryInstance { instance: "infra-1-a".into() }), []);
    assert_eq!((world.is_queued("a", Purpose::Run), world.state("b")), (true, &StepState::Active));
}

#[test]
fn an_attempt_is_neither_denied_nor_spoken_of_by_another_process_of_its_agent() {
    let mut world = World::new(one(|_| {}));
    let fence = world.assign("a");
    let impostor = Fence { instance: "infra-1-b".into(), ..fence.clone() };
    assert_eq!((world.run.is_live(&fence), world.run.is_live(&impostor)), (true, false));
    assert_eq!(world.command(&Command::Deny { fence: impostor.clone(), why: NotStarted::Busy }), []);
    let status = StatusNote { message: "copying".to_owned(), percent: Some(40), observations: Vec::new() };
    assert_eq!(world.command(&Command::ReportStatus { fence: impostor, status }), []);
    assert_eq!(*world.state("a"), StepState::Active);
}

#[test]
fn after_a_loss_of_records_new_attempts_have_numbers_of_their_own_and_what_was_at_work_is_let_be() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[])]));
    let before = world.assign("a");
    world.command(&Command::AcceptLoss);
    let sent = world.run.outstanding(world.now).iter().any(|o| matches!(o, Outstanding::Dispatch(_)));
    assert!(!sent, "it may have ended in the lost records");
    assert!([1, 2, 1_000].iter().all(|n| world.run.may_have_assigned(1, *n)));
    assert!(!world.run.may_have_assigned(1, 1_001));
    world.command(&Command::Resume { reason: "looked".to_owned() });
    world.go_to(60);
    assert_eq!(world.command(&Command::Deny { fence: before, why: NotStarted::Busy }), []);
    assert_eq!(world.command(&Command::FindInstance { instance: "infra-1-a".into(), holds: Vec::new() }), []);
    world.finish("a", ok(json!({})));
    assert_eq!(*world.state("a"), StepState::Succeeded, "its report still counts");
    assert_eq!(world.assign("b").attempt, 1_001);
    assert!(world.run.may_have_assigned(1, 1_001));
    world.command(&Command::AcceptLoss);
    assert!(world.run.may_have_assigned(1, 2_000) && !world.run.may_have_assigned(1, 2_001));
}
