//! The journal on disk: a log of plain JSON lines, one committer thread, one sync for all that wait.
//!
//! ```text
//! {data}/lock      held by the one process that may write
//! {data}/cluster   the lives of this log, the present one last
//! {data}/HEAD      the last batch that was answered, in two slots; written after the answer, never synced
//! {data}/log/{first batch}.jsonl
//! ```
//!
//! An `Ok` comes after a successful `fdatasync` that covers the append. Everything else follows from never taking a byte
//! for granted that was not synced: see `docs/journal.md`.

mod commit;
pub mod disk;
pub(crate) mod files;
mod format;
mod index;
mod open;
mod pack;
mod packed;
mod queue;
mod read;
mod replay;
mod retain;
mod scan;
mod spare;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use jiff::Timestamp;
use muster_engine::ids::Actor;
use tokio::sync::{oneshot, watch};

pub use self::walk::Loss;
use self::{
    commit::{Committer, Request, Work},
    disk::{Disk, RealDisk},
    files::Lock,
    index::{Index, Place},
    queue::Queue,
    read::{Carried, LastPacked, Reader},
    spare::Spare,
};
use super::{
    AppendError, Appended, Head, Journal, LetGoError, MAX_APPEND_BYTES, Old, Position, ReadError, Record, StreamAppend,
    StreamId, record,
};
use crate::metrics::JOURNAL_SYNCS;

/// How a log is opened.
#[derive(Clone)]
pub struct LogOptions {
    /// A segment is closed at about this size. At most 128 MiB.
    pub segment_bytes: u64,
    /// Go on although records are lost and not all streams that lost some can be named. The log then begins a new life.
    pub accept_loss: bool,
    /// The files are a backup that was put back: what was written after it is lost, though nothing here is missing. The log
    /// begins a new life.
    pub restored: bool,
    /// Appends that wait for the disk take at most this much memory; more are answered `Unavailable` at once.
    pub queue_bytes: usize,
    /// For tests.
    pub disk: Arc<dyn Disk>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            accept_loss: false,
            restored: false,
            queue_bytes: 64 << 20,
            disk: Arc::new(RealDisk),
        }
    }
}

/// What was found when a log was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// There was none.
    pub created: bool,
    /// The log's present life; another one after a loss was accepted.
    pub cluster: String,
    /// Records that are lost. Streams that are named take no more records, and can't be read.
    pub losses: Vec<Loss>,
    /// A loss was accepted just now, or a backup was put back.
    pub accepted_loss: bool,
    /// The present life began with an accepted loss, or with a backup that was put back: what runs that were open then did is not known.
    pub after_loss: bool,
    /// How much was cut off the end: an append that nobody was answered for.
    pub cut_bytes: u64,
    /// How many there are.
    pub records: u64,
}

/// Why a log was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another process; stop that one first", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// Records that were answered are lost, or may be.
    #[error(
        "the log is not whole ({}); restore a backup, or accept the loss with --accept-loss: every open run then waits for a person to look at it",
        list(losses)
    )]
    Loss {
        /// What, and where.
        losses: Vec<Loss>,
    },
    /// A newer program wrote it.
    #[error("{file} has a record of version {version}, which a newer muster has written; use that one")]
    Version {
        /// Which file.
        file: String,
        /// Which version.
        version: u32,
    },
    /// The system refused something.
    #[error("can't use {}", path.display())]
    Io {
        /// What was to be used.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl OpenError {
    /// The disk is full, or a quota is: there is nothing to mend, and it can be tried again.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Io { source, .. } if disk::is_no_room(source))
    }
}

fn list(losses: &[Loss]) -> String {
    losses.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Whether the log takes appends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Standing,
    /// A write or sync has failed; it is being tried again. Appends wait.
    Interrupted {
        /// The system's words.
        why: String,
    },
    /// There is no room on the disk. Appends wait until there is.
    WaitingForRoom {
        /// The system's words, and how much is free.
        why: String,
    },
    /// It can't go on, and neither can the process: end it. What was not answered may or may not be there.
    Ended {
        /// What failed, where, and what to do.
        why: String,
    },
}

/// The log of a data directory, which is locked until this is dropped. Dropping waits for everything handed over.
pub struct LogJournal {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
    _lock: Lock,
}

/// What the committer and everyone else have in common.
pub(crate) struct Shared {
    data: PathBuf,
    cluster: String,
    after_loss: bool,
    segment_bytes: u64,
    disk: Arc<dyn Disk>,
    queue: Queue,
    queue_bytes: usize,
    index: Mutex<Index>,
    last_packed: LastPacked,
    syncs: AtomicU64,
    health: watch::Sender<Health>,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the hot path: what is prepared ahead of use does not count.
    fn count_syncs(&self, syncs: u64) {
        self.syncs.fetch_add(syncs, Ordering::Relaxed);
        metrics::counter!(JOURNAL_SYNCS).increment(syncs);
    }

