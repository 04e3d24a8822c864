//! `muster bench`: the shipped binary, as separate processes with the defaults of `serve`, measured beside the limits of
//! the machine in the same run.
//!
//! Nothing here is asserted: a figure is printed with its limit and its floor, and a person judges. What is checked is that the work was
//! really done: every run ended, and the journal verifies at the end.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

mod cluster;
mod limits;
mod load;
mod local;
mod many;

pub(crate) use limits::{PeerArgs, peer};

use cluster::Cluster;

/// Steps of the playbook that is run: one after another, each does nothing.
pub(crate) const STEPS_PER_RUN: u64 = 10;

/// `bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// How long each figure is measured, in seconds, after a warm-up of a fifth of it.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) seconds: u64,
    /// Only figures whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Measure many at once, too: 10,000 open runs, 100,000 that wait for a time, 500 agents. Takes about two minutes more.
    #[arg(long)]
    pub(crate) many: bool,
    /// Where the journal is written: the disk that is measured [default: the folder for temporary files].
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dir: Option<PathBuf>,
}

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// Stable: `steps_per_second_256`.
    pub(crate) name: String,
    /// How much.
    pub(crate) value: f64,
    /// In what.
    pub(crate) unit: &'static str,
    /// What the machine could do at best, measured in the same run, or the number it is held against.
    pub(crate) limit: Option<f64>,
    /// `value / limit`.
    pub(crate) ratio: Option<f64>,
    /// What was measured as the limit.
    pub(crate) limit_is: &'static str,
    /// What must be reached, as text.
    pub(crate) floor: String,
    /// Whether that is reached; none: there is no floor, or nothing to hold the figure against.
    pub(crate) met: Option<bool>,
    /// What is aimed at, as text.
    pub(crate) aim: &'static str,
}

impl Figure {
    fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            limit: None,
            ratio: None,
            limit_is: "",
            floor: String::new(),
            met: None,
            aim: "",
        }
    }

    fn beside(mut self, limit: f64, limit_is: &'static str) -> Self {
        self.limit = Some(limit);
        self.ratio = (limit > 0.0).then(|| self.value / limit);
        self.limit_is = limit_is;
        self
    }

    /// After [`Figure::beside`].
    fn held(mut self, floor: Floor, aim: &'static str) -> Self {
        self.floor = floor.to_string();
        self.met = match floor {
            Floor::AtLeast(least) => Some(self.value >= least),
            Floor::AtMost(most) => Some(self.value <= most),
            Floor::Ratio(least) => self.ratio.map(|ratio| ratio >= least),
            Floor::TimesLimit(most) => self.ratio.map(|ratio| ratio <= most),
        };
        self.aim = aim;
        self
    }
}

/// What a figure must reach.
#[derive(Clone, Copy, Debug)]
enum Floor {
    /// This much, or more.
    AtLeast(f64),
    /// This much, or less.
    AtMost(f64),
    /// This part of the limit, or more.
    Ratio(f64),
    /// This many times the limit, or less.
    TimesLimit(f64),
}

impl std::fmt::Display for Floor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(value) => write!(f, "at least {value}"),
            Self::AtMost(value) => write!(f, "at most {value}"),
            Self::Ratio(ratio) => write!(f, "ratio {ratio}"),
            Self::TimesLimit(times) => write!(f, "{times} x limit"),
        }
    }
}

/// All figures of one run of the bench.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BenchReport {
    /// Where it was measured.
    pub(crate) machine: String,
    /// What was measured.
    pub(crate) figures: Vec<Figure>,
    /// Batches that were in the journal at its end, all of which verified.
    pub(crate) journal_batches: u64,
}

/// The journal of a bench is kept to its end, to be verified.
const JOURNAL_BYTES: u64 = 500_000_000;
/// What a fast machine writes per second that is asked for, over all figures.
const JOURNAL_BYTES_PER_SECOND: u64 = 400_000_000;

