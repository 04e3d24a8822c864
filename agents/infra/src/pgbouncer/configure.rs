//! The action: write the file, RELOAD, and see that it is at work.

use std::path::PathBuf;

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    console::Console,
    ini::Ini,
    settings::{ConfigureParams, PoolMode},
};
use muster_kit::{
    bound::blocking,
    files::{self, Before},
    params,
};

/// Writes pooling settings into PgBouncer's file, lets it reload, and verifies at its console that they are at work.
///
/// Settings and databases that are not named stay. Clients keep their connections. What only a restart changes (the
/// address) is written, and then a question to a person. `undo` puts the file back and reloads.
pub struct Configure;

/// Output of `pgbouncer.configure`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConfigureOutput {
    /// The file.
    pub config: PathBuf,
    /// Databases that clients may ask for.
    pub databases: Vec<String>,
    /// When a server connection goes back to the pool.
    pub pool_mode: PoolMode,
    /// Server connections for each pair of user and database.
    pub default_pool_size: u32,
    /// More of them when clients wait.
    pub reserve_pool_size: u32,
    /// How many clients at most.
    pub max_client_conn: u32,
}

const NEW_FILE_MODE: u32 = 0o640;

#[async_trait]
impl Action for Configure {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<ConfigureParams, ConfigureOutput>(
            "pgbouncer.configure",
            "Set up PgBouncer's databases and pool, reload it, and verify the settings at work.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        let with = ConfigureParams::read(with)?;
        let there = with.file().await?;
        let mut different = with.lines_that_differ(&there);
        match with.console(ctx).await? {
            None => different.push("PgBouncer does not run".into()),
            Some(console) => {
                different.extend(with.not_at_work(&console).await?.into_iter().map(|(difference, _)| difference));
            }
        }
        Ok(if different.is_empty() {
            Checked::Satisfied(with.done())
        } else {
            different.dedup();
            Checked::Different { diff: different.join("\n") }
        })
    }

    async fn prepare(&self, _ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        let with = ConfigureParams::read(with)?;
        blocking(move || Ok(params::output(&Before::of(&with.config)?))).await
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with = ConfigureParams::read(with)?;
        // Before the file is touched: without a console the settings could not be put to work.
        let Some(console) = with.console(ctx).await? else {
            return Err(ActionError::retry(format!("PgBouncer does not run at {}; start it", with.admin.dsn)));
        };
        let merged = with.merged(&with.file().await?);
        let path = with.config.clone();
        blocking(move || {
            let before = Before::of(&path)?;
            before.keep()?;
            let mode = if path.exists() { files::mode(&path)? } else { NEW_FILE_MODE };
            files::write(&path, merged.as_bytes(), mode)
        })
        .await?;
        ctx.progress("reloading PgBouncer", None);
        console.reload().await?;
        with.verify(&console).await?;
        Ok(with.done())
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        let with = ConfigureParams::read(with)?;
        let before: Before = params::read(prepared)?;
        let there = blocking(move || {
            before.restore()?;
            before.content()
        })
        .await?;
        // Not running: it reads the file when it starts.
        if let Some(console) = with.console(ctx).await? {
            console.reload().await?;
            with.former_at_work(&console, &String::from_utf8_lossy(&there.unwrap_or_default())).await?;
        }
        Ok(Done::default())
    }
}

impl ConfigureParams {
    fn read(with: &Value) -> Result<Self, ActionError> {
        let with: Self = params::read(with)?;
        with.validate()?;
        Ok(with)
    }

