//! `command.run`: starts one of the programs that the agent's own `allow.toml` lists. Never a shell.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    action::{Action, ActionError, ActionSpec, Context, Done},
    allow::Allow,
    guard, text,
};

/// The action; what it may start is fixed when it is made.
pub struct CommandRun {
    allow: Arc<Allow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    command: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    stdin: String,
}

impl CommandRun {
    /// May start what `allow` lists.
    pub fn new(allow: Allow) -> Self {
        Self { allow: Arc::new(allow) }
    }
}

#[async_trait]
impl Action for CommandRun {
    fn spec(&self) -> ActionSpec {
        ActionSpec {
            summary: "Starts a program that the agent's allow list names, and waits for its end.".to_owned(),
            params_schema: Some(json!({
                "type": "object",
                "required": ["command"],
                "additionalProperties": false,
                "properties": {
                    "command": {"type": "string", "description": "Its name in the agent's allow.toml."},
                    "args": {"type": "array", "items": {"type": "string"}},
                    "env": {"type": "object", "additionalProperties": {"type": "string"}},
                    "stdin": {"type": "string"}
                }
            })),
            output_schema: Some(json!({
                "type": "object",
                "required": ["exit_code", "stdout", "stderr", "truncated"],
                "properties": {
                    "exit_code": {"type": "integer"},
                    "stdout": {"type": "string"},
                    "stderr": {"type": "string"},
                    "truncated": {"type": "boolean"}
                }
            })),
            ..ActionSpec::new("command.run", "1.0.0")
        }
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let params = Params::deserialize(with).map_err(|e| ActionError::permanent(format!("command.run: {e}")))?;
        let (allow, name) = (self.allow.clone(), params.command.clone());
        let program = tokio::task::spawn_blocking(move || allow.verify(&name))
            .await
            .map_err(|e| ActionError::retry(format!("command.run: {e}")))?
            .map_err(|e| ActionError::permanent(text::chain(&e)))?;
        let program = program.to_str().ok_or_else(|| {
            ActionError::permanent(format!("command {:?}: its path is not UTF-8; move it", params.command))
        })?;
        let mut command = ctx.command(program).args(params.args).stdin(params.stdin).logged(ctx.voice.clone());
        for (name, value) in params.env {
            command = command.env(name, value);
        }
        let output = command.output().await?;
        let result = json!({
            "exit_code": output.code,
            "stdout": output.stdout,
            "stderr": output.stderr,
            "truncated": output.truncated,
        });
        if output.code == 0 {
            return Ok(Done { output: result, observations: Vec::new() });
        }
        let message = format!("command {:?} {}", params.command, guard::ended(output.code, &output.stderr));
        Err(ActionError::Permanent { message, output: Some(result) })
    }
}
