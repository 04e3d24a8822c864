//! What a step's `verify` and `expect` want is red before the work is done, or by a fault: seen by the action that looks.

use std::{fs, process::Command, sync::Arc};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use muster_agent::{Action, noop::Noop, testkit::Trial};
use muster_engine::playbook::{Scope, expr, render, schema::Step};
use muster_integration_tests::lab::{Certificates, Lab, Nginx, Pooling, program};
use serde_json::{Map, Value, json};

use crate::{
    conditions::{Evidence, steps},
    gates::{ROLLOUT, refuse},
    rollout_inputs, shipped,
};

type Bring = fn(&mut Lab, &Looks) -> Result<()>;

/// No fault but those that the lab is found with.
const AS_FOUND: Option<Bring> = None;

/// What is asked: the step's verification, of which this must be red; or the step itself, which insists on this alone and must
/// refuse by these words.
enum Asked {
    Verified(&'static [&'static str]),
    Insists(&'static str, &'static str),
}
use Asked::{Insists, Verified};

/// A fault, the step that looks at it, and what must be red then. Each is brought beside those before it.
const FAULTS: [(Option<Bring>, &str, Asked); 12] = [
    (AS_FOUND, "tls_certificate", Verified(&["output.chain_valid", "output.days_left >= 30"])),
    (AS_FOUND, "redirect", Verified(&["output.status == 301", "output.redirects_to_https"])),
    (AS_FOUND, "pgbouncer", Verified(&["output.success_percent >= 100.0"])),
    (AS_FOUND, "redis", Verified(&["output.server.append_only"])),
    (Some(no_limit_of_memory), "redis", Verified(&["output.server.max_memory_bytes > 0"])),
    (Some(few_clients), "redis", Verified(&["output.success_percent >= 100.0"])),
    (Some(a_certificate_at_last), "site_check", Insists("headers", "no header Strict-Transport-Security")),
    (Some(a_slow_service), "site_check", Insists("ttfb_ms_below", "below 100 ms wanted")),
    (Some(a_service_that_refuses), "balance", Verified(&["output.status == 200"])),
    (AS_FOUND, "site_check", Insists("status", "status 503 instead of 200")),
    (AS_FOUND, "site_check", Insists("body_contains", "the body does not contain")),
    (Some(a_certificate_for_another_name), "tls_certificate", Verified(&["output.name_valid"])),
];

/// As [`crate::conditions::parts`] has them.
pub(crate) fn red_before() -> impl Iterator<Item = String> {
    FAULTS.iter().flat_map(|(_, step, asked)| match asked {
        Verified(red) => red.iter().map(|part| format!("verify {step}: {part}")).collect::<Vec<_>>(),
        Insists(on, _) => vec![format!("expect {step}: {on}")],
    })
}

fn no_limit_of_memory(lab: &mut Lab, _: &Looks) -> Result<()> {
    lab.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]).map(drop)
}

fn few_clients(lab: &mut Lab, _: &Looks) -> Result<()> {
    lab.redis.cli(&["CONFIG", "SET", "maxclients", "3"]).map(drop)
}

/// Without it nobody gets to what the site answers.
fn a_certificate_at_last(_: &mut Lab, looks: &Looks) -> Result<()> {
    looks.does("tls_certificate").map(drop)
}

fn a_slow_service(lab: &mut Lab, _: &Looks) -> Result<()> {
    let slow = format!("http://{}/admin/fault/slow", lab.sides.blue());
    let put = Command::new(program("curl", "curl")?).args(["-sf", "--noproxy", "*", "-X", "PUT", &slow]).output()?;
    ensure!(put.status.success(), "{put:?}");
    Ok(())
}

fn a_service_that_refuses(lab: &mut Lab, _: &Looks) -> Result<()> {
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
        let steps = steps(&shipped(ROLLOUT))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut inputs = rollout_inputs(lab);
        inputs["ttfb_ms"] = 100.into();
        Ok(Self { steps, actions: muster_infra::actions(), inputs, runtime })
    }

    fn step(&self, id: &str) -> Result<&Step> {
        self.steps.iter().find(|step| step.id == id).with_context(|| format!("there is no step {id}"))
    }

    /// The step's own work.
    fn does(&self, id: &str) -> Result<Value> {
        let step = self.step(id)?;
        self.acts(step.action.as_deref(), step.with.as_ref())
    }

    /// The step refuses by these words when it insists on this, and does not when it insists on nothing.
    fn refuses(&self, id: &str, on: &str, says: &str) -> Result<()> {
        let step = self.step(id)?;
        let mut with = step.with.clone().with_context(|| format!("{id} has no parameters"))?;
        let wanted = with.remove("expect").and_then(|all| all.get(on).cloned());
        let wanted = wanted.with_context(|| format!("{id} does not insist on {on}"))?;
        self.acts(step.action.as_deref(), Some(&with))?;
        with.insert("expect".into(), json!({on: wanted}));
        let Err(refused) = self.acts(step.action.as_deref(), Some(&with)) else { bail!("{id} bears it: {on}") };
        ensure!(refused.to_string().contains(says), "{id} refuses, but says {refused}");
        Ok(())
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

/// What is not red, and should be.
fn open() -> Result<Vec<String>> {
    let (mut lab, mut open) = (Lab::start(Pooling::OneSession)?, Vec::new());
    let looks = Looks::at(&lab)?;
    for (bring, step, asked) in &FAULTS {
        if let Some(bring) = bring {
            bring(&mut lab, &looks)?;
        }
        match asked {
            Verified(wanted) => {
                let red = looks.red(step).with_context(|| format!("verification of {step}"))?;
                let green = wanted.iter().filter(|part| !red.iter().any(|r| r == *part));
                open.extend(green.map(|part| format!("verification of {step}: `{part}` is not red, only {red:?}")));
            }
            Insists(on, says) => open.extend(looks.refuses(step, on, says).err().map(|e| format!("{e:#}"))),
        }
    }
    Ok(open)
}

#[test]
fn what_a_step_is_verified_by_or_insists_on_is_red_before_the_work_or_by_a_fault() {
    let open = open().unwrap();
    assert!(open.is_empty(), "{}", open.join("\n"));
}
