//! Reads records while the log is being written: only what is synced, and nothing unchecked.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Shared,
    index::{Place, Segment},
    packed::Packed,
    scan::{Item, Scan, readable_commits},
};
use crate::journal::{Position, ReadError, Record, StreamId, record};

/// Everything after a position, up to what was synced when it began.
pub(crate) struct Reader {
    segments: std::vec::IntoIter<Segment>,
    carried: Carried,
    after: Position,
    pieces: Option<Pieces>,
    /// Damage whose victims the next intact batch names.
    damage: Damage,
    ready: std::vec::IntoIter<Result<(Position, Record), ReadError>>,
}

/// What a reader makes of records that stand in the log twice: where they were written first, and where they were carried to.
pub(crate) enum Carried {
    /// It begins where nothing was let go yet, and knows them.
    Known,
    /// It begins before the log does. Of the streams named, what is in that batch or behind it is all there is.
    Wanted(HashMap<Arc<str>, u64>),
}

impl Carried {
    fn takes(&self, batch: u64, is_carried: bool, stream: &StreamId) -> bool {
        match self {
            Self::Known => !is_carried,
            Self::Wanted(carried) => {
                let from = carried.get(&*stream.0).copied().unwrap_or_default();
                if is_carried { batch == from } else { batch > from }
            }
        }
    }
}

/// The rest of a segment, to be read a megabyte or so at a time.
struct Pieces {
    path: PathBuf,
    file: Option<Source>,
    /// The batch with which it begins.
    first: u64,
    at: u64,
    /// Where each piece ends, the last one first.
    ends: Vec<u64>,
    /// The first batch of the segment behind: what has its number or a higher one is void.
    void_from: u64,
}

/// What is missing where the reader is.
#[derive(Default)]
struct Damage {
    /// The last batch that was read whole, or that comes before everything that is read.
    intact: u64,
    /// Where the missing batches begin, and their streams as far as they are known.
    open: Option<(String, Vec<StreamId>)>,
}

impl Reader {
    /// Of the segments from the one on that holds the first batch after the position.
    pub(crate) fn new(segments: Vec<Segment>, after: Position, carried: Carried) -> Self {
        let ready = Vec::new().into_iter();
        Self { segments: segments.into_iter(), carried, after, pieces: None, damage: Damage::default(), ready }
    }

    /// The next piece of the log; none: that was all.
    fn fill(&mut self) -> Option<Vec<Result<(Position, Record), ReadError>>> {
        let mut records = Vec::new();
        while records.is_empty() {
            let Some(pieces) = self.pieces.as_mut().filter(|pieces| !pieces.ends.is_empty()) else {
                let Some(segment) = self.segments.next() else {
                    return self.damage.open.take().map(|(place, streams)| vec![Err(damaged(place, streams))]);
                };
                let void_from = self.segments.as_slice().first().map_or(u64::MAX, |next| next.first);
                let pieces = self.pieces.insert(Pieces::new(segment, self.after, void_from));
                if self.damage.open.is_none() {
                    self.damage.intact = pieces.first.saturating_sub(1);
                }
                continue;
            };
            if let Err(e) = pieces.next(self.after, &self.carried, &mut self.damage, &mut records) {
                let place = pieces.path.display().to_string();
                pieces.ends.clear();
                records.push(Err(ReadError::Io { place, what: e.to_string() }));
            }
        }
        Some(records)
    }
}

impl Iterator for Reader {
    type Item = Result<(Position, Record), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.next() {
                return Some(record);
            }
            self.ready = self.fill()?.into_iter();
        }
    }
}

impl Pieces {
    fn new(segment: Segment, after: Position, void_from: u64) -> Self {
        let mark = segment.marks.partition_point(|(position, _)| position.0 <= after.0 + 1).saturating_sub(1);
        let (Position(first), at) = segment.marks[mark];
        let mut ends: Vec<u64> = segment.marks[mark + 1..].iter().map(|(_, at)| *at).collect();
        if at < segment.end {
            ends.push(segment.end);
        }
        ends.reverse();
        Self { path: segment.path, file: None, first, at, ends, void_from }
    }

