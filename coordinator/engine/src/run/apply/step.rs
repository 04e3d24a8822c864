//! Events about steps and their attempts.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Touched, refuse};
use crate::{
    ids::{AttemptNumber, StepId},
    plan::PlannedStep,
    policy::{after, timeout},
    run::{
        event::{AttemptAssigned, AttemptEnd, EndedBy, Event, NotStarted, Outcome, Purpose, QuestionKind, StepNext},
        state::{Attempt, PhaseState, Run, RunState, Step, StepState},
    },
};

impl Run {
    /// Whether a step that is pending could start: everything it needs is done, or over for one that is done always.
    pub(crate) fn needs_are_met(&self, planned: &PlannedStep) -> bool {
        let met = |s: &Step| matches!(s.state, StepState::Succeeded | StepState::Skipped { .. });
        planned
            .needs
            .iter()
            .all(|n| self.steps.get(*n).is_some_and(|s| met(s) || (planned.always && !is_open(&s.state))))
    }

    /// Whether a step waits for nothing but a look at its `when`.
    pub(crate) fn is_ready(&self, i: usize, planned: &PlannedStep) -> bool {
        let may_begin = match self.state {
            RunState::Running => self.phases.get(planned.phase).is_some_and(|p| p.state == PhaseState::Active),
            RunState::Finishing { .. } => planned.always,
            RunState::Cancelling | RunState::RollingBack | RunState::Ended { .. } => false,
        };
        may_begin && self.steps.get(i).is_some_and(|s| s.state == StepState::Pending) && self.needs_are_met(planned)
    }

    pub(super) fn queue_if_ready(&mut self, i: usize, at: Timestamp, touched: &mut Touched) {
        let plan = Arc::clone(&self.plan);
        let Some(planned) = plan.steps.get(i).filter(|p| p.begins_by_itself()) else { return };
        if self.is_ready(i, planned) {
            let wake_at = timeout::queue_wake(at, at, planned.queue_timeout_ms);
            let next = StepState::Queued { purpose: Purpose::Run, not_before: at, wake_at, why: String::new() };
            self.enter(i, at, next, touched);
        }
    }

    /// The only place where a step's state changes.
    pub(super) fn enter(&mut self, i: usize, at: Timestamp, next: StepState, touched: &mut Touched) {
        let step = Arc::make_mut(&mut self.steps[i]);
        let was_open = is_open(&step.state);
        let (open, awake) = (is_open(&next), is_awake(&next));
        step.queued_since = match &next {
            StepState::Queued { not_before, .. } => step.queued_since.or(Some(*not_before)),
            StepState::Active => step.queued_since,
            StepState::Pending
            | StepState::Waiting { .. }
            | StepState::Asking { .. }
            | StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => None,
        };
        step.state = next;
        step.since = at;
        touched.steps.push(i);
        if awake {
            self.awake.insert(i);
        } else {
            self.awake.remove(&i);
        }
        if was_open != open {
            let phase = Arc::make_mut(&mut self.phases[self.plan.steps[i].phase]);
            phase.open_steps = if open { phase.open_steps + 1 } else { phase.open_steps.saturating_sub(1) };
        }
        if !awake && let Some(rollback) = &mut self.rollback {
            rollback.remaining.retain(|r| *r != i);
        }
        if !open && self.does_steps() {
            let plan = Arc::clone(&self.plan);
            for dependent in plan.facts().dependents(i) {
                self.queue_if_ready(*dependent, at, touched);
            }
        }
    }

    pub(super) fn step_moved(
        &mut self,
        at: Timestamp,
        id: &StepId,
        next: &StepNext,
        touched: &mut Touched,
    ) -> Result<(), String> {
        let i = self.known(id)?;
        let walking_back = self.rollback.as_ref().is_some_and(|r| r.remaining.contains(&i));
        let fits = match &self.steps[i].state {
            StepState::Pending => match next {
                StepNext::Queued { purpose, .. } => *purpose == Purpose::Run && self.plan.steps[i].wait.is_none(),
                StepNext::Waiting { .. } => self.plan.steps[i].wait.is_some(),
                StepNext::Asking { .. } | StepNext::Failed { .. } | StepNext::Skipped { .. } => !undoes(next),
                StepNext::Succeeded | StepNext::Cancelled | StepNext::Undone => false,
            },
            StepState::Queued { purpose, .. } => match next {
                StepNext::Asking { .. } | StepNext::Failed { .. } => undoes(next) == (*purpose == Purpose::Undo),
                StepNext::Queued { .. }
                | StepNext::Waiting { .. }
                | StepNext::Succeeded
                | StepNext::Skipped { .. }
                | StepNext::Cancelled
                | StepNext::Undone => false,
            },
            StepState::Waiting { .. } => match next {
                StepNext::Succeeded => true,
                StepNext::Asking { .. } | StepNext::Failed { .. } => !undoes(next),
                StepNext::Queued { .. }
                | StepNext::Waiting { .. }
                | StepNext::Skipped { .. }
                | StepNext::Cancelled
                | StepNext::Undone => false,
            },
            StepState::Active | StepState::Asking { .. } => false,
            StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => walking_back && undoes(next) && *next != StepNext::Undone,
        };
        refuse(!fits, "the step can't move there from where it is")?;
        if *next == StepNext::Succeeded {
            self.end_wait(i);
        }
        self.enter(i, at, next.into(), touched);
        Ok(())
    }

