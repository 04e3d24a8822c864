//! `muster serve`: a coordinator as a process of its own.

use std::{net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use muster_bus::{NatsBus, NatsOptions};
use muster_coordinator::{
    api::{self, Listening, ServerConfig, TlsFiles, token::Tokens},
    driver::{self, Config, Coordinator},
    events::Events,
    journal::{
        Journal,
        log::{Health, LogJournal, LogOptions, OpenError},
    },
    logs::{Limits, Logs},
    metrics,
    store::{Opening, Store, StoreError},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::App;
use crate::{
    bus::not_connected,
    catalogue,
    config::{ServeSettings, duration},
    error::{CliError, Exit, Result, chain},
    signal, telemetry,
};

pub(super) async fn run(app: &App, accept_loss: bool) -> Result<Exit> {
    let settings = &app.settings.serve;
    telemetry::init(settings.log_format, &settings.log)?;
    let shutdown = CancellationToken::new();
    signal::cancels(&shutdown)?;
    let metrics = metrics::install().map_err(|e| CliError::failed("METRICS_FAILED", chain(&e)))?;
    let listening = api::listen(server_config(settings)?).await.map_err(|e| cannot_serve(&e))?;
    let opened = tokio::select! {
        opened = Box::pin(open(settings, accept_loss)) => opened?,
        // A long log, or a disk that does not answer. Nobody was answered yet, and a start can be cut off anywhere.
        () = shutdown.cancelled() => return Ok(Exit::Succeeded),
    };
    info!(
        address = %listening.address(),
        data_dir = %settings.data_dir().display(),
        cluster = opened.journal.cluster(),
        "serving"
    );
    Box::pin(Serving { opened, listening, metrics, shutdown }.run()).await
}

/// Started together with NATS, a coordinator need not be started again.
const NATS_STARTS_WITHIN: Duration = Duration::from_secs(5);

struct Opened {
    journal: Arc<LogJournal>,
    store: Arc<Store>,
    tokens: Arc<Tokens>,
    coordinator: Coordinator,
}

async fn open(settings: &ServeSettings, accept_loss: bool) -> Result<Opened> {
    let data_dir = settings.data_dir();
    let keep = duration(&settings.events_keep).map_err(|e| e.at("events_keep"))?;
    // Who has a log hears first what is wrong with it; who has none writes nothing before it may serve.
    let log = if LogJournal::is_begun(&data_dir) { Some(open_journal(&data_dir, accept_loss).await?) } else { None };
    let bus = connect(settings).await?;
    driver::answer_alone(&bus).await.map_err(|e| cannot_open(&e))?;
    let log = match log {
        Some(log) => log,
        None => open_journal(&data_dir, accept_loss).await?,
    };
    let events = (!settings.no_events).then(|| Events { sink: Arc::new(bus.events(keep)), keep });
    let store = open_store(&data_dir, &log).await?;
    let journal: Arc<dyn Journal> = Arc::clone(&log) as _;
    let tokens = load_tokens(&data_dir, Arc::clone(&journal)).await?;
    let mut config = Config::new(journal, Arc::clone(&store), Arc::new(bus), log.cluster());
    config.after_loss = log.after_loss();
    config.shipped = catalogue::shipped()?;
    config.logs = Some(open_logs(&data_dir, settings.log_limits())?);
    config.events = events;
    config.retention = Some(settings.retention());
    let coordinator = Coordinator::open(config).await.map_err(|e| cannot_open(&e))?;
    Ok(Opened { journal: log, store, tokens, coordinator })
}

struct Serving {
    opened: Opened,
    listening: Listening,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
}

impl Serving {
    async fn run(self) -> Result<Exit> {
        let Opened { journal, store, tokens, coordinator } = self.opened;
        let ended = tokio::spawn(watch_health(journal, self.shutdown.clone()));
        let served = self
            .listening
            .serve(Arc::new(coordinator.clone()), tokens, Some(self.metrics), self.shutdown.clone())
            .await;
        self.shutdown.cancel();
        coordinator.shutdown().await;
        drop(coordinator);
        close(store).await;
        served.map_err(|e| cannot_serve(&e))?;
        match ended.await {
            Ok(Some(why)) => Err(CliError::failed("JOURNAL_FAILED", why)),
            Ok(None) => Ok(Exit::Succeeded),
            Err(e) => Err(CliError::failed("JOURNAL_FAILED", e.to_string())),
        }
    }
}

fn server_config(settings: &ServeSettings) -> Result<ServerConfig> {
    let mut config = ServerConfig::new(address("listen", &settings.listen)?);
    config.insecure = settings.insecure;
    config.allow_clear_text = settings.clear_text;
    if !settings.metrics_listen.is_empty() {
        config.metrics_listen = Some(address("metrics_listen", &settings.metrics_listen)?);
    }
    let is_set = |path: &Path| !path.as_os_str().is_empty();
    config.tls = match (is_set(&settings.tls_cert), is_set(&settings.tls_key)) {
        (true, true) => Some(TlsFiles { cert: settings.tls_cert.clone(), key: settings.tls_key.clone() }),
        (false, false) => None,
        (true, false) | (false, true) => {
            return Err(CliError::usage("TLS_INCOMPLETE", "TLS needs a certificate and its key")
                .hint("give both --tls-cert and --tls-key"));
        }
    };
    Ok(config)
}

fn address(what: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        CliError::usage("ADDRESS_INVALID", format!("{what}: {text:?} is no address")).hint("such as 127.0.0.1:7400")
    })
}

