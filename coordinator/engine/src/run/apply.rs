//! Events to state: no policy, no choice, total. Every pair of state and event is either a step that the state machine
//! takes or [`Corrupt`]; nothing is ignored, nothing panics. A corrupt event leaves the run as it was.

pub(super) mod step;

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    event::{Event, PhaseOutcome, Purpose, QuestionKind, RunOutcome, RunStarted, StepNext, Subject},
    state::{
        Cancel, Gate, Milestone, MilestoneState, Pause, Phase, PhaseState, Rollback, Run, RunState, Step, StepState,
    },
};
use crate::{
    ids::{Actor, AttemptNumber, PhaseId, StepId},
    plan::PlannedPhase,
    policy::{deadline, timeout},
};

/// What an event changed. The driver looks again at these, and at nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Indexes of steps, in the order in which they changed; one may be named twice.
    pub steps: Vec<usize>,
    /// Indexes of phases.
    pub phases: Vec<usize>,
    /// The run's own state, pause, cancellation or walk back.
    pub run: bool,
}

impl Touched {
    /// Everything of both.
    pub fn merge(&mut self, other: Self) {
        if self.steps.is_empty() {
            self.steps = other.steps;
        } else {
            self.steps.extend(other.steps);
        }
        self.phases.extend(other.phases);
        self.run |= other.run;
    }

    /// Nothing has changed that anybody could act on.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.phases.is_empty() && !self.run
    }
}

/// An event that can't have happened to this run: the history is damaged, or of another run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {seq} of the run ({event}) does not fit: {why}")]
pub struct Corrupt {
    /// Its sequence number in the run's stream.
    pub seq: u64,
    /// Its type.
    pub event: &'static str,
    /// What does not fit.
    pub why: String,
}

impl Run {
    /// The state after the first event. Everything else goes through [`Run::apply`].
    pub fn start(at: Timestamp, by: &Actor, started: &RunStarted) -> Self {
        let plan = Arc::clone(&started.plan);
        let phases = plan.phases.iter().map(|p| Arc::new(new_phase(at, p))).collect();
        let steps = plan.steps.iter().map(|_| Arc::new(new_step(at))).collect();
        Self {
            id: started.run.clone(),
            namespace: started.namespace.clone(),
            plan,
            plan_digest: started.plan_digest.clone(),
            started_by: by.clone(),
            note: started.note.clone(),
            started_at: at,
            updated_at: at,
            seq: 1,
            state: RunState::Running,
            pause: None,
            cancel: None,
            rollback: None,
            failure: None,
            outputs: None,
            signals: std::collections::BTreeMap::new(),
            wall_ahead_ms: 0,
            phases,
            steps,
            awake: std::collections::BTreeSet::new(),
            done_count: 0,
            attempts_from: 1,
        }
    }

    /// Take an event that was journalled at `at`. Deterministic: the same events at the same times give equal states.
    ///
    /// # Errors
    /// [`Corrupt`] when the event can't have happened in this state; the state is as it was.
    pub fn apply(&mut self, at: Timestamp, event: &Event) -> Result<Touched, Corrupt> {
        let mut touched = Touched::default();
        self.change(at, event, &mut touched).map_err(|why| Corrupt { seq: self.seq + 1, event: event.kind(), why })?;
        self.note_late_report(at, event);
        self.seq += 1;
        self.updated_at = self.updated_at.max(at);
        Ok(touched)
    }

