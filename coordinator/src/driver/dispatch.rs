//! Carries a task to its instance: again and again until it is answered, or until nothing may be sent any more.
//!
//! No answer is no denial: only the instance's own word that it will not start the attempt goes back to the run.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use muster_bus::{
    BusError,
    message::{AttemptKey, Task, TaskReply},
    subject::{Subjects, shard_of},
};
use muster_engine::run::{Dispatch, Fence, Run, event::NotStarted};
use tracing::{debug, warn};

use super::{
    Shared,
    clock::after_ms,
    convert,
    entry::{Message, RunEntry},
};

/// How long one copy of a task waits for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Between two copies, at first; twice that each time.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Between two copies, at most.
const AGAIN_AT_MOST: Duration = Duration::from_secs(1);

/// A task on its way.
pub(super) struct Errand {
    run: Arc<Run>,
    dispatch: Box<Dispatch>,
    /// No copy of the task can have left: none was ever handed to a bus that was there.
    unsent: bool,
    /// When the first copy left.
    first_sent: Option<Timestamp>,
}

impl Errand {
    /// The task of an unconfirmed attempt. `unsent`: it was assigned in this process, and this is its first errand.
    pub(super) fn new(run: &Arc<Run>, dispatch: Box<Dispatch>, unsent: bool) -> Self {
        Self { run: Arc::clone(run), dispatch, unsent, first_sent: None }
    }

    /// Send until it is answered or its time is over. A denial is told to the run, and that nothing could be sent at all.
    pub(super) async fn run(mut self, shared: Arc<Shared>, entry: Arc<RunEntry>) {
        let (step, attempt) = (self.dispatch.step.clone(), self.dispatch.attempt);
        let mut pause = AGAIN_AFTER;
        loop {
            let now = shared.clock.now();
            if now >= self.dispatch.dispatch_until {
                if self.unsent {
                    return self.deny(&entry, NotStarted::Unsent).await;
                }
                debug!(run_id = %entry.id, step_id = %step, attempt, "no answer to the task in time");
                return;
            }
            if !shared.bus.is_connected() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_AT_MOST);
                continue;
            }
            self.unsent = false;
            let first_sent = *self.first_sent.get_or_insert(now);
            match self.send(&shared, now).await {
                Ok(TaskReply::Accepted) => return,
                Ok(TaskReply::Busy) => return self.deny(&entry, NotStarted::Busy).await,
                Ok(TaskReply::Draining) => return self.deny(&entry, NotStarted::Draining).await,
                Ok(TaskReply::Refused { why }) => {
                    // It may have refused a copy for its age alone, and repeats that: another attempt finds out.
                    let in_time = shared.clock.now() < after_ms(first_sent, shared.intervals.start_within_ms);
                    let denial = if in_time { NotStarted::Refused { why } } else { NotStarted::Busy };
                    return self.deny(&entry, denial).await;
                }
                Err(BusError::TooLarge { size, limit }) => {
                    let why = format!("the task has {size} bytes, and the bus carries {limit}");
                    return self.deny(&entry, NotStarted::Refused { why }).await;
                }
                Err(e @ BusError::BadSubject(_)) => {
                    return self.deny(&entry, NotStarted::Refused { why: e.to_string() }).await;
                }
                Err(e @ (BusError::NoResponders(_) | BusError::Timeout(_) | BusError::Disconnected(_))) => {
                    debug!(run_id = %entry.id, step_id = %step, attempt, "task not answered: {e}");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_AT_MOST);
        }
    }

    async fn send(&self, shared: &Shared, now: Timestamp) -> Result<TaskReply, BusError> {
        let subjects = Subjects::new(self.run.namespace.as_str());
        let payload = serde_json::to_vec(&self.task(shared, &subjects, now))
            .map_err(|e| BusError::Disconnected(e.to_string()))?;
        let subject = subjects.task(self.dispatch.agent.as_str(), self.dispatch.instance.as_str());
        let reply = shared.bus.request(&subject, Bytes::from(payload), ANSWER_WITHIN).await?;
        serde_json::from_slice(&reply).map_err(|e| {
            warn!(agent = %self.dispatch.agent, "the answer to a task can't be read: {e}");
            BusError::Timeout(subject)
        })
    }

    /// Made for each copy: it says when that was sent.
    fn task(&self, shared: &Shared, subjects: &Subjects, now: Timestamp) -> Task {
        let dispatch = &*self.dispatch;
        Task {
            cluster: shared.cluster.clone(),
            term: shared.term,
            key: AttemptKey {
                run: self.run.id.as_str().to_owned(),
                step: dispatch.step.as_str().to_owned(),
                attempt: dispatch.attempt,
            },
            purpose: convert::purpose(dispatch.purpose),
            action: dispatch.action.name.as_str().to_owned(),
            version: dispatch.action.version.clone(),
            with: (*dispatch.with).clone(),
            undo: dispatch.undo.as_deref().cloned(),
            prepare: dispatch.prepare,
            secrets: dispatch.secrets.to_vec(),
            timeout_ms: dispatch.timeout_ms,
            status_ms: dispatch.status_ms,
            sent_at_ms: now.as_millisecond(),
            start_within_ms: shared.intervals.start_within_ms,
            report_subject: subjects.report(shard_of(self.run.id.as_str()), dispatch.agent.as_str()),
        }
    }

    async fn deny(&self, entry: &RunEntry, why: NotStarted) {
        let Dispatch { step, attempt, agent, instance, .. } = &*self.dispatch;
        let fence = Fence { step: step.clone(), attempt: *attempt, agent: agent.clone(), instance: instance.clone() };
        // A run with an unconfirmed attempt does not leave memory but with the process.
        let _ = entry.tell(Message::Deny { fence, why }).await;
    }
}
