//! Runs by the thousand, through the API, with one watcher attached: how many steps, how fast, with how many syncs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use muster_proto::v1::{
    GetRunRequest, ListRunEventsRequest, RunEvent, StartRunRequest, WatchMilestonesRequest, milestone,
    milestone_service_client::MilestoneServiceClient, run_service_client::RunServiceClient, start_run_request::Source,
};
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::{STEPS_PER_RUN, cluster::Cluster, limits};

/// Where the coordinator counts its syncs.
pub(crate) const SYNCS: &str = "muster_journal_syncs_total";
const RUN_WITHIN: Duration = Duration::from_secs(60);
/// Runs whose events are read for latencies.
const SAMPLED_RUNS: usize = 200;

/// What a load did.
pub(crate) struct Load {
    /// Steps done per second, after the warm-up.
    pub(crate) steps_per_second: f64,
    /// Syncs from before the first start to after the last end.
    pub(crate) syncs: u64,
    /// Runs from the first start to the last end.
    pub(crate) total_runs: u64,
    /// Names of runs, the last ones.
    pub(crate) runs: Vec<String>,
}

/// Percentiles in microseconds.
pub(crate) struct Latency {
    /// Half are faster.
    pub(crate) p50: f64,
    /// One in a hundred is slower.
    pub(crate) p99: f64,
}

/// Keep `width` runs going for `time` after a warm-up of a fifth of it, then let all end.
pub(crate) async fn drive(cluster: &Cluster, width: usize, time: Duration) -> anyhow::Result<Load> {
    let waiting = Arc::new(Arrivals::default());
    let watcher = tokio::spawn(watch(cluster, Arc::clone(&waiting)).await?);
    let before = cluster.counter(SYNCS).await?;
    let channels = [cluster.connect().await?, cluster.connect().await?];
    let (warm, end) = {
        let warm = Instant::now() + time / 5;
        (warm, warm + time)
    };
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..width {
        let (client, waiting) =
            (RunServiceClient::new(channels[worker % channels.len()].clone()), Arc::clone(&waiting));
        let template = cluster.request(());
        tasks.spawn(async move { one_after_another(client, &template, &waiting, warm, end).await });
    }
    let (mut counted, mut total, mut runs) = (0_u64, 0_u64, Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (in_time, names) = done??;
        counted += in_time;
        total += names.len() as u64;
        runs.extend(names);
    }
    let syncs = cluster.counter(SYNCS).await? - before;
    watcher.abort();
    runs.drain(..runs.len().saturating_sub(SAMPLED_RUNS));
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    let steps_per_second = (counted * STEPS_PER_RUN) as f64 / time.as_secs_f64();
    Ok(Load { steps_per_second, syncs, total_runs: total, runs })
}

