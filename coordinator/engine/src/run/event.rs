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

mod parts;

pub use parts::{
    AttemptEnd, Criterion, EndedBy, FailureKind, GateVerdict, NotStarted, Observation, Outcome, PhaseOutcome, Purpose,
    QuestionKind, RunOutcome, StatusNote, StepNext, Subject,
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
    /// A report that is not of the current attempt, kept as evidence. It changes nothing, but that an attempt that a run has ended
    /// without is known to have ended.
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
        /// Why it was sent; may be empty.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// For a while no agent could be asked: steps that wait for one, and for so long at most, wait from now on.
    QueueClocksRestarted,
    /// The wall clock is not where it was, beside the times in the journal: what waits for a moment of it is woken at another
    /// time of those.
    WallClockMoved {
        /// By how many milliseconds it is ahead of them; negative: behind.
        ahead_ms: i64,
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
    /// All that was to be done or taken back is over: `always` steps that have not been done come last.
    FinishStarted {
        /// How the run ends after them.
        outcome: RunOutcome,
        /// Why, for people.
        reason: String,
        /// The steps.
        steps: Vec<StepId>,
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
            Self::QueueClocksRestarted => "queue_clocks_restarted",
            Self::WallClockMoved { .. } => "wall_clock_moved",
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
            Self::FinishStarted { .. } => "finish_started",
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
