//! The listeners: gRPC with health and reflection, and beside it HTTP for Prometheus and for probes.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use muster_proto::v1::{
    agent_service_server::AgentServiceServer, coordinator_service_server::CoordinatorServiceServer,
    milestone_service_server::MilestoneServiceServer, playbook_service_server::PlaybookServiceServer,
    run_service_server::RunServiceServer, token_service_server::TokenServiceServer,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    api::{
        agents::Agents,
        auth::Authority,
        connections::limited,
        coordinator::CoordinatorApi,
        door::{Door, DoorBuilder, Gate, Limits},
        get_run::GetRun,
        milestones::Milestones,
        playbooks::Playbooks,
        runs::Runs,
        token::Tokens,
        tokens::TokensApi,
    },
    control::Control,
};

const KEEPALIVE: Duration = Duration::from_secs(30);
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

/// What is listened on, and how.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where gRPC is spoken; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate and key, PEM. None: clear text.
    pub tls: Option<TlsFiles>,
    /// Clear text on an address that others can reach. Refused unless set.
    pub allow_clear_text: bool,
    /// Everybody is an admin; no tokens.
    pub insecure: bool,
    /// Where `/metrics` and `/healthz` are; none: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// How much may be under way.
    pub limits: Limits,
    /// How long calls under way may take when the server ends.
    pub drain: Duration,
}

impl ServerConfig {
    /// Tokens, clear text on loopback, no metrics, the usual limits.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: None,
            allow_clear_text: false,
            insecure: false,
            metrics_listen: None,
            limits: Limits::default(),
            drain: Duration::from_secs(10),
        }
    }
}

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, PEM, the server's own certificate first.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Tokens would travel in clear text where others can read them.
    #[error(
        "{0} can be reached from elsewhere, and tokens would travel in clear text: configure TLS, listen on 127.0.0.1, \
         or allow clear text explicitly"
    )]
    ClearText(SocketAddr),
    /// The address can't be listened on.
    #[error("can't listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificate or key can't be read.
    #[error("can't read {path}")]
    TlsFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificate and key are no good.
    #[error("certificate {cert} and key {key} can't be used")]
    Tls {
        /// The chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The descriptor set is damaged.
    #[error("reflection can't be set up")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The server broke off.
    #[error("the API server broke off")]
    Transport(#[source] tonic::transport::Error),
    /// The listener for metrics broke off.
    #[error("the listener for metrics broke off")]
    Metrics(#[source] io::Error),
}

/// Bound, and not serving yet. Callers that connect wait.
#[derive(Debug)]
pub struct Listening {
    config: ServerConfig,
    api: TcpListener,
    api_address: SocketAddr,
    tls: Option<ServerTlsConfig>,
    metrics: Option<(TcpListener, SocketAddr)>,
}

/// Take the addresses and read the certificate, so that what is wrong with them is known before anything starts.
pub async fn listen(config: ServerConfig) -> Result<Listening, ServeError> {
    if config.tls.is_none() && !config.listen.ip().is_loopback() && !config.allow_clear_text {
        return Err(ServeError::ClearText(config.listen));
    }
    let tls = config.tls.as_ref().map(read_tls).transpose()?;
    let (api, api_address) = bind(config.listen).await?;
    let metrics = match config.metrics_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    Ok(Listening { config, api, api_address, tls, metrics })
}

/// [`listen`] and [`Listening::serve`] in one.
pub async fn serve(
    config: ServerConfig,
    control: Arc<dyn Control>,
    tokens: Arc<Tokens>,
    metrics: Option<PrometheusHandle>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    listen(config).await?.serve(control, tokens, metrics, shutdown).await
}

impl Listening {
    /// Where gRPC is spoken.
    pub fn address(&self) -> SocketAddr {
        self.api_address
    }

    /// Where `/metrics` and `/healthz` are.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(_, address)| *address)
    }

    /// Serve until `shutdown`: then nothing new is taken, watches and waits end with `SHUTTING_DOWN`, and calls under way
    /// have `drain` to finish.
    pub async fn serve(
        self,
        control: Arc<dyn Control>,
        tokens: Arc<Tokens>,
        metrics: Option<PrometheusHandle>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let (health, health_server) = tonic_health::server::health_reporter();
        let gate = Gate::new(&self.config.limits, shutdown.clone());
        let authority = if self.config.insecure {
            tracing::warn!(address = %self.api_address, "everybody who reaches this address is an admin");
            Authority::Nobody
        } else {
            Authority::Tokens(Arc::clone(&tokens))
        };
        let door = services(control, tokens, &gate, &self.config.limits)?
            .add(HEALTH, health_server)
            .build(authority, &self.config.limits);
        for name in served() {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        let upkeep = upkeep(metrics.clone(), shutdown.clone());
        let side = side_listener(self.metrics, metrics, shutdown.clone());
        let api = serve_api(self.api, self.tls, &self.config, door, health, shutdown);
        tokio::try_join!(api, side, async {
            upkeep.await;
            Ok(())
        })?;
        Ok(())
    }
}

const GET_RUN: &str = "/muster.v1.RunService/GetRun";
const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION_V1: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_V1ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// What health knows: every service of ours, and the empty name for the whole.
fn served() -> [&'static str; 7] {
    [
        "",
        PlaybookServiceServer::<Playbooks>::NAME,
        RunServiceServer::<Runs>::NAME,
        AgentServiceServer::<Agents>::NAME,
        MilestoneServiceServer::<Milestones>::NAME,
        TokenServiceServer::<TokensApi>::NAME,
        CoordinatorServiceServer::<CoordinatorApi>::NAME,
    ]
}

fn services(
    control: Arc<dyn Control>,
    tokens: Arc<Tokens>,
    gate: &Gate,
    limits: &Limits,
) -> Result<DoorBuilder, ServeError> {
    let bytes = limits.message_bytes;
    let get_run = GetRun::new(Arc::clone(&control));
    let playbooks = PlaybookServiceServer::new(Playbooks::new(Arc::clone(&control))).max_decoding_message_size(bytes);
    let runs = RunServiceServer::new(Runs::new(Arc::clone(&control), gate.clone())).max_decoding_message_size(bytes);
    let agents = AgentServiceServer::new(Agents::new(Arc::clone(&control))).max_decoding_message_size(bytes);
    let coordinator =
        CoordinatorServiceServer::new(CoordinatorApi::new(Arc::clone(&control))).max_decoding_message_size(bytes);
    let milestones =
        MilestoneServiceServer::new(Milestones::new(control, gate.clone())).max_decoding_message_size(bytes);
    let tokens = TokenServiceServer::new(TokensApi::new(tokens)).max_decoding_message_size(bytes);
    let v1 = reflection().build_v1().map_err(ServeError::Reflection)?;
    let v1alpha = reflection().build_v1alpha().map_err(ServeError::Reflection)?;
    Ok(DoorBuilder::new()
        .add(PlaybookServiceServer::<Playbooks>::NAME, playbooks)
        .add(RunServiceServer::<Runs>::NAME, runs)
        .instead(GET_RUN, move |request| get_run.clone().answer(request, bytes))
        .add(AgentServiceServer::<Agents>::NAME, agents)
        .add(MilestoneServiceServer::<Milestones>::NAME, milestones)
        .add(TokenServiceServer::<TokensApi>::NAME, tokens)
        .add(CoordinatorServiceServer::<CoordinatorApi>::NAME, coordinator)
        .add(REFLECTION_V1, v1)
        .add(REFLECTION_V1ALPHA, v1alpha))
}

/// Ours, health, reflection itself in both versions, and the details of errors, so that a client without files can print them.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(muster_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .include_reflection_service(false)
}

async fn serve_api(
    listener: TcpListener,
    tls: Option<ServerTlsConfig>,
    config: &ServerConfig,
    door: Door,
    health: HealthReporter,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let mut server = Server::builder()
        .max_concurrent_streams(config.limits.streams_per_connection)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_max_header_list_size(16 * 1024);
    if let (Some(tls), Some(files)) = (tls, &config.tls) {
        server = server.tls_config(tls).map_err(|source| bad_tls(files, source))?;
    }
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE));
    let ending = shutdown.clone();
    let signal = async move {
        ending.cancelled().await;
        for name in served() {
            health.set_service_status(name, ServingStatus::NotServing).await;
        }
    };
    let incoming = limited(incoming, config.limits.connections);
    let serving = server.serve_with_incoming_shutdown(door, incoming, signal);
    let too_long = async {
        shutdown.cancelled().await;
        tokio::time::sleep(config.drain).await;
    };
    tokio::select! {
        result = serving => result.map_err(ServeError::Transport),
        () = too_long => {
            tracing::warn!(drain_ms = config.drain.as_millis(), "connections were still open at the end; they are cut");
            Ok(())
        }
    }
}

