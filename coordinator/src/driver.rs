//! Drives runs: one task owns one run; what it decides is on disk before anything of it leaves the process.
//!
//! ```text
//! bus ─► intake ─► mailbox ─► run task: decide on a scratch copy, place, append once, wait for the sync
//!                                └─► act: answers, tasks to agents, watchers, timers, projection
//! ```
//!
//! Effects are derived from state, so that after a crash the same effects are derived again: [`Coordinator::open`] replays,
//! and every run does what is outstanding.

mod alone;
mod clock;
mod control;
mod convert;
mod dispatch;
mod drain;
mod effects;
pub(crate) mod entry;
mod errors;
mod explain;
mod figures;
mod history;
mod intake;
mod leave;
mod listed;
mod logs;
mod new_life;
mod outage;
mod passive;
mod playbooks;
mod post;
mod projector;
mod quarantine;
mod recovery;
mod report;
mod requests;
mod retention;
mod rows;
mod run_task;
mod runs;
mod seats;
mod signal;
mod stall;
mod start;
mod timers;
mod turn;
mod watch;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_bus::{Bus, BusError, message::ActionOffer};
use muster_engine::{
    ids::{Actor, AgentName, Namespace, RunId},
    run::Run,
};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

pub use self::{alone::answer_alone, clock::Clock, new_life::NewLifeError, retention::Retention};
use self::{
    drain::Drain,
    entry::{Message, RunEntry},
    figures::Figures,
    intake::{Intake, Unreadable},
    outage::Outage,
    passive::Adopted,
    playbooks::Planning,
    post::Post,
    projector::Projector,
    quarantine::Quarantine,
    requests::Request,
    runs::{Runs, Statuses},
    timers::Timers,
};
use crate::{
    control::{ControlError, MilestoneView},
    events::{self, Events},
    journal::{AppendError, Journal, NewRecord, StreamAppend, StreamId},
    logs::Logs,
    metrics::AGENTS_LOST,
    registry::{Leases, Registry},
    store::{Store, StoreError},
};

/// Between two looks at leases and at the clock.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How often a stop tells everything that is under way, and how long it waits each time.
const STOP_TRIES: u32 = 40;
const STOP_TRY: Duration = Duration::from_millis(500);

/// Registrations, and reports to runs that are not in memory, that are worked on at once.
const SLOW_INTAKE: usize = 256;

/// Signals of outsiders that are worked on at once: they do not take the room of agents.
const SIGNAL_INTAKE: usize = 64;

/// Who does what nobody asked for.
const OURS: &str = "muster";

/// Milestone changes that wait for a watcher at most.
const MILESTONE_BACKLOG: usize = 1_024;

/// How often things happen, in milliseconds. The defaults are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// Agents send a beat this often.
    pub beat_every_ms: u64,
    /// Without a beat for this long nothing new is given to an instance.
    pub suspect_after_ms: u64,
    /// Without a beat for this long an instance is lost.
    pub lost_after_ms: u64,
    /// Agents send a status this often while at work.
    pub status_every_ms: u64,
    /// At most one status per attempt is journalled in this time.
    pub status_record_ms: u64,
    /// A task is sent no later than this after its assignment.
    pub dispatch_within_ms: u64,
    /// An agent refuses a copy of a task that is older than this.
    pub start_within_ms: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            beat_every_ms: 5_000,
            suspect_after_ms: 15_000,
            lost_after_ms: 30_000,
            status_every_ms: 180_000,
            status_record_ms: 10_000,
            dispatch_within_ms: 30_000,
            start_within_ms: 5_000,
        }
    }
}

/// What a coordinator is made of.
pub struct Config {
    /// The truth.
    pub journal: Arc<dyn Journal>,
    /// Its projection, opened for the same cluster; a fresh one is filled from the journal.
    pub store: Arc<Store>,
    /// How agents are reached.
    pub bus: Arc<dyn Bus>,
    /// The data directory's id; messages of another one are ignored.
    pub cluster: String,
    /// The log lost records before its present life began, and a person has accepted that: runs that were open then wait for
    /// one.
    pub after_loss: bool,
    /// Raised when the work changes owner.
    pub term: u64,
    /// Actions that plans may name though no agent offers them yet.
    pub shipped: Vec<ActionOffer>,
    /// How often things happen.
    pub intervals: Intervals,
    /// What says `now`.
    pub clock: Clock,
    /// Where lines of attempts are kept; none: nowhere.
    pub logs: Option<Logs>,
    /// Where events for outsiders go; none: nowhere.
    pub events: Option<Events>,
    /// How long the journal keeps what has ended; none: for ever.
    pub retention: Option<Retention>,
}

