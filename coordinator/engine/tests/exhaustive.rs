//! Every order of what agents, the clock and people do to every DAG of up to three steps, of two attempts each, within the
//! bounds below. Invariants hold after every command (see `common`), and every state has a way out without anything more going
//! wrong. In every state, what is reported again, contradicts what is recorded, comes late (of an attempt that was lost, or
//! has ended), is of another instance, or of an attempt that never was, is answered as it should be and changes nothing; none of
//! this is bounded.
//!
//! What is bounded, since the states grow tenfold with each more, and the whole has to be done in two minutes:
//! - how much goes wrong: failures, losses, denials, clocks that run out under an attempt, restarts of clocks, comebacks of
//!   instances that hold nothing or too late; and how often a person steps in unasked. Answers to questions, and the end of a
//!   pause, are not bounded. One step: three go wrong, or two and a person steps in once (twice with `undo`). Two steps, one
//!   behind the other: two, and once; side by side: two, or one and once. Three steps: one, and once; or two (where not all of
//!   them hang together, with `onFailure: undo` alone);
//! - what a person does unasked with three steps: to cancel, to pause, to accept a loss, and not to retry or to resolve a step;
//! - policies: all six of `onFailure` and `onCancel`, but for three steps that do not all hang together no `onCancel: undo` with
//!   `onFailure: pause` or `continue`. Where nobody steps in, `onCancel` makes no difference;
//! - ends and denials that are rare: for one step, and for one of three that wait;
//! - the clock: it jumps to the next moment at which something changes, or to just before it. Times are compared by what they
//!   decide (see `key`). Those plans have no deadline of their milestone and no timeout in the queue: plans of their own have,
//!   and waits, gates, verification, and steps that are done always;
//! - names: of DAGs that differ in the names of their steps alone one is taken, and steps that could change places are one
//!   state.

mod common;
#[path = "exhaustive/key.rs"]
mod key;
#[path = "exhaustive/search.rs"]
mod search;

use std::collections::BTreeSet;

use common::{phase, plan, step, variants::Variants, verify};
use muster_engine::{
    plan::{OnCancel, OnFailure, Plan, PlannedUndo, PlannedWait},
    run::{Command, Event, Verdict},
};
use search::{Budget, Seen, explore};

/// Every DAG of so many steps, up to their names: what each step needs.
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
    // Up to three steps, a DAG is known by how many steps each of them needs, and is needed by.
    let shape = |needs: &Vec<Vec<usize>>| {
        let needed = |i| needs.iter().filter(|n| n.contains(&i)).count();
        let mut shape: Vec<_> = (0..steps).map(|i| (needs[i].len(), needed(i))).collect();
        shape.sort_unstable();
        shape
    };
    let mut shapes = BTreeSet::new();
    (0..1 << pairs.len()).map(dag).filter(|needs| shapes.insert(shape(needs))).collect()
}

fn planned(needs: &[Vec<usize>], (on_failure, on_cancel): Policy) -> Plan {
    let mut steps: Vec<_> = needs.iter().enumerate().map(|(i, n)| step(["a", "b", "c"][i], n)).collect();
    for step in &mut steps {
        step.on_failure = on_failure;
        step.retry.max_attempts = 2;
    }
    let mut only = phase("only");
    only.deadline_ms = None;
    let mut plan = plan(vec![only], steps);
    plan.on_cancel = on_cancel;
    plan
}

/// What the playbook says of failures and cancellations.
type Policy = (OnFailure, OnCancel);

const UNDO: Policy = (OnFailure::Undo, OnCancel::Undo);

const POLICIES: [Policy; 6] = [
    UNDO,
    (OnFailure::Undo, OnCancel::Keep),
    (OnFailure::Pause, OnCancel::Keep),
    (OnFailure::Pause, OnCancel::Undo),
    (OnFailure::Continue, OnCancel::Keep),
    (OnFailure::Continue, OnCancel::Undo),
];

