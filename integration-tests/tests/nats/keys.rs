//! Keys, and clients that use them without any of our code.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, ConnectOptions, Event};
use futures_util::StreamExt as _;
use muster_integration_tests::{
    process::{Process, binary, tail, wait_for},
    system::SOON,
};
use tokio::sync::mpsc;

/// The nats-server of the distribution.
pub(crate) const USUAL: &str = "nats-server";
/// The latest one: `integration-tests/scripts/install.sh` puts it there.
pub(crate) const NEWEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/newest/bin/nats-server");

/// Where `muster nats config` has written.
pub(crate) struct Keys(PathBuf);

impl Keys {
    /// In `keys` of this folder; with more options, such as agents.
    pub(crate) fn write(dir: &Path, options: &[&str]) -> Result<Self> {
        let keys = Self(dir.join("keys"));
        let mut command = Command::new(binary("muster", "muster"));
        command.args(["nats", "config", "--out"]).arg(&keys.0).args(options);
        let output = command.output()?;
        let said = said(&output);
        ensure!(output.status.success(), "{said}");
        for seed in fs::read_dir(keys.0.join("seeds"))? {
            let seed = fs::read_to_string(seed?.path())?;
            ensure!(!said.contains(seed.trim()), "a seed was printed");
        }
        Ok(keys)
    }

    /// For `nats-server -c`.
    pub(crate) fn config(&self) -> Result<String> {
        Ok(fs::canonicalize(self.0.join("nats.conf"))?.display().to_string())
    }

    /// The folder of seeds.
    pub(crate) fn seeds(&self) -> PathBuf {
        self.0.join("seeds")
    }

    /// The file with a user's seed.
    pub(crate) fn seed(&self, user: &str) -> String {
        self.seeds().join(format!("{user}.nk")).display().to_string()
    }
}

/// An agent that can't begin; what it said when it ended.
pub(crate) fn agent_run(dir: &Path, url: &str, more: &[&str]) -> Result<String> {
    let mut command = Command::new(binary("muster", "muster"));
    command.args(["agent", "run", "--role", "bench", "--nats", url, "--data-dir"]).arg(dir.join("agent")).args(more);
    let log = tempfile::tempdir()?;
    let mut process = Process::start("agent", log.path(), &mut command)?;
    wait_for("the agent ends", SOON, || Ok((!process.is_running()).then_some(())))
        .with_context(|| tail(&process.output()))?;
    Ok(process.output())
}

/// What a process has printed.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

/// A client, and what the server has against it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Connection {
    /// As this user, whose inbox is its own; without a seed: as nobody.
    pub(crate) async fn open(url: &str, user: &str, seed: Option<&str>) -> Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let mut options = ConnectOptions::new().custom_inbox_prefix(format!("_INBOX_{user}"));
        options = options.event_callback(move |event| {
            // The test may be over.
            let _ = sender.send(event);
            std::future::ready(())
        });
        if let Some(seed) = seed {
            options = options.nkey(fs::read_to_string(seed)?.trim().to_owned());
        }
        Ok(Self { client: options.connect(url).await?, events })
    }

    /// The next thing that the server has against it.
    pub(crate) async fn objection(&mut self) -> Result<String> {
        loop {
            let event = tokio::time::timeout(SOON, self.events.recv()).await.context("the server has no objection")?;
            if let Event::ServerError(error) = event.context("the client has ended")? {
                return Ok(error.to_string());
            }
        }
    }

    /// Whether the server throws it out before long.
    pub(crate) async fn is_thrown_out(&mut self) -> bool {
        let gone = async {
            while let Some(event) = self.events.recv().await {
                if matches!(event, Event::Disconnected) {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(SOON, gone).await.unwrap_or(false)
    }

    /// Wait until the server has handled everything that was sent so far: a message to oneself comes after it.
    pub(crate) async fn settle(&self) -> Result<()> {
        let subject = format!("settled.{}", uuid::Uuid::new_v4());
        let mut settled = self.client.subscribe(subject.clone()).await?;
        self.client.publish(subject, "".into()).await?;
        tokio::time::timeout(SOON, settled.next()).await.context("the server is silent")?.context("it has ended")?;
        Ok(())
    }
}

/// The oldest server that is promised is among those of these tests, and they are not twice the same.
#[test]
fn one_of_the_two_servers_is_of_2_9_and_the_other_newer() -> Result<()> {
    let version = |program: &str| -> Result<(u32, u32)> {
        let said = said(&Command::new(program).arg("--version").output()?);
        let numbers = said.trim().rsplit('v').next().unwrap_or_default();
        let mut numbers = numbers.split('.').map(str::parse);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            anyhow::bail!("{program} is of no version: {said}")
        };
        Ok((major, minor))
    };
    let (usual, newest) = (version(USUAL)?, version(NEWEST)?);
    ensure!(usual == (2, 9), "the tests are to run on nats-server 2.9, too: {usual:?}");
    ensure!(newest >= (2, 12), "`rm -r target/tools/newest` and `make tools` bring a newer one: {newest:?}");
    Ok(())
}
