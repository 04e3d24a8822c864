//! The driver against a scripted agent: paused time, a journal in memory, the in-process bus.
#![allow(clippy::unwrap_used, clippy::missing_docs_in_private_items, reason = "tests")]

mod harness;
mod reports;
mod run;