/// Why there is no coordinator.
pub(super) fn cannot_open(error: &driver::OpenError) -> CliError {
    match error {
        driver::OpenError::AnotherAnswers => CliError::failed("COORDINATOR_EXISTS", chain(error))
            .hint("stop the other one, or name another NATS with --nats"),
        driver::OpenError::Store(why) => no_store(why, chain(error)),
        driver::OpenError::NewLife(_) => CliError::failed("JOURNAL_FAILED", chain(error)),
        driver::OpenError::Bus(_) => CliError::failed("BUS_FAILED", chain(error)),
    }
}

/// Why there is no store.
pub(super) fn no_store(error: &StoreError, message: String) -> CliError {
    CliError::failed("STORE_FAILED", message).hint(match error {
        StoreError::NoRoom { .. } => "make room on the disk, and start again",
        StoreError::Damaged(_) | StoreError::Io(_) | StoreError::BadPageToken => {
            "look at the disk, and at owner and mode of the folder store in the data directory\n\
             it can be deleted while nothing runs: it is rebuilt from the journal"
        }
    })
}

fn cannot_serve(error: &api::ServeError) -> CliError {
    let failed = CliError::failed("API_FAILED", chain(error));
    if matches!(error, api::ServeError::ClearText(_)) {
        return failed.hint("--tls-cert and --tls-key\nor --clear-text behind a proxy that adds TLS");
    }
    failed
}

/// Lock the data directory, and read the whole log.
async fn open_journal(data_dir: &Path, accept_loss: bool) -> Result<Arc<LogJournal>> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|e| CliError::file(data_dir, "make", &e))?;
    let (journal, opening) = loop {
        let path = data_dir.to_owned();
        let options = LogOptions { accept_loss, ..LogOptions::default() };
        match blocking(move || LogJournal::open(&path, options)).await? {
            Err(e) if e.is_no_room() => room(data_dir, &chain(&e)).await,
            opened => break opened.map_err(|e| not_opened(&e))?,
        }
    };
    for loss in &opening.losses {
        error!(%loss, "records are lost");
    }
    if opening.cut_bytes > 0 {
        warn!(bytes = opening.cut_bytes, "an append that nobody was answered for was cut off the log's end");
    }
    Ok(Arc::new(journal))
}

/// A start waits for room, as everything does while serving: until more is free than there was, or for a minute, since a quota
/// shows only to who writes.
async fn room(data_dir: &Path, why: &str) {
    let free = || rustix::fs::statvfs(data_dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    let before = free();
    warn!(
        why,
        free_kib = before >> 10,
        "no room to start: it waits until more is free on the disk of the data directory"
    );
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if free() > before {
            return;
        }
    }
}

