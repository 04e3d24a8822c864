//! The talk with the coordinator, so that an action's author need not know it.
//!
//! What holds, also under duplicates, late copies and crashes:
//! - an instance starts an attempt at most once, and gives the same answer to every copy of its task;
//! - nothing is changed before `prepared` is recorded, where the task asks for that;
//! - `finished` is sent when none of the attempt's children is left, again and again until the answer is final;
//! - a report whose first try failed survives the end of the process when there is a data folder (see `spool`).

mod attempt;
mod book;
mod clock;
mod micro;
mod outcome;
mod reporting;
mod session;
mod voice;

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_bus::{
    Bus, BusError, Subscription,
    message::{LogLine, Order},
    subject::{Subjects, is_token},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{book::Book, clock::Clock, voice::Mouth};
use crate::{
    catalogue::Catalogue,
    guard::Guard,
    lock::{Lock, LockError},
    spool::{Slip, Spool, Spooled},
};

/// How long reports may take at the end of the process before they are left to the spool; longer than one try.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// How many log lines may wait; more are lost.
const LOG_LINES: usize = 1024;

/// Who a worker is.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Whose agents; a token.
    pub namespace: String,
    /// Its name, unique in the namespace; a token.
    pub agent: String,
    /// What steps ask for.
    pub role: String,
    /// What steps may ask for besides.
    pub labels: BTreeMap<String, String>,
    /// Where it works; the agent's name when absent.
    pub host: Option<String>,
    /// How many attempts at once; at least 1.
    pub slots: u32,
    /// Where its lock and its spool are. Without one it can't prove that an earlier process is dead.
    pub data_dir: Option<PathBuf>,
    /// For people: name and version of the program.
    pub software: String,
}

/// An agent that is ready to run.
pub struct Worker {
    config: WorkerConfig,
    catalogue: Catalogue,
    bus: Arc<dyn Bus>,
    guard: Guard,
    secrets: BTreeMap<String, String>,
}

