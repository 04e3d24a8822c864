//! Faults on purpose, on real processes and a real nats-server, beside a ledger that the work itself writes: nothing is lost,
//! nothing is done twice that must not be, and every run ends or says for whom it waits.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod agents;
mod bus;
mod disk;
mod floods;
mod harness;
mod machine;
mod network;
