//! How settings are put to work so that no crash in between loses data.
//!
//! A server that starts with `appendonly yes` reads the append-only file and nothing else. So the configuration file may
//! say so only while such a file is complete: it is made first, then the configuration file is written. The other way
//! round a snapshot is saved first, then the configuration file is written, then appending ends.

use std::time::Duration;

use muster_agent::{ActionError, Context};
use muster_kit::bound::until;

use super::{
    client::Client,
    settings::{NAMES, Values},
};

const ASK_EVERY_MS: u64 = 50;

/// The settings at work.
pub(super) async fn at_work(client: &Client) -> Result<Values, ActionError> {
    let mut values = Values::new();
    for name in NAMES {
        let shown: Vec<String> = client.tell(&["CONFIG", "GET", name]).await?;
        values.extend(shown.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
    }
    Ok(values)
}

/// Puts `wanted` to work and has `write` write the file at the right moment. A value that Redis refuses takes back those
/// before it, and nothing is written.
pub(super) async fn apply<W>(
    ctx: &Context,
    client: &Client,
    wanted: &Values,
    settle_ms: u64,
    write: impl FnOnce() -> W,
) -> Result<(), ActionError>
where
    W: Future<Output = Result<(), ActionError>>,
{
    let now = at_work(client).await?;
    let ends_appending = says(&now, "yes") && says(wanted, "no");
    if ends_appending {
        ctx.progress("saving a snapshot before appending ends", None);
        snapshot(ctx, client, settle_ms).await?;
        write().await?;
        return set(client, &now, wanted).await;
    }
    set(client, &now, wanted).await?;
    if says(wanted, "yes") {
        ctx.progress("waiting for the append-only file", None);
        appending(ctx, client, settle_ms).await?;
    }
    write().await
}

/// What is wrong with the append-only file of a server that should have one.
pub(super) async fn appending_fails(client: &Client) -> Result<Option<String>, ActionError> {
    let info = client.info("persistence").await?;
    let is = |name: &str, value: &str| info.get(name).is_some_and(|v| v == value);
    Ok(if !is("aof_enabled", "1") {
        Some("the append-only file is off".into())
    } else if is("aof_rewrite_in_progress", "1") || is("aof_rewrite_scheduled", "1") {
        Some("the append-only file is being written".into())
    } else if !is("aof_last_bgrewrite_status", "ok") || !is("aof_last_write_status", "ok") {
        Some("the append-only file can't be written; see the server's log and its disk".into())
    } else {
        None
    })
}

fn says(values: &Values, value: &str) -> bool {
    values.get("appendonly").is_some_and(|v| v == value)
}

async fn set(client: &Client, now: &Values, wanted: &Values) -> Result<(), ActionError> {
    let mut done: Vec<&String> = Vec::new();
    for (name, value) in wanted.iter().filter(|(name, value)| now.get(*name) != Some(value)) {
        let Err(e) = client.tell::<()>(&["CONFIG", "SET", name, value]).await else {
            done.push(name);
            continue;
        };
        for name in done {
            client.tell::<()>(&["CONFIG", "SET", name, &now[name]]).await?;
        }
        return Err(match e {
            ActionError::Retry { message, .. } if is_final(&message) => {
                ActionError::permanent(format!("{name} can't be {value:?}, nothing was changed: {message}"))
            }
            e @ (ActionError::Retry { .. } | ActionError::Permanent { .. } | ActionError::NeedsPerson { .. }) => e,
        });
    }
    Ok(())
}

/// Whether the value is the reason: of version 7, and of those before it. An append-only file that can't be begun is none.
fn is_final(message: &str) -> bool {
    ["must be one of", "couldn't be parsed", "Invalid argument"].iter().any(|text| message.contains(text))
}

async fn appending(ctx: &Context, client: &Client, settle_ms: u64) -> Result<(), ActionError> {
    until(ctx, settle_ms, ASK_EVERY_MS, "the append-only file", || async {
        match appending_fails(client).await {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(why),
            Err(e) => Err(e.to_string()),
        }
    })
    .await
}

/// Saves a snapshot that was begun after this call.
async fn snapshot(ctx: &Context, client: &Client, settle_ms: u64) -> Result<(), ActionError> {
    let end = tokio::time::Instant::now() + Duration::from_millis(settle_ms);
    let before: u64 = client.tell(&["LASTSAVE"]).await?;
    let mut begun = false;
    loop {
        let info = client.info("persistence").await?;
        let is = |name: &str, value: &str| info.get(name).is_some_and(|v| v == value);
        if is("rdb_bgsave_in_progress", "0") && is("aof_rewrite_in_progress", "0") {
            let last: u64 = info.get("rdb_last_save_time").and_then(|at| at.parse().ok()).unwrap_or(0);
            if begun && !is("rdb_last_bgsave_status", "ok") {
                return Err(ActionError::retry("the snapshot can't be saved; see the server's log and its disk"));
            }
            if begun && last > before {
                return Ok(());
            }
            // Also when the last one ended within this very second: the two can't be told apart.
            client.tell::<String>(&["BGSAVE", "SCHEDULE"]).await?;
            begun = true;
        }
        if tokio::time::Instant::now() >= end {
            return Err(ActionError::retry(format!("no snapshot was saved within {settle_ms} ms")));
        }
        let pause = tokio::time::sleep(Duration::from_millis(ASK_EVERY_MS));
        tokio::select! {
            () = pause => {}
            () = ctx.cancelled.cancelled() => return Err(ActionError::retry("stopped: the attempt was cancelled")),
        }
    }
}
