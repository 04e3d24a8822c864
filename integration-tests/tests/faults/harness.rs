//! A system with agents that stop where a test tells them to.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    process::{Process, wait_for},
    system::{SOON, System, path},
};
use serde_json::Value;

pub(crate) const LONG: Duration = Duration::from_secs(150);

/// See the module.
pub(crate) struct House {
    pub(crate) system: System,
    shared: PathBuf,
}

impl House {
    pub(crate) fn start() -> Result<Self> {
        Self::start_under(&[])
    }

    /// The same, with the coordinator started by another program.
    pub(crate) fn start_under(wrapper: &[&str]) -> Result<Self> {
        let system = System::start_under(wrapper)?;
        let shared = system.dir.path().join("shared");
        fs::create_dir(&shared)?;
        Ok(Self { system, shared })
    }

    /// Start an agent process and wait until it is taken.
    pub(crate) fn agent(&mut self, name: &str) -> Result<()> {
        let url = self.system.nats.url();
        self.agent_through(name, &url)?;
        self.system.wait_agent(name, "READY")
    }

    /// The same by another way to NATS, and without waiting.
    pub(crate) fn agent_through(&mut self, name: &str, url: &str) -> Result<()> {
        let process = self.process(name, name, url)?;
        self.system.agents.insert(name.to_owned(), process);
        Ok(())
    }

