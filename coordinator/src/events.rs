//! Tells outsiders what has happened: reads the log behind everybody else, and puts its milestones into a stream as CloudEvents.
//!
//! What is guaranteed: each event is put in at least once, always under the same id `{stream}/{seq}`; events of one stream of
//! the journal come in its order, and one that comes again comes behind all that were put in before it. What is not: that an
//! event comes once, or at once. The position up to which all is put in is kept in the store, together with the stream it
//! is in; when either is lost, or the stream has lost its end, everything that is not too old is put in again.
//!
//! Nothing waits for this task, and it keeps no more than [`read::EVENTS_AT_ONCE`] events: while the stream can't be reached, the
//! rest stays in the log.

mod map;
mod read;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use muster_bus::event::{Ack, EventSink, SinkError, StreamMark};
use muster_engine::ids::{Namespace, RunId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::read::{Chunk, Outgoing, Scan};
use crate::{
    driver::Clock,
    journal::{Journal, Position},
    metrics::{EVENTS_BEHIND, EVENTS_PUBLISHED, EVENTS_SKIPPED},
    store::{EventsRow, Store, StoreWrite},
};

/// Between two looks at the end of a log that was read to its end.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often it is asked whether the stream is still the one it was.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Where there is no JetStream, it is asked for this often.
const OFF_PAUSE: Duration = Duration::from_secs(60);

/// Between two tries of what failed: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// An event that was refused so often is left out.
const REFUSED_TRIES: u32 = 3;

/// While there is always something to publish, the position is stored this often.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Where events go, and which.
#[derive(Clone)]
pub struct Events {
    /// Where they go.
    pub sink: Arc<dyn EventSink>,
    /// Older ones are not published (again).
    pub keep: Duration,
}

/// Says in which namespace a run is that is in memory.
pub(crate) type NamespaceOf = Box<dyn Fn(&RunId) -> Option<Namespace> + Send + Sync>;

/// What the task needs of its coordinator.
pub(crate) struct Source {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Clock,
    pub(crate) cluster: String,
    pub(crate) namespace_of: NamespaceOf,
    pub(crate) stop: CancellationToken,
}

/// Publish until the coordinator stops.
pub(crate) async fn follow(events: Events, source: Source) {
    let (journal, store, stop) = (Arc::clone(&source.journal), Arc::clone(&source.store), source.stop.clone());
    let clock = source.clock.clone();
    let mut follower = Follower {
        events,
        journal,
        store,
        clock,
        stop,
        scan: Some(Scan::new(source)),
        position: Position(0),
        stream: None,
        is_saved: true,
        saved: Instant::now(),
    };
    follower.run().await;
    follower.save().await;
}

struct Follower {
    events: Events,
    journal: Arc<dyn Journal>,
    store: Arc<Store>,
    clock: Clock,
    stop: CancellationToken,
    /// Lent to the thread that reads.
    scan: Option<Scan>,
    /// All up to here is in the stream.
    position: Position,
    /// None until the stream has been opened.
    stream: Option<StreamMark>,
    is_saved: bool,
    saved: Instant,
}

impl Follower {
    async fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        let mut said: Option<SinkError> = None;
        while !self.stop.is_cancelled() {
            let before = self.position;
            let Err(why) = self.publish_for_a_while(&mut said).await else {
                pause = FIRST_PAUSE;
                continue;
            };
            if self.position > before {
                pause = FIRST_PAUSE;
            }
            if self.stop.is_cancelled() {
                return;
            }
            self.measure();
            let wait = if matches!(why, SinkError::Off(_)) { OFF_PAUSE } else { pause };
            // A stream that has gone is made anew, which is said then.
            if why != SinkError::NoStream {
                say(&why, said.as_ref());
                said = Some(why);
            }
            self.rest(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Until it is time to look at the stream again.
    async fn publish_for_a_while(&mut self, said: &mut Option<SinkError>) -> Result<(), SinkError> {
        let stream = unless_stopped(&self.stop, self.events.sink.open()).await?;
        self.opened(stream).await;
        let until = Instant::now() + CHECK_EVERY;
        while Instant::now() < until && !self.stop.is_cancelled() {
            let Chunk { events, read_to, is_end } = self.read().await?;
            for event in events {
                self.publish(event).await?;
            }
            self.reached(read_to);
            if said.take().is_some() {
                info!("events are published to {} again", muster_bus::event::EVENTS);
            }
            if is_end || self.saved.elapsed() >= SAVE_EVERY {
                self.save().await;
            }
            self.measure();
            if is_end {
                self.rest(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Go on behind what is in this stream.
    async fn opened(&mut self, stream: StreamMark) {
        let known = match self.stream.take() {
            Some(known) => Some(EventsRow { position: self.position, stream: known }),
            None => self.load().await,
        };
        let head = self.journal.head().position;
        match known {
            Some(row)
                if row.position <= head
                    && row.stream.created == stream.created
                    && row.stream.last_seq <= stream.last_seq =>
            {
                self.position = row.position;
            }
            Some(_) => {
                warn!(
                    "the stream {} is another one, or has lost its end: it is filled again",
                    muster_bus::event::EVENTS
                );
                self.start_over();
            }
            None => {
                info!("events are published to {}, from the start of the journal", muster_bus::event::EVENTS);
                self.start_over();
            }
        }
        self.stream = Some(stream);
    }

    fn start_over(&mut self) {
        self.position = Position(0);
        self.is_saved = false;
        if let Some(scan) = &mut self.scan {
            scan.rewind();
        }
    }

    async fn load(&mut self) -> Option<EventsRow> {
        let store = Arc::clone(&self.store);
        let loaded = tokio::task::spawn_blocking(move || store.events()).await;
        match loaded {
            Ok(Ok(row)) => row,
            Ok(Err(e)) => {
                debug!("where the events stand is not known, so they are published again: {e}");
                None
            }
            Err(e) => {
                debug!("where the events stand is not known, so they are published again: {e}");
                None
            }
        }
    }

    async fn read(&mut self) -> Result<Chunk, SinkError> {
        let position = self.position;
        // Most looks end here; nothing is read for them.
        if self.scan.as_ref().is_some_and(Scan::is_at_rest) && self.journal.head().position <= position {
            return Ok(Chunk { events: Vec::new(), read_to: position, is_end: true });
        }
        let oldest = oldest(self.clock.now(), self.events.keep);
        let Some(mut scan) = self.scan.take() else {
            return Err(SinkError::Unavailable("the journal's reader is gone".to_owned()));
        };
        let read = tokio::task::spawn_blocking(move || {
            let chunk = scan.next(position, oldest);
            (scan, chunk)
        });
        let (scan, chunk) = read.await.map_err(|e| SinkError::Unavailable(format!("the journal's reader: {e}")))?;
        self.scan = Some(scan);
        chunk.map_err(|e| SinkError::Unavailable(e.to_string()))
    }

    async fn publish(&mut self, event: Outgoing) -> Result<(), SinkError> {
        let mut refused = 0;
        loop {
            let publishing = self.events.sink.publish(&event.subject, &event.id, event.payload.clone());
            match unless_stopped(&self.stop, publishing).await {
                Ok(ack) => {
                    self.acknowledged(ack)?;
                    metrics::counter!(EVENTS_PUBLISHED, "kind" => event.kind).increment(1);
                    break;
                }
                Err(SinkError::Refused(why)) => {
                    refused += 1;
                    if refused >= REFUSED_TRIES {
                        metrics::counter!(EVENTS_SKIPPED).increment(1);
                        warn!(id = event.id, why, "an event is refused, and is left out");
                        break;
                    }
                    self.rest(FIRST_PAUSE).await;
                }
                Err(e @ (SinkError::Off(_) | SinkError::NoStream | SinkError::Unavailable(_))) => {
                    if let Some(scan) = &mut self.scan {
                        scan.rewind();
                    }
                    return Err(e);
                }
            }
        }
        // Another event of the same batch may follow.
        self.reached(Position(event.position.0.saturating_sub(1)));
        Ok(())
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<(), SinkError> {
        let Some(stream) = &mut self.stream else { return Err(SinkError::NoStream) };
        if !ack.duplicate && ack.seq <= stream.last_seq {
            if let Some(scan) = &mut self.scan {
                scan.rewind();
            }
            return Err(SinkError::NoStream);
        }
        stream.last_seq = stream.last_seq.max(ack.seq);
        Ok(())
    }

    fn reached(&mut self, position: Position) {
        if position > self.position {
            self.position = position;
            self.is_saved = false;
        }
    }

    /// A position that is not stored costs nothing but events that come again.
    async fn save(&mut self) {
        let Some(stream) = self.stream.clone().filter(|_| !self.is_saved) else { return };
        let row = EventsRow { position: self.position, stream };
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || store.amend(vec![StoreWrite::Events(row)])).await {
            Ok(Ok(())) => self.is_saved = true,
            Ok(Err(e)) => debug!("where the events stand can't be stored: {e}"),
            Err(e) => debug!("where the events stand can't be stored: {e}"),
        }
        self.saved = Instant::now();
    }

    async fn rest(&mut self, pause: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn measure(&self) {
        let behind = self.journal.head().position.0.saturating_sub(self.position.0);
        metrics::gauge!(EVENTS_BEHIND).set(behind as f64);
    }
}

/// A server that does not answer holds up no stop. What reads or writes on the disk is waited for: it has the store.
async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, SinkError>>,
) -> Result<T, SinkError> {
    tokio::select! {
        () = stop.cancelled() => Err(SinkError::Unavailable("the coordinator stops".to_owned())),
        done = work => done,
    }
}

fn oldest(now: Timestamp, keep: Duration) -> Timestamp {
    let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
    now.checked_sub(keep).unwrap_or(Timestamp::MIN)
}

/// Once for each kind of trouble.
fn say(why: &SinkError, before: Option<&SinkError>) {
    if before.is_some_and(|before| std::mem::discriminant(before) == std::mem::discriminant(why)) {
        debug!("events still wait: {why}");
        return;
    }
    match why {
        SinkError::Off(_) => info!("no events are published for outsiders; it is tried again now and then: {why}"),
        SinkError::NoStream | SinkError::Refused(_) | SinkError::Unavailable(_) => {
            warn!("events for outsiders wait in the journal: {why}");
        }
    }
}