    fn change(&mut self, at: Timestamp, event: &Event, touched: &mut Touched) -> Result<(), String> {
        if matches!(self.state, RunState::Ended { .. }) && !matches!(event, Event::ReportArrivedStale { .. }) {
            return Err("the run has ended".into());
        }
        match event {
            Event::RunStarted(_) => Err("the run has already started".into()),
            Event::PhaseStarted { phase } => self.phase_started(at, phase, touched),
            Event::StepMoved { step, next } => self.step_moved(at, step, next, touched),
            Event::StepResolved { step, resolution: _, reason, output, next } => {
                self.step_resolved(at, step, reason, output.as_ref(), next, touched)
            }
            Event::AttemptAssigned(assigned) => self.attempt_assigned(at, assigned, touched),
            Event::AttemptPrepared { step, attempt, undo } => self.attempt_prepared(step, *attempt, undo, touched),
            Event::StatusReported { step, attempt, status } => {
                self.on_live(step, *attempt, touched, |a| a.status = Some(status.clone()))
            }
            Event::AttemptLost { step, attempt } => {
                self.on_live(step, *attempt, touched, |a| a.lost_at = Some(a.lost_at.unwrap_or(at)))
            }
            Event::AttemptFound { step, attempt } => self.on_live(step, *attempt, touched, |a| a.lost_at = None),
            Event::AttemptExtended { step, attempt, ends_by } => {
                self.on_live(step, *attempt, touched, |a| a.ends_by = *ends_by)
            }
            Event::AttemptEnded { step, attempt, end, next } => {
                self.attempt_ended(at, step, *attempt, end, next, touched)
            }
            Event::ReportArrivedStale { .. } => Ok(()),
            Event::OwnerReminded { subject, next_at } => self.owner_reminded(subject, *next_at, touched),
            Event::GateJudged { phase, verdict, criteria } => {
                let gate = Gate { verdict: *verdict, criteria: criteria.clone(), at };
                self.active_phase(phase, touched).map(|phase| phase.gate = Some(gate))
            }
            Event::SignalReceived { signal, payload, reason: _ } => self.signal_received(signal, payload, touched),
            Event::QueueClocksRestarted => self.queue_clocks_restarted(at, touched),
            Event::WallClockMoved { ahead_ms } => self.wall_clock_moved(*ahead_ms, touched),
            Event::PhaseEnded { phase, outcome } => self.phase_ended(at, phase, *outcome, touched),
            Event::MilestoneAtRisk { phase } => self.milestone(at, phase, MilestoneState::AtRisk, touched),
            Event::MilestoneMissed { phase } => self.milestone(at, phase, MilestoneState::Missed, touched),
            Event::MilestoneReached { phase, late } => {
                let state = if *late { MilestoneState::ReachedLate } else { MilestoneState::Reached };
                self.milestone(at, phase, state, touched)
            }
            Event::RunPaused { reason, question, remind_at } => {
                let (reason, question) = (reason.clone(), question.clone());
                self.run_paused(Pause { reason, question, since: at, remind_at: *remind_at }, touched)
            }
            Event::RecordsLost { attempts_from, reason, question, remind_at } => {
                let (reason, question) = (reason.clone(), Some(question.clone()));
                let pause = Pause { reason, question, since: at, remind_at: *remind_at };
                self.records_lost(*attempts_from, pause, touched)
            }
            Event::RunResumed { reason: _ } => self.run_resumed(at, touched),
            Event::CancelRequested { reason, undo, force } => {
                let cancel = Cancel { reason: reason.clone(), undo: *undo, force: *force, since: at };
                self.cancel_requested(at, cancel, touched)
            }
            Event::RollbackRequested { reason } => self.rollback_requested(at, reason, touched),
            Event::RollbackStarted { reason, steps, irreversible } => {
                let (remaining, irreversible) = (self.all_known(steps)?, self.all_known(irreversible)?);
                self.rollback_started(Rollback { reason: reason.clone(), remaining, irreversible, since: at }, touched)
            }
            Event::FinishStarted { outcome, reason, steps } => {
                let (steps, reason) = (self.all_known::<Vec<_>>(steps)?, reason.clone());
                self.finish_started(at, RunState::Finishing { outcome: *outcome, reason }, &steps, touched)
            }
            Event::RunEnded { outcome, reason, outputs } => {
                self.run_ended(at, *outcome, reason, touched);
                self.outputs.clone_from(outputs);
                Ok(())
            }
        }
    }

    fn phase_started(&mut self, at: Timestamp, id: &PhaseId, touched: &mut Touched) -> Result<(), String> {
        let p = self.known_phase(id)?;
        refuse(self.phases[p].state != PhaseState::Pending, "the phase has begun already")?;
        refuse(self.state != RunState::Running, "the run starts nothing new")?;
        let phase = Arc::make_mut(&mut self.phases[p]);
        phase.state = PhaseState::Active;
        phase.since = at;
        touched.phases.push(p);
        let plan = Arc::clone(&self.plan);
        for i in &plan.phases[p].steps {
            self.queue_if_ready(*i, at, touched);
        }
        Ok(())
    }

