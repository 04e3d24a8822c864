//! `load.run`: many requests, a few at a time, for a while; and how the other side bore it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use muster_kit::{
    http::{Asker, Target},
    measure::{Errors, Latencies, observation, percent},
    params,
};
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

/// Sends requests until `requests` are done or `duration_ms` is over, whichever is first. Failed requests are a figure for the
/// gate, not a failure of the action; only when nothing at all was answered it fails, and may be tried again.
pub struct Run;

/// Parameters of `load.run`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadParams {
    /// Whom to ask.
    pub target: Target,
    /// `GET` or `HEAD`: a load may be stopped and repeated, so it must not change anything.
    #[serde(default)]
    pub method: LoadMethod,
    /// How many requests at most.
    #[serde(default = "thousand")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u64,
    /// How many at a time.
    #[serde(default = "eight")]
    #[schemars(range(min = 1, max = 256))]
    pub concurrency: u32,
    /// After this time no request is begun, in milliseconds.
    #[serde(default = "thirty_seconds")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub duration_ms: u64,
    /// Limit for one request, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60_000))]
    pub timeout_ms: u64,
    /// Open a connection for each request instead of using them again.
    #[serde(default)]
    pub new_connections: bool,
    /// Statuses that are good; 200 to 399 when empty.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub good_statuses: Vec<u16>,
}

/// How to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum LoadMethod {
    /// With a body in the answer.
    #[default]
    Get,
    /// Without.
    Head,
}

fn thousand() -> u64 {
    1_000
}

fn eight() -> u32 {
    8
}

fn thirty_seconds() -> u64 {
    30_000
}

fn five_seconds() -> u64 {
    5_000
}

/// Output of `load.run`. Latencies are those of good answers; null where there was none.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LoadOutput {
    /// Requests that were sent.
    pub requests: u64,
    /// Those without a good answer.
    pub failed: u64,
    /// The same in percent of all.
    pub error_rate_percent: f64,
    /// Requests per second.
    pub rps: f64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// To the end of the answer: median, in milliseconds.
    pub latency_p50_ms: Option<f64>,
    /// 95th percentile, in milliseconds.
    pub latency_p95_ms: Option<f64>,
    /// 99th percentile, in milliseconds.
    pub latency_p99_ms: Option<f64>,
    /// To the head of the answer: 95th percentile, in milliseconds.
    pub ttfb_p95_ms: Option<f64>,
    /// Statuses, each with how often.
    pub statuses: BTreeMap<String, u64>,
    /// Why there was no answer, each with how often; at most nine.
    pub errors: BTreeMap<String, u64>,
}

/// What one asker saw.
#[derive(Default)]
struct Seen {
    good_total_ms: Vec<f64>,
    good_ttfb_ms: Vec<f64>,
    statuses: BTreeMap<u16, u64>,
    errors: Vec<(String, u64)>,
    failed: u64,
}

#[async_trait]
impl Action for Run {
    fn spec(&self) -> ActionSpec {
        ActionSpec {
            // Two loads at once measure each other.
            concurrent_safe: false,
            ..params::probe_spec::<LoadParams, LoadOutput>(
                "load.run",
                "Send many HTTP requests: latency percentiles, error rate, requests per second.",
            )
        }
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: LoadParams = params::read(with)?;
        with.validate()?;
        let asker = with.target.asker(ctx, !with.new_connections).await?;
        let (start, with) = (Instant::now(), Arc::new(with));
        let end = start + Duration::from_millis(with.duration_ms);
        let taken = Arc::new(AtomicU64::new(0));
        let mut askers = JoinSet::new();
        for _ in 0..with.concurrency {
            askers.spawn(ask_on(asker.clone(), Arc::clone(&with), Arc::clone(&taken), end));
        }
        let mut seen = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                biased;
                () = ctx.cancelled.cancelled() => {
                    askers.shutdown().await;
                    return Err(ActionError::retry("the load was stopped before its end: the attempt was cancelled"));
                }
                one = askers.join_next() => match one {
                    None => break,
                    Some(Ok(one)) => seen.push(one),
                    Some(Err(e)) => return Err(ActionError::permanent(format!("an asker ended abnormally: {e}"))),
                },
                _ = tick.tick() => with.say(ctx, taken.load(Ordering::Relaxed), start),
            }
        }
        let output = summed(seen, start.elapsed());
        if output.statuses.is_empty() {
            let why = output.errors.keys().next().map_or("no request was sent", String::as_str).to_owned();
            let message = format!("{} gave no answer to {} requests: {why}", with.target.url, output.requests);
            return Err(ActionError::Retry { message, output: Some(params::output(&output)) });
        }
        Ok(done(&output))
    }
}

