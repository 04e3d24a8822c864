//! What can be asked of a run: by people, by agents, by the clock. A command is decided into events or rejected; it is
//! never half done.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ids::{AgentName, AttemptNumber, HostLabel, InstanceId, StepId},
    run::{
        apply::Corrupt,
        event::{NotStarted, Outcome, StatusNote},
    },
};

/// Something asked of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Placement found an instance for a queued step.
    Assign {
        /// Which step.
        step: StepId,
        /// Which agent.
        agent: AgentName,
        /// Which process of it.
        instance: InstanceId,
        /// Where that works.
        host: Option<HostLabel>,
        /// Nothing is sent after this.
        dispatch_until: Timestamp,
    },
    /// The agent is about to change something, and says how it would take it back.
    Prepare {
        /// The fence.
        fence: Fence,
        /// What `undo` would be given.
        undo: Arc<Value>,
    },
    /// The agent reports an attempt's end.
    Finish {
        /// The fence.
        fence: Fence,
        /// What it reports.
        outcome: Outcome,
    },
    /// The agent says something of its work.
    ReportStatus {
        /// The fence.
        fence: Fence,
        /// What it says.
        status: StatusNote,
    },
    /// The instance will not start the attempt, or says that it never had it. Says nothing of an attempt that has prepared or
    /// sent a status: that one has started.
    Deny {
        /// The fence.
        fence: Fence,
        /// Why.
        why: NotStarted,
    },
    /// The instance's lease ran out.
    LoseInstance {
        /// Which.
        instance: InstanceId,
    },
    /// The instance answers again, and holds these attempts of this run. Of those it holds, the mark of the loss is taken
    /// away, and a clock that has run out starts again: send this before a [`Command::Tick`] for as long as it says so. Those
    /// it does not hold are denied, unless a task that was sent could still reach it: they stay outstanding.
    FindInstance {
        /// Which.
        instance: InstanceId,
        /// What it holds of this run, reports in its spool included.
        holds: Vec<(StepId, AttemptNumber)>,
    },
    /// The instance's process, and every process group of it, is proven dead.
    BuryInstance {
        /// Which.
        instance: InstanceId,
    },
    /// The coordinator has started again, or time has jumped: clocks of unconfirmed attempts start again in full, and those of waits
    /// for an agent.
    RestartClocks,
    /// Nobody can be asked at present: clocks of waits for an agent start again.
    RestartQueueClocks,
    /// So far the wall clock is ahead of `now`, in milliseconds (negative: behind). What waits for a moment of the wall clock
    /// goes by it; durations and deadlines do not. A run in which nothing waits for a moment has nothing to say to it.
    FollowWallClock {
        /// How far.
        ahead_ms: i64,
    },
    /// The announced moment has come (or any other: ticking too early does nothing).
    Tick,
    /// Stop; undo only where the playbook says so.
    Cancel {
        /// Why.
        reason: String,
        /// Do not wait for attempts that may still run.
        force: bool,
    },
    /// Start nothing new.
    Pause {
        /// Why.
        reason: String,
    },
    /// Go on: ends a pause, judges an inconclusive gate again, and tries again the steps whose failure paused the run.
    Resume {
        /// Why.
        reason: String,
    },
    /// Records of the journal are lost, and a person has accepted that: nothing new is done until one has looked.
    AcceptLoss,
    /// A signal from outside. The same one again is taken, and changes nothing.
    Signal {
        /// Its name; a step of the plan waits for it, has waited, or will.
        signal: String,
        /// What comes with it.
        payload: Arc<Value>,
        /// Why it is sent; may be empty.
        reason: String,
    },
    /// Try a step again that failed or that asks.
    RetryStep {
        /// Which.
        step: StepId,
        /// Why.
        reason: String,
    },
    /// Answer the question of a step.
    ResolveStep {
        /// Which.
        step: StepId,
        /// The answer.
        resolution: Resolution,
        /// Why.
        reason: String,
        /// The step's output, with `succeeded`.
        output: Option<Arc<Value>>,
    },
}

/// Names exactly one attempt at exactly one process. What does not match the journal is stale.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Of which step.
    pub step: StepId,
    /// Which attempt.
    pub attempt: AttemptNumber,
    /// Which agent.
    pub agent: AgentName,
    /// Which process of it.
    pub instance: InstanceId,
}

/// A person's answer about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// It is done (for an undo: it is undone).
    Succeeded,
    /// It has failed for good.
    Failed,
    /// Try again.
    Retry,
    /// Leave it out.
    Skip,
}

/// Why a command was not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The plan has no such step.
    #[error("the run has no step {0}")]
    UnknownStep(StepId),
    /// No step of the plan waits for such a signal.
    #[error("the run has no step that waits for signal {0}")]
    UnknownSignal(String),
    /// The run has ended.
    #[error("the run has ended")]
    RunEnded,
    /// What is asked is not possible in the present state.
    #[error("{what} is not possible while {state}")]
    Forbidden {
        /// What was asked.
        what: &'static str,
        /// The state that forbids it, for people.
        state: String,
    },
    /// A report of an attempt the journal has never assigned.
    #[error("step {step} has no attempt {attempt}")]
    UnknownAttempt {
        /// Which step.
        step: StepId,
        /// Which attempt.
        attempt: AttemptNumber,
    },
    /// What was decided does not fit the state: a bug. The run has to be quarantined.
    #[error(
        "the decision does not fit the run's state; this is a bug in Muster, please report it with the run's history"
    )]
    Broken(#[from] Corrupt),
    /// The same attempt has already ended in another way.
    #[error("attempt {attempt} of step {step} has already ended in another way")]
    Conflict {
        /// Which step.
        step: StepId,
        /// Which attempt.
        attempt: AttemptNumber,
    },
}
