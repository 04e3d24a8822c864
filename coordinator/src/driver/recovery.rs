//! From the journal to runs in memory, and to rows in the store. Damage stays with the streams it is in.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use muster_engine::{
    ids::{AgentName, Digest, Namespace, RunId},
    run::{Event, Rest, Run},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use tracing::{error, info};

use super::{rows, run_task::stream_of};
use crate::{
    journal::{Journal, Position, RETENTION, ReadError, Record, StreamId},
    registry::records::{AgentEvent, AgentRecord, agent_of},
    store::{AgentRow, PlaybookRow, Store, StoreError, StoreWrite},
};

/// So many writes to the store are gathered before they are handed over.
const WRITES: usize = 2_000;

/// Records read of one stream at a time.
const CHUNK: usize = 1_000;

/// The same for playbooks, whose records may be large.
const PLAYBOOK_CHUNK: usize = 16;

/// A revision of a playbook was submitted: the only event of the stream `playbook/{namespace}/{name}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum PlaybookEvent {
    /// A new revision, or an older one again: it becomes the newest.
    PlaybookSubmitted { revision: Digest, owner: String, yaml: Arc<str> },
}

/// What the journal says, as far as the coordinator has to know it to go on.
#[derive(Default)]
pub(super) struct Recovered {
    /// Runs that have not ended, and for which something has to be done.
    pub(super) runs: Vec<Run>,
    /// Runs that wait for nothing but time and people, and how.
    pub(super) passive: Vec<(RunId, Rest)>,
    /// Runs whose records can't be believed, and why.
    pub(super) quarantined: Vec<(RunId, String, Option<Run>)>,
    pub(super) agents: BTreeMap<(Namespace, AgentName), AgentRecord>,
    /// The last time in the journal.
    pub(super) last_at: Option<Timestamp>,
}

/// Why a run can't be rebuilt to its end.
pub(super) struct RebuildError {
    pub(super) why: String,
    /// The system refused to read: another try may succeed.
    pub(super) may_pass: bool,
    /// The run before that.
    pub(super) so_far: Option<Run>,
}

/// Bring the store up to the log's end, and give back what has to be in memory. A run that was passive when the store heard of
/// it last, and of which nothing was written since, is believed to be so and not read, unless `all` are wanted.
///
/// # Errors
/// Only if the store can't be written at all; damage in the log is in [`Recovered::quarantined`].
pub(super) fn recover(journal: &dyn Journal, store: &Store, all: bool) -> Result<Recovered, StoreError> {
    if store.position() > Position(0) && store.position() < journal.begins() {
        let (at, begins) = (store.position().0, journal.begins().0);
        return Err(StoreError::Damaged(format!("it stands at {at}, but the log has let go of all up to {begins}")));
    }
    let mut recovered = Recovered::default();
    let mut listed = listed_open(journal, store)?;
    restore_agents(store, &mut recovered)?;
    // Who reads from before the log's beginning finds what is carried out of its order: only the whole is a position.
    let is_rebuilt = store.position() < journal.begins();
    let mut pass = Pass::new(store.position(), is_rebuilt);
    // Asked before the log is read: while the coordinator runs, there is more behind it by the time that the reading ends.
    let head = journal.head().position;
    for item in journal.read(store.position()) {
        match item {
            Ok((position, record)) => {
                recovered.last_at = recovered.last_at.max(Some(record.at));
                pass.take(store, position, &record, &mut recovered)?;
            }
            Err(ReadError::Io { place, what }) => return Err(StoreError::Io(format!("can't read {place}: {what}"))),
            Err(e) => pass.damaged(&e),
        }
    }
    if pass.lets_go {
        pass.writes.extend(gone_runs(journal, store)?);
    }
    recovered.last_at = recovered.last_at.max(last_time(journal, head));
    listed.extend(pass.touched.iter().map(|id| (id.clone(), None)));
    for id in pass.ended.drain() {
        listed.remove(&id);
    }
    for (id, rest) in &listed {
        if let Some(rest) = rest.filter(|_| !all && !pass.victims.contains_key(id)) {
            recovered.passive.push((id.clone(), rest));
            continue;
        }
        let victim = pass.victims.remove(id);
        let rebuilt = match pass.building.remove(id) {
            Some(rebuilt) => Ok(Some(rebuilt)),
            None => rebuild(journal, id),
        };
        match (rebuilt, victim) {
            (Ok(Some(rebuilt)), None) => {
                recovered.last_at = recovered.last_at.max(Some(rebuilt.updated_at));
                pass.writes.extend(rows::writes_of(&rebuilt, false));
                match rebuilt.rest().filter(|_| !all) {
                    Some(rest) => recovered.passive.push((id.clone(), rest)),
                    None if rebuilt.has_ended() => {}
                    None => recovered.runs.push(rebuilt),
                }
            }
            (Ok(rebuilt), Some(why)) => recovered.quarantined.push((id.clone(), why, rebuilt)),
            (Ok(None), None) => {
                recovered.quarantined.push((id.clone(), "its stream is not in the journal".to_owned(), None));
            }
            (Err(broken), _) => {
                let RebuildError { why, so_far, .. } = *broken;
                recovered.quarantined.push((id.clone(), why, so_far));
            }
        }
    }
    for (id, why) in pass.victims.drain() {
        recovered.quarantined.push((id, why, None));
    }
    let position = pass.position.max(head);
    pass.finish(store, position)?;
    mark_quarantined(store, &recovered)?;
    Ok(recovered)
}