    fn phase_ended(
        &mut self,
        at: Timestamp,
        id: &PhaseId,
        outcome: PhaseOutcome,
        touched: &mut Touched,
    ) -> Result<(), String> {
        let p = self.known_phase(id)?;
        let fits = match (self.phases[p].state, outcome) {
            (PhaseState::Active, PhaseOutcome::Completed) => self.phases[p].open_steps == 0,
            (PhaseState::Active, PhaseOutcome::Failed) | (PhaseState::Pending, PhaseOutcome::Skipped) => true,
            (PhaseState::Active, PhaseOutcome::Skipped)
            | (PhaseState::Pending, PhaseOutcome::Completed | PhaseOutcome::Failed)
            | (PhaseState::Ended(_), PhaseOutcome::Completed | PhaseOutcome::Skipped | PhaseOutcome::Failed) => false,
        };
        refuse(!fits, "the phase can't end like this")?;
        let phase = Arc::make_mut(&mut self.phases[p]);
        phase.state = PhaseState::Ended(outcome);
        phase.since = at;
        touched.phases.push(p);
        if outcome == PhaseOutcome::Skipped {
            if let Some(milestone) = phase.milestone.as_mut().filter(|m| m.state.is_open()) {
                milestone.state = MilestoneState::Skipped;
                milestone.since = at;
            }
            let plan = Arc::clone(&self.plan);
            for i in &plan.phases[p].steps {
                if self.steps[*i].state == StepState::Pending {
                    let reason = format!("phase {id} is skipped");
                    self.enter(*i, at, StepState::Skipped { reason }, touched);
                }
            }
        }
        Ok(())
    }

    fn owner_reminded(&mut self, subject: &Subject, next_at: Timestamp, touched: &mut Touched) -> Result<(), String> {
        match subject {
            Subject::Run => {
                let pause = self.pause.as_mut().ok_or("the run is not paused")?;
                pause.remind_at = next_at;
                touched.run = true;
                Ok(())
            }
            Subject::Step { step } => {
                let i = self.known(step)?;
                let state = &self.steps[i].state;
                let wakes =
                    matches!(state, StepState::Queued { .. } | StepState::Waiting { .. } | StepState::Asking { .. });
                refuse(!wakes, "the step waits for nothing")?;
                match &mut self.touch(i, touched).state {
                    StepState::Queued { wake_at: at, .. }
                    | StepState::Waiting { wake_at: at, .. }
                    | StepState::Asking { remind_at: at, .. } => *at = next_at,
                    StepState::Pending
                    | StepState::Active
                    | StepState::Succeeded
                    | StepState::Failed { .. }
                    | StepState::Skipped { .. }
                    | StepState::Cancelled
                    | StepState::Undone => {}
                }
                Ok(())
            }
        }
    }

    fn milestone(
        &mut self,
        at: Timestamp,
        id: &PhaseId,
        next: MilestoneState,
        touched: &mut Touched,
    ) -> Result<(), String> {
        let p = self.known_phase(id)?;
        let was = self.phases[p].milestone.as_ref().ok_or("the phase has no milestone")?.state;
        let fits = match next {
            MilestoneState::Pending | MilestoneState::Skipped => false,
            MilestoneState::AtRisk => was == MilestoneState::Pending,
            MilestoneState::Missed => was.is_open(),
            MilestoneState::Reached | MilestoneState::ReachedLate => was.is_open() || was == MilestoneState::Missed,
        };
        refuse(!fits, "the milestone can't go there from where it is")?;
        if let Some(milestone) = &mut Arc::make_mut(&mut self.phases[p]).milestone {
            milestone.state = next;
            milestone.since = at;
        }
        touched.phases.push(p);
        Ok(())
    }

