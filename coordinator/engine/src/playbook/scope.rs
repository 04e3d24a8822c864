//! What an expression can see.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use crate::ids::StepId;

/// Where the outputs of steps come from.
pub trait Outputs: Sync {
    /// The output of a step that has one: it has succeeded, or is being verified.
    fn output(&self, step: &str) -> Option<&Value>;

    /// Whether what reads that output may not read texts, lists and maps of it, since it was cut.
    fn is_cut(&self, _step: &str) -> bool {
        false
    }
}

impl Outputs for BTreeMap<StepId, Arc<Value>> {
    fn output(&self, step: &str) -> Option<&Value> {
        self.get(step).map(|value| &**value)
    }
}

/// The names an expression can use: `inputs.<name>`, `steps.<id>.output.<name>`, `output.<name>` and `run.id`.
///
/// Borrowed and lazy: only what an expression names is looked at.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// The plan's inputs.
    pub inputs: &'a Value,
    /// The outputs of steps.
    pub steps: &'a dyn Outputs,
    /// The output under judgement, in `verify`.
    pub output: Option<&'a Value>,
    /// The run's id.
    pub run: &'a str,
}

/// What a dotted path leads to.
#[derive(Debug, PartialEq)]
pub(crate) enum Found<'a> {
    /// A value of a document.
    Value(&'a Value),
    /// `steps.<id>`: a map with `output` in it, or an empty one.
    Step(Option<&'a Value>),
    /// `run`, or `run.id`.
    Run {
        /// The id itself, not the map around it.
        id: bool,
    },
}

impl<'a> Scope<'a> {
    /// The step of whose output a path leads to something that may not be whole: its agent had to cut it. Numbers, true, false and
    /// null are never cut.
    pub(crate) fn cut_step(&self, path: &str, found: &Found<'_>) -> Option<String> {
        if matches!(found, Found::Value(Value::Number(_) | Value::Bool(_) | Value::Null)) {
            return None;
        }
        let step = path.strip_prefix("steps.")?.split('.').next()?;
        self.steps.is_cut(step).then(|| step.to_owned())
    }

    /// Follows `root.name.name…`; none where nothing is there.
    pub(crate) fn find(&self, path: &str) -> Option<Found<'a>> {
        let mut names = path.split('.');
        let mut at = match names.next()? {
            "inputs" => self.inputs,
            "output" => self.output?,
            "steps" => {
                let output = self.steps.output(names.next()?);
                match names.next() {
                    None => return Some(Found::Step(output)),
                    Some("output") => output?,
                    Some(_) => return None,
                }
            }
            "run" => {
                return match (names.next(), names.next()) {
                    (None, _) => Some(Found::Run { id: false }),
                    (Some("id"), None) => Some(Found::Run { id: true }),
                    (Some(_), _) => None,
                };
            }
            _ => return None,
        };
        for name in names {
            at = at.as_object()?.get(name)?;
        }
        Some(Found::Value(at))
    }
}
