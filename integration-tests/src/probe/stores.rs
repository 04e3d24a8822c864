//! What keeps things: Redis by redis-cli, the backup by `pg_verifybackup`.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use super::{Seen, front, output};
use crate::lab::{Inputs, program, psql_program};

/// Whether Redis would have its data after a restart, and may hold any.
pub(super) fn persistence(inputs: &Inputs) -> Result<Seen> {
    let value =
        |name| Ok::<_, anyhow::Error>(redis(inputs, &["CONFIG", "GET", name])?.lines().nth(1).map(str::to_owned));
    let appends = redis(inputs, &["INFO", "persistence"])?.contains("aof_enabled:1");
    let in_file = fs::read_to_string(&inputs.redis_config).context("Redis' file can't be read")?;
    let in_file = in_file.lines().any(|line| line == "appendonly yes");
    let (memory, save) = (value("maxmemory")?.unwrap_or_default(), value("save")?.unwrap_or_default());
    let ok = appends && in_file && memory == inputs.redis_max_memory_bytes.to_string() && !save.is_empty();
    let said = format!("append-only {appends}, in its file {in_file}, save points {save:?}, memory {memory} bytes");
    Ok(Seen { ok, said })
}

const REQUESTS: u64 = 30;

/// How many of the service's lookups find what they look for.
pub(super) fn cache(inputs: &Inputs) -> Result<Seen> {
    let count = || {
        let stats = redis(inputs, &["INFO", "stats"])?;
        let number = |name| stats.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        Ok::<_, anyhow::Error>((number("keyspace_hits:").unwrap_or(0), number("keyspace_misses:").unwrap_or(0)))
    };
    let before = count()?;
    for _ in 0..REQUESTS {
        front::get(inputs, &inputs.cached_path, &[])?;
    }
    let after = count()?;
    let (hits, misses) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Ok(Seen { ok: hits > 9 * misses, said: format!("{hits} hits and {misses} misses for {REQUESTS} requests") })
}

/// Whether there is a backup, each file of it as its manifest says.
pub(super) fn backup(inputs: &Inputs) -> Result<Seen> {
    let verify = psql_program()?.with_file_name("pg_verifybackup");
    let there = fs::read_dir(&inputs.backup_root).context("the folder of backups can't be read")?;
    let mut good = 0;
    for entry in there {
        let data = entry?.path().join("data");
        good += u32::from(Command::new(&verify).arg("--quiet").arg(data).output()?.status.success());
    }
    Ok(Seen { ok: good > 0, said: format!("{good} that pg_verifybackup calls good") })
}

fn redis(inputs: &Inputs, words: &[&str]) -> Result<String> {
    let password = fs::read_to_string(&inputs.redis_password_file).context("Redis' password can't be read")?;
    let (host, port) = inputs.redis_address.rsplit_once(':').context("an address has a port")?;
    let mut cli = Command::new(program("redis-cli", "redis-tools")?);
    cli.args(["-h", host, "-p", port]).env("REDISCLI_AUTH", password.trim()).args(words);
    output(&mut cli, "")
}
