//! One run of a plan: commands are decided into events, events are applied to state, effects are derived from state.

pub mod command;
pub mod event;
pub mod state;

pub use command::{Command, Rejection, Resolution};
pub use event::Event;
pub use state::Run;