    /// What it waited for has come.
    fn end_wait(&mut self, i: usize) {
        let StepState::Waiting { signal, .. } = &self.steps[i].state else { return };
        let payload = signal.as_ref().and_then(|s| self.signals.get(s)).cloned();
        let step = Arc::make_mut(&mut self.steps[i]);
        step.output = Some(payload.unwrap_or_else(|| Arc::new(Value::Object(serde_json::Map::new()))));
        step.done = true;
        step.done_order = Some(self.done_count);
        self.done_count += 1;
    }

    /// Whether a step that was left out, or taken back, has its turn at the end.
    pub(super) fn may_come_last(&self, i: usize) -> bool {
        match self.steps[i].state {
            StepState::Cancelled | StepState::Undone => self.plan.steps[i].always,
            StepState::Pending
            | StepState::Queued { .. }
            | StepState::Active
            | StepState::Waiting { .. }
            | StepState::Asking { .. }
            | StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. } => false,
        }
    }

    /// The step begins anew, with all its tries.
    pub(super) fn revive(&mut self, i: usize, at: Timestamp, touched: &mut Touched) {
        let step = Arc::make_mut(&mut self.steps[i]);
        step.forgiven_attempts = u32::try_from(step.attempts.len()).unwrap_or(u32::MAX);
        step.excluded.clear();
        (step.done, step.output) = (false, None);
        self.enter(i, at, StepState::Pending, touched);
    }

    pub(super) fn signal_received(
        &mut self,
        signal: &str,
        payload: &Arc<Value>,
        touched: &mut Touched,
    ) -> Result<(), String> {
        refuse(self.has_ended(), "the run has ended")?;
        refuse(self.signals.contains_key(signal), "the signal has come before")?;
        self.signals.insert(signal.to_owned(), Arc::clone(payload));
        touched.steps.extend(self.awake.iter().filter(|i| self.steps[**i].waits_for(signal)));
        Ok(())
    }

    pub(super) fn step_resolved(
        &mut self,
        at: Timestamp,
        id: &StepId,
        reason: &str,
        output: Option<&Arc<Value>>,
        next: &StepNext,
        touched: &mut Touched,
    ) -> Result<(), String> {
        let i = self.known(id)?;
        let step = &self.steps[i];
        let undoing = match &step.state {
            StepState::Queued { purpose, .. } => *purpose == Purpose::Undo,
            StepState::Asking { kind, .. } => *kind == QuestionKind::UndoFailed,
            StepState::Active => step.live_attempt().is_some_and(|(_, a)| a.purpose == Purpose::Undo),
            StepState::Waiting { .. } => false,
            StepState::Failed { .. } => {
                refuse(!self.does_steps(), "the run is over but for its walk back")?;
                refuse(matches!(next, StepNext::Failed { .. }), "the step has failed already")?;
                false
            }
            StepState::Pending
            | StepState::Succeeded
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => return Err("nothing is asked of the step".into()),
        };
        let fits = match next {
            StepNext::Queued { .. } if self.plan.steps[i].wait.is_some() => false,
            StepNext::Queued { .. } => undoes(next) == undoing && (undoing || self.does_steps()),
            StepNext::Undone => undoing,
            StepNext::Waiting { .. } => self.plan.steps[i].wait.is_some(),
            StepNext::Succeeded => !undoing || step.done,
            StepNext::Failed { .. } => true,
            StepNext::Skipped { .. } => !undoing,
            StepNext::Asking { .. } | StepNext::Cancelled => false,
        };
        refuse(!fits, "that is no answer to what is asked")?;
        let order = self.done_count;
        let step = Arc::make_mut(&mut self.steps[i]);
        if let Some(live) = step.attempts.last_mut().filter(|a| a.end.is_none()) {
            live.end = Some((at, AttemptEnd::Unknown { ended_by: EndedBy::Person }));
        }
        if undoing && matches!(next, StepNext::Succeeded | StepNext::Failed { .. }) {
            step.left = Some(reason.to_owned());
        }
        match next {
            StepNext::Succeeded => {
                if output.is_some() {
                    step.output = output.cloned();
                }
                if !step.done {
                    step.done = true;
                    step.done_order = Some(order);
                    self.done_count += 1;
                }
            }
            StepNext::Queued { .. } => {
                step.forgiven_attempts = u32::try_from(step.attempts.len()).unwrap_or(u32::MAX);
                step.excluded.clear();
                step.queued_since = None;
            }
            StepNext::Undone => step.prepared.clear(),
            StepNext::Waiting { .. }
            | StepNext::Asking { .. }
            | StepNext::Failed { .. }
            | StepNext::Skipped { .. }
            | StepNext::Cancelled => {}
        }
        self.enter(i, at, next.into(), touched);
        Ok(())
    }

    pub(super) fn attempt_assigned(
        &mut self,
        at: Timestamp,
        assigned: &AttemptAssigned,
        touched: &mut Touched,
    ) -> Result<(), String> {
        let i = self.known(&assigned.step)?;
        let StepState::Queued { purpose, .. } = &self.steps[i].state else {
            return Err("the step does not wait for an agent".into());
        };
        refuse(*purpose != assigned.purpose, "the step waits for an agent for another purpose")?;
        refuse(Some(assigned.attempt) != self.next_attempt(i), "the attempt's number is not the next one")?;
        let step = Arc::make_mut(&mut self.steps[i]);
        if step.host.is_none() {
            step.host.clone_from(&assigned.host);
        }
        if assigned.purpose == Purpose::Run {
            step.output = None;
        }
        step.attempts.push(Attempt {
            number: assigned.attempt,
            purpose: assigned.purpose,
            agent: assigned.agent.clone(),
            instance: assigned.instance.clone(),
            host: assigned.host.clone(),
            assigned_at: at,
            dispatch_until: assigned.dispatch_until,
            ends_by: assigned.ends_by,
            with: Arc::clone(&assigned.with),
            undoes: assigned.undoes,
            lost_at: None,
            status: None,
            end: None,
            reported_late: None,
        });
        self.enter(i, at, StepState::Active, touched);
        Ok(())
    }

    pub(super) fn attempt_prepared(
        &mut self,
        id: &StepId,
        attempt: AttemptNumber,
        undo: &Arc<Value>,
        touched: &mut Touched,
    ) -> Result<(), String> {
        let (i, n) = self.live(id, attempt)?;
        refuse(self.steps[i].attempts[n].purpose != Purpose::Run, "only attempts of purpose run prepare an undo")?;
        self.touch(i, touched).prepared.insert(attempt, Arc::clone(undo));
        Ok(())
    }

    /// A stale report is evidence; but of what the run has ended without, the first one says how it ended.
    pub(super) fn note_late_report(&mut self, at: Timestamp, event: &Event) {
        let Event::ReportArrivedStale { step, attempt, agent, instance, report } = event else { return };
        let finished = report.get("finished").and_then(|outcome| Outcome::deserialize(outcome).ok());
        if let (Some(outcome), Ok((i, n)), true) = (finished, self.live(step, *attempt), self.has_ended()) {
            let known = &self.steps[i].attempts[n];
            if known.agent == *agent && known.instance == *instance && known.reported_late.is_none() {
                Arc::make_mut(&mut self.steps[i]).attempts[n].reported_late = Some((at, outcome));
            }
        }
    }

    pub(super) fn attempt_ended(
        &mut self,
        at: Timestamp,
        id: &StepId,
        attempt: AttemptNumber,
        end: &AttemptEnd,
        next: &StepNext,
        touched: &mut Touched,
    ) -> Result<(), String> {
        let (i, n) = self.live(id, attempt)?;
        let undo = self.steps[i].attempts[n].purpose == Purpose::Undo;
        let fits = match next {
            StepNext::Queued { .. } | StepNext::Asking { .. } => undoes(next) == undo && (undo || self.does_steps()),
            StepNext::Undone => undo,
            StepNext::Succeeded | StepNext::Failed { .. } | StepNext::Cancelled => !undo,
            StepNext::Waiting { .. } | StepNext::Skipped { .. } => false,
        };
        refuse(!fits, "the step can't go there after an attempt of this purpose")?;
        let never_began = matches!(end, AttemptEnd::NotStarted { .. });
        refuse(never_began && self.live_attempt_has_begun(i), "the attempt has begun")?;
        let order = self.done_count;
        let plan = Arc::clone(&self.plan);
        let step = Arc::make_mut(&mut self.steps[i]);
        step.attempts[n].end = Some((at, end.clone()));
        if step.attempts[n].purpose == Purpose::Run && !matches!(end, AttemptEnd::NotStarted { .. }) {
            step.done_order = Some(order);
            self.done_count += 1;
        }
        match end {
            AttemptEnd::Finished { outcome } => {
                step.queued_since = None;
                if let Outcome::Succeeded { output, .. } = outcome {
                    match step.attempts[n].purpose {
                        Purpose::Run | Purpose::Probe => {
                            step.output = Some(Arc::clone(output));
                            step.done = true;
                        }
                        Purpose::Undo => match step.attempts[n].undoes {
                            Some(undone) => drop(step.prepared.remove(&undone)),
                            None => step.prepared.clear(),
                        },
                        Purpose::Verify => {}
                    }
                }
            }
            AttemptEnd::NotStarted { why } => {
                if step.attempts.iter().all(|a| matches!(a.end, Some((_, AttemptEnd::NotStarted { .. })))) {
                    step.host = None;
                }
                match why {
                    NotStarted::Refused { .. } => drop(step.excluded.insert(step.attempts[n].instance.clone())),
                    NotStarted::Busy | NotStarted::Draining | NotStarted::Denied | NotStarted::Unsent => {}
                }
            }
            AttemptEnd::Unknown { ended_by: _ } => step.queued_since = None,
        }
        step.verify_until = match (next, &plan.steps[i].verify) {
            (StepNext::Queued { purpose: Purpose::Verify, .. }, Some(verify)) => {
                Some(step.verify_until.unwrap_or_else(|| after(at, verify.within_ms)))
            }
            (_, _) => None,
        };
        self.enter(i, at, next.into(), touched);
        Ok(())
    }

    /// Index of the step and of the attempt, which must be its last and not have ended.
    pub(super) fn live(&self, id: &StepId, attempt: AttemptNumber) -> Result<(usize, usize), String> {
        let i = self.known(id)?;
        match self.steps[i].live_attempt() {
            Some((live, _)) if live == attempt => Ok((i, self.steps[i].attempts.len() - 1)),
            Some(_) | None => Err(format!("attempt {attempt} of step {id} is not at work")),
        }
    }

    pub(super) fn on_live(
        &mut self,
        id: &StepId,
        attempt: AttemptNumber,
        touched: &mut Touched,
        change: impl FnOnce(&mut Attempt),
    ) -> Result<(), String> {
        let (i, n) = self.live(id, attempt)?;
        change(&mut self.touch(i, touched).attempts[n]);
        Ok(())
    }

    pub(in crate::run) fn touch(&mut self, i: usize, touched: &mut Touched) -> &mut Step {
        touched.steps.push(i);
        Arc::make_mut(&mut self.steps[i])
    }
}

