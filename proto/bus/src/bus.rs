//! The trait that carries messages: request and reply, and publish. At most once, unordered between subjects, bounded.
//!
//! What a bus promises is little, on purpose: a request is answered, or it fails in one of a few ways none of which says
//! that the other side did not get it. Whoever needs more keeps it in the journal (coordinator) or the spool (agent).

use std::{pin::Pin, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;

/// No payload is larger than this on any bus, in bytes; larger things are artifacts.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// How many messages a subscription holds that its reader has not yet taken; more are lost.
pub const SUBSCRIPTION_CAPACITY: usize = 64 * 1024;

/// Carries messages between coordinator and agents.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Send a request and wait for its reply, for at most `timeout`.
    ///
    /// # Errors
    /// See [`BusError`]; after any error but `TooLarge` and `BadSubject` the other side may have got the request.
    async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes, BusError>;

    /// Send a request whose answer comes to the subscribers of `answer_to`, without waiting for anything. When nobody listens on
    /// `subject`, a delivery with [`Delivery::nobody`] comes there instead.
    ///
    /// # Errors
    /// See [`BusError`]; it was not sent.
    fn send_request(&self, subject: &str, answer_to: &str, payload: Bytes) -> Result<(), BusError>;

    /// The first part of subjects that nobody else on this bus uses, for answers. A new one each time.
    fn inbox(&self) -> String;

    /// Send without waiting for an answer. `Ok` says that it was handed to the bus, not that anybody got it.
    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError>;

    /// Everything that is sent to subjects that match (`*` for one token, `>` for the rest), from the moment of return.
    async fn subscribe(&self, pattern: &str) -> Result<Subscription, BusError>;

    /// The largest payload that this bus carries, in bytes; never above [`MAX_PAYLOAD`].
    fn max_payload(&self) -> usize;

    /// Whether it is connected right now.
    fn is_connected(&self) -> bool;

    /// Wait until everything handed over so far has left this process.
    async fn flush(&self) -> Result<(), BusError>;
}

/// A stream of deliveries; dropping it unsubscribes.
pub type Subscription = Pin<Box<dyn Stream<Item = Delivery> + Send>>;

/// A message that arrived.
pub struct Delivery {
    /// Where it was sent.
    pub subject: String,
    /// What was sent.
    pub payload: Bytes,
    /// How to answer, if it was a request.
    pub reply: Option<ReplyTo>,
    /// It is the bus that says so, and nobody else: a request whose answer was to come here has found no listener.
    pub nobody: bool,
}

/// Answers one request. Dropping it answers nothing: the requester runs into its timeout and asks again.
pub struct ReplyTo(Box<dyn FnOnce(Bytes) + Send>);

impl ReplyTo {
    /// Made by a bus; the function must not block.
    pub fn new(send: impl FnOnce(Bytes) + Send + 'static) -> Self {
        Self(Box::new(send))
    }

    /// Hand the answer to the bus. Nobody is told when it is lost; the requester asks again.
    pub fn send(self, payload: Bytes) {
        (self.0)(payload);
    }
}

/// Why a message was not answered or not carried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nobody subscribes to the subject right now. Not a denial: it may have come and gone.
    #[error("nobody listens on {0}")]
    NoResponders(String),
    /// No answer in time.
    #[error("no answer on {0} in time")]
    Timeout(String),
    /// The payload is over the limit; nothing was sent.
    #[error("{size} bytes are over the limit of {limit}")]
    TooLarge {
        /// Of the payload.
        size: usize,
        /// Of the bus.
        limit: usize,
    },
    /// It can't stand as a subject: an empty token, a blank, or a wildcard where none may be. Nothing was sent.
    #[error("{0:?} is not a subject")]
    BadSubject(String),
    /// There is no connection.
    #[error("not connected to the bus: {0}")]
    Disconnected(String),
}
