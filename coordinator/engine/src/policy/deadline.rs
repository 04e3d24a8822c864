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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_tenths_of_the_time_and_never_an_overflow() {
        let start = Timestamp::UNIX_EPOCH;
        assert_eq!(at_risk_at(start, 100_000), after(start, 70_000));
        assert_eq!(at_risk_at(start, 15), after(start, 10));
        assert_eq!(due_at(start, u64::MAX), Timestamp::MAX);
        assert!(at_risk_at(start, u64::MAX) <= due_at(start, u64::MAX));
    }
}
