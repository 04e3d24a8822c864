//! The state of a run: a fold of its events, and nothing else.
//!
//! Cloning is cheap (steps are shared until they change), so that a driver can decide on a scratch copy and keep the old
//! one until the journal has answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ids::{Actor, AgentName, AttemptNumber, Digest, HostLabel, InstanceId, Namespace, RunId, StepId},
    plan::{OnFailure, Plan},
    run::event::{
        AttemptEnd, Criterion, GateVerdict, Outcome, PhaseOutcome, Purpose, QuestionKind, RunOutcome, StatusNote,
    },
};

/// A run, as its events have made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its namespace.
    pub namespace: Namespace,
    /// What is run.
    pub plan: Arc<Plan>,
    /// sha256 of the plan's RFC 8785 JSON.
    pub plan_digest: Digest,
    /// By whom it was started.
    pub started_by: Actor,
    /// Why it was started, for people.
    pub note: String,
    /// When `RunStarted` was journalled.
    pub started_at: Timestamp,
    /// When the last event was journalled.
    pub updated_at: Timestamp,
    /// How many events were applied: the stream's sequence number of the last one.
    pub seq: u64,
    /// What it is doing.
    pub state: RunState,
    /// Nothing new is assigned while this is set.
    pub pause: Option<Pause>,
    /// A cancellation was asked for.
    pub cancel: Option<Cancel>,
    /// The walk back, once it has begun.
    pub rollback: Option<Rollback>,
    /// The reason of the first failure that decided the run's end.
    pub failure: Option<String>,
    /// The playbook's outputs, at the end.
    pub outputs: Option<Arc<Value>>,
    /// The signals that came, each with what came with it first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub signals: BTreeMap<String, Arc<Value>>,
    /// By how many milliseconds the wall clock is ahead of the journal's times, as far as the run was told; negative: behind.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wall_ahead_ms: i64,
    /// In the plan's order.
    pub phases: Vec<Arc<Phase>>,
    /// In the plan's order.
    pub steps: Vec<Arc<Step>>,
    /// Indexes of the steps that are queued, active, waiting or asking: all that can need something right now.
    pub awake: BTreeSet<usize>,
    /// How many times a step was done or tried: the next [`Step::done_order`].
    pub done_count: u64,
    /// New attempts have numbers from here on: after a loss of records, those below may have been used.
    pub attempts_from: AttemptNumber,
}

/// What a run is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Steps are done as they become ready.
    Running,
    /// It waits for attempts to end, after a cancellation.
    Cancelling,
    /// Steps are undone, one by one, once all attempts of other steps have ended.
    RollingBack,
    /// What was to be done is over, or taken back: the `always` steps that have not been done come last.
    Finishing {
        /// How the run ends after them.
        outcome: RunOutcome,
        /// Why, for people.
        reason: String,
    },
    /// It is over.
    Ended {
        /// How.
        outcome: RunOutcome,
        /// Why, for people.
        reason: String,
        /// When.
        at: Timestamp,
    },
}

/// Why nothing new is assigned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Why.
    pub reason: String,
    /// What a person has to answer.
    pub question: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// When the owner is told again.
    pub remind_at: Timestamp,
}

/// A cancellation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Why.
    pub reason: String,
    /// Undo what was done.
    pub undo: bool,
    /// Do not wait for attempts that may still run.
    pub force: bool,
    /// Since when.
    pub since: Timestamp,
}

/// The walk back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Why.
    pub reason: String,
    /// Indexes of the steps still to be undone; the first is next.
    pub remaining: Vec<usize>,
    /// Indexes of the steps that were done and cannot be taken back.
    pub irreversible: BTreeSet<usize>,
    /// Since when.
    pub since: Timestamp,
}

/// A phase of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Where it is.
    pub state: PhaseState,
    /// Since when.
    pub since: Timestamp,
    /// How many of its steps are not over.
    pub open_steps: usize,
    /// The last judgement of its gate.
    pub gate: Option<Gate>,
    /// Its milestone, where the plan names one.
    pub milestone: Option<Milestone>,
}

/// Where a phase is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseState {
    /// An earlier phase is not over.
    Pending,
    /// Its steps may be taken.
    Active,
    /// It is over.
    Ended(PhaseOutcome),
}

/// A judged gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// The judgement.
    pub verdict: GateVerdict,
    /// Each criterion with what was found.
    pub criteria: Vec<Criterion>,
    /// When.
    pub at: Timestamp,
}

