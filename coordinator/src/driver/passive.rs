//! Runs that wait for nothing but time and people leave memory: a name and a moment stay. They are read from the journal when
//! their moment comes, or when somebody asks for them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use muster_engine::{
    ids::{Namespace, RunId},
    run::{Rest, Run},
};
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    Shared,
    clock::after_ms,
    entry::{Message, RunEntry},
    errors,
    recovery::{self, RebuildError},
    run_task::RunTask,
    runs::Arrival,
};
use crate::control::ControlError;

/// How long a passive run stays in memory after the last thing that was said to it.
pub(super) const REST: Duration = Duration::from_secs(2);

/// So many runs whose moment has come are read from the journal at a time.
const FETCHED_AT_ONCE: usize = 64;

/// When a run could not be read, it is tried again this much later, in milliseconds.
const AGAIN_MS: u64 = 1_000;

/// How often a message is taken to a run that leaves memory at that very moment.
const DELIVERIES: usize = 16;

/// What became of a run that was read from the journal.
pub(super) enum Adopted {
    /// It is in memory from now on.
    New(Arc<RunEntry>),
    /// It was already.
    There(Arc<RunEntry>),
    /// It has gone on since it was read.
    Stale,
}

impl RunTask {
    /// The next thing said to the run; none: the run has left memory, or the coordinator stops.
    pub(super) async fn next(&mut self) -> Option<Message> {
        loop {
            if self.run.rest().is_none() {
                return self.inbox.recv().await;
            }
            if let Ok(next) = tokio::time::timeout(REST, self.inbox.recv()).await {
                return next;
            }
            if self.departs().await {
                return None;
            }
        }
    }

    /// Leaves memory, if it is passive and nothing hangs on it.
    pub(super) async fn departs(&mut self) -> bool {
        self.watchers.retain(|watcher| !watcher.is_closed());
        let Some(rest) = self.run.rest().filter(|_| self.is_alone()) else { return false };
        self.note_why();
        let Some(passive) = self.shared.runs.departs(&self.entry, &mut self.inbox, rest) else { return false };
        self.shared.projector.departs(&self.entry);
        self.end_wake_up();
        self.shared.timers.set_passive(self.entry.id.clone(), passive);
        // Who had a hand on the mailbox before it was closed may still put something in.
        while let Some(late) = self.inbox.recv().await {
            let (shared, entry) = (Arc::clone(&self.shared), Arc::clone(&self.entry));
            self.shared.tasks.spawn(async move { shared.deliver(&entry.namespace, &entry.id, late).await });
        }
        true
    }
}

impl Shared {
    /// A run that the journal says is passive.
    pub(super) fn sleeps(&self, id: RunId, rest: Rest) {
        let passive = self.runs.sleeps(id.clone(), rest);
        self.timers.set_passive(id, passive);
    }

    /// Hand over the passive runs that wait for a moment of the wall clock and take it to be where it is not.
    pub(super) fn wake_misled(&self, fetch: &mpsc::UnboundedSender<RunId>) {
        for id in self.runs.resting(|rest| self.clock.misleads(rest.wall_ahead_ms).is_some()) {
            // Nobody fetches only when the coordinator stops.
            drop(fetch.send(id));
        }
    }