impl Config {
    /// With the protocol's intervals, the system's clock, term 1, no shipped actions, no logs and no events; keeps everything.
    pub fn new(journal: Arc<dyn Journal>, store: Arc<Store>, bus: Arc<dyn Bus>, cluster: impl Into<String>) -> Self {
        Self {
            journal,
            store,
            bus,
            cluster: cluster.into(),
            after_loss: false,
            term: 1,
            shipped: Vec::new(),
            intervals: Intervals::default(),
            clock: Clock::default(),
            logs: None,
            events: None,
            retention: None,
        }
    }
}

/// Why a coordinator can't serve.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The projection can't be brought up to the log's end.
    #[error("the store can't be filled from the journal")]
    Store(#[from] StoreError),
    /// Records are lost, and open runs can't be paused.
    #[error("runs that were open when records were lost can't be paused")]
    NewLife(#[from] NewLifeError),
    /// Agents can't be heard.
    #[error("the bus takes no subscriptions")]
    Bus(#[from] BusError),
    /// Two would give the same agents orders.
    #[error("another coordinator answers on this bus: stop it, or give this one a bus of its own")]
    AnotherAnswers,
}

/// A coordinator at work; cheap to clone. It implements [`crate::control::Control`].
#[derive(Clone)]
pub struct Coordinator {
    shared: Arc<Shared>,
}

impl Coordinator {
    /// Replay the journal, bring the store up to its end, take up every run that has not ended, and serve.
    ///
    /// # Errors
    /// See [`OpenError`]. Damaged records are no error: the runs they belong to are put in quarantine.
    pub async fn open(mut config: Config) -> Result<Self, OpenError> {
        answer_alone(&*config.bus).await?;
        let mut recovered = recover(&config, config.after_loss).await?;
        if let Some(last) = recovered.last_at {
            config.clock.not_before(last);
        }
        if config.after_loss {
            let (journal, ours) = (&*config.journal, Actor::from(OURS));
            if new_life::begin(journal, &config.cluster, &recovered, &config.clock, &ours).await? {
                recovered = recover(&config, false).await?;
            }
        }
        let (events, retention) = (config.events.take(), config.retention);
        let shared = Arc::new(Shared::new(config));
        let intake = Intake::open(&*shared.bus, &shared.post).await?;
        let now = shared.clock.now();
        for ((namespace, name), record) in recovered.agents {
            shared.registry.restore(namespace, name, record, now);
        }
        info!(
            open = recovered.runs.len(),
            passive = recovered.passive.len(),
            quarantined = recovered.quarantined.len(),
            "runs recovered"
        );
        for run in recovered.runs {
            if let Adopted::New(entry) = shared.adopt(run, || true) {
                shared.tell(entry, Message::RestartClocks);
            }
        }
        for (id, rest) in recovered.passive {
            shared.sleeps(id, rest);
        }
        for (id, why, run) in recovered.quarantined {
            shared.keep_quarantined(id, &why, run);
        }
        intake.serve(&shared);
        shared.serve();
        if let Some(retention) = retention {
            shared.tasks.spawn(Arc::clone(&shared).keep_to(retention));
        }
        if let Some(events) = events {
            shared.tasks.spawn(events::follow(events, shared.source_of_events()));
        }
        Ok(Self { shared })
    }

    /// Stop: nothing new is taken, what is appended is answered, the store follows up to the end. Runs stay open in the
    /// journal, and go on when it is opened again.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        for _ in 0..STOP_TRIES {
            // A run that came up meanwhile has to hear it too.
            for entry in self.shared.runs.all() {
                entry.look_again();
            }
            if tokio::time::timeout(STOP_TRY, self.shared.tasks.wait()).await.is_ok() {
                self.shared.logs_settled().await;
                return;
            }
        }
        error!("not everything has come to rest; what is not on disk was not answered either");
    }

    /// How many runs are in memory; those that wait for nothing but time and people are not.
    pub fn runs_in_memory(&self) -> usize {
        self.shared.runs.len()
    }

    /// The data directory's id.
    pub fn cluster(&self) -> &str {
        &self.shared.cluster
    }
}

