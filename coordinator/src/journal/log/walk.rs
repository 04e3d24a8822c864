//! Reads a whole log, checks every byte, and says what is wrong. Writes nothing.

use std::{
    collections::{HashMap, VecDeque},
    fmt, fs, io,
    path::Path,
};

use serde::Serialize;

use super::{
    OpenError,
    files::{self, HeadFile},
    format::{CARRYING_VERSION, CommitLine, SegmentLine, is_sealed},
    index::{Index, Segment, Slot},
    packed::{Missing, Named, Packed},
    scan::{Batch, Item, Scan, readable_commits},
};
use crate::journal::{
    Position, StreamId,
    record::{self, NO_CHAIN},
};

/// Something that was in the log and is not, or is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// Which file, seen from the data directory.
    pub file: String,
    /// From this byte of it on.
    pub from: u64,
    /// Up to this byte, itself not included.
    pub to: u64,
    /// What is wrong, for people.
    pub what: String,
    /// The streams that lost records.
    pub streams: Vec<StreamId>,
    /// `streams` are all of them. If they are not, nothing is served until a person accepts the loss.
    pub all_named: bool,
}

impl Loss {
    pub(crate) fn no_cluster() -> Self {
        let what = "the file is missing: nobody knows which log this is".to_owned();
        Self { file: "cluster".into(), from: 0, to: 0, what, streams: Vec::new(), all_named: false }
    }

    /// How an accepted loss is known again.
    pub(crate) fn key(&self) -> String {
        format!("{}:{}", self.file, self.from)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, bytes {} to {}: {}; streams: ", self.file, self.from, self.to, self.what)?;
        for (i, stream) in self.streams.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { ", " } else { "" }, stream.0)?;
        }
        f.write_str(match (self.all_named, self.streams.is_empty()) {
            (true, true) => "none",
            (true, false) => "",
            (false, true) => "not known",
            (false, false) => ", and others that are not known",
        })
    }
}

/// Bytes behind the last batch, left by a write that was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What is in a log.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    pub(crate) index: Index,
    /// Streams of the last batch.
    pub(crate) last_streams: Vec<Slot>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) tail: Option<Tail>,
    pub(crate) batches: u64,
    pub(crate) records: u64,
    /// Where in the last segment the batches begin that `HEAD` does not vouch for.
    pub(crate) unvouched_from: Option<u64>,
    /// What is before this batch was let go, and need not be there; 0: nothing was.
    pub(crate) may_begin_at: u64,
}

/// Reads everything. `each` gets every intact batch.
pub(crate) fn walk(
    data: &Path,
    head: HeadFile,
    each: &mut dyn FnMut(&Batch<'_>) -> Result<(), OpenError>,
) -> Result<Walked, OpenError> {
    let segments = files::segments(data)?;
    let mut walker = Walker {
        head,
        each,
        walked: Walked::default(),
        damage: Vec::new(),
        file: String::new(),
        within: HashMap::new(),
        is_unanchored: false,
        missing: VecDeque::new(),
    };
    if let Some((first, _)) = segments.first() {
        walker.walked.index.position = Position(first.saturating_sub(1));
    }
    for (i, (first, path)) in segments.iter().enumerate() {
        walker.segment(*first, path, segments.get(i + 1).map(|(first, _)| *first))?;
    }
    walker.finish();
    Ok(walker.walked)
}

pub(super) struct Walker<'a> {
    head: HeadFile,
    each: &'a mut dyn FnMut(&Batch<'_>) -> Result<(), OpenError>,
    pub(super) walked: Walked,
    /// Damaged bytes since the last intact batch.
    damage: Vec<Damage>,
    /// The present segment.
    pub(super) file: String,
    /// Streams that begin with a later record than their first, and the last batch that has one: each is carried by a later
    /// batch, or was let go.
    pub(super) within: HashMap<Slot, u64>,
    /// The chain before the first batch is not known.
    is_unanchored: bool,
    /// What is missing of the present segment, if it is packed.
    missing: VecDeque<Missing>,
}

