//! One task over the wake-ups of all runs. What is due is poked; the run itself decides whether anything is to be done.
//!
//! A run that moves its wake-up to a later moment does not tell: it is poked at the old one and then says the new one. So
//! the hot path, whose steps end long before their timeouts, touches the table only at a run's start and end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::{clock::Clock, entry::RunEntry};

/// The wake-ups of all runs. A run has at most one.
#[derive(Default)]
pub(super) struct Timers {
    due: Mutex<BTreeMap<(Timestamp, u64), Arc<RunEntry>>>,
    earlier: Notify,
}

impl Timers {
    /// Poke the run at a moment, instead of at the one that [`RunEntry`] was registered for.
    pub(super) fn set(&self, entry: &Arc<RunEntry>, old: Option<Timestamp>, new: Option<Timestamp>) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = old {
            due.remove(&(at, entry.key));
        }
        let Some(at) = new else { return };
        let is_first = due.first_key_value().is_none_or(|((first, _), _)| at < *first);
        due.insert((at, entry.key), Arc::clone(entry));
        drop(due);
        if is_first {
            self.earlier.notify_one();
        }
    }

    /// Poke runs whose moment has come, for ever.
    pub(super) async fn run(&self, clock: &Clock) {
        loop {
            let next = self.poke_due(clock.now());
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

    fn poke_due(&self, now: Timestamp) -> Option<Timestamp> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = due.first_entry() {
            if first.key().0 > now {
                return Some(first.key().0);
            }
            let entry = first.remove();
            entry.timer_fired();
        }
        None
    }
}
