//! The SDK for agents: write an [`Action`], put it into a catalogue, and the worker does the talking: registration,
//! beats, tasks, `prepared`, reports until `recorded`, the spool, cancellation and time limits.

pub mod action;

pub use action::{Action, ActionError, ActionSpec, Checked, Context, Done};
