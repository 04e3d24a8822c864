//! `muster dev`: coordinator, bus and one agent in this process, nothing on disk that outlives it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_agent::{
    Worker, WorkerConfig,
    allow::{Allow, Pinned},
};
use muster_bus::{Bus, LocalBus};
use muster_coordinator::{
    api::{self, Listening, ServerConfig, token::Tokens},
    control::Control as _,
    driver::{Config, Coordinator},
    journal::{Journal, Position, memory::MemoryJournal},
    logs::Limits,
    store::Store,
};
use muster_engine::ids::{AgentName, Namespace};
use muster_proto::v1;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    App, follow, inputs, playbook, read,
    run::start_one,
    serve::{cannot_open, no_store, open_logs},
};
use crate::{
    args::{DevArgs, PlaybookRef, Role},
    catalogue,
    client::Client,
    config::Settings,
    error::{CliError, Exit, Result, chain},
    printer::to_message,
    signal, telemetry,
};

/// What `command.run` may start when no list is given: programs that only talk.
const HARMLESS: &[&str] = &["date", "echo", "uname"];
const NAMESPACE: &str = "default";
const AGENT: &str = "infra-1";
const REGISTER_WITHIN: Duration = Duration::from_secs(10);

pub(super) async fn run(app: &App, args: DevArgs) -> Result<Exit> {
    telemetry::init(app.settings.serve.log_format, &args.log)?;
    let inputs = Value::Object(inputs(&args.inputs)?);
    for path in &args.playbooks {
        // What can't be read is said before anything is started.
        read(path)?;
    }
    let shutdown = CancellationToken::new();
    let dev = Dev::start(&args, &shutdown).await?;
    let result = if args.playbooks.is_empty() {
        signal::cancels(&shutdown)?;
        welcome(app, dev.address);
        shutdown.cancelled().await;
        Ok(Exit::Succeeded)
    } else {
        Box::pin(play(app, &args, &inputs, dev.address)).await
    };
    shutdown.cancel();
    dev.end().await;
    result
}

/// Everything that runs in this process.
struct Dev {
    coordinator: Coordinator,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
    _folder: Folder,
}

impl Dev {
    async fn start(args: &DevArgs, shutdown: &CancellationToken) -> Result<Self> {
        if !args.listen.ip().is_loopback() {
            return Err(CliError::usage("ADDRESS_INVALID", format!("{} can be reached from elsewhere", args.listen))
                .hint("dev takes every request without a token, so only a loopback address: 127.0.0.1:7400"));
        }
        let mut config = ServerConfig::new(args.listen);
        config.insecure = true;
        let listening = api::listen(config).await.map_err(|e| CliError::failed("API_FAILED", chain(&e)))?;
        let address = listening.address();
        let folder = Folder::new()?;
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let bus: Arc<dyn Bus> = Arc::new(LocalBus::new());
        let cluster = uuid::Uuid::new_v4().to_string();
        let (store, _) =
            Store::open(&folder.0.join("store"), &cluster, Position(0)).map_err(|e| no_store(&e, chain(&e)))?;
        let tokens = Tokens::load(&journal).map_err(|e| CliError::failed("TOKENS_FAILED", chain(&e)))?;
        let mut config = Config::new(journal, Arc::new(store), Arc::clone(&bus), cluster);
        config.shipped = catalogue::shipped()?;
        config.logs = Some(open_logs(&folder.0, Limits::default())?);
        let coordinator = Coordinator::open(config).await.map_err(|e| cannot_open(&e))?;
        let api = serve(listening, &coordinator, Arc::new(tokens), shutdown.clone());
        let agent = work(bus, args, &folder.0, shutdown.clone())?;
        registered(&coordinator).await?;
        Ok(Self { coordinator, address, tasks: vec![api, agent], _folder: folder })
    }

    async fn end(self) {
        for task in self.tasks {
            // A task that panicked has said so already.
            let _ = task.await;
        }
        self.coordinator.shutdown().await;
    }
}

