//! The store: a projection of the log in sled, for what is looked up by something else than its stream.
//!
//! It is written behind the log, off the hot path; it carries the log position in the same batch, so a crash leaves it at
//! some earlier position, never between two. It is never the truth: whatever is wrong with it, it is deleted, and the
//! caller fills it again by reading the log from [`Store::position`].
//!
//! sled does not outlive an error of the disk: it remembers the first one of its own threads for ever, and forgets another
//! in a way that leaves everybody waiting who flushes or drops it. So nothing is written where there is no room, a store of
//! which anything failed is not touched again before [`Store::reset`], and nobody waits for sled without an end.

mod entry;
mod key;
mod list;
mod place;
mod row;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use muster_engine::{
    ids::{Digest, Namespace, RunId},
    run::Rest,
};
use sled::{Db, Tree};

pub use self::row::{AgentRow, EventsRow, MilestoneRow, PlaybookRow, RequestRow, RunRow, Snapshot, StoreWrite};
use self::{
    entry::{Meta, Staged},
    place::Mark,
};
use crate::journal::Position;

#[cfg(test)]
mod tests;

/// Why the store could not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It is not what was written. [`Store::reset`] empties it; then read the log again from the start.
    #[error("the store is damaged and has to be rebuilt from the log: {0}")]
    Damaged(String),
    /// The disk is as good as full. Nothing was touched; the same succeeds when there is room.
    #[error("there is no room for the store: {free_kib} KiB are free in {path}, and it wants {wanted_kib}")]
    NoRoom {
        /// The store's directory.
        path: String,
        /// What is left on its file system.
        free_kib: u64,
        /// What has to be left, see [`Store::keep_free`].
        wanted_kib: u64,
    },
    /// The system refused something. It may succeed later, after [`Store::reset`] if the store [is broken](Store::broken).
    #[error("the store can't be used: {0}")]
    Io(String),
    /// The page token was not given out by this list.
    #[error("the page token is not one of this list: leave it away to begin at the start")]
    BadPageToken,
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(e) => Self::Io(e.to_string()),
            sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_)
            | sled::Error::Corruption { .. } => Self::Damaged(error.to_string()),
        }
    }
}

/// What was found when the store was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It stands at [`Store::position`].
    Kept,
    /// There was none.
    Created,
    /// What was there was deleted; the position is 0.
    Rebuilt {
        /// Why, for people.
        why: String,
    },
}

/// The projection. All methods block on the disk: call them off the hot path, writes from one thread.
pub struct Store {
    path: PathBuf,
    cluster: String,
    /// None while there is none to be had, and when it has been closed.
    db: RwLock<Option<Db>>,
    meta: Mutex<Meta>,
    broken: Mutex<Option<String>>,
    keep_free: AtomicU64,
    abandoned: AtomicUsize,
}

/// sled writes half a MiB at a time, and cleans up by writing more.
const KEEP_FREE: u64 = 8 << 20;

/// A broken tree that can't be dropped stays in memory; so many are put up with.
const ABANDONED_AT_MOST: usize = 16;

impl Store {
    /// Opens the store in a directory of its own, reads it through, and deletes it if it is damaged, ahead of the log,
    /// of another cluster, or was left behind by a machine that went down (sled never syncs, so what is there may be old).
    ///
    /// # Errors
    /// Only if there can be no store at all: no room, no rights, or another process has it open.
    pub fn open(path: &Path, cluster: &str, head: Position) -> Result<(Self, Opening), StoreError> {
        Self::open_keeping(KEEP_FREE, path, cluster, head)
    }

    /// As [`Store::open`], with another value for [`Store::keep_free`].
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_keeping(free: u64, path: &Path, cluster: &str, head: Position) -> Result<(Self, Opening), StoreError> {
        place::room(path, free)?;
        let had_one = path.exists();
        let found =
            place::doubt(path, cluster).map_or_else(|| place::open(path, cluster), |why| Err(StoreError::Damaged(why)));
        let (db, meta, opening) = match found {
            Ok((db, meta)) if meta.position <= head => {
                (db, meta, if had_one { Opening::Kept } else { Opening::Created })
            }
            Ok((db, meta)) => {
                let why = format!("it stands at {}, the log ends at {}", meta.position.0, head.0);
                place::abandon(db);
                place::rebuild(path, cluster, why)?
            }
            Err(StoreError::Damaged(why)) => place::rebuild(path, cluster, why)?,
            Err(error @ (StoreError::NoRoom { .. } | StoreError::Io(_) | StoreError::BadPageToken)) => {
                return Err(error);
            }
        };
        let store = Self {
            path: path.into(),
            cluster: cluster.into(),
            db: RwLock::new(Some(db)),
            meta: Mutex::new(meta),
            broken: Mutex::default(),
            keep_free: AtomicU64::new(free),
            abandoned: AtomicUsize::new(0),
        };
        Ok((store, opening))
    }

    /// Write nothing while fewer bytes than these are free on the file system: [`StoreError::NoRoom`].
    pub fn keep_free(&self, bytes: u64) {
        self.keep_free.store(bytes, Ordering::Relaxed);
    }

