//! A journal in memory, for tests and for `muster dev`: the same rules and the same records as the log, nothing on disk.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::{
    AppendError, Appended, Head, Journal, MAX_APPEND_BYTES, Position, ReadError, Record, StreamAppend, StreamId,
    record::{self, Chain, NO_CHAIN, PrevHash, RECORD_VERSION},
};

/// Keeps everything until it is dropped. Every append is a batch of its own and is answered at once.
#[derive(Default)]
pub struct MemoryJournal {
    inner: Mutex<Inner>,
}

struct Inner {
    records: Vec<(Position, Record)>,
    streams: HashMap<StreamId, Stream>,
    position: Position,
    chain: Chain,
}

impl Default for Inner {
    fn default() -> Self {
        Self { records: Vec::new(), streams: HashMap::new(), position: Position(0), chain: NO_CHAIN }
    }
}

#[derive(Default)]
struct Stream {
    prev: PrevHash,
    /// Where its records are in `Inner::records`.
    places: Vec<usize>,
}

impl MemoryJournal {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn append(&self, appends: Vec<StreamAppend>) -> Appended {
        let (answer, appended) = oneshot::channel();
        let result = self.lock().append(&appends);
        // A caller who no longer waits has lost interest in the answer, not in the append.
        let _ = answer.send(result);
        appended
    }

    fn read(&self, after: Position) -> Box<dyn Iterator<Item = Result<(Position, Record), ReadError>> + Send> {
        let inner = self.lock();
        let from = inner.records.partition_point(|(position, _)| *position <= after);
        let records = inner.records[from..].to_vec();
        Box::new(records.into_iter().map(Ok))
    }

    fn read_stream(&self, stream: &StreamId, after_seq: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        let inner = self.lock();
        let places = inner.streams.get(stream).map_or(&[][..], |s| &s.places);
        let skip = usize::try_from(after_seq).unwrap_or(usize::MAX);
        Ok(places.iter().skip(skip).take(limit).map(|&i| inner.records[i].1.clone()).collect())
    }

    fn seq(&self, stream: &StreamId) -> u64 {
        self.lock().streams.get(stream).map_or(0, |s| s.places.len() as u64)
    }

    fn damaged(&self) -> Vec<StreamId> {
        Vec::new()
    }

    fn head(&self) -> Head {
        let inner = self.lock();
        Head { position: inner.position, chain: record::hex(&inner.chain) }
    }

    fn syncs(&self) -> u64 {
        0
    }
}

impl Inner {
    fn append(&mut self, appends: &[StreamAppend]) -> Result<Position, AppendError> {
        super::check_size(appends, MAX_APPEND_BYTES)?;
        super::check_expected(appends, |stream| self.streams.get(stream).map_or(0, |s| s.places.len() as u64))?;
        if appends.iter().all(|a| a.records.is_empty()) {
            return Ok(self.position);
        }
        self.position.0 += 1;
        let mut hashes = Vec::new();
        let mut line = Vec::new();
        for append in appends {
            let stream = self.streams.entry(append.stream.clone()).or_default();
            for new in &append.records {
                let seq = stream.places.len() as u64 + 1;
                line.clear();
                let hash = record::write_line(&mut line, &append.stream, seq, new, &stream.prev);
                let prev = if seq == 1 { String::new() } else { record::hex(&stream.prev) };
                stream.prev = record::prev_of(&hash);
                stream.places.push(self.records.len());
                let (at, by, event) = (new.at, new.by.clone(), new.event.clone());
                let stream = append.stream.clone();
                self.records.push((self.position, Record { v: RECORD_VERSION, stream, seq, at, by, prev, event }));
                hashes.push(hash);
            }
        }
        self.chain = record::next_chain(&self.chain, self.position.0, hashes.iter());
        Ok(self.position)
    }
}
