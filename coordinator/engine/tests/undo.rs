//! The walk back: what is undone, in which order, with what, and what is asked.

mod common;

use common::{World, action, failed, ok, simple, step};
use muster_engine::{
    ids::StepId,
    plan::{OnFailure, Plan, PlannedStep, PlannedUndo},
    run::{
        Command, Event, Outstanding, Resolution,
        event::{EndedBy, FailureKind, Outcome, Purpose, QuestionKind, RunOutcome},
        state::StepState,
    },
};
use serde_json::json;
use std::sync::Arc;

/// `a` then `b` (each as changed) then `z`, which fails for good.
fn plan_with(change: impl FnOnce(&mut PlannedStep, &mut PlannedStep)) -> Plan {
    let (mut a, mut b) = (step("a", &[]), step("b", &[0]));
    change(&mut a, &mut b);
    simple(vec![a, b, step("z", &[1])])
}

fn fail_z(world: &mut World) -> Vec<Event> {
    world.assign("z");
    world.finish("z", failed(FailureKind::Permanent))
}

fn task(world: &World) -> muster_engine::run::Dispatch {
    let tasks = world.run.outstanding(world.now).into_iter().find_map(|o| match o {
        Outstanding::Dispatch(d) => Some(*d),
        Outstanding::Place(_) | Outstanding::CancelAttempt(_) | Outstanding::WakeAt(_) => None,
    });
    tasks.expect("an attempt is to be sent")
}

