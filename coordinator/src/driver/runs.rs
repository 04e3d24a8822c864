//! The runs in memory, and what is kept of agents' talk about them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use muster_engine::ids::{RunId, StepId};

use super::{clock::after_ms, entry::RunEntry};

/// So many ended runs stay in memory for late reports and questions; the rest is read from the journal.
const ENDED_KEPT: usize = 256;

/// The runs in memory, by id.
#[derive(Default)]
pub(super) struct Runs {
    next_key: AtomicU64,
    by_id: RwLock<HashMap<RunId, Arc<RunEntry>>>,
    ended: Mutex<VecDeque<Arc<RunEntry>>>,
}

impl Runs {
    /// A key that no other run in this process has.
    pub(super) fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, id: &RunId) -> Option<Arc<RunEntry>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Unless another one is there already, which is given back.
    pub(super) fn insert(&self, entry: &Arc<RunEntry>) -> Result<(), Arc<RunEntry>> {
        let mut runs = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = runs.get(&entry.id) {
            return Err(Arc::clone(there));
        }
        runs.insert(entry.id.clone(), Arc::clone(entry));
        Ok(())
    }

    pub(super) fn remove(&self, entry: &RunEntry) {
        let mut runs = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        if runs.get(&entry.id).is_some_and(|there| there.key == entry.key) {
            runs.remove(&entry.id);
        }
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
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).len()
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
