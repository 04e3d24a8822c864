//! Parameters: read, checked, and described by a JSON Schema.

use std::path::Path;

use muster_agent::{ActionError, ActionSpec};
use muster_bus::message::Scope;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The parameters as their type, or a permanent error that names the field.
pub fn read<T: DeserializeOwned>(with: &Value) -> Result<T, ActionError> {
    T::deserialize(with).map_err(|e| ActionError::permanent(format!("wrong parameters: {e}")))
}

/// A spec with the schemas of the parameters `P` and the output `O`; the promises are still all off.
pub fn spec<P: JsonSchema, O: JsonSchema>(name: &str, summary: &str) -> ActionSpec {
    ActionSpec {
        summary: summary.into(),
        params_schema: Some(schemars::schema_for!(P).to_value()),
        output_schema: Some(schemars::schema_for!(O).to_value()),
        ..ActionSpec::new(name, "1.0.0")
    }
}

/// A spec of something that only looks: it changes nothing, may be repeated and may run beside others.
pub fn probe_spec<P: JsonSchema, O: JsonSchema>(name: &str, summary: &str) -> ActionSpec {
    ActionSpec {
        idempotent: true,
        concurrent_safe: true,
        read_only: true,
        scope: Scope::Target,
        ..spec::<P, O>(name, summary)
    }
}

/// A spec of something that changes files of this host, can tell whether they are right, and can put them back.
pub fn change_spec<P: JsonSchema, O: JsonSchema>(name: &str, summary: &str) -> ActionSpec {
    ActionSpec { idempotent: true, undoable: true, checkable: true, ..spec::<P, O>(name, summary) }
}

/// An output as JSON.
pub fn output<T: serde::Serialize>(output: &T) -> Value {
    serde_json::to_value(output).expect("outputs are plain structs with string keys")
}

/// Refuses a relative path: it would mean something else for each agent.
pub fn absolute(field: &str, path: &Path) -> Result<(), ActionError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(ActionError::permanent(format!("{field}: {} is not an absolute path", path.display())))
}

/// Refuses text that could end the line or the quotes that it is written into.
pub fn plain(field: &str, text: &str, also: &str) -> Result<(), ActionError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    match text.chars().find(|c| !fits(*c)) {
        None if !text.is_empty() => Ok(()),
        None => Err(ActionError::permanent(format!("{field} is empty"))),
        Some(c) => Err(ActionError::permanent(format!("{field}: {c:?} is not allowed in {text:?}"))),
    }
}
