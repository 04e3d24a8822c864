//! The committer: one thread that gathers, writes, syncs and answers.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Health, Shared,
    disk::{DiskFile, is_no_room},
    files,
    format::{self, CARRYING_VERSION, Commit, SEGMENT_VERSION},
    index::{Index, Place, Segment, Slot},
    spare::{Order, SPARE, Spare},
};
use crate::journal::{
    AppendError, Position, StreamAppend, StreamId,
    record::{self, Chain, LineHash},
};

/// Work that waits for its answer.
pub(crate) struct Request {
    pub(crate) work: Work,
    /// An upper bound of what it takes in the log.
    pub(crate) bytes: usize,
    pub(crate) answer: Answer,
}

/// What the committer does.
pub(crate) enum Work {
    /// Write records.
    Append(Vec<StreamAppend>),
    /// Write records once more, so that where they are now can go.
    Carry(Vec<CarriedStream>),
    /// Write the records, then forget the segments before this batch, and streams of which nothing is behind it. A stream that
    /// has a record before it and is not named is a conflict.
    LetGo { before: Position, streams: Vec<StreamId>, append: Vec<StreamAppend> },
}

/// All records of a stream.
pub(crate) struct CarriedStream {
    pub(crate) stream: StreamId,
    /// The last one's number; another one is a conflict.
    pub(crate) seq: u64,
    /// With their line ends.
    pub(crate) lines: Vec<u8>,
}

/// Where the answer to an append goes.
type Answer = oneshot::Sender<Result<Position, AppendError>>;

/// A batch takes no further append when it is this large.
const FULL_BATCH_BYTES: usize = 8 << 20;
/// Where a batch answers so many, the next one is not begun at once: a sync that is shared by more of them is one sync fewer for
/// all, and who asks one thing after another is never made to wait.
const CROWD: usize = 8;
/// How long a crowd's next batch is gathered.
const GATHER: Duration = Duration::from_millis(1);
/// How often it is tried again when there is no room.
const ROOM_PAUSE: Duration = Duration::from_millis(250);
const ROOM_REPORT_EVERY: Duration = Duration::from_secs(60);

/// The end of the log, in the hands of the one who writes it.
pub(crate) struct Committer {
    shared: Arc<Shared>,
    active: Active,
    head: Box<dyn DiskFile>,
    spare: Spare,
    position: u64,
    chain: Chain,
    /// Streams of the last batch.
    before: Vec<Slot>,
    batch: BatchBuffer,
}

/// The segment that is being written.
pub(crate) struct Active {
    pub(crate) file: Box<dyn DiskFile>,
    /// The end of the last synced batch.
    pub(crate) end: u64,
    /// There is no batch in it yet.
    pub(crate) empty: bool,
    /// Of its shape.
    pub(crate) version: u32,
}

/// A batch on its way to the disk. Kept between batches, for its memory.
#[derive(Default)]
struct BatchBuffer {
    bytes: Vec<u8>,
    hashes: Vec<LineHash>,
    streams: Vec<Slot>,
    /// Stream, offset in the batch and count of records that lie side by side.
    places: Vec<(Slot, usize, usize)>,
    /// See [`format::CommitLine::carried`].
    carried: bool,
    answers: Vec<(Answer, Result<(), AppendError>)>,
}

