//! The bus over a NATS server: core NATS alone (events for outsiders aside), nothing newer than nats-server 2.9.
//!
//! A lost connection is made again for ever. Meanwhile nothing new is queued: requests and publications fail at once with
//! [`BusError::Disconnected`], and their senders ask again later. What was handed over just before the loss may still be
//! delivered after it; receivers judge a message by its own stamp, never by the time of its arrival.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, RequestErrorKind, StatusCode, connection::State};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use tokio::sync::Notify;

use crate::{
    bus::{Bus, BusError, Delivery, MAX_PAYLOAD, ReplyTo, SUBSCRIPTION_CAPACITY, Subscription},
    jetstream::JetStreamEvents,
    permission, subject,
};

/// Left free below the server's limit, in bytes.
const HEADROOM: usize = 16 * 1024;
/// Messages that wait for the connection's writer before senders have to wait.
const WRITER_CAPACITY: usize = 8 * 1024;
/// A dead connection is noticed within three of these.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long anything but a request may wait for the connection.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(5);
/// How long the server may take to say that it knows a subscription.
const SUBSCRIBE_WITHIN: Duration = Duration::from_secs(2);

/// How to reach the server, and as whom.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// `nats://host:port` or `tls://host:port`, one or more.
    pub servers: Vec<String>,
    /// The connection's name, for people.
    pub name: String,
    /// First part of the subjects on which replies come.
    pub inbox_prefix: String,
    /// Who it is.
    pub login: Login,
    /// How the connection is protected.
    pub tls: TlsOptions,
    /// Wait for a server that can't be reached yet instead of failing. A server that refuses the login is still an error.
    pub wait_for_server: bool,
}

impl NatsOptions {
    /// Without a login and TLS, failing at once when the server can't be reached.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>, name: impl Into<String>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            name: name.into(),
            inbox_prefix: subject::INBOX.to_owned(),
            login: Login::Anonymous,
            tls: TlsOptions::default(),
            wait_for_server: false,
        }
    }

    /// For a coordinator: replies come where nobody can have answers of its own sent.
    pub fn for_coordinator(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { inbox_prefix: subject::COORDINATOR_INBOX.to_owned(), ..Self::new(servers, "muster") }
    }

    /// For an agent: replies come on `_INBOX_{agent}.>`, which permissions bind to its key; it waits for the server.
    pub fn for_agent(servers: impl IntoIterator<Item = impl Into<String>>, agent: &str) -> Self {
        Self { inbox_prefix: subject::agent_inbox(agent), wait_for_server: true, ..Self::new(servers, agent) }
    }
}

/// Who connects.
#[derive(Clone, Default)]
pub enum Login {
    /// Nobody.
    #[default]
    Anonymous,
    /// An NKEY, by its seed.
    NkeySeed(String),
    /// A `.creds` file: JWT and seed.
    CredentialsFile(PathBuf),
    /// Name and password.
    Password {
        /// Name.
        user: String,
        /// Password.
        password: String,
    },
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::NkeySeed(_) => "NkeySeed",
            Self::CredentialsFile(_) => "CredentialsFile",
            Self::Password { .. } => "Password",
        })
    }
}

/// How the connection is protected.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Refuse to talk without TLS.
    pub required: bool,
    /// Certificates of the authorities to trust, PEM.
    pub authorities: Option<PathBuf>,
    /// The client's certificate and key, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// Not reached.
    #[error("can't connect to NATS at {servers}")]
    Connect {
        /// Where.
        servers: String,
        /// Why.
        source: async_nats::ConnectError,
    },
    /// The server's certificate is not believed, or there is no TLS where it is wanted.
    #[error("NATS at {servers} can't be trusted")]
    Untrusted {
        /// Where.
        servers: String,
        /// Why.
        source: async_nats::ConnectError,
    },
    /// The server does not know this login.
    #[error("NATS at {servers} refuses this login")]
    Refused {
        /// Where.
        servers: String,
        /// Why.
        source: async_nats::ConnectError,
    },
    /// The server knows this login, and does not let it speak under this name.
    #[error("NATS at {servers} lets this login in, but not as {name}")]
    NotAllowed {
        /// Where.
        servers: String,
        /// Who wanted to speak.
        name: String,
    },
    /// An address that is none.
    #[error("{server:?} is not a NATS address; write nats://host:port")]
    Address {
        /// What was given.
        server: String,
        /// Why.
        source: std::io::Error,
    },
    /// No address at all.
    #[error("no NATS address is given; write nats://host:port")]
    NoAddress,
    /// The credentials file.
    #[error("can't read the NATS credentials in {path}")]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Older than 2.9.
    #[error("nats-server {version} is too old; 2.9 or newer is needed")]
    TooOld {
        /// What it says it is.
        version: String,
    },
}

