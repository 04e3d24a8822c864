//! Runs whose records can't be believed: left as they are, and told of again and again until somebody has looked.
//!
//! Nothing of it is journalled: whatever puts a run here is found again at the next start, or has gone with the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use muster_engine::{ids::RunId, policy::timeout, run::Run};
use tracing::error;

use super::{Shared, entry::RunEntry, runs::Arrival};
use crate::metrics::RUNS_QUARANTINED;

/// The runs in quarantine, and when they are told of next.
#[derive(Default)]
pub(super) struct Quarantine(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    since: BTreeMap<RunId, Timestamp>,
    remind_at: Timestamp,
}

impl Quarantine {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the run is in quarantine, and when it is told of next.
    pub(super) fn times(&self, id: &RunId) -> Option<(Timestamp, Timestamp)> {
        let kept = self.kept();
        kept.since.get(id).map(|since| (*since, kept.remind_at))
    }

    /// How many there are and one of them, if it is time to tell of them again.
    fn due(&self, now: Timestamp) -> Option<(usize, RunId)> {
        let mut kept = self.kept();
        let first = kept.since.keys().next().cloned().filter(|_| kept.remind_at <= now)?;
        kept.remind_at = timeout::remind_at(now);
        Some((kept.since.len(), first))
    }
}

impl Shared {
    /// Nothing is done for the run from now on, and whoever asks is told why.
    pub(super) fn put_in_quarantine(&self, entry: &RunEntry, why: &str) {
        error!(run_id = %entry.id, "the run is put in quarantine: {why}");
        entry.quarantine(why);
        let now = self.clock.now();
        let mut kept = self.quarantine.kept();
        if kept.since.is_empty() {
            kept.remind_at = timeout::remind_at(now);
        }
        kept.since.entry(entry.id.clone()).or_insert(now);
        metrics::gauge!(RUNS_QUARANTINED).set(u32::try_from(kept.since.len()).unwrap_or(u32::MAX));
    }

    /// A run of which the journal says something that can't be believed, or nothing: it is there to be asked about.
    pub(super) fn keep_quarantined(self: &Arc<Self>, id: RunId, why: &str, run: Option<Run>) {
        let run = run.map(Arc::new);
        let namespace = run.as_ref().map_or_else(
            || self.store.run(&id).ok().flatten().map_or_else(|| "default".into(), |row| row.namespace),
            |r| r.namespace.clone(),
        );
        let (entry, _) = RunEntry::new(self.runs.next_key(), id, namespace, run.clone());
        self.put_in_quarantine(&entry, why);
        if let Some(run) = run {
            self.projector.changed(&entry, &run);
        }
        if let Arrival::In(Some(passive)) = self.runs.insert(&entry, || true) {
            self.timers.unset_passive(passive);
        }
    }

    /// One line for all of them: there may be thousands.
    pub(super) fn remind_of_quarantine(&self, now: Timestamp) {
        if let Some((runs, first)) = self.quarantine.due(now) {
            error!(runs, %first, "runs are still in quarantine, see muster run list --state quarantined");
        }
    }
}
