//! nats-server, a coordinator and an agent as separate processes, ended by their own pid.

use std::{
    fmt::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use muster_bus::testkit::NatsServer;
use muster_proto::v1::{
    ListAgentsRequest, SubmitPlaybookRequest, agent, agent_service_client::AgentServiceClient,
    playbook_service_client::PlaybookServiceClient,
};
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use super::{Figure, Floor, STEPS_PER_RUN};

pub(crate) const NAMESPACE: &str = "namespaces/default";
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A whole system on loopback.
pub(crate) struct Cluster {
    nats: NatsServer,
    serve: Process,
    agent: Process,
    dir: PathBuf,
    data_dir: PathBuf,
    api: String,
    metrics: String,
    token: AsciiMetadataValue,
}

impl Cluster {
    /// Start all three, with the defaults of `serve`, and submit the playbook of the bench.
    pub(crate) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let nats = NatsServer::start().context("nats-server does not start: apt-get install nats-server")?;
        let data_dir = dir.join("data");
        let (api, metrics) = (free_address()?, free_address()?);
        let serve = serve(dir, &nats.url(), &api, &metrics, &data_dir)?;
        let token = first_token(&data_dir.join("admin.token")).await?;
        let agent = Process::start(
            "agent",
            dir,
            &[
                "agent",
                "run",
                "--role",
                "bench",
                "--name",
                "bench-1",
                "--slots",
                "4000",
                "--nats",
                &nats.url(),
                "--data-dir",
                path(&dir.join("agent"))?,
            ],
        )?;
        let cluster = Self { nats, serve, agent, dir: dir.into(), data_dir, api, metrics, token };
        cluster.submit_when_ready().await?;
        Ok(cluster)
    }

    /// Where NATS answers.
    pub(crate) fn nats_url(&self) -> String {
        self.nats.url()
    }

    /// A new connection to the API.
    pub(crate) async fn connect(&self) -> anyhow::Result<Channel> {
        connect(&self.api).await
    }

    /// A request with the bench's token.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }

    /// Resident memory and processor time of a coordinator that has nothing to do.
    pub(crate) async fn idle(&self, time: Duration) -> anyhow::Result<Vec<Figure>> {
        let before = self.serve.cpu_ns()?;
        tokio::time::sleep(time).await;
        let used = Duration::from_nanos(self.serve.cpu_ns()?.saturating_sub(before));
        Ok(vec![
            Figure::new("idle_rss_mb", self.resident_mb()?, "MB").held(Floor::AtMost(40.0), "20"),
            Figure::new("idle_cpu_percent", used.as_secs_f64() / time.as_secs_f64() * 100.0, "percent")
                .held(Floor::AtMost(0.5), "0.2"),
        ])
    }

    /// Resident memory of the coordinator.
    pub(crate) fn resident_mb(&self) -> anyhow::Result<f64> {
        self.serve.resident_mb()
    }

    /// Kill the coordinator with -9 and start it again at once; when it was killed.
    pub(crate) fn kill_and_start(&mut self) -> anyhow::Result<Instant> {
        let killed = Instant::now();
        self.serve.kill()?;
        self.serve = serve(&self.dir, &self.nats.url(), &self.api, &self.metrics, &self.data_dir)?;
        Ok(killed)
    }

    /// A counter of the coordinator, by its name on `/metrics`.
    pub(crate) async fn counter(&self, name: &str) -> anyhow::Result<u64> {
        let text = http_get(&self.metrics, "/metrics").await?;
        let line = text.lines().find(|l| l.split([' ', '{']).next() == Some(name));
        let line = line.with_context(|| format!("the coordinator has no metric {name}"))?;
        let value: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
        Ok(value as u64)
    }

    /// Let everything end; the coordinator's data directory stays.
    pub(crate) async fn stop(self) -> anyhow::Result<PathBuf> {
        self.agent.terminate().await?;
        self.serve.terminate().await?;
        Ok(self.data_dir)
    }

    async fn submit_when_ready(&self) -> anyhow::Result<()> {
        let mut agents = AgentServiceClient::new(self.connect().await?);
        until(READY_WITHIN, "the agent registers", async || {
            let list = agents
                .list_agents(self.request(ListAgentsRequest { parent: NAMESPACE.into(), ..Default::default() }))
                .await?;
            Ok(list.into_inner().agents.iter().any(|a| a.state() == agent::State::Ready))
        })
        .await?;
        self.submit(playbook()).await
    }

    /// Store a playbook.
    pub(crate) async fn submit(&self, yaml: String) -> anyhow::Result<()> {
        let submit = SubmitPlaybookRequest { parent: NAMESPACE.into(), yaml, ..Default::default() };
        PlaybookServiceClient::new(self.connect().await?).submit_playbook(self.request(submit)).await?;
        Ok(())
    }
}