    fn hand_over(&self, work: Work, bytes: usize) -> Appended {
        let (answer, appended) = oneshot::channel();
        if let Err((request, why)) = self.queue.push(Request { work, bytes, answer }, self.queue_bytes) {
            // The receiver is still in our hands.
            let _ = request.answer.send(Err(AppendError::Unavailable(why.into())));
        }
        appended
    }

    fn set_health(&self, health: Health) {
        self.health.send_if_modified(|old| {
            let changed = *old != health;
            *old = health;
            changed
        });
    }

    /// Nothing more is written; everyone who waits is told.
    fn end(&self, why: &str) {
        tracing::error!(why, "the log has ended");
        self.set_health(Health::Ended { why: why.into() });
        let mut waiting = Vec::new();
        self.queue.end(&mut waiting);
        for request in waiting {
            let _ = request.answer.send(Err(AppendError::Unavailable(why.into())));
        }
    }
}

impl LogJournal {
    /// Whether there is a log in a data directory, whole or not. [`LogJournal::open`] makes one where there is none.
    pub fn is_begun(data: &Path) -> bool {
        files::log_dir(data).exists()
    }

    /// Opens the log of a data directory, or makes one; reads all of it and checks every byte.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(data: &Path, mut options: LogOptions) -> Result<(Self, Opening), OpenError> {
        options.segment_bytes = options.segment_bytes.min(Place::MAX_OFFSET / 2);
        let opened = open::open(data, &options)?;
        let shared = Arc::new(Shared {
            data: data.into(),
            cluster: opened.opening.cluster.clone(),
            after_loss: opened.opening.after_loss,
            segment_bytes: options.segment_bytes,
            disk: options.disk,
            queue: Queue::default(),
            queue_bytes: options.queue_bytes,
            index: Mutex::new(opened.index),
            last_packed: LastPacked::default(),
            syncs: AtomicU64::new(0),
            health: watch::Sender::new(Health::Standing),
        });
        let start = || {
            let spare = Spare::start(shared.clone())?;
            let committer = Committer::new(shared.clone(), opened.active, opened.head, spare, opened.before);
            let shared = shared.clone();
            thread::Builder::new().name("journal".into()).spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| committer.run())).is_err() {
                    shared.end("the committer panicked, which is a bug; the log is checked when it is opened again");
                }
            })
        };
        let committer = start().map_err(|source| OpenError::Io { path: data.into(), source })?;
        Ok((Self { shared, committer: Some(committer), _lock: opened.lock }, opened.opening))
    }

    /// The log's present life: a UUID, another one after records were lost.
    pub fn cluster(&self) -> &str {
        &self.shared.cluster
    }

    /// See [`Opening::after_loss`].
    pub fn after_loss(&self) -> bool {
        self.shared.after_loss
    }

    /// Whether the log takes appends. Whoever serves watches this, and ends the process at [`Health::Ended`].
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.shared.index().streams()
    }
}

impl Drop for LogJournal {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(committer) = self.committer.take() {
            // It catches its own panics.
            let _ = committer.join();
        }
    }
}

impl Journal for LogJournal {
    fn append(&self, appends: Vec<StreamAppend>) -> Appended {
        match super::check_size(&appends, MAX_APPEND_BYTES) {
            Ok(bytes) => self.shared.hand_over(Work::Append(appends), bytes),
            Err(error) => {
                let (answer, appended) = oneshot::channel();
                // The receiver is still in our hands.
                let _ = answer.send(Err(error));
                appended
            }
        }
    }

    fn read(&self, after: Position) -> Box<dyn Iterator<Item = Result<(Position, Record), ReadError>> + Send> {
        let index = self.shared.index();
        let from = index.segments.partition_point(|segment| segment.first <= after.0 + 1).saturating_sub(1);
        let is_before = after < index.begins();
        let carried = if is_before { Carried::Wanted(index.carried_streams()) } else { Carried::Known };
        Box::new(Reader::new(index.segments[from..].to_vec(), after, carried))
    }

    fn read_stream(&self, stream: &StreamId, after_seq: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        read::stream(&self.shared, stream, after_seq, limit)
    }

    fn damaged(&self) -> Vec<StreamId> {
        self.shared.index().damaged_streams()
    }

    fn begins(&self) -> Position {
        self.shared.index().begins()
    }

    fn old(&self, until: Timestamp) -> Result<Option<Old>, ReadError> {
        retain::old(&self.shared, until)
    }

    fn pack(&self, until: Timestamp) -> Result<usize, ReadError> {
        pack::pack(&self.shared, until)
    }

    fn carry(&self, old: &Old, keep: &[StreamId]) -> Result<(), LetGoError> {
        retain::carry(&self.shared, old, keep)
    }

    fn let_go(&self, old: &Old, keep: &[StreamId], at: Timestamp, by: &Actor) -> Result<Position, LetGoError> {
        retain::let_go(&self.shared, old, keep, at, by)
    }

    fn seq(&self, stream: &StreamId) -> u64 {
        self.shared.index().seq_of(stream)
    }

    fn head(&self) -> Head {
        let index = self.shared.index();
        Head { position: index.position, chain: record::hex(&index.chain) }
    }

    fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }
}