/// From the assignment of a step to the assignment of the next, as journalled.
pub(crate) async fn step_latency_us(cluster: &Cluster, runs: &[String]) -> anyhow::Result<Latency> {
    let mut client = RunServiceClient::new(cluster.connect().await?);
    let mut samples = Vec::new();
    for run in runs {
        let request = ListRunEventsRequest { parent: run.clone(), page_size: 1000, ..Default::default() };
        let events = client.list_run_events(cluster.request(request)).await?.into_inner().events;
        let assigned: Vec<f64> = events.iter().filter(|e| e.r#type == "attempt_assigned").filter_map(micros).collect();
        samples.extend(assigned.windows(2).map(|pair| pair[1] - pair[0]));
    }
    anyhow::ensure!(!samples.is_empty(), "no run of the bench has two assignments");
    Ok(Latency { p50: limits::percentile(&mut samples, 0.5), p99: limits::percentile(&mut samples, 0.99) })
}

/// `GetRun` of a finished run, again and again.
pub(crate) async fn get_run_per_second(cluster: &Cluster, connections: usize, time: Duration) -> anyhow::Result<f64> {
    let load = drive(cluster, 1, Duration::from_millis(200)).await?;
    let name = load.runs.first().context("the bench has done no run")?.clone();
    let mut channels = Vec::new();
    for _ in 0..connections {
        channels.push(cluster.connect().await?);
    }
    let metadata = cluster.request(()).metadata().clone();
    limits::calls_per_second(&channels, time, move |channel: Channel| {
        let mut request = tonic::Request::new(GetRunRequest { name: name.clone() });
        *request.metadata_mut() = metadata.clone();
        async move {
            RunServiceClient::new(channel).get_run(request).await?;
            Ok(())
        }
    })
    .await
}

/// Who waits for which run's milestone; a milestone can be seen before its waiter is there.
#[derive(Default)]
pub(crate) struct Arrivals(Mutex<HashMap<String, Arrival>>);

enum Arrival {
    Waited(oneshot::Sender<()>),
    Seen,
}

impl Arrivals {
    /// The milestone of this run is reached.
    pub(crate) fn seen(&self, run: String) {
        let mut arrivals = self.0.lock().expect("no holder of this lock panics");
        match arrivals.remove(&run) {
            Some(Arrival::Waited(waiter)) => drop(waiter.send(())),
            Some(Arrival::Seen) | None => drop(arrivals.insert(run, Arrival::Seen)),
        }
    }

    /// Wait for the milestone of this run.
    ///
    /// # Errors
    /// It does not come.
    pub(crate) async fn of(&self, run: &str) -> anyhow::Result<()> {
        let arrived = {
            let mut arrivals = self.0.lock().expect("no holder of this lock panics");
            if arrivals.remove(run).is_some() {
                return Ok(());
            }
            let (waiter, arrived) = oneshot::channel();
            arrivals.insert(run.into(), Arrival::Waited(waiter));
            arrived
        };
        tokio::time::timeout(RUN_WITHIN, arrived)
            .await
            .with_context(|| format!("{run} did not end in {RUN_WITHIN:?}"))?
            .context("the watcher has ended")
    }
}

async fn watch(
    cluster: &Cluster,
    arrivals: Arc<Arrivals>,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut client = MilestoneServiceClient::new(cluster.connect().await?);
    let request = WatchMilestonesRequest { parent: "namespaces/default".into() };
    let mut changes = client.watch_milestones(cluster.request(request)).await?.into_inner();
    Ok(async move {
        loop {
            match changes.message().await {
                Ok(Some(change)) => {
                    if let Some(milestone) = change.milestone
                        && milestone.state() == milestone::State::Reached
                    {
                        arrivals.seen(milestone.run);
                    }
                }
                Ok(None) => return,
                Err(status) => return tracing::error!(%status, "the bench's watcher was ended"),
            }
        }
    })
}

async fn one_after_another(
    mut client: RunServiceClient<Channel>,
    template: &tonic::Request<()>,
    arrivals: &Arrivals,
    warm: Instant,
    end: Instant,
) -> anyhow::Result<(u64, Vec<String>)> {
    let (mut counted, mut names) = (0, Vec::new());
    while Instant::now() < end {
        let mut request = tonic::Request::new(StartRunRequest {
            parent: "namespaces/default".into(),
            source: Some(Source::Playbook("namespaces/default/playbooks/bench".into())),
            ..Default::default()
        });
        *request.metadata_mut() = template.metadata().clone();
        let run = match client.start_run(request).await {
            Ok(run) => run.into_inner().name,
            Err(status) if limits::is_busy(&status) => continue,
            Err(status) => return Err(status.into()),
        };
        arrivals.of(&run).await?;
        let now = Instant::now();
        counted += u64::from(now >= warm && now < end);
        names.push(run);
    }
    Ok((counted, names))
}

fn micros(event: &RunEvent) -> Option<f64> {
    let time = event.time.as_ref()?;
    #[expect(clippy::cast_precision_loss, reason = "differences of microseconds within a run")]
    Some((time.seconds % 100_000) as f64 * 1e6 + f64::from(time.nanos) / 1e3)
}
