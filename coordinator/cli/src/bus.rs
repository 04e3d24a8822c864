//! How NATS is reached.

use std::path::Path;

use muster_bus::{NatsOptions, nats::Login};

use crate::error::{CliError, Result};

/// By an agent of this name, or by a coordinator.
pub(crate) fn nats_options(servers: &str, nkey: &Path, agent: Option<&str>) -> Result<NatsOptions> {
    let servers = servers.split(',').map(str::trim).filter(|s| !s.is_empty());
    let mut options = match agent {
        Some(agent) => NatsOptions::for_agent(servers, agent),
        None => NatsOptions::new(servers, "muster"),
    };
    if !nkey.as_os_str().is_empty() {
        let seed = std::fs::read_to_string(nkey).map_err(|e| CliError::file(nkey, "read", &e))?;
        options.login = Login::NkeySeed(seed.trim().to_owned());
    }
    Ok(options)
}
