//! Steps that are done whatever happens: after a failure, a walk back, a cancellation.

mod common;

use common::{World, failed, for_signal, ok, phase, plan, simple, step, waits};
use muster_engine::{
    plan::{OnCancel, OnFailure, PlannedStep},
    run::{
        Command, Event, Outstanding, Rejection, Resolution,
        event::{EndedBy, FailureKind, Outcome, Purpose, RunOutcome},
        state::{RunState, StepState},
    },
};
use serde_json::json;

fn always(id: &str, needs: &[usize]) -> PlannedStep {
    PlannedStep { always: true, ..step(id, needs) }
}

/// `a`, then `b`, then `last` whatever happens.
fn three() -> World {
    World::new(simple(vec![step("a", &[]), step("b", &[0]), always("last", &[1])]))
}

fn cancel(force: bool) -> Command {
    Command::Cancel { reason: "enough".to_owned(), force }
}

fn fail(world: &mut World, step: &str) -> Vec<Event> {
    world.assign(step);
    world.finish(step, failed(FailureKind::Permanent))
}

#[test]
fn it_is_a_step_like_another_while_all_goes_well() {
    let mut world = three();
    world.succeed("a");
    assert_eq!(*world.state("last"), StepState::Pending);
    world.succeed("b");
    world.succeed("last");
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn after_a_failure_it_comes_last_once_all_is_taken_back() {
    let mut world = three();
    world.change("a");
    fail(&mut world, "b");
    assert_eq!(world.places(), [("a".into(), Purpose::Undo)], "the walk back comes first");
    world.succeed("a");
    assert!(matches!(world.run.state, RunState::Finishing { outcome: RunOutcome::Failed, .. }));
    assert_eq!(world.places(), [("last".into(), Purpose::Run)]);
    world.succeed("last");
    let RunState::Ended { outcome, reason, .. } = &world.run.state else { panic!("the run has ended") };
    assert_eq!((*outcome, reason.as_str()), (RunOutcome::Failed, "step b failed: it broke"));
    assert_eq!(*world.state("last"), StepState::Succeeded);
}

#[test]
fn where_nothing_is_taken_back_it_comes_at_once_and_several_come_in_their_order() {
    let steps = vec![step("a", &[]), always("first", &[0]), always("second", &[1])];
    let mut world = World::new(simple(steps));
    fail(&mut world, "a");
    assert_eq!(world.places(), [("first".into(), Purpose::Run)]);
    fail(&mut world, "first");
    assert_eq!(world.places(), [("second".into(), Purpose::Run)], "the failure of one does not keep the next");
    world.succeed("second");
    let RunState::Ended { outcome, reason, .. } = &world.run.state else { panic!("the run has ended") };
    assert_eq!(*outcome, RunOutcome::Failed);
    assert_eq!(reason, "step a failed: it broke; step first failed: it broke");
}

#[test]
fn a_cancellation_does_not_stop_it_and_it_comes_before_the_end() {
    for on_cancel in [OnCancel::Keep, OnCancel::Undo] {
        let mut plan = simple(vec![step("a", &[]), step("b", &[0]), always("last", &[1])]);
        plan.on_cancel = on_cancel;
        let mut world = World::new(plan);
        world.change("a");
        world.assign("b");
        world.command(&cancel(false));
        world.finish("b", Outcome::Cancelled { may_have_changed: false });
        if on_cancel == OnCancel::Undo {
            world.succeed("a");
        }
        assert_eq!(world.places(), [("last".into(), Purpose::Run)]);
        world.succeed("last");
        assert_eq!(world.ended(), Some(RunOutcome::Cancelled));
    }
    let mut world = World::new(simple(vec![step("a", &[]), always("last", &[])]));
    world.assign("a");
    world.assign("last");
    world.command(&cancel(false));
    let told: Vec<_> = world.run.outstanding(world.now).into_iter().filter_map(stopped).collect();
    assert_eq!(told, ["a"], "what is done always is not told to stop");
}

fn stopped(outstanding: Outstanding) -> Option<String> {
    match outstanding {
        Outstanding::CancelAttempt(cancel) => Some(cancel.step.as_str().to_owned()),
        Outstanding::Place(_) | Outstanding::Dispatch(_) | Outstanding::WakeAt(_) => None,
    }
}

#[test]
fn a_forced_cancellation_waits_for_nothing_and_ends_the_last_steps_too() {
    let mut world = three();
    world.assign("a");
    world.command(&cancel(true));
    assert_eq!(world.ended(), Some(RunOutcome::Cancelled));

    let mut world = three();
    fail(&mut world, "a");
    world.assign("last");
    assert!(matches!(world.try_command(&cancel(false)), Err(Rejection::Forbidden { .. })));
    world.command(&cancel(true));
    let RunState::Ended { outcome, reason, .. } = &world.run.state else { panic!("the run has ended") };
    assert_eq!((*outcome, reason.as_str()), (RunOutcome::Cancelled, "enough (forced; not waited for: last)"));
}

#[test]
fn one_that_was_done_is_taken_back_like_another_and_done_again_last() {
    let mut world = World::new(simple(vec![step("a", &[]), always("off", &[0]), step("b", &[1])]));
    world.change("a");
    world.change("off");
    fail(&mut world, "b");
    world.succeed("off");
    world.succeed("a");
    assert_eq!(world.places(), [("off".into(), Purpose::Run)]);
    world.change("off");
    assert_eq!((world.ended(), world.state("off")), (Some(RunOutcome::Failed), &StepState::Succeeded));
}

#[test]
fn a_phase_that_has_not_begun_has_nothing_to_be_done() {
    let mut later = always("later", &[]);
    later.phase = 1;
    let mut world = World::new(plan(vec![phase("one"), phase("two")], vec![step("a", &[]), later]));
    fail(&mut world, "a");
    assert_eq!((world.ended(), world.state("later")), (Some(RunOutcome::Failed), &StepState::Cancelled));
}

#[test]
fn a_failure_that_the_run_goes_on_after_does_not_skip_it() {
    let mut a = step("a", &[]);
    a.on_failure = OnFailure::Continue;
    let behind = vec![a, step("b", &[0]), always("last", &[1]), step("after", &[2])];
    let mut world = World::new(simple(behind));
    fail(&mut world, "a");
    assert!(matches!(world.state("b"), StepState::Skipped { .. }));
    assert_eq!(world.places(), [("last".into(), Purpose::Run)]);
    world.succeed("last");
    world.succeed("after");
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_try_that_was_lost_is_done_again_only_where_that_does_no_harm() {
    for idempotent in [true, false] {
        let mut last = always("last", &[]);
        last.action.facts.idempotent = idempotent;
        last.action.facts.undoable = false;
        last.undo = muster_engine::plan::PlannedUndo::Irreversible;
        let mut world = World::new(simple(vec![step("a", &[]), last]));
        let fence = world.assign("last");
        fail(&mut world, "a");
        world.command(&Command::BuryInstance { instance: fence.instance });
        let ended_by_loss = world.run.steps[1].attempts[0].end.as_ref().is_some_and(|(_, end)| {
            *end == muster_engine::run::event::AttemptEnd::Unknown { ended_by: EndedBy::InstanceGone }
        });
        assert!(ended_by_loss);
        if idempotent {
            assert_eq!(world.places(), [("last".into(), Purpose::Run)]);
            world.succeed("last");
        }
        assert_eq!(world.ended(), Some(RunOutcome::Failed));
    }
}

#[test]
fn it_has_its_tries_and_its_questions_at_the_end_too() {
    let mut last = always("last", &[0]);
    last.retry.max_attempts = 2;
    last.on_failure = OnFailure::Pause;
    let mut world = World::new(simple(vec![step("a", &[]), last]));
    fail(&mut world, "a");
    for _ in 0..2 {
        world.assign_soon("last");
        world.finish("last", failed(FailureKind::Retry));
    }
    assert!(world.is_asking("last"));
    assert_eq!(world.run.explain(world.now)[0].on_whom, "devops");
    world.command(&Command::RetryStep { step: "last".into(), reason: "mended".to_owned() });
    world.succeed("last");
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_try_that_was_under_way_when_the_run_was_stopped_has_its_other_tries_at_the_end() {
    let mut world = World::new(simple(vec![step("a", &[]), always("last", &[])]));
    world.assign("last");
    fail(&mut world, "a");
    world.finish("last", failed(FailureKind::Retry));
    assert_eq!(world.places(), [("last".into(), Purpose::Run)]);
    world.succeed("last");
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_pause_holds_it_and_a_person_may_answer_for_it() {
    let mut world = three();
    fail(&mut world, "a");
    world.command(&Command::Pause { reason: "look".to_owned() });
    assert_eq!(world.places(), []);
    let answer = Command::ResolveStep {
        step: "last".into(),
        resolution: Resolution::Skip,
        reason: "by hand".to_owned(),
        output: None,
    };
    world.command(&answer);
    assert_eq!(world.ended(), None, "the pause holds the end");
    world.command(&Command::Resume { reason: "seen".to_owned() });
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn its_condition_is_judged_at_the_end_and_it_may_wait() {
    let mut left_out = always("left_out", &[0]);
    left_out.when = Some("false".to_owned());
    let mut told = always("told", &[1]);
    waits(&mut told, for_signal("go", None));
    let mut last = always("last", &[2]);
    last.when = Some("inputs.environment == 'staging'".to_owned());
    let mut world = World::new(simple(vec![step("a", &[]), left_out, told, last]));
    fail(&mut world, "a");
    assert!(matches!(world.state("left_out"), StepState::Skipped { .. }));
    world.command(&Command::Signal {
        signal: "go".to_owned(),
        payload: std::sync::Arc::new(json!({})),
        reason: String::new(),
    });
    assert_eq!(world.places(), [("last".into(), Purpose::Run)]);
    world.assign("last");
    world.finish("last", ok(json!({})));
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_history_walks_nothing_back_while_the_last_steps_are_done() {
    let mut last = step("last", &[0]);
    last.always = true;
    let mut world = World::new(simple(vec![step("a", &[]), last]));
    world.assign("a");
    world.finish("a", failed(FailureKind::Permanent));
    assert!(matches!(world.run.state, RunState::Finishing { .. }));
    let (reason, steps) = ("again".to_owned(), vec!["last".into()]);
    let back = Event::RollbackStarted { reason, steps, irreversible: std::iter::empty().collect() };
    assert!(world.run.apply(world.now, &back).is_err());
}
