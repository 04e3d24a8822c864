//! The store: a projection of the log in sled, for what is looked up by something else than its stream.
//!
//! It is written behind the log, off the hot path; it carries the log position in the same batch, so a crash leaves it at
//! some earlier position, never between two. It is never the truth: whatever is wrong with it, it is deleted, and the
//! caller fills it again by reading the log from [`Store::position`].

mod entry;
mod key;
mod list;
mod place;
mod row;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use muster_engine::ids::{Digest, Namespace, RunId};
use sled::{Db, Tree};

pub use self::row::{AgentRow, MilestoneRow, PlaybookRow, RequestRow, RunRow, Snapshot, StoreWrite};
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
    /// The system refused something. The same may succeed later.
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
    db: RwLock<Db>,
    meta: Mutex<Meta>,
}

impl Store {
    /// Opens the store in a directory of its own, reads it through, and deletes it if it is damaged, ahead of the log,
    /// of another cluster, or was left behind by a machine that went down (sled never syncs, so what is there may be old).
    ///
    /// # Errors
    /// Only if there can be no store at all: no room, no rights, or another process has it open.
    pub fn open(path: &Path, cluster: &str, head: Position) -> Result<(Self, Opening), StoreError> {
        let had_one = path.exists();
        let found =
            place::doubt(path, cluster).map_or_else(|| place::open(path, cluster), |why| Err(StoreError::Damaged(why)));
        let (db, meta, opening) = match found {
            Ok((db, meta)) if meta.position <= head => {
                (db, meta, if had_one { Opening::Kept } else { Opening::Created })
            }
            Ok((db, meta)) => {
                let why = format!("it stands at {}, the log ends at {}", meta.position.0, head.0);
                place::forget(db);
                place::rebuild(path, cluster, why)?
            }
            Err(StoreError::Damaged(why)) => place::rebuild(path, cluster, why)?,
            Err(error @ (StoreError::Io(_) | StoreError::BadPageToken)) => return Err(error),
        };
        let store = Self { path: path.into(), cluster: cluster.into(), db: RwLock::new(db), meta: Mutex::new(meta) };
        Ok((store, opening))
    }

    /// Everything up to this batch of the log is in the store; read the log from here.
    pub fn position(&self) -> Position {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner).position
    }

    /// Applies the writes that follow from the log up to `position`, all of them or none. A position that the store
    /// already has changes nothing.
    ///
    /// # Errors
    /// After [`StoreError::Damaged`] nothing more can be relied on until [`Store::reset`].
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
        *meta = self.with(|tree| {
            let mut staged = Staged::new(tree);
            for write in writes {
                stage(&mut staged, write)?;
            }
            staged.commit(meta, position)
        })?;
        Ok(())
    }

    /// Empties the store; its position is 0.
    ///
    /// # Errors
    /// If no new one can be made.
    pub fn reset(&self, why: &str) -> Result<(), StoreError> {
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        let (fresh, empty, _) = place::rebuild(&self.path, &self.cluster, why.into())?;
        place::forget(std::mem::replace(&mut *db, fresh));
        *meta = empty;
        Ok(())
    }

    /// Flushes and syncs everything, so that the store can be kept even if the machine goes down afterwards.
    ///
    /// # Errors
    /// The store will be rebuilt after the machine's next start; nothing is lost.
    pub fn close(self) -> Result<(), StoreError> {
        self.with(|tree| tree.flush().map(drop).map_err(StoreError::from))?;
        drop(self.db.into_inner().unwrap_or_else(PoisonError::into_inner));
        place::sync_all(&self.path).map_err(|e| StoreError::Io(e.to_string()))?;
        Mark::closed(&self.cluster).write(&self.path).map_err(|e| StoreError::Io(e.to_string()))
    }

    /// A run by its id.
    pub fn run(&self, id: &RunId) -> Result<Option<RunRow>, StoreError> {
        self.get(&key::run(id))
    }

    /// All runs that have not ended.
    pub fn open_runs(&self) -> Result<Vec<RunId>, StoreError> {
        self.with(|tree| {
            let keys = tree.scan_prefix(key::OPEN_RUNS).keys();
            keys.map(|key| {
                let key = key?;
                let id = std::str::from_utf8(&key[key::OPEN_RUNS.len()..]);
                id.map(RunId::from).map_err(|e| StoreError::Damaged(e.to_string()))
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

    fn get<T: serde::de::DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.with(|tree| entry::get(tree, key))
    }

    /// sled panics on damage; here that is an error like any other.
    fn with<T>(&self, work: impl FnOnce(&Tree) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        guarded(|| work(&db))
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
                staged.put(key::open_run(&row.id), b"");
            } else {
                staged.remove(key::open_run(&row.id));
            }
            staged.put_json(key::run(&row.id), &row)
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
    }
}
