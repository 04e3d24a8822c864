//! What the log keeps in memory: where each stream stands, and where everything is.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use jiff::Timestamp;

use crate::journal::{
    AppendError, NewRecord, Position, StreamId,
    record::{self, Chain, LineHash, NO_CHAIN, PrevHash},
};

/// A stream in the index.
pub(crate) type Slot = u32;

/// About 100 bytes and 8 more for each append, besides the name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    name: Arc<str>,
    /// Of its last record, synced or not.
    pub(crate) seq: u64,
    prev: PrevHash,
    /// The last batch that has a record of it.
    last_batch: u64,
    /// Of its last record that is synced.
    pub(crate) synced_prev: PrevHash,
    /// Where its synced records are.
    pub(crate) places: Vec<Place>,
    /// The batch that carries it from its first record on; 0: it stands where it was first written.
    carried_at: u64,
}

/// Records of one stream that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    const COUNT_BITS: u32 = 16;
    const OFFSET_BITS: u32 = 28;
    /// A segment may be longer than its target by one batch at most.
    pub(crate) const MAX_OFFSET: u64 = (1 << Self::OFFSET_BITS) - 1;
    /// More records of a stream that lie side by side take another place.
    pub(crate) const MAX_COUNT: usize = (1 << Self::COUNT_BITS) - 1;

    pub(crate) fn new(segment: usize, offset: u64, count: usize) -> Self {
        assert!(offset <= Self::MAX_OFFSET && count <= Self::MAX_COUNT, "a place holds no more");
        Self(((segment as u64) << Self::OFFSET_BITS | offset) << Self::COUNT_BITS | count as u64)
    }

    pub(crate) fn segment(self) -> usize {
        usize::try_from(self.0 >> (Self::OFFSET_BITS + Self::COUNT_BITS)).expect("it was a usize")
    }

    pub(crate) fn offset(self) -> u64 {
        self.0 >> Self::COUNT_BITS & Self::MAX_OFFSET
    }

    pub(crate) fn count(self) -> usize {
        usize::try_from(self.0 & Self::MAX_COUNT as u64).expect("16 bits")
    }
}

/// A file of the log.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    /// Of its shape.
    pub(crate) version: u32,
    /// Its first batch.
    pub(crate) first: u64,
    /// The end of its last synced batch.
    pub(crate) end: u64,
    /// Where batches begin, the first one and about one in a megabyte, so that a reader need not begin at the start.
    pub(crate) marks: Vec<(Position, u64)>,
    /// When its newest record was made; none: nobody has looked yet.
    pub(crate) newest: Option<Timestamp>,
}

const MARK_EVERY_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Index {
    slots: HashMap<Arc<str>, Slot>,
    streams: Vec<Stream>,
    /// Streams that lost records, with what was lost.
    damaged: HashMap<Slot, String>,
    pub(crate) segments: Vec<Segment>,
    /// How many segments were let go: places count them, too.
    pub(crate) gone: usize,
    /// Slots of streams that were let go.
    free: Vec<Slot>,
    /// The end of what is synced.
    pub(crate) position: Position,
    pub(crate) chain: Chain,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            slots: HashMap::new(),
            streams: Vec::new(),
            damaged: HashMap::new(),
            segments: Vec::new(),
            gone: 0,
            free: Vec::new(),
            position: Position(0),
            chain: NO_CHAIN,
        }
    }
}

impl Index {
    pub(crate) fn get(&self, stream: &StreamId) -> Option<(Slot, &Stream)> {
        let slot = *self.slots.get(&*stream.0)?;
        Some((slot, self.stream(slot)))
    }

    pub(crate) fn stream(&self, slot: Slot) -> &Stream {
        &self.streams[slot as usize]
    }

    pub(crate) fn name(&self, slot: Slot) -> &str {
        &self.stream(slot).name
    }

    pub(crate) fn damaged_streams(&self) -> Vec<StreamId> {
        self.damaged.keys().map(|slot| StreamId(Arc::clone(&self.stream(*slot).name))).collect()
    }