    fn next(
        &mut self,
        after: Position,
        carried: &Carried,
        damage: &mut Damage,
        records: &mut Vec<Result<(Position, Record), ReadError>>,
    ) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Source::open(&self.path, None)?),
        };
        let Some(end) = self.ends.pop() else { return Ok(()) };
        let bytes = file.read_at(self.at, end - self.at)?;
        let place = |at: usize| format!("{}, byte {}", self.path.display(), self.at + at as u64);
        for item in Scan::new(&bytes, 0) {
            match item {
                Item::Batch(batch) if batch.commit.batch >= self.void_from => break,
                Item::Batch(batch) => {
                    if let Some((place, mut streams)) = damage.open.take() {
                        streams.extend(batch.commit.before.iter().cloned());
                        records.push(Err(damaged(place, streams)));
                    }
                    damage.intact = batch.commit.batch;
                    let position = Position(batch.commit.batch);
                    let is_known = batch.commit.carried && matches!(carried, Carried::Known);
                    if position > after && !is_known {
                        let read = batch.records().map(|(at, line)| {
                            let no_record = |e: serde_json::Error| ReadError::Damaged {
                                place: place(at),
                                what: e.to_string(),
                                streams: vec![],
                            };
                            Ok((position, serde_json::from_slice::<Record>(line).map_err(no_record)?))
                        });
                        records.extend(read.filter(|record| {
                            let Ok((position, record)) = record else { return true };
                            carried.takes(position.0, batch.commit.carried, &record.stream)
                        }));
                    }
                }
                Item::Damage { from, to } | Item::Tail { from, to } => {
                    let hints = readable_commits(&bytes[from..to]);
                    // The batch before the first one that is missing is there: its streams have lost nothing.
                    let first = damage.intact + 1;
                    let packed = file.victims(self.at + from as u64, self.at + to as u64);
                    let streams = hints.into_iter().flat_map(|(commit, _)| {
                        if commit.batch > first { [commit.streams, commit.before].concat() } else { commit.streams }
                    });
                    damage.open.get_or_insert_with(|| (place(from), Vec::new())).1.extend(streams.chain(packed));
                }
            }
        }
        self.at = end;
        Ok(())
    }
}

fn damaged(place: String, mut streams: Vec<StreamId>) -> ReadError {
    streams.sort_unstable();
    streams.dedup();
    ReadError::Damaged { place, what: "the checksum does not hold".into(), streams }
}

/// The records of one stream, each checked by the hash that the next one carries.
pub(crate) fn stream(shared: &Shared, id: &StreamId, after_seq: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
    let mut records = Vec::new();
    while_nothing_goes(shared, || {
        records.clear();
        lines(shared, id, after_seq, limit, &mut |record, _| records.push(record))
    })?;
    Ok(records)
}

/// The lines of a whole stream, and the number of its last record.
pub(crate) fn whole(shared: &Shared, id: &StreamId) -> Result<(Vec<u8>, u64), ReadError> {
    let (mut bytes, mut seq) = (Vec::new(), 0);
    while_nothing_goes(shared, || {
        bytes.clear();
        lines(shared, id, 0, usize::MAX, &mut |record, line| {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
            seq = record.seq;
        })
    })?;
    Ok((bytes, seq))
}

/// Again, if segments were let go meanwhile: what is still there was carried elsewhere.
fn while_nothing_goes(shared: &Shared, mut read: impl FnMut() -> Result<(), ReadError>) -> Result<(), ReadError> {
    loop {
        let gone = shared.index().gone;
        match read() {
            Err(ReadError::Io { .. }) if shared.index().gone != gone => {}
            other => return other,
        }
    }
}

fn lines(
    shared: &Shared,
    id: &StreamId,
    after_seq: u64,
    limit: usize,
    each: &mut dyn FnMut(Record, &[u8]),
) -> Result<(), ReadError> {
    let (places, paths, gone, tip) = {
        let index = shared.index();
        let Some((slot, stream)) = index.get(id) else { return Ok(()) };
        if let Some(what) = index.damage_of(slot) {
            let place = format!("stream {}", id.0);
            return Err(ReadError::Damaged { place, what: what.into(), streams: vec![id.clone()] });
        }
        let paths: Vec<PathBuf> = index.segments.iter().map(|segment| segment.path.clone()).collect();
        (stream.places.clone(), paths, index.gone, stream.synced_prev)
    };
    let mut given = 0;
    let mut expected: Option<(String, String)> = None;
    let mut seq = 0;
    let mut files = Files { paths: &paths, gone, open: None, last: &shared.last_packed };
    for place in places {
        if seq + place.count() as u64 <= after_seq {
            seq += place.count() as u64;
            continue;
        }
        for line in files.lines(place)? {
            let path = &paths[place.segment() - gone];
            let damaged = |what: String| {
                let place = format!("{}, byte {}", path.display(), place.offset());
                ReadError::Damaged { place, what, streams: vec![id.clone()] }
            };
            let record: Record = serde_json::from_slice(&line).map_err(|e| damaged(e.to_string()))?;
            seq += 1;
            if record.stream != *id || record.seq != seq {
                return Err(damaged(format!("record {} of {} stands there", record.seq, record.stream.0)));
            }
            let hash = record::hex(&record::prev_of(&record::hash_line(&line)));
            if let Some((before, where_)) = expected.replace((hash, path.display().to_string()))
                && before != record.prev
            {
                let (place, what) = (where_, format!("record {} is not what was written", seq - 1));
                return Err(ReadError::Damaged { place, what, streams: vec![id.clone()] });
            }
            if given == limit {
                return Ok(());
            }
            if seq > after_seq {
                each(record, &line);
                given += 1;
            }
        }
    }
    match expected {
        Some((last, place)) if last != record::hex(&tip) => {
            let what = format!("record {seq} is not what was written");
            Err(ReadError::Damaged { place, what, streams: vec![id.clone()] })
        }
        Some(_) | None => Ok(()),
    }
}

