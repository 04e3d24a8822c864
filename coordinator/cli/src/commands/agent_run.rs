//! `muster agent run`: an agent as a process of its own.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use muster_agent::{Redactor, Worker, WorkerConfig, WorkerError};
use muster_bus::{NatsBus, subject::is_token};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::App;
use crate::{
    args::Role,
    bus::not_connected,
    catalogue,
    config::{AgentSettings, state_dir},
    error::{CliError, Exit, Result, chain},
    signal, telemetry,
};

pub(super) async fn run(app: &App) -> Result<Exit> {
    let settings = &app.settings.agent;
    telemetry::init(settings.log_format, &settings.log)?;
    let role = settings.role.ok_or_else(|| {
        CliError::usage("ROLE_MISSING", "an agent needs a role").hint("--role infra, or role in the [agent] section")
    })?;
    let config = worker(&app.settings.namespace, role, settings);
    for (what, name) in [("agent's name", &config.agent), ("namespace", &config.namespace)] {
        if !is_token(name) {
            return Err(
                CliError::usage("NAME_INVALID", format!("the {what} is {name:?}")).hint("1 to 63 of a-z, 0-9, _ and -")
            );
        }
    }
    let catalogue = catalogue::of_role(role, catalogue::allow(&settings.allow)?)?;
    let secrets = secrets(&settings.secrets)?;
    Redactor::new(&secrets).tell_panics();
    let shutdown = CancellationToken::new();
    signal::cancels(&shutdown)?;
    let options = settings.access().options(Some(&config.agent))?;
    let connected = tokio::select! {
        bus = NatsBus::connect(options) => bus.map_err(|e| not_connected(&e))?,
        () = shutdown.cancelled() => return Ok(Exit::Succeeded),
    };
    info!(agent = config.agent, role = config.role, slots = config.slots, "the agent begins");
    let worker = Worker::new(config, catalogue, Arc::new(connected)).with_secrets(secrets);
    Box::pin(worker.run(shutdown)).await.map_err(|e| failed(&e))?;
    Ok(Exit::Succeeded)
}

fn worker(namespace: &str, role: Role, settings: &AgentSettings) -> WorkerConfig {
    let role = role.name().to_owned();
    let name = if settings.name.is_empty() { format!("{role}-1") } else { settings.name.clone() };
    let data_dir = if settings.data_dir.as_os_str().is_empty() {
        state_dir("muster-agent").join(&name)
    } else {
        settings.data_dir.clone()
    };
    WorkerConfig {
        namespace: namespace.to_owned(),
        role,
        labels: settings.labels.clone(),
        host: Some(settings.host.clone()).filter(|host| !host.is_empty()),
        slots: settings.slots,
        data_dir: Some(data_dir),
        software: concat!("muster ", env!("CARGO_PKG_VERSION")).to_owned(),
        agent: name,
    }
}

/// Each file of the folder is a secret, called as the file is. Nobody else may be able to read it.
fn secrets(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut secrets = BTreeMap::new();
    if folder.as_os_str().is_empty() {
        return Ok(secrets);
    }
    let unreadable = |e: &std::io::Error| CliError::file(folder, "read", e);
    for entry in std::fs::read_dir(folder).map_err(|e| unreadable(&e))? {
        let path = entry.map_err(|e| unreadable(&e))?.path();
        let meta = std::fs::metadata(&path).map_err(|e| CliError::file(&path, "read", &e))?;
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')) else {
            continue;
        };
        if !meta.is_file() {
            continue;
        }
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(CliError::usage("SECRET_EXPOSED", "others can read or write this secret")
                .at(path.display().to_string())
                .hint(format!("chmod 600 {}", path.display())));
        }
        let value = std::fs::read_to_string(&path).map_err(|e| CliError::file(&path, "read", &e))?;
        secrets.insert(name.to_owned(), value.trim_end_matches('\n').to_owned());
    }
    Ok(secrets)
}

fn failed(error: &WorkerError) -> CliError {
    let reason = match error {
        WorkerError::Name { .. } => return CliError::usage("AGENT_NAME_INVALID", chain(error)),
        WorkerError::Lock(_) => "AGENT_FOLDER_UNUSABLE",
        WorkerError::Spool { .. } => "AGENT_SPOOL_UNREADABLE",
        WorkerError::Refused { .. } => "AGENT_REFUSED",
        WorkerError::Closed => "BUS_CLOSED",
    };
    CliError::failed(reason, chain(error))
}
