//! A look at what comes through the front for a while after a switch, and when it is bad enough to go back.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use muster_agent::{ActionError, Context};
use muster_bus::message::Observation;
use muster_kit::{
    http::Asker,
    measure::{Errors, Latencies, observation, percent},
};
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

/// How long and how closely to look, and what is a breach.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// How long, in milliseconds.
    #[serde(default = "thirty_seconds")]
    #[schemars(range(min = 100, max = 3_600_000))]
    pub for_ms: u64,
    /// One request each so many milliseconds.
    #[serde(default = "hundred")]
    #[schemars(range(min = 10, max = 60_000))]
    pub every_ms: u64,
    /// More requests than this without a good answer (200 to 399) are a breach, in percent.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub max_error_percent: f64,
    /// A 95th percentile above this is a breach, in milliseconds; not looked at when absent.
    #[serde(default)]
    pub max_latency_p95_ms: Option<f64>,
}

fn thirty_seconds() -> u64 {
    30_000
}

fn hundred() -> u64 {
    100
}

fn one() -> f64 {
    1.0
}

/// What was seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Watched {
    /// Requests that were sent.
    pub requests: u64,
    /// Those without a good answer.
    pub failed: u64,
    /// The same in percent of all.
    pub error_rate_percent: f64,
    /// Of good answers: 95th percentile, in milliseconds; null when there was none.
    pub latency_p95_ms: Option<f64>,
    /// What was wrong, each with how often; at most nine.
    pub errors: BTreeMap<String, u64>,
}

/// So many bad answers one after the other are a breach at once.
const IN_A_ROW: u32 = 10;

impl Watch {
    pub(crate) fn validate(&self) -> Result<(), ActionError> {
        if !(100..=3_600_000).contains(&self.for_ms) || !(10..=60_000).contains(&self.every_ms) {
            return Err(ActionError::permanent("watch: for_ms is 100 to 3600000, every_ms is 10 to 60000"));
        }
        if !(0.0..=100.0).contains(&self.max_error_percent) {
            return Err(ActionError::permanent("watch: max_error_percent is 0 to 100"));
        }
        Ok(())
    }

    fn breach(&self, watched: &Watched) -> Option<String> {
        let (rate, of) = (watched.error_rate_percent, watched.requests);
        if rate > self.max_error_percent || of == 0 {
            let most = self.max_error_percent;
            return Some(format!("{rate} percent of {of} requests failed, at most {most} percent may"));
        }
        let (most, p95) = (self.max_latency_p95_ms?, watched.latency_p95_ms?);
        (p95 > most).then(|| format!("the 95th percentile of {of} requests was {p95} ms, at most {most} ms may be"))
    }
}

/// Looks until its time is over or there is a breach, which is the second answer.
///
/// # Errors
/// [`ActionError::Retry`] when the attempt is cancelled: nobody knows then how it would have ended.
pub(crate) async fn look(
    watch: &Watch,
    ctx: &Context,
    front: &Asker,
    timeout_ms: u64,
) -> Result<(Watched, Option<String>), ActionError> {
    let (start, length) = (Instant::now(), Duration::from_millis(watch.for_ms));
    let mut tick = tokio::time::interval(Duration::from_millis(watch.every_ms));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen { watch, good_ms: Vec::new(), failed: 0, slow: 0, in_a_row: 0, errors: Errors::default() };
    let mut said_s = None;
    while start.elapsed() < length {
        let answer = tokio::select! {
            biased;
            () = ctx.cancelled.cancelled() => {
                return Err(ActionError::retry("stopped while watching: the attempt was cancelled, both sides are as they are"));
            }
            answer = async { tick.tick().await; front.ask(Method::GET, timeout_ms, 0).await } => answer,
        };
        seen.take(answer.map(|answer| (answer.status, answer.total_ms)));
        if let Some(breach) = seen.sure() {
            return Ok((seen.sum(), Some(breach)));
        }
        let elapsed_s = start.elapsed().as_secs();
        if said_s.replace(elapsed_s) != Some(elapsed_s) {
            let share =
                u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_mul(100) / watch.for_ms;
            ctx.progress("watching what comes through the front", u8::try_from(share.min(100)).ok());
        }
    }
    let watched = seen.sum();
    let breach = watch.breach(&watched);
    Ok((watched, breach))
}

/// What has been seen so far.
struct Seen<'a> {
    watch: &'a Watch,
    good_ms: Vec<f64>,
    failed: u64,
    slow: u64,
    in_a_row: u32,
    errors: Errors,
}

