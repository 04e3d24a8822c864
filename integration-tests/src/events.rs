//! Reads the stream of events as any outsider would, without any of our code.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, Context};
use serde_json::Value;

use crate::system::SOON;

/// The stream.
pub const STREAM: &str = "MUSTER_EVENTS";

/// Everything in it, in its order; nothing when there is no stream.
///
/// # Errors
/// When a message is not what it should be.
pub async fn all(context: &Context) -> Result<Vec<Value>> {
    let Ok(mut stream) = context.get_stream(STREAM).await else { return Ok(Vec::new()) };
    let state = stream.info().await?.state.clone();
    let mut events = Vec::new();
    for seq in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.get_raw_message(seq).await.with_context(|| format!("message {seq}"))?;
        let event: Value = serde_json::from_slice(&message.payload)?;
        let id = message.headers.get("Nats-Msg-Id").context("a message has an id")?;
        ensure!(Some(id.as_str()) == event["id"].as_str(), "{id} is not the id of {event}");
        let kind = event["type"].as_str().and_then(|kind| kind.strip_prefix("dev.muster.v1.")).context("a type")?;
        ensure!(message.subject.as_str() == format!("muster.v1.default.event.{kind}"), "{}: {event}", message.subject);
        let form = message.headers.get("Content-Type").context("it says what it is")?;
        ensure!(form.as_str() == "application/cloudevents+json", "{form}");
        events.push(event);
    }
    Ok(events)
}

/// Wait until the stream holds what is wanted; all that it holds.
///
/// # Errors
/// When it does not in time.
pub async fn wait(context: &Context, what: &str, so: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let until = Instant::now() + SOON;
    loop {
        let events = all(context).await?;
        if so(&events) {
            return Ok(events);
        }
        ensure!(Instant::now() < until, "never {what}: {events:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// An outsider's connection.
///
/// # Errors
/// When there is none.
pub async fn connect(url: &str) -> Result<Context> {
    Ok(jetstream::new(async_nats::connect(url).await?))
}

/// Ids of the events of one stream of the journal, in the order of the stream of events.
pub fn ids_of(events: &[Value], stream: &str) -> Vec<String> {
    let prefix = format!("{stream}/");
    let ids = events.iter().filter_map(|event| event["id"].as_str());
    ids.filter(|id| id.starts_with(&prefix)).map(str::to_owned).collect()
}

/// Whether an event of this kind is there of the run.
pub fn has(events: &[Value], kind: &str, run: &str) -> bool {
    let kind = format!("dev.muster.v1.{kind}");
    events.iter().any(|event| event["type"] == kind.as_str() && event["data"]["run"] == run)
}
