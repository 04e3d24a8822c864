//! What should be true outside of the journal, derived from state: after a crash, replay and ask again.

use std::{collections::BTreeSet, fmt, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Fence, Run, Touched,
    event::{PhaseOutcome, Purpose, Subject},
    state::{MilestoneState, PhaseState, RunState, StepState},
};
use crate::{
    ids::{AgentName, AttemptNumber, HostLabel, InstanceId, PhaseId, StepId},
    plan::{ActionScope, AgentSelector, PinnedAction, PlannedUndo, Priority, StepFacts},
};

/// Something that the driver has to see to, again and again until the state no longer says it. Doing it twice does no harm.
#[derive(Clone, Debug, PartialEq)]
pub enum Outstanding {
    /// Find an instance for a queued step.
    Place(Place),
    /// Send an unconfirmed attempt to its instance.
    Dispatch(Box<Dispatch>),
    /// Tell an instance to stop an attempt.
    CancelAttempt(CancelAttempt),
    /// Send [`super::Command::Tick`] at this moment, or look again at the run.
    WakeAt(WakeUp),
}

/// A queued step whose moment has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Index of the step in the plan.
    pub index: usize,
    /// Its id.
    pub step: StepId,
    /// What for.
    pub purpose: Purpose,
    /// The action that an instance has to offer.
    pub action: Arc<PinnedAction>,
    /// Role, labels and host that the playbook asks for.
    pub selector: Arc<AgentSelector>,
    /// The only host where it may go; none: any.
    pub host: Option<HostLabel>,
    /// Instances that have refused it.
    pub excluded: BTreeSet<InstanceId>,
    /// Since when it waits: its place in the queue of its role.
    pub since: Timestamp,
    /// Of its phase.
    pub priority: Priority,
}

/// All that a task message says of an attempt; no policy is needed to build one.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// Index of the step in the plan.
    pub index: usize,
    /// Its id.
    pub step: StepId,
    /// The attempt's number.
    pub attempt: AttemptNumber,
    /// As the task says it: an undo by another action is that action's `run`.
    pub purpose: Purpose,
    /// What is done, in which version.
    pub action: Arc<PinnedAction>,
    /// Whose subject.
    pub agent: AgentName,
    /// Which process of it.
    pub instance: InstanceId,
    /// The parameters.
    pub with: Arc<Value>,
    /// What `prepared` recorded, for purpose `undo`.
    pub undo: Option<Arc<Value>>,
    /// The agent has to send `prepared` before it changes anything.
    pub prepare: bool,
    /// Enforced by the agent, in milliseconds.
    pub timeout_ms: u64,
    /// A status at least this often, in milliseconds.
    pub status_ms: u64,
    /// Names of secrets it may use.
    pub secrets: Arc<[String]>,
    /// Nothing is sent after this.
    pub dispatch_until: Timestamp,
}

/// An attempt to be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelAttempt {
    /// The step's index in the plan.
    pub index: usize,
    /// Of which step.
    pub step: StepId,
    /// Its number.
    pub attempt: AttemptNumber,
    /// Who has it.
    pub agent: AgentName,
    /// Which process of it.
    pub instance: InstanceId,
}

/// The next moment at which something is due by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeUp {
    /// When.
    pub at: Timestamp,
    /// What is due then.
    pub why: Wake,
}

/// How a run waits that waits for nothing but time and people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// When it has to be looked at next.
    pub until: Timestamp,
    /// It waits for a moment of the wall clock, which it takes to be ahead of the journal's times by so many milliseconds.
    pub wall_ahead_ms: Option<i64>,
}

/// What is due at a wake-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A step may start from then on: look at [`Run::outstanding`].
    MayStart(StepId),
    /// A step has waited long for an agent: a reminder, or the end of its wait.
    NoAgent(StepId),
    /// A wait for a moment is over, or one for a signal is given up or has been long.
    WaitDue(StepId),
    /// An attempt has ended by the clock, unless its instance says that it holds it.
    AttemptClock(StepId, AttemptNumber),
    /// A question is asked again.
    Reminder(Subject),
    /// A milestone becomes at risk.
    MilestoneAtRisk(PhaseId),
    /// A milestone's deadline.
    MilestoneDue(PhaseId),
}

impl fmt::Display for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MayStart(step) => write!(f, "step {step} may start"),
            Self::NoAgent(step) => write!(f, "step {step} has waited long for an agent"),
            Self::WaitDue(step) => write!(f, "the wait of step {step} is over, or has been long"),
            Self::AttemptClock(step, attempt) => write!(f, "attempt {attempt} of step {step} has ended by the clock"),
            Self::Reminder(Subject::Run) => f.write_str("the run is paused"),
            Self::Reminder(Subject::Step { step }) => write!(f, "step {step} waits for a person"),
            Self::MilestoneAtRisk(phase) => write!(f, "the milestone of phase {phase} is at risk"),
            Self::MilestoneDue(phase) => write!(f, "the milestone of phase {phase} is due"),
        }
    }
}

