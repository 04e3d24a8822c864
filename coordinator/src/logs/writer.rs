//! The thread that writes: it numbers, limits and counts, and has the only hand on the files.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use muster_engine::ids::{RunId, StepId};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{
    Filter, Followers, Job, Limits, Line, files, page,
    record::{Lost, Record},
};
use crate::metrics::{LOG_BYTES, LOG_LINES_KEPT, LOG_LINES_LOST};

/// Lines that are written at once, at most.
const BATCH: usize = 1_024;
/// Between two looks at what has become too old.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// A run without a line for this long is no longer at work: its file may be deleted for others.
const IDLE: Duration = Duration::from_secs(600);
/// Runs whose attempts are known, at most; another one is read from its file again.
const RUNS: usize = 1_024;
/// Attempts of a run of which the last number is known, at most.
const ATTEMPTS: usize = 4_096;
/// A disk that has no room, or takes nothing, is not asked again before this.
const DISK_AGAIN: Duration = Duration::from_secs(1);
/// A count of missing lines is written when for so long no further line came.
const QUIET: Duration = Duration::from_millis(500);
/// A count of missing lines, and a line without its text, are no longer than this, in bytes.
const MARK_BYTES: u64 = 256;
/// So much is deleted at once that it is not needed again for every line: a tenth.
const ROOM: u64 = 10;

pub(super) struct Writer {
    folder: PathBuf,
    limits: Limits,
    queued_bytes: Arc<AtomicUsize>,
    followers: Arc<Followers>,
    runs: HashMap<RunId, OpenRun>,
    total_bytes: u64,
    swept: Option<Instant>,
    /// Since when the disk takes nothing, and when it was last asked.
    refused: Option<Instant>,
}

struct OpenRun {
    bytes: u64,
    attempts: BTreeMap<(StepId, u32), OpenAttempt>,
    touched: Instant,
    /// Some lines are missing that no record counts.
    untold: bool,
    /// To be written, with how many lines each of these records stands for.
    batch: Vec<u8>,
    ends: Vec<(usize, Mark)>,
}

#[derive(Clone)]
struct Mark {
    key: (StepId, u32),
    /// It is a line, not a count of missing ones.
    line: bool,
    lost: u64,
}

#[derive(Default)]
struct OpenAttempt {
    last: u64,
    bytes: u64,
    over_limit: Missing,
    not_written: u64,
}

/// Lines of which there will be no record each, but one for many: at the first one, and whenever they have doubled.
#[derive(Default)]
struct Missing {
    untold: u64,
    told: u64,
}

impl Missing {
    fn add(&mut self, count: u64) -> Option<u64> {
        self.untold = self.untold.saturating_add(count);
        (self.untold >= self.told).then(|| self.tell()).flatten()
    }

    fn tell(&mut self) -> Option<u64> {
        let untold = std::mem::take(&mut self.untold);
        self.told = self.told.saturating_add(untold);
        (untold > 0).then_some(untold)
    }
}