/// What is damaged may have been listed long ago: a store that is up to date takes it all the same.
fn mark_quarantined(store: &Store, recovered: &Recovered) -> Result<(), StoreError> {
    let mut marks = Vec::new();
    for (id, _, rebuilt) in &recovered.quarantined {
        match rebuilt {
            Some(rebuilt) => marks.extend(rows::writes_of(rebuilt, true)),
            None => marks.push(StoreWrite::Run(rows::quarantined(id, store.run(id)?))),
        }
    }
    if marks.is_empty() { Ok(()) } else { store.amend(marks) }
}

/// The last batch has the latest time, whether the store has it or not; carried ones before it have none.
fn last_time(journal: &dyn Journal, head: Position) -> Option<Timestamp> {
    let begins = journal.begins().0;
    let mut back = 1;
    loop {
        let from = head.0.saturating_sub(back).max(begins);
        let last = journal.read(Position(from)).filter_map(|item| Some(item.ok()?.1.at)).max();
        if last.is_some() || from == begins {
            return last;
        }
        back *= 2;
    }
}

/// Runs that the store lists and the journal has let go: what took them off the list was lost with the process.
fn gone_runs(journal: &dyn Journal, store: &Store) -> Result<Vec<StoreWrite>, StoreError> {
    let gone = |id: &RunId| journal.seq(&stream_of(id)) == 0;
    Ok(store.runs()?.into_iter().filter(gone).map(StoreWrite::ForgetRun).collect())
}

/// The open runs, each with how it is believed to be passive; not if records of it are lost.
fn listed_open(journal: &dyn Journal, store: &Store) -> Result<BTreeMap<RunId, Option<Rest>>, StoreError> {
    let mut listed = store.open_runs()?;
    for StreamId(damaged) in journal.damaged() {
        if let Some(rest) = damaged.strip_prefix("run/").and_then(|id| listed.get_mut(&RunId::from(id))) {
            *rest = None;
        }
    }
    Ok(listed)
}

/// As [`recover`]; a store that turns out to be damaged is emptied and filled from the log's start.
pub(super) fn recover_or_rebuild(journal: &dyn Journal, store: &Store, all: bool) -> Result<Recovered, StoreError> {
    match recover(journal, store, all) {
        Err(StoreError::Damaged(why)) => {
            error!("the store is damaged and is rebuilt from the log: {why}");
            store.reset(&why)?;
            recover(journal, store, all)
        }
        other => other,
    }
}

/// Bring a store that is behind up to the log's end while the coordinator runs.
pub(super) fn refill(journal: &dyn Journal, store: &Store) -> Result<(), StoreError> {
    recover(journal, store, false).map(drop)
}