impl Run {
    /// Everything outstanding: at recovery, and in tests. Otherwise [`Run::outstanding_for`] is enough.
    pub fn outstanding(&self, now: Timestamp) -> Vec<Outstanding> {
        let mut all = Vec::new();
        if !self.has_ended() {
            for i in &self.awake {
                self.step_outstanding(*i, now, &mut all);
            }
        }
        all.extend(self.wake_up(now).map(Outstanding::WakeAt));
        all
    }

    /// What an event has made outstanding: of the steps it touched, or of all when it touched the run; and the wake-up.
    pub fn outstanding_for(&self, touched: &Touched, now: Timestamp) -> Vec<Outstanding> {
        if touched.run {
            return self.outstanding(now);
        }
        let mut all = Vec::with_capacity(touched.steps.len() + 1);
        if !self.has_ended() {
            for (n, i) in touched.steps.iter().enumerate() {
                if !touched.steps[..n].contains(i) {
                    self.step_outstanding(*i, now, &mut all);
                }
            }
        }
        all.extend(self.wake_up(now).map(Outstanding::WakeAt));
        all
    }

    /// The next moment at which something is due by itself; none only when the run has ended, or something is outstanding
    /// right now.
    pub fn wake_up(&self, now: Timestamp) -> Option<WakeUp> {
        if self.has_ended() {
            return None;
        }
        let steps = self.awake.iter().filter_map(|i| self.step_wakes(*i, now));
        let phases = self.phases.iter().enumerate().filter_map(|(p, phase)| {
            if phase.state == PhaseState::Ended(PhaseOutcome::Skipped) {
                return None;
            }
            let milestone = phase.milestone.as_ref()?;
            match milestone.state {
                MilestoneState::Pending => milestone.at_risk_at.map(|at| (at, Due::AtRisk(p))),
                MilestoneState::AtRisk => milestone.due_at.map(|at| (at, Due::Missed(p))),
                MilestoneState::Missed
                | MilestoneState::Reached
                | MilestoneState::ReachedLate
                | MilestoneState::Skipped => None,
            }
        });
        let pause = self.pause.as_ref().map(|p| (p.remind_at, Due::Pause));
        let (at, due) = steps.chain(phases).chain(pause).min_by_key(|(at, _)| *at)?;
        Some(WakeUp { at, why: self.why(due) })
    }

    /// Whether, and how, the run waits for nothing but time and people: no attempt is at work, and no step may be given to an
    /// agent. None for a run that has ended.
    pub fn rest(&self) -> Option<Rest> {
        let waits = |i: &usize| match &self.steps[*i].state {
            StepState::Waiting { .. } | StepState::Asking { .. } => true,
            StepState::Queued { .. } => self.pause.is_some(),
            StepState::Pending
            | StepState::Active
            | StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => false,
        };
        if !self.awake.iter().all(waits) {
            return None;
        }
        // A queued step of a paused run wakes nobody, so the moment does not depend on the present one.
        let until = self.wake_up(Timestamp::MIN)?.at;
        Some(Rest { until, wall_ahead_ms: self.waits_for_moment().then_some(self.wall_ahead_ms) })
    }

    /// The only host where a step may go for a purpose: where the playbook says, or where host-scoped work has begun.
    pub fn host_for(&self, i: usize, purpose: Purpose) -> Option<&HostLabel> {
        let asked = self.plan.steps[i].agent.host.as_ref();
        match self.action_for(i, purpose).facts.scope {
            ActionScope::Host => self.steps[i].host.as_ref().or(asked),
            ActionScope::Target => asked,
        }
    }

    /// The action that an attempt of this purpose is made of.
    pub fn action_for(&self, i: usize, purpose: Purpose) -> &Arc<PinnedAction> {
        action_of(&self.plan.facts().steps[i], purpose)
    }

    fn step_outstanding(&self, i: usize, now: Timestamp, all: &mut Vec<Outstanding>) {
        let step = &self.steps[i];
        match &step.state {
            StepState::Queued { purpose, not_before, .. } if *not_before <= now && self.pause.is_none() => {
                all.push(Outstanding::Place(self.place(i, *purpose)));
            }
            StepState::Active => {
                let Some((number, attempt)) = step.live_attempt() else { return };
                // What was sent before records were lost is not sent again: it may have ended in them.
                if now < attempt.dispatch_until && number >= self.attempts_from {
                    all.push(Outstanding::Dispatch(Box::new(self.dispatch(i, number))));
                }
                if self.tells_to_stop(i, attempt.purpose) {
                    all.push(Outstanding::CancelAttempt(CancelAttempt {
                        index: i,
                        step: self.plan.steps[i].id.clone(),
                        attempt: number,
                        agent: attempt.agent.clone(),
                        instance: attempt.instance.clone(),
                    }));
                }
            }
            StepState::Queued { .. }
            | StepState::Pending
            | StepState::Waiting { .. }
            | StepState::Asking { .. }
            | StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => {}
        }
    }

    /// Whether the agent is told to stop an attempt: not what is done whatever happens. What a run has ended without was left by a
    /// forced cancellation.
    pub(super) fn tells_to_stop(&self, i: usize, purpose: Purpose) -> bool {
        let stops = match self.state {
            RunState::Cancelling | RunState::Ended { .. } => true,
            RunState::Running | RunState::RollingBack | RunState::Finishing { .. } => false,
        };
        stops && purpose != Purpose::Undo && !self.plan.steps[i].always
    }

