//! `postgres.probe`: whether a database can be reached, how often and how fast. `postgres.replication`: whether its replicas
//! follow it.

mod client;
mod probe;
mod replication;

pub use client::Dsn;
pub(crate) use client::{Client, Target, refused_connection, refused_credentials, said};
pub use probe::{Probe, ProbeOutput, ProbeParams};
pub use replication::{Replica, Replication, ReplicationExpect, ReplicationOutput, ReplicationParams};