/// A connection to NATS; clones share it.
#[derive(Clone)]
pub struct NatsBus {
    link: Arc<Link>,
}

struct Link {
    client: Client,
    probe_subject: String,
}

impl NatsBus {
    /// Connect, and check that the server is new enough, and lets this login use its inbox: whoever has another's key would
    /// be deaf.
    pub async fn connect(options: NatsOptions) -> Result<Self, NatsError> {
        let addresses = addresses(&options.servers)?;
        let probe_subject = permission::probe(&options.inbox_prefix);
        let refused = Arc::new(Notify::new());
        let mut pause = Duration::from_millis(250);
        let client = loop {
            match connect_options(&options, &probe_subject, &refused).await?.connect(&addresses[..]).await {
                Ok(client) => break client,
                Err(source) => {
                    let error = connect_error(shown(&options.servers), source);
                    if !options.wait_for_server || !may_pass(&error) {
                        return Err(error);
                    }
                    let why = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(servers = shown(&options.servers), why, "NATS can't be reached yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(8));
                }
            }
        };
        if !client.is_server_compatible(2, 9, 0) {
            return Err(NatsError::TooOld { version: client.server_info().version });
        }
        let link = Arc::new(Link { client, probe_subject });
        tokio::select! {
            () = refused.notified() => {
                Err(NatsError::NotAllowed { servers: shown(&options.servers), name: options.name })
            }
            () = link.wait_for_server() => Ok(Self { link }),
        }
    }

    /// How long the server takes to answer, without anybody else.
    ///
    /// # Errors
    /// It did not answer in two seconds, or is gone.
    pub async fn round_trip(&self) -> Result<Duration, BusError> {
        let begun = std::time::Instant::now();
        let subject = &self.link.probe_subject;
        match self.request(subject, Bytes::new(), SUBSCRIBE_WITHIN).await {
            Ok(_) | Err(BusError::NoResponders(_)) => Ok(begun.elapsed()),
            Err(error) => Err(error),
        }
    }

    /// Where events for outsiders go, on the same connection; a stream that is made for them keeps them for so long.
    pub fn events(&self, keep: Duration) -> JetStreamEvents {
        JetStreamEvents::new(self.link.client.clone(), keep)
    }

    /// The server's version, for people.
    pub fn server_version(&self) -> String {
        self.link.client.server_info().version
    }
}

fn addresses(servers: &[String]) -> Result<Vec<async_nats::ServerAddr>, NatsError> {
    if servers.is_empty() {
        return Err(NatsError::NoAddress);
    }
    servers
        .iter()
        .map(|server| {
            server.parse().map_err(|source| NatsError::Address { server: shown(std::slice::from_ref(server)), source })
        })
        .collect()
}

/// The servers, for people: a user and a password in a URL are nobody's business.
pub fn shown(servers: &[String]) -> String {
    let without = |server: &String| match (server.split_once("://"), server.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => server.clone(),
    };
    servers.iter().map(without).collect::<Vec<_>>().join(", ")
}

fn connect_error(servers: String, source: async_nats::ConnectError) -> NatsError {
    use async_nats::ConnectErrorKind as Kind;
    match source.kind() {
        Kind::Authentication | Kind::AuthorizationViolation => NatsError::Refused { servers, source },
        Kind::Tls => NatsError::Untrusted { servers, source },
        Kind::Io if is_of_tls(&source) => NatsError::Untrusted { servers, source },
        Kind::Io | Kind::Dns | Kind::TimedOut | Kind::ServerParse | Kind::MaxReconnects => {
            NatsError::Connect { servers, source }
        }
    }
}

/// A failed handshake comes as an I/O error; what TLS says is hidden in it.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>()?.get_ref())
        .any(|inner| inner.downcast_ref::<rustls::Error>().is_some())
}

fn may_pass(error: &NatsError) -> bool {
    use async_nats::ConnectErrorKind as Kind;
    let NatsError::Connect { source, .. } = error else { return false };
    matches!(source.kind(), Kind::Dns | Kind::TimedOut | Kind::Io)
}

