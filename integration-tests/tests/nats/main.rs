//! Who may say what on NATS: the configuration that `muster nats config` writes, on real servers of two versions, against an
//! agent that does not keep to its role; and TLS.

mod auth;
mod events;
mod keys;
mod outsiders;
mod tls;
