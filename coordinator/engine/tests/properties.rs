//! Random plans, random commands, whether they make sense or not: what always holds.

mod common;

use std::sync::Arc;

use common::{World, moves, phase, plan, step, verify};
use jiff::SignedDuration;
use muster_engine::{
    plan::{ActionScope, OnCancel, OnFailure, OnLost, Plan, PlannedUndo, PlannedWait},
    run::{Command, Event, Rejection, Run, event::Purpose, state::StepState},
};
use proptest::prelude::*;
use serde_json::json;

/// What a step is like, in a few numbers.
type Knobs = (u8, u8, u8, u8, u8);

fn plans() -> impl Strategy<Value = Plan> {
    let knobs = prop::collection::vec((0..32u8, 0..3u8, 0..3u8, 0..5u8, 0..128u8), 1..=5);
    (knobs, any::<bool>(), 0..4u8).prop_map(|(knobs, undo, gate)| build(&knobs, undo, gate))
}

fn build(knobs: &[Knobs], undo_on_cancel: bool, gate: u8) -> Plan {
    let two_phases = knobs.len() > 2;
    let mut steps = Vec::new();
    for (i, (edges, on_failure, on_lost, undo, flags)) in knobs.iter().enumerate() {
        let needs: Vec<_> = (0..i).filter(|n| edges >> n & 1 == 1).collect();
        let mut step = step(["a", "b", "c", "d", "e"][i], &needs);
        step.phase = usize::from(two_phases && i >= 2);
        step.on_failure = [OnFailure::Undo, OnFailure::Pause, OnFailure::Continue][usize::from(*on_failure)];
        // Five steps need four bits.
        step.always = edges & 0b1_0010 == 0b1_0000;
        step.critical = *on_failure == 0 || flags & 3 != 1;
        step.on_lost = [OnLost::Probe, OnLost::Retry, OnLost::Ask][usize::from(*on_lost)];
        step.undo = match undo {
            0 | 1 => PlannedUndo::Auto,
            2 => PlannedUndo::Action { action: common::action("test.revert"), with: json!({}) },
            3 => PlannedUndo::Irreversible,
            _ => PlannedUndo::Nothing,
        };
        step.action.facts.idempotent = flags & 1 == 0;
        step.action.facts.checkable = flags & 2 == 0;
        step.action.facts.concurrent_safe = flags & 0b1100 == 0b100;
        step.action.facts.scope = if flags & 4 == 0 { ActionScope::Target } else { ActionScope::Host };
        step.verify = (flags & 8 != 0).then(|| verify("output.fine", 10_000, 5_000));
        step.when = (flags & 16 != 0).then(|| "inputs.environment != 'dev'".to_owned());
        step.queue_timeout_ms = (flags & 3 == 3).then_some(1_200_000);
        step.retry.max_attempts = 2;
        match flags >> 5 {
            1 if flags % 4 == 0 => {
                common::waits(&mut step, PlannedWait::Until { moment: "{{ inputs.environment }}".to_owned() });
            }
            1 if flags % 4 == 1 => common::waits(&mut step, common::for_moment(900)),
            2 => common::waits(&mut step, PlannedWait::For { ms: 120_000 }),
            3 => common::waits(&mut step, common::for_signal("go", Some(600_000))),
            _ => {}
        }
        if step.wait.is_some() {
            step.verify = None;
        }
        steps.push(step);
    }
    let mut phases = vec![phase("first")];
    if two_phases {
        phases.push(phase("second"));
    }
    phases[0].gate = match gate {
        0 | 1 => None,
        2 => Some(common::gate(&["inputs.environment == 'staging'"], &[])),
        _ => Some(common::gate(&["steps.a.output.ok"], &[])),
    };
    let mut plan = plan(phases, steps);
    plan.on_cancel = if undo_on_cancel { OnCancel::Undo } else { OnCancel::Keep };
    plan
}

/// One of all the moves there are; half of the time one that gets on.
fn pick(world: &World, choice: u16) -> Option<Command> {
    let (kind, n) = (choice % 16, usize::from(choice / 16));
    let all = match kind {
        0..8 => moves::good(world),
        8..11 => moves::disturbances(world),
        11..13 => moves::oddities(world),
        13 => moves::answers(world),
        14 => moves::people(world),
        _ => vec![Command::Tick],
    };
    (!all.is_empty()).then(|| all[n % all.len()].clone())
}

