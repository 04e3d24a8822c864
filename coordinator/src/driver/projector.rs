//! Writes what lists and look-ups need to the store, behind the log and off the hot path.
//!
//! What changed is noted when it is on disk, the latest state only; so a busy run costs one row per flush, not one per event.
//! A flush writes with the position at which the log stood when it began, after every append up to there has noted its
//! changes: what the store says at a position is never less than what the log says there. Flushing takes a tenth of the time at
//! most: the busier the disk, the rarer. Where many runs have changed meanwhile it begins at once, however busy the disk is: what is
//! noted is in memory.
//!
//! What can't be written is not kept: the journal has it. The store is then behind, whoever asks for a list is refused, and
//! it is tried again to bring it up to the log's end from where it stands, or from the start if it has to be made anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_engine::{
    ids::{AgentName, Namespace},
    run::Run,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{Shared, entry::RunEntry, recovery, rows};
use crate::{
    journal::Position,
    store::{AgentRow, PlaybookRow, StoreError, StoreWrite},
};

/// Between two flushes, at least, unless somebody waits for one.
const REST: Duration = Duration::from_millis(250);

/// How long a reader waits for a flush before it is refused.
const WAIT: Duration = Duration::from_secs(5);

/// How long a flush waits for the appends that are under way; then it leaves the position where it is. A journal that waits
/// for room keeps them for hours.
const APPENDS_WAIT: Duration = Duration::from_millis(500);

/// The same for the last flush, and how long that may take.
const LAST_APPENDS_WAIT: Duration = Duration::from_secs(5);
const LAST_WAIT: Duration = Duration::from_secs(10);

/// With so many runs noted, a flush rests no longer.
const NOTED: usize = 10_000;

/// So many rows are written at a time, or a few more: what sled replaces meanwhile, page by page, stays in memory until all of
/// them are written.
const ROWS_AT_ONCE: usize = 256;

/// Between two tries to bring up a store that could not be written, at most.
const TRY_EVERY: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Projector {
    dirty: Mutex<Dirty>,
    drained: Notify,
    wanted: Notify,
    hurry: Notify,
    flushed: watch::Sender<Flushed>,
}

#[derive(Clone, Default)]
struct Flushed {
    /// The last round that is in the store.
    round: u64,
    /// Why the store is behind.
    trouble: Option<StoreError>,
}

#[derive(Default)]
struct Dirty {
    /// Counts how often everything noted was taken.
    round: u64,
    /// What is noted is not kept: the store has to be brought up from the log before.
    behind: bool,
    /// Counts the positions that a flush has set out to reach.
    epoch: u64,
    /// Where the log stood when the epoch began, while appends from before are under way.
    reaching: Option<Position>,
    /// Appends under way that began in an even or odd epoch.
    in_flight: [usize; 2],
    /// By key: of two that are the same run, the later one counts.
    runs: BTreeMap<u64, Noted>,
    agents: BTreeSet<(Namespace, AgentName)>,
    playbooks: Vec<PlaybookRow>,
}

/// What is to be written of a run.
enum Noted {
    /// Its rows are made when they are written.
    Run(Arc<RunEntry>, Arc<Run>),
    /// It has left memory.
    Rows(Vec<StoreWrite>),
}

impl Dirty {
    fn is_clean(&self) -> bool {
        !self.behind && self.runs.is_empty() && self.agents.is_empty() && self.playbooks.is_empty()
    }

    /// What was noted, or what is noted from now on is left to the journal.
    fn fall_behind(&mut self) {
        self.behind = true;
        self.runs = BTreeMap::new();
        self.agents = BTreeSet::new();
        self.playbooks = Vec::new();
    }

    /// What is noted from now on is of the next round.
    fn take(&mut self) -> Round {
        self.round += 1;
        Round {
            number: self.round,
            is_behind: std::mem::take(&mut self.behind),
            runs: std::mem::take(&mut self.runs),
            agents: std::mem::take(&mut self.agents),
            playbooks: std::mem::take(&mut self.playbooks),
        }
    }
}

