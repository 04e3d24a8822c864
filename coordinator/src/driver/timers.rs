//! One task over the wake-ups of all runs. What is due is poked; the run itself decides whether anything is to be done.
//!
//! A run that moves its wake-up to a later moment does not tell: it is poked at the old one and then says the new one. So
//! the hot path, whose steps end long before their timeouts, touches the table only at a run's start and end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use muster_engine::ids::RunId;
use tokio::sync::{Notify, mpsc};

use super::{clock::Clock, entry::RunEntry, runs::Passive};

/// The wake-ups of all runs. A run has at most one.
#[derive(Default)]
pub(super) struct Timers {
    due: Mutex<BTreeMap<(Timestamp, u64), Sleeper>>,
    earlier: Notify,
}

/// Who is to be woken.
enum Sleeper {
    InMemory(Arc<RunEntry>),
    Passive(RunId),
}

impl Timers {
    /// Poke the run at a moment, instead of at the one that [`RunEntry`] was registered for.
    pub(super) fn set(&self, entry: &Arc<RunEntry>, old: Option<Timestamp>, new: Option<Timestamp>) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = old {
            due.remove(&(at, entry.key));
        }
        drop(due);
        if let Some(at) = new {
            self.insert(at, entry.key, Sleeper::InMemory(Arc::clone(entry)));
        }
    }

    /// Name the run at that moment to whoever fetches it.
    pub(super) fn set_passive(&self, id: RunId, passive: Passive) {
        self.insert(passive.rest.until, passive.key, Sleeper::Passive(id));
    }

    /// The run is in memory, or over.
    pub(super) fn unset_passive(&self, passive: Passive) {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).remove(&(passive.rest.until, passive.key));
    }

    fn insert(&self, at: Timestamp, key: u64, sleeper: Sleeper) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = due.first_key_value().is_none_or(|((first, _), _)| at < *first);
        due.insert((at, key), sleeper);
        drop(due);
        if is_first {
            self.earlier.notify_one();
        }
    }

    /// Poke runs whose moment has come, and hand over those that are not in memory, for ever.
    pub(super) async fn run(&self, clock: &Clock, fetch: &mpsc::UnboundedSender<RunId>) {
        loop {
            let next = self.poke_due(clock.now(), fetch);
            let earlier = self.earlier.notified();
            match next {
                None => earlier.await,
                Some(at) => {
                    tokio::select! {
                        () = earlier => {}
                        () = tokio::time::sleep_until(clock.instant_of(at)) => {}
                    }
                }
            }
        }
    }

    fn poke_due(&self, now: Timestamp, fetch: &mpsc::UnboundedSender<RunId>) -> Option<Timestamp> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = due.first_entry() {
            if first.key().0 > now {
                return Some(first.key().0);
            }
            match first.remove() {
                Sleeper::InMemory(entry) => entry.timer_fired(),
                // Nobody fetches only when the coordinator stops.
                Sleeper::Passive(id) => drop(fetch.send(id)),
            }
        }
        None
    }
}
