//! Many at once: open runs, runs that wait for a time, agents that have nothing to do. What they cost, and how long a coordinator
//! that was killed with -9 takes to be back.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use muster_bus::{
    Bus as _,
    message::{ActionOffer, Beat, BeatReply, PROTOCOL, Register, RegisterReply},
    nats::{NatsBus, NatsOptions},
    subject::Subjects,
};
use muster_proto::v1::{
    GetRunRequest, ListRunsRequest, StartRunRequest, run_service_client::RunServiceClient, start_run_request::Source,
};
use tonic::transport::Channel;

use super::{
    Figure, Floor,
    cluster::{Cluster, NAMESPACE},
    limits,
};

/// Runs that are open, half of them for a person's signal and half of them for an agent that never comes.
const OPEN: usize = 10_000;
/// Runs that wait for a time.
const SLEEPERS: usize = 100_000;
/// Of them, those that are due within one second.
const DUE: usize = 10_000;
/// Agents that beat and do nothing.
const AGENTS: usize = 500;
/// Calls to start runs that are under way at once.
const STARTERS: usize = 64;
/// Calls that are timed, one after another.
const CALLS: usize = 1_000;
const WITHIN: Duration = Duration::from_secs(120);

/// `OPEN` open runs: memory, calls, and a kill -9.
pub(crate) async fn open_runs(cluster: &mut Cluster) -> anyhow::Result<Vec<Figure>> {
    cluster.submit(waits_for_a_signal()).await?;
    cluster.submit(waits_for_an_agent()).await?;
    start(cluster, "bench-signal", OPEN / 2, |_| None).await?;
    start(cluster, "bench-queued", OPEN / 2, |_| None).await?;
    let resident = cluster.resident_mb()?;
    let (get_ms, list_ms) = calls_ms(cluster).await?;
    let killed = cluster.kill_and_start()?;
    serving(cluster).await?;
    let recovery = killed.elapsed().as_secs_f64();
    Ok(vec![
        Figure::new("open_10000_rss_mb", resident, "MB").held(Floor::AtMost(150.0), ""),
        Figure::new("open_10000_get_run_p99_ms", get_ms, "ms").held(Floor::AtMost(20.0), ""),
        Figure::new("open_10000_list_runs_p99_ms", list_ms, "ms").held(Floor::AtMost(20.0), ""),
        Figure::new("open_10000_kill_to_serving_s", recovery, "s").held(Floor::AtMost(2.0), ""),
    ])
}

/// `SLEEPERS` runs that wait for a time: memory, `DUE` of them at once, and a kill -9 while the first is due.
pub(crate) async fn sleepers(cluster: &mut Cluster) -> anyhow::Result<Vec<Figure>> {
    cluster.submit(waits_until()).await?;
    let far = Timestamp::now() + SignedDuration::from_hours(24);
    start(cluster, "bench-until", SLEEPERS - DUE - 1, |_| Some(far)).await?;
    // Started in a few seconds, due in one: late enough that all of them are there.
    let due = Timestamp::now() + SignedDuration::from_secs(20);
    let spread = |n: usize| due + SignedDuration::from_micros(i64::try_from(n * 1_000_000 / DUE).unwrap_or(0));
    start(cluster, "bench-until", DUE, |n| Some(spread(n))).await?;
    anyhow::ensure!(Timestamp::now() < due, "starting {DUE} runs took longer than the time they wait");
    let resident = cluster.resident_mb()?;
    let late = last_end(cluster, DUE).await?.duration_since(due + SignedDuration::from_secs(1)).as_secs_f64();

    let due = Timestamp::now() + SignedDuration::from_millis(1_500);
    let name = start(cluster, "bench-until", 1, |_| Some(due)).await?.pop().context("one run was started")?;
    let wait = due.duration_since(Timestamp::now()) - SignedDuration::from_millis(200);
    tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
    let killed = cluster.kill_and_start()?;
    ended(cluster, &name).await?;
    let first_done = killed.elapsed().as_secs_f64();
    Ok(vec![
        Figure::new("sleepers_100000_rss_mb", resident, "MB")
            .beside(660.0, "the best peer")
            .held(Floor::AtMost(300.0), ""),
        Figure::new("timers_10000_late_s", late.max(0.0), "s").held(Floor::AtMost(2.0), ""),
        Figure::new("sleepers_100000_kill_to_first_done_s", first_done, "s")
            .beside(11.4, "the best peer")
            .held(Floor::AtMost(5.0), ""),
    ])
}

