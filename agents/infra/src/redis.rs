//! `redis.configure` and `redis.probe`: persistence, memory and answers of a Redis server.

mod client;
mod conf;
mod configure;
mod persist;
mod probe;
mod settings;

pub use client::Address;
pub use configure::{Configure, ConfigureOutput};
pub use probe::{Probe, ProbeExpect, ProbeOutput, ProbeParams};
pub use settings::{AppendFsync, ConfigureParams, MaxMemoryPolicy, SavePoint};
