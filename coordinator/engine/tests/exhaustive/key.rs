//! When two states are the same: everything of a run is compared, but for
//! - the clock: of times only what they decide is kept, such as whether a step may start or a task may still arrive;
//! - words to people, and the parameters of attempts, which follow from the plan and the outputs;
//! - which of two interchangeable steps is which, and how many numbers lie between two of the order in which steps were done.
//!
//! Everything is taken apart without `..`: who adds a field decides here.

use jiff::Timestamp;
use muster_engine::{
    ids::AttemptNumber,
    plan::Plan,
    policy::timeout,
    run::{
        Run,
        event::{AttemptEnd, Outcome},
        state::{Attempt, Cancel, Gate, Milestone, Pause, Phase, PhaseState, Rollback, RunState, Step, StepState},
    },
};

use crate::common::{World, variants::Variants};

/// For each step the first one that it could change places with: itself, if there is none.
pub(crate) fn twins(plan: &Plan) -> Vec<usize> {
    let dependents = |i: usize| (0..plan.steps.len()).filter(|d| plan.steps[*d].needs.contains(&i)).collect::<Vec<_>>();
    let alike = |i: usize, j: usize| {
        let (a, mut b) = (&plan.steps[i], plan.steps[j].clone());
        (b.id, b.name, b.with) = (a.id.clone(), a.name.clone(), a.with.clone());
        *a == b && dependents(i) == dependents(j)
    };
    (0..plan.steps.len()).map(|i| (0..i).find(|j| alike(i, *j)).unwrap_or(i)).collect()
}

/// The same bytes for the same states.
pub(crate) fn key(world: &World, twins: &[usize]) -> Vec<u8> {
    let run = &world.run;
    let Run {
        id: _,
        namespace: _,
        plan: _,
        plan_digest: _,
        started_by: _,
        note: _,
        started_at: _,
        updated_at: _,
        seq: _,
        state,
        pause,
        cancel,
        rollback,
        failure,
        outputs,
        signals,
        wall_ahead_ms,
        phases,
        steps,
        awake: _,
        done_count: _,
        attempts_from,
    } = run;
    let mut key = Key(Vec::with_capacity(192));
    key.run_state(state);
    match pause {
        Some(Pause { reason: _, question, since: _, remind_at: _ }) => key.byte(1 + u8::from(question.is_some())),
        None => key.byte(0),
    }
    match cancel {
        Some(Cancel { reason: _, undo, force, since: _ }) => key.byte(1 + 2 * u8::from(*undo) + 4 * u8::from(*force)),
        None => key.byte(0),
    }
    key.flag(rollback.is_some());
    key.flag(failure.is_some());
    key.json(outputs);
    key.json(signals);
    key.json(wall_ahead_ms);
    key.number(*attempts_from);
    for phase in phases {
        key.phase(phase, world.now);
    }
    let mut of_steps: Vec<_> = (0..steps.len()).map(|i| (twins[i], of_step(world, i))).collect();
    of_steps.sort();
    for (_, of_step) in of_steps {
        key.0.extend(of_step);
    }
    key.0
}

fn of_step(world: &World, i: usize) -> Vec<u8> {
    let (run, planned) = (&world.run, &world.run.plan.steps[i]);
    let Step {
        state,
        since: _,
        attempts,
        output,
        done,
        done_order,
        verify_until,
        host,
        excluded,
        prepared,
        left,
        forgiven_attempts,
        queued_since: _,
    } = &*run.steps[i];
    let mut key = Key(Vec::with_capacity(64));
    key.step_state(state, world.now);
    key.number(u32::try_from(attempts.len()).expect("few attempts"));
    for attempt in attempts {
        key.attempt(attempt, planned.timeout_ms, world.now);
    }
    key.json(output);
    key.flag(*done);
    let rank = |order| run.steps.iter().filter(|s| s.done_order.is_some_and(|other| other < order)).count();
    key.place(done_order.map(rank));
    // A look more, or none.
    let every = planned.verify.as_ref().map_or(0, |v| v.every_ms);
    key.place(verify_until.map(|until| usize::from(timeout_after(world.now, every) <= until)));
    key.flag(host.is_some());
    key.place(Some(excluded.len()));
    for instance in excluded {
        key.text(instance.as_str());
    }
    key.place(Some(prepared.len()));
    for number in prepared.keys() {
        key.number(*number);
    }
    key.flag(left.is_some());
    key.number(*forgiven_attempts);
    if let Some(Rollback { reason: _, remaining, irreversible, since: _ }) = &run.rollback {
        key.place(remaining.iter().position(|r| *r == i));
        key.flag(irreversible.contains(&i));
    }
    key.0
}