    /// Whether there is room to write.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`].
    pub fn look_for_room(&self) -> Result<(), StoreError> {
        place::room(&self.path, self.keep_free.load(Ordering::Relaxed))
    }

    /// Why nothing more can be read or written before [`Store::reset`], if that is so.
    pub fn broken(&self) -> Option<String> {
        let why = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        why.or_else(|| self.tree().err().map(|e| e.to_string()))
    }

    /// Everything up to this batch of the log is in the store; read the log from here.
    pub fn position(&self) -> Position {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner).position
    }

    /// Applies the writes that follow from the log up to `position`, all of them or none. A position that the store
    /// already has changes nothing.
    ///
    /// # Errors
    /// After anything but [`StoreError::NoRoom`] the store [is broken](Store::broken).
    pub fn apply_batch(&self, position: Position, writes: Vec<StoreWrite>) -> Result<(), StoreError> {
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        if position <= meta.position {
            return Ok(());
        }
        self.write(&mut meta, position, writes)
    }

    /// Applies writes that follow from nothing new in the log, such as a run's quarantine, all of them or none.
    ///
    /// # Errors
    /// As [`Store::apply_batch`].
    pub fn amend(&self, writes: Vec<StoreWrite>) -> Result<(), StoreError> {
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        let position = meta.position;
        self.write(&mut meta, position, writes)
    }

    fn write(&self, meta: &mut Meta, position: Position, writes: Vec<StoreWrite>) -> Result<(), StoreError> {
        self.look_for_room()?;
        *meta = self.with(|tree| {
            let mut staged = Staged::new(tree);
            for write in writes {
                stage(&mut staged, write)?;
            }
            staged.commit(meta, position)
        })?;
        // sled says yes before it writes; that an earlier write failed may show only now.
        self.tree().map(drop)
    }

    /// Empties the store; its position is 0. Who still reads the old one is not waited for.
    ///
    /// # Errors
    /// If no new one can be made: no room, which is tried out before anything is deleted, or no rights.
    pub fn reset(&self, why: &str) -> Result<(), StoreError> {
        self.look_for_room()?;
        place::try_out(&self.path)?;
        if self.abandoned.load(Ordering::Relaxed) >= ABANDONED_AT_MOST {
            return Err(StoreError::Io(format!("it broke {ABANDONED_AT_MOST} times; only a restart mends it now")));
        }
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        self.give_up(why);
        let old = self.db.write().unwrap_or_else(PoisonError::into_inner).take();
        if old.is_some_and(place::abandon) {
            self.abandoned.fetch_add(1, Ordering::Relaxed);
        }
        let (fresh, empty, _) = place::rebuild(&self.path, &self.cluster, why.into())?;
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        *meta = empty;
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Flushes and syncs everything, so that the store can be kept even if the machine goes down afterwards. Takes a few
    /// seconds at most.
    ///
    /// # Errors
    /// The store will be rebuilt after the machine's next start; nothing is lost.
    pub fn close(self) -> Result<(), StoreError> {
        if let Some(why) = self.broken() {
            return Err(StoreError::Io(why));
        }
        if let Some(db) = self.db.write().unwrap_or_else(PoisonError::into_inner).take() {
            place::end(db)?;
        }
        place::sync_all(&self.path).map_err(|e| StoreError::Io(e.to_string()))?;
        Mark::closed(&self.cluster).write(&self.path).map_err(|e| StoreError::Io(e.to_string()))
    }

    /// A run by its id.
    pub fn run(&self, id: &RunId) -> Result<Option<RunRow>, StoreError> {
        self.get(&key::run(id))
    }

    /// All runs.
    pub fn runs(&self) -> Result<Vec<RunId>, StoreError> {
        self.with(|tree| {
            let keys = tree.scan_prefix(key::RUNS).keys();
            keys.map(|key| {
                let id = key?;
                let id = std::str::from_utf8(&id[key::RUNS.len()..]).map(RunId::from);
                id.map_err(|e| StoreError::Damaged(e.to_string()))
            })
            .collect()
        })
    }

    /// All runs that have not ended, each with [`RunRow::rest`].
    pub fn open_runs(&self) -> Result<BTreeMap<RunId, Option<Rest>>, StoreError> {
        self.with(|tree| {
            let entries = tree.scan_prefix(key::OPEN_RUNS);
            entries
                .map(|entry| {
                    let (key, entry) = entry?;
                    let id = std::str::from_utf8(&key[key::OPEN_RUNS.len()..]);
                    let id = id.map(RunId::from).map_err(|e| StoreError::Damaged(e.to_string()))?;
                    Ok((id, entry::parse(&key, &entry)?))
                })
                .collect()
        })
    }

    /// The agents of all namespaces, as they were last journalled.
    pub fn agents(&self) -> Result<Vec<AgentRow>, StoreError> {
        self.with(|tree| {
            let entries = tree.scan_prefix(key::AGENTS);
            entries
                .map(|entry| entry.map_err(StoreError::from).and_then(|(key, row)| entry::parse(&key, &row)))
                .collect()
        })
    }

    /// The run's last snapshot.
    pub fn snapshot(&self, run: &RunId) -> Result<Option<Snapshot>, StoreError> {
        let key = key::snapshot(run);
        self.with(|tree| {
            let Some(entry) = tree.get(&key)? else { return Ok(None) };
            let bad = |what: String| StoreError::Damaged(format!("snapshot of run {run}: {what}"));
            let (seq, state) =
                entry::payload(&key, &entry)?.split_first_chunk::<8>().ok_or_else(|| bad("too short".into()))?;
            let state = serde_json::from_slice(state).map_err(|e| bad(e.to_string()))?;
            Ok(Some(Snapshot { seq: u64::from_be_bytes(*seq), state }))
        })
    }

    /// A revision of a playbook; the newest one when none is named.
    pub fn playbook(
        &self,
        namespace: &Namespace,
        name: &str,
        revision: Option<&Digest>,
    ) -> Result<Option<PlaybookRow>, StoreError> {
        match revision {
            Some(revision) => self.get(&key::playbook(namespace, name, revision)),
            None => match self.get::<Digest>(&key::newest_playbook(namespace, name))? {
                Some(newest) => self.get(&key::playbook(namespace, name, &newest)),
                None => Ok(None),
            },
        }
    }

    /// What a request was answered.
    pub fn request(&self, id: &str) -> Result<Option<RequestRow>, StoreError> {
        self.get(&key::request(id))
    }

    /// How far the events for outsiders are published; none: nobody knows.
    pub fn events(&self) -> Result<Option<EventsRow>, StoreError> {
        self.get(key::EVENTS)
    }

    fn get<T: serde::de::DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.with(|tree| entry::get(tree, key))
    }

    /// sled panics on damage; here that is an error like any other.
    fn with<T>(&self, work: impl FnOnce(&Tree) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // No lock is held: a tree whose disk fails may never come back from a call.
        let db = self.tree()?;
        let done = guarded(|| work(&db));
        match &done {
            // A batch that failed may be in the tree's memory by half.
            Err(e @ (StoreError::Damaged(_) | StoreError::Io(_))) => self.give_up(&e.to_string()),
            Ok(_) | Err(StoreError::NoRoom { .. } | StoreError::BadPageToken) => {}
        }
        done
    }

    /// What can be relied on.
    fn tree(&self) -> Result<Db, StoreError> {
        if let Some(why) = &*self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(StoreError::Io(why.clone()));
        }
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner).clone();
        let db = db.ok_or_else(|| StoreError::Io("it is closed".into()))?;
        match place::latched(&db) {
            None => Ok(db),
            Some(e) => {
                self.give_up(&e.to_string());
                Err(e)
            }
        }
    }

    fn give_up(&self, why: &str) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let is_broken = self.broken().is_some();
        let db = self.db.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        match db {
            Some(db) if is_broken => drop(place::abandon(db)),
            // What was not flushed is read from the log again.
            Some(db) => drop(place::end(db)),
            None => {}
        }
    }
}

fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        Err(StoreError::Damaged(text.unwrap_or("sled panicked").into()))
    })
}

fn stage(staged: &mut Staged<'_>, write: StoreWrite) -> Result<(), StoreError> {
    match write {
        StoreWrite::Run(row) => {
            staged.put(key::run_by_start(&row.namespace, row.started_at, &row.id), b"");
            if row.ended_at.is_none() {
                staged.put_json(key::open_run(&row.id), &row.rest)?;
            } else {
                staged.remove(key::open_run(&row.id));
            }
            staged.put_json(key::run(&row.id), &row)
        }
        StoreWrite::ForgetRun(id) => {
            if let Some(row) = staged.read::<RunRow>(&key::run(&id))? {
                staged.remove(key::run_by_start(&row.namespace, row.started_at, &id));
                staged.remove_all(&key::milestones_of(&row.namespace, &id))?;
            }
            staged.remove(key::open_run(&id));
            staged.remove(key::snapshot(&id));
            staged.remove(key::run(&id));
            Ok(())
        }
        StoreWrite::Milestone(row) => staged.put_json(key::milestone(&row.namespace, &row.run, row.ordinal), &row),
        StoreWrite::Playbook(row) => {
            staged.put_json(key::newest_playbook(&row.namespace, &row.name), &row.revision)?;
            staged.put_json(key::playbook(&row.namespace, &row.name, &row.revision), &row)
        }
        StoreWrite::Snapshot { run, snapshot } => {
            let mut payload = snapshot.seq.to_be_bytes().to_vec();
            payload.extend_from_slice(snapshot.state.get().as_bytes());
            staged.put(key::snapshot(&run), &payload);
            Ok(())
        }
        StoreWrite::DropSnapshot(run) => {
            staged.remove(key::snapshot(&run));
            Ok(())
        }
        StoreWrite::Request(row) => staged.put_json(key::request(&row.id), &row),
        StoreWrite::DropRequest(id) => {
            staged.remove(key::request(&id));
            Ok(())
        }
        StoreWrite::Agent(row) => staged.put_json(key::agent(&row.namespace, &row.name), &row),
        StoreWrite::Events(row) => staged.put_json(key::EVENTS.to_vec(), &row),
    }
}
