//! The action, and the measuring that `pgbouncer.probe` shares.

use std::{collections::BTreeMap, time::Instant};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

use super::client::{Dsn, Target, refused_credentials, said};
use muster_kit::{
    bound::within,
    measure::{Errors, Latencies, ms_since, observation, percent},
    params,
};

/// Opens connections, asks one question on each, and says how many succeeded and how long it took.
pub struct Probe;

/// Parameters of `postgres.probe`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeParams {
    /// Where, and who asks.
    pub target: Dsn,
    /// How many connections in all.
    #[serde(default = "twenty")]
    #[schemars(range(min = 1, max = 1000))]
    pub connections: u32,
    /// How many of them at once.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 100))]
    pub at_once: u32,
    /// The question.
    #[serde(default = "select_one")]
    pub query: String,
    /// Limit for one connection and its question, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
}

fn twenty() -> u32 {
    20
}

fn five() -> u32 {
    5
}

fn select_one() -> String {
    "select 1".into()
}

fn five_seconds() -> u64 {
    5_000
}

/// Output of `postgres.probe`. Also given with the failure when not one connection succeeded.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProbeOutput {
    /// Connections tried.
    pub attempted: u64,
    /// Connections that answered the question.
    pub succeeded: u64,
    /// The share of them, in percent.
    pub success_percent: f64,
    /// Connect and question: median, in milliseconds; null when none succeeded.
    pub latency_p50_ms: Option<f64>,
    /// 95th percentile.
    pub latency_p95_ms: Option<f64>,
    /// Errors by text, with how often.
    pub errors: BTreeMap<String, u64>,
}

#[async_trait]
impl Action for Probe {
    fn spec(&self) -> ActionSpec {
        params::probe_spec::<ProbeParams, ProbeOutput>(
            "postgres.probe",
            "Open connections to PostgreSQL: success rate, latency of connect and query.",
        )
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: ProbeParams = params::read(with)?;
        if !(1..=1000).contains(&with.connections) || !(1..=100).contains(&with.at_once) {
            return Err(ActionError::permanent("connections must be 1 to 1000, at_once 1 to 100"));
        }
        let target = with.target.target(ctx, with.timeout_ms)?;
        let found = probe(ctx, &with, &target).await?;
        let output = params::output(&found.output);
        if found.output.succeeded == 0 {
            let all: Vec<_> = found.output.errors.keys().map(String::as_str).collect();
            let message = format!("none of {} connections succeeded: {}", with.connections, all.join("; "));
            return Err(if found.credentials_refused {
                ActionError::Permanent { message, output: Some(output) }
            } else {
                ActionError::Retry { message, output: Some(output) }
            });
        }
        let samples = Some(found.output.succeeded);
        let source = "postgres.probe";
        let mut observations =
            vec![observation(source, "success", found.output.success_percent, "percent", Some(found.output.attempted))];
        let latencies = [("latency_p50", found.output.latency_p50_ms), ("latency_p95", found.output.latency_p95_ms)];
        for (name, value) in latencies {
            observations.extend(value.map(|value| observation(source, name, value, "ms", samples)));
        }
        Ok(Done { output, observations })
    }
}

struct Found {
    output: ProbeOutput,
    credentials_refused: bool,
}

async fn probe(ctx: &Context, with: &ProbeParams, target: &Target) -> Result<Found, ActionError> {
    let (mut latencies, mut errors, mut refused) = (Latencies::default(), Errors::default(), false);
    let mut left = with.connections;
    let mut working = JoinSet::new();
    loop {
        while left > 0 && working.len() < with.at_once as usize {
            left -= 1;
            working.spawn(once(ctx.clone(), target.clone(), with.query.clone(), with.timeout_ms));
        }
        let Some(ended) = working.join_next().await else { break };
        match ended.map_err(|e| ActionError::permanent(format!("the probe broke: {e}")))? {
            Ok(latency) => latencies.extend([latency]),
            Err(failed) => {
                refused |= failed.credentials_refused;
                errors.add(failed.text);
            }
        }
        if ctx.cancelled.is_cancelled() {
            return Err(ActionError::retry("stopped: the attempt was cancelled"));
        }
    }
    let (attempted, succeeded) = (u64::from(with.connections), latencies.count());
    let output = ProbeOutput {
        attempted,
        succeeded,
        success_percent: percent(succeeded, attempted),
        latency_p50_ms: latencies.percentile(50),
        latency_p95_ms: latencies.percentile(95),
        errors: errors.into_map(),
    };
    Ok(Found { output, credentials_refused: refused })
}

struct Failed {
    text: String,
    credentials_refused: bool,
}

async fn once(ctx: Context, target: Target, query: String, timeout_ms: u64) -> Result<f64, Failed> {
    let start = Instant::now();
    let asked = within(&ctx, timeout_ms, "the database", async {
        let client = target.connect().await?;
        client.rows(&query).await
    });
    match asked.await {
        Ok(Ok(_)) => Ok(ms_since(start)),
        Ok(Err(e)) => Err(Failed { text: said(&e), credentials_refused: refused_credentials(&e) }),
        Err(e) => Err(Failed { text: e.to_string(), credentials_refused: false }),
    }
}
