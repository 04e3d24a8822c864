//! The search: every state that can be reached from a plan's first one, each looked at once.

#[path = "duplicates.rs"]
mod duplicates;

use std::{collections::BTreeSet, io::Write as _};

use jiff::Timestamp;
use muster_engine::{
    ids::InstanceId,
    plan::Plan,
    policy::timeout,
    run::{Command, Rejection, Report, Resolution, Run, Verdict, state::StepState},
};

use crate::{
    common::{World, moves, variants::Variants},
    key::{key, twins},
};

/// How much may happen to a run.
#[derive(Clone, Copy)]
pub(crate) struct Budget {
    /// Of what goes wrong.
    pub(crate) disturbances: u32,
    /// Of what a person does without being asked.
    pub(crate) interventions: u32,
    /// Also ends, denials and reports that are rare.
    pub(crate) rare: bool,
}

/// What was seen.
#[derive(Default)]
pub(crate) struct Seen {
    states: usize,
    ends: usize,
    moves: usize,
    duplicates: usize,
    /// Commands that were taken.
    pub(crate) commands: BTreeSet<&'static str>,
    /// What reports were worth.
    pub(crate) verdicts: BTreeSet<&'static str>,
    /// Events that happened.
    pub(crate) events: BTreeSet<&'static str>,
}

impl Seen {
    /// Notes what a report is worth.
    fn judge(&mut self, run: &Run, command: &Command) {
        if self.verdicts.len() == Verdict::ALL.len() {
            return;
        }
        if let Command::Finish { fence, outcome } = command {
            self.verdicts.insert(run.verdict(fence, Report::Finished(outcome)).variant());
        } else if let Command::Prepare { fence, undo } = command {
            self.verdicts.insert(run.verdict(fence, Report::Prepared(undo)).variant());
        }
    }
}

struct Visit {
    world: World,
    key: Vec<u8>,
    disturbances: u32,
    interventions: u32,
}

struct Search {
    rare: bool,
    twins: Vec<usize>,
    known: BTreeSet<(Vec<u8>, u32, u32)>,
    /// The states that have been sent what changes nothing, however much may still happen to them.
    checked: BTreeSet<Vec<u8>>,
    open: Vec<Visit>,
    seen: Seen,
}

/// Looks at every state, and says how many there are: past the test's own output, which nobody sees of a test that passes.
pub(crate) fn explore(what: &str, plan: Plan, budget: Budget) -> Seen {
    let mut search = Search {
        rare: budget.rare,
        twins: twins(&plan),
        known: BTreeSet::new(),
        checked: BTreeSet::new(),
        open: Vec::new(),
        seen: Seen::default(),
    };
    let first = World::new(plan);
    search.seen.events.extend(first.history.iter().map(|(_, event)| event.variant()));
    search.reach(first, budget.disturbances, budget.interventions);
    while let Some(visit) = search.open.pop() {
        if search.checked.insert(visit.key.clone()) {
            duplicates::change_nothing(&visit.world, &mut search.seen);
        }
        if visit.world.ended().is_some() {
            search.seen.ends += 1;
        } else {
            search.look_at(&visit);
        }
    }
    let Seen { states, ends, moves, duplicates, .. } = &search.seen;
    let line = format!("{what}: {states} distinct states, {ends} ends, {moves} moves, {duplicates} duplicates\n");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr takes everything");
    assert!(*ends > 0 && *states > 100, "{what}: the search has looked at too little");
    search.seen
}

impl Search {
    /// Looked at later, unless it is known.
    fn reach(&mut self, world: World, disturbances: u32, interventions: u32) {
        let key = key(&world, &self.twins);
        self.reach_by_key(world, key, disturbances, interventions);
    }

    fn reach_by_key(&mut self, world: World, key: Vec<u8>, disturbances: u32, interventions: u32) {
        if self.known.insert((key.clone(), disturbances, interventions)) {
            self.seen.states += 1;
            self.open.push(Visit { world, key, disturbances, interventions });
        }
    }

    fn look_at(&mut self, visit: &Visit) {
        let (world, disturbances, interventions) = (&visit.world, visit.disturbances, visit.interventions);
        let mut has_way_out = self.let_time_pass(visit);
        for command in moves::good(world).into_iter().chain(moves::answers(world)).chain(comebacks(world)) {
            has_way_out |= self.take(visit, world.now, &command, disturbances, interventions);
        }
        assert!(has_way_out, "there is no way out of this:\n{}", world.story());
        if disturbances > 0 {
            for (at, command) in self.disturbances(world) {
                self.take(visit, at, &command, disturbances - 1, interventions);
            }
        }
        if interventions > 0 {
            for command in interventions_of_people(world) {
                self.take(visit, world.now, &command, disturbances, interventions - 1);
            }
        }
    }