impl Committer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        active: Active,
        head: Box<dyn DiskFile>,
        spare: Spare,
        before: Vec<Slot>,
    ) -> Self {
        let (position, chain) = {
            let index = shared.index();
            (index.position.0, index.chain)
        };
        Self { shared, active, head, spare, position, chain, before, batch: BatchBuffer::default() }
    }

    /// Until the journal is closed and everything handed over before is answered, or the log can't go on.
    pub(crate) fn run(mut self) {
        let mut waiting = Vec::new();
        let mut is_crowded = false;
        while self.shared.queue.take(&mut waiting) {
            if is_crowded && !self.shared.queue.closed_within(GATHER) {
                self.shared.queue.take_more(&mut waiting);
            }
            is_crowded = waiting.len() >= CROWD;
            // What is left of `waiting` when the log ends is dropped, which its senders take for `Unavailable`.
            for Request { work, bytes, answer } in waiting.drain(..) {
                let is_full = self.batch.bytes.len() + bytes > FULL_BATCH_BYTES;
                let goes_on = match work {
                    Work::Append(appends) => {
                        let goes_on = !is_full || self.commit();
                        if goes_on {
                            self.stage(&appends, answer);
                        }
                        goes_on
                    }
                    Work::Carry(streams) => self.commit() && self.carry(&streams, answer),
                    Work::LetGo { before, streams, append } => {
                        self.commit() && self.let_go(before, &streams, &append, answer)
                    }
                };
                if !goes_on {
                    return;
                }
            }
            if !self.commit() {
                return;
            }
        }
    }

    /// Puts an append into the batch, if it fits to what is there.
    fn stage(&mut self, appends: &[StreamAppend], answer: Answer) {
        let mut index = self.shared.index();
        let damaged = appends.iter().try_for_each(|append| index.check_damage(&append.stream));
        let checked = damaged.and_then(|()| crate::journal::check_expected(appends, |stream| index.seq_of(stream)));
        if checked.is_ok() {
            let next = self.position + 1;
            for append in appends {
                self.batch.stage(&mut index, append, next);
            }
        }
        self.batch.answers.push((answer, checked));
    }

    /// A batch of its own, of whole streams as they stand. `false` as in [`Committer::commit`].
    fn carry(&mut self, streams: &[CarriedStream], answer: Answer) -> bool {
        {
            let mut index = self.shared.index();
            let checked = streams.iter().try_for_each(|carried| {
                index.check_damage(&carried.stream)?;
                conflict(&carried.stream, carried.seq, index.seq_of(&carried.stream))
            });
            if let Err(error) = checked {
                drop(index);
                send(answer, Err(error));
                return true;
            }
            for carried in streams {
                self.batch.carry(&mut index, carried, self.position + 1);
            }
            self.batch.answers.push((answer, Ok(())));
        }
        self.commit()
    }

    /// See [`Work::LetGo`]. `false` as in [`Committer::commit`].
    fn let_go(&mut self, before: Position, streams: &[StreamId], append: &[StreamAppend], answer: Answer) -> bool {
        let found = {
            let index = self.shared.index();
            let segments = index.segments.partition_point(|segment| segment.first < before.0);
            let named: HashSet<&StreamId> = streams.iter().collect();
            let there = index.streams_in_first(segments);
            let unnamed = there.iter().find(|(stream, is_whole)| !is_whole || !named.contains(stream));
            let is_there = segments <= index.sound_segments();
            match unnamed {
                Some((stream, _)) => {
                    Err(AppendError::Conflict { stream: stream.clone(), expected: 0, actual: index.seq_of(stream) })
                }
                None if !is_there => Err(AppendError::Unavailable("what is to be let go is still in use".into())),
                None => Ok((segments, there.into_iter().map(|(stream, _)| stream).collect::<Vec<_>>())),
            }
        };
        let (segments, streams) = match found {
            Ok(found) => found,
            Err(error) => {
                send(answer, Err(error));
                return true;
            }
        };
        let (done, mut was_done) = oneshot::channel();
        self.stage(append, done);
        if !self.commit() {
            return false;
        }
        let result =
            was_done.try_recv().unwrap_or_else(|_| Err(AppendError::Unavailable("nothing was written".into())));
        let removed = result.and_then(|position| self.remove(segments, &streams).map(|()| position));
        let goes_on = !matches!(*self.shared.health.borrow(), Health::Ended { .. });
        send(answer, removed);
        goes_on
    }

    /// The log has said that these are not needed any more. They are gone for good before the next record is written: a stream
    /// that begins anew under the name of one of them must not meet the old one at the next start. If that can't be, the log
    /// ends, and the next start does it.
    fn remove(&mut self, segments: usize, streams: &[StreamId]) -> Result<(), AppendError> {
        let paths: Vec<PathBuf> =
            self.shared.index().segments[..segments].iter().map(|segment| segment.path.clone()).collect();
        // Who reads meanwhile finds the carried records.
        self.shared.index().let_go(segments, streams);
        let dir = files::log_dir(&self.shared.data);
        files::remove(&paths).and_then(|()| self.shared.disk.sync_dir(&dir)).map_err(|error| {
            let why = format!("{}: old segments can't be removed: {error}; start again", dir.display());
            self.shared.end(&why);
            AppendError::Unavailable(why)
        })
    }

    /// Writes and syncs the batch and answers everyone in it. `false`: the log can't go on, and everyone is told.
    fn commit(&mut self) -> bool {
        if self.batch.hashes.is_empty() {
            let position = Position(self.position);
            self.batch.answers.drain(..).for_each(|(answer, checked)| send(answer, checked.map(|()| position)));
            return true;
        }
        let number = self.position + 1;
        let chain = record::next_chain(&self.chain, number, self.batch.hashes.iter());
        {
            let index = self.shared.index();
            let commit = Commit {
                batch: number,
                records: self.batch.hashes.len(),
                chain: &chain,
                streams: self.batch.streams.iter().map(|slot| index.name(*slot)),
                before: self.before.iter().map(|slot| index.name(*slot)),
                carried: self.batch.carried,
            };
            format::write_commit(&mut self.batch.bytes, commit);
        }
        let from = match self.write(number) {
            Ok(from) => from,
            Err(why) => {
                let why = AppendError::Unavailable(why);
                self.batch.answers.drain(..).for_each(|(answer, _)| send(answer, Err(why.clone())));
                return false;
            }
        };
        (self.position, self.chain) = (number, chain);
        self.publish(from);
        let (slot, at) = files::head_slot(number, &chain);
        if let Err(error) = self.head.write_at(&slot, at) {
            tracing::warn!(%error, "HEAD can't be written: a lost end of the log would not be noticed");
        }
        let position = Position(number);
        self.batch.answers.drain(..).for_each(|(answer, checked)| send(answer, checked.map(|()| position)));
        std::mem::swap(&mut self.before, &mut self.batch.streams);
        self.batch.clear();
        true
    }

    /// Brings the batch to the disk, wherever there is one to be had. Gives where in the active segment it begins.
    fn write(&mut self, number: u64) -> Result<u64, String> {
        let bytes = &self.batch.bytes;
        let (from, end) = (self.active.end, self.active.end + bytes.len() as u64);
        // What an older muster would take for damage is in no segment that it would read.
        let is_too_old = self.batch.carried && self.active.version < CARRYING_VERSION;
        let result = if is_too_old || (end > self.shared.segment_bytes && !self.active.empty) {
            self.roll(number)
        } else {
            let file = &mut self.active.file;
            let result = file.write_at(bytes, from).and_then(|()| file.sync());
            self.shared.count_syncs(1);
            result.map(|()| {
                (self.active.end, self.active.empty) = (end, false);
                from
            })
        };
        let result = result.or_else(|error| self.recover(number, &error));
        if self.active.end > self.shared.segment_bytes / 2 && !self.spare.ordered {
            // A thread that is gone makes no spares; segments then grow as they are written.
            self.spare.ordered = self.spare.orders.send(Order::Fill).is_ok();
        }
        result
    }

    /// After a failed write or sync nobody knows what is on the disk, and what is read back proves nothing. The batch goes
    /// into a fresh segment; from the last synced end on, the old one is void.
    fn recover(&mut self, number: u64, error: &io::Error) -> Result<u64, String> {
        tracing::error!(%error, batch = number, "the log could not be written; trying again in a fresh segment");
        self.shared.set_health(Health::Interrupted { why: error.to_string() });
        let (mut last_report, mut failure) = (None::<Instant>, None::<io::Error>);
        loop {
            match self.roll(number) {
                Ok(from) => {
                    tracing::warn!(batch = number, "the log stands again");
                    self.shared.set_health(Health::Standing);
                    return Ok(from);
                }
                Err(error) if is_no_room(&error) => {
                    let why = format!("{error}; {}", room(&self.shared.data));
                    if last_report.is_none_or(|at| at.elapsed() > ROOM_REPORT_EVERY) {
                        tracing::error!(%why, path = %self.shared.data.display(), "no room for the log: everything waits");
                        last_report = Some(Instant::now());
                    }
                    self.shared.set_health(Health::WaitingForRoom { why });
                    if self.shared.queue.closed_within(ROOM_PAUSE) {
                        failure = Some(error);
                    }
                }
                Err(error) => failure = Some(error),
            }
            if let Some(error) = failure.take() {
                let path = self.shared.data.display();
                let why = format!("{path}: {error}; see what the kernel says of the disk, then start again");
                self.shared.end(&why);
                return Err(why);
            }
        }
    }

    /// Begins the segment whose first batch this is. Nothing of it is in its place before all of it is on the disk.
    fn roll(&mut self, number: u64) -> io::Result<u64> {
        let (dir, path) = (files::log_dir(&self.shared.data), files::segment_file(&self.shared.data, number));
        let version = if self.batch.carried { CARRYING_VERSION } else { SEGMENT_VERSION };
        let line = format::segment_line(version, &self.shared.cluster, number - 1, &self.chain);
        let spare = self.spare.ready.try_recv().ok();
        self.spare.ordered &= spare.is_none();
        let (mut file, made) = match spare.flatten() {
            Some(file) => (file, dir.join(SPARE)),
            None => (self.shared.disk.create(&dir.join(FRESH))?, dir.join(FRESH)),
        };
        file.write_at(&line, 0)?;
        file.write_at(&self.batch.bytes, line.len() as u64)?;
        file.sync()?;
        self.shared.disk.rename(&made, &path)?;
        self.shared.disk.sync_dir(&dir)?;
        self.shared.count_syncs(2);
        let from = line.len() as u64;
        let end = from + self.batch.bytes.len() as u64;
        self.active = Active { file, end, empty: false, version };
        let mut index = self.shared.index();
        // A segment that was to begin with this very batch has been replaced.
        index.segments.retain(|segment| segment.first != number);
        if let Some(full) = index.segments.last() {
            // A thread that is gone leaves the zeros, which do no harm.
            let _ = self.spare.orders.send(Order::Trim(full.path.clone(), full.end));
        }
        let marks = vec![(Position(number), from)];
        index.segments.push(Segment { path, version, first: number, end: from, marks, newest: None });
        Ok(from)
    }

    fn publish(&mut self, from: u64) {
        let mut index = self.shared.index();
        let segment = index.last_segment();
        let to = from + self.batch.bytes.len() as u64;
        index.advance(Position(self.position), self.chain, from, to);
        let place = |&(slot, at, count): &(Slot, usize, usize)| (slot, Place::new(segment, from + at as u64, count));
        if self.batch.carried {
            for places in self.batch.places.chunk_by(|a, b| a.0 == b.0) {
                index.carried(places[0].0, places.iter().map(|of| place(of).1).collect(), self.position);
            }
        } else {
            for (slot, place) in self.batch.places.iter().map(place) {
                index.synced(slot, place);
            }
        }
    }
}

