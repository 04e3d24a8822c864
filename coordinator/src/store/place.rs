//! The store's directory: opening it under guard, doubting it, deleting it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sled::Db;

use super::{
    Opening, StoreError,
    entry::{self, Meta},
    guarded,
};

/// sled's own default of 1 GiB would be more than everything else together.
const CACHE_BYTES: u64 = 16 << 20;
const FLUSH_EVERY_MS: u64 = 1_000;

/// How long a flush of everything may take.
const END_WITHIN: Duration = Duration::from_secs(10);

/// What is written, and deleted again, to see whether a new store has a chance.
const TRY_BYTES: usize = 4 << 20;

/// Written beside the tree: who it belongs to, and whether the pages in it can be on the disk.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    cluster: String,
    /// The machine's start under which it was last written; none after a close that synced everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

impl Mark {
    pub(super) fn closed(cluster: &str) -> Self {
        Self { cluster: cluster.into(), boot: None }
    }

    fn in_use(cluster: &str) -> Self {
        Self { cluster: cluster.into(), boot: Some(boot_id()) }
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).expect("strings are always JSON");
        let (new, file) = (path.join("mark.new"), mark_of(path));
        fs::write(&new, text)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, file)?;
        File::open(path)?.sync_all()
    }
}

/// Why what is there is not even to be opened.
pub(super) fn doubt(path: &Path, cluster: &str) -> Option<String> {
    if !path.exists() {
        return None;
    }
    let mark: Mark = match fs::read(mark_of(path)).map(|text| serde_json::from_slice(&text)) {
        Ok(Ok(mark)) => mark,
        Ok(Err(e)) => return Some(format!("its mark can't be read: {e}")),
        Err(e) => return Some(format!("its mark can't be read: {e}")),
    };
    if mark.cluster != cluster {
        return Some(format!("it belongs to cluster {}", mark.cluster));
    }
    mark.boot.filter(|boot| *boot != boot_id()).map(|_| "the machine went down while it was open".into())
}

/// Opens what is there, or a new one, and reads it through.
pub(super) fn open(path: &Path, cluster: &str) -> Result<(Db, Meta), StoreError> {
    let io = |e: io::Error| StoreError::Io(format!("{}: {e}", path.display()));
    fs::create_dir_all(path).map_err(io)?;
    Mark::in_use(cluster).write(path).map_err(io)?;
    let db = guarded(|| {
        let config = sled::Config::new().path(path.join("sled")).cache_capacity(CACHE_BYTES);
        Ok(config.flush_every_ms(Some(FLUSH_EVERY_MS)).open()?)
    })?;
    match guarded(|| entry::read_through(&db)) {
        Ok(meta) => Ok((db, meta)),
        Err(e) => {
            abandon(db);
            Err(e)
        }
    }
}

/// Deletes what is there and opens a new one.
pub(super) fn rebuild(path: &Path, cluster: &str, why: String) -> Result<(Db, Meta, Opening), StoreError> {
    match delete(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::Io(format!("{}: {e}", path.display())));
        }
        Ok(()) | Err(_) => {}
    }
    let (db, meta) = open(path, cluster)?;
    Ok((db, meta, Opening::Rebuilt { why }))
}

/// An abandoned tree keeps its files open, so their room is given back before their names are.
fn delete(path: &Path) -> io::Result<()> {
    if let Ok(entries) = fs::read_dir(path.join("sled")) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            File::options().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    fs::remove_dir_all(path)
}

/// Whether so many bytes are free where the store is or will be. A file system that does not say how large it is, is
/// believed to have room.
pub(super) fn room(path: &Path, wanted: u64) -> Result<(), StoreError> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(path);
    let Ok(fs) = rustix::fs::statvfs(there) else { return Ok(()) };
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    if fs.f_blocks == 0 || free >= wanted {
        return Ok(());
    }
    Err(StoreError::NoRoom { path: path.display().to_string(), free_kib: free >> 10, wanted_kib: wanted >> 10 })
}

/// A quota or a limit shows only to who writes.
pub(super) fn try_out(path: &Path) -> Result<(), StoreError> {
    let file = path.join("try");
    let written = fs::create_dir_all(path)
        .and_then(|()| fs::write(&file, vec![0; TRY_BYTES]))
        .and_then(|()| File::open(&file)?.sync_all());
    let deleted = fs::remove_file(&file);
    written.and(deleted).map_err(|e| StoreError::Io(format!("{}: {e}", path.display())))
}

/// The first error that sled's own threads met; it is never forgotten.
pub(super) fn latched(db: &Db) -> Option<StoreError> {
    db.context.global_error().err().map(StoreError::from)
}

/// Lets go of a tree whose files are deleted or damaged, or of which a write failed. True: it stays in memory.
///
/// Dropping it flushes it, and the flush waits without an end for a buffer that a failed write left behind, with a lock
/// that all trees of the process share. Only where the error is latched it does not wait.
pub(super) fn abandon(db: Db) -> bool {
    if latched(&db).is_none() {
        std::mem::forget(db);
        return true;
    }
    thread::spawn(move || {
        guarded(|| {
            drop(db);
            Ok(())
        })
    });
    false
}

/// Flushes and drops a tree that is believed to be sound. The disk may fail in that very moment; then nobody waits on.
pub(super) fn end(db: Db) -> Result<(), StoreError> {
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        let flushed = guarded(|| db.flush().map(drop).map_err(StoreError::from));
        if flushed.is_ok() {
            drop(db);
        } else {
            abandon(db);
        }
        // Who waited may have given up.
        let _ = ended.send(flushed);
    });
    end.recv_timeout(END_WITHIN).unwrap_or_else(|_| Err(StoreError::Io("it can't be flushed".into())))
}

/// sled leaves this to the kernel.
pub(super) fn sync_all(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        if entry.is_dir() { sync_all(&entry)? } else { File::open(&entry)?.sync_all()? }
    }
    File::open(path)?.sync_all()
}

fn mark_of(path: &Path) -> PathBuf {
    path.join("mark")
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
