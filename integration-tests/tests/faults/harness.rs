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

    /// Steps one after another; each is `(id, action, more of its keys, more of its parameters)`.
    pub(crate) fn run_of(&self, steps: &[(&str, &str, &str, &str)]) -> Result<String> {
        let mut yaml = String::from(
            "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: faults, owner: ops}\nspec:\n  phases:\n    - id: all\n      milestone: Done\n      steps:\n",
        );
        let mut before = None;
        for (id, action, keys, params) in steps {
            let needs = before.map(|b| format!(", needs: [{b}]")).unwrap_or_default();
            writeln!(
                yaml,
                "        - {{id: {id}{needs}, agent: {{role: fault}}, action: {action}, timeout: 5s{keys}, with: {{run: \"{{{{ run.id }}}}\", step: {id}{params}}}}}"
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

    /// No attempt was begun that the journal does not know, and what it calls done was done.
    pub(crate) fn agrees(&self, run: &str) -> Result<()> {
        let (mut assigned, mut done) = (BTreeMap::new(), BTreeMap::new());
        for event in self.system.events(run)? {
            let step = event["step"].as_str().unwrap_or_default().to_owned();
            match event["type"].as_str() {
                Some("attempt_assigned") => *assigned.entry(step).or_insert(0) += 1,
                Some("attempt_ended")
                    if event["detail"]["end"]["outcome"]["result"] == "succeeded"
                        && event["detail"]["next"]["to"] != "undone" =>
                {
                    *done.entry(step).or_insert(0) += 1;
                }
                _ => {}
            }
        }
        for (step, attempts) in assigned {
            let begun = self.count("begin", run, &step);
            ensure!(begun <= attempts, "{step} was begun {begun} times, assigned {attempts} times");
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
