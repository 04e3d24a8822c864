//! The SDK for agents: write an [`Action`], put it into a [`Catalogue`], and the [`Worker`] does the talking: registration,
//! beats, tasks, `prepared`, reports until `recorded`, the spool, cancellation and time limits.
//!
//! Programs that an action starts go through [`guard`], so that they end with their attempt. The binary of an agent
//! therefore begins with [`guard::main`], or calls [`guard::run`] when its first argument is `guard`.

pub mod action;
pub mod allow;
pub mod catalogue;
pub mod command;
mod durable;
pub mod guard;
mod lock;
pub mod noop;
mod proc;
mod redact;
mod spool;
pub mod testkit;
mod text;
pub mod worker;

pub use action::{Action, ActionError, ActionSpec, Checked, Context, Done};
pub use catalogue::{Catalogue, CatalogueError};
pub use lock::LockError;
pub use redact::Redactor;
pub use worker::{Worker, WorkerConfig, WorkerError};
