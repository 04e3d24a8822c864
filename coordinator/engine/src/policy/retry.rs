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
