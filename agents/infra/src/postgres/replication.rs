//! The action: are the replicas replicas, how far behind, and do writes go where they should.

use std::{collections::BTreeMap, time::Instant};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use muster_bus::message::Observation;
use muster_kit::{
    bound::{until, within},
    measure::{ms_since, observation},
    params,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::error::SqlState;

use super::client::{Client, Dsn, refused_credentials, said};

/// Looks at a primary and its replicas by the addresses that applications use. What it writes, it rolls back.
pub struct Replication;

/// Parameters of `postgres.replication`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicationParams {
    /// Where writes go.
    pub primary: Dsn,
    /// Where reads go, each by a name of its own.
    pub replicas: BTreeMap<String, Dsn>,
    /// The write that is tried in a transaction and rolled back.
    #[serde(default = "temporary_table")]
    pub write: String,
    /// Limit for each exchange, and for a replica to catch up, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
    /// What else must hold.
    #[serde(default)]
    pub expect: ReplicationExpect,
}

/// What must hold of each replica. What is absent may be anything.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicationExpect {
    /// It is less behind than this, in bytes of the write-ahead log.
    #[serde(default)]
    pub lag_bytes_below: Option<u64>,
    /// It catches up within this, in milliseconds.
    #[serde(default)]
    pub lag_ms_below: Option<f64>,
}

fn temporary_table() -> String {
    "create temporary table muster_replication_probe (n int)".into()
}

fn five_seconds() -> u64 {
    5_000
}

/// Output of `postgres.replication`. Also given with the failure.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ReplicationOutput {
    /// The primary takes writes.
    pub primary_writes: bool,
    /// The replicas, by name.
    pub replicas: BTreeMap<String, Replica>,
    /// The largest lag of them, in bytes; null without any that could be measured.
    pub lag_bytes_max: Option<u64>,
    /// The longest time that one of them took to catch up, in milliseconds; null when one of them did not.
    pub lag_ms_max: Option<f64>,
    /// What is wrong, in sentences; empty when all is as it should be.
    pub wrong: Vec<String>,
}

/// A replica as it was found.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Replica {
    /// It answers reads.
    pub reads: bool,
    /// It refuses writes.
    pub refuses_writes: bool,
    /// It is a copy of this primary and no other.
    pub of_this_primary: bool,
    /// How much of the write-ahead log it had still to replay, in bytes.
    pub lag_bytes: Option<u64>,
    /// How long it took to replay what the primary had written when it was asked, in milliseconds; null when it did not
    /// within the limit.
    pub lag_ms: Option<f64>,
}

const SOURCE: &str = "postgres.replication";