/// Without a cancellation, its policy makes no difference.
const ON_FAILURE: [Policy; 3] = [UNDO, POLICIES[2], POLICIES[4]];

const fn at_most(disturbances: u32, interventions: u32) -> Budget {
    Budget { disturbances, interventions, rare: false }
}

fn search(needs: &[Vec<usize>], policy: Policy, budget: Budget) -> Seen {
    let (wrong, asked, rare) =
        (budget.disturbances, budget.interventions, if budget.rare { " (rare too)" } else { "" });
    explore(&format!("{needs:?} {policy:?} {wrong} wrong{rare}, {asked} unasked"), planned(needs, policy), budget)
}

#[test]
fn one_step_alone() {
    let one = [vec![]];
    for policy in POLICIES {
        search(&one, policy, at_most(2, 1));
        search(&one, policy, Budget { rare: true, ..at_most(1, 1) });
    }
    for policy in ON_FAILURE {
        search(&one, policy, at_most(3, 0));
    }
    search(&one, UNDO, at_most(2, 2));
    search(&one, UNDO, Budget { rare: true, ..at_most(2, 0) });
}

#[test]
fn two_steps_one_behind_the_other() {
    let needs = [vec![], vec![0]];
    for policy in POLICIES {
        search(&needs, policy, at_most(2, 1));
    }
}

#[test]
fn two_steps_side_by_side() {
    let needs = [vec![], vec![]];
    for policy in POLICIES {
        search(&needs, policy, at_most(1, 1));
    }
    for policy in ON_FAILURE {
        search(&needs, policy, at_most(2, 0));
    }
}

/// Of three steps, whether none goes its way without the others.
fn hangs_together(needs: &[Vec<usize>]) -> bool {
    needs.concat().len() > 1
}

#[test]
fn three_steps_that_hang_together_of_which_one_thing_goes_wrong() {
    for needs in dags(3).iter().filter(|needs| hangs_together(needs)) {
        for policy in POLICIES {
            search(needs, policy, at_most(1, 1));
        }
    }
}

#[test]
fn three_steps_that_do_not_of_which_one_thing_goes_wrong() {
    for needs in dags(3).iter().filter(|needs| !hangs_together(needs)) {
        for policy in [UNDO, POLICIES[1], POLICIES[2], POLICIES[4]] {
            search(needs, policy, at_most(1, 1));
        }
    }
}

#[test]
fn three_steps_of_which_two_things_go_wrong() {
    for needs in &dags(3) {
        for policy in if hangs_together(needs) { &ON_FAILURE[..] } else { &[UNDO] } {
            search(needs, *policy, at_most(2, 0));
        }
    }
}

#[test]
fn there_are_two_dags_of_two_steps_and_six_of_three() {
    assert_eq!([1, 2, 3].map(|steps| dags(steps).len()), [1, 2, 6]);
}

#[test]
fn a_step_with_verification_and_one_with_an_undo_of_its_own() {
    let mut plan = planned(&[vec![], vec![0]], UNDO);
    plan.steps[0].verify = Some(verify("output.fine", 10_000, 5_000));
    plan.steps[0].action.facts.idempotent = false;
    plan.steps[1].undo = PlannedUndo::Action { action: common::action("test.revert"), with: serde_json::json!({}) };
    explore("verify, custom undo", plan, at_most(2, 1));
}

#[test]
fn steps_that_give_up_their_wait_for_an_agent() {
    for needs in dags(2) {
        let chained = !needs[1].is_empty();
        for policy in if chained { &ON_FAILURE[..] } else { &[UNDO] } {
            let mut plan = planned(&needs, *policy);
            plan.steps.iter_mut().for_each(|step| step.queue_timeout_ms = Some(600_000));
            let budget = at_most(1, u32::from(chained));
            let seen = explore(&format!("queue timeouts {needs:?} {policy:?}"), plan, budget);
            assert!(seen.commands.contains("RestartQueueClocks"));
        }
    }
}

