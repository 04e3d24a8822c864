//! An agent for fault tests: `fault-agent URL NAME HOST SHARED DATA`. What it really does is in `SHARED/ledger`, a line at each
//! moment; it stops at each phase for which `SHARED/hold-{phase}` is there, and says so by `SHARED/at-{phase}`. SIGTERM ends it as planned.

use std::{
    error::Error,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use muster_agent::{Action, ActionError, ActionSpec, Catalogue, Checked, Context, Done, Worker, WorkerConfig, guard};
use muster_bus::{NatsBus, NatsOptions, message::Scope};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    guard::main(run)
}

async fn run(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let [url, name, host, shared, data_dir] = &arguments[..] else {
        return Err("usage: fault-agent URL NAME HOST SHARED DATA".into());
    };
    let shared = Shared(shared.into());
    let put = |name, concurrent_safe| Put { shared: shared.clone(), name, concurrent_safe };
    let actions: [Arc<dyn Action>; 3] =
        [Arc::new(put("ledger.put", false)), Arc::new(put("ledger.race", true)), Arc::new(Append(shared.clone()))];
    let config = WorkerConfig {
        namespace: "default".to_owned(),
        agent: name.clone(),
        role: "fault".to_owned(),
        labels: [].into(),
        host: Some(host.clone()),
        slots: 4,
        data_dir: Some(data_dir.into()),
        software: "fault-agent".to_owned(),
    };
    let bus = NatsBus::connect(NatsOptions::for_agent([url], name)).await?;
    let stop = CancellationToken::new();
    let (mut told, stopping) = (signal(SignalKind::terminate())?, stop.clone());
    tokio::spawn(async move {
        told.recv().await;
        stopping.cancel();
    });
    Worker::new(config, Catalogue::new(actions)?, Arc::new(bus)).run(stop).await?;
    Ok(())
}

/// What all processes of a test have in common.
#[derive(Clone)]
struct Shared(PathBuf);

#[derive(Deserialize)]
struct Params {
    run: String,
    step: String,
    /// The try fails for good, after it has done its work.
    #[serde(default)]
    fails: bool,
    /// It gives so much output, in MB.
    #[serde(default)]
    output_mb: usize,
    /// To take it back it needs so much, in MB.
    #[serde(default)]
    undo_mb: usize,
}

impl Params {
    fn read(with: &Value) -> Result<Self, ActionError> {
        serde_json::from_value(with.clone()).map_err(|e| ActionError::permanent(e.to_string()))
    }
}

impl Shared {
    fn write(&self, what: &str, params: &Params) -> Result<(), ActionError> {
        let line = format!("{what} {} {}\n", params.run, params.step);
        let file = fs::File::options().create(true).append(true).open(self.0.join("ledger"));
        file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(|e| ActionError::permanent(e.to_string()))
    }

    /// Stay here while the test says so.
    async fn hold(&self, phase: &str) {
        let (hold, at) = (self.0.join(format!("hold-{phase}")), self.0.join(format!("at-{phase}")));
        while hold.exists() {
            // The test sees it or waits longer.
            let _ = fs::write(&at, std::process::id().to_string());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn state(&self, params: &Params) -> PathBuf {
        self.0.join(format!("state-{}-{}", params.run, params.step))
    }
}

fn ended(params: &Params) -> Result<Done, ActionError> {
    let output =
        if params.output_mb == 0 { json!({}) } else { json!({"first": "kept", "rest": megabytes(params.output_mb)}) };
    if params.fails {
        return Err(ActionError::Permanent { message: "it was told to fail".to_owned(), output: Some(output) });
    }
    Ok(Done { output, observations: Vec::new() })
}

fn megabytes(count: usize) -> String {
    "x".repeat(count << 20)
}

fn put_whole(path: &Path, content: &str) -> Result<(), ActionError> {
    let beside = path.with_extension(std::process::id().to_string());
    fs::write(&beside, content)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|e| ActionError::permanent(e.to_string()))
}

/// Idempotent, checkable, undoable: makes a file of a name; perhaps beside another one that does the same.
struct Put {
    shared: Shared,
    name: &'static str,
    concurrent_safe: bool,
}

#[async_trait::async_trait]
impl Action for Put {
    fn spec(&self) -> ActionSpec {
        let mut spec = ActionSpec::new(self.name, "1.0.0");
        (spec.idempotent, spec.checkable, spec.undoable, spec.scope) = (true, true, true, Scope::Target);
        spec.concurrent_safe = self.concurrent_safe;
        spec
    }

    async fn check(&self, _: &Context, with: &Value) -> Result<Checked, ActionError> {
        let params = Params::read(with)?;
        self.shared.write("check", &params)?;
        self.shared.hold("check").await;
        Ok(if self.shared.state(&params).exists() {
            Checked::Satisfied(Done::default())
        } else {
            Checked::Different { diff: "the file is missing".to_owned() }
        })
    }

    async fn prepare(&self, _: &Context, with: &Value) -> Result<Value, ActionError> {
        let params = Params::read(with)?;
        self.shared.write("prepare", &params)?;
        self.shared.hold("prepare").await;
        Ok(if params.undo_mb == 0 { json!({}) } else { json!({"needs": megabytes(params.undo_mb)}) })
    }

    async fn run(&self, _: &Context, with: &Value) -> Result<Done, ActionError> {
        let params = Params::read(with)?;
        self.shared.write("begin", &params)?;
        self.shared.hold("run").await;
        put_whole(&self.shared.state(&params), "there")?;
        self.shared.hold("done").await;
        self.shared.write("end", &params)?;
        ended(&params)
    }

    async fn undo(&self, _: &Context, with: &Value, _: &Value) -> Result<Done, ActionError> {
        let params = Params::read(with)?;
        self.shared.write("undo", &params)?;
        self.shared.hold("undo").await;
        match fs::remove_file(self.shared.state(&params)) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ActionError::permanent(e.to_string())),
        }
        self.shared.hold("undone").await;
        Ok(Done::default())
    }
}

/// None of it: must not be done twice.
struct Append(Shared);

#[async_trait::async_trait]
impl Action for Append {
    fn spec(&self) -> ActionSpec {
        let mut spec = ActionSpec::new("ledger.append", "1.0.0");
        // Whoever is told to may write the ledger.
        spec.scope = Scope::Target;
        spec
    }

    async fn run(&self, _: &Context, with: &Value) -> Result<Done, ActionError> {
        let params = Params::read(with)?;
        self.0.write("begin", &params)?;
        self.0.hold("run").await;
        self.0.write("end", &params)?;
        ended(&params)
    }
}
