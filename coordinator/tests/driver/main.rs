//! The driver against a scripted agent: paused time, a journal in memory, the in-process bus.
#![allow(clippy::unwrap_used, clippy::missing_docs_in_private_items, clippy::format_push_string, reason = "tests")]

mod agents;
mod answers;
mod crowd;
mod disk;
mod drain;
mod harness;
mod listed;
mod logs;
mod loss;
mod outage;
mod passive;
mod people;
mod reports;
mod retention;
mod run;
mod signals;
mod slots;
mod store;
mod strangers;
mod waits;
