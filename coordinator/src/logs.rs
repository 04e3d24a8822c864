//! Lines that attempts write, kept in one file a run: bounded in memory and on disk, never in the way of a run.
//!
//! ```text
//! intake ─► take (a queue with limits, never waits) ─► one thread ─► {folder}/{run}.jsonl ─► pages, followers
//! ```
//!
//! Logs are evidence for people, not the truth: nothing is synced, and what finds no room is lost. What is lost is counted,
//! and said where it is missing: as an entry without text.

mod files;
mod page;
mod record;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use muster_engine::ids::{RunId, StepId};
use tokio::sync::{oneshot, watch};

pub use self::{
    page::{Page, PageError},
    record::{Entry, Lost},
};
use self::{record::cut, writer::Writer};
use crate::metrics::LOG_LINES_LOST;

/// The longest line, in bytes; the rest of it is cut off.
pub const LINE_BYTES: usize = 8 * 1024;
/// Lines that wait to be written, at most.
const QUEUE_LINES: usize = 16 * 1024;
/// Bytes of lines that wait to be written, at most.
const QUEUE_BYTES: usize = 16 << 20;

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one attempt, in bytes on disk.
    pub attempt_bytes: u64,
    /// Of one run, in bytes on disk.
    pub run_bytes: u64,
    /// Of all runs, in bytes on disk: the files that were written longest ago are deleted for new lines; 0 keeps nothing.
    pub total_bytes: u64,
    /// A run's file is deleted this long after its last line.
    pub max_age_ms: u64,
    /// Nothing is written with less than this free on the disk: the journal needs it more.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempt_bytes: 8 << 20,
            run_bytes: 64 << 20,
            total_bytes: 1 << 30,
            max_age_ms: 30 * 24 * 3_600_000,
            reserve_bytes: 32 << 20,
        }
    }
}

/// A line as it comes from an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Of which run.
    pub run: RunId,
    /// Of which step.
    pub step: StepId,
    /// Of which attempt.
    pub attempt: u32,
    /// From 1 in the attempt; a gap says that lines were lost on the way.
    pub number: u64,
    /// When, by the agent's clock, in milliseconds since 1970.
    pub at_ms: i64,
    /// What it says.
    pub text: String,
}

/// Which lines of a run are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this step.
    pub step: Option<StepId>,
    /// Of attempts with this number.
    pub attempt: Option<u32>,
}

/// Keeps lines; cheap to clone.
#[derive(Clone)]
pub struct Logs(Arc<Keeper>);

struct Keeper {
    folder: PathBuf,
    keeps: bool,
    queue: mpsc::SyncSender<Job>,
    queued_bytes: Arc<AtomicUsize>,
    followers: Arc<Followers>,
}

/// What the thread is asked.
enum Job {
    Line(Line),
    /// Answered when everything before it is written.
    Settle(oneshot::Sender<()>),
}

/// Who waits for more lines of which run.
#[derive(Default)]
struct Followers(Mutex<HashMap<RunId, watch::Sender<()>>>);

impl Followers {
    fn table(&self) -> MutexGuard<'_, HashMap<RunId, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self, run: &RunId) {
        if let Some(sender) = self.table().get(run) {
            sender.send_replace(());
        }
    }
}

/// Says when more lines of a run are written; dropping it is enough.
pub(crate) struct Follower {
    run: RunId,
    more: Option<watch::Receiver<()>>,
    followers: Arc<Followers>,
}

impl Follower {
    /// Until something was written since the last call. Cancel-safe.
    pub(crate) async fn more(&mut self) {
        let Some(more) = &mut self.more else { return };
        if more.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.more = None;
        let mut table = self.followers.table();
        if table.get(&self.run).is_some_and(|sender| sender.receiver_count() == 0) {
            table.remove(&self.run);
        }
    }
}

impl Logs {
    /// Keep lines in `folder`, which is made if it is not there, for this user alone. What an earlier process kept is still
    /// there, as far as the limits let it.
    ///
    /// # Errors
    /// When the folder can't be made, or no thread.
    pub fn open(folder: &Path, limits: Limits) -> io::Result<Self> {
        files::make(folder)?;
        let (queue, jobs) = mpsc::sync_channel(QUEUE_LINES);
        let (queued_bytes, followers) = (Arc::default(), Arc::<Followers>::default());
        let writer = Writer::new(folder, limits, Arc::clone(&queued_bytes), Arc::clone(&followers));
        thread::Builder::new().name("logs".to_owned()).spawn(move || writer.run(&jobs))?;
        Ok(Self(Arc::new(Keeper {
            folder: folder.to_owned(),
            keeps: limits.total_bytes > 0,
            queue,
            queued_bytes,
            followers,
        })))
    }

    /// Take a line, if there is room for it in memory; it is written soon. Never waits: what finds no room is lost, and the
    /// gap in the numbers says so.
    pub fn take(&self, mut line: Line) {
        if !self.0.keeps {
            return;
        }
        cut(&mut line.text, LINE_BYTES);
        let bytes = line.text.len();
        let queued = &self.0.queued_bytes;
        if queued.fetch_add(bytes, Ordering::AcqRel) + bytes > QUEUE_BYTES
            || self.0.queue.try_send(Job::Line(line)).is_err()
        {
            queued.fetch_sub(bytes, Ordering::AcqRel);
            metrics::counter!(LOG_LINES_LOST, "why" => "queue").increment(1);
        }
    }

    /// Wait until everything that was taken so far is written, or lost; at the latest until the thread has ended.
    pub async fn settled(&self) {
        let (answer, answered) = oneshot::channel();
        let keeper = Arc::clone(&self.0);
        // A queue that is full takes it later.
        let asked = tokio::task::spawn_blocking(move || keeper.queue.send(Job::Settle(answer)).is_ok()).await;
        if asked.unwrap_or(false) {
            // Not answered: the thread has ended.
            let _ = answered.await;
        }
    }

    /// Entries of a run after a position (0: from its beginning), at most `limit`. A page may have fewer, even none, and
    /// still not be the last: its `position` says how far it looked.
    ///
    /// # Errors
    /// See [`PageError`].
    pub async fn page(&self, run: &RunId, filter: &Filter, after: u64, limit: usize) -> Result<Page, PageError> {
        let (path, filter) = (files::path_of(&self.0.folder, run), filter.clone());
        let read = tokio::task::spawn_blocking(move || page::read(&path, &filter, after, limit)).await;
        read.map_err(|e| PageError::Io(io::Error::other(e)))?
    }

    /// Hear of lines of a run from now on.
    pub(crate) fn follow(&self, run: &RunId) -> Follower {
        let followers = Arc::clone(&self.0.followers);
        let more = followers.table().entry(run.clone()).or_insert_with(|| watch::Sender::new(())).subscribe();
        Follower { run: run.clone(), more: Some(more), followers }
    }
}