    async fn console<'a>(&self, ctx: &'a Context) -> Result<Option<Console<'a>>, ActionError> {
        Console::connect(ctx, &self.admin.target(ctx, self.timeout_ms)?, self.timeout_ms).await
    }

    async fn file(&self) -> Result<String, ActionError> {
        let path = self.config.clone();
        let there = blocking(move || files::read(&path)).await?.unwrap_or_default();
        String::from_utf8(there)
            .map_err(|_| ActionError::permanent(format!("{} is not UTF-8 text", self.config.display())))
    }

    fn done(&self) -> Done {
        let output = ConfigureOutput {
            config: self.config.clone(),
            databases: self.databases.keys().cloned().collect(),
            pool_mode: self.pool_mode,
            default_pool_size: self.default_pool_size,
            reserve_pool_size: self.reserve_pool_size,
            max_client_conn: self.max_client_conn,
        };
        Done { output: params::output(&output), observations: Vec::new() }
    }

    /// Wanted settings that the file does not hold. Values of databases are not shown: they may hold a password.
    fn lines_that_differ(&self, there: &str) -> Vec<String> {
        let (ini, merged) = (Ini::parse(there), Ini::parse(&self.merged(there)));
        let mut different = Vec::new();
        for name in self.databases.keys().filter(|n| ini.get("databases", n) != merged.get("databases", n)) {
            different.push(format!("database {name}: its entry in the file is set"));
        }
        for (name, wanted) in self.wanted() {
            let there = ini.get("pgbouncer", &name);
            if there != Some(wanted.as_str()) {
                different.push(format!("{name}: {} -> {wanted}", there.unwrap_or("(not set)")));
            }
        }
        different
    }

    /// Wanted settings and databases that the console does not show, each with whether a reload can change it.
    async fn not_at_work(&self, console: &Console<'_>) -> Result<Vec<(String, bool)>, ActionError> {
        let (settings, databases) = (console.settings().await?, console.databases().await?);
        let mut different = Vec::new();
        for (name, wanted) in self.wanted() {
            match settings.get(&name) {
                None => return Err(ActionError::permanent(format!("PgBouncer knows no setting {name}"))),
                Some(at_work) if at_work.value != wanted => {
                    different.push((format!("{name}: {} -> {wanted}", at_work.value), at_work.changeable));
                }
                Some(_) => {}
            }
        }
        for (name, wanted) in &self.databases {
            let dbname = wanted.dbname.as_ref().unwrap_or(name);
            let right = databases.get(name).is_some_and(|at_work| {
                at_work.host == wanted.host && at_work.port == wanted.port.to_string() && at_work.dbname == *dbname
            });
            if !right {
                different.push((format!("database {name}: {}:{}/{dbname}", wanted.host, wanted.port), true));
            }
        }
        Ok(different)
    }

    async fn verify(&self, console: &Console<'_>) -> Result<(), ActionError> {
        let different = self.not_at_work(console).await?;
        if different.is_empty() {
            return Ok(());
        }
        let restart: Vec<_> = different.iter().filter(|(_, changeable)| !changeable).map(|(d, _)| d.as_str()).collect();
        if restart.is_empty() {
            let all: Vec<_> = different.iter().map(|(d, _)| d.as_str()).collect();
            return Err(ActionError::permanent(format!(
                "PgBouncer reloaded, but does not work with the new settings ({}); see its log",
                all.join("; ")
            )));
        }
        Err(ActionError::needs_person(format!(
            "{} is written, but needs a restart of PgBouncer for: {}",
            self.config.display(),
            restart.join("; ")
        )))
    }

    /// After an undo: the settings that this action sets are again what the former file says, or the default.
    async fn former_at_work(&self, console: &Console<'_>, former: &str) -> Result<(), ActionError> {
        let (ini, settings) = (Ini::parse(former), console.settings().await?);
        for name in self.wanted().keys() {
            let Some(at_work) = settings.get(name).filter(|s| s.changeable) else { continue };
            let former = ini.get("pgbouncer", name).unwrap_or(&at_work.default);
            if at_work.value != former {
                return Err(ActionError::retry(format!(
                    "the former file is back, but PgBouncer works with {name} = {} instead of {former}; see its log",
                    at_work.value
                )));
            }
        }
        Ok(())
    }
}
