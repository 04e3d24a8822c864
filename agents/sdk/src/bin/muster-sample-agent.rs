//! The smallest agent: `muster-sample-agent URL NAME ALLOW_TOML [DATA_FOLDER]`. It offers `noop.run` and `command.run`,
//! and is a guard when called with `guard`. To start from, and for tests that kill an agent.

use std::{error::Error, path::Path, process::ExitCode, sync::Arc};

use muster_agent::{
    Catalogue, Worker, WorkerConfig, action::Action, allow::Allow, command::CommandRun, guard, noop::Noop,
};
use muster_bus::{NatsBus, NatsOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    guard::main(run)
}

async fn run(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
    let [url, name, allow, data_dir @ ..] = &arguments[..] else {
        return Err("usage: muster-sample-agent URL NAME ALLOW_TOML [DATA_FOLDER]".into());
    };
    let actions: [Arc<dyn Action>; 2] = [Arc::new(Noop), Arc::new(CommandRun::new(Allow::load(Path::new(allow))?))];
    let config = WorkerConfig {
        namespace: "default".to_owned(),
        agent: name.clone(),
        role: "sample".to_owned(),
        labels: [].into(),
        host: None,
        slots: 4,
        data_dir: data_dir.first().map(Into::into),
        software: "muster-sample-agent".to_owned(),
    };
    let bus = NatsBus::connect(NatsOptions::for_agent([url], name)).await?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        terminated.recv().await;
        stop.cancel();
    });
    Worker::new(config, Catalogue::new(actions)?, Arc::new(bus)).run(shutdown).await?;
    Ok(())
}