struct Damage {
    file: String,
    from: u64,
    to: u64,
    commits: Vec<CommitLine>,
    /// What was there, if it was packed.
    named: Option<Named>,
    /// One of the batches in it was followed by another, so it had been synced.
    was_synced: bool,
}

impl Walker<'_> {
    fn segment(&mut self, first: u64, path: &Path, next_first: Option<u64>) -> Result<(), OpenError> {
        let (bytes, missing) = text_of(path).map_err(|source| OpenError::Io { path: path.into(), source })?;
        self.missing = missing.into();
        self.file = file_of(path);
        self.walked.unvouched_from = None;
        let (start, version) = self.first_line(first, &bytes)?;
        let (end, version) = (start as u64, version.unwrap_or(CARRYING_VERSION));
        // A reader that comes by must see that something is missing there.
        let is_cut = self.missing.front().is_some_and(|missing| missing.from == 0);
        let marks = vec![(Position(first), if is_cut { 0 } else { end })];
        self.walked.index.segments.push(Segment { path: path.into(), version, first, end, marks, newest: None });
        let mut scan = Scan::new(&bytes, start);
        loop {
            if next_first == Some(self.walked.index.position.0 + 1) {
                // The next segment continues from here; what follows in this one was never answered, and is void.
                return Ok(());
            }
            let at = scan.at();
            match scan.next() {
                Some(Item::Batch(batch)) if next_first.is_some_and(|next| batch.commit.batch >= next) => return Ok(()),
                Some(Item::Batch(batch)) => {
                    self.miss(batch.from);
                    self.batch(&batch)?;
                }
                Some(Item::Damage { from, to }) => self.damaged(&bytes, from, to),
                Some(Item::Tail { from, to }) if next_first.is_some() => self.damaged(&bytes, from, to),
                Some(Item::Tail { from, to }) => {
                    self.walked.tail = Some(Tail { from: from as u64, to: to as u64 });
                    self.damaged(&bytes, from, to);
                }
                None => {
                    self.miss(usize::MAX);
                    tracing::trace!(file = self.file, at, "read");
                    return Ok(());
                }
            }
        }
    }

    /// Where the batches begin, and the segment's version, if it can be read.
    fn first_line(&mut self, first: u64, bytes: &[u8]) -> Result<(usize, Option<u32>), OpenError> {
        let is_first = self.walked.index.segments.is_empty() && first > 1;
        let line = memchr::memchr(b'\n', bytes).map_or(&[][..], |end| &bytes[..=end]);
        let parsed: Option<SegmentLine> = is_sealed(line).then(|| serde_json::from_slice(line).ok()).flatten();
        let Some(parsed) = parsed else {
            let what = "the first line is damaged; it holds no records".to_owned();
            let to = line.len() as u64;
            self.walked.losses.push(Loss {
                file: self.file.clone(),
                from: 0,
                to,
                what,
                streams: vec![],
                all_named: true,
            });
            self.is_unanchored = is_first;
            // The scan finds the first batch by itself, and finds no fault with a line that is gone.
            return Ok((first_batch(bytes), None));
        };
        if parsed.segment > CARRYING_VERSION {
            return Err(OpenError::Version { file: self.file.clone(), version: parsed.segment });
        }
        if is_first && let Some(chain) = record::unhex(&parsed.continues.chain) {
            self.walked.index.chain = chain;
        }
        let index = &self.walked.index;
        let chain = if index.position.0 == 0 { record::hex(&NO_CHAIN) } else { record::hex(&index.chain) };
        if parsed.continues.batch + 1 != first {
            self.lose(0, line.len(), format!("it continues batch {}, not {}", parsed.continues.batch, first - 1));
        } else if parsed.continues.batch == index.position.0 && parsed.continues.chain != chain {
            self.lose(0, line.len(), "it continues another chain".into());
        }
        Ok((line.len(), Some(parsed.segment)))
    }

    /// What is missing of a packed segment before this byte of its text.
    fn miss(&mut self, before: usize) {
        while self.missing.front().is_some_and(|missing| missing.from < before) {
            let Some(Missing { from, to, what }) = self.missing.pop_front() else { return };
            let (file, from, to) = (self.file.clone(), from as u64, to as u64);
            self.damage.push(Damage { file, from, to, commits: Vec::new(), named: what, was_synced: true });
        }
    }

    fn damaged(&mut self, bytes: &[u8], from: usize, to: usize) {
        if self.missing.iter().any(|missing| missing.from < to && missing.to > from) {
            // It is said by name.
            return;
        }
        let commits = readable_commits(&bytes[from..to]);
        let was_synced = commits.iter().any(|(_, end)| from + end < to);
        let commits = commits.into_iter().map(|(commit, _)| commit).collect();
        let (file, from, to) = (self.file.clone(), from as u64, to as u64);
        self.damage.push(Damage { file, from, to, commits, named: None, was_synced });
    }

    fn batch(&mut self, batch: &Batch<'_>) -> Result<(), OpenError> {
        let number = batch.commit.batch;
        let position = self.walked.index.position.0;
        if number <= position {
            self.lose(batch.from, batch.to, format!("batch {number} stands behind batch {position}"));
            return Ok(());
        }
        let contiguous = number == position + 1;
        self.close_gap(batch);
        let hashes = if batch.commit.carried { self.replay_carried(batch)? } else { self.replay(batch)? };
        let index = &mut self.walked.index;
        let Some(written) = record::unhex(&batch.commit.chain) else {
            self.lose(batch.from, batch.to, format!("the chain of batch {number} is no hash"));
            return Ok(());
        };
        let contiguous = contiguous && !std::mem::take(&mut self.is_unanchored);
        let chain_holds = !contiguous || record::next_chain(&index.chain, number, hashes.iter()) == written;
        index.advance(Position(number), written, batch.from as u64, batch.to as u64);
        if !chain_holds {
            let what = format!("batch {number} is not the one that was written after batch {position}");
            self.lose_of(batch, what);
        }
        match self.head {
            HeadFile::At { batch: head, chain } if head == number && chain != written => {
                self.lose(batch.from, batch.to, format!("HEAD names another batch {number}"));
            }
            HeadFile::At { batch: head, .. } if number <= head => {}
            HeadFile::At { .. } | HeadFile::Missing | HeadFile::Unreadable => {
                self.walked.unvouched_from.get_or_insert(batch.from as u64);
            }
        }
        self.walked.batches += 1;
        (self.each)(batch)
    }

    /// Names what was lost between the last intact batch and this one.
    fn close_gap(&mut self, next: &Batch<'_>) {
        let (last, next_number) = (self.walked.index.position.0, next.commit.batch);
        let damage = std::mem::take(&mut self.damage);
        let missing = next_number - last - 1;
        for piece in &damage {
            // A reader that comes by must see that something is missing there.
            let segment = self.walked.index.segments.iter_mut().find(|segment| file_of(&segment.path) == piece.file);
            if let Some(segment) = segment {
                segment.end = segment.end.max(piece.to);
            }
        }
        if missing == 0 {
            for piece in damage {
                let what = "bytes between two batches that are no part of either".to_owned();
                let Damage { file, from, to, .. } = piece;
                self.walked.losses.push(Loss { file, from, to, what, streams: vec![], all_named: true });
            }
            return;
        }
        let (streams, all_named) = victims(last + 1, &next.commit, &damage);
        let what = match missing {
            1 => format!("batch {} is damaged or missing", last + 1),
            _ => format!("batches {} to {} are damaged or missing", last + 1, next_number - 1),
        };
        for stream in &streams {
            self.walked.index.mark_damaged(stream, &format!("{}: {what}", self.file));
        }
        let (file, from, to) = damage.first().map_or_else(
            || (self.file.clone(), next.from as u64, next.from as u64),
            |d| (d.file.clone(), d.from, d.to),
        );
        self.walked.losses.push(Loss { file, from, to, what, streams, all_named });
    }

    /// What is left behind the last batch, and what `HEAD` says of the end.
    fn finish(&mut self) {
        self.check_beginning();
        let position = self.walked.index.position.0;
        let end = self.walked.index.segments.last().map_or(0, |segment| segment.end);
        for piece in std::mem::take(&mut self.damage) {
            let is_tail = self.walked.tail.is_some_and(|tail| tail.from == piece.from) && piece.file == self.file;
            if !is_tail || piece.was_synced {
                let what = format!("what followed batch {position} is damaged");
                self.walked.losses.push(Loss {
                    streams: piece.commits.iter().flat_map(|commit| commit.streams.clone()).collect(),
                    all_named: false,
                    file: piece.file,
                    from: piece.from,
                    to: piece.to,
                    what,
                });
            }
        }
        let what = match self.head {
            HeadFile::At { batch, .. } if batch > position => {
                format!("the log ends with batch {position}, but batch {batch} was answered")
            }
            HeadFile::At { .. } => return,
            HeadFile::Missing => "HEAD is missing: nobody knows whether the log is whole".into(),
            HeadFile::Unreadable => "HEAD can't be read: nobody knows whether the log is whole".into(),
        };
        let at = usize::try_from(end).expect("a segment is in memory");
        self.lose(at, at, what);
    }

    pub(super) fn lose(&mut self, from: usize, to: usize, what: String) {
        let (file, from, to) = (self.file.clone(), from as u64, to as u64);
        self.walked.losses.push(Loss { file, from, to, what, streams: vec![], all_named: false });
    }

    fn lose_of(&mut self, batch: &Batch<'_>, what: String) {
        for stream in &batch.commit.streams {
            self.walked.index.mark_damaged(stream, &what);
        }
        let (file, from, to) = (self.file.clone(), batch.from as u64, batch.to as u64);
        self.walked.losses.push(Loss { file, from, to, what, streams: batch.commit.streams.clone(), all_named: true });
    }
}

