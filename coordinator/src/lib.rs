//! Decides and remembers: the journal and its projection, one task per run, placement, and the gRPC API.

pub mod api;
pub mod control;
pub mod driver;
pub mod journal;
pub mod logs;
pub mod metrics;
mod registry;
pub mod store;
