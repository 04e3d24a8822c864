//! The data directory: who may write it, which log it is, and which files the log has.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{OpenError, format, packed::packed_file};
use crate::journal::record::Chain;

/// Where the segments are.
pub(crate) fn log_dir(data: &Path) -> PathBuf {
    data.join("log")
}

pub(crate) fn head_file(data: &Path) -> PathBuf {
    data.join("HEAD")
}

pub(crate) fn cluster_file(data: &Path) -> PathBuf {
    data.join("cluster")
}

/// The file of the segment that begins with this batch.
pub(crate) fn segment_file(data: &Path, first: u64) -> PathBuf {
    log_dir(data).join(format!("{first:020}.jsonl"))
}

/// Segments by their first batch, each by the name of its plain file, whether it is packed or not.
pub(crate) fn segments(data: &Path) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let dir = log_dir(data);
    let io = |source| OpenError::Io { path: dir.clone(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let plain = name.strip_suffix(".gz").unwrap_or(name);
        if let Some(first) = plain.strip_suffix(".jsonl").and_then(|first| first.parse().ok()) {
            found.push((first, path.with_file_name(plain)));
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Takes segments away, one after the other, so that what is left is without gaps whenever this ends.
pub(crate) fn remove(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths.iter().flat_map(|path| [path.clone(), packed_file(path)]) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) | Ok(()) => {}
        }
    }
    Ok(())
}

/// The right to use a data directory, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    pub(super) file: File,
}

impl Drop for Lock {
    /// Closing the file would do, were it not for children just being started: until their `exec` they hold it open too.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "can't give the data directory back");
        }
    }
}

/// Takes the directory for one process.
pub(crate) fn lock(data: &Path) -> Result<Lock, OpenError> {
    let path = data.join("lock");
    let io = |source| OpenError::Io { path: path.clone(), source };
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { file }),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: data.into() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Sees to it that nobody writes the directory while it is read; leaves nothing behind.
pub(crate) fn lock_shared(data: &Path) -> Result<Option<Lock>, OpenError> {
    let path = data.join("lock");
    match File::open(&path) {
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => Ok(Some(Lock { file })),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: data.into() }),
            Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

/// A life of the log. After records were lost, a new one begins, so that nobody takes what it says for the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cluster {
    #[serde(rename = "cluster")]
    pub(crate) id: String,
    pub(crate) after: After,
    /// The losses that were accepted when it began, as [`super::Loss::key`].
    pub(crate) accepted: Vec<String>,
}

/// Up to where the life before is part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct After {
    pub(crate) batch: u64,
    pub(crate) chain: String,
}

impl Cluster {
    pub(crate) fn new(batch: u64, chain: &Chain, accepted: Vec<String>) -> Self {
        let chain = crate::journal::record::hex(chain);
        Self { id: Uuid::now_v7().to_string(), after: After { batch, chain }, accepted }
    }
}

/// All lives of the log, the present one last; empty: there is no log here yet.
pub(crate) fn clusters(data: &Path) -> Result<Vec<Cluster>, OpenError> {
    let path = cluster_file(data);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().map_err(|e| OpenError::Io { path, source: e.into() })
}

pub(crate) fn write_clusters(data: &Path, clusters: &[Cluster]) -> Result<(), OpenError> {
    let path = cluster_file(data);
    let write = || -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        for cluster in clusters {
            serde_json::to_writer(&mut file, cluster)?;
            file.write_all(b"\n")?;
        }
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(data)?.sync_all()
    };
    write().map_err(|source| OpenError::Io { path: path.clone(), source })
}

/// What `HEAD` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadFile {
    /// There is none.
    Missing,
    /// Neither slot can be read.
    Unreadable,
    /// The newer of the readable slots.
    At { batch: u64, chain: Chain },
}

/// Each of the two slots; the newer one may be torn by a crash, the older one then stands.
pub(crate) const HEAD_SLOT_BYTES: usize = 256;

pub(crate) fn read_head(data: &Path) -> Result<HeadFile, OpenError> {
    #[derive(Deserialize)]
    struct Slot {
        batch: u64,
        chain: String,
    }
    let path = head_file(data);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HeadFile::Missing),
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    let slots = bytes.chunks(HEAD_SLOT_BYTES).filter_map(|slot| {
        let line = &slot[..=memchr::memchr(b'\n', slot)?];
        let slot: Slot = if format::is_sealed(line) { serde_json::from_slice(line).ok()? } else { return None };
        Some((slot.batch, crate::journal::record::unhex(&slot.chain)?))
    });
    Ok(slots
        .max_by_key(|(batch, _)| *batch)
        .map_or(HeadFile::Unreadable, |(batch, chain)| HeadFile::At { batch, chain }))
}

/// A slot's bytes, and where they go.
pub(crate) fn head_slot(batch: u64, chain: &Chain) -> (Vec<u8>, u64) {
    let mut slot = Vec::with_capacity(HEAD_SLOT_BYTES);
    write!(slot, "{{\"batch\":{batch},\"chain\":\"").expect("a Vec takes every write");
    crate::journal::record::write_hex(&mut slot, chain);
    slot.push(b'"');
    format::seal(&mut slot, 0);
    slot.resize(HEAD_SLOT_BYTES - 1, b' ');
    slot.push(b'\n');
    (slot, batch % 2 * HEAD_SLOT_BYTES as u64)
}