/// Drive a world; `World` checks every turn against the fold of its events, and all invariants.
fn drive(plan: Plan, choices: &[u16]) -> World {
    let mut world = World::new(plan);
    for choice in choices {
        if choice % 5 == 0 {
            world.now += SignedDuration::from_secs(i64::from(choice / 64));
        }
        if choice % 16 == 15
            && let Some(wake) = world.run.wake_up(world.now)
        {
            world.now = wake.at.max(world.now);
        }
        let Some(command) = pick(&world, *choice) else { continue };
        if let Err(Rejection::Broken(corrupt)) = world.try_command(&command) {
            panic!("{corrupt} at {command:?}\n{}", world.story());
        }
    }
    world
}

fn replay(world: &World) -> Run {
    let Event::RunStarted(started) = &*world.history[0].1 else { panic!("the first event starts the run") };
    let mut run = Run::start(world.history[0].0, &"person/operator".into(), started);
    for (at, event) in &world.history[1..] {
        run.apply(*at, event).expect("what was journalled can be replayed");
    }
    run
}

fn choices() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(any::<u16>(), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_history_gives_the_same_state_again_also_through_json(plan in plans(), choices in choices()) {
        let world = drive(plan, &choices);
        prop_assert_eq!(&replay(&world), &world.run);
        let mut again = world.clone();
        for (_, event) in &mut again.history {
            let json = serde_json::to_vec(&**event).unwrap();
            *event = Arc::new(serde_json::from_slice(&json).unwrap());
        }
        prop_assert_eq!(&again.history, &world.history);
        let snapshot: Run = serde_json::from_slice(&serde_json::to_vec(&world.run).unwrap()).unwrap();
        prop_assert_eq!(&snapshot, &world.run);
        prop_assert_eq!(snapshot.outstanding(world.now), world.run.outstanding(world.now));
    }

    /// Law 6: without any agent or person, the clock alone brings every run to its end, or to where it waits for a named one.
    #[test]
    fn nothing_runs_for_ever(plan in plans(), choices in choices()) {
        let mut world = drive(plan, &choices);
        for _ in 0..100 {
            let Some(wake) = world.run.wake_up(world.now) else { break };
            world.now = wake.at.max(world.now);
            // A wait that begins may be over already, if it is for a moment.
            let ticks = (0..20).take_while(|_| !world.tick().is_empty()).count();
            prop_assert!(ticks < 20, "the clock does not come to rest\n{}", world.story());
            if let Some(next) = world.run.wake_up(world.now) {
                prop_assert!(next.at > world.now, "{} is announced again and again\n{}", next.why, world.story());
            }
        }
        if world.ended().is_none() {
            prop_assert!(moves::live(&world.run).is_empty(), "an attempt outlives its clock\n{}", world.story());
            let waiting = world.run.explain(world.now);
            let named = |w: &muster_engine::run::Waiting| !w.on_whom.is_empty() && w.next_at.is_some_and(|at| at > world.now);
            prop_assert!(waiting.iter().any(named), "nobody is told\n{}", world.story());
        }
    }

    /// With willing agents, and people who leave out what they are asked about, every run ends.
    #[test]
    fn every_run_can_be_brought_to_its_end(plan in plans(), choices in choices()) {
        let mut world = drive(plan, &choices);
        for _ in 0..400 {
            if world.ended().is_some() {
                break;
            }
            let next = moves::good(&world).into_iter().chain(moves::answers(&world).into_iter().rev()).next();
            match next {
                // A gate that can't be judged pauses again and again; a run that is stopped already has none.
                Some(Command::Resume { .. })
                    if world.run.state == muster_engine::run::state::RunState::Running
                        && world.run.pause.as_ref().is_some_and(|p| p.question.is_some()) =>
                {
                    world.command(&Command::Cancel { reason: "no".to_owned(), force: false });
                }
                Some(command) => drop(world.command(&command)),
                None => {
                    let wake = world.run.wake_up(world.now).expect("an open run has a wake-up");
                    world.now = wake.at.max(world.now);
                    world.tick();
                }
            }
        }
        prop_assert!(world.ended().is_some(), "it does not end:\n{}", world.story());
    }

    /// A wall clock that is set moves what waits for a moment of it, by as much, and nothing else.
    #[test]
    fn the_wall_clock_moves_moments_and_nothing_else(plan in plans(), choices in choices(), ahead_s in -90_000..90_000_i64) {
        let mut world = drive(plan, &choices);
        let before = world.run.clone();
        let events = world.command(&Command::FollowWallClock { ahead_ms: ahead_s * 1_000 });
        prop_assert_eq!(events.is_empty(), !before.waits_for_moment() || before.wall_ahead_ms == ahead_s * 1_000);
        prop_assert_eq!((&world.run.phases, &world.run.pause), (&before.phases, &before.pause));
        for (i, planned) in world.run.plan.steps.iter().enumerate() {
            let step = &world.run.steps[i];
            let until = matches!(planned.wait, Some(PlannedWait::Until { .. }));
            if let (true, StepState::Waiting { ends_at: Some(ends), wake_at, .. }) = (until, &step.state) {
                prop_assert_eq!(*ends, *wake_at + SignedDuration::from_secs(ahead_s));
            } else {
                prop_assert_eq!(step, &before.steps[i]);
            }
        }
    }

    /// The journal may say a command twice (a report sent again): the second time changes nothing but evidence.
    #[test]
    fn a_report_that_comes_again_changes_nothing(plan in plans(), choices in choices()) {
        let mut world = drive(plan, &choices);
        for (fence, _) in moves::live(&world.run) {
            let report = Command::Finish { fence, outcome: common::ok(json!({ "fine": true })) };
            if world.try_command(&report).is_ok() {
                let before = world.run.clone();
                let events = world.command(&report);
                let evidence = events.iter().all(|e| matches!(e, Event::ReportArrivedStale { .. }));
                prop_assert!(evidence, "{events:?}");
                prop_assert_eq!(&world.run.steps, &before.steps);
            }
        }
    }

    /// What was changed is undone or asked about when a run fails: no `prepared` data is left behind silently, and nothing is
    /// undone before what was built on it.
    #[test]
    fn a_walk_back_leaves_nothing_out(plan in plans(), choices in choices()) {
        let world = drive(plan, &choices);
        for (_, event) in &world.history {
            let Event::RollbackStarted { steps, .. } = &**event else { continue };
            let order: Vec<_> = steps.iter().map(|s| world.run.step_index(s).unwrap()).collect();
            for (n, i) in order.iter().enumerate() {
                // What is done always may be older than a later try of what it needs.
                let planned = &world.run.plan.steps[*i];
                let needed_before = !planned.always && order[..n].iter().any(|earlier| planned.needs.contains(earlier));
                prop_assert!(!needed_before, "what is needed is undone first\n{}", world.story());
            }
        }
        let walked = world.history.iter().any(|(_, e)| matches!(**e, Event::RollbackStarted { .. }));
        let forced = world.run.cancel.as_ref().is_some_and(|c| c.force);
        if walked && !forced && world.ended().is_some() {
            for (step, planned) in world.run.steps.iter().zip(&world.run.plan.steps) {
                let resolved = world.history.iter().any(|(_, e)| {
                    matches!(&**e, Event::StepResolved { step, .. } if *step == planned.id)
                });
                let came_last = world.history.iter().any(|(_, e)| {
                    matches!(&**e, Event::FinishStarted { steps, .. } if steps.contains(&planned.id))
                });
                if planned.undo == PlannedUndo::Auto && !came_last && !step.prepared.is_empty() {
                    prop_assert!(resolved, "{} was left changed\n{}", planned.id, world.story());
                    prop_assert!(!matches!(step.state, StepState::Undone));
                }
                let undone = step.attempts.iter().any(|a| a.purpose == Purpose::Undo);
                prop_assert!(!undone || planned.undo != PlannedUndo::Irreversible);
            }
        }
    }
}