fn serve(dir: &Path, nats: &str, api: &str, metrics: &str, data_dir: &Path) -> anyhow::Result<Process> {
    let addresses = ["--nats", nats, "--listen", api, "--metrics-listen", metrics];
    let args: Vec<&str> = ["serve"].into_iter().chain(addresses).chain(["--data-dir", path(data_dir)?]).collect();
    Process::start("serve", dir, &args)
}

/// Ten steps that do nothing, one after another, and a milestone.
pub(crate) fn playbook() -> String {
    let mut yaml = String::from(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: bench, owner: bench}\nspec:\n  phases:\n    - id: all\n      milestone: Done\n      steps:\n",
    );
    for step in 1..=STEPS_PER_RUN {
        let needs = if step == 1 { String::new() } else { format!(", needs: [s{}]", step - 1) };
        // Writing to a string can't fail.
        let _ =
            writeln!(yaml, "        - {{id: s{step}, agent: {{role: bench}}, action: noop.run, with: {{}}{needs}}}");
    }
    yaml
}

/// Poll until it holds, for at most `within`.
pub(crate) async fn until(
    within: Duration,
    what: &str,
    mut holds: impl AsyncFnMut() -> Result<bool, Status>,
) -> anyhow::Result<()> {
    let end = Instant::now() + within;
    loop {
        match holds().await {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() < end => {}
            Ok(false) => anyhow::bail!("in {within:?} it did not happen that {what}"),
            Err(status) if Instant::now() < end => tracing::debug!(%status, "not yet: {what}"),
            Err(status) => return Err(status).with_context(|| format!("in {within:?} it did not happen that {what}")),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A connection, as soon as somebody listens.
pub(crate) async fn connect(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let end = Instant::now() + READY_WITHIN;
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("nobody listens on {address}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A loopback address that was free a moment ago.
pub(crate) fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

async fn first_token(file: &Path) -> anyhow::Result<AsciiMetadataValue> {
    until(READY_WITHIN, "the coordinator writes its first token", async || Ok(file.exists())).await?;
    let token = std::fs::read_to_string(file)?;
    Ok(format!("Bearer {}", token.trim()).parse()?)
}

async fn http_get(address: &str, target: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the folder's name is not UTF-8")
}

/// A child process that runs this very binary; ended when dropped.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Start `muster` with arguments; what it logs goes to `{name}.log` in `dir`.
    pub(crate) fn start(name: &str, dir: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
        let child = Command::new(std::env::current_exe()?)
            .args(args)
            .env("MUSTER_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("can't start muster {name}"))?;
        Ok(Self { child })
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    async fn terminate(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let end = Instant::now() + READY_WITHIN;
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(Instant::now() < end, "process {} does not end", self.child.id());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Processor time of all threads so far.
    fn cpu_ns(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            sum += stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(sum)
    }

    fn resident_mb(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kb = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|v| v.trim().strip_suffix(" kB"));
        Ok(kb.context("no VmRSS")?.trim().parse::<f64>()? / 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good as ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