#[async_trait]
impl Action for Replication {
    fn spec(&self) -> ActionSpec {
        params::probe_spec::<ReplicationParams, ReplicationOutput>(
            "postgres.replication",
            "Ask a PostgreSQL primary and its replicas: lag, where writes are taken, where they are refused.",
        )
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: ReplicationParams = params::read(with)?;
        if with.replicas.is_empty() || with.replicas.len() > 16 {
            return Err(ActionError::permanent("replicas: 1 to 16 are needed"));
        }
        let mut found = Found::default();
        if let Some(primary) = found.primary(ctx, &with).await? {
            for (name, dsn) in &with.replicas {
                let replica = found.replica(ctx, &with, &primary, (name, dsn)).await?;
                found.output.replicas.insert(name.clone(), replica);
            }
        }
        found.sum_up(&with.expect);
        let output = params::output(&found.output);
        if found.output.wrong.is_empty() {
            return Ok(Done { observations: observations(&found.output), output });
        }
        let message = found.output.wrong.join("; ");
        Err(if found.credentials_refused {
            ActionError::Permanent { message, output: Some(output) }
        } else {
            ActionError::Retry { message, output: Some(output) }
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a lag is far below 2^52")]
fn observations(output: &ReplicationOutput) -> Vec<Observation> {
    let mut all = Vec::new();
    for (name, replica) in &output.replicas {
        let source = format!("{SOURCE}/{name}");
        all.extend(replica.lag_bytes.map(|lag| observation(&source, "lag_bytes", lag as f64, "bytes", Some(1))));
        all.extend(replica.lag_ms.map(|lag| observation(&source, "lag", lag, "ms", Some(1))));
    }
    all
}

#[derive(Default)]
struct Found {
    output: ReplicationOutput,
    credentials_refused: bool,
}

/// The primary, and which cluster it is of.
struct Primary {
    client: Client,
    system: String,
}

/// What a server did with the write.
enum Write {
    Taken,
    /// It reads only.
    Refused,
    Failed(String),
}

impl Found {
    /// The primary, or what is wrong with it.
    async fn primary(&mut self, ctx: &Context, with: &ReplicationParams) -> Result<Option<Primary>, ActionError> {
        let who = "the primary";
        let Some(client) = self.connect(ctx, with, who, &with.primary).await? else { return Ok(None) };
        match write(ctx, with, who, &client).await {
            Write::Taken => self.output.primary_writes = true,
            Write::Refused => self.output.wrong.push("the primary refuses writes: a replica is at its address".into()),
            Write::Failed(why) => self.output.wrong.push(why),
        }
        let Some(system) = self.one(ctx, with, who, &client, SYSTEM).await else { return Ok(None) };
        Ok(self.output.primary_writes.then_some(Primary { client, system }))
    }

    async fn replica(
        &mut self,
        ctx: &Context,
        with: &ReplicationParams,
        primary: &Primary,
        (name, dsn): (&str, &Dsn),
    ) -> Result<Replica, ActionError> {
        let (mut replica, who) = (Replica::default(), format!("replica {name}"));
        let Some(client) = self.connect(ctx, with, &who, dsn).await? else { return Ok(replica) };
        let Some(system) = self.one(ctx, with, &who, &client, SYSTEM).await else { return Ok(replica) };
        (replica.reads, replica.of_this_primary) = (true, system == primary.system);
        match write(ctx, with, &who, &client).await {
            Write::Taken => self.output.wrong.push(format!("{who} takes writes: it is no replica")),
            Write::Refused => replica.refuses_writes = true,
            Write::Failed(why) => self.output.wrong.push(why),
        }
        if !replica.of_this_primary {
            self.output.wrong.push(format!("{who} is a copy of another primary"));
        } else if replica.refuses_writes {
            self.lag(ctx, with, primary, (&who, &client), &mut replica).await?;
        }
        Ok(replica)
    }

    async fn lag(
        &mut self,
        ctx: &Context,
        with: &ReplicationParams,
        primary: &Primary,
        (who, client): (&str, &Client),
        replica: &mut Replica,
    ) -> Result<(), ActionError> {
        let Some(written) =
            self.one(ctx, with, "the primary", &primary.client, "select pg_current_wal_flush_lsn()").await
        else {
            return Ok(());
        };
        let start = Instant::now();
        let behind = format!("select greatest(0, pg_wal_lsn_diff('{written}', pg_last_wal_replay_lsn()))::bigint");
        let Some(lag) = self.one(ctx, with, who, client, &behind).await else { return Ok(()) };
        replica.lag_bytes = lag.parse().ok();
        let caught_up = until(ctx, with.timeout_ms, 5, who, || async {
            match client.rows(&behind).await {
                Ok(rows) if rows.first().and_then(|row| row.get(0)) == Some("0") => Ok(()),
                Ok(_) => Err("it has not caught up".into()),
                Err(e) => Err(said(&e)),
            }
        });
        match caught_up.await {
            Ok(()) => replica.lag_ms = Some(ms_since(start)),
            Err(_) if ctx.cancelled.is_cancelled() => {
                return Err(ActionError::retry("stopped: the attempt was cancelled"));
            }
            Err(e) => self.output.wrong.push(e.to_string()),
        }
        Ok(())
    }

    fn sum_up(&mut self, expect: &ReplicationExpect) {
        let output = &mut self.output;
        output.lag_bytes_max = output.replicas.values().filter_map(|replica| replica.lag_bytes).max();
        let each: Option<Vec<f64>> = output.replicas.values().map(|replica| replica.lag_ms).collect();
        output.lag_ms_max = each.and_then(|each| each.into_iter().reduce(f64::max));
        for (name, replica) in &output.replicas {
            if let (Some(lag), Some(limit)) = (replica.lag_bytes, expect.lag_bytes_below)
                && lag >= limit
            {
                output.wrong.push(format!("replica {name} is {lag} bytes behind, below {limit} wanted"));
            }
            if let (Some(lag), Some(limit)) = (replica.lag_ms, expect.lag_ms_below)
                && lag >= limit
            {
                output.wrong.push(format!("replica {name} took {lag} ms to catch up, below {limit} ms wanted"));
            }
        }
    }

    async fn connect(
        &mut self,
        ctx: &Context,
        with: &ReplicationParams,
        who: &str,
        dsn: &Dsn,
    ) -> Result<Option<Client>, ActionError> {
        let target = dsn.target(ctx, with.timeout_ms)?;
        let why = match within(ctx, with.timeout_ms, who, target.connect()).await {
            Ok(Ok(client)) => return Ok(Some(client)),
            Ok(Err(e)) => {
                self.credentials_refused |= refused_credentials(&e);
                format!("{who} can't be reached: {}", said(&e))
            }
            Err(e) => e.to_string(),
        };
        self.output.wrong.push(why);
        Ok(None)
    }

    /// The first column of the first row, or what is wrong.
    async fn one(
        &mut self,
        ctx: &Context,
        with: &ReplicationParams,
        who: &str,
        client: &Client,
        sql: &str,
    ) -> Option<String> {
        let why = match within(ctx, with.timeout_ms, who, client.rows(sql)).await {
            Ok(Ok(rows)) => match rows.first().and_then(|row| row.get(0)) {
                Some(value) => return Some(value.to_owned()),
                None => format!("{who} says nothing of its write-ahead log: it does not replicate"),
            },
            Ok(Err(e)) => format!("{who} does not answer {sql:?}: {}", said(&e)),
            Err(e) => e.to_string(),
        };
        self.output.wrong.push(why);
        None
    }
}

const SYSTEM: &str = "select system_identifier from pg_control_system()";

/// Tries the write and takes it back.
async fn write(ctx: &Context, with: &ReplicationParams, who: &str, client: &Client) -> Write {
    let tried = within(ctx, with.timeout_ms, who, async {
        client.rows("begin").await?;
        let written = client.rows(&with.write).await;
        // Also after a refusal: a pool keeps the connection.
        client.rows("rollback").await?;
        written.map(drop)
    });
    match tried.await {
        Ok(Ok(())) => Write::Taken,
        Ok(Err(e)) if e.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => Write::Refused,
        Ok(Err(e)) => Write::Failed(format!("the write can't be tried at {who}: {}", said(&e))),
        Err(e) => Write::Failed(e.to_string()),
    }
}
