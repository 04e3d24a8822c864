//! How long things may take.

use jiff::Timestamp;

use super::after;

/// Who waits for people, or for an agent to appear, is told again after this long, in milliseconds.
pub const REMIND_EVERY_MS: u64 = 15 * 60 * 1000;

/// What an agent gets on top of an attempt's timeout to end it and to report, in milliseconds.
pub const GRACE_MS: u64 = 10_000;

/// An agent refuses a copy of a task that is older than this, in milliseconds.
pub const START_WITHIN_MS: u64 = 5_000;

/// When an attempt that can have started until `start_until` has ended by the clock, since its agent enforces the timeout.
pub fn ends_by(start_until: Timestamp, timeout_ms: u64) -> Timestamp {
    after(start_until, timeout_ms.saturating_add(GRACE_MS))
}

/// When a step that has waited for an agent since `since` is given up; none: never.
pub fn queue_ends(since: Timestamp, queue_timeout_ms: Option<u64>) -> Option<Timestamp> {
    queue_timeout_ms.map(|ms| after(since, ms))
}

/// When something is done next about a step that has waited for an agent since `since`: it is given up, or its owner is told.
pub fn queue_wake(now: Timestamp, since: Timestamp, queue_timeout_ms: Option<u64>) -> Timestamp {
    let remind = remind_at(now);
    queue_ends(since, queue_timeout_ms).map_or(remind, |ends| ends.min(remind))
}

/// When the owner of something that waits is told next.
pub fn remind_at(now: Timestamp) -> Timestamp {
    after(now, REMIND_EVERY_MS)
}

/// From when on no copy of a task can start its attempt any more.
pub fn cannot_start_after(dispatch_until: Timestamp) -> Timestamp {
    after(dispatch_until, START_WITHIN_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_an_agent_wakes_at_its_end_or_at_the_next_reminder() {
        let start = Timestamp::UNIX_EPOCH;
        let at = |ms| after(start, ms);
        assert_eq!(queue_wake(start, start, None), at(REMIND_EVERY_MS));
        assert_eq!(queue_wake(start, start, Some(5_000)), at(5_000));
        assert_eq!(queue_wake(start, start, Some(2 * REMIND_EVERY_MS)), at(REMIND_EVERY_MS));
        assert_eq!(queue_wake(at(REMIND_EVERY_MS), start, Some(REMIND_EVERY_MS + 1)), at(REMIND_EVERY_MS + 1));
        assert_eq!(ends_by(start, u64::MAX), Timestamp::MAX);
    }
}
