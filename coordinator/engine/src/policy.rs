//! The rules, each a small pure function: what it is given is what it knows. A change of a policy is a change of one of
//! these files and of its table of tests; old histories replay the same, since events carry what was concluded.

pub mod deadline;
pub mod gate;
pub mod lost;
pub mod retry;
pub mod timeout;

use jiff::{SignedDuration, Timestamp};

/// A moment so many milliseconds later; at most the last moment there is.
pub fn after(at: Timestamp, ms: u64) -> Timestamp {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    at.checked_add(SignedDuration::from_millis(ms)).unwrap_or(Timestamp::MAX)
}

/// What a clock says at a moment for which one that is ahead of it by so many milliseconds (negative: behind it) says `at`;
/// within the moments that there are.
pub fn of_a_clock_behind(at: Timestamp, ahead_ms: i64) -> Timestamp {
    let end = if ahead_ms > 0 { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_sub(SignedDuration::from_millis(ahead_ms)).unwrap_or(end)
}
