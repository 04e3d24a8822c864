//! Writes what lists and look-ups need to the store, behind the log and off the hot path.
//!
//! What changed is noted when it is on disk, the latest state only; so a busy run costs one row per flush, not one per event.
//! A flush writes with the position at which the log stood when it began, after every append up to there has noted its
//! changes: what the store says at a position is never less than what the log says there. Flushing takes a tenth of the time at
//! most: the busier the disk, the rarer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_engine::{
    ids::{AgentName, Namespace},
    run::Run,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::error;

use super::{Shared, entry::RunEntry, recovery, rows};
use crate::store::{AgentRow, PlaybookRow, StoreError, StoreWrite};

/// Between two flushes, at least, unless somebody waits for one.
const REST: Duration = Duration::from_millis(250);

/// How long a reader waits for a flush before it takes what is there.
const WAIT: Duration = Duration::from_secs(1);

/// How long the last flush waits for the appends that are under way.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Projector {
    dirty: Mutex<Dirty>,
    drained: Notify,
    wanted: Notify,
    hurry: Notify,
    flushed: watch::Sender<u64>,
}

#[derive(Default)]
struct Dirty {
    /// Counts flushes that have begun.
    epoch: u64,
    /// Appends under way that began in an even or odd epoch.
    in_flight: [usize; 2],
    runs: HashMap<u64, (Arc<RunEntry>, Arc<Run>)>,
    agents: BTreeSet<(Namespace, AgentName)>,
    playbooks: Vec<PlaybookRow>,
}

/// An append under way; to be dropped when its changes are noted.
pub(super) struct Ticket<'a> {
    projector: &'a Projector,
    epoch: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut dirty = self.projector.lock();
        let count = &mut dirty.in_flight[(self.epoch % 2) as usize];
        *count -= 1;
        let is_last = *count == 0;
        drop(dirty);
        if is_last {
            self.projector.drained.notify_one();
        }
    }
}

impl Projector {
    pub(super) fn new() -> Self {
        Self {
            dirty: Mutex::default(),
            drained: Notify::new(),
            wanted: Notify::new(),
            hurry: Notify::new(),
            flushed: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An append begins.
    pub(super) fn begin(&self) -> Ticket<'_> {
        let mut dirty = self.lock();
        let epoch = dirty.epoch;
        dirty.in_flight[(epoch % 2) as usize] += 1;
        Ticket { projector: self, epoch }
    }

    /// What lists say of the run may have changed.
    pub(super) fn changed(&self, entry: &Arc<RunEntry>, run: &Arc<Run>) {
        let first = {
            let mut dirty = self.lock();
            dirty.runs.insert(entry.key, (Arc::clone(entry), Arc::clone(run)));
            dirty.runs.len() == 1
        };
        if first {
            self.wanted.notify_one();
        }
    }

    /// What is journalled of the agent has changed.
    pub(super) fn agent_changed(&self, namespace: &Namespace, name: &AgentName) {
        self.lock().agents.insert((namespace.clone(), name.clone()));
        self.wanted.notify_one();
    }

    /// A playbook was submitted.
    pub(super) fn submitted(&self, playbook: PlaybookRow) {
        self.lock().playbooks.push(playbook);
        self.wanted.notify_one();
    }

    /// Wait, for a moment at most, until everything noted so far is in the store.
    pub(super) async fn settled(&self) {
        let target = {
            let dirty = self.lock();
            if dirty.runs.is_empty()
                && dirty.agents.is_empty()
                && dirty.playbooks.is_empty()
                && *self.flushed.borrow() == dirty.epoch
            {
                return;
            }
            dirty.epoch + 1
        };
        let mut flushed = self.flushed.subscribe();
        self.hurry.notify_one();
        self.wanted.notify_one();
        let _ = tokio::time::timeout(WAIT, flushed.wait_for(|done| *done >= target)).await;
    }

    /// Flush whenever there is something, until the coordinator stops; then once more.
    pub(super) async fn run(&self, shared: &Arc<Shared>) {
        let mut rest = REST;
        loop {
            let stopped = tokio::select! {
                () = shared.stop.cancelled() => true,
                () = self.wanted.notified() => false,
            };
            if !stopped {
                tokio::select! {
                    () = shared.stop.cancelled() => {}
                    () = self.hurry.notified() => {}
                    () = tokio::time::sleep(rest) => {}
                }
            }
            let began = Instant::now();
            self.flush(shared, stopped).await;
            rest = REST.max(began.elapsed() * 9);
            if stopped {
                return;
            }
        }
    }

    async fn flush(&self, shared: &Arc<Shared>, stopping: bool) {
        let position = shared.journal.head().position;
        let before = {
            let mut dirty = self.lock();
            dirty.epoch += 1;
            ((dirty.epoch - 1) % 2) as usize
        };
        let under_way = |dirty: &Dirty| dirty.in_flight[before] > 0 || (stopping && dirty.in_flight != [0, 0]);
        while under_way(&self.lock()) {
            tokio::select! {
                () = self.drained.notified() => {}
                // Then the store stays behind, and the next start reads on from where it is.
                () = shared.stop.cancelled(), if !stopping => return,
                () = tokio::time::sleep(LAST_WAIT), if stopping => return,
            }
        }
        let (epoch, runs, agents, playbooks) = {
            let mut dirty = self.lock();
            let runs = std::mem::take(&mut dirty.runs);
            (dirty.epoch, runs, std::mem::take(&mut dirty.agents), std::mem::take(&mut dirty.playbooks))
        };
        let mut writes: Vec<StoreWrite> = playbooks.into_iter().map(StoreWrite::Playbook).collect();
        for (namespace, name) in agents {
            if let Some(record) = shared.registry.record(&namespace, &name)
                && let Ok(detail) = serde_json::to_value(&record)
            {
                writes.push(StoreWrite::Agent(AgentRow { namespace, name, detail }));
            }
        }
        let (store, journal) = (Arc::clone(&shared.store), Arc::clone(&shared.journal));
        let done = tokio::task::spawn_blocking(move || {
            for (entry, run) in runs.into_values() {
                let view = entry.view();
                writes.extend(rows::writes_of(&run, view.quarantine.is_some()));
            }
            let written =
                if position > store.position() { store.apply_batch(position, writes) } else { store.amend(writes) };
            match written {
                Err(StoreError::Damaged(why)) => {
                    error!("the store is damaged and is rebuilt from the log: {why}");
                    store.reset(&why)?;
                    recovery::refill(&*journal, &store)
                }
                other => other,
            }
        });
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => error!("the store can't be written; lists are behind until the next start: {e}"),
            Err(e) => error!("the store's writer failed: {e}"),
        }
        self.flushed.send_replace(epoch);
    }
}