/// An append under way; to be dropped when its changes are noted.
pub(super) struct Ticket<'a> {
    projector: &'a Projector,
    epoch: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut dirty = self.projector.lock();
        let count = &mut dirty.in_flight[(self.epoch % 2) as usize];
        *count -= 1;
        let is_last = *count == 0;
        drop(dirty);
        if is_last {
            self.projector.drained.notify_one();
        }
    }
}

impl Projector {
    pub(super) fn new() -> Self {
        Self {
            dirty: Mutex::default(),
            drained: Notify::new(),
            wanted: Notify::new(),
            hurry: Notify::new(),
            flushed: watch::Sender::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An append begins.
    pub(super) fn begin(&self) -> Ticket<'_> {
        let mut dirty = self.lock();
        let epoch = dirty.epoch;
        dirty.in_flight[(epoch % 2) as usize] += 1;
        Ticket { projector: self, epoch }
    }

    /// What lists say of the run may have changed.
    pub(super) fn changed(&self, entry: &Arc<RunEntry>, run: &Arc<Run>) {
        let noted = {
            let mut dirty = self.lock();
            if dirty.behind {
                return;
            }
            dirty.runs.insert(entry.key, Noted::Run(Arc::clone(entry), Arc::clone(run)));
            dirty.runs.len()
        };
        match noted {
            1 => self.wanted.notify_one(),
            NOTED => self.hurry.notify_one(),
            _ => {}
        }
    }

    /// The run leaves memory: what was noted of it is not to keep it there.
    pub(super) fn departs(&self, entry: &RunEntry) {
        if let Some(noted) = self.lock().runs.get_mut(&entry.key)
            && let Noted::Run(_, run) = noted
        {
            *noted = Noted::Rows(rows::writes_of(run, false));
        }
    }

    /// What is journalled of the agent has changed.
    pub(super) fn agent_changed(&self, namespace: &Namespace, name: &AgentName) {
        let mut dirty = self.lock();
        if !dirty.behind {
            dirty.agents.insert((namespace.clone(), name.clone()));
            self.wanted.notify_one();
        }
    }

    /// A playbook was submitted.
    pub(super) fn submitted(&self, playbook: PlaybookRow) {
        let mut dirty = self.lock();
        if !dirty.behind {
            dirty.playbooks.push(playbook);
            self.wanted.notify_one();
        }
    }

    /// Something is wrong with it that no flush has met.
    pub(super) fn look_at_the_store(&self) {
        self.wanted.notify_one();
    }

    /// Wait, for a moment at most, until everything noted so far is in the store.
    ///
    /// # Errors
    /// It is not, so the store must not be asked.
    pub(super) async fn settled(&self) -> Result<(), StoreError> {
        let mut flushed = self.flushed.subscribe();
        let target = {
            let dirty = self.lock();
            let last = flushed.borrow();
            if last.round == dirty.round && last.trouble.is_none() && dirty.is_clean() {
                return Ok(());
            }
            drop(last);
            dirty.round + 1
        };
        self.hurry.notify_one();
        self.wanted.notify_one();
        let settled = flushed.wait_for(|done| done.trouble.is_some() || done.round >= target);
        match tokio::time::timeout(WAIT, settled).await {
            Ok(Ok(done)) => done.trouble.clone().map_or(Ok(()), Err),
            Ok(Err(_)) | Err(_) => Err(StoreError::Io(format!("it is more than {} s behind", WAIT.as_secs()))),
        }
    }

    /// Flush whenever there is something, until the coordinator stops; then once more.
    pub(super) async fn run(&self, shared: &Arc<Shared>) {
        let mut rest = REST;
        loop {
            let is_behind = self.lock().behind;
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = self.wanted.notified(), if !is_behind => {
                    tokio::select! {
                        () = shared.stop.cancelled() => {}
                        () = self.hurry.notified() => {}
                        () = tokio::time::sleep(rest) => {}
                    }
                }
                () = tokio::time::sleep(rest), if is_behind => {}
            }
            let stopping = shared.is_stopping();
            let began = Instant::now();
            let written = self.flush(shared, stopping).await;
            rest = if written { REST.max(began.elapsed() * 9) } else { (rest * 2).clamp(REST, TRY_EVERY) };
            if stopping {
                return;
            }
        }
    }

