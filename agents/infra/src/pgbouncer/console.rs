//! PgBouncer's admin console.

use std::collections::BTreeMap;

use muster_agent::{ActionError, Context};
use tokio_postgres::SimpleQueryRow;

use crate::postgres::{Client, Target, refused_connection, refused_credentials, said};
use muster_kit::bound::within;

/// A connection to the console.
pub(super) struct Console<'a> {
    client: Client,
    ctx: &'a Context,
    timeout_ms: u64,
}

/// A setting at work.
pub(super) struct Setting {
    pub(super) value: String,
    pub(super) default: String,
    /// A RELOAD changes it; otherwise only a restart does.
    pub(super) changeable: bool,
}

/// A database that clients may ask for.
#[derive(Clone, Debug)]
pub(super) struct Offered {
    pub(super) host: String,
    pub(super) port: String,
    pub(super) dbname: String,
    pub(super) pool_size: u64,
    pub(super) reserve: u64,
}

impl<'a> Console<'a> {
    /// Connects; `Ok(None)` when nothing listens there.
    pub(super) async fn connect(
        ctx: &'a Context,
        admin: &Target,
        timeout_ms: u64,
    ) -> Result<Option<Self>, ActionError> {
        match within(ctx, timeout_ms, "PgBouncer's console", admin.connect()).await? {
            Ok(client) => Ok(Some(Self { client, ctx, timeout_ms })),
            Err(e) if refused_connection(&e) => Ok(None),
            Err(e) if refused_credentials(&e) => Err(ActionError::needs_person(format!(
                "PgBouncer's console refuses this user or password: {}; mend the secret or its auth_file",
                said(&e)
            ))),
            Err(e) => Err(ActionError::retry(format!("PgBouncer's console can't be reached: {}", said(&e)))),
        }
    }

    /// Reads the configuration file again.
    pub(super) async fn reload(&self) -> Result<(), ActionError> {
        self.rows("RELOAD").await.map(drop)
    }

    /// The settings at work.
    pub(super) async fn settings(&self) -> Result<BTreeMap<String, Setting>, ActionError> {
        let rows = self.rows("SHOW CONFIG").await?;
        let setting = |row: &SimpleQueryRow| {
            let setting = Setting {
                value: text(row, "value"),
                default: text(row, "default"),
                changeable: text(row, "changeable") == "yes",
            };
            (text(row, "key"), setting)
        };
        Ok(rows.iter().map(setting).collect())
    }

    /// The databases at work.
    pub(super) async fn databases(&self) -> Result<BTreeMap<String, Offered>, ActionError> {
        let rows = self.rows("SHOW DATABASES").await?;
        let offered = |row: &SimpleQueryRow| {
            let offered = Offered {
                host: text(row, "host"),
                port: text(row, "port"),
                dbname: text(row, "database"),
                pool_size: text(row, "pool_size").parse().unwrap_or(0),
                reserve: text(row, "reserve_pool").parse().unwrap_or(0),
            };
            (text(row, "name"), offered)
        };
        Ok(rows.iter().map(offered).collect())
    }

    /// How many connections to servers a database's pools hold, in whatever state.
    pub(super) async fn server_connections(&self, database: &str) -> Result<u64, ActionError> {
        let rows = self.rows("SHOW POOLS").await?;
        let of_pool = |row: &SimpleQueryRow| {
            let states = ["sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login"];
            states.iter().map(|state| text(row, state).parse::<u64>().unwrap_or(0)).sum::<u64>()
        };
        Ok(rows.iter().filter(|row| text(row, "database") == database).map(of_pool).sum())
    }

    async fn rows(&self, command: &str) -> Result<Vec<SimpleQueryRow>, ActionError> {
        let what = format!("PgBouncer's console ({command})");
        let answer = within(self.ctx, self.timeout_ms, &what, self.client.rows(command)).await?;
        answer.map_err(|e| ActionError::retry(format!("{what} fails: {}", said(&e))))
    }
}

fn text(row: &SimpleQueryRow, column: &str) -> String {
    row.try_get(column).ok().flatten().unwrap_or_default().to_owned()
}
