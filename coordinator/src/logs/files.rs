//! The folder: a file a run, for this user alone, and which of them are deleted.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use muster_engine::ids::RunId;

const SUFFIX: &str = "jsonl";

pub(super) fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// Ids of runs are made by us and hold nothing that leads out of the folder; those that callers send are checked before.
pub(super) fn path_of(folder: &Path, run: &RunId) -> PathBuf {
    folder.join(format!("{run}.{SUFFIX}"))
}

/// Add to a file's end, after a line end if its last line was torn. `Err` says how many of the bytes are there nevertheless.
pub(super) fn append(path: &Path, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut file = open(path).map_err(|e| (0, e))?;
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((done, e)),
        }
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    let mut file = File::options().read(true).append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

/// How long it is; 0 when it is not there.
pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Bytes that this user can still write on the disk of a folder; unknown is as good as enough.
pub(super) fn free_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Delete what is older than `max_age_ms`, then the oldest until no more than `keep_bytes` are left; never what is in use.
/// How many bytes are left.
pub(super) fn sweep(folder: &Path, in_use: &HashSet<PathBuf>, max_age_ms: u64, keep_bytes: u64) -> io::Result<u64> {
    let now = SystemTime::now();
    let mut kept = Vec::new();
    let mut total = 0;
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        let Ok(meta) = fs::metadata(&path) else { continue };
        if !meta.is_file() || path.extension().is_none_or(|suffix| suffix != SUFFIX) {
            continue;
        }
        let written = meta.modified().unwrap_or(now);
        let age = now.duration_since(written).unwrap_or_default();
        let busy = in_use.contains(&path);
        if !busy && age > Duration::from_millis(max_age_ms) && fs::remove_file(&path).is_ok() {
            continue;
        }
        total += meta.size();
        if !busy {
            kept.push((written, meta.size(), path));
        }
    }
    kept.sort();
    for (_, size, path) in kept {
        if total <= keep_bytes {
            break;
        }
        if fs::remove_file(&path).is_ok() {
            total -= size;
        }
    }
    Ok(total)
}
