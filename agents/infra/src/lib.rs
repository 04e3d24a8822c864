//! The infra agent: certificates, nginx, PostgreSQL, PgBouncer, Redis, HTTP, backups.
//!
//! Every action here is bounded in time, says what it measured with its unit, and never puts a secret into an output, a
//! diff or an error.

use std::sync::Arc;

use muster_agent::Action;

pub mod backup;
pub mod http;
pub mod nginx;
pub mod pgbouncer;
pub mod postgres;
pub mod redis;
pub mod tls;

/// All actions of this crate.
pub fn actions() -> Vec<Arc<dyn Action>> {
    vec![
        Arc::new(backup::Backup),
        Arc::new(http::Check),
        Arc::new(nginx::Site),
        Arc::new(nginx::Upstream),
        Arc::new(pgbouncer::Configure),
        Arc::new(pgbouncer::Probe),
        Arc::new(postgres::Probe),
        Arc::new(postgres::Replication),
        Arc::new(redis::Configure),
        Arc::new(redis::Probe),
        Arc::new(tls::Certificate),
        Arc::new(tls::Inspect),
    ]
}
