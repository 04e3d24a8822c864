//! The runs in memory, and what is kept of agents' talk about them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use muster_engine::{
    ids::{RunId, StepId},
    run::Rest,
};

use tokio::sync::mpsc;

use super::{
    clock::after_ms,
    entry::{Message, RunEntry},
};

/// So many ended runs stay in memory for late reports and questions; the rest is read from the journal.
const ENDED_KEPT: usize = 256;

/// The runs in memory, by id, and those that are passive and are not.
#[derive(Default)]
pub(super) struct Runs {
    next_key: AtomicU64,
    table: RwLock<Table>,
    ended: Mutex<VecDeque<Arc<RunEntry>>>,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<RunId, Arc<RunEntry>>,
    passive: HashMap<RunId, Passive>,
}

/// A run that waits for nothing but time and people. It is read from the journal when it is wanted.
#[derive(Clone, Copy)]
pub(super) struct Passive {
    /// Of its wake-up.
    pub(super) key: u64,
    /// When it has to be looked at, and what it goes by.
    pub(super) rest: Rest,
}

/// What became of a run that came into memory.
pub(super) enum Arrival {
    /// It is there; if it was passive, its wake-up is to be taken back.
    In(Option<Passive>),
    /// Another one is there already.
    There(Arc<RunEntry>),
    /// It is not the run's latest state.
    Stale,
}

impl Runs {
    /// A key that no other run in this process has.
    pub(super) fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &RunId) -> Option<Arc<RunEntry>> {
        self.read().by_id.get(id).cloned()
    }

    /// Unless another one is there already, or this one is not the latest: a run that is not here does not change while it is
    /// asked whether it `is_latest`.
    pub(super) fn insert(&self, entry: &Arc<RunEntry>, is_latest: impl FnOnce() -> bool) -> Arrival {
        let mut table = self.write();
        if let Some(there) = table.by_id.get(&entry.id) {
            return Arrival::There(Arc::clone(there));
        }
        if !is_latest() {
            return Arrival::Stale;
        }
        table.by_id.insert(entry.id.clone(), Arc::clone(entry));
        Arrival::In(table.passive.remove(&entry.id))
    }

    pub(super) fn remove(&self, entry: &RunEntry) {
        let mut table = self.write();
        if table.by_id.get(&entry.id).is_some_and(|there| there.key == entry.key) {
            table.by_id.remove(&entry.id);
        }
    }

    /// The run is passive, and not in memory.
    pub(super) fn sleeps(&self, id: RunId, rest: Rest) -> Passive {
        let passive = Passive { key: self.next_key(), rest };
        self.write().passive.insert(id, passive);
        passive
    }

    /// A passive run leaves memory, unless something was said to it meanwhile. What is said to it from now on is given back.
    pub(super) fn departs(&self, entry: &RunEntry, inbox: &mut mpsc::Receiver<Message>, rest: Rest) -> Option<Passive> {
        let mut table = self.write();
        if !inbox.is_empty() || table.by_id.get(&entry.id).is_none_or(|there| there.key != entry.key) {
            return None;
        }
        inbox.close();
        table.by_id.remove(&entry.id);
        let passive = Passive { key: self.next_key(), rest };
        table.passive.insert(entry.id.clone(), passive);
        Some(passive)
    }

    /// Whether the run is passive, and not in memory.
    pub(super) fn is_passive(&self, id: &RunId) -> bool {
        self.read().passive.contains_key(id)
    }

    /// How the run is passive, if it is and is not in memory.
    pub(super) fn rest_of(&self, id: &RunId) -> Option<Rest> {
        self.read().passive.get(id).map(|passive| passive.rest)
    }

    /// Those that are passive, and rest like this.
    pub(super) fn resting(&self, so: impl Fn(&Rest) -> bool) -> Vec<RunId> {
        self.read().passive.iter().filter(|(_, passive)| so(&passive.rest)).map(|(id, _)| id.clone()).collect()
    }

    /// How many are passive.
    pub(super) fn passive(&self) -> usize {
        self.read().passive.len()
    }

    /// A run has ended; the one that ended longest ago leaves memory.
    pub(super) fn ended(&self, entry: &Arc<RunEntry>) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.push_back(Arc::clone(entry));
        let oldest = if ended.len() > ENDED_KEPT { ended.pop_front() } else { None };
        drop(ended);
        if let Some(oldest) = oldest {
            oldest.retire();
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<RunEntry>> {
        self.read().by_id.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.read().by_id.len()
    }
}

/// Which statuses are worth a record: what says something new, at most once per attempt and interval.
pub(super) struct Statuses {
    interval_ms: u64,
    last: Mutex<HashMap<(u64, StepId), (u32, Timestamp)>>,
}

impl Statuses {
    pub(super) fn new(interval_ms: u64) -> Self {
        Self { interval_ms, last: Mutex::default() }
    }

    /// Whether this one is, and if so it is the last one for a while. The run itself drops what it knows already.
    pub(super) fn is_due(&self, run: &RunEntry, step: &StepId, attempt: u32, now: Timestamp) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() > 4_096 {
            last.retain(|_, (_, at)| after_ms(*at, self.interval_ms) > now);
        }
        let key = (run.key, step.clone());
        match last.get(&key) {
            Some((known, at)) if *known == attempt && after_ms(*at, self.interval_ms) > now => false,
            Some(_) | None => {
                last.insert(key, (attempt, now));
                true
            }
        }
    }
}
