//! What coordinator and agents say to each other ([`message`]), where they say it ([`subject`]), and what carries it
//! ([`bus::Bus`]).
//!
//! Payloads are JSON, snake_case, ids as strings. Unknown fields are ignored, so that fields may be added; another major
//! version is refused. A golden file per message freezes each shape.

pub mod bus;
pub mod message;
pub mod subject;

pub use bus::{Bus, BusError, Delivery, Subscription};
