//! The action: round trips, persistence, memory and hit rate.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use muster_bus::message::Observation;
use muster_kit::{
    measure::{Errors, Latencies, ms_since, observation, percent},
    params,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

use super::client::{Address, Client, Failure};

/// Sends `PING` on several connections and reads `INFO`. Writes nothing.
pub struct Probe;

/// Parameters of `redis.probe`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeParams {
    /// Where, and who asks; a user that may use `PING` and `INFO`.
    pub target: Address,
    /// How many connections at once.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 100))]
    pub connections: u32,
    /// How many round trips on each.
    #[serde(default = "forty")]
    #[schemars(range(min = 1, max = 1000))]
    pub round_trips: u32,
    /// Count hits and misses for so long, in milliseconds.
    #[serde(default)]
    #[schemars(range(max = 60000))]
    pub sample_ms: u64,
    /// Count hits and misses since then: what an earlier probe gave as `server.counted`. Not together with `sample_ms`.
    #[serde(default)]
    pub since: Option<Counted>,
    /// Limit for a connection and for each exchange, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
    /// What must hold; without it the figures are outputs and nothing more.
    #[serde(default)]
    pub expect: ProbeExpect,
}

/// What must hold. What is absent may be anything.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeExpect {
    /// At least this share of round trips succeeded, in percent.
    #[serde(default)]
    pub success_percent: Option<f64>,
    /// The 95th percentile of a round trip is below this, in milliseconds.
    #[serde(default)]
    pub latency_p95_ms_below: Option<f64>,
    /// The 99th percentile.
    #[serde(default)]
    pub latency_p99_ms_below: Option<f64>,
    /// At least this share of lookups found a key, in percent. Without any lookup it does not hold. Wants `since` or
    /// `sample_ms`: the hits of past weeks say nothing of a cache that has just died.
    #[serde(default)]
    pub hit_percent: Option<f64>,
    /// Whether writes go into an append-only file, and the last of them did.
    #[serde(default)]
    pub append_only: Option<bool>,
    /// Whether the last snapshot was saved.
    #[serde(default)]
    pub last_save_ok: Option<bool>,
    /// Whether there is a limit of memory.
    #[serde(default)]
    pub memory_limited: Option<bool>,
}

fn five() -> u32 {
    5
}

fn forty() -> u32 {
    40
}

fn five_seconds() -> u64 {
    5_000
}

/// Output of `redis.probe`. Also given with the failure when something is not as expected.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProbeOutput {
    /// Round trips that should be made.
    pub attempted: u64,
    /// Round trips that were answered.
    pub succeeded: u64,
    /// The share of them, in percent.
    pub success_percent: f64,
    /// One round trip: median, in milliseconds; null when none succeeded.
    pub latency_p50_ms: Option<f64>,
    /// 95th percentile.
    pub latency_p95_ms: Option<f64>,
    /// 99th percentile.
    pub latency_p99_ms: Option<f64>,
    /// Errors by text, with how often.
    pub errors: BTreeMap<String, u64>,
    /// What `INFO` says; null when not one round trip succeeded.
    pub server: Option<ServerState>,
}

/// What `INFO` says.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ServerState {
    /// `master` or `slave`, as Redis calls them.
    pub role: String,
    /// Writes go into the append-only file, and the last write and the last rewrite succeeded.
    pub append_only: bool,
    /// The last snapshot was saved, or none was ever begun.
    pub last_save_ok: bool,
    /// Changes that no snapshot holds yet.
    pub changes_since_save: u64,
    /// Memory of the data, in bytes.
    pub used_memory_bytes: u64,
    /// Its limit, in bytes; 0 is none.
    pub max_memory_bytes: u64,
    /// What goes when the limit is reached.
    pub max_memory_policy: String,
    /// Keys that had to go for it.
    pub evicted_keys: u64,
    /// Lookups since `since`, or within `sample_ms`; null without either.
    pub lookups: Option<u64>,
    /// The share of them that found a key, in percent; null when there were none.
    pub hit_percent: Option<f64>,
    /// All lookups since the server's start: for `since` of a later probe.
    pub counted: Counted,
}

/// Lookups as Redis counts them from its start.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// Those that found a key.
    pub hits: u64,
    /// Those that found none.
    pub misses: u64,
}

impl Counted {
    /// What came after `before`. Counters that were set back meanwhile (CONFIG RESETSTAT, a restart) count from there.
    fn after(self, before: Self) -> Self {
        match (self.hits.checked_sub(before.hits), self.misses.checked_sub(before.misses)) {
            (Some(hits), Some(misses)) => Self { hits, misses },
            (None, _) | (_, None) => self,
        }
    }

