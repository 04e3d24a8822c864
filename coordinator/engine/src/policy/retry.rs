//! Whether and when a failed attempt is tried again.

use jiff::Timestamp;

use super::after;
use crate::plan::RetryPolicy;

/// Wait before the next try of a step that no instance could take just then, in milliseconds.
pub const BUSY_BACKOFF_MS: u64 = 1_000;

/// When the next attempt may start; none: no more tries.
///
/// `counted` attempts have been made, the first of them assigned at `first`; `seed` names run, step and attempt.
pub fn next_try(
    policy: &RetryPolicy,
    counted: u32,
    first: Option<Timestamp>,
    now: Timestamp,
    seed: u64,
) -> Option<Timestamp> {
    if counted >= policy.max_attempts {
        return None;
    }
    let at = after(now, backoff_ms(policy, counted, seed));
    let too_late = policy.max_elapsed_ms.zip(first).is_some_and(|(ms, first)| at > after(first, ms));
    (!too_late).then_some(at)
}

/// The wait after `counted` attempts: `initial · factor^(counted − 1)`, at most `max`, less up to a quarter of it, so that
/// steps which failed together do not come back together. The same seed gives the same wait.
pub fn backoff_ms(policy: &RetryPolicy, counted: u32, seed: u64) -> u64 {
    let exponent = i32::try_from(counted.saturating_sub(1)).unwrap_or(i32::MAX);
    #[expect(clippy::cast_precision_loss, reason = "waits are far below 2^52 ms")]
    let full = (policy.initial_ms as f64 * policy.factor.max(1.0).powi(exponent)).min(policy.max_ms as f64);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to max_ms")]
    let full = full as u64;
    full - (full / 4).saturating_mul(seed % 1024) / 1024
}

/// A number that is the same for the same run, step and attempt, on every machine (FNV-1a, mixed).
pub fn seed(run: &str, step: &str, attempt: u32) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in run.bytes().chain([0]).chain(step.bytes()).chain([0]).chain(attempt.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(factor: f64) -> RetryPolicy {
        RetryPolicy { max_attempts: 4, initial_ms: 1_000, max_ms: 5_000, factor, max_elapsed_ms: None }
    }

    #[test]
    fn the_wait_grows_by_the_factor_up_to_its_bound() {
        let full = |factor, counted| backoff_ms(&policy(factor), counted, 0);
        let table = [(2.0, [1_000, 2_000, 4_000, 5_000]), (1.0, [1_000; 4]), (0.0, [1_000; 4]), (f64::NAN, [1_000; 4])];
        for (factor, waits) in table {
            assert_eq!([full(factor, 1), full(factor, 2), full(factor, 3), full(factor, 4)], waits, "factor {factor}");
        }
        assert_eq!(full(10.0, u32::MAX), 5_000);
    }

    #[test]
    fn the_jitter_takes_off_at_most_a_quarter_and_is_the_same_for_the_same_attempt() {
        let waits: Vec<u64> = (0..200).map(|n| backoff_ms(&policy(1.0), 1, seed("run", "step", n))).collect();
        assert!(waits.iter().all(|w| (750..=1_000).contains(w)), "{waits:?}");
        let distinct: std::collections::BTreeSet<_> = waits.iter().collect();
        assert!(distinct.len() > 50, "steps that failed together come back together");
        assert_eq!(backoff_ms(&policy(1.0), 1, seed("run", "step", 7)), waits[7]);
    }

    #[test]
    fn tries_end_by_number_and_by_time() {
        let now = Timestamp::UNIX_EPOCH;
        assert!(next_try(&policy(2.0), 3, Some(now), now, 0).is_some());
        assert_eq!(next_try(&policy(2.0), 4, Some(now), now, 0), None);
        let short = RetryPolicy { max_elapsed_ms: Some(999), ..policy(2.0) };
        assert_eq!(next_try(&short, 1, Some(now), now, 0), None);
    }
}
