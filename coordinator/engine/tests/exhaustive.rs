//! Every order of reports, losses, duplicates, timeouts and cancellations, for every DAG of two and three steps, within a
//! budget of things that go wrong. Invariants hold after every event (see `common`), and every state has a way out.

mod common;

use std::{
    collections::{BTreeSet, VecDeque},
    io::Write as _,
};

use common::{World, moves, phase, plan, step, verify};
use muster_engine::{
    plan::{OnCancel, OnFailure, Plan, PlannedUndo, PlannedWait},
    run::{Command, Rejection, state::StepState},
};

/// A state to be looked at: how it is, what may still go wrong, and how often a person may still cancel, pause or accept a loss.
struct Visit {
    world: World,
    disturbances: u32,
    cancels: u32,
}

/// How many distinct states were seen, and how many ends.
#[derive(Default)]
struct Seen {
    states: usize,
    moves: usize,
    ends: usize,
}

/// All sets of edges `i → j` with `i < j`.
fn dags(steps: usize) -> Vec<Vec<Vec<usize>>> {
    let pairs: Vec<_> = (0..steps).flat_map(|j| (0..j).map(move |i| (i, j))).collect();
    let dag = |bits: usize| {
        let mut needs = vec![Vec::new(); steps];
        for (n, (i, j)) in pairs.iter().enumerate() {
            if bits >> n & 1 == 1 {
                needs[*j].push(*i);
            }
        }
        needs
    };
    (0..1 << pairs.len()).map(dag).collect()
}

fn planned(needs: &[Vec<usize>], on_failure: OnFailure, on_cancel: OnCancel) -> Plan {
    let mut steps: Vec<_> = needs.iter().enumerate().map(|(i, n)| step(["a", "b", "c"][i], n)).collect();
    for step in &mut steps {
        step.on_failure = on_failure;
        step.retry.max_attempts = 2;
    }
    let mut plan = plan(vec![phase("only")], steps);
    plan.on_cancel = on_cancel;
    plan
}

fn explore(plan: Plan, disturbances: u32, cancels: u32) -> Seen {
    let mut seen = Seen::default();
    let mut known = BTreeSet::new();
    let mut open = VecDeque::from([Visit { world: World::new(plan), disturbances, cancels }]);
    while let Some(visit) = open.pop_front() {
        if !known.insert(key(&visit)) {
            continue;
        }
        seen.states += 1;
        if visit.world.ended().is_some() {
            seen.ends += 1;
            continue;
        }
        let before = open.len();
        successors(&visit, &mut open, &mut seen);
        assert!(open.len() > before, "there is no way out of this:\n{}", visit.world.story());
    }
    assert!(seen.ends > 0);
    seen
}

fn successors(visit: &Visit, open: &mut VecDeque<Visit>, seen: &mut Seen) {
    let (disturbances, cancels) = (visit.disturbances, visit.cancels);
    let mut follow = |commands: Vec<Command>, disturbances, cancels| {
        for command in commands {
            let mut world = visit.world.clone();
            seen.moves += 1;
            match world.try_command(&command) {
                Ok(events) if events.is_empty() => {}
                Ok(_) => open.push_back(Visit { world, disturbances, cancels }),
                Err(Rejection::Broken(corrupt)) => panic!("{command:?}: {corrupt}"),
                Err(_) => {}
            }
        }
    };
    follow(moves::good(&visit.world), disturbances, cancels);
    follow(moves::answers(&visit.world), disturbances, cancels);
    if disturbances > 0 {
        follow(moves::disturbances(&visit.world), disturbances - 1, cancels);
    }
    if cancels > 0 {
        let reason = || "a person said so".to_owned();
        let asked = vec![
            Command::Cancel { reason: reason(), force: false },
            Command::Cancel { reason: reason(), force: true },
            Command::Pause { reason: reason() },
            Command::AcceptLoss,
        ];
        follow(asked, disturbances, cancels - 1);
    }
    // The clock moves only where nothing else can happen soon, or when an attempt is to end by it.
    let mut world = visit.world.clone();
    if let Some(wake) = world.run.wake_up(world.now) {
        world.now = wake.at.max(world.now);
        seen.moves += 1;
        world.tick();
        let spent = u32::from(!moves::live(&visit.world.run).is_empty());
        if disturbances >= spent {
            open.push_back(Visit { world, disturbances: disturbances - spent, cancels });
        }
    }
}

/// Two states are the same when everything but the clock is.
fn key(visit: &Visit) -> String {
    use std::fmt::Write;
    let run = &visit.world.run;
    let places = visit.world.places().len();
    let budget = (visit.disturbances, visit.cancels);
    let state = std::mem::discriminant(&run.state);
    let (paused, forced) = (run.pause.is_some(), run.cancel.as_ref().is_some_and(|c| c.force));
    let mut key = format!(
        "{budget:?}{places}{state:?}{paused}{forced}{}{:?}{}",
        run.attempts_from, run.signals, run.wall_ahead_ms
    );
    for step in &run.steps {
        let (kind, purpose) = match &step.state {
            StepState::Queued { purpose, .. } => (0, Some(*purpose)),
            StepState::Pending => (1, None),
            StepState::Active => (2, None),
            StepState::Asking { kind, .. } => (3 + *kind as u8, None),
            StepState::Succeeded => (10, None),
            StepState::Failed { .. } => (11, None),
            StepState::Skipped { .. } => (12, None),
            StepState::Cancelled => (13, None),
            StepState::Undone => (14, None),
            StepState::Waiting { .. } => (15, None),
        };
        write!(key, "|{kind}{purpose:?}{:?}{:?}", step.done_order, step.prepared.keys())
            .expect("a string takes everything");
        for attempt in &step.attempts {
            write!(
                key,
                ";{:?}{}{:?}",
                attempt.purpose,
                attempt.lost_at.is_some(),
                attempt.end.as_ref().map(|(_, e)| e)
            )
            .expect("a string takes everything");
        }
    }
    if let Some(rollback) = &run.rollback {
        write!(key, "{:?}", rollback.remaining).expect("a string takes everything");
    }
    key
}