/// A revision of a playbook from its stream, the one submitted last if none is named: for when the store can't say.
pub(super) fn playbook(
    journal: &dyn Journal,
    namespace: &Namespace,
    name: &str,
    revision: Option<&Digest>,
) -> Result<Option<PlaybookRow>, ReadError> {
    let stream = playbook_stream(namespace, name);
    let (mut found, mut seq) = (None, 0);
    loop {
        let records = journal.read_stream(&stream, seq, PLAYBOOK_CHUNK)?;
        let Some(last) = records.last() else { return Ok(found) };
        seq = last.seq;
        for row in records.iter().filter_map(playbook_row) {
            if revision.is_none_or(|wanted| *wanted == row.revision) {
                found = Some(row);
            }
        }
    }
}

/// What is journalled of a playbook.
pub(super) fn playbook_stream(namespace: &Namespace, name: &str) -> StreamId {
    StreamId(format!("playbook/{namespace}/{name}").into())
}

fn playbook_row(record: &Record) -> Option<PlaybookRow> {
    let (namespace, name) = record.stream.0.strip_prefix("playbook/")?.split_once('/')?;
    match serde_json::from_str(record.event.get()) {
        Ok(PlaybookEvent::PlaybookSubmitted { revision, owner, yaml }) => Some(PlaybookRow {
            namespace: namespace.into(),
            name: name.to_owned(),
            revision,
            yaml,
            owner,
            submitted_at: record.at,
            submitted_by: record.by.clone(),
            warnings: Value::Null,
        }),
        Err(e) => {
            error!(stream = &*record.stream.0, "a record can't be read and is left out: {e}");
            None
        }
    }
}

/// A run from its stream; none when the journal has no such stream.
pub(super) fn rebuild(journal: &dyn Journal, id: &RunId) -> Result<Option<Run>, Box<RebuildError>> {
    let stream = stream_of(id);
    let mut rebuilt: Option<Run> = None;
    loop {
        let seq = rebuilt.as_ref().map_or(0, |r| r.seq);
        let records = match journal.read_stream(&stream, seq, CHUNK) {
            Ok(records) if records.is_empty() => return Ok(rebuilt),
            Ok(records) => records,
            Err(e) => {
                let may_pass = matches!(e, ReadError::Io { .. });
                return Err(Box::new(RebuildError { why: e.to_string(), may_pass, so_far: rebuilt }));
            }
        };
        for record in records {
            if let Err(why) = follow(&mut rebuilt, &record) {
                return Err(Box::new(RebuildError { why, may_pass: false, so_far: rebuilt }));
            }
        }
    }
}

/// Take one more record of a run's stream. One that does not fit leaves the run as it was.
pub(super) fn follow(rebuilt: &mut Option<Run>, record: &Record) -> Result<Event, String> {
    let event: Event = serde_json::from_str(record.event.get())
        .map_err(|e| format!("record {} of {} can't be read: {e}", record.seq, record.stream.0))?;
    match (rebuilt.as_mut(), &event) {
        (None, Event::RunStarted(started)) if record.seq == 1 => {
            *rebuilt = Some(Run::start(record.at, &record.by, started));
        }
        (None, other) => {
            return Err(format!("record {} of {} is {}, not the start", record.seq, record.stream.0, other.kind()));
        }
        (Some(rebuilt), _) if record.seq != rebuilt.seq + 1 => {
            return Err(format!("record {} of {} follows {}", record.seq, record.stream.0, rebuilt.seq));
        }
        (Some(rebuilt), event) => {
            rebuilt.apply(record.at, event).map_err(|e| e.to_string())?;
        }
    }
    Ok(event)
}

fn restore_agents(store: &Store, recovered: &mut Recovered) -> Result<(), StoreError> {
    for row in store.agents()? {
        let AgentRow { namespace, name, detail } = row;
        match serde_json::from_value(detail) {
            Ok(record) => drop(recovered.agents.insert((namespace, name), record)),
            Err(e) => return Err(StoreError::Damaged(format!("agent {namespace}/{name}: {e}"))),
        }
    }
    Ok(())
}

