//! Attempts that fail: retries, verification, what a failed step does to the others, gates.

mod common;

use std::sync::Arc;

use common::{World, at, failed, gate, ok, phase, plan, simple, step, verify};
use muster_engine::{
    plan::OnFailure,
    run::{
        Command, Event, Rejection, Resolution, WaitingSubject,
        event::{
            AttemptEnd, EndedBy, FailureKind, GateVerdict, NotStarted, Outcome, PhaseOutcome, Purpose, QuestionKind,
            RunOutcome, StepNext,
        },
        state::{MilestoneState, RunState, StepState},
    },
};
use serde_json::json;

#[test]
fn a_failure_that_may_pass_is_tried_again_after_a_growing_wait_until_no_try_is_left() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    let mut waits = Vec::new();
    for _ in 0..2 {
        world.assign("a");
        world.finish("a", failed(FailureKind::Retry));
        let StepState::Queued { purpose: Purpose::Run, not_before, .. } = *world.state("a") else {
            panic!("it is tried again")
        };
        assert_eq!(world.places(), [], "not before the wait is over");
        let command = world.assignment("a", "infra-1-a");
        assert!(matches!(world.try_command(&command), Err(Rejection::Forbidden { .. })));
        waits.push(not_before.duration_since(world.now).as_millis());
        world.now = not_before;
        assert_eq!(world.places(), [("a".into(), Purpose::Run)]);
    }
    assert!((750..=1_000).contains(&waits[0]) && (1_500..=2_000).contains(&waits[1]), "{waits:?}");
    world.assign("a");
    world.finish("a", failed(FailureKind::Retry));
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_permanent_failure_is_not_tried_again() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    world.assign("a");
    world.finish("a", failed(FailureKind::Permanent));
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
    assert_eq!(world.run.failure.as_deref(), Some("step a failed: it broke"));
}

#[test]
fn no_attempt_starts_after_the_longest_time_for_tries() {
    let mut a = step("a", &[]);
    a.retry.max_elapsed_ms = Some(60_000);
    let mut world = World::new(simple(vec![a]));
    world.assign("a");
    world.go_to(59);
    world.finish("a", failed(FailureKind::Retry));
    assert!(world.is_queued("a", Purpose::Run));
    world.go_to(60).assign("a");
    world.finish("a", failed(FailureKind::Retry));
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn denials_do_not_count_and_an_instance_that_refused_is_not_asked_again() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    for n in 0..5 {
        world.go_to(n * 10).assign("a");
        let fence = world.fence("a");
        world.command(&Command::Deny { fence, why: NotStarted::Busy });
        assert!(world.is_queued("a", Purpose::Run));
        assert_eq!(world.places(), [], "busy: not at once");
    }
    world.go_to(100).assign("a");
    let fence = world.fence("a");
    world.command(&Command::Deny { fence, why: NotStarted::Refused { why: "not allowed".to_owned() } });
    let again = world.assignment("a", "infra-1-a");
    assert!(matches!(world.try_command(&again), Err(Rejection::Forbidden { .. })));
    world.assign_to("a", "infra-2-a");
    world.finish("a", failed(FailureKind::Retry));
    assert!(world.is_queued("a", Purpose::Run), "it was the first try that counts");
}

#[test]
fn a_step_that_is_not_critical_fails_alone() {
    let mut a = step("a", &[]);
    (a.on_failure, a.critical) = (OnFailure::Continue, false);
    let mut world = World::new(simple(vec![a, step("b", &[0]), step("c", &[])]));
    world.assign("a");
    world.finish("a", failed(FailureKind::Permanent));
    assert_eq!(*world.state("b"), StepState::Skipped { reason: "it needs a, which failed".to_owned() });
    world.succeed("c");
    assert_eq!((world.ended(), world.milestone(0)), (Some(RunOutcome::Succeeded), MilestoneState::Reached));
    let RunState::Ended { reason, .. } = &world.run.state else { panic!("it has ended") };
    assert_eq!(reason, "every phase is over; not critical: step a failed");
}

