//! The coordinator's clock: monotonic from an anchor, never before the last journalled time.
//!
//! Durations follow it; a wall clock that is set back or forward moves no timer. How far the wall clock is away from it is
//! watched, so that a jump can be noticed ([`Clock::jumped`]): the clocks of unconfirmed attempts are started again, and runs
//! that wait for a moment of the wall clock are told.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Duration, Instant};

/// A difference between wall clock and monotonic clock that grows by more than this is a jump.
pub(crate) const JUMP_MS: i64 = 5_000;

type Wall = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Gives `now`. Cheap to clone; clones share the anchor.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    wall: Wall,
    anchor: Instant,
    anchor_us: AtomicI64,
    offset_ms: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Timestamp::now)
    }
}

impl Clock {
    /// Anchored at this moment to a wall clock. Must be called inside a tokio runtime when its time is paused.
    pub fn new(wall: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let anchor_us = AtomicI64::new(wall().as_microsecond());
        let inner = Inner { wall: Arc::new(wall), anchor: Instant::now(), anchor_us, offset_ms: AtomicI64::new(0) };
        Self(Arc::new(inner))
    }

    /// The present moment, in whole microseconds; never earlier than an answer given before.
    pub fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.0.anchor.elapsed().as_micros()).unwrap_or(i64::MAX);
        let us = self.0.anchor_us.load(Ordering::Acquire).saturating_add(elapsed);
        Timestamp::from_microsecond(us).unwrap_or(Timestamp::MAX)
    }

    /// Move the clock forward so that it never says less than `at`; used once, with the last journalled time.
    pub(crate) fn not_before(&self, at: Timestamp) {
        let behind = at.as_microsecond().saturating_sub(self.now().as_microsecond());
        if behind > 0 {
            self.0.anchor_us.fetch_add(behind, Ordering::AcqRel);
            self.0.offset_ms.store(self.wall_offset_ms(), Ordering::Release);
        }
    }

    /// How far the wall clock has jumped since the last call, in milliseconds, when that is more than [`JUMP_MS`].
    pub(crate) fn jumped(&self) -> Option<i64> {
        let offset = self.wall_offset_ms();
        let jump = offset - self.0.offset_ms.load(Ordering::Acquire);
        if jump.abs() <= JUMP_MS {
            return None;
        }
        self.0.offset_ms.store(offset, Ordering::Release);
        Some(jump)
    }

    /// Where the wall clock is, if that is more than [`JUMP_MS`] away from where somebody takes it to be.
    pub(crate) fn misleads(&self, taken_to_be_ms: Option<i64>) -> Option<i64> {
        let ahead_ms = self.wall_offset_ms();
        taken_to_be_ms.filter(|taken| ahead_ms.abs_diff(*taken) > JUMP_MS.unsigned_abs()).map(|_| ahead_ms)
    }

    /// The instant at which this clock says `at`; at once when that is past.
    pub(crate) fn instant_of(&self, at: Timestamp) -> Instant {
        let wait = at.duration_since(self.now());
        let wait = Duration::try_from(wait).unwrap_or(Duration::ZERO);
        // A timer that is due within the clock's microsecond would otherwise wake just before it.
        Instant::now() + wait + Duration::from_micros(1)
    }

    /// By how many milliseconds the wall clock is ahead of this one; negative: behind.
    pub(crate) fn wall_offset_ms(&self) -> i64 {
        (self.0.wall)().as_millisecond() - self.now().as_millisecond()
    }
}

/// `at` plus milliseconds, at most the end of time.
pub(crate) fn after_ms(at: Timestamp, ms: u64) -> Timestamp {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    at.checked_add(SignedDuration::from_millis(ms)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use super::*;

    fn wall_of(ms: &Arc<AtomicI64>) -> impl Fn() -> Timestamp + Send + Sync + 'static {
        let ms = Arc::clone(ms);
        move || Timestamp::from_millisecond(ms.load(Ordering::SeqCst)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn follows_durations_and_not_the_wall() {
        let wall = Arc::new(AtomicI64::new(1_000_000));
        let clock = Clock::new(wall_of(&wall));
        let before = clock.now();
        wall.store(500_000, Ordering::SeqCst);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.now().duration_since(before), SignedDuration::from_secs(2));
        assert_eq!(clock.jumped(), Some(-502_000));
        assert_eq!(clock.jumped(), None, "a jump is told once");
    }

    #[tokio::test(start_paused = true)]
    async fn is_never_before_what_was_journalled() {
        let wall = Arc::new(AtomicI64::new(1_000_000));
        let clock = Clock::new(wall_of(&wall));
        let last = Timestamp::from_millisecond(9_000_000).unwrap();
        clock.not_before(last);
        assert!(clock.now() >= last);
        assert_eq!(clock.jumped(), None, "what recovery knew before is no jump");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_until_a_moment_wakes_when_the_moment_has_come() {
        let clock = Clock::default();
        let at = after_ms(clock.now(), 1_500);
        tokio::time::sleep_until(clock.instant_of(at)).await;
        assert!(clock.now() >= at);
    }
}
