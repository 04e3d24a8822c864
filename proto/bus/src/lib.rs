//! What coordinator and agents say to each other ([`message`]), where they say it ([`subject`]), and what carries it
//! ([`bus::Bus`]): [`local::LocalBus`] inside one process, [`nats::NatsBus`] between processes. What outsiders may read of it is an
//! [`event::CloudEvent`].
//!
//! Payloads are JSON, `snake_case`, ids as strings. Unknown fields are ignored, so that fields may be added; another major
//! version is refused. A golden file per message freezes each shape.

pub mod bus;
#[cfg(feature = "testkit")]
pub mod conformance;
pub mod event;
pub mod jetstream;
pub mod local;
pub mod message;
pub mod nats;
pub mod permission;
pub mod subject;
#[cfg(feature = "testkit")]
pub mod testkit;
mod wire;

pub use bus::{Bus, BusError, Delivery, Subscription};
pub use event::EventSink;
pub use local::LocalBus;
pub use nats::{NatsBus, NatsOptions};