#[test]
fn a_step_that_is_not_critical_may_ask_before_it_fails_alone() {
    let mut a = step("a", &[]);
    (a.on_failure, a.critical) = (OnFailure::Pause, false);
    let mut world = World::new(simple(vec![a]));
    world.assign("a");
    world.finish("a", failed(FailureKind::Permanent));
    assert!(world.is_asking("a"));
    let resolution = Resolution::Failed;
    world.command(&Command::ResolveStep { step: "a".into(), resolution, reason: "no".to_owned(), output: None });
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn a_wait_for_an_agent_does_not_begin_again_with_each_denial() {
    let mut a = step("a", &[]);
    a.queue_timeout_ms = Some(60_000);
    a.on_failure = OnFailure::Pause;
    let mut world = World::new(simple(vec![a]));
    for n in 0..6 {
        world.go_to(n * 10).assign("a");
        let fence = world.fence("a");
        world.command(&Command::Deny { fence, why: NotStarted::Busy });
    }
    let wake = world.run.wake_up(at(55)).unwrap();
    assert_eq!(wake.at, at(60));
    world.go_to(60).tick();
    assert!(world.is_asking("a"));
}

#[test]
fn an_agent_that_needs_a_person_gets_a_question_asked_and_a_retry_goes_on() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    world.assign("a");
    world.finish("a", failed(FailureKind::NeedsPerson));
    assert!(world.is_asking("a"));
    let waiting = world.run.explain(world.now);
    assert_eq!(waiting[0].subject, WaitingSubject::Step("a".into()));
    assert_eq!((waiting[0].on_whom.as_str(), waiting[0].next_at), ("devops", Some(at(900))));
    world.command(&Command::RetryStep { step: "a".into(), reason: "mended".to_owned() });
    world.succeed("a");
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn tries_before_a_persons_retry_do_not_count() {
    let mut a = step("a", &[]);
    a.on_failure = OnFailure::Pause;
    a.retry.max_attempts = 1;
    let mut world = World::new(simple(vec![a]));
    for _ in 0..3 {
        world.assign("a");
        world.finish("a", failed(FailureKind::Retry));
        assert!(world.is_asking("a"));
        world.command(&Command::Resume { reason: "again".to_owned() });
        assert!(world.is_queued("a", Purpose::Run));
    }
}

#[test]
fn a_failure_that_pauses_stops_its_own_sub_graph_alone() {
    let mut a = step("a", &[]);
    a.on_failure = OnFailure::Pause;
    let mut world = World::new(simple(vec![a, step("b", &[]), step("c", &[0]), step("d", &[1])]));
    world.assign("a");
    world.finish("a", failed(FailureKind::Permanent));
    world.succeed("b");
    world.succeed("d");
    assert_eq!(world.places(), []);
    assert_eq!(*world.state("c"), StepState::Pending);
    assert_eq!(world.ended(), None);
}

#[test]
fn a_failure_that_is_passed_by_skips_everything_behind_it_and_the_run_fails_at_its_end() {
    let mut a = step("a", &[]);
    a.on_failure = OnFailure::Continue;
    let mut e = step("e", &[3]);
    e.phase = 1;
    let mut world = World::new(plan(
        vec![phase("first"), phase("second")],
        vec![a, step("b", &[]), step("c", &[0, 1]), step("d", &[2]), e],
    ));
    world.assign("b");
    world.assign("a");
    world.finish("a", failed(FailureKind::Permanent));
    for skipped in ["c", "d", "e"] {
        assert!(matches!(world.state(skipped), StepState::Skipped { .. }), "{skipped}");
    }
    assert_eq!(world.ended(), None, "b goes on");
    let events = world.finish("b", ok(json!({})));
    assert!(events.contains(&Event::PhaseEnded { phase: "first".into(), outcome: PhaseOutcome::Failed }));
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
    assert_eq!(world.milestone(0), MilestoneState::Missed, "a phase with a failed step does not reach its milestone");
}

#[test]
fn a_run_that_fails_or_is_cancelled_misses_what_it_has_not_reached() {
    let two_phases = || {
        let mut b = step("b", &[]);
        b.phase = 1;
        let mut c = step("c", &[]);
        c.phase = 2;
        let phases = vec![phase("first"), phase("second"), phase("third")];
        let mut world = World::new(plan(phases, vec![step("a", &[]), b, c]));
        world.go_to(1).succeed("a");
        world.go_to(1_300).tick();
        assert_eq!([1, 2].map(|p| world.milestone(p)), [MilestoneState::AtRisk; 2]);
        world.go_to(1_400);
        world
    };
    let states = |world: &World| [0, 1, 2].map(|p| world.milestone(p));
    let missed = [MilestoneState::Reached, MilestoneState::Missed, MilestoneState::Missed];
    let mut cancelled = two_phases();
    cancelled.command(&Command::Cancel { reason: "enough".to_owned(), force: false });
    assert_eq!((cancelled.ended(), states(&cancelled)), (Some(RunOutcome::Cancelled), missed));
    assert_eq!(cancelled.run.phases[2].milestone.as_ref().unwrap().since, at(1_400));
    let mut failed_at_b = two_phases();
    failed_at_b.assign("b");
    failed_at_b.finish("b", failed(FailureKind::Permanent));
    assert_eq!((failed_at_b.ended(), states(&failed_at_b)), (Some(RunOutcome::Failed), missed));
}

#[test]
fn a_failure_that_undoes_waits_for_the_attempts_of_the_other_steps() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[]), step("c", &[])]));
    world.change("a");
    world.assign("b");
    world.prepare("b", json!("b was"));
    world.assign("c");
    world.finish("c", failed(FailureKind::Permanent));
    assert_eq!(world.run.state, RunState::RollingBack);
    assert!(world.run.rollback.is_none());
    world.finish("b", ok(json!({})));
    assert_eq!(world.places(), [("b".into(), Purpose::Undo)], "the last done first");
}

