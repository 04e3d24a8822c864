//! Letting go of old records: segments go whole, from the first one on. What is still needed of them is carried before: all
//! records of the streams that stay are written once more at the end of the log, byte by byte. So a stream is always whole, its hashes
//! hold, and no state has to be kept in a form that a later muster might not read.
//!
//! That segments may go is a record itself, see [`crate::journal::RETENTION`]: a log that begins later than these say has lost records.

use std::collections::HashSet;

use jiff::Timestamp;
use muster_engine::ids::Actor;
use serde::{Deserialize, Serialize};
use serde_json::value::to_raw_value;

use super::{
    Shared,
    commit::{CarriedStream, Work},
    index::{Place, Segment},
    read,
    scan::{Item, Scan},
    walk::text_of,
};
use crate::journal::{
    AppendError, Appended, LetGoError, NewRecord, Old, Position, RETENTION, ReadError, StreamAppend, StreamId,
};

/// So much is carried in one batch, or a single stream: what is damaged together is lost together.
const CARRY_BYTES: usize = 64 << 10;

/// What is worse to lose than others is carried alone.
const CARRIED_ALONE: &str = "principal/";

/// A stream that is larger than this stays where it is, and all behind it.
const LARGEST_CARRY: usize = (Place::MAX_OFFSET / 4) as usize;

/// A stream that gets records all the time is read again so often.
const TRIES: u32 = 20;

/// So many segments go at once: what is carried of many would want much room before any is freed.
const SEGMENTS_AT_ONCE: usize = 8;

/// Room that carrying leaves to everybody else, beside two segments.
const RESERVE_BYTES: u64 = 16 << 20;

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum RetentionEvent {
    RecordsLetGo {
        /// The first batch that stays.
        before: u64,
        /// Streams of which nothing is left.
        streams: usize,
    },
}

fn retention_stream(before: Position) -> StreamId {
    StreamId(format!("{RETENTION}{:020}", before.0).into())
}

/// The first batch that stays, by the name of a stream.
pub(crate) fn let_go_before(stream: &StreamId) -> Option<u64> {
    stream.0.strip_prefix(RETENTION)?.parse().ok()
}

/// See [`crate::journal::Journal::old`].
pub(crate) fn old(shared: &Shared, until: Timestamp) -> Result<Option<Old>, ReadError> {
    let (segments, sound) = {
        let index = shared.index();
        (index.segments.clone(), index.sound_segments())
    };
    let mut count = 0;
    for segment in &segments[..sound] {
        let newest = match segment.newest {
            Some(newest) => newest,
            None => match newest_of(segment)? {
                Some(newest) => newest,
                // What a damaged one has held is not known for sure: it stays for whoever wants to find out.
                None => break,
            },
        };
        let mut index = shared.index();
        if let Some(same) = index.segments.iter_mut().find(|same| same.first == segment.first) {
            same.newest = Some(newest);
        }
        if newest >= until {
            break;
        }
        count += 1;
        if count == SEGMENTS_AT_ONCE {
            break;
        }
    }
    if count == 0 {
        return Ok(None);
    }
    let streams = shared.index().streams_in_first(count);
    Ok(Some(Old { before: Position(segments[count].first), streams }))
}

/// When the newest record of a full segment was made; none: it is damaged.
pub(crate) fn newest_of(segment: &Segment) -> Result<Option<Timestamp>, ReadError> {
    #[derive(Deserialize)]
    struct Made {
        at: Timestamp,
    }
    let io = |e: std::io::Error| ReadError::Io { place: segment.path.display().to_string(), what: e.to_string() };
    let (bytes, missing) = text_of(&segment.path).map_err(io)?;
    if !missing.is_empty() {
        return Ok(None);
    }
    let end = usize::try_from(segment.end).unwrap_or(bytes.len()).min(bytes.len());
    let start = segment.marks.first().map_or(0, |(_, at)| usize::try_from(*at).unwrap_or(end));
    let mut newest = Timestamp::MIN;
    for item in Scan::new(&bytes[..end], start) {
        let Item::Batch(batch) = item else { return Ok(None) };
        if batch.commit.carried {
            continue;
        }
        for (_, line) in batch.records() {
            let Ok(Made { at }) = serde_json::from_slice(line) else { return Ok(None) };
            newest = newest.max(at);
        }
    }
    Ok(Some(newest))
}

