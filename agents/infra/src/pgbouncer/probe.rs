//! `pgbouncer.probe`: many clients through the pool.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use muster_bus::message::Observation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{sync::Barrier, task::JoinSet};

use super::console::Console;
use crate::postgres::{Dsn, Target, said};
use muster_kit::{
    bound::within,
    measure::{Errors, Latencies, ms_since, observation, percent},
    params,
};

/// Lets many clients, all connected at once, do transactions through the pool; says how many succeeded, how fast, and how
/// many server connections the pool used for them.
///
/// Clients stay connected until all have done their work, as an application's do: a pool that gives a server connection to
/// a client for as long as it stays can't serve more clients than it has connections. The first transaction of each client
/// is not measured: it may pay for opening a server connection.
pub struct Probe;

/// Parameters of `pgbouncer.probe`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeParams {
    /// The pool, and who asks.
    pub pool: Dsn,
    /// The admin console, for a user that may look.
    pub admin: Dsn,
    /// How many clients.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1, max = 500))]
    pub clients: u32,
    /// How many transactions each does, besides the first one.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 1000))]
    pub transactions: u32,
    /// How long a client thinks between two transactions, in milliseconds: without it the machine's limit is measured, not
    /// the pool.
    #[serde(default = "twenty")]
    #[schemars(range(max = 1000))]
    pub pause_ms: u64,
    /// What a transaction asks.
    #[serde(default = "select_one")]
    pub query: String,
    /// Limit for one client's connection, and for one transaction, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
    /// What must have been measured: otherwise a failure that may pass by itself, so that the step's `retry` waits for it.
    #[serde(default)]
    pub expect: ProbeExpect,
}

/// What must have been measured; what is absent is not looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeExpect {
    /// At least this share of transactions succeeded, in percent.
    #[serde(default)]
    pub success_percent: Option<f64>,
    /// The 95th percentile of latency is below this, in milliseconds.
    #[serde(default)]
    pub latency_p95_ms_below: Option<f64>,
}

fn fifty() -> u32 {
    50
}

fn ten() -> u32 {
    10
}

fn twenty() -> u64 {
    20
}

fn select_one() -> String {
    "select 1".into()
}

fn five_seconds() -> u64 {
    5_000
}

/// Output of `pgbouncer.probe`. Also given with the failure when not one transaction succeeded.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProbeOutput {
    /// Transactions that should be measured: clients times transactions.
    pub attempted: u64,
    /// Transactions that were done.
    pub succeeded: u64,
    /// The share of them, in percent.
    pub success_percent: f64,
    /// One transaction: median, in milliseconds; null when none succeeded.
    pub latency_p50_ms: Option<f64>,
    /// 95th percentile.
    pub latency_p95_ms: Option<f64>,
    /// One client's connection: 95th percentile, in milliseconds.
    pub connect_p95_ms: Option<f64>,
    /// Server connections that the pools of this database held when all clients were at work: those of all its users, not only
    /// of the one that asks.
    pub server_connections: u64,
    /// As many as the pool of one user may hold, without the reserve.
    pub pool_size: u64,
    /// `server_connections` is no more than size and reserve allow. PgBouncer has a pool for each user of a database, and this holds
    /// the connections of all against the size of one: where other users work in the same database, it may be false though no
    /// pool holds too many.
    pub within_pool: bool,
    /// Errors by text, with how often.
    pub errors: BTreeMap<String, u64>,
}

#[async_trait]
impl Action for Probe {
    fn spec(&self) -> ActionSpec {
        params::probe_spec::<ProbeParams, ProbeOutput>(
            "pgbouncer.probe",
            "Let many clients work through the pool: success rate, latency, server connections used.",
        )
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: ProbeParams = params::read(with)?;
        if !(1..=500).contains(&with.clients) || !(1..=1000).contains(&with.transactions) || with.pause_ms > 1000 {
            return Err(ActionError::permanent(
                "clients must be 1 to 500, transactions 1 to 1000, pause_ms at most 1000",
            ));
        }
        let admin = with.admin.target(ctx, with.timeout_ms)?;
        let pool = with.pool.target(ctx, with.timeout_ms)?;
        let Some(console) = Console::connect(ctx, &admin, with.timeout_ms).await? else {
            return Err(ActionError::retry("PgBouncer does not run: nothing listens at its console's address"));
        };
        let output = probe(ctx, &with, &pool, &console).await?;
        if output.succeeded == 0 {
            let all: Vec<_> = output.errors.keys().map(String::as_str).collect();
            let message = format!("none of {} transactions succeeded: {}", output.attempted, all.join("; "));
            return Err(ActionError::Retry { message, output: Some(params::output(&output)) });
        }
        if let Some(message) = with.expect.wrong(&output) {
            return Err(ActionError::Retry { message, output: Some(params::output(&output)) });
        }
        Ok(Done { observations: observations(&output), output: params::output(&output) })
    }
}

