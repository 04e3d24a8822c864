//! The messages. One file, so that a stranger who writes an agent can read it from top to bottom.
//!
//! Duties of an agent: register, answer tasks, report until `recorded`, beat. Everything else is optional.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the protocol; another one is refused at registration.
pub const PROTOCOL: u32 = 1;

/// Whether messages of version `given` are understood here.
pub fn check_protocol(given: u32) -> Result<(), UnknownProtocol> {
    if given == PROTOCOL { Ok(()) } else { Err(UnknownProtocol { given }) }
}

/// Another major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this coordinator speaks protocol {PROTOCOL}, not {given}; use an agent made for protocol {PROTOCOL}")]
pub struct UnknownProtocol {
    /// What it said.
    pub given: u32,
}

/// `register.{agent}`: who I am, what I can do, which attempts I hold. Sent at start, and when a beat's reply asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// `[a-z0-9_-]{1,63}`; equals the last token of the subject.
    pub agent: String,
    /// `[a-z0-9_-]{1,63}`, made new at each start of the process.
    pub instance: String,
    /// What steps ask for: `infra`.
    pub role: String,
    /// What steps may ask for besides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where it works; the agent's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How many attempts at once; 1 when absent.
    #[serde(default = "one")]
    pub slots: u32,
    /// It keeps a lock file and a spool on disk, and can tell that an earlier process is dead.
    #[serde(default)]
    pub durable: bool,
    /// What it can do.
    pub actions: Vec<ActionOffer>,
    /// Attempts it has accepted and not yet ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<AttemptKey>,
    /// Reports it has not yet got `recorded` for; nothing is concluded about these before they have come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spooled: Vec<AttemptKey>,
    /// Earlier instances of this agent on this host that it found dead, with all their children. Durable agents only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<String>,
    /// It also takes a task that comes in the answer to one of its reports: [`ReportReply::Recorded`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tasks_in_answers: bool,
    /// For people: name and version of the program.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub software: String,
}

fn one() -> u32 {
    1
}

/// An action an agent can do.
#[expect(clippy::struct_excessive_bools, reason = "independent promises, each a word of the protocol")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionOffer {
    /// `<system>.<verb>`.
    pub name: String,
    /// Of the action, not of the agent: semver.
    pub version: String,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// Doing it twice is the same as doing it once.
    #[serde(default)]
    pub idempotent: bool,
    /// It sends `prepared` before it changes anything, and can undo.
    #[serde(default)]
    pub undoable: bool,
    /// It answers tasks of purpose `probe`.
    #[serde(default)]
    pub checkable: bool,
    /// Two attempts at once do no harm.
    #[serde(default)]
    pub concurrent_safe: bool,
    /// It changes nothing.
    #[serde(default)]
    pub read_only: bool,
    /// Whether its work belongs to the agent's host.
    #[serde(default)]
    pub scope: Scope,
    /// JSON Schema of `with`; absent: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params_schema: Option<Value>,
    /// JSON Schema of the output; absent: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
}

impl ActionOffer {
    /// An action that promises nothing.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            summary: String::new(),
            idempotent: false,
            undoable: false,
            checkable: false,
            concurrent_safe: false,
            read_only: false,
            scope: Scope::Host,
            params_schema: None,
            output_schema: None,
        }
    }
}

/// Where an action's work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// On the agent's host.
    #[default]
    Host,
    /// On a target that the parameters name.
    Target,
}

/// Names an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptKey {
    /// Of which run.
    pub run: String,
    /// Of which step.
    pub step: String,
    /// Its number in the step, from 1.
    pub attempt: u32,
}

/// Answer to [`Register`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum RegisterReply {
    /// Welcome.
    Registered {
        /// The coordinator's data directory; messages of another one are ignored.
        cluster: String,
        /// Raised when the work changes owner.
        term: u64,
        /// Subscribe to this before registering: [`crate::subject::Subjects::task`].
        task_subject: String,
        /// Send a beat this often, in milliseconds.
        beat_every_ms: u64,
        /// Without a beat for this long the instance counts as lost, in milliseconds.
        lost_after_ms: u64,
        /// Send a status this often while at work, in milliseconds.
        status_every_ms: u64,
        /// The coordinator's clock, in milliseconds since 1970.
        now_ms: i64,
    },
    /// Another process of this agent still answers. Try again later.
    IdInUse {
        /// Which.
        instance: String,
    },
    /// Not like this.
    Refused {
        /// Why, and what to do.
        why: String,
    },
    /// The coordinator can't say yet; try again.
    Retry {
        /// Why.
        why: String,
    },
}

/// `task.{agent}.{instance}`: one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "crate::wire::Task")]
pub struct Task {
    /// The coordinator's data directory.
    pub cluster: String,
    /// Raised when the work changes owner.
    pub term: u64,
    /// Names the attempt. The same key always means the same work: start it at most once.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// What for.
    pub purpose: Purpose,
    /// `<system>.<verb>`.
    pub action: String,
    /// The version the plan was made for.
    pub version: String,
    /// The parameters.
    pub with: Value,
    /// Purpose `undo`: what `prepared` recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo: Option<Value>,
    /// The action changes something and can be undone: send `prepared` before the first change.
    pub prepare: bool,
    /// Names of secrets it may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The agent ends the attempt itself after this long, in milliseconds.
    pub timeout_ms: u64,
    /// A status at least this often, in milliseconds.
    pub status_ms: u64,
    /// When this copy was sent, in milliseconds since 1970 on the coordinator's clock.
    pub sent_at_ms: i64,
    /// Refuse a copy that is older than this, in milliseconds.
    pub start_within_ms: u64,
    /// Where the report goes: [`crate::subject::Subjects::report`].
    pub report_subject: String,
}

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Do it; begin with a check.
    Run,
    /// Check alone.
    Probe,
    /// Look at what another step did.
    Verify,
    /// Take it back.
    Undo,
}