/// One pass over the log behind the store.
struct Pass {
    /// The batch of the records that are being read.
    position: Position,
    writes: Vec<StoreWrite>,
    building: HashMap<RunId, Run>,
    /// Runs of which something was read.
    touched: BTreeSet<RunId>,
    ended: HashSetOfRuns,
    victims: HashMap<RunId, String>,
    /// Nothing is a position before the end.
    is_rebuilt: bool,
    /// A record says that something was let go.
    lets_go: bool,
}

type HashSetOfRuns = std::collections::HashSet<RunId>;

impl Pass {
    fn new(position: Position, is_rebuilt: bool) -> Self {
        Self {
            position,
            writes: Vec::new(),
            building: HashMap::new(),
            touched: BTreeSet::new(),
            ended: HashSetOfRuns::new(),
            victims: HashMap::new(),
            is_rebuilt,
            lets_go: false,
        }
    }

    fn take(
        &mut self,
        store: &Store,
        position: Position,
        record: &Record,
        recovered: &mut Recovered,
    ) -> Result<(), StoreError> {
        if position != self.position {
            if self.writes.len() >= WRITES {
                let behind = self.position;
                self.flush(store, behind)?;
            }
            self.position = position;
        }
        if let Some(id) = record.stream.0.strip_prefix("run/") {
            self.run_record(&RunId::from(id), record);
        } else if record.stream.0.starts_with("playbook/") {
            self.writes.extend(playbook_row(record).map(StoreWrite::Playbook));
        } else if record.stream.0.starts_with(RETENTION) {
            self.lets_go = true;
        } else if let Some((namespace, name)) = agent_of(&record.stream) {
            self.agent_record(namespace, name, record, recovered);
        }
        Ok(())
    }

    fn run_record(&mut self, id: &RunId, record: &Record) {
        if record.seq > 1 && !self.building.contains_key(id) {
            // It began before: it is rebuilt from its own stream.
            if !self.ended.contains(id) {
                self.touched.insert(id.clone());
            }
            return;
        }
        let mut rebuilt = self.building.remove(id);
        let fits = follow(&mut rebuilt, record);
        if let Err(why) = &fits {
            self.touched.insert(id.clone());
            self.victims.entry(id.clone()).or_insert_with(|| why.clone());
        }
        let Some(rebuilt) = rebuilt else { return };
        if rebuilt.has_ended() && fits.is_ok() {
            self.touched.remove(id);
            self.ended.insert(id.clone());
            self.writes.extend(rows::writes_of(&rebuilt, false));
        } else {
            if record.seq == 1 {
                self.touched.insert(id.clone());
                self.writes.extend(rows::writes_of(&rebuilt, false));
            }
            self.building.insert(id.clone(), rebuilt);
        }
    }

    fn agent_record(&mut self, namespace: Namespace, name: AgentName, record: &Record, recovered: &mut Recovered) {
        let event: AgentEvent = match serde_json::from_str(record.event.get()) {
            Ok(event) => event,
            Err(e) => return error!(stream = &*record.stream.0, "a record can't be read and is left out: {e}"),
        };
        let key = (namespace.clone(), name.clone());
        let before = recovered.agents.remove(&key);
        if before.as_ref().is_some_and(|b| b.seq >= record.seq) {
            recovered.agents.extend(before.map(|b| (key, b)));
            return;
        }
        if let Some(after) = AgentRecord::after(before, record.seq, event) {
            if let Ok(detail) = serde_json::to_value(&after) {
                self.writes.push(StoreWrite::Agent(AgentRow { namespace, name, detail }));
            }
            recovered.agents.insert(key, after);
        }
    }

    fn damaged(&mut self, damage: &ReadError) {
        error!("the journal is damaged: {damage}");
        if let ReadError::Damaged { streams, .. } = damage {
            for StreamId(stream) in streams {
                if let Some(id) = stream.strip_prefix("run/").map(RunId::from) {
                    // Whether it has lost anything, its own stream says: it may have been carried since.
                    self.building.remove(&id);
                    self.ended.remove(&id);
                    self.touched.insert(id);
                }
            }
        }
    }

