//! Proves the parts together: the lab (real servers on loopback), a sample service, probes that use nothing of the agents'
//! code, and the whole system as processes.

pub mod canary;
pub mod events;
pub mod lab;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod sweep;
pub mod system;
pub mod trace;
