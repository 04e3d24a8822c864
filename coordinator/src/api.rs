//! The gRPC door: services over [`Control`](crate::control::Control), tokens, limits, errors.

pub mod convert;
pub mod error;
