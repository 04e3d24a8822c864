//! `backup.postgres`: a backup that is known to be good, since it was restored.

mod place;
mod postgres;
mod programs;
mod restore;

pub use place::BackupOutput;
pub use postgres::{Backup, BackupParams, Proof};