impl ProbeExpect {
    /// What is not as expected, if anything.
    fn wrong(&self, output: &ProbeOutput) -> Option<String> {
        if let Some(least) = self.success_percent.filter(|least| output.success_percent < *least) {
            return Some(format!("{} % of the transactions succeeded, {least} % wanted", output.success_percent));
        }
        let (limit, p95) = (self.latency_p95_ms_below?, output.latency_p95_ms?);
        (p95 >= limit).then(|| format!("95 % of the transactions took up to {p95} ms, below {limit} ms wanted"))
    }
}

#[expect(clippy::cast_precision_loss, reason = "connections are far below 2^52")]
fn observations(output: &ProbeOutput) -> Vec<Observation> {
    let source = "pgbouncer.probe";
    let mut observations = vec![
        observation(source, "success", output.success_percent, "percent", Some(output.attempted)),
        observation(source, "server_connections", output.server_connections as f64, "count", None),
    ];
    let latencies = [
        ("latency_p50", output.latency_p50_ms),
        ("latency_p95", output.latency_p95_ms),
        ("connect_p95", output.connect_p95_ms),
    ];
    for (name, value) in latencies {
        observations.extend(value.map(|value| observation(source, name, value, "ms", Some(output.succeeded))));
    }
    observations
}

async fn probe(
    ctx: &Context,
    with: &ProbeParams,
    pool: &Target,
    console: &Console<'_>,
) -> Result<ProbeOutput, ActionError> {
    let count = with.clients as usize;
    // One place more than clients: this function looks at the pool between the two.
    let (worked, leave) = (Arc::new(Barrier::new(count + 1)), Arc::new(Barrier::new(count + 1)));
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let gates = (Arc::clone(&worked), Arc::clone(&leave));
        clients.spawn(client(ctx.clone(), with.clone(), pool.clone(), gates));
    }
    let longest_ms = (with.timeout_ms + with.pause_ms) * (u64::from(with.transactions) + 3);
    within(ctx, longest_ms, "the clients", worked.wait()).await?;
    let server_connections = console.server_connections(pool.database()).await;
    let offered = console.databases().await;
    leave.wait().await;
    let (mut latencies, mut connects, mut errors) = (Latencies::default(), Latencies::default(), Errors::default());
    while let Some(ended) = clients.join_next().await {
        let worked = ended.map_err(|e| ActionError::permanent(format!("the probe broke: {e}")))?;
        latencies.extend(worked.transactions);
        connects.extend(worked.connect);
        worked.errors.into_iter().for_each(|error| errors.add(error));
    }
    if ctx.cancelled.is_cancelled() {
        return Err(ActionError::retry("stopped: the attempt was cancelled"));
    }
    let (server_connections, offered) = (server_connections?, offered?.remove(pool.database()));
    let (pool_size, reserve) = offered.map_or((0, 0), |offered| (offered.pool_size, offered.reserve));
    let attempted = u64::from(with.clients) * u64::from(with.transactions);
    Ok(ProbeOutput {
        attempted,
        succeeded: latencies.count(),
        success_percent: percent(latencies.count(), attempted),
        latency_p50_ms: latencies.percentile(50),
        latency_p95_ms: latencies.percentile(95),
        connect_p95_ms: connects.percentile(95),
        server_connections,
        pool_size,
        within_pool: server_connections <= pool_size + reserve,
        errors: errors.into_map(),
    })
}

#[derive(Default)]
struct Worked {
    connect: Option<f64>,
    transactions: Vec<f64>,
    errors: Vec<String>,
}

/// One client: connect, work, and stay until all have worked. It comes to both gates whatever happens.
async fn client(ctx: Context, with: ProbeParams, pool: Target, gates: (Arc<Barrier>, Arc<Barrier>)) -> Worked {
    let mut worked = Worked::default();
    let start = Instant::now();
    let connected = match within(&ctx, with.timeout_ms, "the pool (connection)", pool.connect()).await {
        Ok(Ok(connected)) => {
            worked.connect = Some(ms_since(start));
            Some(connected)
        }
        Ok(Err(e)) => {
            worked.errors.push(said(&e));
            None
        }
        Err(e) => {
            worked.errors.push(e.to_string());
            None
        }
    };
    if let Some(connected) = &connected {
        let transaction = format!("begin; {}; commit", with.query);
        for number in 0..=with.transactions {
            if number > 0 {
                tokio::time::sleep(Duration::from_millis(with.pause_ms)).await;
            }
            let start = Instant::now();
            let error = match within(&ctx, with.timeout_ms, "the pool", connected.rows(&transaction)).await {
                Ok(Ok(_)) => {
                    worked.transactions.extend((number > 0).then(|| ms_since(start)));
                    continue;
                }
                Ok(Err(e)) => said(&e),
                Err(e) => e.to_string(),
            };
            worked.errors.push(error);
            break;
        }
    }
    gates.0.wait().await;
    gates.1.wait().await;
    drop(connected);
    worked
}
