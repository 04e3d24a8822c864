//! The disk below the data directory: room, and how long it takes until something is really on it.

use std::path::{Path, PathBuf};

use muster_coordinator::journal::bench::fdatasync_latency;

use super::Check;
use crate::error::chain;

/// The log grows in files of this order, and a start needs room for the store.
const LITTLE_BYTES: u64 = 2 << 30;
const TOO_LITTLE_BYTES: u64 = 256 << 20;
const FEW_FILES: u64 = 1_000;
/// A step waits for two of them.
const SLOW_US: f64 = 20_000.0;
const TOO_SLOW_US: f64 = 200_000.0;
const SYNCS: usize = 20;
/// What the kernel calls a file system in memory.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

pub(super) async fn look(data_dir: &Path, checks: &mut Vec<Check>) {
    let Some(folder) = existing(data_dir) else {
        let hint = "make it, or name another with --data-dir";
        checks.push(Check::problem("disk_space", format!("{} can't be reached", data_dir.display()), hint));
        return;
    };
    checks.push(space(&folder));
    let path = folder.clone();
    let measured = tokio::task::spawn_blocking(move || fdatasync_latency(&path, SYNCS)).await;
    checks.push(match measured {
        Ok(Ok(latency)) => speed(&folder, latency.p50_us),
        Ok(Err(error)) => unwritable(&folder, &error),
        Err(error) => unwritable(&folder, &std::io::Error::other(chain(&error))),
    });
}

/// The folder, or the nearest one above it that is there.
fn existing(folder: &Path) -> Option<PathBuf> {
    std::path::absolute(folder).ok()?.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

fn space(folder: &Path) -> Check {
    let there = folder.display();
    match rustix::fs::statvfs(folder) {
        Ok(fs) => {
            room(&there.to_string(), fs.f_bavail.saturating_mul(fs.f_frsize), (fs.f_files > 0).then_some(fs.f_favail))
        }
        Err(error) => Check::problem("disk_space", format!("{there}: {error}"), "look at the folder and its disk"),
    }
}

/// Some file systems have no limit of files.
fn room(there: &str, bytes: u64, files: Option<u64>) -> Check {
    let name = "disk_space";
    let hint = "make room; without any, nothing is taken any more";
    let message = format!("{} MiB are free at {there}", bytes >> 20);
    if let Some(files) = files.filter(|files| *files < FEW_FILES) {
        return Check::problem(name, format!("{there} has room for {files} more files"), hint);
    }
    match bytes {
        0..TOO_LITTLE_BYTES => Check::problem(name, message, hint),
        TOO_LITTLE_BYTES..LITTLE_BYTES => Check::warning(name, message, hint),
        LITTLE_BYTES.. => Check::ok(name, message),
    }
}

fn speed(folder: &Path, median_us: f64) -> Check {
    let name = "disk_sync";
    let there = folder.display();
    let in_memory = rustix::fs::statfs(folder).is_ok_and(|fs| IN_MEMORY.contains(&fs.f_type));
    if in_memory {
        let message = format!("{there} is in memory: what is synced there is gone with the machine");
        return Check::problem(name, message, "name a folder on a disk with --data-dir");
    }
    let message = format!("{:.2} ms until 4 KiB are on disk at {there}", median_us / 1e3);
    let hint = "every step waits for two syncs: use a faster disk, or one that others use less";
    match median_us {
        _ if median_us >= TOO_SLOW_US => Check::problem(name, message, hint),
        _ if median_us >= SLOW_US => Check::warning(name, message, hint),
        _ => Check::ok(name, message),
    }
}

fn unwritable(folder: &Path, error: &std::io::Error) -> Check {
    let message = format!("{} can't be written: {error}", folder.display());
    Check::problem(
        "disk_sync",
        message,
        "look at owner, mode and room of the folder; run doctor as the user of `muster serve`",
    )
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn little_room_is_a_warning_and_too_little_a_problem() {
        for (bytes, files, state) in [
            (3 << 30, Some(1 << 20), State::Ok),
            (3 << 30, None, State::Ok),
            (1 << 30, None, State::Warning),
            (100 << 20, None, State::Problem),
            (3 << 30, Some(10), State::Problem),
        ] {
            assert_eq!(room("/data", bytes, files).state, state, "{bytes} {files:?}");
        }
    }
}
