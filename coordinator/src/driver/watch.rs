//! Streams of what happens, for people: bounded, and cut off with an error when they are not read.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::sync::mpsc;

use super::errors::error;
use crate::control::{ControlError, ControlErrorKind, RunEvent};

/// How many events wait for a watcher at most.
const BACKLOG: usize = 1_024;

/// The run's end of a watch.
pub(super) struct Watcher {
    events: mpsc::Sender<RunEvent>,
    too_slow: Arc<AtomicBool>,
}

/// The reader's end of a watch: events, and at most one error, the last item.
pub(super) struct Watched {
    events: mpsc::Receiver<RunEvent>,
    too_slow: Arc<AtomicBool>,
}

/// Both ends.
pub(super) fn channel() -> (Watcher, Watched) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let too_slow = Arc::new(AtomicBool::new(false));
    (Watcher { events: sender, too_slow: Arc::clone(&too_slow) }, Watched { events: receiver, too_slow })
}

impl Watcher {
    /// Hand over an event; false: the watch is over.
    pub(super) fn send(&self, event: RunEvent) -> bool {
        match self.events.try_send(event) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.too_slow.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

impl Stream for Watched {
    type Item = Result<RunEvent, ControlError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context).map(|event| match event {
            Some(event) => Some(Ok(event)),
            None if self.too_slow.swap(false, Ordering::AcqRel) => Some(Err(too_slow())),
            None => None,
        })
    }
}

/// Of a watcher that does not read what it asked for.
pub(super) fn too_slow() -> ControlError {
    let message = format!("more than {BACKLOG} events were waiting to be read");
    let hint = "watch again from the last sequence number that was read";
    error(ControlErrorKind::ResourceExhausted, "WATCH_TOO_SLOW", message, hint)
}
