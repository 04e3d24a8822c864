//! `nats …`: what a NATS server needs to know of us.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The NATS server.
#[derive(Debug, Subcommand)]
pub(crate) enum NatsCommand {
    /// Write a configuration of nats-server that lets everybody say and hear what is theirs, and nothing else; with an NKEY for
    /// the coordinator, for each agent, and for outsiders.
    ///
    /// In the folder: nats.conf for nats-server, users.toml with what it is made from (public keys, no secrets), and under
    /// seeds/ a file for each key, mode 0600. A seed can be moved to the host that uses it: its public key stays. Run
    /// again to add a user; keys of before stay as they are.
    Config(NatsConfigArgs),
}

/// `nats config`
#[derive(Debug, Args)]
pub(crate) struct NatsConfigArgs {
    /// Folder for configuration and seeds; made if it is not there.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
    /// An agent of the namespace that gets a key, [a-z0-9_-]{1,63}; again for more.
    #[arg(long = "agent", value_name = "NAME")]
    pub(crate) agents: Vec<String>,
    /// An outsider who may send signals to runs of the namespace, in this name; again for more.
    #[arg(long = "signaller", value_name = "NAME")]
    pub(crate) signallers: Vec<String>,
    /// An outsider who may read the events of all namespaces, with a consumer of this name; again for more.
    #[arg(long = "reader", value_name = "NAME")]
    pub(crate) readers: Vec<String>,
    /// A user, or coordinator, that gets another key; the one of before becomes useless. Again for more.
    #[arg(long, value_name = "NAME")]
    pub(crate) renew: Vec<String>,
    /// A user that may connect no more; its seed is deleted if it is here. Again for more.
    #[arg(long, value_name = "NAME")]
    pub(crate) remove: Vec<String>,
    /// Where nats-server listens [default: as before, else 127.0.0.1:4222].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Certificate chain of nats-server (PEM), as its host names the file; with --tls-key [default: as before, else no TLS].
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of that certificate (PEM), as its host names the file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
}
