//! Proves the parts together: the lab (real servers on loopback), a sample service, and probes that use nothing of the
//! agents' code.

pub mod lab;
pub mod probe;
