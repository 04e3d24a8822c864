//! What people ask for: cancelling, pausing, answering. And what is refused.

mod common;

use common::{World, at, failed, ok, simple, step};
use muster_engine::{
    plan::{OnCancel, OnFailure},
    run::{
        CancelAttempt, Command, Event, Fence, Outstanding, Rejection, Report, Resolution, Verdict,
        event::{FailureKind, Outcome, Purpose, RunOutcome},
        state::{RunState, StepState},
    },
};
use serde_json::json;
use std::sync::Arc;

fn cancel(force: bool) -> Command {
    Command::Cancel { reason: "enough".to_owned(), force }
}

fn resolve(step: &str, resolution: Resolution) -> Command {
    Command::ResolveStep { step: step.into(), resolution, reason: "looked".to_owned(), output: None }
}

fn pause() -> Command {
    Command::Pause { reason: "lunch".to_owned() }
}

fn resume() -> Command {
    Command::Resume { reason: "back".to_owned() }
}

#[test]
fn a_cancelled_run_starts_nothing_tells_the_agents_and_ends_with_the_last_attempt() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[]), step("c", &[0])]));
    world.assign("a");
    world.command(&cancel(false));
    assert_eq!(world.run.state, RunState::Cancelling);
    assert_eq!(*world.state("b"), StepState::Cancelled);
    assert_eq!(world.places(), []);
    let order =
        CancelAttempt { index: 0, step: "a".into(), attempt: 1, agent: "infra-1".into(), instance: "infra-1-a".into() };
    assert!(world.run.outstanding(world.now).contains(&Outstanding::CancelAttempt(order)));
    world.finish("a", Outcome::Cancelled { may_have_changed: false });
    assert_eq!(*world.state("a"), StepState::Cancelled);
    assert_eq!(world.ended(), Some(RunOutcome::Cancelled));
}

#[test]
fn a_success_that_crosses_the_cancellation_is_recorded() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[0])]));
    world.assign("a");
    world.command(&cancel(false));
    world.finish("a", ok(json!({ "x": 1 })));
    assert_eq!(*world.state("a"), StepState::Succeeded);
    assert_eq!(world.run.steps[0].output.as_deref(), Some(&json!({ "x": 1 })));
    assert_eq!(*world.state("b"), StepState::Cancelled);
    assert_eq!(world.ended(), Some(RunOutcome::Cancelled));
}

#[test]
fn a_cancellation_undoes_only_where_the_plan_says_so() {
    for (on_cancel, undone) in [(OnCancel::Keep, false), (OnCancel::Undo, true)] {
        let mut plan = simple(vec![step("a", &[]), step("b", &[0])]);
        plan.on_cancel = on_cancel;
        let mut world = World::new(plan);
        world.change("a");
        world.command(&cancel(false));
        assert_eq!(world.places().contains(&("a".into(), Purpose::Undo)), undone);
        if undone {
            world.succeed("a");
        }
        assert_eq!(world.ended(), Some(RunOutcome::Cancelled));
    }
}

#[test]
fn a_forced_cancellation_does_not_wait_and_says_what_may_still_run_until_that_is_reported() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    let fence = world.assign("a");
    world.command(&cancel(false));
    assert!(matches!(world.try_command(&cancel(false)), Err(Rejection::Forbidden { .. })));
    world.command(&cancel(true));
    let RunState::Ended { outcome: RunOutcome::Cancelled, reason, .. } = &world.run.state else {
        panic!("it has ended")
    };
    assert!(reason.contains("not waited for: a"), "{reason}");
    let outcome = ok(json!({}));
    assert_eq!(world.run.verdict(&fence, Report::Finished(&outcome)), Verdict::Stale);
    let late = |world: &World| world.run.steps[0].attempts[0].reported_late.clone();
    let stranger = Fence { instance: "another".into(), ..fence.clone() };
    world.command(&Command::Finish { fence: stranger, outcome: outcome.clone() });
    world.command(&Command::Prepare { fence: fence.clone(), undo: Arc::new(json!({ "finished": outcome })) });
    assert_eq!((late(&world), world.run.left_behind(&fence)), (None, Some(true)));
    let events = world.command(&Command::Finish { fence: fence.clone(), outcome: outcome.clone() });
    assert!(matches!(events[..], [Event::ReportArrivedStale { .. }]));
    let first = Some((world.now, outcome));
    assert_eq!((late(&world), world.run.left_behind(&fence)), (first.clone(), None));
    world.command(&Command::Finish { fence, outcome: failed(FailureKind::Permanent) });
    assert_eq!(late(&world), first, "another word later is evidence, and nothing more");
    assert!(world.run.steps[0].live_attempt().is_some(), "nothing follows from it");
}

