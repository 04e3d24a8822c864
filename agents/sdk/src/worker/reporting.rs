//! Reports: sent again until the answer is final, over the end of this process if need be.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use muster_bus::message::{Report, ReportReply};

use super::{Shared, attempt};
use crate::spool::{Slip, Spooled};

/// The coordinator answers after a sync, which may have to wait for its disk.
const TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const RECORDED: &[u8] = br#"{"answer":"recorded"}"#;

/// A final answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It counts.
    Recorded,
    /// It does not; the word says why.
    Unwanted(&'static str),
}

/// Send a report until it is taken, or the process ends; it is in the spool after its first try failed.
pub(super) async fn deliver(shared: &Arc<Shared>, subject: &str, (report, payload): &(Report, Bytes)) {
    if once(shared, subject, payload).await.is_some() {
        return;
    }
    let slip = keep(shared, subject, report).await;
    let key = &report.key;
    tokio::select! {
        taken = insist_again(shared, subject, payload, jitter_of(report)) => {
            tracing::info!(?taken, run = key.run, step = key.step, attempt = key.attempt, "a late report is taken");
            if let Some(slip) = slip {
                slip.done();
            }
        }
        () = shared.closing.cancelled() => {
            let kept = slip.is_some();
            tracing::warn!(kept, run = key.run, step = key.step, attempt = key.attempt, "a report is not yet taken");
        }
    }
}

/// The same for one that an earlier process left.
pub(super) async fn deliver_again(shared: Arc<Shared>, slip: Slip, spooled: Spooled) {
    let Spooled { subject, report } = spooled;
    let Ok(payload) = serde_json::to_vec(&report) else { return };
    let payload = Bytes::from(payload);
    let mut registered = shared.registered.subscribe();
    tokio::select! {
        // After the registration, which names it: the coordinator may not know this agent before.
        _ = registered.wait_for(|count| *count > 0) => {}
        () = shared.closing.cancelled() => return,
    }
    tokio::select! {
        taken = insist(&shared, &subject, &payload, jitter_of(&report)) => {
            tracing::info!(?taken, run = report.key.run, step = report.key.step, "a report of an earlier process is taken");
            slip.done();
            shared.book().forget_leftover(&report.key);
        }
        () = shared.closing.cancelled() => {}
    }
}

/// Send until the answer is final.
pub(super) async fn insist(shared: &Arc<Shared>, subject: &str, payload: &Bytes, jitter: u64) -> Taken {
    match once(shared, subject, payload).await {
        Some(taken) => taken,
        None => insist_again(shared, subject, payload, jitter).await,
    }
}

/// The same after a try that failed. Tries again after 1 to 30 s, and at each registration.
async fn insist_again(shared: &Arc<Shared>, subject: &str, payload: &Bytes, jitter: u64) -> Taken {
    let mut registered = shared.registered.subscribe();
    let mut pause = FIRST_PAUSE;
    loop {
        let percent = u32::try_from(75 + jitter % 50).unwrap_or(100);
        tokio::select! {
            () = tokio::time::sleep(pause * percent / 100) => {}
            // Its sender lives as long as `shared`.
            _ = registered.changed() => {}
        }
        if let Some(taken) = once(shared, subject, payload).await {
            return taken;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One try; none when it has to be sent again.
async fn once(shared: &Arc<Shared>, subject: &str, payload: &Bytes) -> Option<Taken> {
    let reply = match shared.bus.request(subject, payload.clone(), TIMEOUT).await {
        Ok(reply) if reply.as_ref() == RECORDED => return Some(Taken::Recorded),
        Ok(reply) => reply,
        Err(error) => {
            tracing::debug!(%error, subject, "a report was not answered; it is sent again");
            return None;
        }
    };
    match serde_json::from_slice(&reply) {
        Ok(ReportReply::Recorded { orders, task }) => {
            shared.obey(&orders);
            if let Some(task) = task {
                attempt::take_from_answer(shared, *task);
            }
            Some(Taken::Recorded)
        }
        Ok(ReportReply::Stale) => Some(Taken::Unwanted("stale")),
        Ok(ReportReply::Conflict) => Some(Taken::Unwanted("conflict")),
        Ok(ReportReply::Gone) => Some(Taken::Unwanted("gone")),
        Ok(ReportReply::Retry { why }) => {
            tracing::debug!(why, subject, "a report is wanted later");
            None
        }
        Err(error) => {
            tracing::warn!(%error, subject, "the answer to a report can't be read; it is sent again");
            None
        }
    }
}

/// Off the hot path, see [`crate::spool`].
async fn keep(shared: &Shared, subject: &str, report: &Report) -> Option<Slip> {
    let spool = shared.spool.clone()?;
    let spooled = Spooled { subject: subject.to_owned(), report: report.clone() };
    let kept = tokio::task::spawn_blocking(move || spool.keep(&spooled)).await;
    match kept.map_err(std::io::Error::other).and_then(|kept| kept) {
        Ok(slip) => Some(slip),
        Err(error) => {
            let key = &report.key;
            tracing::error!(%error, run = key.run, step = key.step, "a report can't be kept on disk; it is lost if this process ends");
            None
        }
    }
}

/// Spreads the tries of many reports.
fn jitter_of(report: &Report) -> u64 {
    u64::from(muster_bus::subject::shard_of(&report.key.run)) + u64::from(report.key.attempt)
}
