//! What has happened to a run. Events are journalled, so every shape here is for ever: fields may be added with a
//! default, never renamed or removed.
//!
//! An event says what was concluded (`next`), not only what was seen, so that `apply` needs no policy and an old history
//! replays the same after a policy has changed. Times are absolute. The envelope of the journal carries when and by whom.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ids::{AgentName, AttemptNumber, Digest, HostLabel, InstanceId, Namespace, PhaseId, RunId, StepId},
    plan::Plan,
    run::command::Resolution,
};

/// Something that happened to a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The first event of every run.
    RunStarted(Box<RunStarted>),
    /// The phase's steps may be taken from now on.
    PhaseStarted {
        /// Which.
        phase: PhaseId,
    },
    /// A step moved for a reason that is not an attempt's end: it became ready, was skipped, timed out in the queue,
    /// could not be rendered, or is to be undone.
    StepMoved {
        /// Which.
        step: StepId,
        /// Where to.
        next: StepNext,
    },
    /// A person (or a policy on behalf of one) decided about a step.
    StepResolved {
        /// Which.
        step: StepId,
        /// What was decided.
        resolution: Resolution,
        /// Why, in the person's words.
        reason: String,
        /// The step's output, where the person gave one with `succeeded`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Arc<Value>>,
        /// Where the step goes.
        next: StepNext,
    },
    /// The fence: from here on the attempt is unconfirmed, and only this instance can report it.
    AttemptAssigned(Box<AttemptAssigned>),
    /// The agent recorded what it needs to take the change back, before it changed anything.
    AttemptPrepared {
        /// Of which step.
        step: StepId,
        /// Which attempt.
        attempt: AttemptNumber,
        /// What `undo` will be given.
        undo: Arc<Value>,
    },
    /// The agent said something new of its work.
    StatusReported {
        /// Of which step.
        step: StepId,
        /// Which attempt.
        attempt: AttemptNumber,
        /// What it said.
        status: StatusNote,
    },
    /// The instance's lease ran out. The attempt is still unconfirmed: lost is not stopped.
    AttemptLost {
        /// Of which step.
        step: StepId,
        /// Which attempt.
        attempt: AttemptNumber,
    },
    /// The instance answers again and holds the attempt.
    AttemptFound {
        /// Of which step.
        step: StepId,
        /// Which attempt.
        attempt: AttemptNumber,
    },
    /// The clock of an unconfirmed attempt starts again in full (recovery, a jump of time, or the instance says it holds it).
    AttemptExtended {
        /// Of which step.
        step: StepId,
        /// Which attempt.
        attempt: AttemptNumber,
        /// When it will have ended by the clock.
        ends_by: Timestamp,
    },
    /// The attempt has ended; nothing of it can be at work any more, unless `end` says that nobody knows.
    AttemptEnded {
        /// Of which step.
        step: StepId,
        /// Which attempt.
        attempt: AttemptNumber,
        /// How.
        end: AttemptEnd,
        /// Where the step goes.
        next: StepNext,
    },
    /// A report that is not of the current attempt, kept as evidence; it changes nothing else.
    ReportArrivedStale {
        /// Of which step.
        step: StepId,
        /// Which attempt it named.
        attempt: AttemptNumber,
        /// Which agent sent it.
        agent: AgentName,
        /// Which instance it named.
        instance: InstanceId,
        /// What it said.
        report: Value,
    },
    /// The owner of something that waits was told again.
    OwnerReminded {
        /// What waits.
        subject: Subject,
        /// When it will be told next.
        next_at: Timestamp,
    },
    /// A gate was judged.
    GateJudged {
        /// Of which phase.
        phase: PhaseId,
        /// The judgement.
        verdict: GateVerdict,
        /// Each criterion with what was found.
        criteria: Vec<Criterion>,
    },
    /// A signal came to the run. It stays: who waits for it later finds it.
    SignalReceived {
        /// Its name.
        signal: String,
        /// What came with it.
        payload: Arc<Value>,
    },
    /// A phase is over.
    PhaseEnded {
        /// Which.
        phase: PhaseId,
        /// How.
        outcome: PhaseOutcome,
    },
    /// 70 % of the time to the milestone's deadline is gone.
    MilestoneAtRisk {
        /// Of which phase.
        phase: PhaseId,
    },
    /// The milestone's deadline has passed.
    MilestoneMissed {
        /// Of which phase.
        phase: PhaseId,
    },
    /// The milestone was reached.
    MilestoneReached {
        /// Of which phase.
        phase: PhaseId,
        /// After its deadline.
        late: bool,
    },
    /// Nothing new is assigned; what runs goes on.
    RunPaused {
        /// Why.
        reason: String,
        /// What is asked, when a person has to answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<String>,
        /// When the owner is told again.
        remind_at: Timestamp,
    },
    /// Records of the journal were lost, perhaps of this run, and a person has accepted that. What its agents did is not known:
    /// the run is paused (in place of any pause before), and a number that may have been used is not used again.
    RecordsLost {
        /// The number of the next attempt of any step, at least.
        attempts_from: AttemptNumber,
        /// Why.
        reason: String,
        /// What a person is asked.
        question: String,
        /// When the owner is told again.
        remind_at: Timestamp,
    },
    /// A pause is over.
    RunResumed {
        /// Why, in the person's words.
        reason: String,
    },
    /// Queued steps are cancelled, and agents are told to stop.
    CancelRequested {
        /// Why, in the person's words.
        reason: String,
        /// Undo what was done, once everything has ended.
        undo: bool,
        /// Do not wait for attempts that may still run.
        force: bool,
    },
    /// A failure has decided the run: nothing new is done, queued steps are cancelled, and what was done is undone as soon as
    /// all attempts have ended.
    RollbackRequested {
        /// Why.
        reason: String,
    },
    /// The walk back has begun; the steps named are undone one by one, the first first.
    RollbackStarted {
        /// Why.
        reason: String,
        /// The steps to undo: reverse order of what was done.
        steps: Vec<StepId>,
        /// Steps that were done and cannot be taken back.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        irreversible: BTreeSet<StepId>,
    },
    /// The last event of a run, but for stale reports.
    RunEnded {
        /// How.
        outcome: RunOutcome,
        /// Why, for people.
        reason: String,
        /// The playbook's outputs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outputs: Option<Arc<Value>>,
    },
}

