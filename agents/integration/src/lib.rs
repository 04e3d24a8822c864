//! The integration agent: is the package what it should be, do the suites pass, does the service bear its load.
//!
//! It judges nothing: it gives figures, and the gate decides. Every action is bounded in time and in what it reads.

use std::sync::Arc;

use muster_agent::{Action, allow::Allow};

mod junit;
pub mod load;
pub mod package;
pub mod suite;

/// All actions of this crate; test suites are started only where `allow` lists them.
pub fn actions(allow: &Allow) -> Vec<Arc<dyn Action>> {
    vec![Arc::new(load::Run), Arc::new(package::Verify), Arc::new(suite::Run::new(allow.clone()))]
}