/// Past the test's own output, which nobody sees of a test that passes: how much was looked at is a result.
fn report(what: &str, seen: &Seen) {
    let line = format!("{what}: {} distinct states, {} ends, {} moves\n", seen.states, seen.ends, seen.moves);
    std::io::stderr().write_all(line.as_bytes()).expect("stderr takes everything");
}

#[test]
fn one_step_alone() {
    for on_failure in [OnFailure::Undo, OnFailure::Pause, OnFailure::Continue] {
        for on_cancel in [OnCancel::Keep, OnCancel::Undo] {
            for needs in dags(1) {
                let seen = explore(planned(&needs, on_failure, on_cancel), 3, 2);
                report(&format!("one step {on_failure:?} {on_cancel:?}"), &seen);
                assert!(seen.states > 100, "the search has looked at too little");
            }
        }
    }
}

#[test]
fn all_dags_of_two_steps() {
    for needs in dags(2) {
        // Two independent steps have by far the most orders; one thing that goes wrong is enough for most of their policies.
        let chained = !needs[1].is_empty();
        for on_failure in [OnFailure::Undo, OnFailure::Pause, OnFailure::Continue] {
            for on_cancel in [OnCancel::Keep, OnCancel::Undo] {
                let seen = explore(planned(&needs, on_failure, on_cancel), if chained { 2 } else { 1 }, 1);
                report(&format!("{needs:?} {on_failure:?} {on_cancel:?}"), &seen);
                assert!(seen.states > 100, "the search has looked at too little");
            }
        }
    }
}

#[test]
fn all_dags_of_three_steps() {
    for needs in dags(3) {
        let cancels = u32::from(needs.iter().any(|n| !n.is_empty()));
        let seen = explore(planned(&needs, OnFailure::Undo, OnCancel::Undo), 1, cancels);
        report(&format!("{needs:?}"), &seen);
        assert!(seen.states > 100, "the search has looked at too little");
    }
    for needs in dags(3).into_iter().filter(|needs| needs.iter().filter(|n| !n.is_empty()).count() == 2) {
        for on_failure in [OnFailure::Pause, OnFailure::Continue] {
            let seen = explore(planned(&needs, on_failure, OnCancel::Keep), 1, 1);
            report(&format!("{needs:?} {on_failure:?} Keep"), &seen);
        }
    }
}

#[test]
fn a_step_with_verification_and_one_with_an_undo_of_its_own() {
    let mut plan = planned(&[vec![], vec![0]], OnFailure::Undo, OnCancel::Undo);
    plan.steps[0].verify = Some(verify("output.fine", 10_000, 5_000));
    plan.steps[0].action.facts.idempotent = false;
    plan.steps[1].undo = PlannedUndo::Action { action: common::action("test.revert"), with: serde_json::json!({}) };
    let seen = explore(plan, 2, 1);
    report("verify, custom undo", &seen);
}

#[test]
fn a_step_that_waits_for_a_signal_and_one_that_waits_for_a_time() {
    let mut plan = planned(&[vec![], vec![0], vec![1]], OnFailure::Undo, OnCancel::Undo);
    common::waits(&mut plan.steps[1], common::for_signal("go", Some(1_000_000)));
    common::waits(&mut plan.steps[2], PlannedWait::For { ms: 60_000 });
    let seen = explore(plan, 1, 1);
    report("waits", &seen);
    assert!(seen.states > 100, "the search has looked at too little");
}

#[test]
fn steps_that_wait_for_a_moment_while_the_wall_clock_is_set() {
    let mut plan = planned(&[vec![], vec![0], vec![]], OnFailure::Undo, OnCancel::Undo);
    common::waits(&mut plan.steps[1], common::for_moment(5_000));
    common::waits(&mut plan.steps[2], common::for_moment(60));
    let seen = explore(plan, 2, 1);
    report("moments", &seen);
    assert!(seen.states > 100, "the search has looked at too little");
}

#[test]
fn steps_that_are_done_whatever_happens() {
    for on_failure in [OnFailure::Undo, OnFailure::Pause, OnFailure::Continue] {
        let mut plan = planned(&[vec![], vec![0], vec![1]], on_failure, OnCancel::Undo);
        plan.steps[1].always = true;
        plan.steps[2].always = on_failure != OnFailure::Continue;
        let seen = explore(plan, 1, 1);
        report(&format!("always {on_failure:?}"), &seen);
        assert!(seen.states > 100, "the search has looked at too little");
    }
    let mut plan = planned(&[vec![], vec![0]], OnFailure::Undo, OnCancel::Undo);
    plan.steps[1].always = true;
    plan.steps[1].action.facts.idempotent = false;
    report("always, not idempotent", &explore(plan, 2, 2));
}

#[test]
fn steps_that_may_be_done_twice_at_once() {
    let mut plan = planned(&[vec![], vec![0]], OnFailure::Undo, OnCancel::Undo);
    plan.steps[1].action.facts.concurrent_safe = true;
    plan.steps[0].verify = Some(verify("output.fine", 10_000, 5_000));
    if let Some(verify) = &mut plan.steps[0].verify {
        verify.action.facts.concurrent_safe = true;
    }
    let seen = explore(plan, 2, 1);
    report("concurrent safe", &seen);
    assert!(seen.states > 100, "the search has looked at too little");
}