/// A named point with a deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milestone {
    /// For people.
    pub name: String,
    /// Where it is.
    pub state: MilestoneState,
    /// Since when.
    pub since: Timestamp,
    /// When it has to be reached.
    pub due_at: Option<Timestamp>,
    /// When it becomes at risk.
    pub at_risk_at: Option<Timestamp>,
}

/// Where a milestone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MilestoneState {
    /// There is time.
    Pending,
    /// 70 % of the time is gone.
    AtRisk,
    /// The deadline has passed, or the run has ended without it.
    Missed,
    /// It was reached in time.
    Reached,
    /// It was reached after its deadline.
    ReachedLate,
    /// Its phase was skipped while there was time: nobody has to reach it.
    Skipped,
}

impl MilestoneState {
    /// Whether it can still be reached in time.
    pub fn is_open(self) -> bool {
        match self {
            Self::Pending | Self::AtRisk => true,
            Self::Missed | Self::Reached | Self::ReachedLate | Self::Skipped => false,
        }
    }
}

/// A step of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Where it is.
    pub state: StepState,
    /// Since when.
    pub since: Timestamp,
    /// All attempts, the first first; their numbers grow.
    pub attempts: Vec<Attempt>,
    /// What it gives to later steps: once it has succeeded, and while it is verified.
    pub output: Option<Arc<Value>>,
    /// An attempt (or a person) found it done; the walk back has to visit it.
    pub done: bool,
    /// Position in the order in which steps were last done, or tried; the walk back goes the other way.
    pub done_order: Option<u64>,
    /// Until when its verification may still become true.
    pub verify_until: Option<Timestamp>,
    /// Where it was first done or tried; host-scoped work stays there.
    pub host: Option<HostLabel>,
    /// Instances that refused it.
    pub excluded: BTreeSet<InstanceId>,
    /// What `prepared` recorded and no undo has used yet, by attempt.
    pub prepared: BTreeMap<AttemptNumber, Arc<Value>>,
    /// Why a person has left it as it is, instead of its being taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
    /// How many attempts there were at the last retry by a person: they do not count against `maxAttempts`.
    pub forgiven_attempts: u32,
    /// Since when it has waited for an agent, the instances that were busy or refused included; none while it does not.
    pub queued_since: Option<Timestamp>,
}

/// Where a step is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StepState {
    /// Its phase has not begun, or something it needs is not done.
    Pending,
    /// It waits for an agent.
    Queued {
        /// For what.
        purpose: Purpose,
        /// Not before this moment.
        not_before: Timestamp,
        /// When the owner is told (again), or the queue timeout ends it.
        wake_at: Timestamp,
        /// Why, for people.
        why: String,
    },
    /// Its last attempt is unconfirmed: it could be at work right now.
    Active,
    /// It waits for a moment or a signal; no agent has a part in it.
    Waiting {
        /// The signal; none: it waits for the moment at which the wait ends.
        signal: Option<String>,
        /// When the wait is over: reached for a time or a moment, given up for a signal. A moment that the playbook names is
        /// one of the wall clock.
        ends_at: Option<Timestamp>,
        /// When something is done about it, in the journal's time: it ends, or the owner is told (again).
        wake_at: Timestamp,
    },
    /// It waits for a person.
    Asking {
        /// What is asked.
        question: String,
        /// What the answer is about.
        kind: QuestionKind,
        /// When the owner is told again.
        remind_at: Timestamp,
    },
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed {
        /// Why.
        reason: String,
    },
    /// Not done on purpose.
    Skipped {
        /// Why.
        reason: String,
    },
    /// Not done, since the run was cancelled or failed.
    Cancelled,
    /// Taken back.
    Undone,
}

/// A numbered try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Unique within the step; 1, 2, 3, … but for a gap where records were lost.
    pub number: AttemptNumber,
    /// What for.
    pub purpose: Purpose,
    /// Who has it.
    pub agent: AgentName,
    /// Which process of it.
    pub instance: InstanceId,
    /// Where.
    pub host: Option<HostLabel>,
    /// When it was assigned.
    pub assigned_at: Timestamp,
    /// Nothing is sent after this.
    pub dispatch_until: Timestamp,
    /// When it will have ended by the clock.
    pub ends_by: Timestamp,
    /// The parameters, rendered.
    pub with: Arc<Value>,
    /// For purpose `undo`: which attempt's `prepared` data it is given.
    pub undoes: Option<AttemptNumber>,
    /// Its instance's lease has run out.
    pub lost_at: Option<Timestamp>,
    /// The last thing its agent said.
    pub status: Option<StatusNote>,
    /// How and when it ended; none: it is unconfirmed.
    pub end: Option<(Timestamp, AttemptEnd)>,
    /// What its agent reported of its end, and when, after the run had ended without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_late: Option<(Timestamp, Outcome)>,
}