async fn connect_options(
    options: &NatsOptions,
    probe_subject: &str,
    refused: &Arc<Notify>,
) -> Result<ConnectOptions, NatsError> {
    let slow = Arc::new(AtomicU64::new(0));
    let (probe, refused) = (format!("Permissions Violation for Publish to \"{probe_subject}\""), Arc::clone(refused));
    let mut connect = ConnectOptions::new()
        .name(&options.name)
        .custom_inbox_prefix(&options.inbox_prefix)
        .ping_interval(PING_EVERY)
        .client_capacity(WRITER_CAPACITY)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .request_timeout(None)
        .require_tls(options.tls.required)
        .event_callback(move |event| {
            report(&event, &slow);
            if matches!(&event, Event::ServerError(error) if error.to_string().contains(&probe)) {
                refused.notify_one();
            }
            std::future::ready(())
        });
    if let Some(path) = &options.tls.authorities {
        connect = connect.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &options.tls.client {
        connect = connect.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(match &options.login {
        Login::Anonymous => connect,
        Login::NkeySeed(seed) => connect.nkey(seed.clone()),
        Login::Password { user, password } => connect.user_and_password(user.clone(), password.clone()),
        Login::CredentialsFile(path) => connect
            .credentials_file(path)
            .await
            .map_err(|source| NatsError::Credentials { path: path.clone(), source })?,
    })
}

fn report(event: &Event, slow: &AtomicU64) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("the connection to NATS is lost; connecting again"),
        Event::LameDuckMode => tracing::warn!("the NATS server is about to shut down"),
        Event::SlowConsumer(_) => {
            let lost = slow.fetch_add(1, Ordering::Relaxed) + 1;
            if lost.is_power_of_two() {
                tracing::warn!(lost, "a subscriber is too slow; messages are lost and will be asked for again");
            }
        }
        Event::ServerError(error) => tracing::warn!(%error, "the NATS server objects"),
        Event::ClientError(error) => tracing::warn!(%error, "trouble with the connection to NATS"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "NATS connection"),
    }
}

#[async_trait]
impl Bus for NatsBus {
    async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes, BusError> {
        self.link.check(subject, &payload)?;
        let request = async_nats::Request::new().payload(payload).timeout(None);
        // Around all of it: the client's own limit does not cover the wait for its writer.
        match tokio::time::timeout(timeout, self.link.client.send_request(subject.to_owned(), request)).await {
            Ok(Ok(reply)) => Ok(reply.payload),
            Ok(Err(error)) => Err(self.link.request_error(subject, &error)),
            Err(_) => Err(BusError::Timeout(subject.to_owned())),
        }
    }

    fn send_request(&self, subject: &str, answer_to: &str, payload: Bytes) -> Result<(), BusError> {
        self.link.check(subject, &payload)?;
        let send = self.link.client.publish_with_reply(subject.to_owned(), answer_to.to_owned(), payload);
        match at_once(send) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(BusError::Disconnected(error.to_string())),
            None => Err(BusError::Disconnected("its writer is full".to_owned())),
        }
    }

    fn inbox(&self) -> String {
        self.link.client.new_inbox()
    }

    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        self.link.check(subject, &payload)?;
        match tokio::time::timeout(HAND_OVER_WITHIN, self.link.client.publish(subject.to_owned(), payload)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BusError::Disconnected(error.to_string())),
            Err(_) => Err(BusError::Disconnected("its writer is stuck".to_owned())),
        }
    }

    async fn subscribe(&self, pattern: &str) -> Result<Subscription, BusError> {
        if !subject::is_pattern(pattern) {
            return Err(BusError::BadSubject(pattern.to_owned()));
        }
        let subscriber =
            match tokio::time::timeout(HAND_OVER_WITHIN, self.link.client.subscribe(pattern.to_owned())).await {
                Ok(Ok(subscriber)) => subscriber,
                Ok(Err(error)) => return Err(BusError::Disconnected(error.to_string())),
                Err(_) => return Err(BusError::Disconnected("its writer is stuck".to_owned())),
            };
        self.link.wait_for_server().await;
        Ok(Box::pin(NatsSubscription { link: self.link.clone(), subscriber }))
    }

    fn max_payload(&self) -> usize {
        self.link.max_payload()
    }

    fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    async fn flush(&self) -> Result<(), BusError> {
        if !self.link.is_connected() {
            return Err(BusError::Disconnected("connecting again".to_owned()));
        }
        match tokio::time::timeout(HAND_OVER_WITHIN, self.link.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BusError::Disconnected(error.to_string())),
            Err(_) => Err(BusError::Disconnected("its writer is stuck".to_owned())),
        }
    }
}

