//! Passwords: named in the parameters, known only to the agent that uses them.

use std::path::PathBuf;

use muster_agent::{ActionError, Context};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a password comes from: a secret by name, or a file on the agent's host. Never the parameters themselves, since
/// these are journalled. With neither, none is sent.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Password {
    /// Name of a secret that the run declares and the agent has.
    #[serde(default)]
    pub secret: Option<String>,
    /// Absolute path of a file whose first line is the password.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

impl Password {
    /// The password, `None` where none is configured.
    ///
    /// # Errors
    /// [`ActionError::NeedsPerson`] when it is named but can't be had.
    pub fn get(&self, ctx: &Context) -> Result<Option<String>, ActionError> {
        if let Some(name) = &self.secret {
            let found = ctx.voice.secret(name).ok_or_else(|| {
                ActionError::needs_person(format!("the secret {name:?} is not known here; give it to this agent"))
            })?;
            return Ok(Some(found));
        }
        let Some(path) = &self.file else { return Ok(None) };
        crate::params::absolute("password.file", path)?;
        let text = std::fs::read_to_string(path).map_err(|e| {
            ActionError::needs_person(format!("the password file {} can't be read: {e}", path.display()))
        })?;
        let password = text.lines().next().filter(|line| !line.is_empty()).map(str::to_owned);
        if let Some(password) = &password {
            ctx.voice.keep_secret(&path.display().to_string(), password);
        }
        Ok(password)
    }
}
