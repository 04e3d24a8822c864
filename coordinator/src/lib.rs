//! Decides and remembers: the journal and its projection, one task per run, placement, the gRPC API, and events for outsiders.

pub mod api;
pub mod control;
pub mod driver;
pub mod events;
pub mod journal;
pub mod logs;
pub mod metrics;
mod registry;
pub mod store;
