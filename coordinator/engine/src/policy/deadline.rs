//! When a milestone is due, and when it is at risk.

use jiff::Timestamp;

use super::after;

/// When the milestone has to be reached: so long after the run's start, pauses included.
pub fn due_at(run_started: Timestamp, deadline_ms: u64) -> Timestamp {
    after(run_started, deadline_ms)
}

/// When the milestone is at risk: 70 % of the time is gone.
pub fn at_risk_at(run_started: Timestamp, deadline_ms: u64) -> Timestamp {
    after(run_started, deadline_ms / 10 * 7 + deadline_ms % 10 * 7 / 10)
}