    /// Whether it was written.
    async fn flush(&self, shared: &Arc<Shared>, stopping: bool) -> bool {
        let position = self.reached(shared, stopping).await;
        let round = self.lock().take();
        let number = round.number;
        let for_writing = Arc::clone(shared);
        let writing = tokio::task::spawn_blocking(move || round.write(&for_writing, position));
        let written = if stopping { tokio::time::timeout(LAST_WAIT, writing).await } else { Ok(writing.await) };
        let trouble = match written {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(e))) => Some(e),
            Ok(Err(e)) => Some(StoreError::Io(format!("its writer failed: {e}"))),
            Err(_) => Some(StoreError::Io("it does not end".to_owned())),
        };
        if trouble.is_some() {
            self.lock().fall_behind();
        }
        let written = trouble.is_none();
        let before = self.flushed.send_replace(Flushed { round: number, trouble: trouble.clone() }).trouble;
        match (before, trouble) {
            (None, Some(e)) => {
                warn!("the store can't be written; lists are refused until it can, everything else goes on: {e}");
            }
            (Some(_), None) => info!("the store can be written again, and has what is in the log; lists are answered"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        written
    }

    /// The position up to which everything is noted; none while appends from before it are under way.
    async fn reached(&self, shared: &Arc<Shared>, stopping: bool) -> Option<Position> {
        let position = shared.journal.head().position;
        {
            let mut dirty = self.lock();
            if dirty.reaching.is_none() {
                dirty.reaching = Some(position);
                dirty.epoch += 1;
            }
        }
        let until = Instant::now() + if stopping { LAST_APPENDS_WAIT } else { APPENDS_WAIT };
        loop {
            {
                let mut dirty = self.lock();
                let before = (dirty.epoch.wrapping_sub(1) % 2) as usize;
                if dirty.in_flight[before] == 0 && !(stopping && dirty.in_flight != [0, 0]) {
                    return dirty.reaching.take();
                }
            }
            tokio::select! {
                () = self.drained.notified() => {}
                () = tokio::time::sleep_until(until) => return None,
                () = shared.stop.cancelled(), if !stopping => return None,
            }
        }
    }
}

/// What one flush writes.
struct Round {
    number: u64,
    is_behind: bool,
    runs: BTreeMap<u64, Noted>,
    agents: BTreeSet<(Namespace, AgentName)>,
    playbooks: Vec<PlaybookRow>,
}

impl Round {
    fn write(self, shared: &Shared, position: Option<Position>) -> Result<(), StoreError> {
        let store = &*shared.store;
        if self.is_behind || store.broken().is_some() {
            return catch_up(shared);
        }
        let written = self.write_all(shared, position);
        match written {
            Err(StoreError::Damaged(_) | StoreError::Io(_)) => catch_up(shared),
            other => other,
        }
    }

    fn write_all(mut self, shared: &Shared, position: Option<Position>) -> Result<(), StoreError> {
        let store = &*shared.store;
        let first = self.first_writes(shared);
        let of_runs = self.runs.into_values().map(|noted| match noted {
            Noted::Run(entry, run) => rows::writes_of(&run, entry.view().quarantine.is_some()),
            Noted::Rows(rows) => rows,
        });
        let position = position.filter(|position| *position > store.position());
        in_parts(std::iter::once(first).chain(of_runs), position, |part, position| match position {
            Some(position) => store.apply_batch(position, part),
            None if part.is_empty() => Ok(()),
            None => store.amend(part),
        })
    }