impl Link {
    fn max_payload(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADROOM).min(MAX_PAYLOAD)
    }

    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn check(&self, subject: &str, payload: &Bytes) -> Result<(), BusError> {
        let limit = self.max_payload();
        if payload.len() > limit {
            return Err(BusError::TooLarge { size: payload.len(), limit });
        }
        if !subject::is_subject(subject) {
            return Err(BusError::BadSubject(subject.to_owned()));
        }
        if !self.is_connected() {
            return Err(BusError::Disconnected("connecting again".to_owned()));
        }
        Ok(())
    }

    fn request_error(&self, subject: &str, error: &async_nats::RequestError) -> BusError {
        match error.kind() {
            RequestErrorKind::NoResponders => BusError::NoResponders(subject.to_owned()),
            RequestErrorKind::TimedOut => BusError::Timeout(subject.to_owned()),
            RequestErrorKind::InvalidSubject => BusError::BadSubject(subject.to_owned()),
            RequestErrorKind::MaxPayloadExceeded => {
                BusError::TooLarge { size: self.max_payload().saturating_add(1), limit: self.max_payload() }
            }
            RequestErrorKind::Other => BusError::Disconnected(error.to_string()),
        }
    }

    /// Wait until the server has handled what was sent so far on this connection: a request that nobody can answer comes
    /// back from the server itself, after everything before it. A server that says nothing is waited for no longer.
    async fn wait_for_server(&self) {
        let request = async_nats::Request::new().timeout(Some(SUBSCRIBE_WITHIN));
        if let Err(error) = self.client.send_request(self.probe_subject.clone(), request).await
            && error.kind() != RequestErrorKind::NoResponders
        {
            tracing::debug!(%error, subject = self.probe_subject, "the server has not confirmed a subscription");
        }
    }

    /// Without waiting while the writer has room; see [`ReplyTo`].
    fn reply(link: Arc<Self>, subject: async_nats::Subject, payload: Bytes) {
        if payload.len() > link.max_payload() {
            tracing::warn!(
                size = payload.len(),
                limit = link.max_payload(),
                "an answer is over the limit and is not sent"
            );
            return;
        }
        if at_once(link.client.publish(subject.clone(), payload.clone())).is_none() {
            tokio::spawn(async move {
                let publish = link.client.publish(subject, payload);
                if !matches!(tokio::time::timeout(HAND_OVER_WITHIN, publish).await, Ok(Ok(()))) {
                    tracing::debug!("an answer was not sent; it will be asked for again");
                }
            });
        }
    }
}

/// What comes of it if that can be had without waiting. Unconstrained: a task that has used up its turn would see a writer with
/// room as full.
fn at_once<T>(send: impl Future<Output = T>) -> Option<T> {
    tokio::task::unconstrained(send).now_or_never()
}

struct NatsSubscription {
    link: Arc<Link>,
    subscriber: async_nats::Subscriber,
}

impl Stream for NatsSubscription {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let Some(message) = std::task::ready!(Pin::new(&mut self.subscriber).poll_next(cx)) else {
            return Poll::Ready(None);
        };
        let answerable = message.reply.filter(|reply| {
            let may = subject::may_answer(&message.subject, reply);
            if !may {
                tracing::debug!(asked = %message.subject, %reply, "an answer is wanted where it may not go");
            }
            may
        });
        let reply = answerable.map(|subject| {
            let link = self.link.clone();
            ReplyTo::new(move |payload| Link::reply(link, subject, payload))
        });
        let nobody = message.status == Some(StatusCode::NO_RESPONDERS);
        Poll::Ready(Some(Delivery { subject: message.subject.to_string(), payload: message.payload, reply, nobody }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_shown_who_a_url_names() {
        let servers =
            ["nats://bob:s3cret@host:4222", "tls://token@10.0.0.1:4222", "bob:s3c@ret@host:1", "nats://host:4222"];
        let said = shown(&servers.map(str::to_owned));
        assert_eq!(said, "nats://host:4222, tls://10.0.0.1:4222, host:1, nats://host:4222");
    }
}
