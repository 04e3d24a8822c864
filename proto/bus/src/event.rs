//! What outsiders read: milestone-level events as CloudEvents 1.0 in JSON, and where they are put.
//!
//! They are copies: whoever loses them makes them again from the journal, with the same ids.

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The JetStream stream that holds them.
pub const EVENTS: &str = "MUSTER_EVENTS";

/// What the stream takes.
pub const EVENT_SUBJECTS: &str = "muster.v1.*.event.>";

/// An event in the structured mode of CloudEvents 1.0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloudEvent {
    /// `1.0`.
    pub specversion: String,
    /// `{stream}/{seq}` of the journal's record. The same event has the same id whenever it is published.
    pub id: String,
    /// `urn:muster:{cluster}`; with the id it names the event among all clusters.
    pub source: String,
    /// `dev.muster.v1.{kind}`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is about, as the API names it: `namespaces/{ns}/runs/{run}/phases/{phase}`.
    pub subject: String,
    /// When it was journalled, RFC 3339.
    pub time: String,
    /// `application/json`.
    pub datacontenttype: String,
    /// What there is to say of it, by kind.
    pub data: Value,
}

/// Takes events, each once as far as it remembers ids, in the order in which they are given.
#[async_trait]
pub trait EventSink: Send + Sync + 'static {
    /// Make the stream where it is missing, and say which one it is. It is never deleted or changed.
    ///
    /// # Errors
    /// See [`SinkError`].
    async fn open(&self) -> Result<StreamMark, SinkError>;

    /// Put one event in, and wait until the stream has it.
    ///
    /// # Errors
    /// See [`SinkError`]; after any but `Refused` the stream may have it.
    async fn publish(&self, subject: &str, id: &str, event: Bytes) -> Result<Ack, SinkError>;
}

/// Which stream it is, and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamMark {
    /// When it was made: another one of the same name is empty.
    pub created: String,
    /// The number of its last message.
    pub last_seq: u64,
}

/// The stream has the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The message's number in the stream.
    pub seq: u64,
    /// It was there already.
    pub duplicate: bool,
}

/// Why an event is not in the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// There is no JetStream on this server, or not for this login.
    #[error("there is no JetStream: {0}")]
    Off(String),
    /// The stream has gone.
    #[error("the stream {EVENTS} has gone")]
    NoStream,
    /// This event will not be taken, whenever it comes.
    #[error("the event is refused: {0}")]
    Refused(String),
    /// Nobody answers, or the stream takes nothing right now.
    #[error("the stream {EVENTS} can't be reached: {0}")]
    Unavailable(String),
}
