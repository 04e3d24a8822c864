//! The lab by hand: real servers on this machine, set up as the roadmap finds them, and an independent look at them.

use std::{
    fs,
    io::{Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use muster_integration_tests::{
    lab::{Inputs, Lab, Pooling},
    probe::probe,
};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(version, about = "Real servers on this machine, with the faults that a rollout repairs")]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start PostgreSQL with a replica, PgBouncer, Redis, nginx, nats-server and a sample service with two sides; print
    /// KEY=VALUE; stay until SIGTERM, SIGINT or the end of standard input; then stop and remove all of it.
    Up {
        /// Write the inputs of revenue-engine-rollout there, as JSON.
        #[arg(long)]
        inputs_file: Option<PathBuf>,
        /// What is wrong with the pool.
        #[arg(long, value_enum, default_value_t = Fault::OneSession)]
        pooling: Fault,
        /// Stay when standard input ends.
        #[arg(long)]
        keep: bool,
    },
    /// Look at all of it by openssl, curl, psql, redis-cli and `pg_verifybackup`. Exit code 0: all is well; 1: something is not.
    Probe {
        /// The file that `up` wrote.
        #[arg(long)]
        inputs_file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Fault {
    /// One server connection, given to a client for as long as it stays.
    OneSession,
    /// No database that a client may ask for.
    NoDatabase,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Verb::Up { inputs_file, pooling, keep } => {
            let pooling = match pooling {
                Fault::OneSession => Pooling::OneSession,
                Fault::NoDatabase => Pooling::NoDatabase,
            };
            up(inputs_file, pooling, keep).await
        }
        Verb::Probe { inputs_file, json } => look(&inputs_file, json),
    }
}

async fn up(inputs_file: Option<PathBuf>, pooling: Pooling, keep: bool) -> Result<ExitCode> {
    // Before the lab: a signal that comes while it starts still ends in a clean-up.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let lab = tokio::task::spawn_blocking(move || Lab::start(pooling)).await??;
    let inputs = lab.inputs()?;
    if let Some(path) = inputs_file {
        fs::write(&path, serde_json::to_vec_pretty(&inputs)?)
            .with_context(|| format!("{} can't be written", path.display()))?;
    }
    let mut out = std::io::stdout();
    for (key, value) in [
        ("LAB_DIR", lab.dir().display().to_string()),
        ("NATS_URL", lab.nats.url()),
        ("SITE", inputs.domain.clone()),
        ("HTTP", inputs.http_address.clone()),
        ("HTTPS", inputs.https_address.clone()),
        ("BLUE", inputs.blue.clone()),
        ("FRONT", inputs.front.clone()),
        ("POSTGRES", lab.postgres.address()),
        ("REPLICA", lab.replica.address()),
        ("PGBOUNCER", lab.pgbouncer.address()),
        ("REDIS", lab.redis.address()),
        ("REDIS_CONFIG", lab.redis.config().display().to_string()),
        ("REDIS_PASSWORD_FILE", lab.redis.password_file().display().to_string()),
        ("ALLOW_INTEGRATION", lab.allow_file("integration")?.display().to_string()),
        ("ALLOW_DEPLOYMENT", lab.allow_file("deployment")?.display().to_string()),
        ("PASSWORD_FILE", inputs.password_file.display().to_string()),
        ("READY", "1".into()),
    ] {
        writeln!(out, "{key}={value}")?;
    }
    out.flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = end_of_input(), if !keep => {}
    }
    drop(lab);
    Ok(ExitCode::SUCCESS)
}

async fn end_of_input() {
    let (ended, wait) = tokio::sync::oneshot::channel();
    // A thread and not a task: nothing can interrupt a read, and the process must not wait for it at its end.
    std::thread::spawn(move || {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        let _ = ended.send(());
    });
    drop(wait.await);
}

fn look(inputs_file: &PathBuf, json: bool) -> Result<ExitCode> {
    let inputs = fs::read(inputs_file).with_context(|| format!("{} can't be read", inputs_file.display()))?;
    let inputs: Inputs = serde_json::from_slice(&inputs).context("it is not what `muster-lab up` writes")?;
    let report = probe(&inputs)?;
    let mut out = std::io::stdout();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        report.lines().iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
