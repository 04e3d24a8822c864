//! The infra agent: certificates, nginx, PostgreSQL, PgBouncer, HTTP.
//!
//! Every action here is bounded in time, says what it measured with its unit, and never puts a secret into an output, a
//! diff or an error. Files are written whole (temporary file, fsync, rename); what they replace is kept beside them in
//! `.muster-undo/`, under the digest of its content, so that `undo` can put it back byte for byte.

use std::sync::Arc;

use muster_agent::Action;

mod bound;
mod files;
pub mod http;
mod measure;
mod net;
pub mod nginx;
mod params;
pub mod pgbouncer;
pub mod postgres;
mod process;
mod secret;
pub mod tls;

/// All actions of this crate.
pub fn actions() -> Vec<Arc<dyn Action>> {
    vec![
        Arc::new(http::Check),
        Arc::new(nginx::Site),
        Arc::new(pgbouncer::Configure),
        Arc::new(pgbouncer::Probe),
        Arc::new(postgres::Probe),
        Arc::new(tls::Certificate),
        Arc::new(tls::Inspect),
    ]
}