#[test]
fn a_step_is_verified_again_and_again_until_it_holds_and_dependents_wait_for_it() {
    let mut a = step("a", &[]);
    a.verify = Some(verify("output.chain_valid && inputs.environment == 'staging'", 60_000, 5_000));
    let mut world = World::new(simple(vec![a, step("b", &[0])]));
    world.succeed("a");
    assert_eq!(world.places(), [("a".into(), Purpose::Verify)]);
    world.assign("a");
    world.go_to(2).finish("a", ok(json!({ "chain_valid": false })));
    assert!(world.is_queued("a", Purpose::Verify));
    assert_eq!(world.places(), []);
    assert_eq!(world.run.wake_up(world.now).unwrap().at, at(7));
    world.go_to(7).assign("a");
    world.finish("a", ok(json!({ "chain_valid": true })));
    assert_eq!(*world.state("a"), StepState::Succeeded);
    assert_eq!(world.places(), [("b".into(), Purpose::Run)]);
}

#[test]
fn a_verification_whose_time_is_over_fails_like_an_attempt_that_may_pass() {
    let mut a = step("a", &[]);
    a.verify = Some(verify("output.fine", 0, 5_000));
    a.retry.max_attempts = 2;
    let mut world = World::new(simple(vec![a]));
    for n in 0..2 {
        world.go_to(n * 60).succeed("a");
        assert!(world.is_queued("a", Purpose::Verify));
        world.assign("a");
        world.finish("a", ok(json!({ "fine": "a text is not true" })));
    }
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
    assert!(world.run.failure.as_ref().unwrap().contains("can't be judged"));
}

#[test]
fn a_gate_that_fails_walks_back() {
    let mut only = phase("only");
    only.gate = Some(gate(&["steps.a.output.ms < 50"], &[]));
    let mut world = World::new(plan(vec![only], vec![step("a", &[])]));
    world.assign("a");
    world.prepare("a", json!("was"));
    let events = world.finish("a", ok(json!({ "ms": 90 })));
    assert!(events.iter().any(|e| matches!(e, Event::GateJudged { verdict: GateVerdict::Failed, .. })));
    assert_eq!(world.places(), [("a".into(), Purpose::Undo)]);
    world.succeed("a");
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
    assert!(world.run.failure.as_ref().unwrap().contains("`steps.a.output.ms < 50` is false"));
}

