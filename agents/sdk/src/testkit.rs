//! For authors of actions: call an action's parts in a test, and see what it said.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_bus::message::Observation;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Action, ActionError, Checked, Context, Done, Voice},
    guard::{Children, Guard},
};

/// An action on trial. Programs that it starts are real, but without a guard (see [`Guard::Off`]) unless it gets one.
pub struct Trial {
    action: Arc<dyn Action>,
    voice: Arc<Recorder>,
    cancelled: CancellationToken,
    children: Children,
}

/// What an action said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Sentences, and percents.
    pub progress: Vec<(String, Option<u8>)>,
    /// Measurements.
    pub observations: Vec<Observation>,
    /// Lines of its log.
    pub log: Vec<String>,
    /// The names of secrets that it has from elsewhere.
    pub kept_secrets: Vec<String>,
}

#[derive(Default)]
struct Recorder {
    said: Mutex<Said>,
    secrets: BTreeMap<String, String>,
}

impl Trial {
    /// Of an action without secrets.
    pub fn new(action: impl Action) -> Self {
        Self::with_secrets(action, BTreeMap::new())
    }

    /// Of an action that may use `secrets`.
    pub fn with_secrets(action: impl Action, secrets: BTreeMap<String, String>) -> Self {
        let cancelled = CancellationToken::new();
        Self {
            action: Arc::new(action),
            voice: Arc::new(Recorder { said: Mutex::default(), secrets }),
            children: Children::new(Guard::Off, None, cancelled.clone()),
            cancelled,
        }
    }

    /// Programs are started through `guard`, and so end as they do in an agent.
    #[must_use]
    pub fn guarded(self, guard: Guard) -> Self {
        Self { children: Children::new(guard, None, self.cancelled.clone()), ..self }
    }

    /// What the action is given; for calls that are not here.
    pub fn context(&self) -> Context {
        Context { cancelled: self.cancelled.clone(), voice: self.voice.clone(), children: self.children.clone() }
    }

    /// Its `check`.
    pub async fn check(&self, with: &Value) -> Result<Checked, ActionError> {
        self.action.check(&self.context(), with).await
    }

    /// Its `prepare`.
    pub async fn prepare(&self, with: &Value) -> Result<Value, ActionError> {
        self.action.prepare(&self.context(), with).await
    }

    /// Its `run`.
    pub async fn run(&self, with: &Value) -> Result<Done, ActionError> {
        self.action.run(&self.context(), with).await
    }

    /// Its `undo`.
    pub async fn undo(&self, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        self.action.undo(&self.context(), with, prepared).await
    }

    /// Tell it to stop, as a cancelled attempt is told.
    pub fn cancel(&self) {
        self.cancelled.cancel();
    }

    /// What it has said so far.
    pub fn said(&self) -> Said {
        self.voice.said().clone()
    }
}

impl Recorder {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Voice for Recorder {
    fn progress(&self, message: &str, percent: Option<u8>) {
        self.said().progress.push((message.to_owned(), percent));
    }

    fn observe(&self, observation: Observation) {
        self.said().observations.push(observation);
    }

    fn log(&self, line: &str) {
        self.said().log.push(line.to_owned());
    }

    fn secret(&self, name: &str) -> Option<String> {
        self.secrets.get(name).cloned()
    }

    fn keep_secret(&self, name: &str, _: &str) {
        self.said().kept_secrets.push(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ActionSpec;

    /// Says what a program says.
    struct Echo;

    #[async_trait::async_trait]
    impl Action for Echo {
        fn spec(&self) -> ActionSpec {
            ActionSpec::new("echo.run", "1.0.0")
        }

        async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
            ctx.progress("starting", Some(10));
            let word = with["word"].as_str().unwrap();
            let output =
                ctx.command("sh").args(["-c", "cat; echo \"$1\"; exit 3", "sh", word]).stdin("in ").output().await?;
            ctx.log(&output.stdout);
            let secret = ctx.voice.secret("token");
            Ok(Done { output: json!({"code": output.code, "secret": secret}), observations: Vec::new() })
        }
    }

    #[tokio::test]
    async fn an_action_can_be_tried_alone() {
        let trial = Trial::with_secrets(Echo, [("token".to_owned(), "t".to_owned())].into());
        assert_eq!(trial.check(&json!({})).await.unwrap(), Checked::CannotTell);
        let done = trial.run(&json!({"word": "out"})).await.unwrap();
        assert_eq!(done.output, json!({"code": 3, "secret": "t"}));
        let said = trial.said();
        assert_eq!(said.progress, [("starting".to_owned(), Some(10))]);
        assert_eq!(said.log, ["in out\n"]);
        assert!(trial.undo(&json!({}), &Value::Null).await.is_err());
        trial.cancel();
        assert!(trial.run(&json!({"word": "out"})).await.unwrap_err().to_string().contains("stopped"));
    }
}