#[test]
fn a_forced_cancellation_ends_a_walk_back() {
    let mut world = World::new(simple(vec![step("a", &[]), step("z", &[0])]));
    world.change("a");
    world.assign("z");
    world.finish("z", failed(FailureKind::Permanent));
    assert!(matches!(world.try_command(&cancel(false)), Err(Rejection::Forbidden { .. })));
    world.command(&cancel(true));
    assert_eq!(world.ended(), Some(RunOutcome::Cancelled));
}

#[test]
fn a_paused_run_assigns_nothing_lets_attempts_end_and_reminds() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[]), step("c", &[0])]));
    world.assign("a");
    world.command(&pause());
    assert_eq!(world.places(), []);
    let command = world.assignment("b", "infra-1-a");
    assert!(matches!(world.try_command(&command), Err(Rejection::Forbidden { .. })));
    world.finish("a", ok(json!({})));
    assert_eq!(world.places(), []);
    assert!(matches!(world.try_command(&pause()), Err(Rejection::Forbidden { .. })));
    world.go_to(900);
    assert_eq!(world.run.wake_up(world.now).unwrap().at, at(900));
    assert!(matches!(world.tick()[..], [Event::OwnerReminded { .. }]));
    assert_eq!(world.run.pause.as_ref().unwrap().remind_at, at(1800));
    world.command(&resume());
    assert_eq!(world.places().len(), 2);
    assert!(matches!(world.try_command(&resume()), Err(Rejection::Forbidden { .. })));
}

#[test]
fn the_wait_for_an_agent_does_not_run_out_while_the_run_is_paused() {
    let mut a = step("a", &[]);
    a.queue_timeout_ms = Some(60_000);
    let mut world = World::new(simple(vec![a]));
    world.command(&pause());
    world.go_to(120);
    assert_eq!(world.tick(), []);
    world.command(&resume());
    assert_eq!(world.run.wake_up(world.now).unwrap().at, at(180));
    world.go_to(180).tick();
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_phase_does_not_end_while_the_run_is_paused() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    world.assign("a");
    world.command(&pause());
    world.finish("a", ok(json!({})));
    assert_eq!(world.ended(), None);
    world.command(&resume());
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

/// A person who pauses wants to look before anything is taken back.
#[test]
fn nothing_is_walked_back_while_the_run_is_paused() {
    let paused = || {
        let mut world = World::new(simple(vec![step("a", &[]), step("b", &[0])]));
        world.change("a");
        world.assign("b");
        world.command(&pause());
        world.finish("b", failed(FailureKind::Permanent));
        assert_eq!((&world.run.state, world.places().len()), (&RunState::Running, 0));
        assert!(world.run.explain(world.now)[0].hint.contains("retry or resolve it first"));
        world
    };
    let mut world = paused();
    world.command(&resume());
    assert_eq!(world.run.state, RunState::RollingBack);

    let mut world = paused();
    world.command(&Command::RetryStep { step: "b".into(), reason: "mended".to_owned() });
    world.command(&resume());
    assert_eq!((&world.run.state, world.places().len()), (&RunState::Running, 1));

    for (resolution, outcome) in [(Resolution::Succeeded, true), (Resolution::Skip, true), (Resolution::Failed, false)]
    {
        let mut world = paused();
        let answer = resolve("b", resolution);
        assert_eq!(world.try_command(&answer).is_ok(), outcome);
        world.command(&resume());
        assert_eq!(world.ended(), outcome.then_some(RunOutcome::Succeeded));
    }
}

#[test]
fn a_walk_back_begins_ends_and_is_cancelled_only_when_the_run_goes_on() {
    let mut world = World::new(simple(vec![step("a", &[]), step("z", &[0])]));
    world.change("a");
    world.assign("z");
    world.finish("z", failed(FailureKind::Permanent));
    world.assign("a");
    world.command(&pause());
    world.finish("a", ok(json!({})));
    assert_eq!(world.ended(), None);
    world.command(&resume());
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
}

#[test]
fn a_question_can_be_answered_in_four_ways() {
    for (resolution, state, outcome) in [
        (Resolution::Succeeded, Some(StepState::Succeeded), Some(RunOutcome::Succeeded)),
        (Resolution::Failed, Some(StepState::Failed { reason: "looked".to_owned() }), Some(RunOutcome::Failed)),
        (Resolution::Skip, Some(StepState::Skipped { reason: "looked".to_owned() }), Some(RunOutcome::Succeeded)),
        (Resolution::Retry, None, None),
    ] {
        let mut world = World::new(simple(vec![step("a", &[])]));
        world.assign("a");
        world.finish("a", failed(FailureKind::NeedsPerson));
        world.command(&resolve("a", resolution));
        if let Some(state) = state {
            assert_eq!(*world.state("a"), state);
        } else {
            assert!(world.is_queued("a", Purpose::Run));
        }
        assert_eq!(world.ended(), outcome);
    }
}

#[test]
fn a_person_who_says_that_it_is_done_may_give_its_output() {
    let mut b = step("b", &[0]);
    b.with = json!({ "port": "{{ steps.a.output.port }}" });
    let mut world = World::new(simple(vec![step("a", &[]), b]));
    world.assign("a");
    world.finish("a", failed(FailureKind::NeedsPerson));
    world.command(&Command::ResolveStep {
        step: "a".into(),
        resolution: Resolution::Succeeded,
        reason: "did it by hand".to_owned(),
        output: Some(Arc::new(json!({ "port": 6432 }))),
    });
    world.assign("b");
    assert_eq!(*world.run.steps[1].attempts[0].with, json!({ "port": 6432 }));
}

#[test]
fn a_step_that_waits_for_an_agent_can_be_left_out() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[0])]));
    world.command(&resolve("a", Resolution::Skip));
    assert_eq!(world.places(), [("b".into(), Purpose::Run)]);
}