/// The streams of the missing batches, and whether these are all. Names in damaged lines count only where two agree.
fn victims(first: u64, next: &CommitLine, damage: &[Damage]) -> (Vec<StreamId>, bool) {
    const MOST_BATCHES: u64 = 10_000;
    let (mut streams, mut all_named) = (next.before.clone(), true);
    let known = |batch: u64| damage.iter().flat_map(|d| &d.commits).find(|commit| commit.batch == batch);
    for named in damage.iter().filter_map(|damage| damage.named.as_ref()) {
        streams.extend(named.streams.iter().cloned());
    }
    let is_named = |batch: u64| {
        let named = damage.iter().filter_map(|damage| damage.named.as_ref());
        named.map(|named| named.batches).any(|(first, last)| (first..=last).contains(&batch))
    };
    for batch in (first..next.batch - 1).filter(|batch| !is_named(*batch)) {
        let own = known(batch).map(|commit| &commit.streams);
        let after = known(batch + 1).map(|commit| &commit.before);
        all_named &= own.is_some() && own == after;
        streams.extend(own.into_iter().flatten().cloned());
        if batch - first > MOST_BATCHES {
            all_named = false;
            break;
        }
    }
    streams.sort_unstable();
    streams.dedup();
    (streams, all_named)
}

/// A segment's text, whether it is packed or not, and what is missing of it.
pub(super) fn text_of(path: &Path) -> io::Result<(Vec<u8>, Vec<Missing>)> {
    match fs::read(path) {
        Ok(text) => Ok((text, Vec::new())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Packed::open(path).map(|mut packed| packed.text()),
        Err(e) => Err(e),
    }
}

pub(super) fn file_of(segment: &Path) -> String {
    format!("log/{}", segment.file_name().unwrap_or_default().to_string_lossy())
}

/// Where the first line that looks like a record begins.
fn first_batch(bytes: &[u8]) -> usize {
    memchr::memmem::find(bytes, b"{\"v\":").unwrap_or(bytes.len())
}