    pub(crate) fn streams(&self) -> usize {
        self.slots.len()
    }

    /// The last batch before the first one that is kept.
    pub(crate) fn begins(&self) -> Position {
        Position(self.segments.first().map_or(0, |segment| segment.first - 1))
    }

    /// The segment that is written now, as places count.
    pub(crate) fn last_segment(&self) -> usize {
        self.gone + self.segments.len() - 1
    }

    pub(crate) fn slot(&mut self, stream: &StreamId) -> Slot {
        if let Some(slot) = self.slots.get(&*stream.0) {
            return *slot;
        }
        let fresh = Stream { name: stream.0.clone(), ..Stream::default() };
        let slot = if let Some(free) = self.free.pop() {
            self.streams[free as usize] = fresh;
            free
        } else {
            self.streams.push(fresh);
            Slot::try_from(self.streams.len() - 1).expect("memory ends before four thousand million streams")
        };
        self.slots.insert(stream.0.clone(), slot);
        slot
    }

    /// Why the stream takes no more records.
    pub(crate) fn damage_of(&self, slot: Slot) -> Option<&str> {
        self.damaged.get(&slot).map(String::as_str)
    }

    pub(crate) fn mark_damaged(&mut self, stream: &StreamId, what: &str) {
        let slot = self.slot(stream);
        self.damaged.entry(slot).or_insert_with(|| what.into());
    }

    pub(crate) fn seq_of(&self, stream: &StreamId) -> u64 {
        self.get(stream).map_or(0, |(_, stream)| stream.seq)
    }

    pub(crate) fn check_damage(&self, stream: &StreamId) -> Result<(), AppendError> {
        if self.damaged.is_empty() {
            return Ok(());
        }
        let what = self.get(stream).and_then(|(slot, _)| self.damage_of(slot));
        what.map_or(Ok(()), |what| Err(AppendError::Damaged { stream: stream.clone(), what: what.into() }))
    }