impl BatchBuffer {
    fn stage(&mut self, index: &mut Index, append: &StreamAppend, batch: u64) {
        if append.records.is_empty() {
            return;
        }
        let slot = index.slot(&append.stream);
        if index.touch(slot, batch) {
            self.streams.push(slot);
        }
        for records in append.records.chunks(Place::MAX_COUNT) {
            self.places.push((slot, self.bytes.len(), records.len()));
            for record in records {
                let hash = index.write(&mut self.bytes, slot, &append.stream, record);
                self.hashes.push(hash);
            }
        }
    }

    fn carry(&mut self, index: &mut Index, carried: &CarriedStream, batch: u64) {
        let slot = index.slot(&carried.stream);
        index.touch(slot, batch);
        self.streams.push(slot);
        self.carried = true;
        let lines: Vec<&[u8]> = carried.lines.split_inclusive(|b| *b == b'\n').collect();
        for lines in lines.chunks(Place::MAX_COUNT) {
            self.places.push((slot, self.bytes.len(), lines.len()));
            for line in lines {
                self.hashes.push(record::hash_line(line.strip_suffix(b"\n").unwrap_or(line)));
                self.bytes.extend_from_slice(line);
            }
        }
    }

    fn clear(&mut self) {
        self.carried = false;
        self.bytes.clear();
        self.hashes.clear();
        self.streams.clear();
        self.places.clear();
    }
}

/// In the log's directory: a segment that is not whole yet.
pub(crate) const FRESH: &str = "fresh";

fn conflict(stream: &StreamId, expected: u64, actual: u64) -> Result<(), AppendError> {
    let stream = || stream.clone();
    if expected == actual { Ok(()) } else { Err(AppendError::Conflict { stream: stream(), expected, actual }) }
}

fn send(answer: Answer, result: Result<Position, AppendError>) {
    // A caller who no longer waits has lost interest in the answer, not in the append.
    let _ = answer.send(result);
}

fn room(path: &Path) -> String {
    rustix::fs::statvfs(path)
        .map_or_else(|e| e.to_string(), |fs| format!("{} KiB are free", fs.f_bavail.saturating_mul(fs.f_frsize) >> 10))
}