/// A full disk would not fail the bench: the journal would wait for room.
fn check_room(dir: &std::path::Path, seconds: u64) -> anyhow::Result<()> {
    let needed = JOURNAL_BYTES + JOURNAL_BYTES_PER_SECOND * seconds;
    let disk = rustix::fs::statvfs(dir)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    anyhow::ensure!(
        free >= needed,
        "the journal of the bench may take {} MB, and {} has {} MB of room: name another folder with --dir, or fewer --seconds",
        needed / 1_000_000,
        dir.display(),
        free / 1_000_000
    );
    Ok(())
}

/// Measure everything that `only` does not leave out; progress goes to `say`.
pub(crate) async fn run(args: &BenchArgs, say: &(dyn Fn(&str) + Sync)) -> anyhow::Result<BenchReport> {
    let wanted = |name: &str| args.only.as_deref().is_none_or(|text| name.contains(text));
    let time = Duration::from_secs(args.seconds);
    let dir = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .context("can't make a folder for the bench")?;
    check_room(dir.path(), args.seconds)?;
    let mut figures = Vec::new();
    let mut take = |measured: Vec<Figure>| {
        for figure in measured.into_iter().filter(|f| wanted(&f.name)) {
            say(&format!("{} = {:.2} {}", figure.name, figure.value, figure.unit));
            figures.push(figure);
        }
    };

    say("starting nats-server, a coordinator and an agent");
    let cluster = Cluster::start(dir.path()).await?;
    if wanted("idle_rss_mb") || wanted("idle_cpu_percent") {
        say("idle");
        take(cluster.idle(time * 2).await?);
    }
    if wanted("step_latency") || wanted("syncs_per_step_1") {
        say("one run at a time");
        take(one_at_a_time(&cluster, dir.path(), time).await?);
    }
    for width in [256_usize, 1000] {
        let name = format!("steps_per_second_{width}");
        if wanted(&name) || (width == 256 && wanted("syncs_per_step_256")) {
            say(&format!("{width} runs at a time"));
            take(at_width(&cluster, width, time).await?);
        }
    }
    for connections in [1_usize, 4] {
        if wanted(&format!("get_run_per_second_{connections}")) {
            say(&format!("GetRun on {connections} connection(s)"));
            take(vec![get_run(&cluster, connections, time).await?]);
        }
    }
    let data_dir = cluster.stop().await?;
    say("verifying the journal");
    let journal_batches = verify(&data_dir).await?;
    if wanted("local_steps_per_second_256") {
        say("256 runs at a time, everything in one process");
        let value = local::steps_per_second(&dir.path().join("local"), 256, time).await?;
        take(vec![
            Figure::new("local_steps_per_second_256", value, "steps/s").held(Floor::AtLeast(30_000.0), "60,000"),
        ]);
    }
    if args.many {
        many_at_once(dir.path(), time, &wanted, say, &mut take).await?;
    }
    Ok(BenchReport { machine: machine(), figures, journal_batches })
}

/// Each on a coordinator of its own, which nothing has been done with before.
async fn many_at_once(
    dir: &std::path::Path,
    time: Duration,
    wanted: &dyn Fn(&str) -> bool,
    say: &(dyn Fn(&str) + Sync),
    take: &mut dyn FnMut(Vec<Figure>),
) -> anyhow::Result<()> {
    let fresh = |name: &str| -> anyhow::Result<PathBuf> {
        let dir = dir.join(name);
        std::fs::create_dir(&dir)?;
        Ok(dir)
    };
    if wanted("agents_500_syncs_per_s") {
        say("500 agents");
        let cluster = Cluster::start(&fresh("agents")?).await?;
        take(many::agents(&cluster, time).await?);
        cluster.stop().await?;
    }
    if wanted("open_10000") {
        say("10,000 open runs");
        let mut cluster = Cluster::start(&fresh("open")?).await?;
        take(many::open_runs(&mut cluster).await?);
        verify(&cluster.stop().await?).await?;
    }
    if wanted("sleepers_100000") || wanted("timers_10000") {
        say("100,000 runs that wait for a time");
        let mut cluster = Cluster::start(&fresh("sleepers")?).await?;
        take(many::sleepers(&mut cluster).await?);
        verify(&cluster.stop().await?).await?;
    }
    Ok(())
}

