//! What a walk makes of the records of an intact batch: streams that follow, streams that are carried, and those that begin
//! within, since what was before was let go.

use serde::Deserialize;

use super::{
    OpenError,
    index::{Place, Slot},
    retain,
    scan::Batch,
    walk::{Loss, Walker, file_of},
};
use crate::journal::{
    StreamId,
    record::{self, LineHash},
};

impl Walker<'_> {
    pub(super) fn replay(&mut self, batch: &Batch<'_>) -> Result<Vec<LineHash>, OpenError> {
        let mut hashes = Vec::with_capacity(batch.commit.records);
        let mut last_streams = Vec::new();
        let mut open: Option<(Slot, u64, usize)> = None;
        let segment = self.walked.index.last_segment();
        let begins = self.walked.index.begins().0;
        for (offset, line) in batch.records() {
            let hash = record::hash_line(line);
            hashes.push(hash);
            let Some(envelope) = self.envelope(offset, line)? else { continue };
            let index = &mut self.walked.index;
            let slot = index.slot(&envelope.stream);
            if begins > 0 && envelope.seq > 1 && index.stream(slot).seq == 0 && index.damage_of(slot).is_none() {
                index.begin_within(slot, envelope.seq, &hash);
                self.within.insert(slot, 0);
            } else if let Err(what) = index.replay(slot, envelope.seq, &envelope.prev, &hash) {
                self.does_not_follow(slot, &envelope.stream, (offset, offset + line.len()), what);
            }
            self.note_retention(&envelope.stream);
            let index = &mut self.walked.index;
            if let Some(last) = self.within.get_mut(&slot) {
                *last = batch.commit.batch;
                if index.touch(slot, batch.commit.batch) {
                    last_streams.push(slot);
                }
                continue;
            }
            if index.touch(slot, batch.commit.batch) {
                last_streams.push(slot);
            }
            open = Some(match open {
                Some((same, from, count)) if same == slot && count < Place::MAX_COUNT => (slot, from, count + 1),
                other => {
                    if let Some((slot, from, count)) = other {
                        index.synced(slot, Place::new(segment, from, count));
                    }
                    (slot, offset as u64, 1)
                }
            });
        }
        if let Some((slot, from, count)) = open {
            self.walked.index.synced(slot, Place::new(segment, from, count));
        }
        self.walked.records += hashes.len() as u64;
        self.walked.last_streams = last_streams;
        Ok(hashes)
    }

    /// Whole streams, in the place of what was there of them before.
    pub(super) fn replay_carried(&mut self, batch: &Batch<'_>) -> Result<Vec<LineHash>, OpenError> {
        let mut hashes = Vec::with_capacity(batch.commit.records);
        let mut last_streams = Vec::new();
        let segment = self.walked.index.last_segment();
        let mut lines = batch.records().peekable();
        while let Some((from, line)) = lines.next() {
            let mut hash = record::hash_line(line);
            hashes.push(hash);
            let Some(first) = self.envelope(from, line)? else { continue };
            let (mut seq, mut fits) = (first.seq, first.seq == 1 && first.prev.is_empty());
            let mut places = vec![(from as u64, 1)];
            let mut to = from + line.len();
            self.note_retention(&first.stream);
            while let Some((offset, line)) = lines.peek().copied() {
                let Some(next) = self.envelope(offset, line)? else { break };
                if next.stream != first.stream {
                    break;
                }
                fits &= next.seq == seq + 1 && next.prev == record::hex(&record::prev_of(&hash));
                (seq, hash, to) = (next.seq, record::hash_line(line), offset + line.len());
                hashes.push(hash);
                match places.last_mut() {
                    Some((_, count)) if *count < Place::MAX_COUNT => *count += 1,
                    Some(_) | None => places.push((offset as u64, 1)),
                }
                lines.next();
            }
            let index = &mut self.walked.index;
            let slot = index.slot(&first.stream);
            let replayed = index.replay_carried(slot, seq, &hash);
            let what = if fits { replayed.err() } else { Some("carried records do not follow from each other".into()) };
            if let Some(what) = what {
                self.does_not_follow(slot, &first.stream, (from, to), what);
            }
            self.within.remove(&slot);
            let index = &mut self.walked.index;
            let places = places.into_iter().map(|(offset, count)| Place::new(segment, offset, count)).collect();
            index.carried(slot, places, batch.commit.batch);
            index.touch(slot, batch.commit.batch);
            last_streams.push(slot);
        }
        self.walked.records += hashes.len() as u64;
        self.walked.last_streams = last_streams;
        Ok(hashes)
    }

    /// A record without its event; none: it is none.
    fn envelope(&mut self, offset: usize, line: &[u8]) -> Result<Option<Envelope>, OpenError> {
        let Ok(envelope) = serde_json::from_slice::<Envelope>(line) else {
            self.lose(offset, offset + line.len(), "a line is no record, though its checksum holds".into());
            return Ok(None);
        };
        if envelope.v > record::RECORD_VERSION {
            return Err(OpenError::Version { file: self.file.clone(), version: envelope.v });
        }
        Ok(Some(envelope))
    }

    fn note_retention(&mut self, stream: &StreamId) {
        if let Some(before) = retain::let_go_before(stream) {
            self.walked.may_begin_at = self.walked.may_begin_at.max(before);
        }
    }

    /// A log that does not begin with its first batch says so itself; then its streams are whole, or were let go.
    pub(super) fn check_beginning(&mut self) {
        let begins = self.walked.index.begins().0;
        if begins == 0 {
            return;
        }
        for stream in self.walked.index.damaged_streams() {
            self.note_retention(&stream);
        }
        if begins >= self.walked.may_begin_at {
            self.file = self.walked.index.segments.first().map(|first| file_of(&first.path)).unwrap_or_default();
            let what =
                format!("the log begins with batch {}, and does not say that what was before may go", begins + 1);
            self.lose(0, 0, what);
        }
        for (slot, last) in std::mem::take(&mut self.within) {
            let stream = StreamId(self.walked.index.name(slot).into());
            if last >= self.walked.may_begin_at {
                self.does_not_follow(slot, &stream, (0, 0), format!("the first records of {} are missing", stream.0));
            } else if self.walked.index.damage_of(slot).is_none() {
                self.walked.index.let_go(0, &[stream]);
            }
        }
    }

    /// A stream that is known to have lost records has a gap, of course.
    fn does_not_follow(&mut self, slot: Slot, stream: &StreamId, (from, to): (usize, usize), what: String) {
        let index = &mut self.walked.index;
        if index.damage_of(slot).is_some() {
            return;
        }
        index.mark_damaged(stream, &what);
        let (file, streams) = (self.file.clone(), vec![stream.clone()]);
        let (from, to) = (from as u64, to as u64);
        self.walked.losses.push(Loss { file, from, to, what, streams, all_named: true });
    }
}

#[derive(Deserialize)]
struct Envelope {
    v: u32,
    stream: StreamId,
    seq: u64,
    prev: String,
}
