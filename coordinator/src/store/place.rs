//! The store's directory: opening it under guard, doubting it, deleting it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
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
    guarded(|| {
        let config = sled::Config::new().path(path.join("sled")).cache_capacity(CACHE_BYTES);
        let db = config.flush_every_ms(Some(FLUSH_EVERY_MS)).open()?;
        let meta = entry::read_through(&db)?;
        Ok((db, meta))
    })
}

/// Deletes what is there and opens a new one.
pub(super) fn rebuild(path: &Path, cluster: &str, why: String) -> Result<(Db, Meta, Opening), StoreError> {
    tracing::warn!(path = %path.display(), %why, "the store is deleted, and rebuilt from the log");
    fs::remove_dir_all(path).map_err(|e| StoreError::Io(format!("{}: {e}", path.display())))?;
    let (db, meta) = open(path, cluster)?;
    Ok((db, meta, Opening::Rebuilt { why }))
}

/// Lets go of a tree whose files are deleted or damaged, and on which sled may panic or wait without end.
pub(super) fn forget(db: Db) {
    std::thread::spawn(move || {
        guarded(|| {
            drop(db);
            Ok(())
        })
    });
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