#[test]
fn a_failure_condition_that_holds_fails_the_gate() {
    let mut only = phase("only");
    only.gate = Some(gate(&["true"], &["steps.a.output.errors > 0"]));
    let mut world = World::new(plan(vec![only], vec![step("a", &[])]));
    world.assign("a");
    world.finish("a", ok(json!({ "errors": 3 })));
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn an_inconclusive_gate_pauses_with_a_question_and_is_judged_again_at_resume() {
    let mut only = phase("only");
    only.gate = Some(gate(&["steps.a.output.missing < 50"], &[]));
    let mut world = World::new(plan(vec![only], vec![step("a", &[])]));
    world.succeed("a");
    assert!(world.run.pause.as_ref().unwrap().question.is_some());
    let waiting = world.run.explain(world.now);
    assert_eq!(waiting[0].subject, WaitingSubject::Gate("only".into()));
    assert_eq!(waiting[0].next_at, Some(at(900)));
    assert_eq!(waiting[1].subject, WaitingSubject::Milestone("only".into()));
    assert_eq!(waiting[1].waits_for, "the gate of phase only: its steps have ended");
    assert_eq!(waiting[1].on_whom, "devops");
    let events = world.command(&Command::Resume { reason: "look again".to_owned() });
    assert_eq!(events.iter().filter(|e| matches!(e, Event::GateJudged { .. })).count(), 1);
    assert!(world.run.pause.is_some());
}

#[test]
fn a_gate_judges_no_text_or_list_of_an_output_that_was_cut() {
    let judged = |condition: &str, truncated: bool| {
        let mut only = phase("only");
        only.gate = Some(gate(&[condition], &[]));
        let mut world = World::new(plan(vec![only], vec![step("a", &[])]));
        world.assign("a");
        let output = Arc::new(json!({ "text": "all is well", "list": [1, 2], "errors": 0, "well": true }));
        let outcome = Outcome::Succeeded { output, unchanged: false, observations: Vec::new(), truncated };
        let events = world.finish("a", outcome);
        let Some(Event::GateJudged { verdict, criteria, .. }) = events.get(1) else { panic!("no gate in {events:?}") };
        (*verdict, criteria[0].error.clone())
    };
    for reads_a_part in [
        "steps.a.output.text == 'all is well'",
        "!steps.a.output.text.contains('error')",
        "size(steps.a.output.list) == 2",
        "has(steps.a.output.text)",
    ] {
        assert_eq!(judged(reads_a_part, false).0, GateVerdict::Passed, "{reads_a_part}");
        let (verdict, why) = judged(reads_a_part, true);
        assert_eq!(verdict, GateVerdict::Inconclusive, "{reads_a_part}");
        assert!(why.starts_with("the output of step a was cut"), "{why}");
    }
    let (verdict, why) = judged("steps.a.output.cut_off_with_the_rest > 0", true);
    assert_eq!(verdict, GateVerdict::Inconclusive);
    assert!(why.starts_with("the output of step a was cut"), "{why}");
    // Neither is ever cut.
    for whole in ["steps.a.output.errors == 0", "steps.a.output.well"] {
        assert_eq!(judged(whole, true).0, GateVerdict::Passed, "{whole}");
    }
}

#[test]
fn a_condition_that_cannot_be_judged_fails_its_step() {
    let mut b = step("b", &[0]);
    b.when = Some("steps.a.output.missing".to_owned());
    b.on_failure = OnFailure::Pause;
    let mut world = World::new(simple(vec![step("a", &[]), b]));
    world.succeed("a");
    assert!(world.is_asking("b"));
}

/// What follows from one step must not make anybody forget another that moved in the same moment.
#[test]
fn a_step_that_fails_does_not_hide_another_that_is_skipped() {
    let when = |id, needs: &[usize], when: &str| {
        let mut step = step(id, needs);
        (step.when, step.on_failure) = (Some(when.to_owned()), OnFailure::Continue);
        step
    };
    let steps = vec![
        step("a", &[]),
        when("unjudged", &[0], "steps.a.output.nothing"),
        when("behind", &[1], "true"),
        when("left_out", &[0], "false"),
        when("after", &[3], "true"),
    ];
    let mut world = World::new(simple(steps));
    world.succeed("a");
    assert!(matches!(world.state("unjudged"), StepState::Failed { .. }));
    assert!(matches!(world.state("behind"), StepState::Skipped { .. }));
    assert!(world.is_queued("after", Purpose::Run), "{:?}", world.state("after"));
}

#[test]
fn an_agent_that_stops_by_itself_is_asked_about_only_where_doing_it_twice_does_harm() {
    for (idempotent, asked) in [(true, false), (false, true)] {
        let mut a = step("a", &[]);
        a.action.facts.idempotent = idempotent;
        let mut world = World::new(simple(vec![a]));
        world.assign("a");
        world.finish("a", Outcome::Cancelled { may_have_changed: true });
        assert_eq!(world.is_asking("a"), asked);
    }
}

/// A stopped run has nobody who would do it: the history is damaged, or of another run.
#[test]
fn a_history_begins_nothing_anew_in_a_run_that_is_stopped() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    world.assign("a");
    let (step, attempt, at) = (|| "a".into(), 1, world.now);
    let queued = StepNext::Queued { purpose: Purpose::Run, not_before: at, wake_at: at, why: String::new() };
    let asking = StepNext::Asking { question: "?".to_owned(), kind: QuestionKind::MayHaveRun, remind_at: at };
    let end = || AttemptEnd::Unknown { ended_by: EndedBy::Clock };
    let (resolution, reason) = (Resolution::Retry, String::new());
    let events = [
        Event::AttemptEnded { step: step(), attempt, end: end(), next: queued.clone() },
        Event::AttemptEnded { step: step(), attempt, end: end(), next: asking },
        Event::StepResolved { step: step(), resolution, reason, output: None, next: queued },
    ];
    for event in &events {
        assert!(world.run.clone().apply(at, event).is_ok(), "{event:?}");
    }
    world.command(&Command::Cancel { reason: "enough".to_owned(), force: false });
    for event in &events {
        assert!(world.run.clone().apply(at, event).is_err(), "{event:?}");
    }
}
