//! Figures of the disk and of a journal on it, for `muster bench`.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use super::{
    AppendError, Journal, NewRecord, StreamAppend, StreamId,
    log::disk::{Disk as _, RealDisk, fill},
};

/// How long something takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Half of the times are below this.
    pub p50_us: f64,
    /// Of a hundred times, one is above this.
    pub p99_us: f64,
}

/// What a journal does under load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommitRate {
    /// Each waits for an answer before it appends again.
    pub writers: usize,
    /// Answered appends of one record.
    pub commits_per_second: f64,
    /// From the append to the answer.
    pub latency: Latency,
    /// 0 for a journal that does not sync.
    pub syncs_per_commit: f64,
}

/// `fdatasync` after a write of 4 KiB into a file that is filled with zeros already: the limit of a single writer.
///
/// # Errors
/// Of the file system. Leaves no file behind if it can be avoided.
pub fn fdatasync_latency(dir: &Path, samples: usize) -> io::Result<Latency> {
    const BYTES: [u8; 4 << 10] = [b'x'; 4 << 10];
    let size = BYTES.len() as u64;
    let path = dir.join("fdatasync.bench");
    let measure = || -> io::Result<Latency> {
        let mut file = RealDisk.create(&path)?;
        fill(&mut *file, samples as u64 * size)?;
        let mut times = Vec::with_capacity(samples);
        for n in 0..samples as u64 {
            let start = Instant::now();
            file.write_at(&BYTES, n * size)?;
            file.sync()?;
            times.push(start.elapsed());
        }
        Ok(latency(times))
    };
    let measured = measure();
    let removed = fs::remove_file(&path);
    // A file that could not be made can't be removed: the first error is the one that says why.
    let latency = measured?;
    removed.map(|()| latency)
}

/// Lets writers append records of about this size for a while, each to a stream of its own.
///
/// # Errors
/// The first append that was not taken.
pub async fn commits(
    journal: Arc<dyn Journal>,
    writers: usize,
    time: Duration,
    event_bytes: usize,
) -> Result<CommitRate, AppendError> {
    let text = format!("{{\"text\":\"{}\"}}", "x".repeat(event_bytes.saturating_sub(11)));
    let event = RawValue::from_string(text).expect("it is JSON");
    let syncs = journal.syncs();
    let (start, mut tasks) = (Instant::now(), JoinSet::new());
    for n in 0..writers {
        let (journal, event) = (journal.clone(), event.clone());
        // Another stream each time it is called.
        let stream = StreamId(format!("bench/{}/{n}", uuid::Uuid::now_v7()).into());
        tasks.spawn(async move {
            let mut times = Vec::new();
            for expected_seq in 0.. {
                let begun = Instant::now();
                if begun - start > time {
                    break;
                }
                let records = vec![NewRecord { at: Timestamp::now(), by: "muster".into(), event: event.clone() }];
                let answer = journal.append(vec![StreamAppend { stream: stream.clone(), expected_seq, records }]).await;
                answer.unwrap_or_else(|_| Err(AppendError::Unavailable("the journal has ended".into())))?;
                times.push(begun.elapsed());
            }
            Ok(times)
        });
    }
    let mut times = Vec::new();
    for done in tasks.join_all().await {
        times.extend(done?);
    }
    let (commits, seconds) = (times.len().max(1), start.elapsed().as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    Ok(CommitRate {
        writers,
        commits_per_second: times.len() as f64 / seconds,
        latency: latency(times),
        syncs_per_commit: (journal.syncs() - syncs) as f64 / commits as f64,
    })
}

fn latency(mut times: Vec<Duration>) -> Latency {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    Latency { p50_us: at(50), p99_us: at(99) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::log::{LogJournal, LogOptions};

    #[tokio::test]
    async fn the_figures_fit_to_what_was_done() {
        let dir = tempfile::TempDir::new().unwrap();
        let sync = fdatasync_latency(dir.path(), 20).unwrap();
        assert!(sync.p50_us > 0.0 && sync.p50_us <= sync.p99_us);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let journal: Arc<dyn Journal> = Arc::new(LogJournal::open(dir.path(), options).unwrap().0);
        let one = commits(journal.clone(), 1, Duration::from_millis(100), 100).await.unwrap();
        assert!(one.commits_per_second > 0.0 && one.syncs_per_commit >= 1.0, "{one:?}");
        let many = commits(journal.clone(), 64, Duration::from_millis(100), 100).await.unwrap();
        assert!(many.syncs_per_commit < 0.5, "64 writers share syncs: {many:?}");
        let records = journal.read(super::super::Position(0)).map(Result::unwrap).count();
        assert!(records > 65);
    }
}