/// Syncs per second while `AGENTS` agents beat and nothing changes.
pub(crate) async fn agents(cluster: &Cluster, time: Duration) -> anyhow::Result<Vec<Figure>> {
    let bus = NatsBus::connect(NatsOptions::new([cluster.nats_url()], "bench-agents")).await?;
    let bus = Arc::new(bus);
    let mut beating = tokio::task::JoinSet::new();
    let registered = Arc::new(AtomicUsize::new(0));
    for n in 0..AGENTS {
        let (bus, registered) = (Arc::clone(&bus), Arc::clone(&registered));
        beating.spawn(async move { beat(&bus, &format!("idle-{n}"), &registered).await });
    }
    super::cluster::until(WITHIN, "all agents register", async || Ok(registered.load(Ordering::Relaxed) == AGENTS))
        .await?;
    // What their coming has changed is written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = cluster.counter(super::load::SYNCS).await?;
    tokio::time::sleep(time * 2).await;
    let syncs = cluster.counter(super::load::SYNCS).await? - before;
    if let Some(ended) = beating.try_join_next() {
        ended??;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    let per_second = syncs as f64 / (time * 2).as_secs_f64();
    Ok(vec![Figure::new("agents_500_syncs_per_s", per_second, "syncs/s").held(Floor::AtMost(1.0), "0")])
}

/// One agent that registers and beats for ever, as often as it is told to.
async fn beat(bus: &NatsBus, name: &str, registered: &AtomicUsize) -> anyhow::Result<()> {
    let subjects = Subjects::new("default");
    let instance = format!("{name}-a");
    let offer = ActionOffer::new("noop.idle", "1.0.0");
    let register = Register {
        protocol: PROTOCOL,
        agent: name.into(),
        instance: instance.clone(),
        role: "idle".into(),
        labels: BTreeMap::new(),
        host: None,
        slots: 1,
        durable: false,
        actions: vec![offer],
        holds: Vec::new(),
        spooled: Vec::new(),
        dead: Vec::new(),
        tasks_in_answers: false,
        software: String::new(),
    };
    let limit = Duration::from_secs(10);
    let (cluster, every) = loop {
        let asked = bus.request(&subjects.register(name), serde_json::to_vec(&register)?.into(), limit).await;
        let Ok(answer) = asked else { continue };
        match serde_json::from_slice(&answer)? {
            RegisterReply::Registered { cluster, beat_every_ms, .. } => {
                break (cluster, Duration::from_millis(beat_every_ms));
            }
            RegisterReply::Retry { .. } => tokio::time::sleep(Duration::from_millis(200)).await,
            answer @ (RegisterReply::IdInUse { .. } | RegisterReply::Refused { .. }) => {
                anyhow::bail!("agent {name} is not taken: {answer:?}");
            }
        }
    };
    registered.fetch_add(1, Ordering::Relaxed);
    let beat = Beat { cluster, instance, holds: Vec::new(), draining: false, ending: false };
    loop {
        let answer = bus.request(&subjects.beat(name), serde_json::to_vec(&beat)?.into(), limit).await?;
        let answer: BeatReply = serde_json::from_slice(&answer)?;
        anyhow::ensure!(!answer.register_again, "agent {name} is not known any more");
        tokio::time::sleep(every).await;
    }
}

/// Starts runs; their names.
async fn start(
    cluster: &Cluster,
    playbook: &str,
    count: usize,
    at: impl Fn(usize) -> Option<Timestamp>,
) -> anyhow::Result<Vec<String>> {
    let channels = [cluster.connect().await?, cluster.connect().await?];
    let mut tasks = tokio::task::JoinSet::new();
    let mut moments: Vec<Vec<Option<Timestamp>>> = vec![Vec::new(); STARTERS];
    for n in 0..count {
        moments[n % STARTERS].push(at(n));
    }
    for (n, moments) in moments.into_iter().enumerate() {
        let mut client = RunServiceClient::new(channels[n % channels.len()].clone());
        let requests: Vec<_> = moments.into_iter().map(|at| cluster.request(request(playbook, at))).collect();
        tasks.spawn(async move {
            let mut names = Vec::with_capacity(requests.len());
            for request in requests {
                names.push(client.start_run(request).await?.into_inner().name);
            }
            anyhow::Ok(names)
        });
    }
    let mut names = Vec::with_capacity(count);
    while let Some(started) = tasks.join_next().await {
        names.extend(started??);
    }
    Ok(names)
}

fn request(playbook: &str, at: Option<Timestamp>) -> StartRunRequest {
    let at = at.map(|at| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(at.to_string())) });
    StartRunRequest {
        parent: NAMESPACE.into(),
        source: Some(Source::Playbook(format!("{NAMESPACE}/playbooks/{playbook}"))),
        inputs: at.map(|at| prost_types::Struct { fields: BTreeMap::from([("at".to_owned(), at)]) }),
        ..Default::default()
    }
}

