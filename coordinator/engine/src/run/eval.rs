//! Expressions and templates over a run.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Run,
    event::{AttemptEnd, Outcome, Purpose},
    state::{Attempt, StepState},
};
use crate::playbook::{Outputs, Scope, expr, render};

impl Outputs for Run {
    /// Of a step that has succeeded, or is being verified.
    fn output(&self, step: &str) -> Option<&Value> {
        let step = self.plan.facts().step(step).and_then(|i| self.steps.get(i))?;
        match &step.state {
            StepState::Succeeded | StepState::Active | StepState::Queued { .. } => step.output.as_deref(),
            StepState::Pending
            | StepState::Waiting { .. }
            | StepState::Asking { .. }
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => None,
        }
    }
}

/// The same for a gate, which judges no part of an output that may not be whole.
struct Evidence<'a>(&'a Run);

impl Outputs for Evidence<'_> {
    fn output(&self, step: &str) -> Option<&Value> {
        self.0.output(step)
    }

    /// An output that a person gave in its place is whole.
    fn is_cut(&self, step: &str) -> bool {
        let Some(step) = self.0.plan.facts().step(step).and_then(|i| self.0.steps.get(i)) else { return false };
        let (given, truncated) = step.attempts.iter().rev().find_map(given).unzip();
        truncated == Some(true) && step.output.as_ref() == given
    }
}

/// What an attempt gave as the step's output, and whether that was cut.
fn given(attempt: &Attempt) -> Option<(&Arc<Value>, bool)> {
    let Some((_, AttemptEnd::Finished { outcome: Outcome::Succeeded { output, truncated, .. } })) = &attempt.end else {
        return None;
    };
    matches!(attempt.purpose, Purpose::Run | Purpose::Probe).then_some((output, *truncated))
}

/// Whether a gate's condition holds; an error says why that can't be told, a cut output included.
pub(crate) fn judged(run: &Run, expression: &str) -> Result<bool, String> {
    let evidence = Scope { steps: &Evidence(run), ..scope(run, None) };
    expr::eval_bool(expression, &evidence).map_err(|e| e.to_string())
}

/// Whether a condition holds; an error says why that can't be told.
pub(crate) fn holds(run: &Run, expression: &str, output: Option<&Value>) -> Result<bool, String> {
    expr::eval_bool(expression, &scope(run, output)).map_err(|e| e.to_string())
}

/// The value of an expression.
pub(crate) fn value(run: &Run, expression: &str) -> Result<Value, String> {
    expr::eval_value(expression, &scope(run, None)).map_err(|e| e.to_string())
}

/// Parameters with their templates filled in.
pub(crate) fn rendered(run: &Run, with: &Value) -> Result<Arc<Value>, String> {
    render::render(with, &scope(run, None)).map(|v| Arc::new(v.into_owned())).map_err(|e| e.to_string())
}

/// A moment as RFC 3339, or a template that gives one.
pub(crate) fn moment(run: &Run, text: &str) -> Result<Timestamp, String> {
    let rendered = rendered(run, &Value::String(text.to_owned()))?;
    let shown = rendered.as_str().map_or_else(|| rendered.to_string(), str::to_owned);
    shown.parse().map_err(|_| format!("{shown:?} is no moment: write it as 2026-01-31T18:00:00Z"))
}

fn scope<'a>(run: &'a Run, output: Option<&'a Value>) -> Scope<'a> {
    Scope { inputs: &run.plan.inputs, steps: run, output, run: run.id.as_str() }
}
