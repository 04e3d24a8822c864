//! Reports that nobody has taken yet, on disk: one file each.
//!
//! A report is written here when its first try got no final answer, and not before: the disk is not on the way of a step
//! that goes well. If the process dies between the end of the work and `recorded`, the report is lost with it; the
//! attempt then ends as the death of its instance, with an outcome that nobody knows (*may have run*), which is honest.
//! From its first failed try on, a report survives both a crash of the process and of the system.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use muster_bus::message::Report;
use serde::{Deserialize, Serialize};

use crate::durable;

/// A folder with reports.
pub(crate) struct Spool {
    folder: PathBuf,
    next: AtomicU64,
}

/// A report and where it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spooled {
    pub(crate) subject: String,
    pub(crate) report: Report,
}

/// Names a report's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slip(PathBuf);

impl Spool {
    /// Open it, and give what earlier processes left, oldest first. A file that can't be read stays, and is said.
    pub(crate) fn open(folder: &Path) -> io::Result<(Self, Vec<(Slip, Spooled)>)> {
        fs::create_dir_all(folder)?;
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        paths.sort();
        let last = paths.last().and_then(|path| path.file_stem()?.to_str()?.parse::<u64>().ok());
        let spool = Self { folder: folder.to_owned(), next: AtomicU64::new(last.map_or(1, |last| last + 1)) };
        let left = paths.into_iter().filter_map(|path| match load(&path) {
            Ok(spooled) => Some((Slip(path), spooled)),
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "a report can't be read and is not sent; look at it");
                None
            }
        });
        Ok((spool, left.collect()))
    }

    /// Keep it; on disk at return.
    pub(crate) fn keep(&self, spooled: &Spooled) -> io::Result<Slip> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{number:020}.json"));
        durable::write(&path, &serde_json::to_vec(spooled)?)?;
        Ok(Slip(path))
    }
}

impl Slip {
    /// The report has got its final answer. Not synced: a report that comes again is answered the same way.
    pub(crate) fn done(&self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(file = %self.0.display(), %error, "a report that is done can't be removed; it will be sent again");
        }
    }
}

fn load(path: &Path) -> io::Result<Spooled> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use muster_bus::message::{AttemptKey, Outcome, ReportBody};

    use super::*;

    fn spooled(attempt: u32) -> Spooled {
        let key = AttemptKey { run: "r".to_owned(), step: "s".to_owned(), attempt };
        let outcome = Outcome::NotSatisfied { diff: String::new() };
        let report = ReportBody::Finished { outcome };
        Spooled {
            subject: "muster.v1.default.report.1.a".to_owned(),
            report: Report { cluster: "c".to_owned(), instance: "i".to_owned(), key, report },
        }
    }

    #[test]
    fn keeps_reports_over_a_restart_until_they_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, left) = Spool::open(folder.path()).unwrap();
        assert_eq!(left, []);
        let first = spool.keep(&spooled(1)).unwrap();
        spool.keep(&spooled(2)).unwrap();
        first.done();
        fs::write(folder.path().join("0003.json"), "{").unwrap();
        fs::write(folder.path().join("4.draft"), "{").unwrap();
        let (spool, left) = Spool::open(folder.path()).unwrap();
        assert_eq!(left.into_iter().map(|(_, spooled)| spooled).collect::<Vec<_>>(), [spooled(2)]);
        spool.keep(&spooled(3)).unwrap();
        assert_eq!(Spool::open(folder.path()).unwrap().1.len(), 2, "nothing was written over");
    }
}