    fn lookups(self) -> u64 {
        self.hits + self.misses
    }
}

const SOURCE: &str = "redis.probe";

#[async_trait]
impl Action for Probe {
    fn spec(&self) -> ActionSpec {
        params::probe_spec::<ProbeParams, ProbeOutput>(
            "redis.probe",
            "Ask Redis: latency of round trips, persistence, memory and hit rate.",
        )
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: ProbeParams = params::read(with)?;
        if !(1..=100).contains(&with.connections) || !(1..=1000).contains(&with.round_trips) || with.sample_ms > 60_000
        {
            return Err(ActionError::permanent(
                "connections must be 1 to 100, round_trips 1 to 1000, sample_ms at most 60000",
            ));
        }
        if with.sample_ms > 0 && with.since.is_some() {
            return Err(ActionError::permanent("give since or sample_ms, not both"));
        }
        if with.expect.hit_percent.is_some() && with.sample_ms == 0 && with.since.is_none() {
            return Err(ActionError::permanent(
                "expect.hit_percent: since when is to be counted? Give since (an earlier probe's server.counted) or sample_ms",
            ));
        }
        let (mut output, refused) = round_trips(ctx, &with).await?;
        if output.succeeded == 0 {
            let all: Vec<_> = output.errors.keys().map(String::as_str).collect();
            let message = format!("none of {} round trips succeeded: {}", output.attempted, all.join("; "));
            let output = Some(params::output(&output));
            return Err(if refused {
                ActionError::Permanent { message, output }
            } else {
                ActionError::Retry { message, output }
            });
        }
        output.server = Some(server_state(ctx, &with).await?);
        if let Some(message) = with.expect.wrong(&output) {
            return Err(ActionError::Retry { message, output: Some(params::output(&output)) });
        }
        Ok(Done { observations: observations(&output), output: params::output(&output) })
    }
}

impl ProbeExpect {
    /// What is not as expected, if anything.
    fn wrong(&self, output: &ProbeOutput) -> Option<String> {
        let server = output.server.as_ref()?;
        if let Some(least) = self.success_percent.filter(|least| output.success_percent < *least) {
            return Some(format!("{} % of the round trips succeeded, {least} % wanted", output.success_percent));
        }
        let latencies = [
            ("95", self.latency_p95_ms_below, output.latency_p95_ms),
            ("99", self.latency_p99_ms_below, output.latency_p99_ms),
        ];
        for (share, limit, measured) in latencies {
            if let (Some(limit), Some(ms)) = (limit, measured)
                && ms >= limit
            {
                return Some(format!("{share} % of the round trips took up to {ms} ms, below {limit} ms wanted"));
            }
        }
        if let Some(least) = self.hit_percent.filter(|least| server.hit_percent.is_none_or(|hit| hit < *least)) {
            let hit =
                server.hit_percent.map_or_else(|| "there was no lookup".into(), |hit| format!("{hit} % found a key"));
            return Some(format!(
                "of {} lookups {least} % should find a key: {hit}",
                server.lookups.unwrap_or_default()
            ));
        }
        let states = [
            ("the append-only file at work", self.append_only, server.append_only),
            ("the last snapshot saved", self.last_save_ok, server.last_save_ok),
            ("a limit of memory", self.memory_limited, server.max_memory_bytes > 0),
        ];
        let wrong = states.into_iter().find(|(_, wanted, found)| wanted.is_some_and(|wanted| wanted != *found));
        wrong.map(|(what, wanted, found)| format!("{what}: {found}, {} wanted", wanted.unwrap_or_default()))
    }
}

#[expect(clippy::cast_precision_loss, reason = "memory and counts are far below 2^52")]
fn observations(output: &ProbeOutput) -> Vec<Observation> {
    let measured = Some(output.succeeded);
    let mut all = vec![observation(SOURCE, "success", output.success_percent, "percent", Some(output.attempted))];
    let latencies = [
        ("latency_p50", output.latency_p50_ms),
        ("latency_p95", output.latency_p95_ms),
        ("latency_p99", output.latency_p99_ms),
    ];
    all.extend(latencies.into_iter().filter_map(|(name, ms)| Some(observation(SOURCE, name, ms?, "ms", measured))));
    if let Some(server) = &output.server {
        all.push(observation(SOURCE, "used_memory", server.used_memory_bytes as f64, "bytes", None));
        all.push(observation(SOURCE, "changes_since_save", server.changes_since_save as f64, "count", None));
        all.push(observation(SOURCE, "evicted_keys", server.evicted_keys as f64, "count", None));
        all.extend(server.hit_percent.map(|hit| observation(SOURCE, "hits", hit, "percent", server.lookups)));
    }
    all
}

