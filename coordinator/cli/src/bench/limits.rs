//! What the machine can do at best: core NATS request and reply, a synced write, a bare gRPC call. Measured between
//! processes, as the figures beside them are.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt as _;
use muster_bus::{
    Bus,
    nats::{NatsBus, NatsOptions},
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::cluster::{Process, connect, free_address};

const ECHO_SUBJECT: &str = "muster.bench.echo";
/// About as large as a task and its answer.
const ECHO_BYTES: usize = 256;
/// Calls under way on one gRPC connection.
pub(crate) const CALLS_PER_CONNECTION: usize = 64;

/// The other side of a limit's measurement, in a process of its own.
#[derive(Debug, Args)]
pub(crate) struct PeerArgs {
    /// Answer requests on NATS.
    #[arg(long)]
    nats: Option<String>,
    /// Answer gRPC calls here.
    #[arg(long)]
    grpc: Option<std::net::SocketAddr>,
}

/// Answer until the process is ended.
pub(crate) async fn peer(args: &PeerArgs) -> anyhow::Result<()> {
    if let Some(url) = &args.nats {
        let bus = NatsBus::connect(NatsOptions::new([url], "bench-peer")).await?;
        let mut requests = bus.subscribe(ECHO_SUBJECT).await?;
        while let Some(delivery) = requests.next().await {
            if let Some(reply) = delivery.reply {
                reply.send(delivery.payload);
            }
        }
    }
    if let Some(address) = args.grpc {
        let (_reporter, health) = tonic_health::server::health_reporter();
        tonic::transport::Server::builder().tcp_nodelay(true).add_service(health).serve(address).await?;
    }
    Ok(())
}

/// Median of core NATS request and reply, one at a time.
pub(crate) async fn nats_round_trip_us(url: String, time: Duration) -> anyhow::Result<f64> {
    let (_peer, bus) = nats_peer(url).await?;
    let payload = Bytes::from(vec![b'x'; ECHO_BYTES]);
    let (mut samples, start) = (Vec::new(), Instant::now());
    while start.elapsed() < time {
        let sent = Instant::now();
        bus.request(ECHO_SUBJECT, payload.clone(), Duration::from_secs(5)).await?;
        samples.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    Ok(percentile(&mut samples, 0.5))
}

/// Core NATS requests and replies per second with `width` under way.
pub(crate) async fn nats_pairs_per_second(url: String, width: usize, time: Duration) -> anyhow::Result<f64> {
    let (_peer, bus) = nats_peer(url).await?;
    let payload = Bytes::from(vec![b'x'; ECHO_BYTES]);
    per_second(width, time, move |_| {
        let (bus, payload) = (bus.clone(), payload.clone());
        async move {
            bus.request(ECHO_SUBJECT, payload, Duration::from_secs(5)).await?;
            Ok(())
        }
    })
    .await
}

/// Median of a 4 KiB write and `fdatasync` into a preallocated file.
pub(crate) fn fdatasync_us(dir: &Path) -> anyhow::Result<f64> {
    use std::os::unix::fs::FileExt as _;
    const BLOCKS: u64 = 2_000;
    let file = std::fs::File::create(dir.join("sync.probe"))?;
    let block = [b'x'; 4096];
    for n in 0..BLOCKS {
        file.write_all_at(&block, n * 4096)?;
    }
    file.sync_all()?;
    let mut samples = Vec::new();
    for n in 0..BLOCKS {
        let start = Instant::now();
        file.write_all_at(&block, n * 4096)?;
        file.sync_data()?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(percentile(&mut samples, 0.5))
}

/// Calls per second of a service that does nothing, on this many connections.
pub(crate) async fn grpc_echo_per_second(connections: usize, time: Duration) -> anyhow::Result<f64> {
    let address = free_address()?;
    let dir = tempfile::tempdir()?;
    let _peer = Process::start("peer", dir.path(), &["bench-peer", "--grpc", &address])?;
    let mut channels = Vec::new();
    for _ in 0..connections {
        channels.push(connect(&address).await?);
    }
    calls_per_second(&channels, time, |channel| async move {
        let request = HealthCheckRequest { service: String::new() };
        HealthClient::new(channel).check(request).await?;
        Ok(())
    })
    .await
}

/// Calls per second over all connections, each with [`CALLS_PER_CONNECTION`] under way.
pub(crate) async fn calls_per_second<F>(
    channels: &[Channel],
    time: Duration,
    call: impl Fn(Channel) -> F + Clone + Send + 'static,
) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let channels = channels.to_vec();
    per_second(channels.len() * CALLS_PER_CONNECTION, time, move |worker| {
        call(channels[worker % channels.len()].clone())
    })
    .await
}

/// How often `work` was done per second by `width` tasks that each do it again and again, after a warm-up of a fifth.
pub(crate) async fn per_second<F>(
    width: usize,
    time: Duration,
    work: impl Fn(usize) -> F + Clone + Send + 'static,
) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let warm = Instant::now() + time / 5;
    let end = warm + time;
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..width {
        let work = work.clone();
        tasks.spawn(async move {
            let mut done = 0_u64;
            loop {
                work(worker).await?;
                let now = Instant::now();
                if now >= end {
                    return anyhow::Ok(done);
                }
                done += u64::from(now >= warm);
            }
        });
    }
    let mut sum = 0;
    while let Some(done) = tasks.join_next().await {
        sum += done??;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    Ok(sum as f64 / time.as_secs_f64())
}

/// The value below which this share of the samples lies; 0 without samples.
pub(crate) fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let index = ((samples.len() as f64) * share) as usize;
    samples.get(index.min(samples.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

async fn nats_peer(url: String) -> anyhow::Result<(Process, Arc<NatsBus>)> {
    let dir = tempfile::tempdir()?;
    let peer = Process::start("peer", dir.path(), &["bench-peer", "--nats", &url])?;
    let bus = Arc::new(NatsBus::connect(NatsOptions::new([url], "bench")).await?);
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(error) = bus.request(ECHO_SUBJECT, Bytes::new(), Duration::from_secs(1)).await {
        if Instant::now() > end {
            return Err(error).context("the bench's peer does not answer");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((peer, bus))
}

/// What a failed call means for a loop that goes on: only a coordinator that is busy may be asked again.
pub(crate) fn is_busy(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::ResourceExhausted | Code::Unavailable)
}