/// Why a worker could not go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// What it was told to be.
    #[error("{what} {value:?} is not a name; use 1 to 63 of a-z, 0-9, _ and -")]
    Name {
        /// Of what.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// The data folder.
    #[error("the agent's data folder can't be used")]
    Lock(#[from] LockError),
    /// The spool.
    #[error("the spool in {folder} can't be read")]
    Spool {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The coordinator does not want it.
    #[error("the coordinator refused agent {agent}: {why}")]
    Refused {
        /// Which agent.
        agent: String,
        /// Why, and what to do.
        why: String,
    },
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

impl Worker {
    /// A worker that can do what `catalogue` holds, for whom it may concern on `bus`.
    pub fn new(config: WorkerConfig, catalogue: Catalogue, bus: Arc<dyn Bus>) -> Self {
        Self { config, catalogue, bus, guard: Guard::this_binary(), secrets: BTreeMap::new() }
    }

    /// Start programs through another guard than this binary.
    #[must_use]
    pub fn with_guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// Secrets by name. Actions see those that their task names; their values are cut out of whatever leaves the agent.
    #[must_use]
    pub fn with_secrets(mut self, secrets: BTreeMap<String, String>) -> Self {
        self.secrets = secrets;
        self
    }

    /// Work until `shutdown` (or the coordinator) says to stop: then take nothing new, finish what is at work, hand over
    /// the reports, and end. What can't be handed over soon is in the spool.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let (shared, left, logs) = Shared::open(self)?;
        let Some(tasks) = shared.subscribe(&shutdown).await? else { return Ok(()) };
        let mut duties = JoinSet::new();
        let beats = duties.spawn(session::keep(shared.clone()));
        duties.spawn(attempt::serve(shared.clone(), tasks));
        duties.spawn(voice::tell(shared.clone()));
        duties.spawn(micro::answer(shared.clone()));
        duties.spawn(voice::publish_logs(shared.clone(), logs));
        for (slip, spooled) in left {
            shared.attempts.spawn(reporting::deliver_again(shared.clone(), slip, spooled));
        }
        tokio::select! {
            ended = duties.join_next() => return ended_early(ended),
            () = shutdown.cancelled() => shared.drain("it was told to stop"),
            () = shared.draining.cancelled() => {}
        }
        tokio::select! {
            ended = duties.join_next() => return ended_early(ended),
            () = shared.idle() => {}
        }
        shared.closing.cancel();
        shared.attempts.close();
        if tokio::time::timeout(CLOSE_WITHIN, shared.attempts.wait()).await.is_err() {
            tracing::warn!("some reports were not handed over in time");
        }
        shared.owes_nothing().await;
        // Nothing else ends now. A beat after the goodbye would take it back.
        beats.abort();
        let _ = duties.join_next().await;
        session::say_goodbye(&shared).await;
        // What was sent before the goodbye was heard is here by now, and is told that it will not be started.
        shared.ended.cancel();
        let _ = duties.join_next().await;
        session::hand_over(&shared).await;
        tracing::info!(agent = shared.config.agent, "the agent has ended");
        Ok(())
    }
}

/// No duty ends as long as the worker lives, but for an error.
fn ended_early(ended: Option<Result<Result<(), WorkerError>, tokio::task::JoinError>>) -> Result<(), WorkerError> {
    match ended {
        Some(Ok(Err(error))) => Err(error),
        Some(Ok(Ok(()))) | None => Err(WorkerError::Closed),
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What the worker's tasks share.
struct Shared {
    config: WorkerConfig,
    instance: String,
    subjects: Subjects,
    catalogue: Catalogue,
    bus: Arc<dyn Bus>,
    guard: Guard,
    lock: Option<Lock>,
    spool: Option<Arc<Spool>>,
    clock: Clock,
    book: Mutex<Book>,
    mouth: Arc<Mouth>,
    /// Counts registrations; whoever waits to try again does so at the next one.
    registered: watch::Sender<u64>,
    /// Nothing new is taken.
    draining: CancellationToken,
    /// The process ends; reports that can't be handed over go to the spool.
    closing: CancellationToken,
    /// The last word is said: tasks are answered that are here already, and no more.
    ended: CancellationToken,
    /// Told when an attempt's work ends while draining, and when a task is answered that is not started.
    quiet: Notify,
    /// Attempts at work or waiting for their report to be taken.
    attempts: TaskTracker,
    lost_lines: AtomicU64,
}

type Left = Vec<(Slip, Spooled)>;

impl Shared {
    fn open(worker: Worker) -> Result<(Arc<Self>, Left, mpsc::Receiver<LogLine>), WorkerError> {
        let Worker { config, catalogue, bus, guard, secrets } = worker;
        let names =
            [("the namespace", &config.namespace), ("the agent's name", &config.agent), ("the role", &config.role)];
        for (what, value) in names {
            if !is_token(value) {
                return Err(WorkerError::Name { what, value: value.clone() });
            }
        }
        let instance = uuid::Uuid::now_v7().to_string();
        let (mut lock, mut spool, mut left) = (None, None, Vec::new());
        if let Some(folder) = &config.data_dir {
            lock = Some(Lock::take(folder, &instance)?);
            let folder = folder.join("spool");
            let (opened, spooled) = Spool::open(&folder).map_err(|source| WorkerError::Spool { folder, source })?;
            (spool, left) = (Some(Arc::new(opened)), spooled);
        }
        let (logs, lines) = mpsc::channel(LOG_LINES);
        let leftover = left.iter().map(|(_, spooled)| spooled.report.key.clone()).collect();
        let slots = usize::try_from(config.slots.max(1)).unwrap_or(usize::MAX);
        let shared = Self {
            subjects: Subjects::new(&config.namespace),
            book: Mutex::new(Book::new(slots, leftover)),
            mouth: Arc::new(Mouth::new(instance.clone(), secrets, logs)),
            registered: watch::Sender::new(0),
            clock: Clock::new(),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
            quiet: Notify::new(),
            attempts: TaskTracker::new(),
            lost_lines: AtomicU64::new(0),
            config,
            instance,
            catalogue,
            bus,
            guard,
            lock,
            spool,
        };
        Ok((Arc::new(shared), left, lines))
    }

    /// To the task subject; before the registration, so that no task is missed.
    async fn subscribe(&self, shutdown: &CancellationToken) -> Result<Option<Subscription>, WorkerError> {
        let subject = self.subjects.task(&self.config.agent, &self.instance);
        let subscribe = async {
            loop {
                match self.bus.subscribe(&subject).await {
                    Ok(tasks) => return Ok(tasks),
                    Err(BusError::BadSubject(value)) => {
                        return Err(WorkerError::Name { what: "the task subject", value });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "can't subscribe yet");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        };
        tokio::select! {
            tasks = subscribe => tasks.map(Some),
            () = shutdown.cancelled() => Ok(None),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drain(&self, why: &str) {
        if !self.draining.is_cancelled() {
            tracing::info!(why, "taking nothing new");
            self.book().drain();
            self.draining.cancel();
        }
    }

    /// Wait until nothing is at work; only while draining.
    async fn idle(&self) {
        loop {
            let quiet = self.quiet.notified();
            if self.book().is_idle() {
                return;
            }
            quiet.await;
        }
    }

    /// Wait until the coordinator knows of every task that was not started, for as long as it may still ask.
    async fn owes_nothing(&self) {
        loop {
            let quiet = self.quiet.notified();
            let Some(until) = self.book().owes_until() else { return };
            // At the end of the time there is nothing to wait for.
            let _ = tokio::time::timeout_at(until, quiet).await;
        }
    }

    fn obey(&self, orders: &[Order]) {
        for order in orders {
            match order {
                Order::Cancel { key } => {
                    let live = self.book().find(key);
                    if let Some(live) = live {
                        live.cancel();
                    }
                }
                Order::Drain => self.drain("the coordinator said so"),
            }
        }
    }

    fn count_lost_line(&self) {
        let lost = self.lost_lines.fetch_add(1, Ordering::Relaxed) + 1;
        if lost.is_power_of_two() {
            tracing::debug!(lost, "log lines were not sent");
        }
    }
}
