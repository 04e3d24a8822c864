//! The lock file: one process per data folder, and proof of what became of the ones before.
//!
//! The lock itself is the kernel's (`flock`), so it ends with its process however that ends. What is written into the
//! file names the process, so that a later one can tell that it, and every child of it, is dead.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    durable,
    guard::GuardRecords,
    proc::{self, Identity},
};

/// So many earlier instances are remembered; older ones have long been answered for.
const REMEMBERED: usize = 32;

/// Held as long as the process works in its data folder.
pub(crate) struct Lock {
    locked: File,
    earlier: Vec<Earlier>,
    boot_id: String,
    guards: GuardRecords,
}

/// Why a data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another process works in {0}; one data folder serves one agent")]
    Taken(PathBuf),
    /// The disk says no.
    #[error("can't use the data folder {folder}")]
    Io {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Content {
    current: Earlier,
    earlier: Vec<Earlier>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Earlier {
    instance: String,
    #[serde(flatten)]
    process: Identity,
    boot_id: String,
}

impl Lock {
    /// Lock `folder` for this process, and write down that it is `instance`.
    pub(crate) fn take(folder: &Path, instance: &str) -> Result<Self, LockError> {
        let io = |source| LockError::Io { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(io)?;
        let path = folder.join("lock");
        let locked = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io)?;
        match locked.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Taken(folder.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let path = folder.join("instance.json");
        let mut earlier = read(&path).map_err(io)?;
        earlier.drain(..earlier.len().saturating_sub(REMEMBERED));
        let boot_id = proc::boot_id().map_err(io)?;
        let current =
            Earlier { instance: instance.to_owned(), process: proc::myself().map_err(io)?, boot_id: boot_id.clone() };
        let content = Content { current, earlier: earlier.clone() };
        let bytes = serde_json::to_vec_pretty(&content).map_err(|e| io(e.into()))?;
        durable::write(&path, &bytes).map_err(io)?;
        let guards = GuardRecords::open(&folder.join("guards")).map_err(io)?;
        Ok(Self { locked, earlier, boot_id, guards })
    }

    /// Earlier instances that are dead with all their children. One whose end can't be proved is not named.
    pub(crate) fn dead(&self) -> Vec<String> {
        self.earlier.iter().filter(|earlier| self.is_dead(earlier)).map(|earlier| earlier.instance.clone()).collect()
    }

    /// How many earlier instances are remembered, dead or not.
    pub(crate) fn earlier(&self) -> usize {
        self.earlier.len()
    }

    /// Where children are written down.
    pub(crate) fn guards(&self) -> &GuardRecords {
        &self.guards
    }

    fn is_dead(&self, earlier: &Earlier) -> bool {
        if earlier.boot_id != self.boot_id {
            return true;
        }
        if proc::is_alive(earlier.process) {
            return false;
        }
        match self.guards.any_alive(&earlier.instance) {
            Ok(alive) => !alive,
            Err(error) => {
                tracing::warn!(instance = earlier.instance, %error, "can't tell whether its children are dead");
                false
            }
        }
    }
}

impl Drop for Lock {
    /// Closing the file would do, were it not for children just being started: until their `exec` they hold it open too.
    fn drop(&mut self) {
        if let Err(error) = self.locked.unlock() {
            tracing::warn!(%error, "can't give the data folder back");
        }
    }
}

/// The ones before, the latest last.
fn read(path: &Path) -> io::Result<Vec<Earlier>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let Content { current, mut earlier } = serde_json::from_slice(&bytes).map_err(|source| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged ({source}); move it away", path.display()))
    })?;
    earlier.push(current);
    Ok(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(folder: &Path, change: impl Fn(&mut Earlier)) {
        let path = folder.join("instance.json");
        let mut content: Content = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut content.current);
        fs::write(&path, serde_json::to_vec(&content).unwrap()).unwrap();
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path(), "i-1").unwrap();
        assert!(matches!(Lock::take(folder.path(), "i-2"), Err(LockError::Taken(_))));
        assert_eq!(lock.dead(), Vec::<String>::new());
        drop(lock);
        // The same process under another instance: it is not dead, and nothing else is said.
        assert_eq!(Lock::take(folder.path(), "i-2").unwrap().dead(), Vec::<String>::new());
    }

    /// A child between `fork` and `exec` holds the same open file.
    #[test]
    fn is_given_back_though_a_child_is_being_started() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path(), "i-1").unwrap();
        let _held_by_a_child = lock.locked.try_clone().unwrap();
        drop(lock);
        assert!(Lock::take(folder.path(), "i-2").is_ok());
    }

    #[test]
    fn names_the_dead_and_only_them() {
        let folder = tempfile::tempdir().unwrap();
        drop(Lock::take(folder.path(), "i-1").unwrap());
        rewrite(folder.path(), |current| current.process.started += 1);
        drop(Lock::take(folder.path(), "i-2").unwrap());
        rewrite(folder.path(), |current| current.boot_id = "another".to_owned());
        let lock = Lock::take(folder.path(), "i-3").unwrap();
        assert_eq!(lock.dead(), ["i-1", "i-2"]);
        drop(lock);
        let lock = Lock::take(folder.path(), "i-4").unwrap();
        assert_eq!(lock.dead(), ["i-1", "i-2"], "i-3 is this process");
    }

    #[test]
    fn a_damaged_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("instance.json"), "{").unwrap();
        let error = Lock::take(folder.path(), "i-1").err().unwrap();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("damaged"));
    }
}
