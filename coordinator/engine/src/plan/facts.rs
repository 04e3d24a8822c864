//! What is looked up in a plan again and again, worked out once and shared by all runs of the plan.

use std::sync::{Arc, OnceLock};

use serde::{Serialize as _, Serializer, ser::Error as _};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::{AgentSelector, PinnedAction, Plan, PlannedUndo};
use crate::ids::StepId;

/// Facts of a plan, made when first needed. They say nothing that the plan does not: those of two plans count as equal, and a
/// copy of a plan, which may be changed, makes its own.
#[derive(Default)]
pub struct PlanFacts {
    looked_up: OnceLock<Facts>,
    json: OnceLock<Box<RawValue>>,
}

impl std::fmt::Debug for PlanFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PlanFacts")
    }
}

impl PartialEq for PlanFacts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Clone for PlanFacts {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Plan {
    /// See [`Facts`].
    pub(crate) fn facts(&self) -> &Facts {
        self.facts.looked_up.get_or_init(|| Facts::new(self))
    }

    /// As JSON, written once for all runs of the plan: each begins with a copy of it.
    pub(crate) fn serialize_once<S: Serializer>(plan: &Arc<Self>, to: S) -> Result<S::Ok, S::Error> {
        if let Some(json) = plan.facts.json.get() {
            return json.serialize(to);
        }
        let json = to_raw_value(&**plan).map_err(S::Error::custom)?;
        plan.facts.json.get_or_init(|| json).serialize(to)
    }
}

/// What is looked up.
#[derive(Debug)]
pub(crate) struct Facts {
    by_id: Vec<(StepId, usize)>,
    dependents: Vec<Vec<usize>>,
    /// Per step.
    pub(crate) steps: Vec<StepFacts>,
    /// Names of the secrets.
    pub(crate) secrets: Arc<[String]>,
}

/// Facts of a step, shaped so that they can be handed out without a copy.
#[derive(Debug)]
pub(crate) struct StepFacts {
    pub(crate) selector: Arc<AgentSelector>,
    pub(crate) run: Arc<PinnedAction>,
    pub(crate) verify: Option<Arc<PinnedAction>>,
    pub(crate) undo: Option<Arc<PinnedAction>>,
    /// `with`, where it has no template in it.
    pub(crate) constant_with: Option<Arc<Value>>,
}

impl Facts {
    fn new(plan: &Plan) -> Self {
        let mut by_id: Vec<_> = plan.steps.iter().enumerate().map(|(i, s)| (s.id.clone(), i)).collect();
        by_id.sort();
        let mut dependents = vec![Vec::new(); plan.steps.len()];
        for (i, step) in plan.steps.iter().enumerate() {
            for need in &step.needs {
                if let Some(list) = dependents.get_mut(*need) {
                    list.push(i);
                }
            }
        }
        let steps = plan
            .steps
            .iter()
            .map(|s| StepFacts {
                selector: Arc::new(s.agent.clone()),
                run: Arc::new(s.action.clone()),
                verify: s.verify.as_ref().map(|v| Arc::new(v.action.clone())),
                undo: match &s.undo {
                    PlannedUndo::Action { action, .. } => Some(Arc::new(action.clone())),
                    PlannedUndo::Auto | PlannedUndo::Irreversible | PlannedUndo::Nothing => None,
                },
                constant_with: (!has_template(&s.with)).then(|| Arc::new(s.with.clone())),
            })
            .collect();
        Self { by_id, dependents, steps, secrets: plan.secrets.clone().into() }
    }

    /// Index of a step.
    pub(crate) fn step(&self, id: &str) -> Option<usize> {
        let at = self.by_id.binary_search_by(|(other, _)| other.as_str().cmp(id)).ok()?;
        self.by_id.get(at).map(|(_, i)| *i)
    }

    /// Indexes of the steps that need this one, all larger.
    pub(crate) fn dependents(&self, step: usize) -> &[usize] {
        self.dependents.get(step).map_or(&[], Vec::as_slice)
    }
}

fn has_template(value: &Value) -> bool {
    match value {
        Value::String(s) => s.contains("{{") || s.contains("{%") || s.contains("{#"),
        Value::Array(items) => items.iter().any(has_template),
        Value::Object(map) => map.iter().any(|(k, v)| k.contains("{{") || has_template(v)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