#[test]
fn steps_are_undone_one_by_one_the_last_done_first_with_what_they_prepared() {
    let mut world = World::new(plan_with(|_, _| {}));
    world.change("a");
    world.change("b");
    fail_z(&mut world);
    assert_eq!(world.places(), [("b".into(), Purpose::Undo)]);
    world.assign("b");
    assert_eq!(world.places(), [], "one by one");
    let undo = task(&world);
    assert_eq!((undo.purpose, undo.undo.as_deref()), (Purpose::Undo, Some(&json!({ "was": "b" }))));
    assert_eq!(*undo.with, json!({ "for": "b" }));
    assert!(!undo.prepare);
    world.finish("b", ok(json!({})));
    assert_eq!(*world.state("b"), StepState::Undone);
    world.succeed("a");
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_failed_step_that_prepared_is_undone_too_and_each_preparation_newest_first() {
    let mut a = step("a", &[]);
    a.retry.max_attempts = 2;
    let mut world = World::new(simple(vec![a]));
    for n in 0..2 {
        world.go_to(n * 60).assign("a");
        world.prepare("a", json!(n));
        world.finish("a", failed(FailureKind::Retry));
    }
    for n in [1, 0] {
        assert_eq!(world.places(), [("a".into(), Purpose::Undo)]);
        world.assign("a");
        assert_eq!(task(&world).undo.as_deref(), Some(&json!(n)));
        world.finish("a", ok(json!({})));
    }
    assert_eq!(*world.state("a"), StepState::Undone);
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_forced_cancel_does_not_forget_what_was_not_taken_back() {
    let mut world = World::new(plan_with(|_, _| {}));
    world.change("a");
    world.change("b");
    fail_z(&mut world);
    world.assign("b");
    world.finish("b", failed(FailureKind::Permanent));
    assert!(world.is_asking("b"));
    world.command(&Command::Cancel { reason: "enough".to_owned(), force: true });
    assert_eq!(world.ended(), Some(RunOutcome::Cancelled));
    let left: Vec<&str> = world.run.not_taken_back().into_iter().map(StepId::as_str).collect();
    assert_eq!(left, ["a", "b"]);
}

#[test]
fn what_changed_nothing_is_not_undone() {
    let mut world = World::new(plan_with(|_, b| b.undo = PlannedUndo::Nothing));
    world.assign("a");
    let unchanged =
        Outcome::Succeeded { output: Arc::new(json!({})), unchanged: true, observations: Vec::new(), truncated: false };
    world.finish("a", unchanged);
    world.succeed("b");
    fail_z(&mut world);
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
    assert!(world.run.rollback.is_none());
}

#[test]
fn what_cannot_be_taken_back_is_said() {
    let mut world = World::new(plan_with(|a, _| a.undo = PlannedUndo::Irreversible));
    world.succeed("a");
    world.change("b");
    let events = fail_z(&mut world);
    let started = events.iter().find_map(|e| {
        let Event::RollbackStarted { steps, irreversible, .. } = e else { return None };
        Some((steps.clone(), irreversible.clone()))
    });
    assert_eq!(started, Some((vec!["b".into()], ["a".into()].into())));
}

#[test]
fn an_undo_by_another_action_is_that_actions_run() {
    let undo = PlannedUndo::Action { action: action("test.revert"), with: json!({ "to": "{{ inputs.environment }}" }) };
    let mut world = World::new(plan_with(|a, _| a.undo = undo));
    world.succeed("a");
    world.succeed("b");
    fail_z(&mut world);
    world.assign("a");
    let task = task(&world);
    assert_eq!((task.action.name.as_str(), task.purpose), ("test.revert", Purpose::Run));
    assert_eq!((&*task.with, task.undo, task.prepare), (&json!({ "to": "staging" }), None, false));
    world.finish("a", ok(json!({})));
    assert_eq!(*world.state("a"), StepState::Undone);
}

#[test]
fn an_undo_that_may_pass_is_tried_again_and_one_that_fails_is_a_question() {
    let mut world = World::new(plan_with(|_, _| {}));
    world.succeed("a");
    world.change("b");
    fail_z(&mut world);
    world.assign("b");
    world.finish("b", failed(FailureKind::Retry));
    assert!(world.is_queued("b", Purpose::Undo));
    world.go_to(30).assign("b");
    world.finish("b", failed(FailureKind::Permanent));
    assert!(matches!(world.state("b"), StepState::Asking { kind: QuestionKind::UndoFailed, .. }));
    world.command(&Command::RetryStep { step: "b".into(), reason: "mended".to_owned() });
    world.succeed("b");
    assert_eq!(*world.state("b"), StepState::Undone);
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_person_may_leave_a_step_as_it_is_or_say_that_it_is_undone() {
    let failed_for_good = StepState::Failed { reason: "looked at it".to_owned() };
    for (resolution, state, left) in [
        (Resolution::Skip, StepState::Succeeded, &["b"][..]),
        (Resolution::Failed, failed_for_good, &["b"]),
        (Resolution::Succeeded, StepState::Undone, &[]),
    ] {
        let mut world = World::new(plan_with(|_, _| {}));
        world.change("a");
        world.change("b");
        fail_z(&mut world);
        world.assign("b");
        world.finish("b", failed(FailureKind::Permanent));
        let reason = "looked at it".to_owned();
        world.command(&Command::ResolveStep { step: "b".into(), resolution, reason, output: None });
        assert_eq!(*world.state("b"), state);
        assert_eq!(world.places(), [("a".into(), Purpose::Undo)], "the walk goes on");
        assert!(world.run.not_taken_back().is_empty(), "it is not over");
        world.succeed("a");
        assert_eq!(world.ended(), Some(RunOutcome::Failed));
        let not_taken_back: Vec<&str> = world.run.not_taken_back().into_iter().map(StepId::as_str).collect();
        assert_eq!(not_taken_back, left);
    }
}

#[test]
fn an_undo_of_its_own_for_a_step_that_may_have_run_is_a_question() {
    let mut a = step("a", &[]);
    a.undo = PlannedUndo::Action { action: action("test.revert"), with: json!({}) };
    let mut world = World::new(simple(vec![a, step("z", &[])]));
    world.assign("a");
    world.assign_to("z", "infra-1-b");
    world.finish("z", failed(FailureKind::Permanent));
    let events = world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
    let unknown = muster_engine::run::event::AttemptEnd::Unknown { ended_by: EndedBy::InstanceGone };
    assert!(matches!(&events[0], Event::AttemptEnded { end, .. } if *end == unknown));
    assert!(matches!(world.state("a"), StepState::Asking { kind: QuestionKind::UndoFailed, .. }));
    world.command(&Command::RetryStep { step: "a".into(), reason: "it has run".to_owned() });
    assert_eq!(world.places(), [("a".into(), Purpose::Undo)]);
}

#[test]
fn a_lost_attempt_that_prepared_is_undone_with_that_when_the_run_fails() {
    let mut world = World::new(simple(vec![step("a", &[]), step("z", &[])]));
    world.assign("a");
    world.prepare("a", json!("was"));
    world.assign_to("z", "infra-1-b");
    world.command(&Command::LoseInstance { instance: "infra-1-a".into() });
    world.finish("z", failed(FailureKind::Permanent));
    assert_eq!(world.places(), [], "lost is not stopped");
    world.go_to(640).tick();
    assert_eq!(world.places(), [("a".into(), Purpose::Undo)]);
}

#[test]
fn a_lost_undo_is_done_again() {
    let mut world = World::new(plan_with(|_, _| {}));
    world.change("a");
    world.succeed("b");
    fail_z(&mut world);
    world.assign("a");
    world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
    assert_eq!(world.places(), [("a".into(), Purpose::Undo)]);
    world.assign("a");
    assert_eq!(task(&world).undo.as_deref(), Some(&json!({ "was": "a" })));
}

#[test]
fn a_question_of_another_step_is_moot_when_the_run_walks_back() {
    let mut a = step("a", &[]);
    a.on_failure = OnFailure::Pause;
    let mut world = World::new(simple(vec![a, step("z", &[]), step("later", &[1])]));
    world.assign("a");
    world.prepare("a", json!("was"));
    world.finish("a", failed(FailureKind::Permanent));
    fail_z(&mut world);
    assert!(matches!(world.state("later"), StepState::Cancelled));
    assert_eq!(world.places(), [("a".into(), Purpose::Undo)]);
}