/// Histograms keep every sample until somebody gathers them: without this, a coordinator that nobody scrapes would grow.
async fn upkeep(metrics: Option<PrometheusHandle>, shutdown: CancellationToken) {
    let Some(handle) = metrics else { return };
    let gather = async {
        let mut often = tokio::time::interval(METRICS_UPKEEP);
        loop {
            often.tick().await;
            handle.run_upkeep();
        }
    };
    tokio::select! {
        () = gather => {}
        () = shutdown.cancelled() => {}
    }
}

/// `/metrics` and `/healthz`.
async fn side_listener(
    listener: Option<(TcpListener, SocketAddr)>,
    metrics: Option<PrometheusHandle>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let Some((listener, _)) = listener else { return Ok(()) };
    let mut router = Router::new().route("/healthz", get(|| async { "ok\n" }));
    if let Some(handle) = metrics {
        let render = move || {
            let handle = handle.clone();
            async move {
                handle.run_upkeep();
                handle.render()
            }
        };
        router = router.route("/metrics", get(render));
    }
    let ended = shutdown.clone();
    let served = axum::serve(listener, router).with_graceful_shutdown(async move { ended.cancelled().await });
    tokio::select! {
        result = served => result.map_err(ServeError::Metrics),
        // A scraper that keeps its connection open does not keep the process.
        () = async { shutdown.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => Ok(()),
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn read_tls(files: &TlsFiles) -> Result<ServerTlsConfig, ServeError> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|source| ServeError::TlsFile { path: path.clone(), source });
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    let tls = ServerTlsConfig::new().identity(identity).timeout(TLS_HANDSHAKE);
    Server::builder().tls_config(tls.clone()).map_err(|source| bad_tls(files, source))?;
    Ok(tls)
}

fn bad_tls(files: &TlsFiles, source: tonic::transport::Error) -> ServeError {
    ServeError::Tls { cert: files.cert.clone(), key: files.key.clone(), source }
}