fn serve(
    listening: Listening,
    coordinator: &Coordinator,
    tokens: Arc<Tokens>,
    shutdown: CancellationToken,
) -> JoinHandle<()> {
    let control = Arc::new(coordinator.clone());
    tokio::spawn(async move {
        if let Err(e) = listening.serve(control, tokens, None, shutdown.clone()).await {
            tracing::error!(error = chain(&e), "the API broke off");
            shutdown.cancel();
        }
    })
}

fn work(bus: Arc<dyn Bus>, args: &DevArgs, folder: &Path, shutdown: CancellationToken) -> Result<JoinHandle<()>> {
    let allow = match &args.allow {
        Some(path) => catalogue::allow(path)?,
        None => harmless(),
    };
    let config = WorkerConfig {
        namespace: NAMESPACE.to_owned(),
        agent: AGENT.to_owned(),
        role: Role::Infra.name().to_owned(),
        labels: BTreeMap::new(),
        host: None,
        slots: 4,
        data_dir: Some(folder.join("agent")),
        software: concat!("muster ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let worker = Worker::new(config, catalogue::of_role(Role::Infra, allow)?, bus);
    Ok(tokio::spawn(async move {
        if let Err(e) = worker.run(shutdown.clone()).await {
            tracing::error!(error = chain(&e), "the agent broke off");
            shutdown.cancel();
        }
    }))
}

/// Wait until the agent takes work, so that whoever is told the address finds it at work.
async fn registered(coordinator: &Coordinator) -> Result<()> {
    let (namespace, agent) = (Namespace::from(NAMESPACE), AgentName::from(AGENT));
    let known = async {
        while coordinator.agent(&namespace, &agent).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let late = |_| CliError::failed("AGENT_FAILED", "the agent has not registered").hint("see why: --log info");
    timeout(REGISTER_WITHIN, known).await.map_err(late)
}

/// Those of the harmless programs that are here, pinned to what they are now.
fn harmless() -> Allow {
    let pin = |name: &&str| {
        let path =
            ["/usr/bin", "/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())?;
        let digest = Sha256::digest(std::fs::read(&path).ok()?);
        let sha256 = digest.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        Some(((*name).to_owned(), Pinned { path, sha256 }))
    };
    Allow { commands: HARMLESS.iter().filter_map(pin).collect() }
}

fn welcome(app: &App, address: SocketAddr) {
    let printer = &app.printer;
    printer.note(&format!("muster dev answers on http://{address}, without tokens; nothing is kept"));
    printer.note(&format!("  export MUSTER_SERVER=http://{address}"));
    printer.note("  muster agent list");
    printer.note("  muster run start playbooks/hello.yaml --watch");
    printer.note("Ctrl-C ends it");
}

/// Submit, start and follow each playbook; the first one that does not succeed is the last one.
async fn play(app: &App, args: &DevArgs, inputs: &Value, address: SocketAddr) -> Result<Exit> {
    let settings = Settings {
        server: format!("http://{address}"),
        namespace: NAMESPACE.to_owned(),
        token_file: PathBuf::new(),
        ..app.settings.clone()
    };
    let client = Client::connect(&settings, None).await?;
    for path in &args.playbooks {
        playbook::submit_one(app, &client, path, false).await?;
        let source = playbook::Source::of(&client, &PlaybookRef::File(path.clone()))?;
        let request =
            v1::StartRunRequest { inputs: Some(to_message(inputs.clone())?), ..v1::StartRunRequest::default() };
        let run = start_one(&client, &source, request).await?;
        follow::watch(app, &client, &run.name, Some(0), args.until).await.map_err(|e| gone(e, path))?;
    }
    Ok(Exit::Succeeded)
}

/// The run ends with this process: what would answer it is to run it again, and stay.
fn gone(error: CliError, path: &Path) -> CliError {
    let file = path.display();
    match error.exit {
        Exit::WaitingForPerson => {
            error.hint(format!("to answer, run it again and stay: muster dev --listen 127.0.0.1:7400 --stay {file}"))
        }
        Exit::TimedOut => error.hint("nothing of it is kept; give it more time with --timeout"),
        Exit::Failed => CliError { hint: None, ..error },
        Exit::Succeeded | Exit::Usage => error,
    }
}

/// A folder of this process alone, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("muster-dev-{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| CliError::file(&path, "make", &e))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is in the system's temporary folder: what can't be removed now is removed with that.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
