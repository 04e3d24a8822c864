//! The announced moment comes, and the announced thing happens.

mod common;

use common::{World, at, failed, ok, phase, plan, simple, step};
use jiff::{SignedDuration, Timestamp};
use muster_engine::{
    plan::{OnCancel, OnFailure},
    run::{
        Command, Event, Wake, WakeUp,
        event::{FailureKind, RunOutcome, Subject},
        state::{MilestoneState, RunState},
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
    assert_eq!(
        said(&world)[0],
        "step a: the next try of its work (it broke) / the clock / it is tried again / \
         nothing has to be done; not to wait for it, resolve the step"
    );
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

/// What waits, for what, on whom, what is next, and what a person can do.
fn said(world: &World) -> Vec<String> {
    let waiting = world.run.explain(world.now).into_iter();
    waiting
        .map(|w| format!("{}: {} / {} / {} / {}", w.subject, w.waits_for, w.on_whom, w.next_action, w.hint))
        .collect()
}

#[test]
fn in_a_paused_run_a_queued_step_waits_for_the_run_to_go_on_and_for_no_agent() {
    for backoff in [false, true] {
        let mut world = World::new(simple(vec![step("a", &[])]));
        if backoff {
            world.assign("a");
            world.finish("a", failed(FailureKind::Retry));
        }
        world.command(&Command::Pause { reason: "a look first".to_owned() });
        let why = if backoff { " (it broke)" } else { "" };
        assert_eq!(
            said(&world)[1],
            format!(
                "step a: the run to go on{why} / devops / nothing is assigned while the run is paused / \
                 muster run resume {} --reason …",
                world.run.id
            )
        );
        assert_eq!(world.run.explain(world.now)[1].next_at, None);
    }
}

#[test]
fn a_milestone_of_a_run_that_is_stopped_can_only_be_missed() {
    let stopped = |on_cancel: OnCancel, deadline_ms: Option<u64>| {
        let mut only = phase("only");
        only.deadline_ms = deadline_ms;
        let mut plan = plan(vec![only], vec![step("a", &[]), step("b", &[])]);
        plan.on_cancel = on_cancel;
        let mut world = World::new(plan);
        world.change("a");
        world.assign("b");
        world.command(&Command::Cancel { reason: "enough".to_owned(), force: false });
        world
    };
    let mut world = stopped(OnCancel::Undo, Some(1_800_000));
    assert_eq!(
        said(&world),
        [
            "step b: the end of its work (attempt 1) / agent infra-1 / \
             the agent is told to stop; without a word from it, the attempt counts as ended / nothing has to be done",
            "milestone of phase only: the end of the run, which is being cancelled: it can only be missed / \
             the steps of the run / it is missed: when the run ends, at the latest / see what the steps wait for",
        ]
    );
    assert_eq!(world.run.explain(world.now)[1].next_at, Some(at(1_800)));
    world.finish("b", ok(json!({})));
    assert_eq!(world.run.state, RunState::RollingBack);
    assert!(said(&world)[1].contains("which is walked back: it can only be missed"), "{:?}", said(&world));
    world.go_to(1_800).tick();
    world.tick();
    assert_eq!(said(&world).len(), 1, "a milestone that is missed waits for nothing more");
    let world = stopped(OnCancel::Keep, None);
    let milestone = world.run.explain(world.now).pop().unwrap();
    assert_eq!((milestone.next_action.as_str(), milestone.next_at), ("it is missed when the run ends", None));
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
            "step b: the end of its work (attempt 1) / agent infra-1 / the attempt counts as ended",
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