    fn cancel_requested(&mut self, at: Timestamp, cancel: Cancel, touched: &mut Touched) -> Result<(), String> {
        let again = match self.state {
            RunState::Running => false,
            RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } => true,
            RunState::Ended { .. } => return Err("the run has ended".into()),
        };
        refuse(again && !cancel.force, "the run is being cancelled or walked back already")?;
        self.state = RunState::Cancelling;
        self.pause = None;
        if let Some(rollback) = &mut self.rollback {
            // It is cut off; what it has not taken back is said at the end.
            rollback.remaining.clear();
        }
        self.cancel = Some(cancel);
        self.close_open_steps(at, touched);
        Ok(())
    }

    fn run_paused(&mut self, pause: Pause, touched: &mut Touched) -> Result<(), String> {
        refuse(self.pause.is_some(), "the run is paused already")?;
        self.pause = Some(pause);
        touched.run = true;
        Ok(())
    }

    fn records_lost(&mut self, from: AttemptNumber, pause: Pause, touched: &mut Touched) -> Result<(), String> {
        refuse(from < self.attempts_from, "numbers of attempts that may have been used")?;
        self.attempts_from = from;
        self.pause = Some(pause);
        touched.run = true;
        Ok(())
    }

    fn run_resumed(&mut self, at: Timestamp, touched: &mut Touched) -> Result<(), String> {
        refuse(self.pause.is_none(), "the run is not paused")?;
        self.pause = None;
        touched.run = true;
        touched.steps.extend(self.failed_in_active_phase());
        self.wait_afresh(at, touched);
        Ok(())
    }

    fn rollback_requested(&mut self, at: Timestamp, reason: &str, touched: &mut Touched) -> Result<(), String> {
        refuse(self.state != RunState::Running, "the run is being cancelled or walked back already")?;
        self.state = RunState::RollingBack;
        self.failure.get_or_insert_with(|| reason.to_owned());
        self.close_open_steps(at, touched);
        Ok(())
    }

    fn rollback_started(&mut self, rollback: Rollback, touched: &mut Touched) -> Result<(), String> {
        refuse(self.does_steps(), "nothing has stopped the run")?;
        refuse(self.rollback.is_some(), "the walk back has begun already")?;
        refuse(self.live_steps().next().is_some(), "an attempt could be at work")?;
        self.state = RunState::RollingBack;
        self.rollback = Some(rollback);
        touched.run = true;
        Ok(())
    }

    fn finish_started(
        &mut self,
        at: Timestamp,
        finishing: RunState,
        steps: &[usize],
        touched: &mut Touched,
    ) -> Result<(), String> {
        refuse(self.does_steps(), "nothing has stopped the run")?;
        refuse(!self.awake.is_empty(), "something else is not over")?;
        refuse(steps.is_empty() || !steps.iter().all(|i| self.may_come_last(*i)), "the steps do not come last")?;
        self.state = finishing;
        touched.run = true;
        for i in steps {
            self.revive(*i, at, touched);
        }
        for i in steps {
            self.queue_if_ready(*i, at, touched);
        }
        Ok(())
    }

    fn queue_clocks_restarted(&mut self, at: Timestamp, touched: &mut Touched) -> Result<(), String> {
        refuse(!self.has_queue_clock(), "nothing waits for an agent, for so long at most")?;
        self.wait_afresh(at, touched);
        Ok(())
    }

    /// Whether a step gives up its wait for an agent at some time.
    pub fn has_queue_clock(&self) -> bool {
        let ends = |i: &usize| self.plan.steps[*i].queue_timeout_ms.is_some();
        let waits = |i: &usize| matches!(self.steps[*i].state, StepState::Queued { .. });
        self.pause.is_none() && self.awake.iter().any(|i| ends(i) && waits(i))
    }

    /// Nobody could take a step, since the run was paused or nobody could be asked: the wait of each begins again.
    fn wait_afresh(&mut self, at: Timestamp, touched: &mut Touched) {
        for i in self.awake.clone() {
            let timeout_ms = self.plan.steps[i].queue_timeout_ms;
            let step = Arc::make_mut(&mut self.steps[i]);
            if let StepState::Queued { wake_at, not_before, .. } = &mut step.state {
                let since = at.max(*not_before);
                step.queued_since = Some(since);
                *wake_at = timeout::queue_wake(since, since, timeout_ms);
                touched.steps.push(i);
            }
        }
    }

    /// Nothing waits any more: what has not begun is cancelled, questions are moot, what was done stays done.
    fn close_open_steps(&mut self, at: Timestamp, touched: &mut Touched) {
        touched.run = true;
        for i in 0..self.steps.len() {
            let next = match &self.steps[i].state {
                StepState::Queued { purpose: Purpose::Verify, .. } if self.steps[i].done => StepState::Succeeded,
                StepState::Pending | StepState::Queued { .. } | StepState::Waiting { .. } => StepState::Cancelled,
                StepState::Asking { question, kind, .. } => match kind {
                    QuestionKind::Failed | QuestionKind::UndoFailed => StepState::Failed { reason: question.clone() },
                    QuestionKind::NeedsPerson | QuestionKind::MayHaveRun => StepState::Cancelled,
                },
                StepState::Active
                | StepState::Succeeded
                | StepState::Failed { .. }
                | StepState::Skipped { .. }
                | StepState::Cancelled
                | StepState::Undone => continue,
            };
            self.enter(i, at, next, touched);
        }
    }

    fn run_ended(&mut self, at: Timestamp, outcome: RunOutcome, reason: &str, touched: &mut Touched) {
        self.state = RunState::Ended { outcome, reason: reason.to_owned(), at };
        self.pause = None;
        self.close_open_steps(at, touched);
        if outcome != RunOutcome::Succeeded {
            self.failure.get_or_insert_with(|| reason.to_owned());
            self.miss_open_milestones(at, touched);
        }
    }

    /// Nothing can reach them any more.
    fn miss_open_milestones(&mut self, at: Timestamp, touched: &mut Touched) {
        for (p, phase) in self.phases.iter_mut().enumerate() {
            if !phase.milestone.as_ref().is_some_and(|m| m.state.is_open()) {
                continue;
            }
            if let Some(milestone) = &mut Arc::make_mut(phase).milestone {
                milestone.state = MilestoneState::Missed;
                milestone.since = at;
            }
            touched.phases.push(p);
        }
    }

    fn known(&self, id: &StepId) -> Result<usize, String> {
        self.step_index(id).ok_or_else(|| format!("the plan has no step {id}"))
    }

    fn all_known<'a, C: FromIterator<usize>>(&self, ids: impl IntoIterator<Item = &'a StepId>) -> Result<C, String> {
        ids.into_iter().map(|id| self.known(id)).collect()
    }

    fn known_phase(&self, id: &PhaseId) -> Result<usize, String> {
        self.plan.phase_index(id.as_str()).ok_or_else(|| format!("the plan has no phase {id}"))
    }

    fn active_phase(&mut self, id: &PhaseId, touched: &mut Touched) -> Result<&mut Phase, String> {
        let p = self.known_phase(id)?;
        refuse(self.phases[p].state != PhaseState::Active, "the phase is not active")?;
        touched.phases.push(p);
        Ok(Arc::make_mut(&mut self.phases[p]))
    }
}