    /// Writes the record as the stream's next one.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, slot: Slot, name: &StreamId, new: &NewRecord) -> LineHash {
        let stream = &mut self.streams[slot as usize];
        stream.seq += 1;
        let hash = record::write_line(out, name, stream.seq, new, &stream.prev);
        stream.prev = record::prev_of(&hash);
        hash
    }

    /// Whether this is the stream's first record in the batch.
    pub(crate) fn touch(&mut self, slot: Slot, batch: u64) -> bool {
        std::mem::replace(&mut self.streams[slot as usize].last_batch, batch) != batch
    }

    /// Takes in a record that was read from the log.
    ///
    /// # Errors
    /// What does not follow from the stream's record before.
    pub(crate) fn replay(&mut self, slot: Slot, seq: u64, prev: &str, hash: &LineHash) -> Result<(), String> {
        let stream = &mut self.streams[slot as usize];
        let follows = if seq == 1 { prev.is_empty() } else { prev == record::hex(&stream.prev) };
        let result = if seq == stream.seq + 1 && follows {
            Ok(())
        } else if seq == stream.seq + 1 {
            Err(format!("record {seq} of {} does not follow from the one before", stream.name))
        } else {
            Err(format!("record {} of {} is followed by {seq}", stream.seq, stream.name))
        };
        stream.seq = seq;
        stream.prev = record::prev_of(hash);
        result
    }

    /// Takes in the last of a stream's carried records that were read from the log, all of which follow from each other. They
    /// stand for what was there of the stream before.
    ///
    /// # Errors
    /// What does not end where the stream stands.
    pub(crate) fn replay_carried(&mut self, slot: Slot, seq: u64, hash: &LineHash) -> Result<(), String> {
        let stream = &mut self.streams[slot as usize];
        let prev = record::prev_of(hash);
        if self.damaged.remove(&slot).is_some() {
            // What was lost of it is here once more.
            (stream.seq, stream.prev) = (seq, prev);
        }
        if stream.seq > 0 && (stream.seq, stream.prev) != (seq, prev) {
            return Err(format!("{} is carried up to record {seq}, but stands at {}", stream.name, stream.seq));
        }
        (stream.seq, stream.prev) = (seq, prev);
        Ok(())
    }

    /// A stream whose first record that is there is not its first one: it stands there, and is carried later on.
    pub(crate) fn begin_within(&mut self, slot: Slot, seq: u64, hash: &LineHash) {
        let stream = &mut self.streams[slot as usize];
        (stream.seq, stream.prev) = (seq, record::prev_of(hash));
    }

    /// Carried records are on disk, and those they stand for are not needed any more.
    pub(crate) fn carried(&mut self, slot: Slot, places: Vec<Place>, batch: u64) {
        let stream = &mut self.streams[slot as usize];
        stream.synced_prev = stream.prev;
        stream.places = places;
        stream.carried_at = batch;
    }

    /// The streams that are carried, and by which batch.
    pub(crate) fn carried_streams(&self) -> HashMap<Arc<str>, u64> {
        let carried = self.slots.values().map(|slot| self.stream(*slot)).filter(|stream| stream.carried_at > 0);
        carried.map(|stream| (Arc::clone(&stream.name), stream.carried_at)).collect()
    }

    /// How many of the first segments hold nothing of damaged streams, which can't be carried, and nothing that is unsynced.
    pub(crate) fn sound_segments(&self) -> usize {
        let damaged = self.damaged.keys().filter_map(|slot| self.stream(*slot).places.first());
        let damaged = damaged.map(|place| place.segment().saturating_sub(self.gone)).min();
        damaged.unwrap_or(usize::MAX).min(self.segments.len().saturating_sub(1))
    }

    /// The streams that have records in the first segments, and whether all their records are there.
    pub(crate) fn streams_in_first(&self, segments: usize) -> Vec<(StreamId, bool)> {
        let end = self.gone + segments;
        let is_in = |place: Option<&Place>| place.is_some_and(|place| place.segment() < end);
        let streams = self.slots.values().map(|slot| self.stream(*slot)).filter(|stream| is_in(stream.places.first()));
        streams.map(|stream| (StreamId(Arc::clone(&stream.name)), is_in(stream.places.last()))).collect()
    }

    /// Forgets the streams and the first segments.
    pub(crate) fn let_go(&mut self, segments: usize, streams: &[StreamId]) {
        for stream in streams {
            if let Some(slot) = self.slots.remove(&*stream.0) {
                self.streams[slot as usize] = Stream::default();
                self.damaged.remove(&slot);
                self.free.push(slot);
            }
        }
        self.gone += segments;
        self.segments.drain(..segments);
        let gone = self.gone;
        // None, unless what should have been carried is damaged.
        for stream in self.streams.iter_mut().filter(|s| s.places.first().is_some_and(|place| place.segment() < gone)) {
            stream.places.retain(|place| place.segment() >= gone);
        }
    }

    /// The records are on disk.
    pub(crate) fn synced(&mut self, slot: Slot, place: Place) {
        let stream = &mut self.streams[slot as usize];
        stream.synced_prev = stream.prev;
        stream.places.push(place);
    }

    /// A batch is on disk, at the end of the last segment.
    pub(crate) fn advance(&mut self, position: Position, chain: Chain, from: u64, to: u64) {
        self.position = position;
        self.chain = chain;
        let segment = self.segments.last_mut().expect("a batch is in a segment");
        segment.end = to;
        if segment.marks.last().is_none_or(|(_, at)| from >= at + MARK_EVERY_BYTES) {
            segment.marks.push((position, from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_keeps_its_parts() {
        let place = Place::new(123_456, Place::MAX_OFFSET, Place::MAX_COUNT);
        assert_eq!((place.segment(), place.offset(), place.count()), (123_456, Place::MAX_OFFSET, Place::MAX_COUNT));
    }
}
