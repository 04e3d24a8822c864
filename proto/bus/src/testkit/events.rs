//! A stream of events in memory that tests read, take away, cut off and let refuse.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::event::{Ack, CloudEvent, EventSink, SinkError, StreamMark};

/// See the module.
#[derive(Default)]
pub struct MemoryEvents {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// How many streams there were.
    made: u64,
    is_there: bool,
    messages: Vec<(String, CloudEvent)>,
    ids: HashSet<String>,
    refused: HashSet<String>,
    trouble: Option<SinkError>,
    takes: Option<usize>,
    asked: u64,
}

impl MemoryEvents {
    /// While there is trouble, nothing is put in.
    pub fn trouble(&self, trouble: Option<SinkError>) {
        self.lock().trouble = trouble;
    }

    /// The event with this id is never taken.
    pub fn refuse(&self, id: &str) {
        self.lock().refused.insert(id.to_owned());
    }

    /// So many more are taken; the answer to the last one is lost, and from then on there is trouble.
    pub fn take_only(&self, count: usize) {
        self.lock().takes = Some(count);
    }

    /// The stream is deleted, and its messages with it.
    pub fn delete(&self) {
        let mut inner = self.lock();
        inner.is_there = false;
        inner.messages.clear();
        inner.ids.clear();
    }

    /// A server remembers ids for two minutes only.
    pub fn forget_ids(&self) {
        self.lock().ids.clear();
    }

    /// Subject and event, in the order in which they were taken.
    pub fn all(&self) -> Vec<(String, CloudEvent)> {
        self.lock().messages.clone()
    }

    /// How often something was asked of it.
    pub fn asked(&self) -> u64 {
        self.lock().asked
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn ask(&mut self) -> Result<(), SinkError> {
        self.asked += 1;
        self.trouble.clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl EventSink for MemoryEvents {
    async fn open(&self) -> Result<StreamMark, SinkError> {
        let mut inner = self.lock();
        inner.ask()?;
        if !inner.is_there {
            inner.is_there = true;
            inner.made += 1;
        }
        Ok(StreamMark { created: inner.made.to_string(), last_seq: inner.messages.len() as u64 })
    }

    async fn publish(&self, subject: &str, id: &str, event: Bytes) -> Result<Ack, SinkError> {
        let mut inner = self.lock();
        inner.ask()?;
        if !inner.is_there {
            return Err(SinkError::NoStream);
        }
        if inner.refused.contains(id) {
            return Err(SinkError::Refused("a test says so".to_owned()));
        }
        if inner.ids.contains(id) {
            return Ok(Ack { seq: inner.messages.len() as u64, duplicate: true });
        }
        let event: CloudEvent = serde_json::from_slice(&event).map_err(|e| SinkError::Refused(e.to_string()))?;
        inner.ids.insert(id.to_owned());
        inner.messages.push((subject.to_owned(), event));
        inner.takes = inner.takes.map(|takes| takes.saturating_sub(1));
        if inner.takes == Some(0) {
            inner.takes = None;
            inner.trouble = Some(SinkError::Unavailable("the answer is lost".to_owned()));
        }
        inner.trouble.clone().map_or(Ok(Ack { seq: inner.messages.len() as u64, duplicate: false }), Err)
    }
}