/// Why there is no journal.
pub(super) fn not_opened(error: &OpenError) -> CliError {
    let (reason, hint) = match error {
        OpenError::InUse { .. } => ("DATA_DIR_IN_USE", "stop the other process, or give another --data-dir"),
        OpenError::Loss { .. } => ("JOURNAL_DAMAGED", "see what is lost: muster journal verify"),
        OpenError::Version { .. } => {
            ("JOURNAL_NEWER", "start the newer version\nor restore the backup that was made before the upgrade")
        }
        OpenError::Io { .. } if error.is_no_room() => {
            ("NO_ROOM", "make room on the disk of the data directory (64 MiB will do), and try again")
        }
        OpenError::Io { .. } => ("JOURNAL_UNREADABLE", "look at the folder's owner, mode and disk"),
    };
    CliError::failed(reason, chain(error)).hint(hint)
}

async fn open_store(data_dir: &Path, journal: &LogJournal) -> Result<Arc<Store>> {
    let folder = data_dir.join("store");
    let (store, opening) = loop {
        let (path, cluster, head) = (folder.clone(), journal.cluster().to_owned(), journal.head().position);
        match blocking(move || Store::open(&path, &cluster, head)).await? {
            Err(e @ StoreError::NoRoom { .. }) => room(data_dir, &chain(&e)).await,
            opened => break opened.map_err(|e| no_store(&e, chain(&e)).at(folder.display().to_string()))?,
        }
    };
    if let Opening::Rebuilt { why } = opening {
        warn!(why, "the store is rebuilt from the journal");
    }
    Ok(Arc::new(store))
}

/// Where lines of attempts are kept.
pub(super) fn open_logs(data_dir: &Path, limits: Limits) -> Result<Logs> {
    let folder = data_dir.join("logs");
    Logs::open(&folder, limits).map_err(|e| CliError::file(&folder, "make", &e))
}

/// Sync the store; what can't be synced is rebuilt at the next start.
async fn close(store: Arc<Store>) {
    let Some(store) = Arc::into_inner(store) else {
        warn!("the store is still in use; it is rebuilt if the machine goes down");
        return;
    };
    if let Ok(Err(e)) = blocking(move || store.close()).await {
        warn!(error = chain(&e), "the store could not be closed");
    }
}

async fn load_tokens(data_dir: &Path, journal: Arc<dyn Journal>) -> Result<Arc<Tokens>> {
    let failed = |e: &api::token::TokenError| CliError::failed("TOKENS_FAILED", chain(e));
    let tokens = blocking(move || Tokens::load(&journal)).await?.map_err(|e| failed(&e))?;
    if let Some(path) = api::bootstrap_token(&tokens, data_dir).await.map_err(|e| failed(&e))? {
        info!(file = %path.display(), "a first admin token was written");
    }
    Ok(Arc::new(tokens))
}

async fn connect(settings: &ServeSettings) -> Result<NatsBus> {
    let options = settings.access().options(None)?;
    let waiting = NatsOptions { wait_for_server: true, ..options.clone() };
    match tokio::time::timeout(NATS_STARTS_WITHIN, NatsBus::connect(waiting)).await {
        Ok(connected) => connected,
        Err(_) => NatsBus::connect(options).await,
    }
    .map_err(|e| not_connected(&e))
}

/// A log that can't go on ends the process: what it does not take must not happen.
async fn watch_health(journal: Arc<LogJournal>, shutdown: CancellationToken) -> Option<String> {
    let mut health = journal.health();
    // Only its receiver is needed: the journal has to close when the last user of it is gone.
    drop(journal);
    let ended = tokio::select! {
        ended = health.wait_for(|h| matches!(h, Health::Ended { .. })) => ended,
        () = shutdown.cancelled() => return None,
    };
    let why = match ended.as_deref() {
        Ok(Health::Ended { why }) => why.clone(),
        Ok(_) | Err(_) => return None,
    };
    error!(why, "the journal can't go on");
    shutdown.cancel();
    Some(why)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| CliError::failed("INTERNAL", e.to_string()))
}