/// See [`crate::journal::Journal::carry`].
pub(crate) fn carry(shared: &Shared, old: &Old, keep: &[StreamId]) -> Result<(), LetGoError> {
    let keep: HashSet<&StreamId> = keep.iter().collect();
    let stays = |(stream, is_whole): &&(StreamId, bool)| !is_whole || keep.contains(stream);
    let (mut group, mut bytes) = (Vec::new(), 0);
    for (stream, _) in old.streams.iter().filter(stays) {
        let carried = read_whole(shared, stream)?;
        if stream.0.starts_with(CARRIED_ALONE) {
            carry_group(shared, vec![carried])?;
            continue;
        }
        bytes += carried.lines.len();
        group.push(carried);
        if bytes >= CARRY_BYTES {
            carry_group(shared, std::mem::take(&mut group))?;
            bytes = 0;
        }
    }
    if group.is_empty() { Ok(()) } else { carry_group(shared, group) }
}

/// See [`crate::journal::Journal::let_go`].
pub(crate) fn let_go(
    shared: &Shared,
    old: &Old,
    keep: &[StreamId],
    at: Timestamp,
    by: &Actor,
) -> Result<Position, LetGoError> {
    let keep: HashSet<&StreamId> = keep.iter().collect();
    let goes: HashSet<&StreamId> =
        old.streams.iter().map(|(name, _)| name).filter(|name| !keep.contains(name)).collect();
    let left = {
        let index = shared.index();
        index.streams_in_first(index.segments.partition_point(|segment| segment.first < old.before.0))
    };
    let left: Vec<_> = left.into_iter().map(|(stream, _)| stream).collect();
    if let Some(other) = left.iter().find(|stream| !goes.contains(stream)) {
        let actual = shared.index().seq_of(other);
        return Err(AppendError::Conflict { stream: other.clone(), expected: 0, actual }.into());
    }
    let event = RetentionEvent::RecordsLetGo { before: old.before.0, streams: left.len() };
    let event = to_raw_value(&event).map_err(|e| AppendError::Unavailable(e.to_string()))?;
    let stream = retention_stream(old.before);
    let expected_seq = shared.index().seq_of(&stream);
    let append = vec![StreamAppend { stream, expected_seq, records: vec![NewRecord { at, by: by.clone(), event }] }];
    Ok(wait(shared.hand_over(Work::LetGo { before: old.before, streams: left, append }, 1_024))?)
}

fn read_whole(shared: &Shared, stream: &StreamId) -> Result<CarriedStream, LetGoError> {
    let (lines, seq) = read::whole(shared, stream)?;
    if lines.len() > LARGEST_CARRY {
        return Err(AppendError::TooLarge { size: lines.len(), limit: LARGEST_CARRY }.into());
    }
    Ok(CarriedStream { stream: stream.clone(), seq, lines })
}

/// A stream that got a record after it was read is read again.
fn carry_group(shared: &Shared, group: Vec<CarriedStream>) -> Result<(), LetGoError> {
    let names: Vec<StreamId> = group.iter().map(|carried| carried.stream.clone()).collect();
    match hand_over(shared, group) {
        Err(AppendError::Conflict { .. }) => {}
        other => return Ok(other.map(drop)?),
    }
    for name in names {
        let mut tries = 0;
        loop {
            tries += 1;
            match hand_over(shared, vec![read_whole(shared, &name)?]) {
                Err(AppendError::Conflict { .. }) if tries < TRIES => {}
                Err(e) => return Err(e.into()),
                Ok(_) => break,
            }
        }
    }
    Ok(())
}

fn hand_over(shared: &Shared, group: Vec<CarriedStream>) -> Result<Position, AppendError> {
    let bytes = group.iter().map(|carried| carried.lines.len()).sum();
    // A log that waits for room frees none.
    let wanted = bytes as u64 + 2 * shared.segment_bytes + RESERVE_BYTES;
    let free = rustix::fs::statvfs(&shared.data).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    if let Ok(free) = free
        && free < wanted
    {
        let why = format!("{} KiB are free, and carrying wants {} KiB", free >> 10, wanted >> 10);
        return Err(AppendError::Unavailable(why));
    }
    wait(shared.hand_over(Work::Carry(group), bytes))
}

fn wait(appended: Appended) -> Result<Position, AppendError> {
    let dropped = |_| Err(AppendError::Unavailable("the log has ended".into()));
    appended.blocking_recv().unwrap_or_else(dropped)
}
