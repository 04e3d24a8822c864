//! A small service to roll out: it says its version and its health, and has a switch for faults.
//!
//! `GET /`, `GET /version`, `GET /health`; `GET /quotes/{id}`, kept in a Redis where it was given one; `PUT /admin/fault/ok`, `…/slow` (every answer a second later), `…/failing`
//! (every answer 503).

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
    routing::{get, put},
};
use clap::Parser;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, RedisConnectionInfo, aio::MultiplexedConnection};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(version, about = "A small service to roll out")]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The version it says it is.
    #[arg(long, default_value = "1.0.0")]
    release: String,
    /// The Redis that keeps quotes, `host:port`.
    #[arg(long)]
    cache: Option<String>,
    /// A file with its password.
    #[arg(long, requires = "cache")]
    cache_password_file: Option<PathBuf>,
}

const OK: u8 = 0;
const SLOW: u8 = 1;
const FAILING: u8 = 2;

struct Service {
    release: String,
    fault: AtomicU8,
    cache: Option<Cache>,
}

/// A Redis, and the connection to it while there is one. Without it the service answers, only slower.
struct Cache {
    client: Client,
    connection: tokio::sync::Mutex<Option<MultiplexedConnection>>,
}

const CACHE_TIMEOUT: Duration = Duration::from_millis(500);

impl Cache {
    fn new(address: &str, password_file: Option<PathBuf>) -> Result<Self> {
        let password = password_file.map(fs::read_to_string).transpose().context("the password can't be read")?;
        let mut who = RedisConnectionInfo::default();
        if let Some(password) = password {
            who = who.set_password(password.trim());
        }
        let client = Client::open(format!("redis://{address}").into_connection_info()?.set_redis_settings(who))?;
        Ok(Self { client, connection: tokio::sync::Mutex::new(None) })
    }

    async fn connection(&self) -> redis::RedisResult<MultiplexedConnection> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CACHE_TIMEOUT))
            .set_response_timeout(Some(CACHE_TIMEOUT));
        let made = self.client.get_multiplexed_async_connection_with_config(&limits).await?;
        Ok(connection.insert(made).clone())
    }

    /// What the cache has; what it lacks it gets from `make`.
    async fn get(&self, key: &str, make: impl Fn() -> String) -> redis::RedisResult<String> {
        let mut connection = self.connection().await?;
        let found: redis::RedisResult<Option<String>> = redis::cmd("GET").arg(key).query_async(&mut connection).await;
        match found {
            Ok(Some(kept)) => return Ok(kept),
            Ok(None) => {}
            Err(e) => {
                *self.connection.lock().await = None;
                return Err(e);
            }
        }
        let value = make();
        // A cache that is full refuses: the answer is no worse for it.
        let _: redis::RedisResult<()> = redis::cmd("SET").arg(key).arg(&value).query_async(&mut connection).await;
        Ok(value)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cache = arguments.cache.map(|address| Cache::new(&address, arguments.cache_password_file)).transpose()?;
    let service = Arc::new(Service { release: arguments.release, fault: AtomicU8::new(OK), cache });
    let routes = Router::new()
        .route("/", get(home))
        .route("/version", get(version))
        .route("/health", get(health))
        .route("/quotes/{id}", get(quote))
        .route("/admin/fault/{mode}", put(fault))
        .with_state(service);
    let listener = tokio::net::TcpListener::bind(arguments.listen).await?;
    let mut stop = signal(SignalKind::terminate())?;
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            stop.recv().await;
        })
        .await?;
    Ok(())
}

impl Service {
    async fn answer(&self, body: String) -> (StatusCode, String) {
        match self.fault.load(Ordering::Relaxed) {
            SLOW => tokio::time::sleep(Duration::from_secs(1)).await,
            FAILING => return (StatusCode::SERVICE_UNAVAILABLE, "{\"status\":\"failing\"}\n".into()),
            _ => {}
        }
        (StatusCode::OK, body)
    }
}

async fn home(State(service): State<Arc<Service>>) -> impl IntoResponse {
    service.answer(format!("revenue engine {}\n", service.release)).await
}

async fn version(State(service): State<Arc<Service>>) -> impl IntoResponse {
    service.answer(format!("{{\"version\":\"{}\"}}\n", service.release)).await
}

async fn health(State(service): State<Arc<Service>>) -> impl IntoResponse {
    service.answer("{\"status\":\"ok\"}\n".into()).await
}

async fn quote(State(service): State<Arc<Service>>, Path(id): Path<u64>) -> impl IntoResponse {
    let make = || format!("{{\"quote\":{id},\"cents\":{}}}\n", 1000 + id * 7 % 900);
    let kept = match &service.cache {
        Some(cache) => cache.get(&format!("quote:{id}"), make).await.ok(),
        None => None,
    };
    service.answer(kept.unwrap_or_else(make)).await
}

async fn fault(State(service): State<Arc<Service>>, Path(mode): Path<String>) -> impl IntoResponse {
    let fault = match mode.as_str() {
        "ok" => OK,
        "slow" => SLOW,
        "failing" => FAILING,
        _ => return (StatusCode::NOT_FOUND, "ok, slow or failing\n"),
    };
    service.fault.store(fault, Ordering::Relaxed);
    (StatusCode::OK, "done\n")
}