#[test]
fn steps_that_wait_for_a_moment_while_the_wall_clock_is_set() {
    let mut plan = planned(&[vec![], vec![0], vec![]], UNDO);
    common::waits(&mut plan.steps[1], common::for_moment(5_000));
    common::waits(&mut plan.steps[2], common::for_moment(60));
    explore("moments", plan, at_most(2, 1));
}

#[test]
fn steps_that_may_be_done_twice_at_once() {
    let mut plan = planned(&[vec![], vec![0]], UNDO);
    plan.steps[1].action.facts.concurrent_safe = true;
    plan.steps[0].verify = Some(verify("output.fine", 10_000, 5_000));
    if let Some(verify) = &mut plan.steps[0].verify {
        verify.action.facts.concurrent_safe = true;
    }
    explore("concurrent safe", plan.clone(), at_most(2, 0));
    explore("concurrent safe, asked", plan, at_most(1, 1));
}

#[test]
fn steps_that_are_done_whatever_happens() {
    let mut plan = planned(&[vec![], vec![0]], UNDO);
    plan.steps[1].always = true;
    plan.steps[1].action.facts.idempotent = false;
    explore("always, not idempotent", plan, at_most(2, 1));
}

/// A step that is verified, and one that waits for a signal and one for a time behind it.
fn waiting() -> Plan {
    let mut plan = planned(&[vec![], vec![0], vec![1]], UNDO);
    plan.steps[0].queue_timeout_ms = Some(600_000);
    common::waits(&mut plan.steps[1], common::for_signal("go", Some(1_000_000)));
    common::waits(&mut plan.steps[2], PlannedWait::For { ms: 60_000 });
    plan
}

/// Two phases with deadlines, of which the first has a gate that can't always be judged.
fn phased(on_failure: OnFailure) -> Plan {
    let steps = planned(&[vec![], vec![]], (on_failure, OnCancel::Keep)).steps;
    let mut plan = plan(vec![phase("first"), phase("second")], steps);
    (plan.steps[1].phase, plan.phases[0].steps, plan.phases[1].steps) = (1, vec![0], vec![1]);
    plan.phases[0].gate = Some(common::gate(&["steps.a.output.by == 'hand' || inputs.environment == 'staging'"], &[]));
    plan.phases[1].gate = Some(common::gate(&["steps.b.output.by == 'hand'"], &[]));
    common::plan(plan.phases, plan.steps)
}

/// Whatever there is, is met by these together: what is new is not left out.
#[test]
fn waits_phases_gates_milestones_and_last_steps_meet_every_command_event_and_verdict() {
    let mut all = vec![explore("waits", waiting(), Budget { rare: true, ..at_most(1, 1) })];
    let mut moment = planned(&[vec![], vec![]], UNDO);
    common::waits(&mut moment.steps[1], common::for_moment(60));
    all.push(explore("a moment", moment, at_most(1, 1)));
    for on_failure in [OnFailure::Undo, OnFailure::Pause, OnFailure::Continue] {
        all.push(explore(&format!("phases {on_failure:?}"), phased(on_failure), at_most(1, 1)));
        let mut plan = planned(&[vec![], vec![0], vec![1]], (on_failure, OnCancel::Undo));
        plan.steps[1].always = true;
        plan.steps[2].always = on_failure != OnFailure::Continue;
        all.push(explore(&format!("always {on_failure:?}"), plan, at_most(1, 1)));
    }
    let met = |of: fn(&Seen) -> &BTreeSet<&'static str>| all.iter().flat_map(of).copied().collect::<BTreeSet<_>>();
    let every = |all: &[&'static str]| all.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(met(|seen| &seen.commands), every(Command::ALL));
    assert_eq!(met(|seen| &seen.events), every(Event::ALL));
    assert_eq!(met(|seen| &seen.verdicts), every(Verdict::ALL));
}
