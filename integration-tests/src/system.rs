//! A whole system on loopback: nats-server, a coordinator and agents, each a process of its own.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_bus::testkit::NatsServer;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    canary,
    process::{Process, binary, tail, wait_for},
    sweep::{at_the_end, sweep},
};

/// How long something may take that takes a moment.
pub const SOON: Duration = Duration::from_secs(30);

/// See the module. When it ends, all its processes do, and what they have left is searched for secrets.
pub struct System {
    /// Where everything is written.
    pub dir: TempDir,
    /// The broker.
    pub nats: NatsServer,
    /// The coordinator, while it runs.
    pub coordinator: Option<Process>,
    /// Agents by name.
    pub agents: BTreeMap<String, Process>,
    nats_url: String,
    serve: Vec<String>,
    listen: String,
    wrapper: Vec<String>,
}

impl System {
    /// nats-server and a coordinator that answers.
    ///
    /// # Errors
    /// When one of them does not start; the message says what to install.
    pub fn start() -> Result<Self> {
        Self::start_under(&[])
    }

    /// The same, with the coordinator started by another program (`strace …`).
    ///
    /// # Errors
    /// As [`System::start`].
    pub fn start_under(wrapper: &[&str]) -> Result<Self> {
        let nats = NatsServer::start().context("nats-server does not start: apt-get install nats-server")?;
        let mut system = Self::before(tempfile::tempdir()?, nats)?;
        system.wrap(wrapper);
        system.start_coordinator()?;
        Ok(system)
    }

    /// The same on a nats-server of one's own, reached at `nats_url`; `serve` has more options of the coordinator.
    ///
    /// # Errors
    /// As [`System::start`].
    pub fn start_on(dir: TempDir, nats: NatsServer, nats_url: &str, serve: &[&str]) -> Result<Self> {
        let mut system = Self::before(dir, nats)?;
        nats_url.clone_into(&mut system.nats_url);
        system.serve = serve.iter().map(|&s| s.to_owned()).collect();
        system.start_coordinator()?;
        Ok(system)
    }

    fn before(dir: TempDir, nats: NatsServer) -> Result<Self> {
        let (nats_url, listen) = (nats.url(), free_address()?);
        let (agents, serve, wrapper) = (BTreeMap::new(), Vec::new(), Vec::new());
        Ok(Self { dir, nats, coordinator: None, agents, nats_url, serve, listen, wrapper })
    }

    /// The coordinator's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where the API answers: `host:port`.
    pub fn address(&self) -> &str {
        &self.listen
    }

    /// The first admin token.
    ///
    /// # Errors
    /// When the coordinator has not written it.
    pub fn token(&self) -> Result<String> {
        let file = self.data_dir().join("admin.token");
        Ok(fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?.trim().to_owned())
    }

