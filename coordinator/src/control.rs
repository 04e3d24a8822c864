//! What can be asked of a coordinator, behind every door: the gRPC API, and with it the CLI and the console.
//!
//! One implementation ([`crate::driver`]); the trait is the seam that keeps transport and decisions apart. Every method
//! that changes something returns after the journal has it on disk.

use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use futures_util::Stream;
use jiff::Timestamp;
use muster_engine::{
    ids::{Actor, AgentName, AttemptNumber, Digest, Namespace, RunId, StepId},
    plan::Plan,
    run::{
        Command, Run, Waiting, WaitsOn,
        event::{Event, RunOutcome},
        state::{MilestoneState, RunState, StepState},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::logs;

/// The longest text that a person says of what is done.
pub const MAX_REASON_CHARS: usize = 1_000;

/// Most that may come with a signal.
pub const MAX_SIGNAL_BYTES: usize = 64 * 1024;

/// Who asks, and how to know the same question again.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Journalled with everything that comes of it.
    pub actor: Actor,
    /// A UUID of the caller's; the same id gives the same answer until 24 h past the end.
    pub request_id: Option<String>,
}

/// Why something was not done. `code` is stable, `UPPER_SNAKE_CASE`, and the only error code there is.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// The class, which the API maps to a gRPC code.
    pub kind: ControlErrorKind,
    /// Such as `RUN_NOT_FOUND`.
    pub code: &'static str,
    /// What happened, and where.
    pub message: String,
    /// What to do next, for people.
    pub hint: String,
    /// Findings of a bad playbook or bad inputs.
    pub findings: Vec<muster_engine::playbook::Finding>,
}

/// Classes of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlErrorKind {
    /// The request is wrong in itself.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// There is one already, and it is another.
    AlreadyExists,
    /// Not in the present state.
    FailedPrecondition,
    /// The sequence number is no longer here.
    OutOfRange,
    /// Over a limit.
    ResourceExhausted,
    /// The journal or the bus does not stand; try again.
    Unavailable,
    /// A bug.
    Internal,
}

/// A stored revision of a playbook.
#[derive(Clone, Debug)]
pub struct PlaybookRevision {
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
    /// What lint said that is not an error.
    pub warnings: Vec<muster_engine::playbook::Finding>,
}

/// A plan with its digest.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Arc<Plan>,
    /// sha256 of its RFC 8785 JSON.
    pub digest: Digest,
    /// What lint said that is not an error, actions that nobody offers included.
    pub warnings: Vec<muster_engine::playbook::Finding>,
}

/// Which playbook is meant.
#[derive(Clone, Debug)]
pub enum PlaybookSource {
    /// A stored one; the newest revision when none is named.
    Stored {
        /// `metadata.name`.
        name: String,
        /// Content address.
        revision: Option<Digest>,
    },
    /// A document given with the request.
    Inline(String),
}

/// A run in a list.
#[derive(Clone, Debug)]
pub struct RunSummary {
    /// Its id.
    pub id: RunId,
    /// Its namespace.
    pub namespace: Namespace,
    /// The playbook's name.
    pub playbook: String,
    /// `RUNNING`, `WAITING`, `PAUSED`, `CANCELLING`, `ROLLING_BACK`, `FINISHING`, `SUCCEEDED`, `FAILED`, `CANCELLED`, `QUARANTINED`.
    pub state: &'static str,
    /// As [`state_reason`], cut to what a line holds.
    pub state_reason: String,
    /// When it started.
    pub started_at: Timestamp,
    /// By whom.
    pub started_by: Actor,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What it waits for most urgently; none: it has ended.
    pub waiting: Option<MostUrgent>,
}

/// The most urgent of what [`Control::explain_run`] answers, cut to what a line holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MostUrgent {
    /// As in [`Explanation::subject`].
    pub subject: String,
    /// What it waits for.
    pub waits_for: String,
    /// On whom.
    pub on_whom: String,
    /// On what kind of party.
    pub on: WaitsOn,
    /// Since when.
    pub since: Timestamp,
}

