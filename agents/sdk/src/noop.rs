//! The action that does nothing: to measure what everything around an action costs, and to try a playbook's shape.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::action::{Action, ActionError, ActionSpec, Context, Done};

/// `noop.run`: takes anything, does nothing, gives `{}`.
pub struct Noop;

#[async_trait]
impl Action for Noop {
    fn spec(&self) -> ActionSpec {
        ActionSpec {
            summary: "Does nothing.".to_owned(),
            idempotent: true,
            concurrent_safe: true,
            read_only: true,
            scope: muster_bus::message::Scope::Target,
            ..ActionSpec::new("noop.run", "1.0.0")
        }
    }

    async fn run(&self, _ctx: &Context, _with: &Value) -> Result<Done, ActionError> {
        Ok(Done { output: json!({}), observations: Vec::new() })
    }
}
