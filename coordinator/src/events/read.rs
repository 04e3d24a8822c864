//! Reads the log piece by piece, and finds in it what is worth telling.

use std::{collections::HashMap, iter::Peekable, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use muster_bus::subject::Subjects;
use muster_engine::ids::{Namespace, RunId};
use tracing::warn;

use super::{
    NamespaceOf, Source,
    map::{self, Told, Topic},
};
use crate::{
    journal::{Journal, Position, ReadError, Record, StreamId},
    metrics::EVENTS_SKIPPED,
    store::Store,
};

/// So many events are in memory at most.
pub(super) const EVENTS_AT_ONCE: usize = 256;

/// So many records are looked at before the position moves.
const RECORDS_AT_ONCE: usize = 5_000;

/// Namespaces of so many runs are kept.
const NAMESPACES: usize = 10_000;

/// A file that could not be read so often in a row is left out.
const READ_TRIES: u32 = 10;

type Reader = Peekable<Box<dyn Iterator<Item = Result<(Position, Record), ReadError>> + Send>>;

/// An event, ready to be published.
pub(super) struct Outgoing {
    /// The batch of its record.
    pub(super) position: Position,
    pub(super) kind: &'static str,
    pub(super) subject: String,
    pub(super) id: String,
    pub(super) payload: Bytes,
}

/// A piece of the log.
pub(super) struct Chunk {
    pub(super) events: Vec<Outgoing>,
    /// When the events are published, all up to here is.
    pub(super) read_to: Position,
    /// There was no more.
    pub(super) is_end: bool,
}

/// See the module. Its calls block on the disk.
pub(super) struct Scan {
    journal: Arc<dyn Journal>,
    store: Arc<Store>,
    cluster: String,
    namespace_of: NamespaceOf,
    namespaces: HashMap<RunId, Namespace>,
    /// What is being read, and where the log ended when that began.
    reader: Option<(Reader, Position)>,
    read_failures: u32,
}

impl Scan {
    pub(super) fn new(source: Source) -> Self {
        Self {
            journal: source.journal,
            store: source.store,
            cluster: source.cluster,
            namespace_of: source.namespace_of,
            namespaces: HashMap::new(),
            reader: None,
            read_failures: 0,
        }
    }

    /// The next piece does not follow the last one.
    pub(super) fn rewind(&mut self) {
        self.reader = None;
    }

    /// Nothing is left of what was begun to be read.
    pub(super) fn is_at_rest(&self) -> bool {
        self.reader.is_none()
    }

    /// What follows `after`; it must be where the last piece ended, unless the scan was rewound.
    ///
    /// # Errors
    /// A file can't be read right now.
    pub(super) fn next(&mut self, after: Position, oldest: Timestamp) -> Result<Chunk, ReadError> {
        let (mut reader, head) = if let Some(reading) = self.reader.take() {
            reading
        } else {
            // What was let go meanwhile is not told any more, and what is kept of it was told when it was new.
            let after = after.max(self.journal.begins());
            let head = self.journal.head().position;
            if head <= after {
                return Ok(Chunk { events: Vec::new(), read_to: after, is_end: true });
            }
            (self.journal.read(after).peekable(), head)
        };
        let (mut events, mut read_to) = (Vec::new(), after);
        let mut looked_at = 0;
        loop {
            // A batch is read whole: a position names everything in it.
            let is_full = looked_at >= RECORDS_AT_ONCE || events.len() >= EVENTS_AT_ONCE;
            if is_full && reader.peek().is_some_and(|next| next.as_ref().is_ok_and(|(at, _)| *at > read_to)) {
                self.reader = Some((reader, head));
                return Ok(Chunk { events, read_to, is_end: false });
            }
            match reader.next() {
                None => return Ok(Chunk { events, read_to: read_to.max(head), is_end: true }),
                Some(Ok((position, record))) => {
                    looked_at += 1;
                    read_to = position;
                    self.read_failures = 0;
                    if record.at >= oldest {
                        events.extend(self.outgoing(position, &record));
                    }
                }
                Some(Err(e @ ReadError::Io { .. })) if self.read_failures < READ_TRIES => {
                    self.read_failures += 1;
                    return Err(e);
                }
                // Whose records they are is said by the recovery.
                Some(Err(e)) => warn!("events may be missing: {e}"),
            }
        }
    }

    /// What can't be told is said once and left out: what comes behind it must not wait for it.
    fn outgoing(&mut self, position: Position, record: &Record) -> Option<Outgoing> {
        let topic = Topic::of(record)?;
        match self.told(&topic, record) {
            Ok(None) => None,
            Ok(Some((namespace, told))) => {
                let kind = told.kind;
                let event = map::envelope(told, &self.cluster, record);
                let payload = serde_json::to_vec(&event).map(Bytes::from).ok()?;
                let subject = Subjects::new(namespace.as_str()).event(kind);
                Some(Outgoing { position, kind, subject, id: event.id, payload })
            }
            Err(why) => {
                metrics::counter!(EVENTS_SKIPPED).increment(1);
                warn!(
                    stream = &*record.stream.0,
                    seq = record.seq,
                    why,
                    "a record can't be told to outsiders, and is left out"
                );
                None
            }
        }
    }

    fn told(&mut self, topic: &Topic, record: &Record) -> Result<Option<(Namespace, Told)>, String> {
        let namespace = self.namespace(topic, record)?;
        Ok(map::tell(topic, &namespace, record)?.map(|told| (namespace, told)))
    }

    fn namespace(&mut self, topic: &Topic, record: &Record) -> Result<Namespace, String> {
        match topic {
            Topic::Agent { namespace, .. } => Ok(namespace.clone()),
            Topic::Run(run) => {
                if let Some(known) = self.namespaces.get(run) {
                    return Ok(known.clone());
                }
                let found = match (self.namespace_of)(run) {
                    Some(namespace) => namespace,
                    None => self.looked_up(run, record)?,
                };
                if self.namespaces.len() >= NAMESPACES {
                    self.namespaces.clear();
                }
                self.namespaces.insert(run.clone(), found.clone());
                Ok(found)
            }
        }
    }

    /// A row of a run that was never read says nothing; the run's first record always does.
    fn looked_up(&self, run: &RunId, record: &Record) -> Result<Namespace, String> {
        if record.seq == 1 {
            return map::namespace_of_start(record);
        }
        if let Ok(Some(row)) = self.store.run(run)
            && row.seq > 0
        {
            return Ok(row.namespace);
        }
        let StreamId(stream) = &record.stream;
        let first = self.journal.read_stream(&record.stream, 0, 1).map_err(|e| e.to_string())?;
        first.first().ok_or_else(|| format!("{stream} has no first record")).and_then(map::namespace_of_start)
    }
}
