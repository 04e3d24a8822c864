//! What becomes of an attempt: the order in which an action's parts are called, and what is said of the result.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use muster_bus::message::{FailureKind, Observation, Outcome, Purpose, Task};
use serde_json::{Value, json};

use super::voice::OBSERVATIONS;
use crate::{
    action::{ActionError, Checked, Context, Done},
    catalogue::Entry,
    text,
};

/// The longest message of an outcome, in bytes.
const MESSAGE: usize = 8 * 1024;

/// Why an attempt ended without the action's word.
pub(crate) enum Broken {
    /// The action said so.
    Failed(ActionError),
    /// The coordinator does not want it any more: nothing is reported.
    Unwanted,
}

impl From<ActionError> for Broken {
    fn from(error: ActionError) -> Self {
        Self::Failed(error)
    }
}

/// Reports `prepared`; `Ok` when it is recorded.
pub(crate) type Prepared<'a> = &'a (dyn Fn(Value) -> BoxFuture<'a, Result<(), Broken>> + Send + Sync);

/// Do what the task asks for. `changing` is set before the first change.
pub(crate) async fn perform(
    task: &Task,
    entry: &Entry,
    ctx: &Context,
    changing: &AtomicBool,
    prepared: Prepared<'_>,
) -> Result<Outcome, Broken> {
    if let Some(why) = entry.refuse_params(&task.with) {
        return Err(ActionError::permanent(why).into());
    }
    let action = &entry.action;
    let about_to_change = || changing.store(!entry.offer.read_only, Ordering::Release);
    match task.purpose {
        Purpose::Run => {
            if let Checked::Satisfied(done) = action.check(ctx, &task.with).await? {
                return Ok(succeeded(done, true));
            }
            if task.prepare {
                prepared(action.prepare(ctx, &task.with).await?).await?;
            }
            about_to_change();
            Ok(succeeded(action.run(ctx, &task.with).await?, false))
        }
        Purpose::Probe => match action.check(ctx, &task.with).await? {
            Checked::Satisfied(done) => Ok(succeeded(done, true)),
            Checked::Different { diff } => Ok(Outcome::NotSatisfied { diff: text::head(&diff, MESSAGE) }),
            Checked::CannotTell => {
                Err(ActionError::permanent(format!("{} has no way to tell whether it is done", task.action)).into())
            }
        },
        Purpose::Verify => {
            about_to_change();
            Ok(succeeded(action.run(ctx, &task.with).await?, false))
        }
        Purpose::Undo => {
            about_to_change();
            let undo = task.undo.as_ref().unwrap_or(&Value::Null);
            Ok(succeeded(action.undo(ctx, &task.with, undo).await?, false))
        }
    }
}

fn succeeded(done: Done, unchanged: bool) -> Outcome {
    Outcome::Succeeded { output: done.output, unchanged, observations: done.observations, truncated: false }
}

/// An action's error as an outcome.
pub(crate) fn failed(error: ActionError) -> Outcome {
    let (error, message, output) = match error {
        ActionError::Retry { message, output } => (FailureKind::Retry, message, output),
        ActionError::Permanent { message, output } => (FailureKind::Permanent, message, output),
        ActionError::NeedsPerson { message } => (FailureKind::NeedsPerson, message, None),
    };
    Outcome::Failed { error, message: text::head(&message, MESSAGE), output }
}

/// Add what was measured on the way, and leave out what no journal can hold.
pub(crate) fn observed(outcome: &mut Outcome, on_the_way: Vec<Observation>) {
    if let Outcome::Succeeded { observations, .. } = outcome {
        for observation in on_the_way {
            if !observations.contains(&observation) {
                observations.push(observation);
            }
        }
        observations.retain(|observation| observation.value.is_finite());
        observations.truncate(OBSERVATIONS);
    }
}

/// Make an outcome smaller, and flag it: strings and lists of its output are cut to `limit`, in bytes and entries; at 0
/// nothing is left of it.
pub(crate) fn cut(outcome: &mut Outcome, limit: usize) {
    let cut = |output: &mut Value| {
        if limit == 0 {
            *output = json!({});
        } else {
            cut_value(output, limit);
        }
    };
    match outcome {
        Outcome::Succeeded { output, truncated, observations, .. } => {
            cut(output);
            observations.truncate(limit);
            *truncated = true;
        }
        Outcome::Failed { message, output, .. } => {
            if let Some(output) = output {
                cut(output);
            }
            *message = format!("{} (its output was too large and is cut)", text::head(message, MESSAGE / 2));
        }
        Outcome::NotSatisfied { .. } | Outcome::Cancelled { .. } => {}
    }
}

fn cut_value(value: &mut Value, limit: usize) {
    match value {
        Value::String(text) => {
            if text.len() > limit {
                *text = text::head(text, limit);
            }
        }
        Value::Array(values) => {
            values.truncate(limit);
            for value in values {
                cut_value(value, limit);
            }
        }
        Value::Object(fields) => {
            for value in fields.values_mut() {
                cut_value(value, limit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
