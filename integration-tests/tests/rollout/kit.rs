//! Takes a shipped playbook, lets it fail for good at each of its steps once the step has done its work, and compares the
//! servers before the run with the servers after the walk back.
//!
//! The coordinator is a process of its own; the agents are workers of this process, whose actions are wrapped: each undo is
//! done twice, and each action is there once more, under a name that fails after its work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use muster_agent::{
    Action, ActionError, ActionSpec, Catalogue, Checked, Context, Done, Worker, WorkerConfig, allow::Allow,
    guard::Guard,
};
use muster_bus::{NatsBus, NatsOptions};
use muster_integration_tests::{lab::Lab, process::binary, system::System};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{fingerprint::Fingerprint, run};

/// The end of the name of an action that fails after its work.
const FAILS: &str = "_then_fails";

/// An action of an agent, as the kit hands it out.
struct Wrapped {
    inner: Arc<dyn Action>,
    fails: bool,
    /// It says that it was undone and was not: what the kit has to see.
    forgets: bool,
    ledger: Ledger,
}

/// What was done, in its order: `did`, `failed` or `undid`, and the action.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<(&'static str, String)>>>);

impl Ledger {
    fn note(&self, what: &'static str, action: &str) {
        self.0.lock().unwrap().push((what, action.to_owned()));
    }

    fn take(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[async_trait]
impl Action for Wrapped {
    fn spec(&self) -> ActionSpec {
        let mut spec = self.inner.spec();
        if self.fails {
            spec.name += FAILS;
        }
        spec
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        self.inner.check(ctx, with).await
    }

    async fn prepare(&self, ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        self.inner.prepare(ctx, with).await
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let done = self.inner.run(ctx, with).await?;
        self.ledger.note(if self.fails { "failed" } else { "did" }, &self.inner.spec().name);
        if self.fails {
            return Err(ActionError::Permanent {
                message: "the work is done, and fails".into(),
                output: Some(done.output),
            });
        }
        Ok(done)
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        if !self.forgets {
            self.inner.undo(ctx, with, prepared).await?;
            self.inner.undo(ctx, with, prepared).await?;
        }
        self.ledger.note("undid", &self.inner.spec().name);
        Ok(Done::default())
    }
}

/// A coordinator, and wrapped agents on it.
pub(crate) struct Kit<'a> {
    system: System,
    lab: &'a Lab,
    ledger: Ledger,
    undoable: BTreeMap<String, bool>,
    shutdown: CancellationToken,
    // Held for its end.
    _runtime: tokio::runtime::Runtime,
}

impl Drop for Kit<'_> {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl<'a> Kit<'a> {
    /// Starts them for this lab. The undo of the action `forgets` is left out.
    pub(crate) fn start(lab: &'a Lab, forgets: Option<&str>) -> Result<Self> {
        let system = System::start()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (ledger, shutdown) = (Ledger::default(), CancellationToken::new());
        let allow = |role| Ok::<_, anyhow::Error>(Allow::load(&lab.allow_file(role)?)?);
        let roles = [
            ("infra", muster_infra::actions()),
            ("integration", muster_integration::actions(&allow("integration")?)),
            ("deployment", muster_deployment::actions(&allow("deployment")?)),
        ];
        let mut undoable = BTreeMap::new();
        for (role, actions) in roles {
            undoable.extend(actions.iter().map(|action| (action.spec().name, action.spec().undoable)));
            let wrapped = actions.into_iter().flat_map(|inner| {
                let forgets = forgets.is_some_and(|name| name == inner.spec().name);
                [false, true].map(|fails| -> Arc<dyn Action> {
                    Arc::new(Wrapped { inner: Arc::clone(&inner), fails, forgets, ledger: ledger.clone() })
                })
            });
            let (catalogue, name) = (Catalogue::new(wrapped)?, format!("{role}-1"));
            let config = WorkerConfig {
                namespace: "default".into(),
                agent: name.clone(),
                role: role.into(),
                labels: [].into(),
                host: None,
                slots: 4,
                data_dir: Some(system.dir.path().join(&name)),
                software: "undo-kit".into(),
            };
            let bus =
                runtime.block_on(NatsBus::connect(NatsOptions::for_agent([system.nats.url().as_str()], &name)))?;
            let worker = Worker::new(config, catalogue, Arc::new(bus));
            runtime.spawn(worker.with_guard(Guard::program(binary("muster", "muster"))).run(shutdown.clone()));
            system.wait_agent(&name, "READY")?;
        }
        Ok(Self { system, lab, ledger, undoable, shutdown, _runtime: runtime })
    }

