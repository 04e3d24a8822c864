//! What an agent's author writes.

use std::sync::Arc;

use async_trait::async_trait;
use muster_bus::message::{ActionOffer, Observation};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::guard::{Children, Command};

/// One thing an agent can do. The worker calls `check`, then (if it can be undone) reports what `prepare` gives and waits
/// until that is recorded, then calls `run`. Each call may happen again after a crash; see [`ActionSpec`].
#[async_trait]
pub trait Action: Send + Sync + 'static {
    /// What it is called and what it promises.
    fn spec(&self) -> ActionSpec;

    /// Whether the wanted state is already there. Must not change anything. Default: it can't tell.
    async fn check(&self, _ctx: &Context, _with: &Value) -> Result<Checked, ActionError> {
        Ok(Checked::CannotTell)
    }

    /// What `undo` will need, gathered before the first change. Must not change anything. Only for undoable actions.
    async fn prepare(&self, _ctx: &Context, _with: &Value) -> Result<Value, ActionError> {
        Ok(Value::Null)
    }

    /// Do it. Everything it starts must end with it, and it must stop soon after [`Context::cancelled`] is set. It must not
    /// block its thread (a time limit could not reach it): long computations and blocking calls go to `spawn_blocking`.
    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError>;

    /// Take it back, from what `prepare` gave. Must be safe to do twice, and after a `run` that did half or nothing.
    async fn undo(&self, _ctx: &Context, _with: &Value, _prepared: &Value) -> Result<Done, ActionError> {
        Err(ActionError::permanent("this action can't be undone"))
    }
}

/// What an action is called and what it promises. Its wire form is [`ActionOffer`].
pub type ActionSpec = ActionOffer;

/// What `check` found.
#[derive(Clone, Debug, PartialEq)]
pub enum Checked {
    /// The wanted state is there; nothing has to be done.
    Satisfied(Done),
    /// Something is different.
    Different {
        /// What, for people; a dry run shows it.
        diff: String,
    },
    /// The action has no way to tell.
    CannotTell,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// What it gives to later steps.
    pub output: Value,
    /// What was measured.
    pub observations: Vec<Observation>,
}

/// Why it was not done. Three kinds, since there are three things to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// It may pass by itself: try again.
    #[error("{message}")]
    Retry {
        /// What happened, where, what to do next.
        message: String,
        /// What it gives nevertheless.
        output: Option<Value>,
    },
    /// Another try will fail the same way.
    #[error("{message}")]
    Permanent {
        /// What happened, where, what to do next.
        message: String,
        /// What it gives nevertheless.
        output: Option<Value>,
    },
    /// A person has to do something first.
    #[error("{message}")]
    NeedsPerson {
        /// What happened, where, what to do next.
        message: String,
    },
}

impl ActionError {
    /// It may pass by itself.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::Retry { message: message.into(), output: None }
    }

    /// Another try will fail the same way.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::Permanent { message: message.into(), output: None }
    }

    /// A person has to do something first.
    pub fn needs_person(message: impl Into<String>) -> Self {
        Self::NeedsPerson { message: message.into() }
    }
}

/// What an action may use while it works.
#[derive(Clone)]
pub struct Context {
    /// Set when the attempt is cancelled or its time is up; the action should stop and say so.
    pub cancelled: CancellationToken,
    /// How it speaks while at work.
    pub voice: Arc<dyn Voice>,
    /// How it starts programs, which end with the attempt.
    pub children: Children,
}

/// What an action says while it works.
pub trait Voice: Send + Sync {
    /// A sentence, and 0 to 100 where it can tell.
    fn progress(&self, message: &str, percent: Option<u8>);
    /// A measurement.
    fn observe(&self, observation: Observation);
    /// A line of its log.
    fn log(&self, line: &str);
    /// A secret by name, if the task allows it and the agent has it.
    fn secret(&self, name: &str) -> Option<String>;
    /// A secret that the action has from elsewhere, such as a file: from now on this agent says its name instead, whatever
    /// says it. Values are kept until the process ends.
    fn keep_secret(&self, name: &str, value: &str);
}

impl Context {
    /// A sentence, and 0 to 100 where it can tell.
    pub fn progress(&self, message: &str, percent: Option<u8>) {
        self.voice.progress(message, percent);
    }

    /// A line of its log.
    pub fn log(&self, line: &str) {
        self.voice.log(line);
    }

    /// A program to be started, which ends with the attempt; an action starts none in another way.
    pub fn command(&self, program: impl Into<String>) -> Command {
        self.children.command(program)
    }
}