/// p99 of `GetRun` over many runs and of `ListRuns`, a page of fifty.
async fn calls_ms(cluster: &Cluster) -> anyhow::Result<(f64, f64)> {
    let mut client: RunServiceClient<Channel> = RunServiceClient::new(cluster.connect().await?);
    let (mut gets, mut lists, mut names, mut token) = (Vec::new(), Vec::new(), Vec::new(), String::new());
    while lists.len() < CALLS / 5 {
        let list = ListRunsRequest {
            parent: NAMESPACE.into(),
            page_size: 50,
            page_token: std::mem::take(&mut token),
            ..Default::default()
        };
        let sent = Instant::now();
        let page = client.list_runs(cluster.request(list)).await?.into_inner();
        lists.push(sent.elapsed().as_secs_f64() * 1e3);
        names.extend(page.runs.into_iter().map(|run| run.name));
        token = page.next_page_token;
    }
    for n in 0..CALLS {
        // Far apart, so that no cache of the last ones helps.
        let name = names[n * 7_919 % names.len()].clone();
        let sent = Instant::now();
        client.get_run(cluster.request(GetRunRequest { name })).await?;
        gets.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    Ok((limits::percentile(&mut gets, 0.99), limits::percentile(&mut lists, 0.99)))
}

/// The API answers, and lists are whole.
async fn serving(cluster: &Cluster) -> anyhow::Result<()> {
    let mut client: RunServiceClient<Channel> = RunServiceClient::new(cluster.connect().await?);
    super::cluster::until(WITHIN, "the coordinator serves again", async || {
        let list = ListRunsRequest { parent: NAMESPACE.into(), page_size: 1, ..Default::default() };
        Ok(!client.list_runs(cluster.request(list)).await?.into_inner().runs.is_empty())
    })
    .await
}

async fn ended(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let mut client: RunServiceClient<Channel> = RunServiceClient::new(cluster.connect().await?);
    super::cluster::until(WITHIN, "the first run ends", async || {
        let run = client.get_run(cluster.request(GetRunRequest { name: name.into() })).await?.into_inner();
        Ok(run.end_time.is_some())
    })
    .await
}

/// When the last of the runs that succeeded has ended, once so many have.
async fn last_end(cluster: &Cluster, count: usize) -> anyhow::Result<Timestamp> {
    let mut client: RunServiceClient<Channel> = RunServiceClient::new(cluster.connect().await?);
    let mut last = None;
    super::cluster::until(WITHIN, "all runs that are due end", async || {
        let (mut ends, mut token) = (Vec::new(), String::new());
        loop {
            let wanted = ListRunsRequest {
                parent: NAMESPACE.into(),
                page_size: 1_000,
                page_token: std::mem::take(&mut token),
                filter: "state = SUCCEEDED".into(),
            };
            let page = client.list_runs(cluster.request(wanted)).await?.into_inner();
            ends.extend(page.runs.into_iter().filter_map(|run| run.end_time));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        last = ends.iter().map(|end| (end.seconds, end.nanos)).max();
        Ok(ends.len() >= count)
    })
    .await?;
    let (seconds, nanos) = last.context("no run has ended")?;
    Ok(Timestamp::new(seconds, nanos)?)
}

fn playbook(name: &str, inputs: &str, step: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: {name}, owner: bench}}\nspec:\n{inputs}  phases:\n    - id: all\n      milestone: Done\n      steps:\n        - {step}\n"
    )
}

fn waits_for_a_signal() -> String {
    playbook("bench-signal", "", "{id: go, wait: {signal: go}}")
}

fn waits_for_an_agent() -> String {
    playbook("bench-queued", "", "{id: go, agent: {role: nobody}, action: noop.run, with: {}}")
}

fn waits_until() -> String {
    let inputs = "  inputs: {type: object, required: [at], properties: {at: {type: string}}}\n";
    playbook("bench-until", inputs, "{id: go, wait: {until: \"{{ inputs.at }}\"}}")
}