    /// Fails at each of these steps of the playbook, one after the other; what is not as it was before is the error.
    pub(crate) fn undoes_after_failure_at(
        &self,
        name: &str,
        yaml: &str,
        inputs: &Value,
        steps: &[(String, String)],
    ) -> Result<()> {
        let before = Fingerprint::take(self.lab)?;
        ensure!(!steps.is_empty(), "{name} has no steps");
        for (step, action) in steps {
            self.fails_at(name, &broken(yaml, step)?, inputs, action).with_context(|| format!("{name} at {step}"))?;
            before.same_as_now(self.lab).with_context(|| format!("{name}, failed at {step} and walked back"))?;
        }
        Ok(())
    }

    fn fails_at(&self, name: &str, yaml: &str, inputs: &Value, action: &str) -> Result<()> {
        let before = self.ledger.take();
        ensure!(before.is_empty(), "something is still at work: {before:?}");
        self.system.submit(yaml)?;
        let ended = run(&self.system, name, inputs)?;
        ensure!(ended["state"] == "STATE_FAILED", "the run is {}: {}", ended["state"], ended["stateReason"]);
        let done = self.ledger.take();
        ensure!(
            done.iter().any(|(what, by)| *what == "failed" && by == action),
            "{action} never did its work: {done:?}"
        );
        let count = |of: &[&str]| {
            let counted = done.iter().filter(|(what, by)| of.contains(what) && self.undoable[by]);
            counted.fold(BTreeMap::<&str, u32>::new(), |mut all, (_, by)| {
                *all.entry(by).or_default() += 1;
                all
            })
        };
        let (changed, undone) = (count(&["did", "failed"]), count(&["undid"]));
        ensure!(changed == undone, "not all was taken back: {changed:?} was done, {undone:?} undone");
        Ok(())
    }

    /// Does the whole playbook; the servers must then be others than before.
    pub(crate) fn changes_something(&self, name: &str, yaml: &str, inputs: &Value) -> Result<()> {
        let before = Fingerprint::take(self.lab)?;
        self.system.submit(yaml)?;
        let ended = run(&self.system, name, inputs)?;
        ensure!(ended["state"] == "STATE_SUCCEEDED", "the run is {}: {}", ended["state"], ended["stateReason"]);
        ensure!(
            !before.differences(&Fingerprint::take(self.lab)?).is_empty(),
            "{name} changes nothing that is looked at"
        );
        Ok(())
    }
}

/// The steps of a playbook with their actions, in the order of the document.
pub(crate) fn steps(yaml: &str) -> Vec<(String, String)> {
    let (mut steps, mut id) = (Vec::new(), None);
    for line in yaml.lines().map(str::trim_start) {
        if let Some(rest) = line.strip_prefix("- id: ") {
            id = rest.split_whitespace().next().map(str::to_owned);
        } else if let Some(action) = line.strip_prefix("action: ") {
            // A second one is that of `verify`.
            steps.extend(id.take().map(|step| (step, action.trim().to_owned())));
        }
    }
    steps
}

/// The playbook with a step's action replaced by the one that fails after its work.
fn broken(yaml: &str, step: &str) -> Result<String> {
    let (mut here, mut replaced, mut lines) = (false, false, Vec::new());
    for line in yaml.lines() {
        if let Some(id) = line.trim_start().strip_prefix("- id: ") {
            here = id.split_whitespace().next() == Some(step);
        }
        if here && !replaced && line.trim_start().starts_with("action: ") {
            lines.push(format!("{line}{FAILS}"));
            replaced = true;
        } else {
            lines.push(line.to_owned());
        }
    }
    if !replaced {
        bail!("no step {step} with an action");
    }
    Ok(lines.join("\n"))
}
