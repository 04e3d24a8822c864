//! The way of a run that nothing happens to.

mod common;

use common::{World, at, gate, ok, phase, plan, simple, step};
use muster_engine::run::{
    Event, Outstanding,
    event::{PhaseOutcome, Purpose, RunOutcome, StepNext},
    state::MilestoneState,
};
use serde_json::json;

fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(Event::kind).collect()
}

#[test]
fn a_run_goes_from_step_to_step_to_its_milestone() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[0])]));
    assert_eq!(
        kinds(&world.history.iter().map(|(_, e)| Event::clone(e)).collect::<Vec<_>>()),
        ["run_started", "phase_started"]
    );
    assert_eq!(world.places(), [("a".into(), Purpose::Run)]);
    world.assign("a");
    assert_eq!(world.places(), []);
    assert_eq!(kinds(&world.finish("a", ok(json!({ "x": 1 })))), ["attempt_ended"]);
    assert_eq!(world.places(), [("b".into(), Purpose::Run)]);
    world.go_to(60).assign("b");
    let end = world.finish("b", ok(json!({})));
    assert_eq!(kinds(&end), ["attempt_ended", "phase_ended", "milestone_reached", "run_ended"]);
    assert_eq!(world.milestone(0), MilestoneState::Reached);
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
    assert_eq!(world.run.outstanding(world.now), []);
}

#[test]
fn a_dispatch_says_all_that_a_task_needs() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    world.assign("a");
    let [Outstanding::Dispatch(task), Outstanding::WakeAt(_)] = &world.run.outstanding(world.now)[..] else {
        panic!("one task and one wake-up")
    };
    assert_eq!((task.attempt, task.purpose, task.prepare), (1, Purpose::Run, true));
    assert_eq!(*task.with, json!({ "for": "a" }));
    assert_eq!(task.dispatch_until, at(30));
    assert_eq!(world.run.outstanding(at(30)).len(), 1, "nothing is sent after dispatch_until");
}

#[test]
fn steps_side_by_side_are_placed_together_and_the_next_waits_for_both() {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[]), step("c", &[0, 1])]));
    assert_eq!(world.places().len(), 2);
    world.succeed("a");
    assert_eq!(world.places(), [("b".into(), Purpose::Run)]);
    world.succeed("b");
    assert_eq!(world.places(), [("c".into(), Purpose::Run)]);
}

#[test]
fn parameters_see_inputs_and_earlier_outputs() {
    let mut b = step("b", &[0]);
    b.with = json!({ "port": "{{ steps.a.output.port }}", "where": "in {{ inputs.environment }}" });
    let mut world = World::new(simple(vec![step("a", &[]), b]));
    world.assign("a");
    world.finish("a", ok(json!({ "port": 5432 })));
    world.assign("b");
    assert_eq!(*world.run.steps[1].attempts[0].with, json!({ "port": 5432, "where": "in staging" }));
}

#[test]
fn parameters_that_cannot_be_filled_in_fail_the_step_and_nothing_is_assigned() {
    let mut a = step("a", &[]);
    a.with = json!({ "port": "{{ inputs.port }}" });
    let mut world = World::new(simple(vec![a]));
    let command = world.assignment("a", "infra-1-a");
    let events = world.command(&command);
    assert!(matches!(&events[0], Event::StepMoved { next: StepNext::Failed { .. }, .. }), "{events:?}");
    assert_eq!(world.ended(), Some(RunOutcome::Failed));
    assert!(world.run.steps[0].attempts.is_empty());
}

#[test]
fn a_step_whose_condition_is_false_is_skipped_and_the_rest_goes_on() {
    let mut b = step("b", &[0]);
    b.when = Some("inputs.environment == 'dev'".to_owned());
    let mut c = step("c", &[1]);
    c.when = Some("inputs.environment == 'staging'".to_owned());
    let mut world = World::new(simple(vec![step("a", &[]), b, c]));
    let events = world.succeed("a");
    assert_eq!(kinds(&events), ["attempt_ended", "step_moved", "step_moved"]);
    assert_eq!(world.places(), [("c".into(), Purpose::Run)]);
    world.succeed("c");
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn phases_follow_each_other_and_one_whose_condition_is_false_is_left_out() {
    let mut second = phase("second");
    second.when = Some("steps.a.output.more".to_owned());
    let (mut b, mut c) = (step("b", &[0]), step("c", &[1]));
    (b.phase, c.phase) = (1, 2);
    let mut world = World::new(plan(vec![phase("first"), second, phase("third")], vec![step("a", &[]), b, c]));
    world.assign("a");
    let events = world.finish("a", ok(json!({ "more": false })));
    assert!(events.contains(&Event::PhaseEnded { phase: "second".into(), outcome: PhaseOutcome::Skipped }));
    assert_eq!(world.places(), [("c".into(), Purpose::Run)]);
    world.succeed("c");
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
    assert_eq!(world.milestone(1), MilestoneState::Skipped);
}

#[test]
fn a_gate_over_outputs_lets_the_phase_pass() {
    let mut only = phase("only");
    only.gate = Some(gate(&["steps.a.output.ms < 50"], &[]));
    let mut world = World::new(plan(vec![only], vec![step("a", &[])]));
    world.assign("a");
    let events = world.finish("a", ok(json!({ "ms": 12 })));
    assert_eq!(kinds(&events), ["attempt_ended", "gate_judged", "phase_ended", "milestone_reached", "run_ended"]);
}
