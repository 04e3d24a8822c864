//! How long the journal keeps what has ended, and from when on in fewer bytes. What is open stays whole, however old it is, and so
//! does what says who may do what, which agents there are, and how playbooks were; everything else goes with the segment that
//! holds its last record.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use muster_engine::ids::RunId;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Shared, recovery, requests};
use crate::{
    journal::{LetGoError, Old, RETENTION, ReadError, StreamId},
    registry::records::agent_of,
    store::{StoreError, StoreWrite},
};

/// How long the journal keeps what has ended, and from when on in fewer bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// After its last record. At least so long; a segment goes when all of its records are older. None: for ever.
    pub keep_ms: Option<u64>,
    /// A segment is compressed when all of its records are older.
    pub pack_after_ms: u64,
    /// Between two looks at what is old enough.
    pub look_every: Duration,
}

/// A run that has ended leaves memory in this time, or nothing is let go this time.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Runs that are forgotten in one write of the store.
const FORGET_AT_ONCE: usize = 500;

/// Why nothing was let go. It is tried again at the next look.
#[derive(Debug, thiserror::Error)]
enum RetentionError {
    #[error("the journal can't be read: {0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    LetGo(#[from] LetGoError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the store is behind")]
    StoreBehind,
    #[error("run {0} does not leave memory")]
    InMemory(RunId),
    #[error("the look did not end: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// What becomes of the streams that have old records.
#[derive(Default)]
struct Sorted {
    keep: Vec<StreamId>,
    /// Runs of which nothing is kept.
    runs: Vec<RunId>,
}

impl Shared {
    /// Let go of what is old, until the coordinator stops.
    pub(super) async fn keep_to(self: Arc<Self>, retention: Retention) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(retention.look_every) => {}
            }
            let until = retention.keep_ms.and_then(|keep_ms| self.ago(keep_ms));
            while let Some(until) = until
                && !self.is_stopping()
            {
                match self.let_go_of(until).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        warn!(%error, "old records of the journal are kept for now; it is tried again");
                        break;
                    }
                }
            }
            if let Some(until) = self.ago(retention.pack_after_ms)
                && let Err(error) = self.pack(until).await
            {
                warn!(%error, "old records of the journal are not compressed for now; it is tried again");
            }
        }
    }

    fn ago(&self, ms: u64) -> Option<Timestamp> {
        let ms = SignedDuration::from_millis(i64::try_from(ms).ok()?);
        self.clock.now().checked_sub(ms).ok()
    }

    async fn pack(&self, until: Timestamp) -> Result<(), RetentionError> {
        let journal = Arc::clone(&self.journal);
        let segments = tokio::task::spawn_blocking(move || journal.pack(until)).await??;
        if segments > 0 {
            info!(segments, "old segments of the journal were compressed");
        }
        Ok(())
    }

    /// Whether there was something; then there may be more.
    async fn let_go_of(self: &Arc<Self>, until: Timestamp) -> Result<bool, RetentionError> {
        let shared = Arc::clone(self);
        let sorted = tokio::task::spawn_blocking(move || shared.sort_old(until)).await??;
        let Some((old, sorted)) = sorted else { return Ok(false) };
        for id in &sorted.runs {
            self.leaves(id).await?;
        }
        let (shared, runs) = (Arc::clone(self), sorted.runs.clone());
        tokio::task::spawn_blocking(move || shared.forget(&old, &sorted)).await??;
        // Somebody may have looked at one just before it went.
        for id in &runs {
            self.leaves(id).await?;
        }
        Ok(true)
    }

    fn sort_old(&self, until: Timestamp) -> Result<Option<(Old, Sorted)>, RetentionError> {
        let Some(old) = self.journal.old(until)? else { return Ok(None) };
        if self.store.position().0 + 1 < old.before.0 {
            return Err(RetentionError::StoreBehind);
        }
        let mut sorted = Sorted::default();
        for (stream, _) in old.streams.iter().filter(|(_, is_whole)| *is_whole) {
            if let Some(id) = stream.0.strip_prefix("run/").map(RunId::from) {
                if self.is_over(&id, until)? {
                    sorted.runs.push(id);
                } else {
                    sorted.keep.push(stream.clone());
                }
            } else if !self.may_go(stream, until)? {
                sorted.keep.push(stream.clone());
            }
        }
        Ok(Some((old, sorted)))
    }

    /// Whether a stream that is no run's is needed no more.
    fn may_go(&self, stream: &StreamId, until: Timestamp) -> Result<bool, RetentionError> {
        if stream.0.starts_with("key/") {
            let record = self.journal.read_stream(stream, 0, 1)?.into_iter().next();
            return match record.and_then(|record| requests::run_of(&record)) {
                Some(run) => self.is_over(&run, until),
                None => Ok(true),
            };
        }
        if let Some((namespace, name)) = agent_of(stream) {
            return Ok(self.registry.record(&namespace, &name).is_none());
        }
        if let Some(life) = stream.0.strip_prefix("life/") {
            return Ok(life != self.cluster);
        }
        Ok(&*stream.0 == "clock/wall" || stream.0.starts_with(RETENTION))
    }

    /// Whether a run ended before the moment, or is not there at all.
    fn is_over(&self, id: &RunId, until: Timestamp) -> Result<bool, RetentionError> {
        if self.runs.is_passive(id) {
            return Ok(false);
        }
        if let Some(entry) = self.runs.get(id) {
            let view = entry.view();
            let ended = view.run.filter(|run| run.has_ended() && run.updated_at < until);
            return Ok(view.quarantine.is_none() && ended.is_some());
        }
        if let Some(row) = self.store.run(id)? {
            return Ok(row.ended_at.is_some_and(|at| at < until));
        }
        match recovery::rebuild(&*self.journal, id) {
            Ok(run) => Ok(run.is_none_or(|run| run.has_ended() && run.updated_at < until)),
            // Whatever is wrong with it is a person's business.
            Err(_) => Ok(false),
        }
    }

    /// A run that is kept in memory for late reports goes now.
    async fn leaves(&self, id: &RunId) -> Result<(), RetentionError> {
        let until = Instant::now() + LEAVES_WITHIN;
        while let Some(entry) = self.runs.get(id) {
            entry.retire();
            if Instant::now() > until {
                return Err(RetentionError::InMemory(id.clone()));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Lists first: they must not name a run that can't be read. Nothing of the store is filled from the journal meanwhile.
    fn forget(&self, old: &Old, sorted: &Sorted) -> Result<(), RetentionError> {
        self.journal.carry(old, &sorted.keep)?;
        let _filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if self.store.position().0 + 1 < old.before.0 {
            return Err(RetentionError::StoreBehind);
        }
        for runs in sorted.runs.chunks(FORGET_AT_ONCE) {
            self.store.amend(runs.iter().cloned().map(StoreWrite::ForgetRun).collect())?;
        }
        self.journal.let_go(old, &sorted.keep, self.clock.now(), &self.ours)?;
        info!(before = old.before.0, runs = sorted.runs.len(), "old records of the journal were let go");
        Ok(())
    }
}
