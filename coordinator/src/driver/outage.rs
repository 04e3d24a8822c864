//! While the bus is cut off: nothing is given out, no lease and no clock of an attempt runs out, and whoever asks is told.
//!
//! Nobody can be heard then, so that silence says nothing; and what would be sent is not, so that an attempt would only burn
//! its time.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use jiff::Timestamp;
use tracing::{info, warn};

use super::{Shared, entry::Message};
use crate::metrics::BUS_CONNECTED;

/// Since when the bus is cut off, and what waits for its end.
#[derive(Default)]
pub(super) struct Outage {
    since: Mutex<Option<Timestamp>>,
    /// A run was not given what it asked for.
    held_back: AtomicBool,
}

impl Outage {
    /// Since when; none: the bus is there.
    pub(super) fn since(&self) -> Option<Timestamp> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, since: Option<Timestamp>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Shared {
    /// Whether a step can be given to an agent right now. A run that hears no is looked at again once it can.
    pub(super) fn can_give_out(&self) -> bool {
        let connected = self.bus.is_connected();
        if !connected {
            self.outage.held_back.store(true, Ordering::SeqCst);
        }
        connected
    }

    /// Look whether the bus is there; what has to be done when it has gone, and when it is back.
    pub(super) fn watch_bus(self: &Arc<Self>, now: Timestamp) -> bool {
        let connected = self.bus.is_connected();
        metrics::gauge!(BUS_CONNECTED).set(f64::from(u8::from(connected)));
        match (connected, self.outage.since()) {
            (false, since) => {
                if since.is_none() {
                    warn!("NATS is cut off: nothing is given to agents, and nobody is heard");
                    self.outage.set(Some(now));
                }
                self.registry.restart_leases(now);
            }
            (true, Some(since)) => {
                info!(%since, "NATS is back");
                self.outage.set(None);
                self.registry.restart_leases(now);
                for entry in self.runs.all() {
                    // Reports of the time that is over are still on their way.
                    self.tell(entry, Message::RestartClocks);
                }
                self.look_at_all();
            }
            (true, None) if self.outage.held_back.load(Ordering::SeqCst) => self.look_at_all(),
            (true, None) => {}
        }
        connected
    }

    /// What was held back may go on.
    pub(super) fn look_at_all(&self) {
        self.outage.held_back.store(false, Ordering::SeqCst);
        for entry in self.runs.all() {
            entry.look_again();
        }
    }
}