/// What a run is doing, in the words of [`RunSummary::state`]. `WAITING` means that a person has to answer something,
/// whatever else goes on.
pub fn run_state(run: &Run) -> &'static str {
    match &run.state {
        RunState::Ended { outcome: RunOutcome::Succeeded, .. } => return "SUCCEEDED",
        RunState::Ended { outcome: RunOutcome::Failed, .. } => return "FAILED",
        RunState::Ended { outcome: RunOutcome::Cancelled, .. } => return "CANCELLED",
        RunState::Running | RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } => {}
    }
    let asked = run.pause.as_ref().is_some_and(|p| p.question.is_some());
    if asked || run.awake.iter().any(|i| matches!(run.steps[*i].state, StepState::Asking { .. })) {
        return "WAITING";
    }
    if run.pause.is_some() {
        return "PAUSED";
    }
    match run.state {
        RunState::Cancelling => "CANCELLING",
        RunState::RollingBack => "ROLLING_BACK",
        RunState::Finishing { .. } => "FINISHING",
        RunState::Running | RunState::Ended { .. } => "RUNNING",
    }
}

/// Why the run is in that state, for people; empty for one that is simply running.
pub fn state_reason(run: &Run) -> String {
    if let RunState::Ended { reason, .. } = &run.state {
        let left: Vec<&str> = run.not_taken_back().into_iter().map(StepId::as_str).collect();
        return if left.is_empty() {
            reason.clone()
        } else {
            format!("{reason} (not taken back: {})", left.join(", "))
        };
    }
    if let Some(question) = run.pause.as_ref().and_then(|p| p.question.as_ref()) {
        return question.clone();
    }
    let asked = |i: &usize| match &run.steps.get(*i)?.state {
        StepState::Asking { question, .. } => Some(format!("step {} asks: {question}", run.plan.steps.get(*i)?.id)),
        StepState::Pending
        | StepState::Queued { .. }
        | StepState::Active
        | StepState::Waiting { .. }
        | StepState::Succeeded
        | StepState::Failed { .. }
        | StepState::Skipped { .. }
        | StepState::Cancelled
        | StepState::Undone => None,
    };
    if let Some(asked) = run.awake.iter().find_map(asked) {
        return asked;
    }
    if let Some(pause) = &run.pause {
        return pause.reason.clone();
    }
    match &run.state {
        RunState::Cancelling => run.cancel.as_ref().map(|c| c.reason.clone()).unwrap_or_default(),
        RunState::RollingBack => run.rollback.as_ref().map(|r| r.reason.clone()).unwrap_or_default(),
        RunState::Finishing { reason, .. } => reason.clone(),
        RunState::Running | RunState::Ended { .. } => String::new(),
    }
}

/// Which runs are listed.
#[derive(Clone, Debug, Default)]
pub struct RunFilter {
    /// By state, as in [`RunSummary::state`]; empty: all.
    pub states: Vec<String>,
    /// By the playbook's name.
    pub playbook: Option<String>,
    /// By the party that [`RunSummary::waiting`] names; empty: all.
    pub waits_on: Vec<WaitsOn>,
}

impl RunFilter {
    /// Whether a run is listed. What it waits on is asked for only if that is filtered by.
    pub fn admits(&self, state: &str, playbook: &str, waits_on: impl FnOnce() -> Option<WaitsOn>) -> bool {
        (self.states.is_empty() || self.states.iter().any(|wanted| wanted == state))
            && self.playbook.as_ref().is_none_or(|wanted| wanted == playbook)
            && (self.waits_on.is_empty() || waits_on().is_some_and(|on| self.waits_on.contains(&on)))
    }
}

/// One page of something.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The newest first for runs, by name for everything else.
    pub items: Vec<T>,
    /// Give this back for the next page; empty: that was all.
    pub next_page_token: String,
}

/// A journalled event of a run.
#[derive(Clone, Debug)]
pub struct RunEvent {
    /// Its number in the run, from 1.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: Actor,
    /// What happened.
    pub event: Arc<Event>,
}

/// An event with what it has made of the run.
#[derive(Clone, Debug)]
pub struct RunChange {
    /// The event.
    pub event: RunEvent,
    /// The run after the event's batch.
    pub run: Arc<Run>,
}

