//! A system that is brought into a state of `docs/operations.md`, and the commands of the page that are run against it.
//!
//! A block that begins with ```` ```sh scene=NAME ```` is run in the scene of that name, as it stands there; the block
//! ```` ```text ```` behind it is what it has to print: its lines in this order, others between them, `…` for anything. A scene
//! that leaves a block of its own over fails.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    process::{Process, binary, checkout, tail, wait_for},
    system::{SOON, System, free_address, path},
};
use sha2::{Digest as _, Sha256};

/// Commands, and what they print.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) scene: String,
    script: String,
    expected: Vec<String>,
}

/// The blocks of the page, in its order.
pub(crate) fn blocks() -> Result<Vec<Block>> {
    let page = fs::read_to_string(checkout().join("docs/operations.md"))?;
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<String> = lines.by_ref().take_while(|l| *l != "```").map(str::to_owned).collect();
        let after = std::iter::from_fn(|| lines.next_if(|l| l.is_empty())).count();
        let shows = after <= 1 && lines.peek() == Some(&"```text");
        let scene = info.strip_prefix("sh scene=");
        ensure!(scene.is_some() || info == "text", "nobody runs this block: {info} {body:?}");
        if let Some(scene) = scene {
            let expected = if shows {
                lines.next();
                lines.by_ref().take_while(|l| *l != "```").map(str::to_owned).collect()
            } else {
                Vec::new()
            };
            blocks.push(Block { scene: scene.to_owned(), script: body.join("\n"), expected });
        }
    }
    Ok(blocks)
}

/// See the module.
pub(crate) struct Stage {
    pub(crate) system: System,
    blocks: VecDeque<Block>,
    env: BTreeMap<&'static str, String>,
    /// Words before each command: to run it where the coordinator's disk can be seen.
    pub(crate) inside: Vec<String>,
    serves: u32,
}

impl Stage {
    /// A nats-server, a coordinator, and the blocks of this scene.
    pub(crate) fn open(scene: &str) -> Result<Self> {
        let nats = NatsServer::start().context("nats-server does not start: apt-get install nats-server")?;
        Self::open_on(scene, tempfile::tempdir()?, nats, &[])
    }

    /// The same on a nats-server of one's own.
    pub(crate) fn open_on(scene: &str, dir: tempfile::TempDir, nats: NatsServer, serve: &[&str]) -> Result<Self> {
        let (url, metrics) = (nats.url(), free_address()?);
        let system = System::start_on(dir, nats, &url, &[&["--metrics-listen", &metrics], serve].concat())?;
        let blocks: VecDeque<_> = blocks()?.into_iter().filter(|block| block.scene == scene).collect();
        ensure!(!blocks.is_empty(), "the page has no commands for {scene}");
        let mut stage = Self { system, blocks, env: BTreeMap::new(), inside: Vec::new(), serves: 0 };
        stage.set("MUSTER_NATS", &url);
        stage.set("MUSTER_METRICS_LISTEN", &metrics);
        let address = stage.system.address().to_owned();
        stage.set("MUSTER_LISTEN", &address);
        stage.set("MUSTER_DATA_DIR", path(&stage.system.data_dir())?.to_owned().as_str());
        stage.set("BACKUP", path(&stage.file("backup"))?.to_owned().as_str());
        stage.set("STEP", "apply");
        let script =
            "#!/bin/sh\n[ -e \"${0%/*}/fail\" ] && exit 3\nuntil [ -e \"${0%/*}/gate\" ]; do sleep 0.05; done\n";
        fs::write(stage.file("work.sh"), script)?;
        fs::set_permissions(stage.file("work.sh"), Permissions::from_mode(0o755))?;
        let digest = Sha256::digest(script).iter().fold(String::new(), |mut digest, byte| {
            // Writing to a string can't fail.
            let _ = write!(digest, "{byte:02x}");
            digest
        });
        let work = stage.file("work.sh").display().to_string();
        fs::write(stage.file("allow.toml"), format!("[commands.work]\npath = \"{work}\"\nsha256 = \"{digest}\"\n"))?;
        Ok(stage)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.system.dir.path().join(name)
    }

