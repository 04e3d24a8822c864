//! What a shipped step's `verify` expects is red before the step has done its work, or by a fault: seen by the action that looks.

use std::{fs, sync::Arc};

use anyhow::{Context as _, Result, anyhow, ensure};
use muster_agent::{Action, noop::Noop, testkit::Trial};
use muster_engine::{
    plan::Catalogue,
    playbook::{Scope, expr, read, render, schema::Step},
};
use muster_integration_tests::lab::{Certificates, Lab, Nginx, Pooling};
use serde_json::{Map, Value};

use crate::{
    conditions::Evidence,
    gates::{ROLLOUT, refuse},
    rollout_inputs, shipped,
};

type Bring = fn(&mut Lab, &Looks) -> Result<()>;

/// No fault but those that the lab is found with.
const AS_FOUND: Option<Bring> = None;

/// A fault, the step whose verification looks at it, and what must be red then. Each is brought beside those before it.
const FAULTS: [(Option<Bring>, &str, &[&str]); 8] = [
    (AS_FOUND, "tls_certificate", &["output.chain_valid", "output.days_left >= 30"]),
    (AS_FOUND, "redirect", &["output.status == 301", "output.redirects_to_https"]),
    (AS_FOUND, "pgbouncer", &["output.success_percent >= 100.0"]),
    (AS_FOUND, "redis", &["output.server.append_only"]),
    (Some(no_limit_of_memory), "redis", &["output.server.max_memory_bytes > 0"]),
    (Some(few_clients), "redis", &["output.success_percent >= 100.0"]),
    (Some(a_service_that_refuses), "balance", &["output.status == 200"]),
    (Some(a_certificate_for_another_name), "tls_certificate", &["output.name_valid"]),
];

/// As [`crate::conditions::parts`] has them.
pub(crate) fn red_before() -> impl Iterator<Item = String> {
    FAULTS.into_iter().flat_map(|(_, step, red)| red.iter().map(move |part| format!("verify {step}: {part}")))
}

fn no_limit_of_memory(lab: &mut Lab, _: &Looks) -> Result<()> {
    lab.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]).map(drop)
}

fn few_clients(lab: &mut Lab, _: &Looks) -> Result<()> {
    lab.redis.cli(&["CONFIG", "SET", "maxclients", "3"]).map(drop)
}

/// Behind a site that is as it should be.
fn a_service_that_refuses(lab: &mut Lab, looks: &Looks) -> Result<()> {
    looks.does("tls_certificate")?;
    refuse(&lab.sides.nginx.site(), "/health")?;
    lab.sides.nginx.restart()
}

fn a_certificate_for_another_name(lab: &mut Lab, _: &Looks) -> Result<()> {
    let site = lab.nginx.site();
    let theirs = Certificates::make(&lab.dir().join("theirs"), &Nginx::user()?, "other.test", 60)?;
    let (cert, key) = (lab.certificates.cert().display().to_string(), lab.certificates.key().display().to_string());
    let (their_cert, their_key) = (theirs.cert().display().to_string(), theirs.key().display().to_string());
    fs::write(&site, fs::read_to_string(&site)?.replace(&cert, &their_cert).replace(&key, &their_key))?;
    lab.nginx.restart()
}

/// The steps of the rollout, and who looks.
struct Looks {
    steps: Vec<Step>,
    actions: Vec<Arc<dyn Action>>,
    inputs: Value,
    runtime: tokio::runtime::Runtime,
}

impl Looks {
    fn at(lab: &Lab) -> Result<Self> {
        let playbook = read(shipped(ROLLOUT).as_bytes(), &Catalogue::default()).playbook.context("it has no errors")?;
        let steps = playbook.spec.phases.into_iter().flat_map(|phase| phase.steps).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self { steps, actions: muster_infra::actions(), inputs: rollout_inputs(lab), runtime })
    }

    fn step(&self, id: &str) -> Result<&Step> {
        self.steps.iter().find(|step| step.id == id).with_context(|| format!("there is no step {id}"))
    }

    /// The step's own work.
    fn does(&self, id: &str) -> Result<Value> {
        let step = self.step(id)?;
        self.acts(step.action.as_deref(), step.with.as_ref())
    }

    /// What of the step's verification is false.
    fn red(&self, id: &str) -> Result<Vec<String>> {
        let verify = self.step(id)?.verify.as_ref().with_context(|| format!("{id} is not verified"))?;
        let output = self.acts(Some(&verify.action), verify.with.as_ref())?;
        let nobody = Evidence::default();
        let scope = Scope { inputs: &self.inputs, steps: &nobody, output: Some(&output), run: "r" };
        let red = verify.expect.iter().filter(|part| expr::eval_bool(part, &scope) == Ok(false));
        Ok(red.cloned().collect())
    }

    fn acts(&self, action: Option<&str>, with: Option<&Map<String, Value>>) -> Result<Value> {
        let action = self.actions.iter().find(|known| Some(known.spec().name.as_str()) == action);
        let action = action.context("it is not an action of infra")?;
        let (nobody, with) = (Evidence::default(), Value::Object(with.cloned().unwrap_or_default()));
        let scope = Scope { inputs: &self.inputs, steps: &nobody, output: None, run: "r" };
        let with = render::render(&with, &scope)?;
        let trial = Trial::new(Noop);
        let done = self.runtime.block_on(action.run(&trial.context(), &with));
        done.map(|done| done.output).map_err(|e| anyhow!("{}: {e}", action.spec().name))
    }
}

fn each_is_red() -> Result<()> {
    let mut lab = Lab::start(Pooling::OneSession)?;
    let looks = Looks::at(&lab)?;
    for (bring, step, wanted) in FAULTS {
        if let Some(bring) = bring {
            bring(&mut lab, &looks)?;
        }
        let red = looks.red(step).with_context(|| format!("verification of {step}"))?;
        for part in wanted {
            ensure!(red.iter().any(|r| r == part), "verification of {step}: `{part}` is not red, only {red:?}");
        }
    }
    Ok(())
}

#[test]
fn what_a_verification_expects_is_red_before_the_work_or_by_a_fault() {
    each_is_red().unwrap();
}
