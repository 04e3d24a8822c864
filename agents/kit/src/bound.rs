//! No wait without an end: each one stops at its limit and when the attempt is cancelled.

use std::{future::Future, time::Duration};

use muster_agent::{ActionError, Context};

/// The answer of `work`, or [`ActionError::Retry`] when it takes longer than `limit_ms` or the attempt is cancelled.
/// `what` completes the sentence "no answer from …".
pub async fn within<T>(
    ctx: &Context,
    limit_ms: u64,
    what: &str,
    work: impl Future<Output = T>,
) -> Result<T, ActionError> {
    tokio::select! {
        biased;
        () = ctx.cancelled.cancelled() => Err(stopped(what)),
        answer = tokio::time::timeout(Duration::from_millis(limit_ms), work) => answer.map_err(|_| {
            ActionError::retry(format!("no answer from {what} within {limit_ms} ms; see whether it is up and reachable"))
        }),
    }
}

/// Asks again every `every_ms` until `ready` says yes. At the limit: [`ActionError::Retry`] with what it said last.
pub async fn until<F, A>(
    ctx: &Context,
    limit_ms: u64,
    every_ms: u64,
    what: &str,
    mut ready: F,
) -> Result<(), ActionError>
where
    F: FnMut() -> A,
    A: Future<Output = Result<(), String>>,
{
    let end = tokio::time::Instant::now() + Duration::from_millis(limit_ms);
    let mut last = String::from("it was not asked yet");
    loop {
        let asked = tokio::select! {
            biased;
            () = ctx.cancelled.cancelled() => return Err(stopped(what)),
            asked = tokio::time::timeout_at(end, ready()) => asked,
        };
        match asked {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => last = why,
            Err(_) => break,
        }
        if tokio::time::Instant::now() + Duration::from_millis(every_ms) >= end {
            break;
        }
        tokio::time::sleep(Duration::from_millis(every_ms)).await;
    }
    Err(ActionError::retry(format!("{what} is not as wanted after {limit_ms} ms: {last}")))
}

fn stopped(what: &str) -> ActionError {
    ActionError::retry(format!("stopped while waiting for {what}: the attempt was cancelled"))
}

/// Runs `work` (files, keys) off the async threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ActionError> + Send + 'static,
) -> Result<T, ActionError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(ActionError::permanent(format!("the work on files ended abnormally: {e}"))),
    }
}
