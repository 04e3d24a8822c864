//! A plan: one playbook revision with inputs and pinned action versions, resolved to a DAG.
//!
//! A plan is immutable and complete: a run needs no playbook, catalogue or default to be driven or replayed. Steps stand
//! in topological order, so that an index below a step's own is the only thing a step can need.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{ActionName, Digest, HostLabel, PhaseId, StepId};

mod catalogue;
mod facts;
pub(crate) mod graph;
mod resolve;

pub use catalogue::{Catalogue, CatalogueEntry};
pub use facts::PlanFacts;
pub(crate) use facts::StepFacts;
pub use resolve::{DEFAULT_EVERY_MS, DEFAULT_RETRY, DEFAULT_STATUS_MS, DEFAULT_TIMEOUT_MS, resolve};

/// A validated DAG of steps in phases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// `metadata.name` of the playbook.
    pub playbook: String,
    /// Content address of the playbook document.
    pub revision: Digest,
    /// Team or role that is told when a run waits for a person.
    pub owner: String,
    /// Inputs after defaults, valid against the playbook's schema.
    pub inputs: Value,
    /// Names of the secrets the steps may ask an agent to use; never values.
    pub secrets: Vec<String>,
    /// What a cancellation does with what was done.
    pub on_cancel: OnCancel,
    /// Phases in the order in which they run, one after another.
    pub phases: Vec<PlannedPhase>,
    /// All steps of all phases, in topological order.
    pub steps: Vec<PlannedStep>,
    /// Named CEL expressions evaluated at the end of the run.
    pub outputs: BTreeMap<String, String>,
    /// Made from the rest when first needed.
    #[serde(skip)]
    pub facts: PlanFacts,
}

/// What a cancellation does with what was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCancel {
    /// Nothing is undone.
    #[default]
    Keep,
    /// Everything done is undone, in reverse order.
    Undo,
}

/// A group of steps with a deadline, a gate and a milestone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedPhase {
    /// Unique in the plan.
    pub id: PhaseId,
    /// For people.
    pub name: String,
    /// `critical`, `high`, `medium` or `low`.
    pub priority: Priority,
    /// From the start of the run; never paused.
    pub deadline_ms: Option<u64>,
    /// Reached when the phase's steps are done and its gate has passed.
    pub milestone: Option<String>,
    /// CEL over `inputs` and earlier steps; false skips the phase whole.
    pub when: Option<String>,
    /// Indexes into [`Plan::steps`].
    pub steps: Vec<usize>,
    /// Judged when every step of the phase is done.
    pub gate: Option<PlannedGate>,
}

/// How urgent a phase is; orders placement between runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// First.
    Critical,
    /// Before medium.
    High,
    /// The default.
    #[default]
    Medium,
    /// Last.
    Low,
}

/// Criteria over evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedGate {
    /// CEL; all must be true to pass, one false fails, an error is inconclusive.
    pub success_condition: Vec<String>,
    /// CEL; one true fails the gate.
    pub failure_condition: Vec<String>,
}

/// A node of the DAG.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Unique in the plan.
    pub id: StepId,
    /// For people.
    pub name: String,
    /// Index into [`Plan::phases`].
    pub phase: usize,
    /// Indexes of steps (all smaller than this step's own) that must have succeeded or been skipped; for an `always` step: that must be over.
    pub needs: Vec<usize>,
    /// CEL; false skips the step.
    pub when: Option<String>,
    /// Who may do it.
    pub agent: AgentSelector,
    /// What is done; [`PinnedAction::nothing`] where the step only waits.
    pub action: PinnedAction,
    /// What it waits for, instead of an action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<PlannedWait>,
    /// Parameters; strings may be templates over `inputs` and `steps`.
    pub with: Value,
    /// Of one attempt, enforced by the agent.
    pub timeout_ms: u64,
    /// Longest wait for an agent to take it; none: it waits, with reminders.
    pub queue_timeout_ms: Option<u64>,
    /// How often the agent says how it goes.
    pub status_ms: u64,
    /// When an attempt fails in a way that may pass.
    pub retry: RetryPolicy,
    /// When an attempt has ended and nobody knows how.
    pub on_lost: OnLost,
    /// When the step has failed for good.
    pub on_failure: OnFailure,
    /// Whether the run fails with it. Not with [`OnFailure::Undo`] if it is false.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub critical: bool,
    /// It is done whatever becomes of what it needs, and after a walk back or a cancellation too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub always: bool,
    /// A second look by another action, after every success and every loss.
    pub verify: Option<PlannedVerify>,
    /// How it is taken back.
    pub undo: PlannedUndo,
}

/// What a step waits for. No agent has a part in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PlannedWait {
    /// A time, from the moment at which the step could begin.
    For {
        /// How long.
        ms: u64,
    },
    /// A moment.
    Until {
        /// RFC 3339, or a template that gives it.
        moment: String,
    },
    /// A signal to the run; one that came before counts, too.
    Signal {
        /// Its name.
        name: String,
        /// How long it is waited for; none: for ever, with reminders.
        timeout_ms: Option<u64>,
    },
}

