//! A small service to roll out: it says its version and its health, and has a switch for faults.
//!
//! `GET /`, `GET /version`, `GET /health`; `PUT /admin/fault/ok`, `…/slow` (every answer a second later), `…/failing`
//! (every answer 503).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
    routing::{get, put},
};
use clap::Parser;
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
}

const OK: u8 = 0;
const SLOW: u8 = 1;
const FAILING: u8 = 2;

struct Service {
    release: String,
    fault: AtomicU8,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let service = Arc::new(Service { release: arguments.release, fault: AtomicU8::new(OK) });
    let routes = Router::new()
        .route("/", get(home))
        .route("/version", get(version))
        .route("/health", get(health))
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