fn new_phase(at: Timestamp, planned: &PlannedPhase) -> Phase {
    let milestone = planned.milestone.as_ref().map(|name| Milestone {
        name: name.clone(),
        state: MilestoneState::Pending,
        since: at,
        due_at: planned.deadline_ms.map(|ms| deadline::due_at(at, ms)),
        at_risk_at: planned.deadline_ms.map(|ms| deadline::at_risk_at(at, ms)),
    });
    Phase { state: PhaseState::Pending, since: at, open_steps: planned.steps.len(), gate: None, milestone }
}

fn new_step(at: Timestamp) -> Step {
    Step {
        state: StepState::Pending,
        since: at,
        attempts: Vec::new(),
        output: None,
        done: false,
        done_order: None,
        verify_until: None,
        host: None,
        excluded: std::collections::BTreeSet::new(),
        prepared: std::collections::BTreeMap::new(),
        left: None,
        forgiven_attempts: 0,
        queued_since: None,
    }
}

pub(super) fn refuse(wrong: bool, why: &str) -> Result<(), String> {
    if wrong { Err(why.to_owned()) } else { Ok(()) }
}

impl From<&StepNext> for StepState {
    fn from(next: &StepNext) -> Self {
        match next {
            StepNext::Queued { purpose, not_before, wake_at, why } => {
                Self::Queued { purpose: *purpose, not_before: *not_before, wake_at: *wake_at, why: why.clone() }
            }
            StepNext::Asking { question, kind, remind_at } => {
                Self::Asking { question: question.clone(), kind: *kind, remind_at: *remind_at }
            }
            StepNext::Waiting { signal, ends_at, wake_at } => {
                Self::Waiting { signal: signal.clone(), ends_at: *ends_at, wake_at: *wake_at }
            }
            StepNext::Succeeded => Self::Succeeded,
            StepNext::Failed { reason } => Self::Failed { reason: reason.clone() },
            StepNext::Skipped { reason } => Self::Skipped { reason: reason.clone() },
            StepNext::Cancelled => Self::Cancelled,
            StepNext::Undone => Self::Undone,
        }
    }
}
