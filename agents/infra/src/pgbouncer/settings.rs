//! The wanted settings: the parameters, as lines of the file and as what the console shows.

use std::{collections::BTreeMap, path::PathBuf};

use muster_agent::ActionError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ini::Ini;
use crate::postgres::Dsn;
use muster_kit::params::{absolute, plain};

/// Parameters of `pgbouncer.configure`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigureParams {
    /// Absolute path of the running PgBouncer's configuration file. What is not named here stays in it.
    pub config: PathBuf,
    /// The admin console: database `pgbouncer`, a user of `admin_users`.
    pub admin: Dsn,
    /// Databases that clients may ask for, by the name they ask for.
    pub databases: BTreeMap<String, Database>,
    /// Where it listens. A change needs a restart of PgBouncer, which this action does not do.
    pub listen_addr: String,
    /// The port it listens on. A change needs a restart, too.
    pub listen_port: u16,
    /// How clients prove who they are.
    pub auth_type: AuthType,
    /// Absolute path of the file of users and passwords. It is not written here.
    pub auth_file: PathBuf,
    /// Users of the console.
    pub admin_users: Vec<String>,
    /// Users that may only look at the console.
    #[serde(default)]
    pub stats_users: Vec<String>,
    /// When a server connection goes back to the pool.
    #[serde(default)]
    pub pool_mode: PoolMode,
    /// How many clients at most.
    #[serde(default = "thousand")]
    pub max_client_conn: u32,
    /// Server connections for each pair of user and database.
    #[serde(default = "twenty")]
    #[schemars(range(min = 1))]
    pub default_pool_size: u32,
    /// More of them when clients wait.
    #[serde(default = "five")]
    pub reserve_pool_size: u32,
    /// Other settings by name, as PgBouncer spells and shows them.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Limit for each exchange with the console, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
}

/// Where a database is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Its server.
    pub host: String,
    /// The server's port.
    #[serde(default = "postgres")]
    pub port: u16,
    /// Its name there; the same name when absent.
    #[serde(default)]
    pub dbname: Option<String>,
}

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuthType {
    /// Password in clear.
    Plain,
    /// MD5, or SCRAM where the file holds such a secret.
    Md5,
    /// SCRAM-SHA-256.
    ScramSha256,
}

/// When a server connection goes back to the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// At the end of each transaction.
    #[default]
    Transaction,
    /// After each statement.
    Statement,
}

fn thousand() -> u32 {
    1_000
}

fn twenty() -> u32 {
    20
}

fn five() -> u32 {
    5
}

fn postgres() -> u16 {
    5_432
}

fn five_seconds() -> u64 {
    5_000
}

impl AuthType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Md5 => "md5",
            Self::ScramSha256 => "scram-sha-256",
        }
    }
}

impl PoolMode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        }
    }
}

impl ConfigureParams {
    /// Refuses what could break out of its line.
    pub(super) fn validate(&self) -> Result<(), ActionError> {
        absolute("config", &self.config)?;
        absolute("auth_file", &self.auth_file)?;
        plain("auth_file", &self.auth_file.to_string_lossy(), "/._-+@")?;
        plain("listen_addr", &self.listen_addr, ".:*,")?;
        for (name, database) in &self.databases {
            plain("databases", name, "_-")?;
            plain("databases.host", &database.host, ".:-_/")?;
            database.dbname.iter().try_for_each(|name| plain("databases.dbname", name, "_-"))?;
        }
        self.admin_users.iter().chain(&self.stats_users).try_for_each(|user| plain("users", user, "_-."))?;
        for (name, value) in &self.settings {
            plain("settings", name, "_")?;
            plain("settings", value, " _-.,:/*")?;
        }
        if self.default_pool_size == 0 || self.max_client_conn == 0 || self.databases.is_empty() {
            return Err(ActionError::permanent(
                "default_pool_size and max_client_conn must be at least 1, and one database must be named",
            ));
        }
        Ok(())
    }

    /// The settings of section `[pgbouncer]`, as file and console spell them.
    pub(super) fn wanted(&self) -> BTreeMap<String, String> {
        let mut wanted = self.settings.clone();
        wanted.extend(
            [
                ("listen_addr", self.listen_addr.clone()),
                ("listen_port", self.listen_port.to_string()),
                ("auth_type", self.auth_type.as_str().into()),
                ("auth_file", self.auth_file.display().to_string()),
                ("admin_users", self.admin_users.join(", ")),
                ("stats_users", self.stats_users.join(", ")),
                ("pool_mode", self.pool_mode.as_str().into()),
                ("max_client_conn", self.max_client_conn.to_string()),
                ("default_pool_size", self.default_pool_size.to_string()),
                ("reserve_pool_size", self.reserve_pool_size.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        wanted
    }

    /// The file with the wanted settings in it.
    pub(super) fn merged(&self, there: &str) -> String {
        let mut ini = Ini::parse(there);
        for (name, database) in &self.databases {
            let dbname = database.dbname.as_deref().unwrap_or(name);
            let value = format!("host={} port={} dbname={dbname}", database.host, database.port);
            ini.set("databases", name, &value);
        }
        for (name, value) in self.wanted() {
            ini.set("pgbouncer", &name, &value);
        }
        ini.text()
    }
}