    /// Fetch the runs whose moment has come, until the coordinator stops.
    pub(super) async fn fetch(self: Arc<Self>, mut due: mpsc::UnboundedReceiver<RunId>) {
        let mut ids = Vec::with_capacity(FETCHED_AT_ONCE);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                count = due.recv_many(&mut ids, FETCHED_AT_ONCE) => if count == 0 { return },
            }
            ids.retain(|id| self.runs.is_passive(id));
            let (shared, wanted) = (Arc::clone(&self), std::mem::take(&mut ids));
            // The journal is read in a blocking task; how it ended is in the runs.
            let _ = tokio::task::spawn_blocking(move || {
                for id in wanted {
                    let taken = catch_unwind(AssertUnwindSafe(|| shared.take_up(&id)));
                    match taken {
                        Ok(Ok(_)) => {}
                        Ok(Err(why)) => debug!(run_id = %id, "not taken up: {why}"),
                        Err(_) => shared.keep_quarantined(id.clone(), "reading it panicked, which is a bug", None),
                    }
                    if let Some(rest) = shared.runs.rest_of(&id) {
                        // It could not be read just now: its moment comes again.
                        let until = after_ms(shared.clock.now(), AGAIN_MS);
                        shared.sleeps(id, Rest { until, ..rest });
                    }
                }
            })
            .await;
        }
    }

    /// A run that may have left memory; none: there is no such run.
    pub(super) async fn load(
        self: &Arc<Self>,
        namespace: &Namespace,
        id: &RunId,
    ) -> Result<Option<Arc<RunEntry>>, ControlError> {
        if let Some(entry) = self.runs.get(id) {
            return Ok((entry.namespace == *namespace).then_some(entry));
        }
        let (shared, wanted) = (Arc::clone(self), id.clone());
        let taken = tokio::task::spawn_blocking(move || shared.take_up(&wanted)).await;
        let entry = taken.map_err(|_| errors::stopping())??;
        Ok(entry.filter(|entry| entry.namespace == *namespace))
    }

    /// Take up a run that the journal has, if this is the latest of it.
    pub(super) fn adopt(self: &Arc<Self>, run: Run, is_latest: impl FnOnce() -> bool) -> Adopted {
        let run = Arc::new(run);
        let (id, namespace) = (run.id.clone(), run.namespace.clone());
        let (entry, inbox) = RunEntry::new(self.runs.next_key(), id, namespace, Some(Arc::clone(&run)));
        match self.runs.insert(&entry, is_latest) {
            Arrival::There(there) => return Adopted::There(there),
            Arrival::Stale => return Adopted::Stale,
            Arrival::In(passive) => passive.into_iter().for_each(|passive| self.timers.unset_passive(passive)),
        }
        let mut task = RunTask::new(self, &entry, inbox, run);
        task.resume();
        self.tasks.spawn(task.serve());
        Adopted::New(entry)
    }

    /// Read a run from the journal into memory. Blocks.
    fn take_up(self: &Arc<Self>, id: &RunId) -> Result<Option<Arc<RunEntry>>, ControlError> {
        loop {
            let run = match recovery::rebuild(&*self.journal, id) {
                Ok(Some(run)) => run,
                Ok(None) => return Ok(None),
                Err(broken) => {
                    let RebuildError { why, may_pass, so_far } = *broken;
                    if may_pass {
                        return Err(errors::unreadable(id, &why));
                    }
                    if self.runs.is_passive(id) {
                        self.keep_quarantined(id.clone(), &why, so_far);
                    }
                    return Err(errors::quarantined(id, &why));
                }
            };
            let (seq, ended) = (run.seq, run.has_ended());
            // Neither gone on nor let go since it was read.
            let is_latest = || self.journal.seq(&super::run_task::stream_of(id)) == seq;
            match self.adopt(run, is_latest) {
                Adopted::Stale => {}
                Adopted::There(entry) => return Ok(Some(entry)),
                Adopted::New(entry) => {
                    if ended {
                        self.runs.ended(&entry);
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Say something to a run that may leave memory at that very moment.
    ///
    /// # Errors
    /// It has too much to do, or is in quarantine.
    pub(super) async fn say_or_refuse(
        self: &Arc<Self>,
        entry: Arc<RunEntry>,
        message: Message,
    ) -> Result<(), ControlError> {
        let (mut entry, mut message) = (entry, message);
        for _ in 0..DELIVERIES {
            message = match entry.offer(message) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(message)) if entry.view().quarantine.is_none() => message,
                Err(_) => break,
            };
            match self.load(&entry.namespace, &entry.id).await? {
                Some(there) => entry = there,
                None => break,
            }
        }
        Err(match entry.view().quarantine {
            Some(why) => errors::quarantined(&entry.id, &why),
            None => errors::busy(&entry.id),
        })
    }

    /// Bring a message to a run, with patience; a run that is in quarantine, or over, needs to be told nothing.
    pub(super) async fn deliver(self: Arc<Self>, namespace: &Namespace, id: &RunId, message: Message) {
        let mut message = message;
        for _ in 0..DELIVERIES {
            let Ok(Some(entry)) = self.load(namespace, id).await else { return };
            match entry.tell(message).await {
                Ok(()) => return,
                Err(back) => message = back,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_bus::local::LocalBus;
    use muster_engine::run::Command;
    use serde_json::json;
    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        control::{Caller, Control, PlaybookSource},
        driver::{Config, Coordinator, requests::Request},
        journal::{Journal, memory::MemoryJournal},
        store::Store,
    };

    const WAITS: &str = "apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: waits, owner: devops}
spec: {phases: [{id: only, steps: [{id: w, wait: {signal: go}}]}]}
";

    #[tokio::test(start_paused = true)]
    async fn who_holds_a_run_that_has_left_memory_is_heard_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(MemoryJournal::new());
        let (store, _) = Store::open(&dir.path().join("store"), "c", journal.head().position).unwrap();
        let config = Config::new(journal, Arc::new(store), Arc::new(LocalBus::new()), "c");
        let up = Coordinator::open(config).await.unwrap();
        let (ns, caller) = ("default".into(), Caller { actor: "person/operator".into(), request_id: None });
        let source = PlaybookSource::Inline(WAITS.to_owned());
        let run = up.start_run(&ns, &source, json!({}), "", None, false, &caller).await.unwrap();
        let held = up.shared.load(&ns, &run.id).await.unwrap().unwrap();
        let said = |reason: &str| {
            let (answer, answered) = oneshot::channel();
            let command = Box::new(Command::Pause { reason: reason.to_owned() });
            let request = Box::new(Request::new(&ns, &caller, || reason.to_owned()));
            (Message::Command { command, request, answer }, answered)
        };
        while up.runs_in_memory() > 0 {
            tokio::time::sleep(REST).await;
        }
        assert!(up.shared.runs.is_passive(&run.id));
        let (message, answered) = said("first");
        up.shared.say_or_refuse(Arc::clone(&held), message).await.unwrap();
        assert!(answered.await.unwrap().unwrap().pause.is_some());
        let (message, answered) = said("again");
        up.shared.tell(held, message);
        assert_eq!(answered.await.unwrap().unwrap_err().code, "TRANSITION_FORBIDDEN");
    }
}