impl Event {
    /// Its type, as the journal writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RunStarted(_) => "run_started",
            Self::PhaseStarted { .. } => "phase_started",
            Self::StepMoved { .. } => "step_moved",
            Self::StepResolved { .. } => "step_resolved",
            Self::AttemptAssigned(_) => "attempt_assigned",
            Self::AttemptPrepared { .. } => "attempt_prepared",
            Self::StatusReported { .. } => "status_reported",
            Self::AttemptLost { .. } => "attempt_lost",
            Self::AttemptFound { .. } => "attempt_found",
            Self::AttemptExtended { .. } => "attempt_extended",
            Self::AttemptEnded { .. } => "attempt_ended",
            Self::ReportArrivedStale { .. } => "report_arrived_stale",
            Self::OwnerReminded { .. } => "owner_reminded",
            Self::GateJudged { .. } => "gate_judged",
            Self::SignalReceived { .. } => "signal_received",
            Self::PhaseEnded { .. } => "phase_ended",
            Self::MilestoneAtRisk { .. } => "milestone_at_risk",
            Self::MilestoneMissed { .. } => "milestone_missed",
            Self::MilestoneReached { .. } => "milestone_reached",
            Self::RunPaused { .. } => "run_paused",
            Self::RecordsLost { .. } => "records_lost",
            Self::RunResumed { .. } => "run_resumed",
            Self::CancelRequested { .. } => "cancel_requested",
            Self::RollbackRequested { .. } => "rollback_requested",
            Self::RollbackStarted { .. } => "rollback_started",
            Self::RunEnded { .. } => "run_ended",
        }
    }
}

/// Everything a run needs for its whole life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStarted {
    /// Its id.
    pub run: RunId,
    /// Its namespace.
    pub namespace: Namespace,
    /// What is run.
    #[serde(serialize_with = "Plan::serialize_once")]
    pub plan: Arc<Plan>,
    /// sha256 of the plan's RFC 8785 JSON.
    pub plan_digest: Digest,
    /// For people: why it was started, labels of a caller.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// An attempt was given to an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptAssigned {
    /// Of which step.
    pub step: StepId,
    /// Its number in the step.
    pub attempt: AttemptNumber,
    /// What for.
    pub purpose: Purpose,
    /// To which agent.
    pub agent: AgentName,
    /// To which process of it.
    pub instance: InstanceId,
    /// Where that works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostLabel>,
    /// Nothing is sent after this: the last moment at which it can have started.
    pub dispatch_until: Timestamp,
    /// When it will have ended by the clock: `dispatch_until` + timeout + grace.
    pub ends_by: Timestamp,
    /// The parameters, rendered.
    pub with: Arc<Value>,
    /// For purpose `undo`: of which attempt the `prepared` data is given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<AttemptNumber>,
}

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Do it (it begins with its own check).
    Run,
    /// Check alone, after a loss.
    Probe,
    /// A second look by another action.
    Verify,
    /// Take it back.
    Undo,
}

