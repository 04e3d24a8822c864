//! The conditions of a shipped playbook's gates, each judged alone on a run's evidence, by the engine that judges them in a run.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use muster_engine::{
    plan::Catalogue,
    playbook::{Outputs, Scope, expr, read, schema::Step},
};
use serde_json::{Value, json};

/// What a run was given, and what its steps gave.
#[derive(Default)]
pub(crate) struct Evidence {
    inputs: Value,
    outputs: BTreeMap<String, Value>,
}

impl Outputs for Evidence {
    fn output(&self, step: &str) -> Option<&Value> {
        self.outputs.get(step)
    }
}

impl Evidence {
    /// Of a run as it is shown.
    pub(crate) fn of(run: &Value) -> Result<Self> {
        let steps = run["steps"].as_array().context("a run has steps")?;
        let outputs = steps.iter().filter_map(|step| Some((step["id"].as_str()?, step.get("output")?)));
        let outputs = outputs.map(|(id, output)| (id.to_owned(), output.clone())).collect();
        Ok(Self { inputs: run["inputs"].clone(), outputs })
    }

    /// The same with another output of a step.
    pub(crate) fn with(&self, step: &str, output: Value) -> Self {
        let mut outputs = self.outputs.clone();
        outputs.insert(step.to_owned(), output);
        Self { inputs: self.inputs.clone(), outputs }
    }

    /// The same with one value of it changed.
    fn changed(&self, step: &str, place: &str, value: &Value) -> Result<Self> {
        let mut output = self.outputs.get(step).with_context(|| format!("{step} gave nothing"))?.clone();
        let there = output.pointer_mut(place).with_context(|| format!("{step} gives no {place}"))?;
        ensure!(there != value, "{step}{place} is {value} already");
        *there = value.clone();
        Ok(self.with(step, output))
    }

    /// The parts of the conditions that are false.
    pub(crate) fn red(&self, conditions: &[String]) -> Vec<String> {
        self.parts(conditions, |judged| *judged == Ok(false))
    }

    /// The parts that can't be judged: nobody has seen what they want.
    pub(crate) fn unknown(&self, conditions: &[String]) -> Vec<String> {
        self.parts(conditions, Result::is_err)
    }

    fn parts(&self, conditions: &[String], wanted: impl Fn(&Result<bool, expr::ExprError>) -> bool) -> Vec<String> {
        let scope = Scope { inputs: &self.inputs, steps: self, output: None, run: "r" };
        let parts = conditions.iter().flat_map(|condition| halves(condition));
        parts.filter(|part| wanted(&expr::eval_bool(part, &scope))).map(str::to_owned).collect()
    }

    /// Those of the conditions that do not hold: false, or not to be judged.
    pub(crate) fn against<'a>(&self, conditions: &'a [String]) -> Vec<&'a str> {
        let scope = Scope { inputs: &self.inputs, steps: self, output: None, run: "r" };
        let red = conditions.iter().filter(|condition| expr::eval_bool(condition, &scope) != Ok(true));
        red.map(String::as_str).collect()
    }
}

/// The parts of all conditions of a playbook: of gates `A && B` as `A` and `B`, of verifications as `verify STEP: A`, of what
/// a step's parameters insist on as `expect STEP: NAME`.
pub(crate) fn parts(yaml: &str) -> Result<Vec<String>> {
    let playbook = read(yaml.as_bytes(), &Catalogue::default()).playbook.context("it has no errors")?;
    let mut all = Vec::new();
    for phase in playbook.spec.phases {
        if let Some(gate) = phase.gate {
            ensure!(gate.failure_condition.is_empty(), "what a failure condition wants of a fault is not known here");
            all.extend(gate.success_condition.iter().flat_map(|condition| halves(condition)).map(str::to_owned));
        }
        for step in phase.steps {
            let expect = step.verify.map(|verify| verify.expect).unwrap_or_default();
            let parts = expect.iter().flat_map(|condition| halves(condition));
            all.extend(parts.map(|part| format!("verify {}: {part}", step.id)));
            let insists = step.with.as_ref().and_then(|with| with.get("expect")?.as_object());
            all.extend(insists.into_iter().flat_map(|on| on.keys()).map(|on| format!("expect {}: {on}", step.id)));
        }
    }
    Ok(all)
}