    /// Whether the command comes to something.
    fn take(&mut self, from: &Visit, at: Timestamp, command: &Command, disturbances: u32, interventions: u32) -> bool {
        let mut world = from.world.clone();
        world.now = at.max(world.now);
        self.seen.moves += 1;
        self.seen.judge(&world.run, command);
        match world.try_command(command) {
            Ok(events) if events.is_empty() => false,
            Ok(events) => {
                self.seen.commands.insert(command.variant());
                self.seen.events.extend(events.iter().map(Variants::variant));
                self.reach(world, disturbances, interventions);
                true
            }
            Err(Rejection::Broken(corrupt)) => panic!("{command:?}: {corrupt}\n{}", world.story()),
            Err(_) => false,
        }
    }

    /// The clock jumps to the next moment at which something changes: reminders alone change nothing. That an attempt at work
    /// outlives such a moment is a disturbance.
    fn let_time_pass(&mut self, visit: &Visit) -> bool {
        let spent = u32::from(!moves::live(&visit.world.run).is_empty());
        if visit.disturbances < spent {
            return false;
        }
        let mut world = visit.world.clone();
        for _ in 0..3 {
            let Some(wake) = world.run.wake_up(world.now) else { break };
            world.now = wake.at.max(world.now);
            self.seen.moves += 1;
            let events = world.tick();
            self.seen.commands.insert(Command::Tick.variant());
            self.seen.events.extend(events.iter().map(Variants::variant));
            let key = key(&world, &self.twins);
            if key != visit.key {
                self.reach_by_key(world, key, visit.disturbances - spent, visit.interventions);
                return spent == 0;
            }
        }
        false
    }

    /// What goes wrong, and when: at once, when no task can arrive any more, or just before the clock would act.
    fn disturbances(&self, world: &World) -> Vec<(Timestamp, Command)> {
        let now = world.now;
        let mut all: Vec<_> = moves::disturbances(world).into_iter().map(|command| (now, command)).collect();
        if self.rare {
            all.extend(moves::oddities(world).into_iter().map(|command| (now, command)));
        }
        let Some(wake) = world.run.wake_up(now) else { return all };
        let next = wake.at.max(now);
        all.extend([(next, Command::RestartClocks), (next, Command::RestartQueueClocks)]);
        for instance in instances(world) {
            let holds = held(world, &instance);
            let find = |holds: &[_]| Command::FindInstance { instance: instance.clone(), holds: holds.to_vec() };
            all.push((next, find(&holds)));
            for step in &world.run.steps {
                let Some((_, attempt)) = step.live_attempt().filter(|(_, a)| a.instance == instance) else { continue };
                let late = timeout::cannot_start_after(attempt.dispatch_until).max(now);
                if late <= next {
                    all.push((late, find(&[])));
                    // Some of them have arrived.
                    all.extend((1..holds.len()).map(|n| (late, find(&holds[n..]))));
                }
            }
        }
        all
    }
}

/// The instances with attempts at work.
fn instances(world: &World) -> BTreeSet<InstanceId> {
    moves::live(&world.run).into_iter().map(|(fence, _)| fence.instance).collect()
}

/// What the instance could have of the run.
fn held(world: &World, instance: &InstanceId) -> Vec<(muster_engine::ids::StepId, u32)> {
    let live = moves::live(&world.run).into_iter().filter(|(fence, _)| fence.instance == *instance);
    live.map(|(fence, _)| (fence.step, fence.attempt)).collect()
}

/// Instances that were lost answer again, with all that they had; those that never had it come later.
fn comebacks(world: &World) -> Vec<Command> {
    let find = |instance: InstanceId| Command::FindInstance { holds: held(world, &instance), instance };
    instances(world).into_iter().map(find).collect()
}

/// What a person may do at any time.
fn interventions_of_people(world: &World) -> Vec<Command> {
    let reason = || "a person said so".to_owned();
    let mut all = vec![
        Command::Cancel { reason: reason(), force: false },
        Command::Cancel { reason: reason(), force: true },
        Command::Pause { reason: reason() },
        Command::AcceptLoss,
    ];
    // With three steps, there are too many of the others.
    let few = world.run.plan.steps.len() < 3;
    for (step, planned) in world.run.steps.iter().zip(&world.run.plan.steps).filter(|_| few) {
        let id = || planned.id.clone();
        let resolve = |resolution| Command::ResolveStep { step: id(), resolution, reason: reason(), output: None };
        match &step.state {
            StepState::Failed { .. } | StepState::Asking { .. } => {
                all.push(Command::RetryStep { step: id(), reason: reason() });
            }
            StepState::Active => all.extend([Resolution::Succeeded, Resolution::Retry].map(resolve)),
            StepState::Queued { .. } | StepState::Waiting { .. } => all.push(resolve(Resolution::Skip)),
            StepState::Pending
            | StepState::Succeeded
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => {}
        }
    }
    all
}