/// Where a step goes next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum StepNext {
    /// It waits for an agent (not before a moment).
    Queued {
        /// For what.
        purpose: Purpose,
        /// Not before this moment: backoff, or the pause between two looks.
        not_before: Timestamp,
        /// When the owner is told (again) that it still waits, or its `queueTimeout` ends it.
        wake_at: Timestamp,
        /// Why, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
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
    /// It waits for a moment or a signal.
    Waiting {
        /// The signal; none: it waits for the moment at which the wait ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
        /// When the wait is over: reached for a moment, given up for a signal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ends_at: Option<Timestamp>,
        /// When something is done about it: it ends, or the owner is told (again).
        wake_at: Timestamp,
    },
    /// Done; its output is the one its attempt or its signal gave.
    Succeeded,
    /// Failed for good.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// Not done on purpose.
    Skipped {
        /// Why, for people.
        reason: String,
    },
    /// Not done, since the run was cancelled or failed.
    Cancelled,
    /// Taken back.
    Undone,
}

/// What a question to a person is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionKind {
    /// The step failed, and its policy is to pause.
    Failed,
    /// The agent said that a person is needed.
    NeedsPerson,
    /// An attempt may have run, and nobody knows how it ended.
    MayHaveRun,
    /// An undo failed, or its outcome is not known.
    UndoFailed,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum AttemptEnd {
    /// The agent reported it.
    Finished {
        /// What it reported.
        outcome: Outcome,
    },
    /// It never started; it does not count.
    NotStarted {
        /// Why.
        why: NotStarted,
    },
    /// It has ended, and nobody knows how: it may have run.
    Unknown {
        /// How we know that it has ended.
        ended_by: EndedBy,
    },
}

/// Why an attempt never started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum NotStarted {
    /// All slots were taken.
    Busy,
    /// The instance takes nothing new.
    Draining,
    /// The instance will not do this step; it is not asked again.
    Refused {
        /// Why, in the agent's words.
        why: String,
    },
    /// The instance says it never had it and never will.
    Denied,
    /// Nothing could be sent while it could have started, and nothing will be.
    Unsent,
}

/// How we know that an attempt without a report has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The next instance on the host found its process, and all its process groups, dead.
    InstanceGone,
    /// `dispatch_until` + timeout + grace has passed.
    Clock,
    /// Its instance was lost. It may still be at work; another attempt beside it does no harm.
    Superseded,
    /// A person said so.
    Person,
}

/// What an agent reports of a finished attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// It is done.
    Succeeded {
        /// What it gives to later steps.
        output: Arc<Value>,
        /// `check` found the wanted state already there.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unchanged: bool,
        /// What was measured.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        observations: Vec<Observation>,
        /// The output was cut to the limit.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    },
    /// Purpose `probe`: the wanted state is not there.
    NotSatisfied {
        /// What is different.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        diff: String,
    },
    /// It failed.
    Failed {
        /// Whether it may pass by itself.
        kind: FailureKind,
        /// What happened, where, what to do next.
        message: String,
        /// What it gives nevertheless.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Arc<Value>>,
    },
    /// It was told to stop, and stopped.
    Cancelled {
        /// It may have changed something before.
        may_have_changed: bool,
    },
}

/// Whether a failure may pass by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Another try may succeed.
    Retry,
    /// Another try will fail the same way.
    Permanent,
    /// A person has to do something first.
    NeedsPerson,
}

/// A typed measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// What was measured: `latency_p95`.
    pub name: String,
    /// How much.
    pub value: f64,
    /// In what: `ms`, `percent`, `count`.
    pub unit: String,
    /// From how many samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// When.
    pub at: Timestamp,
    /// Where it comes from: an address, a command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}

/// What an agent says of its work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusNote {
    /// A sentence for people.
    pub message: String,
    /// 0 to 100, where the agent can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observations: Vec<Observation>,
}

/// What a reminder is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Subject {
    /// The run's own pause.
    Run,
    /// A step that waits for a person or an agent.
    Step {
        /// Which.
        step: StepId,
    },
}

/// A judgement of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateVerdict {
    /// Every criterion holds.
    Passed,
    /// One does not hold.
    Failed,
    /// One could not be judged: a skipped step, a missing value, a wrong type.
    Inconclusive,
}

/// One criterion of a gate, judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Criterion {
    /// The CEL expression.
    pub expression: String,
    /// What it gave; none when it could not be evaluated.
    pub value: Option<bool>,
    /// Why it could not be evaluated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// How a phase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseOutcome {
    /// Its steps are done and its gate has passed.
    Completed,
    /// Its `when` was false.
    Skipped,
    /// A step or the gate failed.
    Failed,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// Every phase completed.
    Succeeded,
    /// Something failed; what had to be undone was undone, or a person said to leave it.
    Failed,
    /// A person cancelled it.
    Cancelled,
}
