//! The gRPC door: services over [`Control`](crate::control::Control), tokens, limits, errors.

mod agents;
pub mod auth;
mod bootstrap;
mod connections;
pub mod convert;
mod coordinator;
mod door;
pub mod error;
mod filter;
mod get_run;
mod lease;
mod milestones;
mod playbooks;
mod runs;
mod server;
pub mod token;
mod tokens;
mod watch;

pub use bootstrap::{ADMIN_TOKEN_FILE, bootstrap_token};
pub use door::Limits;
pub use server::{Listening, ServeError, ServerConfig, TlsFiles, listen, serve};