fn timeout_after(now: Timestamp, ms: u64) -> Timestamp {
    now + std::time::Duration::from_millis(ms)
}

/// Bytes that differ where states do: each part has a fixed length, or an end.
struct Key(Vec<u8>);

impl Key {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn flag(&mut self, flag: bool) {
        self.0.push(u8::from(flag));
    }

    fn number(&mut self, number: AttemptNumber) {
        self.0.extend(number.to_le_bytes());
    }

    fn place(&mut self, place: Option<usize>) {
        self.0.push(place.map_or(u8::MAX, |n| u8::try_from(n).expect("few places")));
    }

    fn text(&mut self, text: &str) {
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn json(&mut self, value: &impl serde::Serialize) {
        serde_json::to_writer(&mut self.0, value).expect("a vector takes everything");
        self.0.push(0);
    }

    fn variant(&mut self, of: &impl Variants) {
        self.0.push(of.place());
    }

    fn run_state(&mut self, state: &RunState) {
        self.variant(state);
        match state {
            RunState::Running | RunState::Cancelling | RunState::RollingBack => {}
            RunState::Finishing { outcome, reason: _ } | RunState::Ended { outcome, reason: _, at: _ } => {
                self.variant(outcome);
            }
        }
    }

    fn phase(&mut self, phase: &Phase, now: Timestamp) {
        let Phase { state, since: _, open_steps: _, gate, milestone } = phase;
        self.variant(state);
        if let PhaseState::Ended(outcome) = state {
            self.variant(outcome);
        }
        match gate {
            Some(Gate { verdict, criteria, at: _ }) => {
                self.variant(verdict);
                for criterion in criteria {
                    self.byte(criterion.value.map_or(2, u8::from));
                }
            }
            None => self.byte(u8::MAX),
        }
        match milestone {
            Some(Milestone { name: _, state, since: _, due_at, at_risk_at: _ }) => {
                self.variant(state);
                self.flag(due_at.is_some_and(|due| due <= now));
            }
            None => self.byte(u8::MAX),
        }
    }

    fn step_state(&mut self, state: &StepState, now: Timestamp) {
        self.variant(state);
        match state {
            StepState::Queued { purpose, not_before, wake_at: _, why: _ } => {
                self.variant(purpose);
                self.flag(*not_before <= now);
            }
            StepState::Waiting { signal, ends_at, wake_at } => {
                self.flag(signal.is_some());
                self.flag(ends_at.is_some());
                self.flag(*wake_at <= now);
            }
            StepState::Asking { question: _, kind, remind_at: _ } => self.variant(kind),
            StepState::Pending
            | StepState::Active
            | StepState::Succeeded
            | StepState::Failed { reason: _ }
            | StepState::Skipped { reason: _ }
            | StepState::Cancelled
            | StepState::Undone => {}
        }
    }

    fn attempt(&mut self, attempt: &Attempt, timeout_ms: u64, now: Timestamp) {
        let Attempt {
            number,
            purpose,
            agent,
            instance,
            host: _,
            assigned_at: _,
            dispatch_until,
            ends_by,
            with: _,
            undoes,
            lost_at,
            status,
            end,
            reported_late,
        } = attempt;
        self.number(*number);
        self.variant(purpose);
        self.text(agent.as_str());
        self.text(instance.as_str());
        self.number(undoes.unwrap_or(0));
        self.flag(lost_at.is_some());
        self.flag(status.is_some());
        self.flag(reported_late.is_some());
        if let Some((_, outcome)) = reported_late {
            self.outcome(outcome);
        }
        let Some((_, end)) = end else {
            let clock = timeout::ends_by(*dispatch_until, timeout_ms);
            let may_be_sent = now < *dispatch_until;
            let may_arrive = now < timeout::cannot_start_after(*dispatch_until);
            for flag in [may_be_sent, may_arrive, clock <= now, *ends_by > clock, *ends_by <= now] {
                self.flag(flag);
            }
            return self.byte(u8::MAX);
        };
        self.variant(end);
        match end {
            AttemptEnd::Finished { outcome } => self.outcome(outcome),
            AttemptEnd::NotStarted { why } => self.variant(why),
            AttemptEnd::Unknown { ended_by } => self.variant(ended_by),
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        self.variant(outcome);
        match outcome {
            Outcome::Succeeded { output, unchanged, observations: _, truncated: _ } => {
                self.json(output);
                self.flag(*unchanged);
            }
            Outcome::NotSatisfied { diff: _ } => {}
            Outcome::Failed { kind, message: _, output: _ } => self.variant(kind),
            Outcome::Cancelled { may_have_changed } => self.flag(*may_have_changed),
        }
    }
}