impl Writer {
    pub(super) fn new(
        folder: &Path,
        limits: Limits,
        queued_bytes: Arc<AtomicUsize>,
        followers: Arc<Followers>,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            limits,
            queued_bytes,
            followers,
            runs: HashMap::new(),
            total_bytes: 0,
            swept: None,
            refused: None,
        }
    }

    /// Until nobody can ask any more.
    pub(super) fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        self.sweep(self.limits.total_bytes);
        loop {
            let wait = if self.has_untold() { QUIET } else { SWEEP_EVERY };
            let first = match jobs.recv_timeout(wait) {
                Ok(job) => Some(job),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            let mut settled = Vec::new();
            for job in first.into_iter().chain(jobs.try_iter().take(BATCH)) {
                self.take(job, &mut settled);
            }
            self.tell_of(QUIET);
            self.write_all();
            for answer in settled {
                // Who asked may have gone.
                let _ = answer.send(());
            }
            if self.swept.is_none_or(|swept| swept.elapsed() >= SWEEP_EVERY) {
                self.forget_idle();
                self.sweep(self.limits.total_bytes);
            }
        }
        self.tell_of(Duration::ZERO);
        self.write_all();
    }

    fn take(&mut self, job: Job, settled: &mut Vec<oneshot::Sender<()>>) {
        match job {
            Job::Line(line) => {
                self.queued_bytes.fetch_sub(line.text.len(), Ordering::AcqRel);
                self.line(line);
            }
            Job::Settle(answer) => settled.push(answer),
        }
    }

    fn line(&mut self, line: Line) {
        let limits = self.limits;
        let run = self.open(&line.run);
        run.touched = Instant::now();
        let key = (line.step, line.attempt);
        if !run.attempts.contains_key(&key) && run.attempts.len() >= ATTEMPTS {
            run.attempts.pop_first();
        }
        let attempt = run.attempts.entry(key.clone()).or_default();
        if line.number <= attempt.last {
            // The same one again.
            return;
        }
        let gap = line.number - attempt.last - 1;
        attempt.last = line.number;
        if gap > 0 {
            metrics::counter!(LOG_LINES_LOST, "why" => "on_the_way").increment(gap);
        }
        let record = Record::line(&key, line.number, line.at_ms, line.text);
        let bytes = record.bytes();
        let size = bytes.len() as u64 + 2 * MARK_BYTES;
        let fits = attempt.bytes + size <= limits.attempt_bytes
            && run.bytes + run.batch.len() as u64 + size <= limits.run_bytes;
        if !fits || !self.has_room(size) {
            // Also what is missing before it: gaps alone must not fill a disk.
            self.over_limit(&line.run, &key, gap);
            return;
        }
        let run = self.open(&line.run);
        let attempt = run.attempts.entry(key.clone()).or_default();
        attempt.bytes += bytes.len() as u64;
        let not_written = std::mem::take(&mut attempt.not_written);
        run.missing(&key, not_written, Lost::NotWritten);
        run.missing(&key, gap, Lost::OnTheWay);
        run.push(&bytes, Mark { key, line: true, lost: 0 });
    }

    fn over_limit(&mut self, run: &RunId, key: &(StepId, u32), gap: u64) {
        metrics::counter!(LOG_LINES_LOST, "why" => "over_limit").increment(1);
        let run = self.open(run);
        run.untold = true;
        if let Some(count) = run.attempts.entry(key.clone()).or_default().over_limit.add(gap.saturating_add(1)) {
            run.missing(key, count, Lost::OverLimit);
        }
    }

    /// What is known of a run; after a restart that is in its file.
    fn open(&mut self, id: &RunId) -> &mut OpenRun {
        if !self.runs.contains_key(id) {
            if self.runs.len() >= RUNS {
                self.forget_oldest();
            }
            self.runs.insert(id.clone(), OpenRun::of(&files::path_of(&self.folder, id)));
        }
        self.runs.entry(id.clone()).or_insert_with(OpenRun::empty)
    }

    fn write_all(&mut self) {
        let waiting: Vec<RunId> =
            self.runs.iter().filter(|(_, run)| !run.ends.is_empty()).map(|(id, _)| id.clone()).collect();
        for id in waiting {
            self.write(&id);
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        metrics::gauge!(LOG_BYTES).set(self.total_bytes as f64);
    }

    fn write(&mut self, id: &RunId) {
        let path = files::path_of(&self.folder, id);
        let Some(run) = self.runs.get_mut(id) else { return };
        let (batch, ends) = (std::mem::take(&mut run.batch), std::mem::take(&mut run.ends));
        let rests = self.refused.is_some_and(|asked| asked.elapsed() < DISK_AGAIN);
        let result = if rests {
            Err((0, None))
        } else if files::free_bytes(&self.folder) < self.limits.reserve_bytes {
            Err((0, Some("there is too little room left on it".to_owned())))
        } else {
            files::append(&path, &batch).map_err(|(done, e)| (done, Some(e.to_string())))
        };
        let done = match &result {
            Ok(()) => batch.len(),
            Err((done, _)) => *done,
        };
        let kept = run.settle(&ends, done);
        metrics::counter!(LOG_LINES_KEPT).increment(kept);
        let grown = done as u64;
        run.bytes += grown;
        self.total_bytes += grown;
        match result {
            Ok(()) => {
                if self.refused.take().is_some() {
                    info!("logs of runs are written again");
                }
            }
            Err((_, None)) => {}
            Err((_, Some(why))) => {
                if self.refused.replace(Instant::now()).is_none() {
                    warn!(folder = %self.folder.display(), "logs of runs are not kept, the disk does not take them: {why}");
                }
            }
        }
        if done > 0 {
            self.followers.written(id);
        }
    }

    fn has_untold(&self) -> bool {
        self.runs.values().any(|run| run.untold)
    }

    /// Say what is not yet said to be missing, of every run that was quiet for so long.
    fn tell_of(&mut self, quiet: Duration) {
        for run in self.runs.values_mut().filter(|run| run.untold && run.touched.elapsed() >= quiet) {
            run.tell();
        }
    }

    fn forget_idle(&mut self) {
        let idle: Vec<RunId> =
            self.runs.iter().filter(|(_, run)| run.touched.elapsed() >= IDLE).map(|(id, _)| id.clone()).collect();
        for id in idle {
            self.forget(&id);
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(id) = self.runs.iter().min_by_key(|(_, run)| run.touched).map(|(id, _)| id.clone()) {
            self.forget(&id);
        }
    }

    fn forget(&mut self, id: &RunId) {
        if let Some(run) = self.runs.get_mut(id) {
            run.tell();
            self.write(id);
        }
        self.runs.remove(id);
    }

    /// Whether so many bytes more are within the limit of all; for them is deleted what was written longest ago.
    fn has_room(&mut self, size: u64) -> bool {
        let waiting: u64 = self.runs.values().map(|run| run.batch.len() as u64).sum();
        if self.total_bytes + waiting + size <= self.limits.total_bytes {
            return true;
        }
        if size > self.limits.total_bytes || self.swept.is_some_and(|swept| swept.elapsed() < DISK_AGAIN) {
            return false;
        }
        let keep = self.limits.total_bytes - self.limits.total_bytes / ROOM;
        self.sweep(keep.saturating_sub(size + waiting));
        self.total_bytes + waiting + size <= self.limits.total_bytes
    }

    fn sweep(&mut self, keep_bytes: u64) {
        self.swept = Some(Instant::now());
        let in_use: HashSet<PathBuf> = self.runs.keys().map(|id| files::path_of(&self.folder, id)).collect();
        match files::sweep(&self.folder, &in_use, self.limits.max_age_ms, keep_bytes) {
            Ok(total) => self.total_bytes = total,
            Err(e) => warn!(folder = %self.folder.display(), "old logs of runs can't be looked at: {e}"),
        }
    }
}

impl OpenRun {
    fn empty() -> Self {
        Self {
            bytes: 0,
            attempts: BTreeMap::new(),
            touched: Instant::now(),
            untold: false,
            batch: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// As its file says.
    fn of(path: &Path) -> Self {
        let mut run = Self { bytes: files::length(path), ..Self::empty() };
        let mut position = 0;
        while let Ok(page) = page::read(path, &Filter::default(), position, usize::MAX) {
            for entry in page.entries {
                let attempt = run.attempts.entry((entry.step, entry.attempt)).or_default();
                attempt.bytes += entry.position - position;
                position = entry.position;
                match entry.lost {
                    Some((count, _)) => attempt.last = attempt.last.saturating_add(count),
                    None => attempt.last = entry.number,
                }
            }
            position = page.position;
            if page.at_end {
                break;
            }
        }
        run
    }

    fn push(&mut self, bytes: &[u8], mark: Mark) {
        self.batch.extend_from_slice(bytes);
        self.ends.push((self.batch.len(), mark));
    }

    fn missing(&mut self, key: &(StepId, u32), count: u64, why: Lost) {
        if count == 0 {
            return;
        }
        let record = Record::missing(key, count, why, Timestamp::now().as_millisecond());
        self.push(&record.bytes(), Mark { key: key.clone(), line: false, lost: count });
    }

    fn tell(&mut self) {
        let mut untold = Vec::new();
        self.untold = false;
        for (key, attempt) in &mut self.attempts {
            untold.extend(attempt.over_limit.tell().map(|count| (key.clone(), count, Lost::OverLimit)));
            let not_written = std::mem::take(&mut attempt.not_written);
            untold.extend((not_written > 0).then(|| (key.clone(), not_written, Lost::NotWritten)));
        }
        for (key, count, why) in untold {
            self.missing(&key, count, why);
        }
    }

    /// Of what was to be written so much was: count the rest as missing. How many lines are there.
    fn settle(&mut self, ends: &[(usize, Mark)], done: usize) -> u64 {
        let (mut kept, mut lost) = (0, 0);
        for (end, mark) in ends {
            if *end <= done {
                kept += u64::from(mark.line);
                continue;
            }
            lost += u64::from(mark.line);
            self.attempts.entry(mark.key.clone()).or_default().not_written += mark.lost + u64::from(mark.line);
        }
        if done < ends.last().map_or(0, |(end, _)| *end) {
            self.untold = true;
            metrics::counter!(LOG_LINES_LOST, "why" => "not_written").increment(lost);
        }
        kept
    }
}