/// Answer to [`Task`]. An instance repeats the answer it gave to the same key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum TaskReply {
    /// I hold it; a report will come.
    Accepted,
    /// All slots are taken; I will not start this attempt.
    Busy,
    /// I take nothing new; I will not start this attempt.
    Draining,
    /// I will not start this attempt, nor another one of this step.
    Refused {
        /// Why: unknown action, another version, not allowed.
        why: String,
    },
}

/// `report.{shard}.{agent}`: sent again until the answer is final.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "crate::wire::Report")]
pub struct Report {
    /// The coordinator's data directory, as the task said.
    pub cluster: String,
    /// The process that did the work, even if another one reports it.
    pub instance: String,
    /// Names the attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// What is reported.
    pub report: ReportBody,
}

/// What is reported of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ReportBody {
    /// Before the first change: what `undo` will need. Change nothing unless the answer is `recorded`.
    Prepared {
        /// Given back with purpose `undo`.
        undo: Value,
    },
    /// The attempt has ended; none of its processes is left.
    Finished {
        /// How.
        outcome: Outcome,
    },
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// It is done (purpose `probe`: the wanted state is there).
    Succeeded {
        /// What it gives to later steps.
        #[serde(default)]
        output: Value,
        /// The check found the wanted state already there; nothing was changed.
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
        /// What is different, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        diff: String,
    },
    /// It failed.
    Failed {
        /// Whether it may pass by itself.
        error: FailureKind,
        /// What happened, where, what to do next.
        message: String,
        /// What it gives nevertheless.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Value>,
    },
    /// It was told to stop, and stopped.
    Cancelled {
        /// It may have changed something before.
        #[serde(default)]
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
    /// When, in milliseconds since 1970; the time of arrival when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}

/// Answer to [`Report`]; sent only after the journal has it on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "crate::wire::ReportReply", tag = "answer", rename_all = "snake_case")]
pub enum ReportReply {
    /// It is on disk (also for the same report again). Forget it.
    Recorded {
        /// What to do besides.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        orders: Vec<Order>,
        /// What to start next, for this instance alone; only where it said [`Register::tasks_in_answers`]. It is a copy like those
        /// on the task subject, and is not answered itself: the next copy is, which comes there soon unless the report does.
        #[serde(skip_serializing_if = "Option::is_none")]
        task: Option<Box<Task>>,
    },
    /// Not the current attempt; kept as evidence. Forget it.
    Stale,
    /// The attempt has already ended in another way. Forget it.
    Conflict,
    /// The run is no longer here. Forget it.
    Gone,
    /// Send it again later.
    Retry {
        /// Why.
        why: String,
    },
}

impl ReportReply {
    /// It is on disk, and that is all.
    pub fn recorded() -> Self {
        Self::Recorded { orders: Vec::new(), task: None }
    }
}

/// `beat.{agent}`: I live, I hold these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// As the registration's answer said.
    pub cluster: String,
    /// This process.
    pub instance: String,
    /// Attempts it has accepted and not yet got `recorded` for.
    #[serde(default)]
    pub holds: Vec<AttemptKey>,
    /// It takes nothing new.
    #[serde(default)]
    pub draining: bool,
    /// Its last word: this process ends as it was told to, and takes nothing new. What it still `holds` is not proven to have
    /// ended by this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ending: bool,
}

/// Answer to [`Beat`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeatReply {
    /// The coordinator's clock, in milliseconds since 1970.
    pub now_ms: i64,
    /// Send [`Register`] again: the coordinator does not know this instance.
    #[serde(default)]
    pub register_again: bool,
    /// What to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Order>,
}

/// What an agent is told to do; said again until it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Stop an attempt, and report how it ended.
    Cancel {
        /// Which.
        #[serde(flatten)]
        key: AttemptKey,
    },
    /// Take nothing new; end when nothing is held.
    Drain,
}

/// `status.{agent}`: how an attempt goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// As the registration's answer said.
    pub cluster: String,
    /// This process.
    pub instance: String,
    /// Which attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// A sentence for people.
    #[serde(default)]
    pub message: String,
    /// 0 to 100, where the agent can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observations: Vec<Observation>,
}

/// Answer to [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReply {
    /// What to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Order>,
}

/// `log.{agent}`: a line of an attempt's log; lossy and bounded by design.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// This process.
    pub instance: String,
    /// Which attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// From 1 in the attempt; a gap says that lines were lost.
    pub line: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The line, redacted.
    pub text: String,
}

/// `signal.{run}.{name}.{sender}`: something has happened outside, which a step of the run waits for. The run, the signal's name and
/// who sends it stand in the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// [`PROTOCOL`]. Required: what a server sends somewhere in its own words is no signal.
    pub protocol: u32,
    /// The output of the step that waits; an empty object when absent.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub payload: Value,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Answer to [`Signal`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum SignalReply {
    /// It is on disk, or one of this name was before: the first one counts.
    Recorded,
    /// It is not taken, and will not be.
    Refused {
        /// Stable, such as `SIGNAL_NOT_FOUND`; the same as in the API.
        reason: String,
        /// For people.
        why: String,
    },
    /// Send it again later.
    Retry {
        /// Why.
        why: String,
    },
}
