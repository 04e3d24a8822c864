//! The stream of events on a nats-server with JetStream; nothing newer than 2.9 is needed.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap,
    connection::State,
    jetstream::{
        self, Context, ErrorCode,
        context::{PublishErrorKind, RequestErrorKind},
        response::Response,
        stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType},
    },
};
use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use crate::event::{Ack, EVENT_SUBJECTS, EVENTS, EventSink, SinkError, StreamMark};

/// The stream holds so much at most, in bytes; then the oldest go. JetStream sets it aside.
const MAX_BYTES: i64 = 256 << 20;
/// An id that comes again within this is dropped by the server.
const DUPLICATES_WITHIN: Duration = Duration::from_secs(120);

/// Puts events into [`EVENTS`].
pub struct JetStreamEvents {
    client: Client,
    context: Context,
    keep: Duration,
}

impl JetStreamEvents {
    /// On a connection; the stream keeps events for so long, if it is made here.
    pub(crate) fn new(client: Client, keep: Duration) -> Self {
        Self { context: jetstream::new(client.clone()), client, keep }
    }

    /// What is asked meanwhile would wait in the client for as long as the request may take.
    fn check(&self) -> Result<(), SinkError> {
        if self.client.connection_state() == State::Connected {
            Ok(())
        } else {
            Err(SinkError::Unavailable("not connected to NATS".to_owned()))
        }
    }

    async fn ask<T: Serialize>(&self, what: &str, with: &T) -> Result<Response<Info>, SinkError> {
        let asked = self.context.request(format!("STREAM.{what}.{EVENTS}"), with).await;
        asked.map_err(|e| match e.kind() {
            RequestErrorKind::NoResponders => SinkError::Off("nobody answers for it".to_owned()),
            RequestErrorKind::TimedOut => SinkError::Unavailable(format!(
                "no answer to $JS.API.STREAM.{what}.{EVENTS} in time: may this login ask it?"
            )),
            RequestErrorKind::InvalidSubject | RequestErrorKind::Other => SinkError::Unavailable(e.to_string()),
        })
    }

    fn config(&self) -> Config {
        Config {
            name: EVENTS.to_owned(),
            description: Some("Events of Muster for outsiders: copies, made again from the journal".to_owned()),
            subjects: vec![EVENT_SUBJECTS.to_owned()],
            retention: RetentionPolicy::Limits,
            storage: StorageType::File,
            discard: DiscardPolicy::Old,
            max_age: self.keep,
            max_bytes: MAX_BYTES,
            duplicate_window: DUPLICATES_WITHIN.min(self.keep),
            num_replicas: 1,
            ..Config::default()
        }
    }
}

#[async_trait]
impl EventSink for JetStreamEvents {
    async fn open(&self) -> Result<StreamMark, SinkError> {
        self.check()?;
        match self.ask("INFO", &()).await? {
            Response::Ok(info) => Ok(mark(&info)),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                match self.ask("CREATE", &self.config()).await? {
                    Response::Ok(info) => Ok(mark(&info)),
                    Response::Err { error } => Err(of_api(&error)),
                }
            }
            Response::Err { error } => Err(of_api(&error)),
        }
    }

    async fn publish(&self, subject: &str, id: &str, event: Bytes) -> Result<Ack, SinkError> {
        self.check()?;
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        headers.insert("Content-Type", "application/cloudevents+json");
        let sent = self.context.publish_with_headers(subject.to_owned(), headers, event).await;
        let acked = match sent {
            Ok(ack) => ack.await,
            Err(e) => Err(e),
        };
        match acked {
            Ok(ack) if ack.stream == EVENTS => Ok(Ack { seq: ack.sequence, duplicate: ack.duplicate }),
            Ok(ack) => Err(SinkError::Unavailable(format!("the stream {} takes its subjects", ack.stream))),
            Err(e) => Err(match e.kind() {
                PublishErrorKind::StreamNotFound => SinkError::NoStream,
                PublishErrorKind::MaxPayloadExceeded => SinkError::Refused(e.to_string()),
                PublishErrorKind::Other if is_final(&e) => SinkError::Refused(e.to_string()),
                PublishErrorKind::Other
                | PublishErrorKind::WrongLastMessageId
                | PublishErrorKind::WrongLastSequence
                | PublishErrorKind::TimedOut
                | PublishErrorKind::BrokenPipe
                | PublishErrorKind::MaxAckPending => SinkError::Unavailable(e.to_string()),
            }),
        }
    }
}

fn mark(info: &Info) -> StreamMark {
    StreamMark { created: info.created.to_string(), last_seq: info.state.last_sequence }
}

fn of_api(error: &jetstream::Error) -> SinkError {
    match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            SinkError::Off(error.to_string())
        }
        _ => SinkError::Unavailable(error.to_string()),
    }
}

/// What the server says with 400 is wrong with the message; with 500 and more it is the server's own trouble.
fn is_final(error: &jetstream::context::PublishError) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
        .is_some_and(|error| (400..500).contains(&error.code()))
}
