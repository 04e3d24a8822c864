//! The deployment agent: puts releases in place, switches between the two sides of a service behind nginx, and back.
//!
//! A service is never a child of an attempt: whatever an attempt starts ends with it. It is started by a program that this
//! host allows, which hands it to the host's service manager.

use std::sync::Arc;

use muster_agent::{Action, allow::Allow};

pub mod prepare;
pub mod service;
pub mod switch;
mod tree;
mod turn;
mod upstream;
pub mod watch;

/// All actions of this crate; services are started only by programs that `allow` lists.
pub fn actions(allow: &Allow) -> Vec<Arc<dyn Action>> {
    vec![Arc::new(prepare::Prepare), Arc::new(switch::Rollback), Arc::new(switch::Switch::new(allow.clone()))]
}
