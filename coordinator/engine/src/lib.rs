//! The pure engine of Muster: playbooks, plans, and the state machine of a run.
//!
//! Nothing here reads a clock, draws a random number, opens a file or awaits: time and ids are arguments, effects are
//! derived from state by [`run::Run::outstanding`]. The same events give the same state on every machine, for ever.

pub mod ids;
pub mod plan;
pub mod playbook;
pub mod policy;
pub mod run;
