//! The few things the log asks of a disk, as a seam where tests let them fail.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Where the log writes. Reading goes past it.
pub trait Disk: Send + Sync + 'static {
    /// An empty file, in place of one that may be there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// A file that is there, for writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Puts `to` in place of what may be there, at once.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// What was created, renamed or removed in the directory is on the disk after this.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// A file that the log writes.
pub trait DiskFile: Send {
    /// All the bytes, or an error; then any of them may be there.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// What was written is on the disk after an `Ok`. After an error nobody knows, and nothing that is read back proves it.
    fn sync(&mut self) -> io::Result<()>;
}

/// The real thing.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::options().write(true).create(true).truncate(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::options().write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl DiskFile for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Fills a new file with zeros and syncs it, so that later writes into it change no metadata: `fallocate` alone leaves
/// extents that are marked unwritten, and the first sync of each has to wait for the file system's own journal.
pub(crate) fn fill(file: &mut dyn DiskFile, bytes: u64) -> io::Result<()> {
    const CHUNK: usize = 1 << 20;
    let zeros = vec![0; CHUNK];
    let mut at = 0;
    while at < bytes {
        let n = usize::try_from(bytes - at).unwrap_or(CHUNK).min(CHUNK);
        file.write_at(&zeros[..n], at)?;
        at += n as u64;
        if at.is_multiple_of(8 << 20) {
            // In pieces, so that a sync of the hot path never queues behind the whole.
            file.sync()?;
        }
    }
    file.sync()
}

/// There is no room, as opposed to a disk that fails.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
