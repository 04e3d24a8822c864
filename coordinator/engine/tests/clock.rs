//! The announced moment comes, and the announced thing happens.

mod common;

use common::{World, at, failed, ok, phase, plan, simple, step};
use jiff::{SignedDuration, Timestamp};
use muster_engine::{
    plan::OnFailure,
    run::{
        Command, Event, Wake, WakeUp,
        event::{FailureKind, RunOutcome, Subject},
        state::MilestoneState,
    },
};
use serde_json::json;

/// Goes to the announced moment; a moment earlier nothing happens.
fn go_to_wake_up(world: &mut World) -> (WakeUp, Vec<Event>) {
    let wake = world.run.wake_up(world.now).expect("an open run has a wake-up");
    world.now = wake.at - SignedDuration::from_millis(1);
    assert_eq!(world.tick(), [], "too early for {}", wake.why);
    world.now = wake.at;
    let events = world.tick();
    (wake, events)
}

#[test]
fn a_milestone_becomes_at_risk_then_missed_then_reached_late() {
    let mut only = phase("only");
    only.deadline_ms = Some(100_000);
    let mut world = World::new(plan(vec![only], vec![step("a", &[])]));
    let (wake, events) = go_to_wake_up(&mut world);
    assert_eq!((wake.at, wake.why), (at(70), Wake::MilestoneAtRisk("only".into())));
    assert_eq!(events, [Event::MilestoneAtRisk { phase: "only".into() }]);
    let (wake, events) = go_to_wake_up(&mut world);
    assert_eq!((wake.at, wake.why), (at(100), Wake::MilestoneDue("only".into())));
    assert_eq!(events, [Event::MilestoneMissed { phase: "only".into() }]);
    let events = world.succeed("a");
    assert!(events.contains(&Event::MilestoneReached { phase: "only".into(), late: true }));
    assert_eq!(world.milestone(0), MilestoneState::ReachedLate);
    assert_eq!(world.ended(), Some(RunOutcome::Succeeded));
}

#[test]
fn a_deadline_counts_from_the_runs_start_also_for_a_later_phase() {
    let mut second = phase("second");
    second.deadline_ms = Some(100_000);
    let mut b = step("b", &[]);
    b.phase = 1;
    let mut world = World::new(plan(vec![phase("first"), second], vec![step("a", &[]), b]));
    world.go_to(100);
    assert_eq!(world.tick(), [Event::MilestoneMissed { phase: "second".into() }]);
}

#[test]
fn a_step_that_no_agent_takes_reminds_its_owner_for_ever() {
    let mut only = phase("only");
    only.deadline_ms = None;
    let mut world = World::new(plan(vec![only], vec![step("a", &[])]));
    for n in 1..=3 {
        let (wake, events) = go_to_wake_up(&mut world);
        assert_eq!((wake.at, wake.why), (at(n * 900), Wake::NoAgent("a".into())));
        let subject = Subject::Step { step: "a".into() };
        assert_eq!(events, [Event::OwnerReminded { subject, next_at: at((n + 1) * 900) }]);
    }
    assert_eq!(world.places().len(), 1, "and it still waits");
}

#[test]
fn a_step_that_no_agent_takes_in_time_is_given_up_and_its_owner_was_told_before() {
    let mut a = step("a", &[]);
    a.queue_timeout_ms = Some(1_000_000);
    a.on_failure = OnFailure::Pause;
    let mut world = World::new(simple(vec![a]));
    let (wake, events) = go_to_wake_up(&mut world);
    assert_eq!(wake.at, at(900));
    assert!(matches!(events[..], [Event::OwnerReminded { .. }]));
    let (wake, _) = go_to_wake_up(&mut world);
    assert_eq!(wake.at, at(1000));
    assert!(world.is_asking("a"));
}

#[test]
fn a_backoff_is_announced_and_at_its_end_the_step_can_be_placed() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    world.assign("a");
    world.finish("a", failed(FailureKind::Retry));
    let wake = world.run.wake_up(world.now).unwrap();
    assert_eq!(wake.why, Wake::MayStart("a".into()));
    let waiting = world.run.explain(world.now);
    assert_eq!(waiting[0].next_at, Some(wake.at));
    assert!(waiting[0].waits_for.contains("it broke"), "{waiting:?}");
    world.now = wake.at;
    assert_eq!(world.places().len(), 1);
    assert_ne!(world.run.wake_up(world.now).unwrap().at, wake.at, "what is outstanding is not announced again");
}

#[test]
fn a_question_is_asked_again_every_fifteen_minutes() {
    let mut world = World::new(simple(vec![step("a", &[])]));
    world.go_to(10).assign("a");
    world.finish("a", failed(FailureKind::NeedsPerson));
    let (wake, events) = go_to_wake_up(&mut world);
    let subject = Subject::Step { step: "a".into() };
    assert_eq!((wake.at, wake.why), (at(910), Wake::Reminder(subject.clone())));
    assert_eq!(events, [Event::OwnerReminded { subject, next_at: at(1810) }]);
}

#[test]
fn explain_names_everything_that_a_run_waits_for() {
    let mut c = step("c", &[]);
    c.agent.labels.insert("site".to_owned(), "eu".to_owned());
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[]), c, step("later", &[0])]));
    world.assign("a");
    world.finish("a", failed(FailureKind::NeedsPerson));
    world.assign("b");
    let lines: Vec<_> = (world.run.explain(world.now).iter())
        .map(|w| format!("{}: {} / {} / {}", w.subject, w.waits_for, w.on_whom, w.next_action))
        .collect();
    assert_eq!(
        lines,
        [
            "step a: it broke / devops / the owner is reminded",
            "step b: the end of its work (attempt 1) / agent infra-1 (instance infra-1-a) / the attempt counts as ended",
            "step c: an agent that offers test.do 1.0.0 / agents of role infra, site=eu / the owner is reminded",
            "milestone of phase only: 4 of 4 steps of phase only to end / the steps of its phase / it becomes at risk",
        ]
    );
    let next: Vec<Option<Timestamp>> = world.run.explain(world.now).iter().map(|w| w.next_at).collect();
    assert_eq!(next, [Some(at(900)), Some(at(640)), Some(at(900)), Some(at(1260))]);
    world.command(&Command::Pause { reason: "a look first".to_owned() });
    let paused = &world.run.explain(world.now)[0];
    assert_eq!((paused.waits_for.as_str(), paused.on_whom.as_str()), ("the run is paused: a look first", "devops"));
    world.command(&Command::Cancel { reason: "x".to_owned(), force: true });
    assert_eq!(world.run.explain(world.now), []);
}

#[test]
fn outputs_are_worked_out_at_the_end() {
    let mut plan = simple(vec![step("a", &[])]);
    plan.outputs.insert("port".to_owned(), "steps.a.output.port".to_owned());
    plan.outputs.insert("gone".to_owned(), "steps.a.output.missing".to_owned());
    let mut world = World::new(plan);
    world.assign("a");
    let events = world.finish("a", ok(json!({ "port": 5432 })));
    assert_eq!(world.run.outputs.as_deref(), Some(&json!({ "port": 5432 })));
    let Some(Event::RunEnded { reason, .. }) = events.last() else { panic!("the run ends") };
    assert!(reason.contains("output gone has no value"), "{reason}");
}
