//! The same request twice is one request. Its id is journalled in the same append as what came of it, in a stream of its
//! own, so that the second append of it is a conflict: neither a crash nor a race can let it happen twice.

use std::sync::Arc;

use jiff::Timestamp;
use muster_engine::ids::{Actor, Digest, Namespace, RunId};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};

use super::{Shared, errors};
use crate::{
    control::{Caller, ControlError, ControlErrorKind},
    journal::{AppendError, Journal, NewRecord, ReadError, Record, StreamAppend, StreamId},
};

/// Who asks for something, under which id, and a hash of what is asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) actor: Actor,
    id: Option<(StreamId, Digest)>,
}

/// A request that was done, as it is journalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum KeyEvent {
    RequestTaken {
        /// Who asked.
        principal: Actor,
        /// Of what was asked.
        body: Digest,
        /// What came of it, if it was about a run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<RunId>,
    },
}

/// The run that a request was about, by its record.
pub(super) fn run_of(record: &Record) -> Option<RunId> {
    let KeyEvent::RequestTaken { run, .. } = serde_json::from_str(record.event.get()).ok()?;
    run
}

/// What is known of a request id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The same request was done; this is the run it was about, if it was about one.
    Same(Option<RunId>),
    /// Another one was.
    Other,
}

impl Request {
    /// `body` is everything that makes the request what it is.
    pub(super) fn new(namespace: &Namespace, caller: &Caller, body: impl FnOnce() -> String) -> Self {
        let id = caller.request_id.as_ref().map(|id| {
            let stream = StreamId(format!("key/{namespace}/{id}").into());
            let mut hash = Sha256::new();
            hash.update(caller.actor.as_str());
            hash.update([0]);
            hash.update(body());
            (stream, digest_of(hash))
        });
        Self { actor: caller.actor.clone(), id }
    }

    /// What is to be appended together with what comes of it.
    pub(super) fn append(&self, at: Timestamp, run: Option<&RunId>) -> Option<StreamAppend> {
        let (stream, body) = self.id.as_ref()?;
        let event = KeyEvent::RequestTaken { principal: self.actor.clone(), body: body.clone(), run: run.cloned() };
        let event = to_raw_value(&event).ok()?;
        let record = NewRecord { at, by: self.actor.clone(), event };
        Some(StreamAppend { stream: stream.clone(), expected_seq: 0, records: vec![record] })
    }

    /// Whether a conflict on this stream says that the request was done before.
    pub(super) fn is_stream(&self, stream: &StreamId) -> bool {
        self.id.as_ref().is_some_and(|(own, _)| own == stream)
    }

    /// Whether it was done before.
    pub(super) fn taken(&self, journal: &Arc<dyn Journal>) -> Result<Option<Taken>, ReadError> {
        let Some((stream, body)) = &self.id else { return Ok(None) };
        let record = journal.read_stream(stream, 0, 1)?.into_iter().next();
        Ok(record.map(|record| Taken::of(&record.event, body)))
    }

    /// Whether it is done by what is to be appended.
    pub(super) fn taken_by(&self, appends: &[StreamAppend]) -> Option<Taken> {
        let (stream, body) = self.id.as_ref()?;
        let record = appends.iter().find(|append| append.stream == *stream)?.records.first()?;
        Some(Taken::of(&record.event, body))
    }
}

impl Taken {
    fn of(event: &RawValue, body: &Digest) -> Self {
        match serde_json::from_str(event.get()) {
            Ok(KeyEvent::RequestTaken { body: taken, run, .. }) if taken == *body => Self::Same(run),
            Ok(KeyEvent::RequestTaken { .. }) | Err(_) => Self::Other,
        }
    }

    /// The run of the same request; an error when the id was used for another one.
    pub(super) fn run(self) -> Result<RunId, ControlError> {
        match self {
            Self::Same(Some(run)) => Ok(run),
            Self::Same(None) | Self::Other => Err(reused()),
        }
    }
}

fn reused() -> ControlError {
    ControlError {
        kind: ControlErrorKind::AlreadyExists,
        code: "REQUEST_ID_REUSED",
        message: "the request id was used before, for another request".to_owned(),
        hint: "use a new UUID for each request, and the same one only to repeat a request".to_owned(),
        findings: Vec::new(),
    }
}

impl Shared {
    /// Whether a request was done before, whatever came of it; an error when its id was used for another one.
    pub(super) fn was_done(&self, request: &Request) -> Result<bool, ControlError> {
        match request.taken(&self.journal).map_err(|e| errors::read_failed(&e))? {
            None => Ok(false),
            Some(Taken::Same(_)) => Ok(true),
            Some(Taken::Other) => Err(reused()),
        }
    }

    /// Take the id of a request that changes nothing.
    pub(super) async fn take_id(&self, request: &Request, at: Timestamp) -> Result<(), ControlError> {
        let Some(append) = request.append(at, None) else { return Ok(()) };
        match self.append(vec![append]).await {
            Ok(_) => Ok(()),
            Err(AppendError::Conflict { .. }) => self.was_done(request).map(drop),
            Err(e) => Err(errors::append_failed(&e)),
        }
    }
}

/// `sha256:` and the hash in hex.
pub(super) fn digest_of(hash: Sha256) -> Digest {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}
