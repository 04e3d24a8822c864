//! Between what is said on the wire and what the coordinator knows.

pub mod event;
mod late;
pub mod log;
pub mod names;
pub mod plan;
pub mod run;
pub mod value;