impl Seen<'_> {
    fn take(&mut self, answer: Result<(u16, f64), String>) {
        let bad = match answer {
            Ok((200..400, took_ms)) => {
                self.good_ms.push(took_ms);
                let slow = self.watch.max_latency_p95_ms.is_some_and(|most| took_ms > most);
                self.slow += u64::from(slow);
                slow
            }
            Ok((status, _)) => self.fail(format!("status {status}")),
            Err(why) => self.fail(why),
        };
        self.in_a_row = if bad { self.in_a_row + 1 } else { 0 };
    }

    fn fail(&mut self, why: String) -> bool {
        self.errors.add(why);
        self.failed += 1;
        true
    }

    /// A breach that no later answer could take back, or that nobody should wait for.
    fn sure(&self) -> Option<String> {
        let planned = (self.watch.for_ms / self.watch.every_ms).max(1);
        let (failed, slow) = (self.failed, self.slow);
        if self.in_a_row >= IN_A_ROW {
            return Some(format!(
                "{IN_A_ROW} requests in a row failed or were too slow ({failed} failed, {slow} slow)"
            ));
        }
        if percent(failed, planned) > self.watch.max_error_percent {
            let most = self.watch.max_error_percent;
            return Some(format!("{failed} of {planned} planned requests failed already, at most {most} percent may"));
        }
        (percent(slow, planned) > 5.0).then(|| {
            let most = self.watch.max_latency_p95_ms.unwrap_or_default();
            format!("{slow} of {planned} planned requests took longer than {most} ms already, at most 5 percent may")
        })
    }

    fn sum(self) -> Watched {
        let requests = self.failed + self.good_ms.len() as u64;
        let mut latencies = Latencies::default();
        latencies.extend(self.good_ms);
        Watched {
            requests,
            failed: self.failed,
            error_rate_percent: percent(self.failed, requests),
            latency_p95_ms: latencies.percentile(95),
            errors: self.errors.into_map(),
        }
    }
}

impl Watched {
    pub(crate) fn observations(&self, source: &str) -> Vec<Observation> {
        let seen = |name: &str, value: f64, unit: &str| observation(source, name, value, unit, Some(self.requests));
        let mut all = vec![seen("error_rate", self.error_rate_percent, "percent")];
        all.extend(self.latency_p95_ms.map(|p95| seen("latency_p95", p95, "ms")));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(max_error_percent: f64, max_latency_p95_ms: Option<f64>) -> Watch {
        Watch { for_ms: 10_000, every_ms: 100, max_error_percent, max_latency_p95_ms }
    }

    fn seen(watch: &Watch, answers: impl IntoIterator<Item = (u16, f64)>) -> (Watched, Option<String>) {
        let mut seen = Seen { watch, good_ms: Vec::new(), failed: 0, slow: 0, in_a_row: 0, errors: Errors::default() };
        let mut sure = None;
        for answer in answers {
            seen.take(Ok(answer));
            sure = sure.or_else(|| seen.sure());
        }
        (seen.sum(), sure)
    }

    #[test]
    fn one_failure_in_a_hundred_is_within_one_percent() {
        let watch = watch(1.0, None);
        let (watched, sure) = seen(&watch, (0..100).map(|n| (if n == 0 { 502 } else { 200 }, 1.0)));
        assert_eq!((sure, watch.breach(&watched), watched.failed), (None, None, 1));
        let (_, sure) = seen(&watch, (0..3).map(|n| (if n < 2 { 502 } else { 200 }, 1.0)));
        assert!(sure.is_some_and(|why| why.contains("2 of 100")), "two are too many, whatever comes");
    }

    #[test]
    fn slow_answers_are_a_breach_of_the_percentile_alone() {
        let watch = watch(1.0, Some(50.0));
        let answers = |slow: u32| (0..100).map(move |n| (200, if n % 15 < slow { 60.0 } else { 10.0 }));
        let (watched, sure) = seen(&watch, answers(1));
        assert!(sure.is_some_and(|why| why.contains("50 ms")), "7 of 100");
        assert!(watch.breach(&watched).is_some_and(|why| why.contains("60 ms")));
        let (watched, sure) = seen(&watch, answers(0));
        assert_eq!((sure, watch.breach(&watched)), (None, None));
    }

    #[test]
    fn a_service_that_is_gone_is_not_watched_to_the_end() {
        let (_, sure) = seen(&watch(100.0, None), (0..10).map(|_| (502, 1.0)));
        assert!(sure.is_some_and(|why| why.contains("in a row")));
        let nothing = Watched::default();
        assert!(watch(100.0, None).breach(&nothing).is_some(), "no request at all is no success");
    }
}
