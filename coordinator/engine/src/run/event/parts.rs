//! What events are made of: where steps go, how attempts end, what was found. Journalled, as they are.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::StepId;

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