    /// Start the coordinator (again) and wait until it answers.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn start_coordinator(&mut self) -> Result<()> {
        self.launch_coordinator()?;
        self.wait_coordinator()
    }

    /// From its next start on the coordinator is started by another program, whose first words these are.
    pub fn wrap(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(|&w| w.to_owned()).collect();
    }

    /// Start the coordinator (again) without waiting for an answer.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn launch_coordinator(&mut self) -> Result<()> {
        let muster = binary("muster", "muster");
        let mut words = self.wrapper.clone();
        words.push(muster.display().to_string());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["serve", "--nats", &self.nats_url, "--listen", &self.listen, "--data-dir"])
            .arg(self.data_dir())
            .args(&self.serve);
        self.coordinator = Some(Process::start("coordinator", self.dir.path(), &mut command)?);
        Ok(())
    }

    /// Wait until a coordinator that was launched answers.
    ///
    /// # Errors
    /// When it does not in time, or has ended.
    pub fn wait_coordinator(&mut self) -> Result<()> {
        let mut process = self.coordinator.take().context("no coordinator was launched")?;
        wait_for("the coordinator answers", SOON, || {
            ensure!(process.is_running(), "it has ended:\n{}", tail(&process.output()));
            Ok(self.cli(&["agent", "list"]).is_ok_and(|o| o.status.success()).then_some(()))
        })
        .with_context(|| tail(&process.output()))?;
        self.coordinator = Some(process);
        Ok(())
    }

    /// `kill -9` of the coordinator.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.coordinator.take().context("no coordinator runs")?.kill()
    }

    /// Start an agent and wait until the coordinator calls it ready.
    ///
    /// # Errors
    /// When it does not register in time.
    pub fn start_agent(&mut self, name: &str, role: &str, more: &[&str]) -> Result<()> {
        let mut command = Command::new(binary("muster", "muster"));
        command
            .args(["agent", "run", "--role", role, "--name", name, "--nats", &self.nats_url, "--data-dir"])
            .arg(self.dir.path().join(name))
            .args(more);
        let process = Process::start(name, self.dir.path(), &mut command)?;
        self.agents.insert(name.to_owned(), process);
        self.wait_agent(name, "READY")
    }

    /// Wait until the coordinator says this of an agent.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_agent(&self, name: &str, state: &str) -> Result<()> {
        wait_for(&format!("agent {name} is {state}"), Duration::from_secs(60), || {
            let agent = self.json(&["agent", "get", name])?;
            Ok(agent["state"].as_str().is_some_and(|s| s.ends_with(state)).then_some(()))
        })
        .with_context(|| self.agents.get(name).map(|a| tail(&a.output())).unwrap_or_default())
    }

    /// Run the CLI against this system.
    ///
    /// # Errors
    /// When it does not start, or says a password of the lab.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary("muster", "muster"));
        self.environment(&mut command);
        let output = command.args(args).output()?;
        for said in [&output.stdout, &output.stderr] {
            canary::nothing_of_the_lab(&format!("what `muster {}` says", args.join(" ")), said)?;
        }
        Ok(output)
    }

    /// Run the CLI with `-o json` and read what it prints; it must not fail.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.cli(&[args, &["-o", "json"]].concat())?;
        ensure!(output.status.success(), "muster {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("muster {args:?}: {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// Submit a playbook from text; its name.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, yaml: &str) -> Result<String> {
        let file = self.dir.path().join("playbook.yaml");
        fs::write(&file, yaml)?;
        let playbook = self.json(&["playbook", "submit", path(&file)?])?;
        Ok(playbook["playbookId"].as_str().context("a playbook has an id")?.to_owned())
    }

    /// Start a run; its id.
    ///
    /// # Errors
    /// When it is refused.
    pub fn start_run(&self, playbook: &str) -> Result<String> {
        let run = self.json(&["run", "start", playbook])?;
        Ok(run["runId"].as_str().context("a run has an id")?.to_owned())
    }

    /// Wait until a run is in one of these states; the run.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_run(&self, run: &str, states: &[&str], within: Duration) -> Result<Value> {
        wait_for(&format!("run {run} is one of {states:?}"), within, || {
            let seen = self.json(&["run", "get", run])?;
            let state = seen["state"].as_str().unwrap_or_default().trim_start_matches("STATE_").to_owned();
            Ok(states.contains(&state.as_str()).then_some(seen))
        })
        .with_context(|| self.json(&["run", "get", run]).map(|r| r.to_string()).unwrap_or_default())
    }

    /// All events of a run, as journalled.
    ///
    /// # Errors
    /// When they can't be had.
    pub fn events(&self, run: &str) -> Result<Vec<Value>> {
        let output = self.cli(&["run", "events", run, "--limit", "0", "-o", "json"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
    }

    /// Give a command the addresses and the token of this system.
    pub fn environment(&self, command: &mut Command) {
        command
            .env("MUSTER_SERVER", format!("http://{}", self.listen))
            .env("MUSTER_TOKEN_FILE", self.data_dir().join("admin.token"))
            .env("NO_COLOR", "1");
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.agents.clear();
        self.coordinator = None;
        // Gone already is as good as ended.
        let _ = self.nats.kill();
        at_the_end(sweep(&[self.dir.path(), self.nats.folder()]).and_then(|swept| {
            ensure!(swept.files > 0, "a system that has left no file was none");
            Ok(swept)
        }));
    }
}

/// A loopback address that was free a moment ago.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A path as text.
///
/// # Errors
/// When it is not UTF-8.
pub fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
