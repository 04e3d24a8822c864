//! Appends on their way to the committer. Handing one over never waits.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::commit::Request;

#[derive(Default)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    bell: Condvar,
}

#[derive(Default)]
struct Inner {
    waiting: Vec<Request>,
    bytes: usize,
    /// Nothing more is taken; what is here is still answered.
    closed: bool,
    /// The committer waits for the bell; ringing costs a system call, so it is only done then.
    asleep: bool,
}

impl Queue {
    /// Hands an append over, unless so much waits already that more would only fill the memory.
    pub(crate) fn push(&self, request: Request, limit: usize) -> Result<(), (Request, &'static str)> {
        let mut inner = self.lock();
        if inner.closed {
            return Err((request, "it has been closed, or the log has ended"));
        }
        if inner.bytes + request.bytes > limit && !inner.waiting.is_empty() {
            return Err((request, "too many appends wait for the disk; try again"));
        }
        inner.bytes += request.bytes;
        inner.waiting.push(request);
        let wake = std::mem::take(&mut inner.asleep);
        drop(inner);
        if wake {
            self.bell.notify_one();
        }
        Ok(())
    }

    /// Waits for appends and takes all of them. `false`: it is closed, and there are none.
    pub(crate) fn take(&self, into: &mut Vec<Request>) -> bool {
        let mut inner = self.lock();
        while inner.waiting.is_empty() {
            if inner.closed {
                return false;
            }
            inner.asleep = true;
            inner = self.bell.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.bytes = 0;
        std::mem::swap(&mut inner.waiting, into);
        true
    }

    /// Takes what has come since, without waiting.
    pub(crate) fn take_more(&self, into: &mut Vec<Request>) {
        let mut inner = self.lock();
        inner.bytes = 0;
        into.append(&mut inner.waiting);
    }

    /// Takes nothing more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.bell.notify_one();
    }

    /// Takes nothing more, and gives back what waits.
    pub(crate) fn end(&self, into: &mut Vec<Request>) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.bytes = 0;
        std::mem::swap(&mut inner.waiting, into);
    }

    /// Waits a while; `true`: it was closed.
    pub(crate) fn closed_within(&self, time: Duration) -> bool {
        let inner = self.lock();
        let wait = self.bell.wait_timeout_while(inner, time, |inner| !inner.closed);
        wait.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