#[test]
fn a_failed_step_can_be_tried_again_while_its_phase_goes_on() {
    let mut a = step("a", &[]);
    a.on_failure = OnFailure::Continue;
    let mut world = World::new(simple(vec![a, step("b", &[])]));
    world.assign("a");
    world.finish("a", failed(FailureKind::Permanent));
    world.command(&Command::RetryStep { step: "a".into(), reason: "mended".to_owned() });
    world.succeed("a");
    world.succeed("b");
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn a_run_resolved_as_failed_goes_by_the_steps_policy() {
    for (on_failure, rolled_back) in [(OnFailure::Undo, true), (OnFailure::Pause, false), (OnFailure::Continue, false)]
    {
        let mut b = step("b", &[0]);
        b.on_failure = on_failure;
        let mut world = World::new(simple(vec![step("a", &[]), b, step("c", &[1]), step("d", &[0])]));
        world.change("a");
        world.assign("b");
        world.finish("b", failed(FailureKind::NeedsPerson));
        world.command(&resolve("b", Resolution::Failed));
        assert_eq!(world.run.state == RunState::RollingBack, rolled_back);
        assert_eq!(matches!(world.state("c"), StepState::Skipped { .. }), !rolled_back);
    }
}

/// Every command in every kind of state is taken or refused with a reason; nothing is ignored in silence.
#[test]
fn what_makes_no_sense_is_refused() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[0])]));
    let retry = |step: &str| Command::RetryStep { step: step.into(), reason: String::new() };
    let refused = |world: &mut World, command: &Command| match world.try_command(command) {
        Err(Rejection::Forbidden { what, state }) => format!("{what}: {state}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut world, &retry("a")), "retrying the step: the step waits for an agent");
    assert_eq!(refused(&mut world, &resolve("b", Resolution::Skip)), "resolving the step: the step has not begun");
    assert_eq!(refused(&mut world, &resume()), "resuming: the run is running");
    world.assign("a");
    assert_eq!(
        refused(&mut world, &resolve("a", Resolution::Failed)),
        "resolving the step: attempt 1 of the step is at work at agent infra-1"
    );
    let again = world.assignment("a", "infra-1-b");
    refused(&mut world, &again);
    assert_eq!(world.try_command(&retry("zz")), Err(Rejection::UnknownStep("zz".into())));
    world.command(&cancel(true));
    for command in [cancel(true), pause(), resume(), retry("a"), resolve("a", Resolution::Skip)] {
        assert_eq!(world.try_command(&command), Err(Rejection::RunEnded));
    }
    for command in [Command::Tick, Command::RestartClocks] {
        assert_eq!(world.command(&command), []);
    }
}