/// A milestone of a run.
#[derive(Clone, Debug)]
pub struct MilestoneView {
    /// Of which run.
    pub run: RunId,
    /// Of which playbook.
    pub playbook: String,
    /// Of which phase.
    pub phase: String,
    /// For people.
    pub name: String,
    /// Where it is.
    pub state: MilestoneState,
    /// Since when.
    pub since: Timestamp,
    /// When it has to be reached.
    pub due_at: Option<Timestamp>,
}

/// An agent with its processes.
#[derive(Clone, Debug)]
pub struct AgentView {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: AgentName,
    /// What steps ask for.
    pub role: String,
    /// What steps may ask for besides.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Where it works.
    pub host: String,
    /// `READY`, `SUSPECT`, `LOST`, `DRAINING`.
    pub state: &'static str,
    /// The process that answers, or answered last.
    pub instance: String,
    /// How many attempts at once.
    pub slots: u32,
    /// How many it has, attempts that may still run though their run has ended included.
    pub busy: u32,
    /// How many of those are of runs that have ended.
    pub busy_of_ended_runs: u32,
    /// When it last answered.
    pub last_beat_at: Option<Timestamp>,
    /// What it can do: name and version.
    pub actions: Vec<(String, String)>,
    /// For people.
    pub software: String,
}

/// What a coordinator does, and what is at work.
#[derive(Clone, Debug)]
pub struct CoordinatorView {
    /// The data directory's id.
    pub cluster: String,
    /// Who drains it; none: it serves.
    pub drain: Option<DrainView>,
    /// How many attempts are unconfirmed.
    pub at_work_count: usize,
    /// The oldest of them.
    pub at_work: Vec<AtWork>,
}

/// Who drains a coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainView {
    /// Who.
    pub by: Actor,
    /// Since when.
    pub since: Timestamp,
}

/// An attempt that could be at work right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtWork {
    /// Of which namespace.
    pub namespace: Namespace,
    /// Of which run.
    pub run: RunId,
    /// Of which step.
    pub step: StepId,
    /// Its number.
    pub attempt: AttemptNumber,
    /// Who has it.
    pub agent: AgentName,
    /// When it was assigned.
    pub since: Timestamp,
}

/// Something that waits: for what, on whom, since when, what happens next and when.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// `run`, `step <id>`, `gate of phase <id>`, `milestone <name>`.
    pub subject: String,
    /// What it waits for.
    pub waits_for: String,
    /// On whom.
    pub on_whom: String,
    /// On what kind of party.
    pub on: WaitsOn,
    /// Since when.
    pub since: Timestamp,
    /// What happens next by itself.
    pub next_action: String,
    /// When.
    pub next_at: Option<Timestamp>,
    /// What a person can do, as a command.
    pub hint: String,
}

impl From<Waiting> for Explanation {
    fn from(waiting: Waiting) -> Self {
        let Waiting { subject, waits_for, on_whom, on, since, next_action, next_at, hint } = waiting;
        Self { subject: subject.to_string(), waits_for, on_whom, on, since, next_action, next_at, hint }
    }
}

/// A stream of what happens.
pub type Watch<T> = Pin<Box<dyn Stream<Item = Result<T, ControlError>> + Send>>;

