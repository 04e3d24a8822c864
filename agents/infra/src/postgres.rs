//! `postgres.probe`: whether a database can be reached, how often and how fast.

mod client;
mod probe;

pub use client::Dsn;
pub(crate) use client::{Client, Target, refused_connection, refused_credentials, said};
pub use probe::{Probe, ProbeOutput, ProbeParams};