/// One asker: request after request until all are taken or time is over.
async fn ask_on(asker: Asker, with: Arc<LoadParams>, taken: Arc<AtomicU64>, end: Instant) -> Seen {
    let method = match with.method {
        LoadMethod::Get => Method::GET,
        LoadMethod::Head => Method::HEAD,
    };
    let (mut seen, mut errors) = (Seen::default(), Errors::default());
    while Instant::now() < end && taken.fetch_add(1, Ordering::Relaxed) < with.requests {
        match asker.ask(method.clone(), with.timeout_ms, 0).await {
            Ok(answer) => {
                *seen.statuses.entry(answer.status).or_default() += 1;
                if with.good(answer.status) {
                    seen.good_total_ms.push(answer.total_ms);
                    seen.good_ttfb_ms.push(answer.ttfb_ms);
                } else {
                    seen.failed += 1;
                }
            }
            Err(why) => {
                seen.failed += 1;
                errors.add(why);
            }
        }
    }
    seen.errors = errors.into_map().into_iter().collect();
    seen
}

fn summed(all: Vec<Seen>, took: Duration) -> LoadOutput {
    let (mut statuses, mut errors, mut failed) = (BTreeMap::<String, u64>::new(), Errors::default(), 0);
    let (mut total_ms, mut ttfb_ms) = (Vec::new(), Vec::new());
    for seen in all {
        failed += seen.failed;
        total_ms.extend(seen.good_total_ms);
        ttfb_ms.extend(seen.good_ttfb_ms);
        for (status, count) in seen.statuses {
            *statuses.entry(status.to_string()).or_default() += count;
        }
        for (text, count) in seen.errors {
            errors.add_many(text, count);
        }
    }
    let requests = failed + total_ms.len() as u64;
    let [mut total, mut ttfb] = [Latencies::default(), Latencies::default()];
    total.extend(total_ms);
    ttfb.extend(ttfb_ms);
    // At most a million, and exact.
    let count = u32::try_from(requests).map_or(f64::MAX, f64::from);
    LoadOutput {
        requests,
        failed,
        error_rate_percent: percent(failed, requests),
        rps: (count / took.as_secs_f64().max(0.001) * 100.0).round() / 100.0,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        latency_p50_ms: total.percentile(50),
        latency_p95_ms: total.percentile(95),
        latency_p99_ms: total.percentile(99),
        ttfb_p95_ms: ttfb.percentile(95),
        statuses,
        errors: errors.into_map(),
    }
}

fn done(output: &LoadOutput) -> Done {
    let seen = |name: &str, value: f64, unit: &str| observation("load.run", name, value, unit, Some(output.requests));
    let mut observations =
        vec![seen("error_rate", output.error_rate_percent, "percent"), seen("throughput", output.rps, "requests/s")];
    let latencies = [
        ("latency_p50", output.latency_p50_ms),
        ("latency_p95", output.latency_p95_ms),
        ("latency_p99", output.latency_p99_ms),
        ("ttfb_p95", output.ttfb_p95_ms),
    ];
    observations.extend(latencies.into_iter().filter_map(|(name, value)| Some(seen(name, value?, "ms"))));
    Done { output: params::output(output), observations }
}

impl LoadParams {
    fn validate(&self) -> Result<(), ActionError> {
        for (field, value, most) in [
            ("requests", self.requests, 1_000_000),
            ("concurrency", u64::from(self.concurrency), 256),
            ("duration_ms", self.duration_ms, 3_600_000),
            ("timeout_ms", self.timeout_ms, 60_000),
        ] {
            if value == 0 || value > most {
                return Err(ActionError::permanent(format!("{field}: {value} is not within 1 to {most}")));
            }
        }
        Ok(())
    }

    fn good(&self, status: u16) -> bool {
        if self.good_statuses.is_empty() { (200..400).contains(&status) } else { self.good_statuses.contains(&status) }
    }

    fn say(&self, ctx: &Context, taken: u64, start: Instant) {
        let begun = taken.min(self.requests);
        let by_time =
            u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_mul(100) / self.duration_ms;
        let share = (begun * 100 / self.requests).max(by_time).min(100);
        ctx.progress(&format!("{begun} requests begun"), u8::try_from(share).ok());
    }
}