/// What can be asked of a coordinator.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// All findings of a document, errors and warnings; stores nothing.
    async fn lint(&self, namespace: &Namespace, yaml: &str) -> Vec<muster_engine::playbook::Finding>;
    /// Store a revision. The same document again gives the same revision.
    async fn submit_playbook(
        &self,
        namespace: &Namespace,
        yaml: &str,
        validate_only: bool,
        caller: &Caller,
    ) -> Result<PlaybookRevision, ControlError>;
    /// One revision; the newest when none is named.
    async fn playbook(
        &self,
        namespace: &Namespace,
        name: &str,
        revision: Option<&Digest>,
    ) -> Result<PlaybookRevision, ControlError>;
    /// The newest revision of each.
    async fn list_playbooks(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<PlaybookRevision>, ControlError>;
    /// Resolve without starting.
    async fn plan(
        &self,
        namespace: &Namespace,
        source: &PlaybookSource,
        inputs: Value,
    ) -> Result<Planned, ControlError>;

    /// Start a run. With `validate_only`, everything but the run. `plan_digest`: refuse if the plan is another.
    #[expect(clippy::too_many_arguments, reason = "one argument per field of the request")]
    async fn start_run(
        &self,
        namespace: &Namespace,
        source: &PlaybookSource,
        inputs: Value,
        note: &str,
        plan_digest: Option<&Digest>,
        validate_only: bool,
        caller: &Caller,
    ) -> Result<Arc<Run>, ControlError>;
    /// The run as it is; one in quarantine as it was before.
    async fn run(&self, namespace: &Namespace, id: &RunId) -> Result<Arc<Run>, ControlError>;
    /// Why a run is in quarantine, if it is.
    fn quarantine(&self, id: &RunId) -> Option<Arc<str>>;
    /// The newest first.
    async fn list_runs(
        &self,
        namespace: &Namespace,
        filter: &RunFilter,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<RunSummary>, ControlError>;
    /// Cancel, pause, resume, retry, resolve.
    async fn command_run(
        &self,
        namespace: &Namespace,
        id: &RunId,
        command: Command,
        caller: &Caller,
    ) -> Result<Arc<Run>, ControlError>;
    /// Journalled events after a sequence number, at most `limit`.
    async fn run_events(
        &self,
        namespace: &Namespace,
        id: &RunId,
        after_seq: u64,
        limit: usize,
    ) -> Result<Vec<RunEvent>, ControlError>;
    /// Events from a sequence number on, live; ends with the run's last event.
    async fn watch_run(
        &self,
        namespace: &Namespace,
        id: &RunId,
        after_seq: u64,
    ) -> Result<Watch<RunChange>, ControlError>;
    /// Entries of a run's log after a position (0: from its beginning), at most `limit`; a page may have fewer and not be the
    /// last. What was taken before the question is in it.
    async fn run_logs(
        &self,
        namespace: &Namespace,
        id: &RunId,
        filter: &logs::Filter,
        after: u64,
        limit: usize,
    ) -> Result<logs::Page, ControlError>;
    /// Entries of a run's log after a position, live; ends when the run has ended and its last lines are there.
    async fn watch_run_logs(
        &self,
        namespace: &Namespace,
        id: &RunId,
        filter: &logs::Filter,
        after: u64,
    ) -> Result<Watch<logs::Entry>, ControlError>;
    /// Everything of a run that waits.
    async fn explain_run(&self, namespace: &Namespace, id: &RunId) -> Result<Vec<Explanation>, ControlError>;

    /// Milestones, of one run or of all, by time.
    async fn list_milestones(
        &self,
        namespace: &Namespace,
        run: Option<&RunId>,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<MilestoneView>, ControlError>;
    /// Changes of milestones, live, of one run or of all.
    async fn watch_milestones(
        &self,
        namespace: &Namespace,
        run: Option<&RunId>,
    ) -> Result<Watch<MilestoneView>, ControlError>;

    /// By name.
    async fn list_agents(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<AgentView>, ControlError>;
    /// One.
    async fn agent(&self, namespace: &Namespace, name: &AgentName) -> Result<AgentView, ControlError>;
    /// Nothing new is given to it: it finishes what it holds, then its process ends.
    async fn drain_agent(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        caller: &Caller,
    ) -> Result<AgentView, ControlError>;
    /// A lost agent that will not come back is listed no more; answered with what was known of it.
    async fn forget_agent(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        caller: &Caller,
    ) -> Result<AgentView, ControlError>;

    /// What the coordinator does, and what is at work.
    fn coordinator(&self) -> CoordinatorView;
    /// Begin nothing new: no run is started and no attempt assigned once this is answered, until [`Self::resume_coordinator`] or
    /// another process.
    async fn drain_coordinator(&self, caller: &Caller) -> Result<CoordinatorView, ControlError>;
    /// Give out work again.
    async fn resume_coordinator(&self, caller: &Caller) -> Result<CoordinatorView, ControlError>;
}