async fn one_at_a_time(cluster: &Cluster, dir: &std::path::Path, time: Duration) -> anyhow::Result<Vec<Figure>> {
    let round_trip_us = limits::nats_round_trip_us(cluster.nats_url(), time / 2).await?;
    let sync_us = limits::fdatasync_us(dir)?;
    let load = load::drive(cluster, 1, time).await?;
    let latency = load::step_latency_us(cluster, &load.runs).await?;
    Ok(vec![
        Figure::new("step_latency_p50_us_1", latency.p50, "us")
            .beside(round_trip_us + sync_us, "one core NATS round trip + one fdatasync")
            .held(Floor::TimesLimit(2.0), "1.3 x limit"),
        Figure::new("step_latency_p99_us_1", latency.p99, "us").held(Floor::AtMost(5_000.0), "2,000"),
        syncs_figure(1, &load).held(Floor::AtMost(1.2), "1.1"),
    ])
}

async fn at_width(cluster: &Cluster, width: usize, time: Duration) -> anyhow::Result<Vec<Figure>> {
    let pairs = limits::nats_pairs_per_second(cluster.nats_url(), width, time).await?;
    let load = load::drive(cluster, width, time).await?;
    let mut figures = vec![
        Figure::new(format!("steps_per_second_{width}"), load.steps_per_second, "steps/s")
            .beside(pairs / 2.0, "half the core NATS request/replies per second")
            .held(Floor::Ratio(0.4), "ratio 0.6"),
    ];
    if width == 256 {
        figures.push(syncs_figure(width, &load).held(Floor::AtMost(0.1), "0.05"));
    }
    Ok(figures)
}

fn syncs_figure(width: usize, load: &load::Load) -> Figure {
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    let per_step = load.syncs as f64 / (load.total_runs * STEPS_PER_RUN).max(1) as f64;
    Figure::new(format!("syncs_per_step_{width}"), per_step, "syncs").beside(1.1, "eleven for ten steps")
}

async fn get_run(cluster: &Cluster, connections: usize, time: Duration) -> anyhow::Result<Figure> {
    let echo = limits::grpc_echo_per_second(connections, time).await?;
    let value = load::get_run_per_second(cluster, connections, time).await?;
    Ok(Figure::new(format!("get_run_per_second_{connections}"), value, "calls/s")
        .beside(echo, "a bare tonic echo")
        .held(Floor::Ratio(0.5), "ratio 0.8"))
}

/// By the shipped command, as an operator would; the number of batches.
async fn verify(data_dir: &std::path::Path) -> anyhow::Result<u64> {
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args(["journal", "verify", "-o", "json", "--data-dir"])
        .arg(data_dir)
        .output()
        .await?;
    anyhow::ensure!(
        output.status.success(),
        "the bench's journal does not verify: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    report["batches"].as_u64().context("journal verify says how many batches there are")
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("unknown processor", |m| m.trim_start_matches([' ', '\t', ':']));
    format!("{cores} cores, {model}")
}

/// Figures as a test of their looks needs them: by twos, one that reaches its floor and one that does not; then one without a floor.
#[cfg(test)]
pub(crate) fn samples() -> Vec<Figure> {
    let steps = |name: &str, value| Figure::new(name, value, "steps/s");
    vec![
        steps("fast", 30_000.0).held(Floor::AtLeast(30_000.0), ""),
        steps("slow", 1_000.0).beside(2_000.0, "a peer").held(Floor::Ratio(0.6), ""),
        Figure::new("small", 40.0, "MB").held(Floor::AtMost(40.0), ""),
        Figure::new("big", 41.0, "MB").held(Floor::AtMost(40.0), ""),
        Figure::new("near", 190.0, "us").beside(100.0, "a sync").held(Floor::TimesLimit(2.0), ""),
        Figure::new("far", 210.0, "us").beside(100.0, "a sync").held(Floor::TimesLimit(2.0), ""),
        Figure::new("free", 1.0, "us"),
    ]
}
