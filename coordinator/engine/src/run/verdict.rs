//! What a report is worth, before anything is decided about it.

use serde_json::Value;
use std::sync::Arc;

use super::{
    Fence, Run,
    event::{AttemptEnd, Outcome, Purpose},
};

/// A report of an attempt.
#[derive(Clone, Copy, Debug)]
pub enum Report<'a> {
    /// It is about to change something.
    Prepared(&'a Arc<Value>),
    /// It has ended.
    Finished(&'a Outcome),
}

/// What a report is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Of the current attempt: it changes something.
    New,
    /// Recorded already, word for word.
    Repeated,
    /// Not of the current attempt: evidence, and nothing else.
    Stale,
    /// The attempt has already ended (or prepared) in another way.
    Conflict,
    /// The journal has never assigned such an attempt.
    Unknown,
}

impl Run {
    /// Whether the fence names an attempt that is unconfirmed.
    pub fn is_live(&self, fence: &Fence) -> bool {
        self.step_index(&fence.step).and_then(|i| self.steps[i].live_attempt()).is_some_and(|(number, attempt)| {
            number == fence.attempt && attempt.agent == fence.agent && attempt.instance == fence.instance
        })
    }

    /// What a report under this fence is worth. A report of `prepared` is stale as soon as its attempt has ended, even if the
    /// same one is recorded: who hears `recorded` goes on to change something.
    pub fn verdict(&self, fence: &Fence, report: Report<'_>) -> Verdict {
        let Some(i) = self.step_index(&fence.step) else { return Verdict::Unknown };
        let Some(attempt) = self.steps[i].attempt(fence.attempt) else { return Verdict::Unknown };
        if attempt.agent != fence.agent || attempt.instance != fence.instance {
            return Verdict::Stale;
        }
        match (&attempt.end, report) {
            (None, Report::Finished(_) | Report::Prepared(_)) if self.has_ended() => Verdict::Stale,
            (None, Report::Finished(_)) => Verdict::New,
            (None, Report::Prepared(undo)) => match self.steps[i].prepared.get(&fence.attempt) {
                Some(same) if same == undo => Verdict::Repeated,
                Some(_) => Verdict::Conflict,
                None if attempt.purpose == Purpose::Run => Verdict::New,
                None => Verdict::Stale,
            },
            (Some((_, AttemptEnd::Finished { outcome })), Report::Finished(other)) if outcome == other => {
                Verdict::Repeated
            }
            (Some((_, AttemptEnd::Finished { .. })), Report::Finished(_)) => Verdict::Conflict,
            (Some((_, AttemptEnd::Unknown { .. } | AttemptEnd::NotStarted { .. })), Report::Finished(_))
            | (Some(_), Report::Prepared(_)) => Verdict::Stale,
        }
    }
}
