//! A task on its way to its instance: what is sent, and what follows from what is heard of it.
//!
//! No answer is no denial: only the instance's own word that it will not start the attempt goes back to the run.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use muster_bus::{
    BusError,
    message::{AttemptKey, Order, ReportReply, Task, TaskReply},
    subject::{Subjects, shard_of},
};
use muster_engine::run::{Dispatch, Fence, Run, event::NotStarted};
use tracing::debug;

use super::{
    Shared,
    clock::after_ms,
    convert,
    entry::{Message, RunEntry},
    report::reply,
};

/// Between two copies, at first; twice that each time.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Between two copies, at most.
const AGAIN_AT_MOST: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Errand {
    entry: Arc<RunEntry>,
    run: Arc<Run>,
    dispatch: Box<Dispatch>,
    /// No copy of the task can have left: none was ever handed to a bus that was there.
    unsent: bool,
    /// When the first copy left.
    first_sent: Option<Timestamp>,
    /// How long it rests before the next copy.
    pause: Duration,
}

/// What an errand does next.
pub(super) enum Next {
    /// Send this copy to this subject, and wait for its answer.
    Send(String, Bytes),
    /// Nothing, for so long.
    Rest(Duration),
    /// It is over, and the run has to know this.
    Deny(Denial),
    /// It is over.
    End,
}

/// An attempt that was not started.
pub(super) struct Denial {
    /// Whose.
    pub(super) entry: Arc<RunEntry>,
    /// What its run has to hear.
    pub(super) message: Message,
}

impl Errand {
    /// The task of an unconfirmed attempt. `unsent`: it was assigned in this process, and this is its first errand.
    pub(super) fn new(entry: &Arc<RunEntry>, run: &Arc<Run>, dispatch: Box<Dispatch>, unsent: bool) -> Self {
        let (entry, run) = (Arc::clone(entry), Arc::clone(run));
        Self { entry, run, dispatch, unsent, first_sent: None, pause: AGAIN_AFTER }
    }

    /// The next copy, as long as one may be sent. A task that could not be sent at all is denied.
    pub(super) fn next(&mut self, shared: &Shared) -> Next {
        let now = shared.clock.now();
        if now >= self.dispatch.dispatch_until {
            if self.unsent {
                return self.deny(NotStarted::Unsent);
            }
            let Dispatch { step, attempt, .. } = &*self.dispatch;
            debug!(run_id = %self.entry.id, step_id = %step, attempt, "no answer to the task in time");
            return Next::End;
        }
        if !shared.bus.is_connected() {
            return self.rest();
        }
        self.unsent = false;
        self.first_sent.get_or_insert(now);
        let subjects = Subjects::new(self.run.namespace.as_str());
        match serde_json::to_vec(&self.task(shared, &subjects, now)) {
            Ok(payload) => {
                let subject = subjects.task(self.dispatch.agent.as_str(), self.dispatch.instance.as_str());
                Next::Send(subject, Bytes::from(payload))
            }
            Err(e) => self.deny(NotStarted::Refused { why: format!("the task can't be written as JSON: {e}") }),
        }
    }

    /// The first copy as part of an answer to a report of its instance, if one may be sent now and fits in.
    pub(super) fn in_answer(&mut self, shared: &Shared, orders: &[Order]) -> Option<Bytes> {
        let now = shared.clock.now();
        if now >= self.dispatch.dispatch_until || !shared.bus.is_connected() {
            return None;
        }
        let task = self.task(shared, &Subjects::new(self.run.namespace.as_str()), now);
        let answer = reply(&ReportReply::Recorded { orders: orders.to_vec(), task: Some(Box::new(task)) });
        if answer.len() > shared.bus.max_payload() {
            return None;
        }
        self.unsent = false;
        self.first_sent = Some(now);
        Some(answer)
    }

    /// What follows from the answer to a copy, or from none.
    pub(super) fn heard(&mut self, shared: &Shared, answer: Result<TaskReply, BusError>) -> Next {
        match answer {
            Ok(TaskReply::Accepted) => Next::End,
            Ok(TaskReply::Busy) => self.deny(NotStarted::Busy),
            Ok(TaskReply::Draining) => self.deny(NotStarted::Draining),
            Ok(TaskReply::Refused { why }) => {
                // It may have refused a copy for its age alone, and repeats that: another attempt finds out.
                let in_time = self
                    .first_sent
                    .is_none_or(|first| shared.clock.now() < after_ms(first, shared.intervals.start_within_ms));
                self.deny(if in_time { NotStarted::Refused { why } } else { NotStarted::Busy })
            }
            Err(BusError::TooLarge { size, limit }) => self
                .deny(NotStarted::Refused { why: format!("the task has {size} bytes, and the bus carries {limit}") }),
            Err(e @ BusError::BadSubject(_)) => self.deny(NotStarted::Refused { why: e.to_string() }),
            Err(e @ (BusError::NoResponders(_) | BusError::Timeout(_) | BusError::Disconnected(_))) => {
                let Dispatch { step, attempt, .. } = &*self.dispatch;
                debug!(run_id = %self.entry.id, step_id = %step, attempt, "task not answered: {e}");
                self.rest()
            }
        }
    }

    fn rest(&mut self) -> Next {
        let pause = self.pause;
        self.pause = (pause * 2).min(AGAIN_AT_MOST);
        Next::Rest(pause)
    }

    fn deny(&self, why: NotStarted) -> Next {
        let Dispatch { step, attempt, agent, instance, .. } = &*self.dispatch;
        let fence = Fence { step: step.clone(), attempt: *attempt, agent: agent.clone(), instance: instance.clone() };
        Next::Deny(Denial { entry: Arc::clone(&self.entry), message: Message::Deny { fence, why } })
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
}
