//! Connections to PostgreSQL, PgBouncer and its console.

use std::{path::Path, str::FromStr, time::Duration};

use muster_agent::{ActionError, Context};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_postgres::{Config, NoTls, SimpleQueryMessage, SimpleQueryRow, error::SqlState};

use muster_kit::secret::Password;

/// Where a database is and who asks. Connections are made without TLS.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dsn {
    /// `postgres://user@host:port/database` or `host=… port=… user=… dbname=…`; a password in it is refused.
    pub dsn: String,
    /// The password.
    #[serde(default)]
    pub password: Password,
}

/// A [`Dsn`] ready to connect to.
#[derive(Clone)]
pub(crate) struct Target(Config);

impl Dsn {
    /// Reads it and gets the password.
    pub(crate) fn target(&self, ctx: &Context, timeout_ms: u64) -> Result<Target, ActionError> {
        // The parser's error is not shown: it may quote a password.
        let mut config = Config::from_str(&self.dsn).map_err(|_| {
            ActionError::permanent("the dsn is not like postgres://user@host:port/database or host=… user=… dbname=…")
        })?;
        if config.get_password().is_some() {
            return Err(ActionError::permanent(
                "the dsn holds a password, which would be journalled; name a secret or a file in `password`",
            ));
        }
        if config.get_user().is_none() || config.get_hosts().is_empty() {
            return Err(ActionError::permanent("the dsn names no user or no host"));
        }
        config.application_name("muster").connect_timeout(Duration::from_millis(timeout_ms));
        if let Some(password) = self.password.get(ctx)? {
            config.password(password);
        }
        Ok(Target(config))
    }
}

impl Target {
    /// The database it is for.
    pub(crate) fn database(&self) -> &str {
        self.0.get_dbname().or_else(|| self.0.get_user()).unwrap_or_default()
    }

    /// The user that asks.
    pub(crate) fn user(&self) -> &str {
        self.0.get_user().unwrap_or_default()
    }

    /// A server on this host that listens on a socket in `folder`, and trusts whoever reaches it.
    pub(crate) fn local(folder: &Path, port: u16, user: &str, database: &str) -> Self {
        let mut config = Config::new();
        config.host_path(folder).port(port).user(user).dbname(database).application_name("muster");
        Self(config)
    }

    /// A connection. It is closed when the client is dropped.
    pub(crate) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.0.connect(NoTls).await?;
        let pump = tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "connection ended");
            }
        });
        Ok(Client { client, pump })
    }
}

/// A connection that ends with this value.
pub(crate) struct Client {
    client: tokio_postgres::Client,
    pump: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Client {
    /// Rows of a query, by the simple protocol: PgBouncer's console knows no other, and nothing is prepared that another
    /// client of a pool would meet.
    pub(crate) async fn rows(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
        let answer = self.client.simple_query(sql).await?;
        Ok(answer
            .into_iter()
            .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
            .collect())
    }
}

/// Whether the server refused user or password: no other try will help.
pub(crate) fn refused_credentials(e: &tokio_postgres::Error) -> bool {
    let Some(said) = e.as_db_error() else { return false };
    let code = said.code();
    // PgBouncer says "protocol violation" for everything that it refuses.
    let by_pgbouncer = ["password authentication failed", "no such user", "not allowed"];
    *code == SqlState::INVALID_PASSWORD
        || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
        || *code == SqlState::PROTOCOL_VIOLATION && by_pgbouncer.iter().any(|text| said.message().contains(text))
}

/// Whether nothing listens there.
pub(crate) fn refused_connection(e: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(e).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// An error in the server's words.
pub(crate) fn said(e: &tokio_postgres::Error) -> String {
    if let Some(db) = e.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    match std::error::Error::source(e) {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}