/// Which agents may take a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AgentSelector {
    /// The agent's role.
    pub role: String,
    /// All must be equal on the agent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The host label, where the playbook names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostLabel>,
}

/// An action with the facts of the version that the plan was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedAction {
    /// `<system>.<verb>`.
    pub name: ActionName,
    /// The version that was offered when the plan was made.
    pub version: String,
    /// What the engine has to know of it.
    pub facts: ActionFacts,
}

impl PinnedAction {
    /// The action of a step that has none. No agent can offer it: its name is none of an action.
    pub fn nothing() -> Self {
        let facts = ActionFacts {
            idempotent: true,
            undoable: false,
            checkable: false,
            concurrent_safe: true,
            read_only: true,
            scope: ActionScope::Target,
        };
        Self { name: "wait".into(), version: String::new(), facts }
    }
}

/// What the engine has to know of an action; declared by the agent that offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent promises, each named where it is used")]
pub struct ActionFacts {
    /// Doing it twice is the same as doing it once.
    pub idempotent: bool,
    /// Its `undo` takes its work back, from the data that `prepared` recorded.
    pub undoable: bool,
    /// It has a `check` that tells whether the wanted state is there.
    pub checkable: bool,
    /// Two attempts at once do no harm.
    pub concurrent_safe: bool,
    /// It changes nothing (a probe, an inspection): there is nothing to undo.
    pub read_only: bool,
    /// Whether its work belongs to the host it ran on.
    pub scope: ActionScope,
}

/// Where an action's work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionScope {
    /// On the agent's host: probe, undo and verify stay on that host label.
    #[default]
    Host,
    /// On a target named by the parameters: any agent of the role will do.
    Target,
}

/// When and how often a failed attempt is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Counts attempts of purpose `run`, the first included.
    pub max_attempts: u32,
    /// Before the second attempt.
    pub initial_ms: u64,
    /// Upper bound of one wait.
    pub max_ms: u64,
    /// Growth of the wait.
    pub factor: f64,
    /// From the first attempt's assignment; no attempt starts after it.
    pub max_elapsed_ms: Option<u64>,
}

/// When an attempt has ended with an outcome nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// Ask the action's own `check`.
    #[default]
    Probe,
    /// Again; only for idempotent actions.
    Retry,
    /// Ask a person.
    Ask,
}

/// When a step has failed for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Take back everything done so far, in reverse order; the run fails.
    #[default]
    Undo,
    /// Stop the step's sub-graph with a question; the rest goes on.
    Pause,
    /// Dependents are skipped; the rest goes on; the run fails at its end.
    Continue,
}

/// A second look at what a step did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedVerify {
    /// The action that looks; never one that changes something.
    pub action: PinnedAction,
    /// Parameters; templates as in a step.
    pub with: Value,
    /// CEL over `output` (of the look), `inputs` and `steps`; all must be true.
    pub expect: Vec<String>,
    /// How long it may take until all are true, from the end of the attempt; 0: one look.
    pub within_ms: u64,
    /// Between two looks.
    pub every_ms: u64,
}

/// How a step is taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PlannedUndo {
    /// By the action's own `undo`, with what its `prepared` recorded.
    Auto,
    /// By another action.
    Action {
        /// The action that takes it back.
        action: PinnedAction,
        /// Parameters; templates as in a step.
        with: Value,
    },
    /// It cannot be taken back; the walk back passes it by and says so.
    Irreversible,
    /// There is nothing to take back: the action changes nothing.
    Nothing,
}

/// What plans from before the field was there mean.
fn yes() -> bool {
    true
}

impl PlannedStep {
    /// Whether it is queued as soon as everything it needs is done, without a look at anything.
    pub(crate) fn begins_by_itself(&self) -> bool {
        self.when.is_none() && self.wait.is_none()
    }

    /// Whether it waits for a moment of the wall clock.
    pub(crate) fn waits_for_moment(&self) -> bool {
        matches!(self.wait, Some(PlannedWait::Until { .. }))
    }
}

impl Plan {
    /// sha256 of the plan's RFC 8785 JSON: equal plans have equal digests, on every machine.
    pub fn digest(&self) -> Digest {
        let canonical =
            serde_json_canonicalizer::to_vec(self).expect("a plan has string keys and finite numbers alone");
        crate::playbook::digest_of(&canonical)
    }

    /// Index of a step.
    pub fn step_index(&self, id: &str) -> Option<usize> {
        self.steps.iter().position(|s| s.id.as_str() == id)
    }

    /// Index of a phase.
    pub fn phase_index(&self, id: &str) -> Option<usize> {
        self.phases.iter().position(|p| p.id.as_str() == id)
    }
}
