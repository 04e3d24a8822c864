//! Logs of the processes that serve: on stderr, as text or JSON lines. Commands that only ask log nothing.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    args::LogFormat,
    error::{CliError, Result},
};

/// Log from now on.
pub(crate) fn init(format: LogFormat, filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        CliError::usage("LOG_FILTER_INVALID", format!("{filter:?}: {e}"))
            .hint("such as info or warn,muster_coordinator=debug")
    })?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let log = fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal() && !no_color).try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    }
    .map_err(|e| CliError::failed("LOG_FAILED", format!("can't log: {e}")))
}
