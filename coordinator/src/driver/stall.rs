//! What a run does when the journal does not answer, or when its own records can't be believed.

use std::sync::Arc;

use muster_bus::message::ReportReply;
use muster_engine::run::Event;
use tracing::{debug, error, warn};

use super::{
    errors,
    report::reply,
    run_task::{AGAIN_AFTER, AGAIN_AT_MOST, Flow, RunTask},
    turn::{Pending, Recorded, Turn},
};
use crate::journal::AppendError;

impl RunTask {
    /// The append failed: nothing has happened, or everything, and the journal knows. Go on from what it says.
    pub(super) async fn give_up(&mut self, turn: Turn, failed: AppendError) -> Flow {
        // Whether something has begun, the journal says once it stands: a drain need not wait for that.
        let Turn { answers, again, pass, .. } = turn;
        drop(pass);
        for pending in answers {
            match pending {
                Pending::Recorded(Recorded { to, .. }) | Pending::Report(to, _) => {
                    to.send(reply(&ReportReply::Retry { why: "the journal does not answer".to_owned() }));
                }
                Pending::Taken(answer) => drop(answer.send(Err(errors::append_failed(&failed)))),
                Pending::Refused(answer, e) => drop(answer.send(Err(*e))),
            }
        }
        self.later = again;
        match &failed {
            AppendError::Damaged { what, .. } => {
                return self.quarantine(Turn::new(&self.run, self.shared.clock.now()), what);
            }
            AppendError::TooLarge { .. } => {
                error!(run_id = %self.entry.id, "a turn does not fit in the journal: {failed}");
                let why = failed.to_string();
                return self.quarantine(Turn::new(&self.run, self.shared.clock.now()), &why);
            }
            AppendError::Conflict { .. } | AppendError::Unavailable(_) => {
                warn!(run_id = %self.entry.id, "an append failed, nothing is done until the journal stands: {failed}");
            }
        }
        let mut pause = AGAIN_AFTER;
        loop {
            if self.shared.is_stopping() {
                return Flow::Leave;
            }
            match self.catch_up() {
                Ok(()) => break,
                Err(CatchUp::Broken(why)) => {
                    return self.quarantine(Turn::new(&self.run, self.shared.clock.now()), &why);
                }
                Err(CatchUp::Later(why)) => debug!(run_id = %self.entry.id, "the journal can't be read: {why}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_AT_MOST);
        }
        tokio::time::sleep(pause).await;
        // Whatever was lost with the scratch is found again by looking at everything.
        self.entry.look_again();
        Flow::On
    }

    /// Take what the journal has of this run beyond what is in memory.
    fn catch_up(&mut self) -> Result<(), CatchUp> {
        loop {
            let records = self.shared.journal.read_stream(&self.stream, self.run.seq, 1_000);
            let records = records.map_err(|e| CatchUp::Later(e.to_string()))?;
            if records.is_empty() {
                return Ok(());
            }
            let mut run = (*self.run).clone();
            let mut events = Vec::with_capacity(records.len());
            for record in records {
                let event =
                    serde_json::from_str::<Event>(record.event.get()).map_err(|e| CatchUp::Broken(e.to_string()))?;
                run.apply(record.at, &event).map_err(|e| CatchUp::Broken(e.to_string()))?;
                events.push((record.seq, record.at, record.by, event));
            }
            let before = std::mem::replace(&mut self.run, Arc::new(run));
            self.entry.publish(&self.run);
            self.note_all_for_lists();
            self.shared.tell_milestones(&before, &self.run);
            self.tell_watchers(events);
            self.reconcile(self.run.outstanding(self.shared.clock.now()), &mut Vec::new());
            self.set_wake_up();
        }
    }

    pub(super) fn quarantine(&mut self, turn: Turn, why: &str) -> Flow {
        for pending in turn.answers {
            match pending {
                Pending::Recorded(Recorded { to, .. }) | Pending::Report(to, _) => {
                    to.send(reply(&ReportReply::Retry { why: format!("quarantine: {why}") }));
                }
                Pending::Taken(answer) => drop(answer.send(Err(errors::quarantined(&self.entry.id, why)))),
                Pending::Refused(answer, e) => drop(answer.send(Err(*e))),
            }
        }
        self.shared.put_in_quarantine(&self.entry, why);
        for watcher in self.watchers.drain(..) {
            watcher.end(errors::quarantined(&self.entry.id, why));
        }
        self.shared.projector.changed(&self.entry, &self.run);
        Flow::Leave
    }
}

enum CatchUp {
    Later(String),
    Broken(String),
}