    /// What the page calls `$name`.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        self.env.insert(name, value.to_owned());
    }

    /// What Prometheus would read.
    pub(crate) fn metrics(&self) -> Result<String> {
        let output =
            Command::new("curl").arg("-s").arg(format!("{}/metrics", self.env["MUSTER_METRICS_LISTEN"])).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An agent that may do the work of [`Self::run`].
    pub(crate) fn agent(&mut self, name: &str) -> Result<()> {
        let allow = self.file("allow.toml");
        self.system.start_agent(name, "infra", &["--allow", path(&allow)?])
    }

    /// A run of one step, whose work goes on until [`Self::finish_work`]; it is `$RUN`.
    pub(crate) fn run(&mut self, on_failure: &str) -> Result<String> {
        let playbook = self.system.submit(&format!(
            "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: rollout, owner: ops}}\nspec:\n  phases:\n    - id: all\n      steps:\n        - id: apply\n          agent: {{role: infra}}\n          action: command.run\n          with: {{command: work}}\n          timeout: 10m\n          undo: irreversible\n          onFailure: {on_failure}\n"
        ))?;
        let run = self.system.start_run(&playbook)?;
        self.set("RUN", &run);
        Ok(run)
    }

    /// The same, and wait until its step is at work.
    pub(crate) fn run_at_work(&mut self) -> Result<String> {
        let run = self.run("undo")?;
        wait_for("the step is at work", SOON, || {
            let seen = self.system.json(&["run", "get", &run])?;
            Ok((seen["steps"][0]["state"] == "STATE_ACTIVE").then_some(()))
        })?;
        Ok(run)
    }

    /// Let the work end, now and later.
    pub(crate) fn finish_work(&self) -> Result<()> {
        Ok(fs::write(self.file("gate"), "open")?)
    }

    /// SIGTERM, and wait for the end; it has to be a good one.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut coordinator = self.system.coordinator.take().context("a coordinator runs")?;
        let status = coordinator.terminate(SOON)?;
        ensure!(status.success(), "{status}: {}", tail(&coordinator.output()));
        Ok(())
    }

    /// Wait for the end of a coordinator that a command of the page has asked to end.
    pub(crate) fn ended(&mut self) -> Result<()> {
        let mut coordinator = self.system.coordinator.take().context("a coordinator runs")?;
        wait_for("the coordinator ends", SOON, || Ok((!coordinator.is_running()).then_some(())))?;
        let status = coordinator.terminate(SOON)?;
        ensure!(status.success(), "{status}: {}", tail(&coordinator.output()));
        Ok(())
    }

    /// Run the next block; it succeeds, and prints what the page shows.
    pub(crate) fn next(&mut self) -> Result<String> {
        self.ends_with(0)
    }

    /// Run the next block; it ends with this code, and prints what the page shows.
    pub(crate) fn ends_with(&mut self, code: i32) -> Result<String> {
        let block = self.blocks.pop_front().context("the page has no more commands for this scene")?;
        let mut words: Vec<&str> = self.inside.iter().map(String::as_str).collect();
        let script = format!("exec 2>&1\n{}", block.script);
        words.extend(["timeout", "120", "bash", "-eu", "-o", "pipefail", "-c", &script]);
        let output = self.command(&words).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(code), "{}\n{:?}:\n{said}", block.script, output.status);
        shows(&block.expected, &said).with_context(|| format!("{}\nprinted:\n{said}", block.script))?;
        Ok(said)
    }

    /// The next block starts the coordinator: wait until it answers and has logged what the page shows.
    pub(crate) fn serve(&mut self) -> Result<()> {
        let block = self.blocks.pop_front().context("the page has no more commands for this scene")?;
        ensure!(block.script.starts_with("muster serve") && !block.script.contains('\n'), "{}", block.script);
        self.serves += 1;
        let name = format!("coordinator-{}", self.serves);
        let script = format!("exec {}", block.script);
        let mut command = self.command(&["bash", "-eu", "-c", &script]);
        let mut process = Process::start(&name, self.system.dir.path(), &mut command)?;
        wait_for("the coordinator answers", SOON, || {
            ensure!(process.is_running(), "it has ended:\n{}", tail(&process.output()));
            shows(&block.expected, &process.output())?;
            Ok(self.system.cli(&["agent", "list"]).is_ok_and(|o| o.status.success()).then_some(()))
        })
        .with_context(|| tail(&process.output()))?;
        self.system.coordinator = Some(process);
        Ok(())
    }

    fn command(&self, words: &[&str]) -> Command {
        let muster = binary("muster", "muster");
        let folder = muster.parent().map(|p| p.display().to_string()).unwrap_or_default();
        let mut command = Command::new(words[0]);
        self.system.environment(&mut command);
        command
            .args(&words[1..])
            .current_dir(self.system.dir.path())
            .envs(&self.env)
            .env("PATH", format!("{folder}:{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        command
    }

    /// All commands of the scene were run.
    pub(crate) fn end(self) -> Result<()> {
        let left: Vec<_> = self.blocks.iter().map(|block| &block.script).collect();
        ensure!(left.is_empty(), "nobody has run {left:#?}");
        Ok(())
    }
}

/// Whether these lines are in a text, in this order.
fn shows(expected: &[String], said: &str) -> Result<()> {
    let mut lines = said.lines().map(squeezed);
    for wanted in expected.iter().map(|line| squeezed(line)).filter(|line| !line.is_empty() && line != "…") {
        ensure!(lines.any(|line| is_like(&line, &wanted)), "it does not show (here): {wanted}");
    }
    Ok(())
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A line that ends in `…` may go on; one that does not has to end there.
fn is_like(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split('…').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || wanted.ends_with('…')
}

/// How long a lease and the moment after it may take.
pub(crate) const LEASE: Duration = Duration::from_secs(60);
