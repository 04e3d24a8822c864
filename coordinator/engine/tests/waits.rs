//! Steps that wait for a time, a moment or a signal.

mod common;

use std::sync::Arc;

use common::{World, at, ok, phase, plan, simple, step, waits};
use muster_engine::{
    plan::{OnFailure, PlannedStep, PlannedWait},
    run::{
        Command, Event, Rejection, Resolution, Rest,
        event::{RunOutcome, StepNext, Subject},
        state::StepState,
    },
};
use serde_json::{Value, json};

fn waiting(id: &str, needs: &[usize], wait: PlannedWait) -> PlannedStep {
    let mut waiting = step(id, needs);
    waits(&mut waiting, wait);
    waiting
}

fn signal(name: &str, payload: Value) -> Command {
    Command::Signal { signal: name.to_owned(), payload: Arc::new(payload), reason: String::new() }
}

#[test]
fn a_time_begins_with_what_the_step_needs_and_ends_by_itself() {
    let mut world =
        World::new(simple(vec![step("a", &[]), waiting("w", &[0], PlannedWait::For { ms: 60_000 }), step("b", &[1])]));
    assert_eq!(*world.state("w"), StepState::Pending);
    world.go_to(10).succeed("a");
    let waits = StepState::Waiting { signal: None, ends_at: Some(at(70)), wake_at: at(70) };
    assert_eq!((world.state("w"), world.places().len()), (&waits, 0));
    let said = &world.run.explain(world.now)[0];
    assert_eq!(
        (said.waits_for.as_str(), said.next_action.as_str(), said.next_at),
        ("its moment", "the step is done", Some(at(70)))
    );
    assert_eq!(world.go_to(69).tick(), []);
    world.go_to(70).tick();
    assert_eq!((world.state("w"), &world.run.steps[1].output), (&StepState::Succeeded, &Some(Arc::new(json!({})))));
    world.succeed("b");
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn a_moment_may_come_from_a_step_and_may_be_over() {
    for (moment, ends) in [("2026-01-07T10:00:30Z", 30), ("2026-01-07T11:00:30+01:00", 30), ("2026-01-07T10:00:01Z", 1)]
    {
        let until = PlannedWait::Until { moment: "{{ steps.a.output.start }}".to_owned() };
        let mut world = World::new(simple(vec![step("a", &[]), waiting("w", &[0], until)]));
        world.go_to(5).assign("a");
        world.finish("a", ok(json!({ "start": moment })));
        assert_eq!(world.run.wake_up(world.now).unwrap().at, at(ends));
        world.go_to(ends.max(5)).tick();
        assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
    }
}

#[test]
fn what_is_no_moment_fails_the_step() {
    let until = PlannedWait::Until { moment: "{{ steps.a.output.start }}".to_owned() };
    let mut world = World::new(simple(vec![step("a", &[]), waiting("w", &[0], until)]));
    world.assign("a");
    world.finish("a", ok(json!({ "start": "tomorrow" })));
    let reason = r#""tomorrow" is no moment: write it as 2026-01-31T18:00:00Z"#.to_owned();
    assert_eq!(*world.state("w"), StepState::Failed { reason });
}

/// What makes no sense is refused, and the step stays as it is: nothing of it may break the run.
#[test]
fn a_wait_that_can_not_begin_can_not_be_tried_again() {
    for on_failure in [OnFailure::Pause, OnFailure::Continue] {
        let mut w = waiting("w", &[], PlannedWait::Until { moment: "{{ inputs.environment }}".to_owned() });
        w.on_failure = on_failure;
        let mut world = World::new(simple(vec![w, step("other", &[])]));
        let before = world.state("w").clone();
        for command in [
            Command::RetryStep { step: "w".into(), reason: "again".to_owned() },
            Command::ResolveStep {
                step: "w".into(),
                resolution: Resolution::Retry,
                reason: "again".to_owned(),
                output: None,
            },
            Command::Resume { reason: "again".to_owned() },
        ] {
            let refused = world.try_command(&command);
            assert!(matches!(refused, Err(Rejection::Forbidden { .. })), "{command:?}: {refused:?}");
        }
        assert_eq!(*world.state("w"), before);
        world.command(&Command::Pause { reason: "look".to_owned() });
        world.command(&Command::Resume { reason: "a pause ends all the same".to_owned() });
    }
}

#[test]
fn a_signal_ends_the_wait_and_brings_its_output() {
    let wait = common::for_signal("approved", None);
    let mut b = step("b", &[0]);
    b.when = Some("steps.w.output.go".to_owned());
    let mut world = World::new(simple(vec![waiting("w", &[], wait), b]));
    assert_eq!(
        world.go_to(900).tick(),
        [Event::OwnerReminded { subject: Subject::Step { step: "w".into() }, next_at: at(1800) }]
    );
    assert!(matches!(world.try_command(&signal("other", json!(1))), Err(Rejection::UnknownSignal(_))));
    world.command(&signal("approved", json!({ "go": true })));
    assert_eq!((world.state("w"), world.places().len()), (&StepState::Succeeded, 1));
    assert_eq!(world.command(&signal("approved", json!({ "go": false }))), [], "the first one counts");
    assert_eq!(world.run.steps[0].output.as_deref(), Some(&json!({ "go": true })));
}

#[test]
fn a_signal_that_comes_before_its_step_is_found_by_it() {
    let wait = || common::for_signal("ready", Some(5_000));
    let mut world = World::new(simple(vec![step("a", &[]), waiting("w", &[0], wait()), waiting("x", &[], wait())]));
    world.command(&signal("ready", json!("yes")));
    assert_eq!((world.state("x"), world.state("w")), (&StepState::Succeeded, &StepState::Pending));
    world.succeed("a");
    assert_eq!(world.run.steps[1].output.as_deref(), Some(&json!("yes")));
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
    assert!(matches!(world.try_command(&signal("ready", json!(1))), Err(Rejection::RunEnded)));
}

#[test]
fn a_signal_that_does_not_come_in_time_fails_the_step_or_asks() {
    for (on_failure, ended) in [(OnFailure::Undo, true), (OnFailure::Pause, false)] {
        let mut w = waiting("w", &[], common::for_signal("ready", Some(1_200_000)));
        w.on_failure = on_failure;
        let mut world = World::new(simple(vec![w]));
        assert_eq!(world.run.wake_up(world.now).unwrap().at, at(900));
        world.go_to(900).tick();
        assert_eq!(world.run.wake_up(world.now).unwrap().at, at(1200));
        world.go_to(1200).tick();
        assert_eq!((world.ended(), world.is_asking("w")), (ended.then_some(RunOutcome::Failed), !ended));
        if !ended {
            world.command(&Command::RetryStep { step: "w".into(), reason: "again".to_owned() });
            assert!(matches!(world.state("w"), StepState::Waiting { ends_at: Some(ends), .. } if *ends == at(2400)));
            world.command(&signal("ready", json!({})));
            assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
        }
    }
}

#[test]
fn a_person_may_end_a_wait_in_four_ways() {
    for (resolution, outcome) in [
        (Resolution::Succeeded, Some(RunOutcome::Succeeded)),
        (Resolution::Skip, Some(RunOutcome::Succeeded)),
        (Resolution::Failed, Some(RunOutcome::Failed)),
        (Resolution::Retry, None),
    ] {
        let mut world = World::new(simple(vec![waiting("w", &[], PlannedWait::For { ms: 60_000 })]));
        world.go_to(30);
        let answer = Command::ResolveStep { step: "w".into(), resolution, reason: "now".to_owned(), output: None };
        world.command(&answer);
        assert_eq!(world.ended(), outcome);
        let again = StepNext::Waiting { signal: None, ends_at: Some(at(90)), wake_at: at(90) };
        assert!(outcome.is_some() || *world.state("w") == StepState::from(&again));
    }
}

#[test]
fn a_wait_is_cancelled_at_once_and_goes_on_while_the_run_is_paused() {
    let run = || {
        let (w, v) = (PlannedWait::For { ms: 60_000 }, common::for_signal("go", None));
        World::new(plan(vec![phase("only")], vec![waiting("w", &[], w), waiting("v", &[], v), step("b", &[0, 1])]))
    };
    let mut world = run();
    world.command(&Command::Cancel { reason: "enough".to_owned(), force: false });
    assert_eq!(world.ended(), Some(RunOutcome::Cancelled));

    let mut world = run();
    world.command(&Command::Pause { reason: "lunch".to_owned() });
    world.go_to(60).tick();
    world.command(&signal("go", json!({})));
    assert_eq!(
        (world.state("w"), world.state("v"), world.places().len()),
        (&StepState::Succeeded, &StepState::Succeeded, 0)
    );
    world.command(&Command::Resume { reason: "back".to_owned() });
    assert_eq!(world.places().len(), 1);
}

fn wall_clock(world: &mut World, ahead_s: i64) -> Vec<Event> {
    world.command(&Command::FollowWallClock { ahead_ms: ahead_s * 1_000 })
}

#[test]
fn a_moment_is_one_of_the_wall_clock_wherever_that_is() {
    let mut world = World::new(simple(vec![waiting("w", &[], common::for_moment(3_600))]));
    assert_eq!(wall_clock(&mut world, 1_000), [Event::WallClockMoved { ahead_ms: 1_000_000 }]);
    assert_eq!(wall_clock(&mut world, 1_000), [], "it is told once");
    assert_eq!(world.run.rest().unwrap(), Rest { until: at(1_260), wall_ahead_ms: Some(1_000_000) });
    let milestone = world.run.phases[0].milestone.clone();
    wall_clock(&mut world, -600);
    assert_eq!(world.run.phases[0].milestone, milestone, "a deadline is a duration from the start");
    let said = |world: &World| {
        let waiting = world.run.explain(world.now).remove(0);
        (waiting.waits_for, waiting.next_at)
    };
    let moment = "its moment, 2026-01-07T11:00:00Z by the wall clock".to_owned();
    assert_eq!(said(&world), (moment, Some(at(4_200))));
    assert!(
        !world.go_to(3_600).tick().iter().any(|e| matches!(e, Event::StepMoved { .. })),
        "that is ten minutes early"
    );
    wall_clock(&mut world, 0);
    assert_eq!(said(&world), ("its moment".to_owned(), Some(at(3_600))));
    world.tick();
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn a_later_moment_goes_by_where_the_wall_clock_was_last() {
    let next = waiting("next", &[0], common::for_moment(600));
    let soak = waiting("soak", &[], PlannedWait::For { ms: 60_000 });
    let mut world = World::new(simple(vec![waiting("w", &[], common::for_moment(60)), next, soak]));
    let soaks = world.state("soak").clone();
    wall_clock(&mut world, 120);
    assert_eq!(*world.state("soak"), soaks, "a time is no moment");
    world.tick();
    let waits = StepState::Waiting { signal: None, ends_at: Some(at(600)), wake_at: at(480) };
    assert_eq!((world.state("w"), world.state("next")), (&StepState::Succeeded, &waits));
    world.go_to(480).tick();
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
    let ended = world.try_command(&Command::FollowWallClock { ahead_ms: 0 });
    assert_eq!(ended, Ok(vec![]), "nothing waits for it");
}

/// A wall clock may be set to anything.
#[test]
fn a_wall_clock_that_is_far_off_breaks_nothing() {
    for ahead_ms in [i64::MIN, i64::MAX] {
        let mut world = World::new(simple(vec![waiting("w", &[], common::for_moment(60))]));
        world.command(&Command::FollowWallClock { ahead_ms });
        world.go_to(3_600).tick();
        assert_eq!(world.ended().is_some(), ahead_ms > 0);
        wall_clock(&mut world, 0);
        world.tick();
        assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
    }
}
