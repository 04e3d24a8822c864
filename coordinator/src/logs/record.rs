//! One line of a file: a line of an attempt, or how many of them are missing there.

use jiff::Timestamp;
use muster_engine::ids::StepId;
use serde::{Deserialize, Serialize};

/// Why lines are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lost {
    /// Their numbers never came: the agent, NATS or the coordinator had no room for them, or was away.
    OnTheWay,
    /// The attempt, the run, or all runs have used up what is kept of them.
    OverLimit,
    /// The disk did not take them.
    NotWritten,
}

/// An entry of a run's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of which step.
    pub step: StepId,
    /// Of which attempt.
    pub attempt: u32,
    /// Its number in the attempt, from 1; 0 where lines are missing.
    pub number: u64,
    /// When, by the agent's clock; where lines are missing, when that was noticed.
    pub at: Timestamp,
    /// What it says; empty where lines are missing.
    pub text: String,
    /// How many lines are missing here, and why.
    pub lost: Option<(u64, Lost)>,
    /// Where it ends: reading on from here goes on without a gap.
    pub position: u64,
}

/// As it stands in the file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) step: StepId,
    pub(super) attempt: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) line: u64,
    pub(super) at_ms: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) text: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) lost: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<Lost>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Record {
    pub(super) fn line(key: &(StepId, u32), number: u64, at_ms: i64, text: String) -> Self {
        Self { step: key.0.clone(), attempt: key.1, line: number, at_ms, text, lost: 0, why: None }
    }

    pub(super) fn missing(key: &(StepId, u32), count: u64, why: Lost, at_ms: i64) -> Self {
        let (step, attempt) = key.clone();
        Self { step, attempt, line: 0, at_ms, text: String::new(), lost: count, why: Some(why) }
    }

    /// With its line end.
    pub(super) fn bytes(&self) -> Vec<u8> {
        // Texts and numbers are always JSON.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// None: it is not one of ours, or was torn.
    pub(super) fn of(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    pub(super) fn into_entry(self, position: u64) -> Entry {
        Entry {
            step: self.step,
            attempt: self.attempt,
            number: self.line,
            at: Timestamp::from_millisecond(self.at_ms).unwrap_or_default(),
            text: self.text,
            lost: self.why.filter(|_| self.lost > 0).map(|why| (self.lost, why)),
            position,
        }
    }
}

/// At most so many bytes, whole characters, with a mark where something is missing.
pub(super) fn cut(text: &mut String, limit: usize) {
    if text.len() <= limit {
        return;
    }
    let mut end = limit.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push('…');
}
