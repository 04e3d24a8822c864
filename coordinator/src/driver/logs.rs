//! Logs of runs, read: pages, and streams that end with their run.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use jiff::Timestamp;
use muster_engine::{
    ids::{Namespace, RunId},
    run::{Fence, Run, state::RunState},
};
use tokio::time::timeout;

use super::{Shared, clock::after_ms, errors};
use crate::{
    control::ControlError,
    logs::{Entry, Filter, Follower, Logs, Page},
};

/// Lines that are on their way when their attempt ends are taken for so long: its report goes another way, and may be faster.
const LATE_MS: u64 = 10_000;
/// Entries that a stream reads at once.
const CHUNK: usize = 256;
/// Between two looks of a stream at whether its run has ended.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A stream of a run that has ended waits so long for the last lines.
const LAST_WORDS_MS: u64 = 1_500;
/// Lines that a disk does not take in this time are not waited for.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

/// Whether lines under this fence are taken: its attempt is unconfirmed, or ended a moment ago.
pub(super) fn may_log(run: &Run, fence: &Fence, now: Timestamp) -> bool {
    if run.is_live(fence) {
        return true;
    }
    let attempt = run.step_index(&fence.step).and_then(|i| run.steps[i].attempt(fence.attempt));
    attempt.is_some_and(|attempt| {
        let is_its = attempt.agent == fence.agent && attempt.instance == fence.instance;
        is_its && attempt.end.as_ref().is_some_and(|(ended_at, _)| after_ms(*ended_at, LATE_MS) > now)
    })
}

impl Shared {
    /// Wait until what was taken is written, but not for ever.
    pub(super) async fn logs_settled(&self) {
        if let Some(logs) = &self.logs {
            // A page without the last lines is better than none.
            let _ = timeout(SETTLE_WITHIN, logs.settled()).await;
        }
    }

    /// The logs of a run that is there.
    pub(super) async fn logs_of(
        self: &Arc<Self>,
        namespace: &Namespace,
        id: &RunId,
        filter: &Filter,
    ) -> Result<Logs, ControlError> {
        let entry = self.load(namespace, id).await?.ok_or_else(|| errors::run_not_found(id))?;
        if let (Some(run), Some(step)) = (entry.run(), &filter.step)
            && run.step_index(step).is_none()
        {
            return Err(errors::no_such_step(id, step));
        }
        self.logs.clone().ok_or_else(errors::no_logs)
    }

    /// Entries after a position, live; ends a moment after the run has.
    pub(super) fn follow_logs(
        self: &Arc<Self>,
        namespace: &Namespace,
        id: &RunId,
        logs: Logs,
        filter: Filter,
        first: Page,
    ) -> impl Stream<Item = Result<Entry, ControlError>> + Send + use<> {
        let reader = Reader {
            shared: Arc::clone(self),
            namespace: namespace.clone(),
            id: id.clone(),
            follower: logs.follow(id),
            logs,
            filter,
            position: first.position,
            entries: first.entries.into(),
            failed: false,
        };
        stream::unfold(reader, |mut reader| async move {
            let item = reader.next().await?;
            reader.failed = item.is_err();
            Some((item, reader))
        })
    }
}

struct Reader {
    shared: Arc<Shared>,
    namespace: Namespace,
    id: RunId,
    follower: Follower,
    logs: Logs,
    filter: Filter,
    position: u64,
    entries: VecDeque<Entry>,
    failed: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Entry, ControlError>> {
        loop {
            if let Some(entry) = self.entries.pop_front() {
                return Some(Ok(entry));
            }
            if self.failed {
                return None;
            }
            // Before it is read: what was written until then is in the page.
            let over = self.is_over().await;
            let page = match self.logs.page(&self.id, &self.filter, self.position, CHUNK).await {
                Ok(page) => page,
                Err(e) => return Some(Err(errors::log_failed(&self.id, &e))),
            };
            self.position = page.position;
            self.entries = page.entries.into();
            if !self.entries.is_empty() || !page.at_end {
                continue;
            }
            if over {
                return None;
            }
            tokio::select! {
                () = self.follower.more() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.shared.stop.cancelled() => return Some(Err(errors::stopping())),
            }
        }
    }

    /// Nothing more is said of the run: it ended a moment ago, or nothing is done for it any more.
    async fn is_over(&self) -> bool {
        let entry = match self.shared.runs.get(&self.id) {
            Some(entry) => entry,
            // To look at a run that waits is no reason to load it.
            None if self.shared.runs.is_passive(&self.id) => return false,
            None => match self.shared.load(&self.namespace, &self.id).await {
                Ok(Some(entry)) => entry,
                Ok(None) => return true,
                Err(_) => return false,
            },
        };
        let view = entry.view();
        view.quarantine.is_some()
            || view.run.is_some_and(|run| match &run.state {
                RunState::Ended { at, .. } => after_ms(*at, LAST_WORDS_MS) <= self.shared.clock.now(),
                RunState::Running | RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } => false,
            })
    }
}