async fn recover(config: &Config, all: bool) -> Result<recovery::Recovered, StoreError> {
    let (journal, store) = (Arc::clone(&config.journal), Arc::clone(&config.store));
    tokio::task::spawn_blocking(move || recovery::recover_or_rebuild(&*journal, &store, all))
        .await
        .map_err(|e| StoreError::Io(format!("the recovery did not end: {e}")))?
}

/// What all parts of a coordinator share.
pub(crate) struct Shared {
    pub(crate) journal: Arc<dyn Journal>,
    store: Arc<Store>,
    bus: Arc<dyn Bus>,
    cluster: String,
    term: u64,
    shipped: Vec<ActionOffer>,
    intervals: Intervals,
    clock: Clock,
    logs: Option<Logs>,
    /// Who does what nobody asked for.
    ours: Actor,
    registry: Registry,
    timers: Timers,
    runs: Runs,
    statuses: Statuses,
    projector: Projector,
    /// Held while the store is filled from the journal, or while records of the journal go.
    filling: Mutex<()>,
    quarantine: Quarantine,
    outage: Outage,
    drain: Drain,
    post: Post,
    planning: Planning,
    milestones: broadcast::Sender<(Namespace, MilestoneView)>,
    figures: Figures,
    unreadable: Unreadable,
    /// What has to be looked up or journalled for an agent's message, at once; the rest is asked to come again.
    slow_intake: Arc<Semaphore>,
    /// The same for signals.
    signal_intake: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Shared {
    fn new(config: Config) -> Self {
        let leases = Leases {
            suspect_after_ms: config.intervals.suspect_after_ms,
            lost_after_ms: config.intervals.lost_after_ms,
        };
        Self {
            journal: config.journal,
            store: config.store,
            post: Post::new(&*config.bus),
            bus: config.bus,
            cluster: config.cluster,
            term: config.term,
            shipped: config.shipped,
            statuses: Statuses::new(config.intervals.status_record_ms),
            intervals: config.intervals,
            clock: config.clock,
            logs: config.logs,
            ours: OURS.into(),
            registry: Registry::new(leases),
            timers: Timers::default(),
            runs: Runs::default(),
            projector: Projector::new(),
            filling: Mutex::default(),
            quarantine: Quarantine::default(),
            outage: Outage::default(),
            drain: Drain::default(),
            planning: Planning::default(),
            milestones: broadcast::Sender::new(MILESTONE_BACKLOG),
            figures: Figures::new(),
            unreadable: Unreadable::default(),
            slow_intake: Arc::new(Semaphore::new(SLOW_INTAKE)),
            signal_intake: Arc::new(Semaphore::new(SIGNAL_INTAKE)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    fn serve(self: &Arc<Self>) {
        let (fetch, due) = mpsc::unbounded_channel();
        // The clock may have been set while nobody was here.
        self.wake_misled(&fetch);
        let (shared, timers_fetch) = (Arc::clone(self), fetch.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = shared.timers.run(&shared.clock, &timers_fetch) => {}
            }
        });
        self.tasks.spawn(Arc::clone(self).fetch(due));
        self.tasks.spawn(Arc::clone(self).carry());
        let shared = Arc::clone(self);
        self.tasks.spawn(async move { shared.projector.run(&shared).await });
        let shared = Arc::clone(self);
        self.tasks.spawn(async move { shared.sweep(&fetch).await });
    }

    fn source_of_events(self: &Arc<Self>) -> events::Source {
        let shared = Arc::clone(self);
        events::Source {
            journal: Arc::clone(&self.journal),
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            cluster: self.cluster.clone(),
            namespace_of: Box::new(move |run| shared.runs.get(run).map(|entry| entry.namespace.clone())),
            stop: self.stop.clone(),
        }
    }

    /// Watch leases and the clock until the coordinator stops.
    async fn sweep(self: &Arc<Self>, fetch: &mpsc::UnboundedSender<RunId>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
            if let Some(jump_ms) = self.clock.jumped() {
                self.clock_jumped(jump_ms, fetch).await;
            }
            self.end_leavers();
            figures::measure(self);
            let now = self.clock.now();
            self.remind_of_quarantine(now);
            if !self.watch_bus(now) {
                continue;
            }
            for (instance, runs) in self.registry.sweep(now) {
                metrics::counter!(AGENTS_LOST).increment(1);
                warn!(%instance, runs = runs.len(), "an agent's lease has run out");
                for entry in runs {
                    self.tell(entry, Message::Lost { instance: instance.clone() });
                }
            }
        }
    }

    async fn clock_jumped(self: &Arc<Self>, jump_ms: i64, fetch: &mpsc::UnboundedSender<RunId>) {
        warn!(jump_ms, "the wall clock has jumped; clocks of attempts start again");
        let stream = StreamId("clock/wall".into());
        let known = self.journal.read_stream(&stream, 0, usize::MAX).map(|r| r.len() as u64).unwrap_or_default();
        let event = serde_json::json!({"type": "wall_clock_jumped", "jump_ms": jump_ms});
        if let Ok(event) = serde_json::value::to_raw_value(&event) {
            let records = vec![NewRecord { at: self.clock.now(), by: self.ours.clone(), event }];
            if let Err(e) = self.append(vec![StreamAppend { stream, expected_seq: known, records }]).await {
                warn!("the jump could not be journalled: {e}");
            }
        }
        for entry in self.runs.all() {
            self.tell(entry, Message::RestartClocks);
        }
        // After those in memory: one that leaves it meanwhile is found here.
        self.wake_misled(fetch);
    }

    /// Append, and wait for the sync. What lists say of it has to be noted while the ticket lives.
    async fn append(&self, appends: Vec<StreamAppend>) -> Result<projector::Ticket<'_>, AppendError> {
        let ticket = self.projector.begin();
        let began = std::time::Instant::now();
        let appended = self.journal.append(appends).await;
        self.figures.append_seconds.record(began.elapsed());
        match appended {
            Ok(Ok(_)) => Ok(ticket),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(AppendError::Unavailable("the journal has stopped".to_owned())),
        }
    }

    fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    fn actor_of(agent: &AgentName) -> Actor {
        format!("agent/{agent}").into()
    }

    /// Say something to a run that must not be lost, without waiting for room in its mailbox.
    fn tell(self: &Arc<Self>, entry: Arc<RunEntry>, message: Message) {
        if let Err(full) = entry.offer(message) {
            let (shared, message) = (Arc::clone(self), full.into_inner());
            self.tasks.spawn(async move { shared.deliver(&entry.namespace, &entry.id, message).await });
        }
    }

    fn tell_milestones(&self, before: &Run, run: &Run) {
        if self.milestones.receiver_count() == 0 {
            return;
        }
        for (i, (old, new)) in before.phases.iter().zip(&run.phases).enumerate() {
            if old.milestone != new.milestone
                && let Some(view) = rows::milestone_view(run, i)
            {
                let _ = self.milestones.send((run.namespace.clone(), view));
            }
        }
    }

    /// The same request again: the run that the first one started.
    fn repeated_start(&self, request: &Request) -> Result<Arc<Run>, ControlError> {
        let taken = request.taken(&self.journal).map_err(|e| errors::read_failed(&e))?;
        let id = taken.ok_or_else(errors::stopping)?.run()?;
        match self.runs.get(&id).and_then(|entry| entry.run()) {
            Some(run) => Ok(run),
            None => match recovery::rebuild(&*self.journal, &id) {
                Ok(Some(run)) => Ok(Arc::new(run)),
                Ok(None) => Err(errors::run_not_found(&id)),
                Err(broken) => Err(errors::quarantined(&id, &broken.why)),
            },
        }
    }
}
