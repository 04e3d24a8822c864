//! The journal: the only truth. Every event is here, synced to disk, before any effect of it leaves the process.
//!
//! What is guaranteed: appends of one call are atomic over all their streams; an `Ok` means that they are on disk; the
//! order of `Ok`s is the order of the log. What is not: after `Unavailable` nobody knows whether the records are there.

pub mod bench;
#[cfg(test)]
mod conformance;
pub mod log;
pub mod memory;
pub(crate) mod record;
pub mod tools;

use std::sync::Arc;

use jiff::Timestamp;
use muster_engine::ids::Actor;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

/// A stream of records: `run/{id}`, `agent/{name}`, `playbook/{namespace}/{name}`, `key/{id}`, `principal/{id}`, `gate/{id}`,
/// `clock/wall`, `coordinator/drain`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(pub Arc<str>);

/// Counts batches from 1; a position names everything up to and including its batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

/// A record to be appended; the journal adds sequence number and hashes.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: Actor,
    /// One line of JSON.
    pub event: Box<RawValue>,
}

/// Records for one stream.
#[derive(Clone, Debug)]
pub struct StreamAppend {
    /// Which.
    pub stream: StreamId,
    /// The sequence number of the stream's last record, 0 for a new stream. Another one is [`AppendError::Conflict`].
    pub expected_seq: u64,
    /// At least one. None at all is a bare check of `expected_seq`.
    pub records: Vec<NewRecord>,
}

/// A record as it is in the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of the record's shape; readers know all older ones.
    pub v: u32,
    /// Of which stream.
    pub stream: StreamId,
    /// Its number in the stream, from 1, without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: Actor,
    /// Hash of the stream's previous record; empty for the first.
    pub prev: String,
    /// What happened.
    pub event: Box<RawValue>,
}

/// The end of what is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The last batch.
    pub position: Position,
    /// Hash over all batches up to it.
    pub chain: String,
}

/// Why an append was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The stream has moved on. Nothing was written.
    #[error("stream {} is at {actual}, not at {expected}", stream.0)]
    Conflict {
        /// Which stream.
        stream: StreamId,
        /// What the caller thought.
        expected: u64,
        /// What is.
        actual: u64,
    },
    /// The records are too large for one batch. Nothing was written.
    #[error("{size} bytes are over the journal's limit of {limit} for one append")]
    TooLarge {
        /// Of the append.
        size: usize,
        /// Of the journal.
        limit: usize,
    },
    /// The stream has lost records to damage and takes no more. Nothing was written.
    #[error("stream {} takes no more records: {what}", stream.0)]
    Damaged {
        /// Which stream.
        stream: StreamId,
        /// What was lost, and where.
        what: String,
    },
    /// The log does not stand right now; whether the records are there is not known.
    #[error("the journal is not available: {0}")]
    Unavailable(String),
}

/// The answer to an append: where it stands, once it is on disk.
pub type Appended = oneshot::Receiver<Result<Position, AppendError>>;