    /// A process of an agent with a data folder of its own.
    pub(crate) fn process(&self, name: &str, data: &str, url: &str) -> Result<Process> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fault-agent"));
        command.args([url, name, &format!("{data}-host"), path(&self.shared)?]).arg(self.system.dir.path().join(data));
        Process::start(data, self.system.dir.path(), &mut command)
    }

    /// Whoever comes to this phase stays there.
    pub(crate) fn hold(&self, phase: &str) -> Result<()> {
        Ok(fs::write(self.shared.join(format!("hold-{phase}")), "")?)
    }

    pub(crate) fn release(&self, phase: &str) -> Result<()> {
        Ok(fs::remove_file(self.shared.join(format!("hold-{phase}")))?)
    }

    /// Somebody is held there.
    pub(crate) fn wait_at(&self, phase: &str) -> Result<()> {
        let at = self.shared.join(format!("at-{phase}"));
        wait_for(&format!("an attempt comes to {phase}"), SOON, || Ok(at.exists().then_some(())))
    }

    /// The ledger has this word of the step.
    pub(crate) fn wait_word(&self, what: &str, run: &str, step: &str, count: usize) -> Result<()> {
        wait_for(&format!("the ledger says {count} times {what} of {step}"), SOON, || {
            Ok((self.count(what, run, step) >= count).then_some(()))
        })
    }

    /// How often the ledger has a word of a step.
    pub(crate) fn count(&self, what: &str, run: &str, step: &str) -> usize {
        let ledger = fs::read_to_string(self.shared.join("ledger")).unwrap_or_default();
        let line = format!("{what} {run} {step}");
        ledger.lines().filter(|l| **l == *line).count()
    }

    /// Whether the work of a `ledger.put` is there.
    pub(crate) fn is_put(&self, run: &str, step: &str) -> bool {
        self.shared.join(format!("state-{run}-{step}")).exists()
    }

    /// Steps one after another; each is `(id, action, more of its keys, more of its parameters)`. 5 s each where `timeout` is no key.
    pub(crate) fn run_of(&self, steps: &[(&str, &str, &str, &str)]) -> Result<String> {
        let mut yaml = String::from(
            "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: faults, owner: ops}\nspec:\n  phases:\n    - id: all\n      milestone: Done\n      steps:\n",
        );
        let mut before = None;
        for (id, action, keys, params) in steps {
            let needs = before.map(|b| format!(", needs: [{b}]")).unwrap_or_default();
            let timeout = if keys.contains("timeout:") { "" } else { ", timeout: 5s" };
            writeln!(
                yaml,
                "        - {{id: {id}{needs}, agent: {{role: fault}}, action: {action}{timeout}{keys}, with: {{run: \"{{{{ run.id }}}}\", step: {id}{params}}}}}"
            )?;
            before = Some(id);
        }
        let playbook = self.system.submit(&yaml)?;
        self.system.start_run(&playbook)
    }

    pub(crate) fn ends(&self, run: &str, state: &str) -> Result<Value> {
        let seen = self.system.wait_run(run, &[state, "WAITING", "FAILED", "SUCCEEDED", "QUARANTINED"], LONG)?;
        let is = seen["state"].as_str().unwrap_or_default();
        ensure!(is == format!("STATE_{state}"), "the run is {is}, not {state}: {seen}\n{:?}", self.story(run)?);
        Ok(seen)
    }

    fn story(&self, run: &str) -> Result<Vec<String>> {
        Ok(self.system.events(run)?.iter().map(Value::to_string).collect())
    }

    /// No attempt was begun that the journal does not know, what it calls done was done, and what it calls undone was undone.
    pub(crate) fn agrees(&self, run: &str) -> Result<()> {
        let mut steps: BTreeMap<String, Told> = BTreeMap::new();
        let mut purposes = BTreeMap::new();
        for event in self.system.events(run)? {
            let Some(step) = event["step"].as_str() else { continue };
            let told = steps.entry(step.to_owned()).or_default();
            let attempt = (step.to_owned(), event["detail"]["attempt"].to_string());
            match event["type"].as_str() {
                Some("attempt_assigned") => {
                    told.assigned += 1;
                    purposes.insert(attempt, event["detail"]["purpose"].as_str().unwrap_or_default().to_owned());
                }
                Some("attempt_ended") => {
                    let purpose = purposes.get(&attempt).context("an attempt ends that was never assigned")?;
                    told.ended(purpose, &event["detail"]["end"]["outcome"]);
                }
                _ => {}
            }
        }
        ensure!(steps.values().any(|told| told.assigned > 0), "the journal knows of no attempt of {run}");
        for (step, told) in steps {
            self.agrees_with(run, &step, &told).with_context(|| format!("{step}: {told:?}"))?;
        }
        Ok(())
    }

    fn agrees_with(&self, run: &str, step: &str, told: &Told) -> Result<()> {
        let seen = |what: &str| self.count(what, run, step);
        ensure!(seen("begin") <= told.assigned, "it was begun {} times", seen("begin"));
        ensure!(seen("end") >= told.done, "it was done {} times", seen("end"));
        ensure!(told.found == 0 || seen("begin") > 0, "it was found done, and nobody has begun it");
        ensure!(seen("undo") >= told.undone, "it was undone {} times", seen("undo"));
        // Only what checks leaves something behind.
        if seen("check") > 0
            && let Some(there) = told.there
        {
            ensure!(self.is_put(run, step) == there, "its work is {}", if there { "not there" } else { "still there" });
        }
        Ok(())
    }

    /// Stop the coordinator; its journal is whole.
    pub(crate) fn verify(&mut self) -> Result<()> {
        self.system.coordinator.take().context("a coordinator runs")?.terminate(LONG)?;
        let data = self.system.data_dir();
        let output = self.system.cli(&["journal", "verify", "--data-dir", path(&data)?])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// What the coordinator has logged.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(self.system.coordinator.as_ref().context("a coordinator runs")?.output())
    }

    /// An ERROR is for waking someone: no fault of agents or of NATS is worth that.
    pub(crate) fn nobody_is_woken(&self) -> Result<()> {
        let log = self.system.coordinator.as_ref().context("a coordinator runs")?.output();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
        ensure!(errors.is_empty(), "{errors:#?}");
        Ok(())
    }
}

/// Talk to the bus from a test.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(work)
}

/// What the journal says of a step.
#[derive(Debug, Default)]
struct Told {
    assigned: usize,
    /// So many attempts did it,
    done: usize,
    /// so many found it done,
    found: usize,
    /// and so many took it back.
    undone: usize,
    /// Whether the last of these left it done.
    there: Option<bool>,
}

impl Told {
    fn ended(&mut self, purpose: &str, outcome: &Value) {
        let unchanged = outcome["unchanged"] == true;
        let count = match (outcome["result"].as_str(), purpose) {
            (Some("succeeded"), "run") if !unchanged => &mut self.done,
            (Some("succeeded"), "run" | "probe") => &mut self.found,
            (Some("succeeded"), "undo") => &mut self.undone,
            _ => return,
        };
        *count += 1;
        self.there = Some(purpose != "undo");
    }
}
