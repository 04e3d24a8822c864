//! The action: put the settings to work, write the file, and see that both say the same.

use std::path::PathBuf;

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done};
use muster_kit::{
    bound::blocking,
    files::{self, Before},
    params,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    client::Client,
    conf::Conf,
    persist::{appending_fails, apply, at_work},
    settings::{ConfigureParams, Values, in_file, merged},
};

/// Sets persistence and memory of a running Redis, and writes the settings into its file, so that they survive a restart.
///
/// Settings that are not named stay. No restart is needed. `undo` puts back both: the former values at work, and the file
/// byte for byte.
pub struct Configure;

/// Output of `redis.configure`: the settings at work.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConfigureOutput {
    /// The file.
    pub config: PathBuf,
    /// Whether each write goes into the append-only file.
    pub append_only: bool,
    /// When that file is synced.
    pub append_fsync: String,
    /// When a snapshot is saved: pairs of seconds and changes; empty is never.
    pub save: String,
    /// Limit of the data's memory, in bytes; 0 is none.
    pub max_memory_bytes: u64,
    /// What goes when that limit is reached.
    pub max_memory_policy: String,
}

/// What undo needs.
#[derive(Serialize, Deserialize)]
struct Former {
    file: Before,
    at_work: Values,
}

#[async_trait]
impl Action for Configure {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<ConfigureParams, ConfigureOutput>(
            "redis.configure",
            "Set persistence and memory of a running Redis, at work and in its file.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        let with = ConfigureParams::read(with)?;
        let mut different = with.lines_that_differ(&with.file().await?);
        let Some(client) = with.client(ctx).await? else {
            different.push(format!("Redis does not run at {}", with.target.address));
            return Ok(Checked::Different { diff: different.join("\n") });
        };
        let now = at_work(&client).await?;
        let at_work = with.wanted().into_iter().filter(|(name, value)| now.get(name) != Some(value));
        different.extend(at_work.map(|(name, value)| format!("{name} at work: {} -> {value}", shown(now.get(&name)))));
        if with.append_only == Some(true) && now.get("appendonly").is_some_and(|v| v == "yes") {
            different.extend(appending_fails(&client).await?);
        }
        if different.is_empty() {
            return Ok(Checked::Satisfied(with.done(&now)));
        }
        Ok(Checked::Different { diff: different.join("\n") })
    }

    async fn prepare(&self, ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        let with = ConfigureParams::read(with)?;
        let mut at_work = at_work(&with.running(ctx).await?).await?;
        let wanted = with.wanted();
        at_work.retain(|name, _| wanted.contains_key(name));
        let path = with.config.clone();
        let file = blocking(move || Before::of(&path)).await?;
        Ok(params::output(&Former { file, at_work }))
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with = ConfigureParams::read(with)?;
        // Before anything is changed: the file is the one that this server reads.
        let client = with.running(ctx).await?;
        let (wanted, path) = (with.wanted(), with.config.clone());
        let before = blocking(move || {
            let before = Before::of(&path)?;
            before.keep()?;
            Ok(before)
        })
        .await?;
        let there = with.file().await?;
        let text = merged(&there, &wanted);
        let write = || async {
            let path = with.config.clone();
            blocking(move || {
                if Before::of(&path)? != before {
                    return Err(ActionError::retry(format!(
                        "{} was changed by somebody else meanwhile",
                        path.display()
                    )));
                }
                files::write(&path, text.as_bytes(), files::mode(&path)?)
            })
            .await
        };
        apply(ctx, &client, &wanted, with.settle_ms, write).await?;
        let now = at_work(&client).await?;
        if let Some((name, value)) = wanted.iter().find(|(name, value)| now.get(*name) != Some(value)) {
            return Err(ActionError::retry(format!(
                "{name} is {} instead of {value}: somebody else changes it, too",
                shown(now.get(name))
            )));
        }
        Ok(with.done(&now))
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        let with = ConfigureParams::read(with)?;
        let former: Former = params::read(prepared)?;
        let file = former.file;
        let Some(client) = with.client(ctx).await? else {
            // With a running server the data is carried over; a stopped one would start from the other file, which is older.
            let appends = in_file(&Conf::parse(&with.file().await?), "appendonly");
            let appended = former.at_work.get("appendonly");
            if appended.is_some() && appended.map_or("no", String::as_str) != appends.as_deref().unwrap_or("no") {
                return Err(ActionError::retry(format!(
                    "Redis does not run at {}: with another kind of persistence it would start from older data; start it, \
                     then undo",
                    with.target.address
                )));
            }
            blocking(move || file.restore()).await?;
            return Ok(Done::default());
        };
        with.reads_the_file(&client).await?;
        let write = || async { blocking(move || file.restore().map(drop)).await };
        apply(ctx, &client, &former.at_work, with.settle_ms, write).await?;
        Ok(Done::default())
    }
}

fn shown(value: Option<&String>) -> &str {
    match value.map(String::as_str) {
        None => "(not set)",
        Some("") => "(none)",
        Some(value) => value,
    }
}

impl ConfigureParams {
    async fn client(&self, ctx: &Context) -> Result<Option<Client>, ActionError> {
        Client::connect(ctx, &self.target, self.timeout_ms).await
    }

    async fn running(&self, ctx: &Context) -> Result<Client, ActionError> {
        let Some(client) = self.client(ctx).await? else {
            return Err(ActionError::retry(format!("Redis does not run at {}; start it", self.target.address)));
        };
        self.reads_the_file(&client).await?;
        Ok(client)
    }

    async fn reads_the_file(&self, client: &Client) -> Result<(), ActionError> {
        let reads = client.info("server").await?.remove("config_file").unwrap_or_default();
        let wanted = self.config.clone();
        let (read, file) = (PathBuf::from(&reads), self.config.display());
        let same =
            blocking(move || Ok(read == wanted || read.canonicalize().ok() == wanted.canonicalize().ok())).await?;
        if reads.is_empty() {
            return Err(ActionError::needs_person(
                "Redis was started without a configuration file, so that no setting would survive its restart; start it \
                 with one",
            ));
        }
        if same {
            return Ok(());
        }
        Err(ActionError::permanent(format!("the Redis at {} reads {reads}, not {file}", self.target.address)))
    }

    async fn file(&self) -> Result<String, ActionError> {
        let path = self.config.clone();
        let there = blocking(move || files::read(&path)).await?;
        let there = there.ok_or_else(|| ActionError::permanent(format!("there is no {}", self.config.display())))?;
        String::from_utf8(there)
            .map_err(|_| ActionError::permanent(format!("{} is not UTF-8 text", self.config.display())))
    }

    fn lines_that_differ(&self, there: &str) -> Vec<String> {
        let conf = Conf::parse(there);
        let wanted = self.wanted().into_iter().map(|(name, value)| (in_file(&conf, &name), name, value));
        wanted
            .filter(|(there, _, value)| there.as_ref() != Some(value))
            .map(|(there, name, value)| {
                format!("{name} in the file: {} -> {}", shown(there.as_ref()), shown(Some(&value)))
            })
            .collect()
    }

    fn done(&self, now: &Values) -> Done {
        let value = |name: &str| now.get(name).cloned().unwrap_or_default();
        let output = ConfigureOutput {
            config: self.config.clone(),
            append_only: value("appendonly") == "yes",
            append_fsync: value("appendfsync"),
            save: value("save"),
            max_memory_bytes: value("maxmemory").parse().unwrap_or(0),
            max_memory_policy: value("maxmemory-policy"),
        };
        Done { output: params::output(&output), observations: Vec::new() }
    }
}