    /// Whether the run has ended without this attempt, which may still be at work at its agent; and if so, whether that is to stop it.
    /// None once its end has been reported.
    pub fn left_behind(&self, fence: &Fence) -> Option<bool> {
        let i = self.step_index(&fence.step).filter(|_| self.has_ended() && self.is_live(fence))?;
        let (_, attempt) = self.steps[i].live_attempt().filter(|(_, attempt)| attempt.reported_late.is_none())?;
        Some(self.tells_to_stop(i, attempt.purpose))
    }

    fn place(&self, i: usize, purpose: Purpose) -> Place {
        let (planned, step) = (&self.plan.steps[i], &self.steps[i]);
        let facts = &self.plan.facts().steps[i];
        Place {
            index: i,
            step: planned.id.clone(),
            purpose,
            action: Arc::clone(action_of(facts, purpose)),
            selector: Arc::clone(&facts.selector),
            host: self.host_for(i, purpose).cloned(),
            excluded: step.excluded.clone(),
            since: step.queued_since.unwrap_or(step.since),
            priority: self.plan.phases[planned.phase].priority,
        }
    }

    fn dispatch(&self, i: usize, number: AttemptNumber) -> Dispatch {
        let (planned, step) = (&self.plan.steps[i], &self.steps[i]);
        let index = self.plan.facts();
        let attempt = &step.attempts[step.attempts.len() - 1];
        let auto = match planned.undo {
            PlannedUndo::Auto => true,
            PlannedUndo::Action { .. } | PlannedUndo::Irreversible | PlannedUndo::Nothing => false,
        };
        let purpose = match attempt.purpose {
            Purpose::Undo if !auto => Purpose::Run,
            purpose @ (Purpose::Run | Purpose::Probe | Purpose::Verify | Purpose::Undo) => purpose,
        };
        Dispatch {
            index: i,
            step: planned.id.clone(),
            attempt: number,
            purpose,
            action: Arc::clone(action_of(&index.steps[i], attempt.purpose)),
            agent: attempt.agent.clone(),
            instance: attempt.instance.clone(),
            with: Arc::clone(&attempt.with),
            undo: attempt.undoes.and_then(|n| step.prepared.get(&n)).cloned(),
            prepare: auto && attempt.purpose == Purpose::Run && planned.action.facts.undoable,
            timeout_ms: planned.timeout_ms,
            status_ms: planned.status_ms,
            secrets: Arc::clone(&index.secrets),
            dispatch_until: attempt.dispatch_until,
        }
    }

    fn step_wakes(&self, i: usize, now: Timestamp) -> Option<(Timestamp, Due)> {
        let step = &self.steps[i];
        match &step.state {
            StepState::Queued { .. } if self.pause.is_some() => None,
            StepState::Queued { not_before, .. } if *not_before > now => Some((*not_before, Due::MayStart(i))),
            StepState::Queued { wake_at, .. } => Some((*wake_at, Due::NoAgent(i))),
            StepState::Active => step.live_attempt().map(|(_, a)| (a.ends_by, Due::Clock(i))),
            StepState::Waiting { wake_at, .. } => Some((*wake_at, Due::Wait(i))),
            StepState::Asking { remind_at, .. } => Some((*remind_at, Due::Question(i))),
            StepState::Pending
            | StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => None,
        }
    }

    fn why(&self, due: Due) -> Wake {
        let step = |i: usize| self.plan.steps[i].id.clone();
        let phase = |p: usize| self.plan.phases[p].id.clone();
        match due {
            Due::MayStart(i) => Wake::MayStart(step(i)),
            Due::NoAgent(i) => Wake::NoAgent(step(i)),
            Due::Wait(i) => Wake::WaitDue(step(i)),
            Due::Clock(i) => Wake::AttemptClock(step(i), self.steps[i].live_attempt().map_or(0, |(number, _)| number)),
            Due::Question(i) => Wake::Reminder(Subject::Step { step: step(i) }),
            Due::Pause => Wake::Reminder(Subject::Run),
            Due::AtRisk(p) => Wake::MilestoneAtRisk(phase(p)),
            Due::Missed(p) => Wake::MilestoneDue(phase(p)),
        }
    }
}

/// [`Wake`] by index, so that looking for the earliest copies no names.
#[derive(Clone, Copy)]
enum Due {
    MayStart(usize),
    NoAgent(usize),
    Wait(usize),
    Clock(usize),
    Question(usize),
    Pause,
    AtRisk(usize),
    Missed(usize),
}

fn action_of(facts: &StepFacts, purpose: Purpose) -> &Arc<PinnedAction> {
    match purpose {
        Purpose::Run | Purpose::Probe => &facts.run,
        Purpose::Verify => facts.verify.as_ref().unwrap_or(&facts.run),
        Purpose::Undo => facts.undo.as_ref().unwrap_or(&facts.run),
    }
}
