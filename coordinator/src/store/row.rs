//! What is in the store, and the writes that put it there.

use std::sync::Arc;

use jiff::Timestamp;
use muster_bus::event::StreamMark;
use muster_engine::{
    ids::{Actor, AgentName, Digest, Namespace, PhaseId, RunId},
    run::{Rest, state::MilestoneState},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::{control::MostUrgent, journal::Position};

/// A run, for lists and for recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRow {
    /// Its id.
    pub id: RunId,
    /// Its namespace.
    pub namespace: Namespace,
    /// The playbook's name.
    pub playbook: String,
    /// As in [`crate::control::RunSummary::state`].
    pub state: String,
    /// As in [`crate::control::RunSummary::state_reason`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state_reason: String,
    /// What it waits for most urgently, of a run that waits for nothing but time and people; of others memory knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<MostUrgent>,
    /// When it started. Never changes: runs are listed by it.
    pub started_at: Timestamp,
    /// By whom.
    pub started_by: Actor,
    /// When it ended; none: the run is open, and [`super::Store::open_runs`] names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The last record of the run's stream that is in this row.
    pub seq: u64,
    /// [`muster_engine::run::Run::rest`] of an open run; kept beside the row, see [`super::Store::open_runs`].
    #[serde(skip)]
    pub rest: Option<Rest>,
}

/// A milestone of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MilestoneRow {
    /// The run's namespace.
    pub namespace: Namespace,
    /// Of which run.
    pub run: RunId,
    /// Of which playbook.
    pub playbook: String,
    /// Of which phase.
    pub phase: PhaseId,
    /// The phase's place in the plan; milestones of a run are listed by it.
    pub ordinal: u32,
    /// For people.
    pub name: String,
    /// Where it is.
    pub state: MilestoneState,
    /// Since when.
    pub since: Timestamp,
    /// When it has to be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
}

/// A revision of a playbook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlaybookRow {
    /// Its namespace.
    pub namespace: Namespace,
    /// `metadata.name`.
    pub name: String,
    /// Content address of the document.
    pub revision: Digest,
    /// The document.
    pub yaml: Arc<str>,
    /// `metadata.owner`.
    pub owner: String,
    /// When it was first submitted.
    pub submitted_at: Timestamp,
    /// By whom.
    pub submitted_by: Actor,
    /// What lint said that is not an error, as JSON of the caller's.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub warnings: Value,
}

/// A run's whole state at a record, which spares the replay of all before.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last record that is in it.
    pub seq: u64,
    /// The state as JSON.
    pub state: Box<RawValue>,
}

/// The answer that a request was given, so that the same request gets it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestRow {
    /// The caller's UUID.
    pub id: String,
    /// Who asked. Another actor with the same id is another request: the caller of the store compares.
    pub actor: Actor,
    /// Hash of the request's body; the same id with another body is an error of the caller's.
    pub body: Digest,
    /// What was answered, as JSON of the caller's.
    pub answer: Value,
    /// When.
    pub at: Timestamp,
}

/// An agent as it was last journalled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentRow {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: AgentName,
    /// Everything else, as JSON of the caller's.
    pub detail: Value,
}

/// How far the events for outsiders are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsRow {
    /// All up to here.
    pub position: Position,
    /// In which stream.
    pub stream: StreamMark,
}

/// A change of the store. Each replaces what was there under the same key, so that applying it twice is applying it once.
#[derive(Clone, Debug)]
pub enum StoreWrite {
    /// By run id.
    Run(RunRow),
    /// By namespace, run and phase.
    Milestone(MilestoneRow),
    /// By namespace, name and revision; it also becomes the newest one of its name.
    Playbook(PlaybookRow),
    /// A run of which nothing is left in the journal: by run id, with all that there is of it.
    ForgetRun(RunId),
    /// By run id.
    Snapshot {
        /// Of which run.
        run: RunId,
        /// The state.
        snapshot: Snapshot,
    },
    /// Snapshots of runs that have ended spare nothing.
    DropSnapshot(RunId),
    /// By request id.
    Request(RequestRow),
    /// A request whose answer need not be kept any longer.
    DropRequest(String),
    /// By namespace and name.
    Agent(AgentRow),
    /// There is one.
    Events(EventsRow),
}