/// The figures, and whether user or password were refused.
async fn round_trips(ctx: &Context, with: &ProbeParams) -> Result<(ProbeOutput, bool), ActionError> {
    let mut clients = JoinSet::new();
    for _ in 0..with.connections {
        clients.spawn(one(ctx.clone(), with.clone()));
    }
    let (mut latencies, mut errors, mut refused) = (Latencies::default(), Errors::default(), false);
    while let Some(ended) = clients.join_next().await {
        let (measured, failure) = ended.map_err(|e| ActionError::permanent(format!("the probe broke: {e}")))??;
        latencies.extend(measured);
        if let Some(failure) = failure {
            refused |= matches!(failure, Failure::Refused(_));
            errors.add(failure.text());
        }
    }
    if ctx.cancelled.is_cancelled() {
        return Err(ActionError::retry("stopped: the attempt was cancelled"));
    }
    let (attempted, succeeded) = (u64::from(with.connections) * u64::from(with.round_trips), latencies.count());
    let output = ProbeOutput {
        attempted,
        succeeded,
        success_percent: percent(succeeded, attempted),
        latency_p50_ms: latencies.percentile(50),
        latency_p95_ms: latencies.percentile(95),
        latency_p99_ms: latencies.percentile(99),
        errors: errors.into_map(),
        server: None,
    };
    Ok((output, refused))
}

/// One connection: its round trips, until one fails.
async fn one(ctx: Context, with: ProbeParams) -> Result<(Vec<f64>, Option<Failure>), ActionError> {
    let mut measured = Vec::new();
    let client = match Client::open(&ctx, &with.target, with.timeout_ms).await? {
        Ok(client) => client,
        Err(failure) => return Ok((measured, Some(failure))),
    };
    let ping = ::redis::cmd("PING");
    for _ in 0..with.round_trips {
        let start = Instant::now();
        match client.ask::<String>(&ping).await {
            Ok(_) => measured.push(ms_since(start)),
            Err(failure) => return Ok((measured, Some(failure))),
        }
    }
    Ok((measured, None))
}

async fn server_state(ctx: &Context, with: &ProbeParams) -> Result<ServerState, ActionError> {
    let Some(client) = Client::connect(ctx, &with.target, with.timeout_ms).await? else {
        return Err(ActionError::retry(format!("Redis at {} has just gone down", with.target.address)));
    };
    let mut before = with.since;
    if with.sample_ms > 0 {
        before = Some(counted(&client).await?);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(with.sample_ms)) => {}
            () = ctx.cancelled.cancelled() => return Err(ActionError::retry("stopped: the attempt was cancelled")),
        }
    }
    let counted = counted(&client).await?;
    let within = before.map(|before| counted.after(before));
    let (persistence, memory) = (client.info("persistence").await?, client.info("memory").await?);
    let (stats, replication) = (client.info("stats").await?, client.info("replication").await?);
    let is = |name: &str, value: &str| persistence.get(name).is_some_and(|v| v == value);
    Ok(ServerState {
        role: replication.get("role").cloned().unwrap_or_default(),
        append_only: is("aof_enabled", "1")
            && is("aof_last_write_status", "ok")
            && is("aof_last_bgrewrite_status", "ok"),
        last_save_ok: is("rdb_last_bgsave_status", "ok"),
        changes_since_save: number(&persistence, "rdb_changes_since_last_save"),
        used_memory_bytes: number(&memory, "used_memory"),
        max_memory_bytes: number(&memory, "maxmemory"),
        max_memory_policy: memory.get("maxmemory_policy").cloned().unwrap_or_default(),
        evicted_keys: number(&stats, "evicted_keys"),
        lookups: within.map(Counted::lookups),
        hit_percent: within.filter(|within| within.lookups() > 0).map(|within| percent(within.hits, within.lookups())),
        counted,
    })
}

async fn counted(client: &Client) -> Result<Counted, ActionError> {
    let stats = client.info("stats").await?;
    Ok(Counted { hits: number(&stats, "keyspace_hits"), misses: number(&stats, "keyspace_misses") })
}

fn number(info: &BTreeMap<String, String>, name: &str) -> u64 {
    info.get(name).and_then(|value| value.parse().ok()).unwrap_or(0)
}
