//! The shipped rollout, step by step: each does its work, finds nothing to do the second time, and is taken back.

use std::{collections::BTreeMap, fs, sync::Arc};

use muster_agent::Action;
use muster_bus::message::Scope as Place;
use muster_engine::{
    ids::StepId,
    plan::{ActionFacts, ActionScope, Catalogue, CatalogueEntry, Plan, resolve},
    playbook::{Scope, expr::eval_bool, read, render::render, revision},
};
use muster_integration_tests::{
    lab::{Lab, Pooling},
    probe::probe,
};
use serde_json::Value;

use crate::{context, does, undoes};

const PLAYBOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../playbooks/revenue-engine-rollout.yaml");

fn actions() -> BTreeMap<String, Arc<dyn Action>> {
    muster_infra::actions().into_iter().map(|action| (action.spec().name, action)).collect()
}

fn catalogue() -> Catalogue {
    let entry = |action: &Arc<dyn Action>| {
        let spec = action.spec();
        let facts = ActionFacts {
            idempotent: spec.idempotent,
            undoable: spec.undoable,
            checkable: spec.checkable,
            concurrent_safe: spec.concurrent_safe,
            read_only: spec.read_only,
            scope: match spec.scope {
                Place::Host => ActionScope::Host,
                Place::Target => ActionScope::Target,
            },
        };
        let (params_schema, output_schema) = (spec.params_schema, spec.output_schema);
        CatalogueEntry { version: spec.version, facts, params_schema, output_schema }
    };
    actions().iter().map(|(name, action)| (name.as_str().into(), entry(action))).collect()
}

fn plan(inputs: Value) -> Plan {
    let document = fs::read(PLAYBOOK).unwrap();
    let reading = read(&document, &catalogue());
    assert_eq!(reading.findings, Vec::new());
    resolve(&reading.playbook.unwrap(), revision(&document), inputs, &catalogue()).unwrap()
}

/// What a run knows.
struct Run {
    plan: Plan,
    outputs: BTreeMap<StepId, Arc<Value>>,
}

impl Run {
    fn scope<'a>(&'a self, output: Option<&'a Value>) -> Scope<'a> {
        Scope { inputs: &self.plan.inputs, steps: &self.outputs, output, run: "trial" }
    }

    fn rendered(&self, with: &Value) -> Value {
        render(with, &self.scope(None)).unwrap().into_owned()
    }

    fn assert_all(&self, conditions: &[String], output: Option<&Value>) {
        for condition in conditions {
            assert!(eval_bool(condition, &self.scope(output)).unwrap(), "{condition}: {output:?} {:?}", self.outputs);
        }
    }
}

/// This machine may be busy with other tests: here, times are measured, but nothing hangs on them.
fn without_times(with: &mut Value) {
    if let Some(expect) = with.get_mut("expect").and_then(Value::as_object_mut) {
        expect.remove("ttfb_ms_below");
        expect.remove("latency_p95_ms_below");
    }
}

/// The playbook's steps, done one after another without a coordinator. The lab is broken as seen from outside, whole after
/// them, and broken in the same way after their undo.
#[tokio::test]
async fn the_rollout_mends_the_lab_and_takes_it_back() {
    let lab = Lab::start(Pooling::OneSession).unwrap();
    let inputs = lab.inputs().unwrap();
    let before = probe(&inputs).unwrap();
    assert!(!before.certificate.ok && !before.redirect.ok && !before.pooling.ok, "{before:?}");
    assert_eq!(before.certificate.verdict, "10 (certificate has expired)");
    assert_eq!((before.redirect.status, before.pooling.served), (200, 1));

    let actions = actions();
    let mut run = Run { plan: plan(serde_json::to_value(&inputs).unwrap()), outputs: BTreeMap::new() };
    let mut done: Vec<(&dyn Action, Value, Value)> = Vec::new();
    for step in run.plan.steps.clone() {
        let (action, mut with) = (&*actions[step.action.name.as_str()], run.rendered(&step.with));
        without_times(&mut with);
        let output = if action.spec().undoable {
            let (prepared, end) = does(action, &with).await;
            done.push((action, with, prepared));
            end.output
        } else {
            action.run(&context(), &with).await.unwrap().output
        };
        if let Some(verify) = &step.verify {
            let with = run.rendered(&verify.with);
            let seen = actions[verify.action.name.as_str()].run(&context(), &with).await.unwrap().output;
            run.assert_all(&verify.expect, Some(&seen));
        }
        run.outputs.insert(step.id.clone(), Arc::new(output));
    }
    assert_eq!(done.len(), 3, "each step that changes something can be undone");
    for phase in &run.plan.phases {
        let conditions = phase.gate.iter().flat_map(|gate| &gate.success_condition);
        let conditions: Vec<_> = conditions.filter(|c| !c.contains("_ms <")).cloned().collect();
        assert!(!conditions.is_empty());
        run.assert_all(&conditions, None);
    }
    let after = probe(&inputs).unwrap();
    assert!(after.certificate.ok && after.redirect.ok, "{after:?}");
    assert_eq!(after.pooling.served, after.pooling.clients, "{after:?}");

    for (action, with, prepared) in done.iter().rev() {
        undoes(*action, with, prepared).await;
    }
    let back = probe(&inputs).unwrap();
    assert_eq!(back.certificate.verdict, before.certificate.verdict);
    assert_eq!((back.redirect.status, back.pooling.served), (before.redirect.status, before.pooling.served));
}
