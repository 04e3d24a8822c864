//! One run of a plan: commands are decided into events, events are applied to state, effects are derived from state.
//!
//! ```text
//! Turn::take(command, now) ─► events ─► journal (synced) ─► Run::apply(at, event) ─► Run::outstanding_for(touched)
//! ```
//!
//! `decide` holds all policy and writes its conclusions into the events; `apply` has none. `docs/state-machine.md` is the
//! table of what is built.

pub mod apply;
pub mod command;
pub mod decide;
mod eval;
pub mod event;
pub mod explain;
pub mod invariants;
pub mod outstanding;
pub mod state;
mod undo;
pub mod verdict;
mod wall;

pub use apply::{Corrupt, Touched};
pub use command::{Command, Fence, Rejection, Resolution};
pub use decide::Turn;
pub use event::{Event, RunStarted};
pub use explain::{Waiting, WaitingSubject, WaitsOn};
pub use invariants::Violation;
pub use outstanding::{CancelAttempt, Dispatch, Outstanding, Place, Rest, Wake, WakeUp};
pub use state::Run;
pub use verdict::{Report, Verdict};
