//! SIGTERM and SIGINT: the first one drains, the second one ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::{CliError, Result};

/// Cancel the token at the first signal; at the second, end the process with 128 + signal.
pub(crate) fn cancels(token: &CancellationToken) -> Result<()> {
    let listen =
        |kind| signal(kind).map_err(|e| CliError::failed("RUNTIME_FAILED", format!("can't take signals: {e}")));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let token = token.clone();
    tokio::spawn(async move {
        let number = next(&mut term, &mut int).await;
        info!(signal = number, "asked to end: finishing what is at work");
        token.cancel();
        let number = next(&mut term, &mut int).await;
        warn!(signal = number, "asked to end again: ending at once");
        std::process::exit(128 + number);
    });
    Ok(())
}

async fn next(term: &mut Signal, int: &mut Signal) -> i32 {
    tokio::select! {
        _ = term.recv() => SignalKind::terminate().as_raw_value(),
        _ = int.recv() => SignalKind::interrupt().as_raw_value(),
    }
}