    fn flush(&mut self, store: &Store, position: Position) -> Result<(), StoreError> {
        if self.is_rebuilt { store.amend(std::mem::take(&mut self.writes)) } else { self.finish(store, position) }
    }

    fn finish(&mut self, store: &Store, position: Position) -> Result<(), StoreError> {
        if !self.writes.is_empty() {
            info!(position = position.0, rows = self.writes.len(), "the store follows the log");
        }
        store.apply_batch(position, std::mem::take(&mut self.writes))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use muster_engine::ids::Actor;
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::journal::{
        Appended, Head, NewRecord, StreamAppend,
        log::{LogJournal, LogOptions},
    };

    /// Reads so many records, and then the disk fails.
    struct Fails(LogJournal, usize);

    impl Journal for Fails {
        fn append(&self, appends: Vec<StreamAppend>) -> Appended {
            self.0.append(appends)
        }

        fn read(&self, after: Position) -> Box<dyn Iterator<Item = Result<(Position, Record), ReadError>> + Send> {
            let failed = ReadError::Io { place: "log".to_owned(), what: "it fails".to_owned() };
            Box::new(self.0.read(after).take(self.1).chain(std::iter::once(Err(failed))))
        }

        fn read_stream(&self, stream: &StreamId, after: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
            self.0.read_stream(stream, after, limit)
        }

        fn seq(&self, stream: &StreamId) -> u64 {
            self.0.seq(stream)
        }

        fn damaged(&self) -> Vec<StreamId> {
            self.0.damaged()
        }

        fn head(&self) -> Head {
            self.0.head()
        }

        fn syncs(&self) -> u64 {
            self.0.syncs()
        }

        fn begins(&self) -> Position {
            self.0.begins()
        }
    }

    fn submitted(n: usize) -> StreamAppend {
        let event = PlaybookEvent::PlaybookSubmitted {
            revision: format!("sha256:{n}").into(),
            owner: "devops".to_owned(),
            yaml: "x".into(),
        };
        let at = "2026-01-07T10:00:00Z".parse().unwrap();
        let records = vec![NewRecord { at, by: "person/dba-1".into(), event: to_raw_value(&event).unwrap() }];
        StreamAppend { stream: playbook_stream(&"default".into(), &format!("p{n}")), expected_seq: 0, records }
    }

    /// What is carried stands behind what is kept: a store that is filled from the start and stops in between has no position yet.
    #[test]
    fn a_store_that_was_filled_by_half_is_filled_from_the_start_again() {
        const PLAYBOOKS: usize = WRITES + 700;
        let dir = tempfile::tempdir().unwrap();
        let options = || LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
        let (journal, _) = LogJournal::open(&dir.path().join("data"), options()).unwrap();
        for all in (0..PLAYBOOKS).collect::<Vec<_>>().chunks(100) {
            journal.append(all.iter().map(|n| submitted(*n)).collect()).blocking_recv().unwrap().unwrap();
        }
        let later = Timestamp::now() + SignedDuration::from_hours(1);
        let old = journal.old(later).unwrap().unwrap();
        let keep: Vec<StreamId> = old.streams.iter().map(|(stream, _)| stream.clone()).collect();
        journal.carry(&old, &keep).unwrap();
        journal.let_go(&old, &keep, later, &Actor::from("muster")).unwrap();
        assert!(journal.begins() > Position(0));

        let (store, _) = Store::open(&dir.path().join("store"), "c", journal.head().position).unwrap();
        let failing = Fails(journal, WRITES + 300);
        assert!(matches!(recover(&failing, &store, false), Err(StoreError::Io(_))));
        assert_eq!(store.position(), Position(0), "half of it is no position");
        recover(&failing.0, &store, false).unwrap();
        assert_eq!(store.position(), failing.0.head().position);
        for n in 0..PLAYBOOKS {
            assert!(store.playbook(&"default".into(), &format!("p{n}"), None).unwrap().is_some(), "p{n}");
        }
    }
}