/// All steps of a playbook.
pub(crate) fn steps(yaml: &str) -> Result<Vec<Step>> {
    let playbook = read(yaml.as_bytes(), &Catalogue::default()).playbook.context("it has no errors")?;
    Ok(playbook.spec.phases.into_iter().flat_map(|phase| phase.steps).collect())
}

/// The two of `A && B`, which are red apart from each other.
fn halves(condition: &str) -> impl Iterator<Item = &str> {
    assert!(!condition.contains("||"), "{condition}: its parts are not red apart from each other");
    condition.split(" && ")
}

/// All that a playbook's gates want.
pub(crate) fn conditions(yaml: &str) -> Result<Vec<String>> {
    let playbook = read(yaml.as_bytes(), &Catalogue::default()).playbook.context("it has no errors")?;
    let gates = playbook.spec.phases.into_iter().filter_map(|phase| phase.gate);
    Ok(gates.flat_map(|gate| gate.success_condition).collect())
}

/// Each condition with a change of evidence that has to turn it red, and it alone: step, place in its output, value.
fn changes() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    vec![
        ("pool_probe.output.success_percent >= 100.0", "pool_probe", "/success_percent", json!(99.8)),
        ("pool_probe.output.latency_p95_ms <", "pool_probe", "/latency_p95_ms", json!(50.0)),
        ("within_pool", "pool_probe", "/within_pool", json!(false)),
        ("append_only", "redis", "/append_only", json!(false)),
        ("balance.output.success_percent >= 100.0", "balance", "/success_percent", json!(97.5)),
        ("primary_writes", "replication", "/primary_writes", json!(false)),
        ("primary_writes", "replication", "/wrong", json!(["replica reads takes writes: it is no replica"])),
        ("lag_ms_max <", "replication", "/lag_ms_max", json!(1000.0)),
        ("lag_ms_max <", "replication", "/lag_ms_max", Value::Null),
        ("chain_valid", "tls_check", "/chain_valid", json!(false)),
        ("chain_valid", "tls_check", "/name_valid", json!(false)),
        ("protocol", "tls_check", "/protocol", json!("TLSv1.2")),
        ("ttfb_ms <", "site_check", "/ttfb_ms", json!(100.0)),
        ("database_check.output.success_percent >= 100.0", "database_check", "/success_percent", json!(95.0)),
        ("cache_load.output.error_rate_percent < 1.0", "cache_load", "/error_rate_percent", json!(1.0)),
        ("hit_percent > 90.0", "cache_probe", "/server/hit_percent", json!(90.0)),
        ("hit_percent > 90.0", "cache_probe", "/server/hit_percent", Value::Null),
        ("lookups > 0", "cache_probe", "/server/lookups", json!(0)),
        ("missing", "verify_package", "/missing", json!(["sample-service"])),
        ("size_bytes > 0", "backup", "/size_bytes", json!(0)),
        ("pass_rate_percent > 90.0", "smoke", "/pass_rate_percent", json!(90.0)),
        ("load.output.error_rate_percent < 1.0", "load", "/error_rate_percent", json!(1.0)),
    ]
}

/// Each condition of the rollout holds on what a good run gave, and is turned red by what is worse in nothing but that.
pub(crate) fn each_turns_red_alone(yaml: &str, run: &Value) -> Result<()> {
    let (good, conditions) = (Evidence::of(run)?, conditions(yaml)?);
    ensure!(good.against(&conditions).is_empty(), "not good: {:?}", good.against(&conditions));
    let mut never_red = conditions.clone();
    for (part, step, place, value) in changes() {
        let red = good.changed(step, place, &value)?.against(&conditions);
        let alone = red.len() == 1 && red[0].contains(part) && red[0].contains(step);
        ensure!(alone, "{step}{place} is {value}: {red:?} is red, not {part:?} alone");
        never_red.retain(|condition| condition != red[0]);
    }
    ensure!(never_red.is_empty(), "no change of evidence turns these red: {never_red:?}");
    Ok(())
}
