//! A playbook: what an operator writes. YAML → [`parse`](self) → lint (all findings at once) → plan.

use serde::Serialize;

pub mod expr;
pub mod render;
mod scope;

pub use scope::{Outputs, Scope};

/// Something that is wrong, or not good, with a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// An error stops the document; a warning does not.
    pub level: Level,
    /// Stable, `UPPER_SNAKE_CASE`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// Where: `spec.phases[0].steps[1].timeout`.
    pub path: String,
    /// From 1; 0: not known.
    pub line: u32,
    /// From 1; 0: not known.
    pub column: u32,
    /// What to do.
    pub hint: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Stops the document.
    Error,
    /// Does not.
    Warning,
}