/// A durable log of streams with one committer.
pub trait Journal: Send + Sync + 'static {
    /// Hand an append to the committer. Does not block; the answer comes after the sync. Appends handed over by one
    /// caller are committed in that order. A dropped sender means [`AppendError::Unavailable`].
    fn append(&self, appends: Vec<StreamAppend>) -> Appended;

    /// All records after a position, in the order of the log, each with the position of its batch. Reads only what was
    /// synced when the call was made. After a position before [`Journal::begins`]: every stream that is kept, whole.
    ///
    /// # Errors
    /// A damaged record is an error that names the place and the streams it may belong to; reading can go on behind it.
    fn read(&self, after: Position) -> Box<dyn Iterator<Item = Result<(Position, Record), ReadError>> + Send>;

    /// The records of one stream after a sequence number, at most `limit`.
    fn read_stream(&self, stream: &StreamId, after_seq: u64, limit: usize) -> Result<Vec<Record>, ReadError>;

    /// The streams of which records are known to be lost; they can't be read.
    fn damaged(&self) -> Vec<StreamId>;

    /// The end of what is on disk.
    fn head(&self) -> Head;

    /// Up to here records were let go; 0: none were.
    fn begins(&self) -> Position {
        Position(0)
    }

    /// The records that are older than a moment, as far as they can go; none: there are none. Blocks.
    ///
    /// # Errors
    /// A file can't be read.
    fn old(&self, _until: Timestamp) -> Result<Option<Old>, ReadError> {
        Ok(None)
    }

    /// Compress what has not been written for as long, and gives how many files that were. What is read stays the same. Blocks.
    ///
    /// # Errors
    /// A file can't be read or written; it stays as it is.
    fn pack(&self, _until: Timestamp) -> Result<usize, ReadError> {
        Ok(0)
    }

    /// Before old records go: write once more, unchanged, all records of the streams named in `keep`, and of those that have newer
    /// records. Blocks for as long as that takes.
    ///
    /// # Errors
    /// Some may have been written; it can be done again.
    fn carry(&self, _old: &Old, _keep: &[StreamId]) -> Result<(), LetGoError> {
        Ok(())
    }

    /// Let the old records go, when those of `keep` are carried. The other streams are forgotten, and a stream of their name
    /// begins anew. Nothing is let go if one of them has got a record since, or one of `keep` has old records. Blocks.
    ///
    /// # Errors
    /// Nothing was let go; it can be tried again.
    fn let_go(&self, old: &Old, _keep: &[StreamId], _at: Timestamp, _by: &Actor) -> Result<Position, LetGoError> {
        Ok(old.before)
    }

    /// The number of a stream's last record; 0: there is none.
    fn seq(&self, stream: &StreamId) -> u64;

    /// How many syncs of the hot path there were since the start, for figures.
    fn syncs(&self) -> u64;
}

/// What is old enough to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Old {
    /// Everything before this batch.
    pub before: Position,
    /// The streams that have records there, and whether none of theirs is newer.
    pub streams: Vec<(StreamId, bool)>,
}

/// Why nothing was let go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LetGoError {
    /// What is kept can't be read.
    #[error("what is to be kept can't be read: {0}")]
    Read(#[from] ReadError),
    /// What is kept can't be written, or a stream got a record meanwhile.
    #[error("what is to be kept can't be written: {0}")]
    Append(#[from] AppendError),
}

/// Why a record could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Bytes are not what was written.
    #[error("damaged at {place}: {what}")]
    Damaged {
        /// File and offset.
        place: String,
        /// What is wrong.
        what: String,
        /// The streams the damage may belong to; empty: not known.
        streams: Vec<StreamId>,
    },
    /// The file could not be read.
    #[error("can't read {place}: {what}")]
    Io {
        /// Which file.
        place: String,
        /// The system's words.
        what: String,
    },
}

/// What the streams are called that say that something was let go: one each time, and behind this the first batch that stays. So
/// even a damaged record says by its stream's name where the log may begin.
pub(crate) const RETENTION: &str = "log/retention/";

/// The records of one append take at most this many bytes in the log.
pub const MAX_APPEND_BYTES: usize = 4 << 20;

fn check_size(appends: &[StreamAppend], limit: usize) -> Result<usize, AppendError> {
    let size = appends.iter().flat_map(|a| a.records.iter().map(|r| record::line_bound(&a.stream, r))).sum();
    if size > limit { Err(AppendError::TooLarge { size, limit }) } else { Ok(size) }
}

/// A stream may be named more than once; the later one then expects what the earlier one leaves.
fn check_expected(appends: &[StreamAppend], seq_of: impl Fn(&StreamId) -> u64) -> Result<(), AppendError> {
    for (i, append) in appends.iter().enumerate() {
        let before: usize = appends[..i].iter().filter(|a| a.stream == append.stream).map(|a| a.records.len()).sum();
        let actual = seq_of(&append.stream) + before as u64;
        if actual != append.expected_seq {
            let (stream, expected) = (append.stream.clone(), append.expected_seq);
            return Err(AppendError::Conflict { stream, expected, actual });
        }
    }
    Ok(())
}
