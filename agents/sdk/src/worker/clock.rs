//! The coordinator's clock, as seen from here.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// A sample that took longer says too little, unless there is no other.
const GOOD_SAMPLE: Duration = Duration::from_secs(1);

pub(crate) struct Clock {
    origin: Instant,
    /// The coordinator's time at `origin`, in milliseconds since 1970; never less than that, so that no copy of a task
    /// looks younger than it is.
    at_origin: AtomicI64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), at_origin: AtomicI64::new(i64::MIN) }
    }

    /// The coordinator said `now_ms` in answer to what was asked at `asked`.
    pub(crate) fn learn(&self, asked: Instant, now_ms: i64) {
        let known = self.at_origin.load(Ordering::Relaxed) != i64::MIN;
        if !known || asked.elapsed() <= GOOD_SAMPLE {
            self.at_origin.store(now_ms - self.since_origin(asked), Ordering::Relaxed);
        }
    }

    /// How long ago the coordinator's clock showed `then_ms`; at most that, plus the way of a message.
    pub(crate) fn age_ms(&self, then_ms: i64) -> i64 {
        let now = self.at_origin.load(Ordering::Relaxed).saturating_add(self.since_origin(Instant::now()));
        now.saturating_sub(then_ms)
    }

    fn since_origin(&self, then: Instant) -> i64 {
        i64::try_from(then.saturating_duration_since(self.origin).as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn takes_a_copy_for_older_rather_than_younger() {
        let clock = Clock::new();
        let asked = Instant::now();
        tokio::time::advance(Duration::from_millis(400)).await;
        clock.learn(asked, 1_000_000);
        assert_eq!(clock.age_ms(1_000_000), 400, "it may have been said at once");
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.age_ms(1_000_000), 5_400);
        let asked = Instant::now();
        tokio::time::advance(Duration::from_secs(3)).await;
        clock.learn(asked, 1_005_500);
        assert_eq!(clock.age_ms(1_000_000), 8_400, "a slow sample changes nothing");
    }
}