    /// Of playbooks and agents.
    fn first_writes(&mut self, shared: &Shared) -> Vec<StoreWrite> {
        let mut writes: Vec<StoreWrite> =
            std::mem::take(&mut self.playbooks).into_iter().map(StoreWrite::Playbook).collect();
        for (namespace, name) in std::mem::take(&mut self.agents) {
            if let Some(record) = shared.registry.record(&namespace, &name)
                && let Ok(detail) = serde_json::to_value(&record)
            {
                writes.push(StoreWrite::Agent(AgentRow { namespace, name, detail }));
            }
        }
        writes
    }
}

/// Write what belongs together together, and the position with the last of it alone: who starts from an earlier one meets rows that
/// are newer, and makes them again; who starts from a later one would miss some.
fn in_parts(
    together: impl Iterator<Item = Vec<StoreWrite>>,
    position: Option<Position>,
    mut write: impl FnMut(Vec<StoreWrite>, Option<Position>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut part = Vec::new();
    for writes in together {
        if part.len() >= ROWS_AT_ONCE {
            write(std::mem::take(&mut part), None)?;
        }
        part.extend(writes);
    }
    write(part, position)
}

/// Bring the store up to the log's end, from its position, or from the log's start if it broke.
fn catch_up(shared: &Shared) -> Result<(), StoreError> {
    let store = &*shared.store;
    let _filling = shared.filling.lock().unwrap_or_else(PoisonError::into_inner);
    // Before the log is read for nothing, again and again.
    store.look_for_room()?;
    let broken = store.broken();
    if let Some(why) = &broken {
        store.reset(why)?;
    }
    recovery::refill(&*shared.journal, store)?;
    if let Some(why) = broken {
        error!("the store broke, and was rebuilt from the log: {why}");
    }
    let doubted = shared.runs.all().into_iter().filter(|entry| entry.view().quarantine.is_some());
    let quarantined: Vec<StoreWrite> =
        doubted.filter_map(|entry| entry.run()).flat_map(|run| rows::writes_of(&run, true)).collect();
    if quarantined.is_empty() { Ok(()) } else { store.amend(quarantined) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three rows of each of `runs` runs.
    fn of_runs(runs: usize) -> impl Iterator<Item = Vec<StoreWrite>> {
        (0..runs).map(|n| vec![StoreWrite::DropRequest(format!("r{n}")); 3])
    }

    #[test]
    fn the_position_comes_with_the_last_part_and_no_run_is_torn() {
        for runs in [0, 1, 85, 86, 87, 1_000] {
            let (mut rows, mut positions) = (Vec::new(), Vec::new());
            in_parts(of_runs(runs), Some(Position(7)), |part, position| {
                assert!(part.len() <= ROWS_AT_ONCE + 2 && part.len() % 3 == 0, "a part has {} rows", part.len());
                rows.extend(part);
                positions.push(position);
                Ok(())
            })
            .unwrap();
            assert_eq!(rows.len(), 3 * runs, "each row once");
            assert_eq!(positions.pop(), Some(Some(Position(7))));
            assert!(positions.iter().all(Option::is_none), "{runs} runs: {positions:?}");
            assert_eq!(positions.len(), (3 * runs).saturating_sub(1) / (ROWS_AT_ONCE + 2));
        }
    }

    #[test]
    fn after_a_part_that_fails_nothing_is_written() {
        let mut parts = 0;
        let failed = in_parts(of_runs(1_000), Some(Position(7)), |_, position| {
            assert_eq!(position, None);
            parts += 1;
            if parts < 3 { Ok(()) } else { Err(StoreError::Io("it fails".into())) }
        });
        assert!(matches!(failed, Err(StoreError::Io(_))));
        assert_eq!(parts, 3);
    }
}