impl Run {
    /// Index of a step in the plan.
    pub fn step_index(&self, id: &StepId) -> Option<usize> {
        self.plan.facts().step(id.as_str())
    }

    /// The number of the step's next attempt; none when all numbers are used.
    pub fn next_attempt(&self, i: usize) -> Option<AttemptNumber> {
        Some(self.steps[i].last_attempt().checked_add(1)?.max(self.attempts_from))
    }

    /// Whether an attempt of this number may ever have been assigned: it is known, or records of its time were lost.
    pub fn may_have_assigned(&self, i: usize, number: AttemptNumber) -> bool {
        number < self.attempts_from || self.steps[i].attempt(number).is_some()
    }

    /// Whether the step's unconfirmed attempt has started, whatever is said later: its agent has said something of it, or may
    /// have said so in records that are lost.
    pub fn live_attempt_has_begun(&self, i: usize) -> bool {
        self.steps[i].live_attempt().is_some_and(|(number, a)| {
            a.status.is_some() || self.steps[i].prepared.contains_key(&number) || number < self.attempts_from
        })
    }

    /// Indexes of the failed steps of the phase that is active.
    pub(crate) fn failed_in_active_phase(&self) -> impl Iterator<Item = usize> + '_ {
        let active = self.phases.iter().zip(&self.plan.phases).filter(|(p, _)| p.state == PhaseState::Active);
        let steps = active.flat_map(|(_, planned)| planned.steps.iter().copied());
        steps.filter(|i| matches!(self.steps[*i].state, StepState::Failed { .. }))
    }

    /// Why the step has failed, if its failure is the phase's and the run's.
    pub(crate) fn counts_as_failed(&self, i: usize) -> Option<&str> {
        match &self.steps[i].state {
            StepState::Failed { reason } => Some(reason.as_str()).filter(|_| self.plan.steps[i].critical),
            StepState::Pending
            | StepState::Queued { .. }
            | StepState::Active
            | StepState::Waiting { .. }
            | StepState::Asking { .. }
            | StepState::Succeeded
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => None,
        }
    }

    /// Why the step has failed, if the run does not go on without it.
    pub(crate) fn fails_with(&self, i: usize) -> Option<&str> {
        let decides = self.plan.steps[i].on_failure == OnFailure::Undo && self.state == RunState::Running;
        self.counts_as_failed(i).filter(|_| decides)
    }

    /// Whether steps are done now, rather than stopped or taken back.
    pub(crate) fn does_steps(&self) -> bool {
        match self.state {
            RunState::Running | RunState::Finishing { .. } => true,
            RunState::Cancelling | RunState::RollingBack | RunState::Ended { .. } => false,
        }
    }

    /// It is over.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, RunState::Ended { .. })
    }

    /// Indexes of the steps with an unconfirmed attempt.
    pub fn live_steps(&self) -> impl Iterator<Item = usize> + '_ {
        self.awake.iter().copied().filter(|i| self.steps.get(*i).is_some_and(|s| s.state == StepState::Active))
    }
}

impl Step {
    /// Whether it waits for this signal.
    pub(crate) fn waits_for(&self, name: &str) -> bool {
        matches!(&self.state, StepState::Waiting { signal: Some(signal), .. } if signal == name)
    }

    /// The unconfirmed attempt, with its number.
    pub fn live_attempt(&self) -> Option<(AttemptNumber, &Attempt)> {
        self.attempts.last().filter(|a| a.end.is_none()).map(|a| (a.number, a))
    }

    /// The attempt with this number.
    pub fn attempt(&self, number: AttemptNumber) -> Option<&Attempt> {
        self.attempts.binary_search_by_key(&number, |a| a.number).ok().map(|n| &self.attempts[n])
    }

    /// The number of the last attempt; 0 before the first.
    pub fn last_attempt(&self) -> AttemptNumber {
        self.attempts.last().map_or(0, |a| a.number)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
fn is_zero(ms: &i64) -> bool {
    *ms == 0
}
