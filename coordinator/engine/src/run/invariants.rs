//! What is always true of a run, between two appends. Checked after every turn in tests, and after recovery: a run that
//! breaks one is put into quarantine, never the process.

use super::{
    Run, WaitingSubject,
    event::{AttemptEnd, Purpose},
    state::{PhaseState, RunState, StepState},
};

/// An invariant that does not hold: a bug, or a damaged history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject}: {what}")]
pub struct Violation {
    /// Of what: `run`, `step x`, `phase y`.
    pub subject: String,
    /// What does not hold.
    pub what: &'static str,
}

impl Run {
    /// Checks all invariants.
    ///
    /// # Errors
    /// The first one that does not hold.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        if self.steps.len() != self.plan.steps.len() || self.phases.len() != self.plan.phases.len() {
            return Err(self.broken("has another number of steps or phases than its plan"));
        }
        for i in 0..self.steps.len() {
            self.check_step(i)
                .map_err(|what| Violation { subject: format!("step {}", self.plan.steps[i].id), what })?;
        }
        for p in 0..self.phases.len() {
            self.check_phase(p)
                .map_err(|what| Violation { subject: format!("phase {}", self.plan.phases[p].id), what })?;
        }
        self.check_run()
    }

    fn check_step(&self, i: usize) -> Result<(), &'static str> {
        let (step, planned) = (&*self.steps[i], &self.plan.steps[i]);
        let awake = super::apply::step::is_awake(&step.state);
        ensure(awake == self.awake.contains(&i), "is awake without being listed so, or the other way round")?;
        let live = step.attempts.iter().filter(|a| a.end.is_none()).count();
        ensure(live <= 1, "has two attempts at work at once")?;
        ensure(step.attempts.is_sorted_by(|a, b| a.number < b.number), "has two attempts of one number")?;
        ensure(
            (live == 1) == (step.state == StepState::Active),
            "is active without an attempt at work, or the other way round",
        )?;
        ensure(
            live == 0 || step.attempts.last().is_some_and(|a| a.end.is_none()),
            "has an attempt at work that is not its last",
        )?;
        ensure(
            step.attempts.iter().all(|a| a.ends_by > a.dispatch_until),
            "has an attempt that ends before it can start",
        )?;
        ensure(
            step.prepared.keys().all(|n| step.attempt(*n).is_some_and(|a| a.purpose == Purpose::Run)),
            "has undo data of an attempt that never ran",
        )?;
        ensure(
            step.attempts.iter().all(|a| a.undoes.is_none_or(|n| step.attempt(n).is_some())),
            "undoes an attempt that it never had",
        )?;
        ensure(!step.done || step.done_order.is_some(), "is done without a place in the order")?;
        ensure(step.done_order.is_none_or(|o| o < self.done_count), "has a place in the order that is not given out")?;
        ensure(
            step.excluded.iter().all(|e| step.attempts.iter().any(|a| a.instance == *e)),
            "excludes an instance that it never asked",
        )?;
        match &step.state {
            StepState::Succeeded => ensure(step.done, "has succeeded without being done")?,
            StepState::Queued { purpose, not_before, wake_at, .. } => {
                ensure(wake_at >= not_before, "is woken before it may start")?;
                ensure(step.queued_since.is_some(), "waits for an agent since nobody knows when")?;
                ensure(*purpose != Purpose::Verify || step.verify_until.is_some(), "is verified without an end")?;
                ensure(*purpose != Purpose::Verify || planned.verify.is_some(), "is verified without being asked to")?;
                ensure(*purpose != Purpose::Undo || self.rollback.is_some(), "is undone without a walk back")?;
            }
            StepState::Waiting { signal, ends_at, wake_at } => {
                ensure(planned.wait.is_some(), "waits without being asked to")?;
                ensure(signal.is_some() || ends_at.is_some(), "waits for nothing")?;
                let over_at = ends_at.map(|ends| self.wait_is_over_at(planned, ends));
                ensure(over_at.is_none_or(|over| *wake_at <= over), "is woken after its wait is over")?;
                ensure(signal.is_some() || over_at == Some(*wake_at), "is woken before its wait is over")?;
                ensure(!self.signals.keys().any(|s| step.waits_for(s)), "waits for a signal that has come")?;
            }
            StepState::Undone => ensure(step.prepared.is_empty(), "is undone with undo data left")?,
            StepState::Pending => ensure(
                step.attempts.is_empty() || matches!(self.state, RunState::Finishing { .. }),
                "has attempts and has not begun",
            )?,
            StepState::Active
            | StepState::Asking { .. }
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled => {}
        }
        let began = step.attempts.iter().any(|a| !matches!(a.end, Some((_, AttemptEnd::NotStarted { .. }))));
        ensure(
            !began
                || planned.always
                || self.state != RunState::Running
                || planned.needs.iter().all(|n| self.was_met(*n)),
            "has begun before what it needs",
        )
    }

    /// A need of a step that has begun: it was done, or left out.
    fn was_met(&self, need: usize) -> bool {
        let step = &self.steps[need];
        step.done || matches!(step.state, StepState::Skipped { .. })
    }

    fn check_phase(&self, p: usize) -> Result<(), &'static str> {
        let phase = &self.phases[p];
        let steps = || self.plan.phases[p].steps.iter().map(|i| &*self.steps[*i]);
        let open = steps().filter(|s| {
            matches!(
                s.state,
                StepState::Pending
                    | StepState::Queued { .. }
                    | StepState::Active
                    | StepState::Waiting { .. }
                    | StepState::Asking { .. }
            )
        });
        ensure(open.count() == phase.open_steps, "counts its open steps wrong")?;
        match phase.state {
            PhaseState::Pending => {
                ensure(steps().all(|s| s.attempts.is_empty()), "has attempts and has not begun")?;
                let earlier = self.phases[..p].iter().any(|e| e.state != PhaseState::Pending);
                ensure(p == 0 || earlier || self.state != RunState::Running, "waits for nothing")
            }
            PhaseState::Active => ensure(
                self.phases[..p].iter().all(|e| matches!(e.state, PhaseState::Ended(_))),
                "has begun before an earlier one was over",
            ),
            PhaseState::Ended(_) => Ok(()),
        }
    }

    /// Law 6: nothing runs for ever.
    fn check_run(&self) -> Result<(), Violation> {
        if self.has_ended() {
            return self.check_end();
        }
        let walking_back = self.rollback.as_ref().filter(|_| self.state == RunState::RollingBack);
        if let Some(rollback) = walking_back {
            let listed = |i: &usize| rollback.remaining.contains(i);
            if !self.awake.iter().all(listed) {
                return Err(self.broken("does something else while it is walked back"));
            }
            if self.awake.len() > 1 {
                return Err(self.broken("undoes two steps at once"));
            }
        }
        if self.awake.is_empty() && self.pause.is_none() {
            return Err(self.broken("waits for nothing and has not ended"));
        }
        if self.pause.is_none() && self.failed_in_active_phase().any(|i| self.fails_with(i).is_some()) {
            return Err(self.broken("goes on though a step has failed that it can't go on without"));
        }
        if self.wake_up(jiff::Timestamp::MIN).is_none() {
            return Err(self.broken("has nothing that wakes it"));
        }
        let pending_is_reachable = match self.state {
            RunState::Running => true,
            RunState::Finishing { .. } => {
                let last = |(s, planned): (&std::sync::Arc<super::state::Step>, &crate::plan::PlannedStep)| {
                    planned.always || !super::apply::step::is_open(&s.state)
                };
                self.steps.iter().zip(&self.plan.steps).all(last)
            }
            RunState::Cancelling | RunState::RollingBack | RunState::Ended { .. } => {
                !self.steps.iter().any(|s| s.state == StepState::Pending)
            }
        };
        if !pending_is_reachable {
            return Err(self.broken("has steps that will never begin"));
        }
        let waiting = self.explain(jiff::Timestamp::MIN);
        let steps = waiting.iter().filter(|w| matches!(w.subject, WaitingSubject::Step(_)));
        if steps.clone().count() != self.awake.len() {
            return Err(self.broken("has a step that waits for nobody knows what"));
        }
        if steps.into_iter().any(|w| w.on_whom.is_empty() || (w.next_at.is_none() && self.pause.is_none())) {
            return Err(self.broken("has a step that waits without an owner or a next action"));
        }
        Ok(())
    }

    fn check_end(&self) -> Result<(), Violation> {
        if self.phases.iter().filter_map(|p| p.milestone.as_ref()).any(|m| m.state.is_open()) {
            return Err(self.broken("has a milestone that nothing will reach"));
        }
        Ok(())
    }

    fn broken(&self, what: &'static str) -> Violation {
        Violation { subject: format!("run {}", self.id), what }
    }
}

fn ensure(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}