/// Records of a stream mostly lie in few segments, one after the other.
struct Files<'a> {
    paths: &'a [PathBuf],
    /// How many segments were before these.
    gone: usize,
    open: Option<(usize, Source)>,
    last: &'a LastPacked,
}

impl Files<'_> {
    fn lines(&mut self, place: Place) -> Result<Vec<Vec<u8>>, ReadError> {
        const PIECE: u64 = 8 << 10;
        let path = &self.paths[place.segment() - self.gone];
        let io = |e: io::Error| ReadError::Io { place: path.display().to_string(), what: e.to_string() };
        let mut source = match self.open.take() {
            Some((segment, source)) if segment == place.segment() => source,
            Some(_) | None => Source::open(path, Some(self.last)).map_err(io)?,
        };
        let mut bytes = Vec::new();
        let mut lines = Vec::with_capacity(place.count());
        let mut start = 0;
        loop {
            while let Some(len) = memchr::memchr(b'\n', &bytes[start..]) {
                lines.push(bytes[start..start + len].to_vec());
                start += len + 1;
                if lines.len() == place.count() {
                    self.open = Some((place.segment(), source));
                    return Ok(lines);
                }
            }
            let more =
                source.read_at(place.offset() + bytes.len() as u64, PIECE.max(bytes.len() as u64)).map_err(io)?;
            if more.is_empty() {
                let what = "the file ends in the middle of a record".to_owned();
                let place = format!("{}, byte {}", path.display(), place.offset());
                return Err(ReadError::Damaged { place, what, streams: vec![] });
            }
            bytes.extend_from_slice(&more);
        }
    }
}

/// The text of a segment, plain or packed.
enum Source {
    Plain(File),
    Packed(Arc<Mutex<Packed>>),
}

/// The packed segment that was read last: who reads one stream of it mostly reads another one next.
pub(crate) type LastPacked = Mutex<Option<(PathBuf, Arc<Mutex<Packed>>)>>;

impl Source {
    fn open(path: &Path, last: Option<&LastPacked>) -> io::Result<Self> {
        match File::open(path) {
            Ok(file) => return Ok(Self::Plain(file)),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Err(_) => {}
        }
        let mut last = last.map(|last| last.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some((_, packed)) = last.as_deref().and_then(Option::as_ref).filter(|(of, _)| of == path) {
            return Ok(Self::Packed(Arc::clone(packed)));
        }
        let packed = Arc::new(Mutex::new(Packed::open(path)?));
        if let Some(last) = &mut last {
            **last = Some((path.into(), Arc::clone(&packed)));
        }
        Ok(Self::Packed(packed))
    }

    fn read_at(&mut self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain(file) => read_at(file, offset, len),
            Self::Packed(packed) => {
                let number = |n: u64| usize::try_from(n).map_err(io::Error::other);
                let mut packed = packed.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(packed.read_at(number(offset)?, number(len)?))
            }
        }
    }

    /// The streams of what is missing, where that is known.
    fn victims(&self, from: u64, to: u64) -> Vec<StreamId> {
        match (self, usize::try_from(from), usize::try_from(to)) {
            (Self::Packed(packed), Ok(from), Ok(to)) => {
                packed.lock().unwrap_or_else(PoisonError::into_inner).victims(from, to)
            }
            _ => Vec::new(),
        }
    }
}

/// Up to `len` bytes; fewer at the end of the file.
fn read_at(file: &File, mut offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset)? {
            0 => break,
            n => {
                filled += n;
                offset += n as u64;
            }
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
