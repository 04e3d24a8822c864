//! Streams of what happens, for people: bounded, and cut off with an error when they are not read.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::sync::mpsc;

use super::errors::error;
use crate::control::{ControlError, ControlErrorKind, RunChange};

/// How many events wait for a watcher at most.
const BACKLOG: usize = 1_024;

/// The run's end of a watch.
pub(super) struct Watcher {
    events: mpsc::Sender<RunChange>,
    last_word: Arc<OnceLock<ControlError>>,
}

/// The reader's end of a watch: events, and at most one error, the last item.
pub(super) struct Watched {
    events: mpsc::Receiver<RunChange>,
    last_word: Option<Arc<OnceLock<ControlError>>>,
}

/// Both ends.
pub(super) fn channel() -> (Watcher, Watched) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let last_word = Arc::new(OnceLock::new());
    (
        Watcher { events: sender, last_word: Arc::clone(&last_word) },
        Watched { events: receiver, last_word: Some(last_word) },
    )
}

impl Watcher {
    /// Hand over an event; false: the watch is over.
    pub(super) fn send(&self, change: RunChange) -> bool {
        match self.events.try_send(change) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let _ = self.last_word.set(too_slow());
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Nobody reads it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// The watch is over before the run is, and this is why.
    pub(super) fn end(self, why: ControlError) {
        let _ = self.last_word.set(why);
    }
}

impl Stream for Watched {
    type Item = Result<RunChange, ControlError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context).map(|event| match event {
            Some(event) => Some(Ok(event)),
            None => self.last_word.take().and_then(|word| word.get().cloned()).map(Err),
        })
    }
}

/// Of a watcher that does not read what it asked for.
pub(super) fn too_slow() -> ControlError {
    let message = format!("more than {BACKLOG} events were waiting to be read");
    let hint = "watch again from the last sequence number that was read";
    error(ControlErrorKind::ResourceExhausted, "WATCH_TOO_SLOW", message, hint)
}
