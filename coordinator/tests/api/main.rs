//! The gRPC door over real connections: every method, every error, every role, TLS, reflection, limits.
//!
//! Behind the door stands a small coordinator in memory, which decides with the real engine and has no agents but what a
//! test does in their name.

#[cfg(test)]
mod auth;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod lease;
#[cfg(test)]
mod left;
#[cfg(test)]
mod logs;

mod methods;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod transport;
#[cfg(test)]
mod watch;