/// Whether this is a place that only the walk back leads to (or a question, which everything can lead to).
fn undoes(next: &StepNext) -> bool {
    match next {
        StepNext::Queued { purpose, .. } => *purpose == Purpose::Undo,
        StepNext::Asking { kind, .. } => *kind == QuestionKind::UndoFailed,
        StepNext::Undone => true,
        StepNext::Waiting { .. }
        | StepNext::Succeeded
        | StepNext::Failed { .. }
        | StepNext::Skipped { .. }
        | StepNext::Cancelled => false,
    }
}

/// Whether something is to be done about it, sooner or later.
pub(crate) fn is_awake(state: &StepState) -> bool {
    match state {
        StepState::Queued { .. } | StepState::Active | StepState::Waiting { .. } | StepState::Asking { .. } => true,
        StepState::Pending
        | StepState::Succeeded
        | StepState::Failed { .. }
        | StepState::Skipped { .. }
        | StepState::Cancelled
        | StepState::Undone => false,
    }
}

pub(crate) fn is_open(state: &StepState) -> bool {
    match state {
        StepState::Pending
        | StepState::Queued { .. }
        | StepState::Active
        | StepState::Waiting { .. }
        | StepState::Asking { .. } => true,
        StepState::Succeeded
        | StepState::Failed { .. }
        | StepState::Skipped { .. }
        | StepState::Cancelled
        | StepState::Undone => false,
    }
}
