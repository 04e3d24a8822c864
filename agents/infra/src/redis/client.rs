//! One connection to a Redis server: every exchange bounded, every error with what to do about it.

use std::{collections::BTreeMap, time::Duration};

use ::redis::{
    AsyncConnectionConfig, Client as Opener, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, aio::MultiplexedConnection,
};
use muster_agent::{ActionError, Context};
use muster_kit::{bound::within, secret::Password};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a Redis server is and who asks. Connections are made without TLS.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// `host:port`.
    pub address: String,
    /// The user; the server's `default` when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// The password.
    #[serde(default)]
    pub password: Password,
}

/// A connection that ends with this value.
#[derive(Clone)]
pub(super) struct Client {
    connection: MultiplexedConnection,
    ctx: Context,
    timeout_ms: u64,
}

/// Why there is no connection, or no answer.
pub(super) enum Failure {
    /// Nothing listens there.
    Down,
    /// User, password or rights: no other try will help.
    Refused(String),
    /// Something else, which may pass.
    Other(String),
}

impl Client {
    /// Connects and shows who asks.
    pub(super) async fn open(
        ctx: &Context,
        to: &Address,
        timeout_ms: u64,
    ) -> Result<Result<Self, Failure>, ActionError> {
        let server = to.opener(ctx)?;
        let limit = Some(Duration::from_millis(timeout_ms));
        let config = AsyncConnectionConfig::new().set_connection_timeout(limit).set_response_timeout(limit);
        let asked = server.get_multiplexed_async_connection_with_config(&config);
        let opened = within(ctx, timeout_ms, &format!("Redis at {}", to.address), asked).await;
        Ok(match opened {
            Ok(Ok(connection)) => Ok(Self { connection, ctx: ctx.clone(), timeout_ms }),
            Ok(Err(e)) => Err(Failure::of(&e)),
            Err(e) => Err(Failure::Other(e.to_string())),
        })
    }

    /// Connects; `Ok(None)` when nothing listens there.
    ///
    /// # Errors
    /// [`ActionError::NeedsPerson`] when user or password are refused, [`ActionError::Retry`] for all that may pass.
    pub(super) async fn connect(ctx: &Context, to: &Address, timeout_ms: u64) -> Result<Option<Self>, ActionError> {
        let client = match Self::open(ctx, to, timeout_ms).await? {
            Ok(client) => client,
            Err(Failure::Down) => return Ok(None),
            Err(failure) => return Err(failure.error(&to.address)),
        };
        // A server that wants a password says so only to the first command.
        match client.ask::<String>(&::redis::cmd("PING")).await {
            Ok(_) => Ok(Some(client)),
            Err(failure) => Err(failure.error(&to.address)),
        }
    }

    /// The answer to one command.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let mut connection = self.connection.clone();
        match within(&self.ctx, self.timeout_ms, "Redis", command.query_async(&mut connection)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(Failure::of(&e)),
            Err(e) => Err(Failure::Other(e.to_string())),
        }
    }

    /// The answer to a command in words.
    pub(super) async fn tell<T: FromRedisValue>(&self, words: &[&str]) -> Result<T, ActionError> {
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]);
        self.ask(&command).await.map_err(|failure| failure.error(&words[..words.len().min(2)].join(" ")))
    }

    /// `INFO` of a section, by name.
    pub(super) async fn info(&self, section: &str) -> Result<BTreeMap<String, String>, ActionError> {
        let text: String = self.tell(&["INFO", section]).await?;
        let entries = text.lines().filter_map(|line| line.split_once(':'));
        Ok(entries.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }
}

impl Address {
    fn opener(&self, ctx: &Context) -> Result<Opener, ActionError> {
        let wrong = || ActionError::permanent(format!("address: {:?} is not like host:port", self.address));
        let (host, port) = self.address.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port: u16 = port.parse().map_err(|_| wrong())?;
        if host.is_empty() {
            return Err(wrong());
        }
        let mut who = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(user) = &self.user {
            who = who.set_username(user);
        }
        if let Some(password) = self.password.get(ctx)? {
            who = who.set_password(password);
        }
        let opener =
            (host, port).into_connection_info().map(|info| info.set_redis_settings(who)).and_then(Opener::open);
        opener.map_err(|_| wrong())
    }
}

impl Failure {
    fn of(e: &RedisError) -> Self {
        if e.is_connection_refusal() {
            return Self::Down;
        }
        let refused =
            e.kind() == ErrorKind::AuthenticationFailed || matches!(e.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
        if refused { Self::Refused(e.to_string()) } else { Self::Other(e.to_string()) }
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Down => "connection refused".into(),
            Self::Refused(text) | Self::Other(text) => text.clone(),
        }
    }

    /// What an action does about it. `what` is an address or a command.
    pub(super) fn error(&self, what: &str) -> ActionError {
        match self {
            Self::Down => ActionError::retry(format!("Redis does not run: nothing listens at {what}; start it")),
            Self::Refused(text) => ActionError::needs_person(format!(
                "Redis refuses this user or password ({what}): {text}; mend the secret or the user's rights"
            )),
            Self::Other(text) => ActionError::retry(format!("Redis fails ({what}): {text}")),
        }
    }
}
