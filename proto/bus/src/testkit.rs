//! For tests: a real nats-server, a bus that loses, delays and repeats, and a stream of events in memory.

mod events;

use std::{
    fs,
    io::{self, ErrorKind},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::events::MemoryEvents;
use crate::bus::{Bus, BusError, Subscription};

/// How long a server may take to start.
const START_WITHIN: Duration = Duration::from_secs(10);

/// A nats-server on a free port of 127.0.0.1, with its files in a folder of its own. It ends with this value.
pub struct NatsServer {
    child: Child,
    program: PathBuf,
    port: u16,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
}

impl NatsServer {
    /// Start one and wait until it answers.
    ///
    /// # Errors
    /// Says how to install it when it is missing.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// The same with more arguments: `-js`, `-c FILE`, `-D`.
    pub fn start_with(arguments: &[&str]) -> io::Result<Self> {
        Self::start_program(Path::new("nats-server"), arguments)
    }

    /// The same by another program than the `nats-server` of the `PATH`: one of another version.
    pub fn start_program(program: &Path, arguments: &[&str]) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
        let program = program.to_owned();
        let child = spawn(&program, port, &arguments, &folder)?;
        Ok(Self { child, program, port, arguments, folder })
    }

    /// `nats://127.0.0.1:{port}`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its files are: its log, and what JetStream keeps.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// End it at once, as a crash would; [`Self::start_again`] brings it back.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Start it again on the same port, and wait until it answers.
    pub fn start_again(&mut self) -> io::Result<()> {
        self.kill()?;
        self.child = spawn(&self.program, self.port, &self.arguments, &self.folder)?;
        Ok(())
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // Nothing can be done about a process that can't be ended.
        let _ = self.kill();
    }
}

fn spawn(program: &Path, port: u16, arguments: &[String], folder: &tempfile::TempDir) -> io::Result<Child> {
    let log = folder.path().join("nats.log");
    let output = fs::File::create(&log)?;
    let mut child = Command::new(program)
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder.path().join("store"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                let program = program.display();
                io::Error::new(ErrorKind::NotFound, format!("{program} is missing; install it: `make tools`"))
            } else {
                error
            }
        })?;
    let deadline = Instant::now() + START_WITHIN;
    while Instant::now() < deadline {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() && child.try_wait()?.is_none() {
            return Ok(child);
        }
        if let Some(status) = child.try_wait()? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(io::Error::other(format!("nats-server ended with {status}: {said}")));
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    Err(io::Error::new(ErrorKind::TimedOut, "nats-server does not answer"))
}

/// How often a [`FaultyBus`] does what, in per mille of its requests and publications.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Decides which ones; the same seed and order give the same faults.
    pub seed: u64,
    /// It is not sent; a request runs into its timeout.
    pub lose: u16,
    /// It is sent, and its reply is lost.
    pub lose_reply: u16,
    /// It is sent twice; the reply to the second one is used.
    pub repeat: u16,
    /// It is sent late by up to [`Self::delay_at_most`].
    pub delay: u16,
    /// How late.
    pub delay_at_most: Duration,
}

/// Another bus with faults, and with a plug that can be pulled. Subscriptions are not touched: what is lost, late or
/// repeated is so on its way to them.
pub struct FaultyBus {
    inner: Arc<dyn Bus>,
    faults: Faults,
    count: AtomicU64,
    cut: AtomicBool,
}

impl FaultyBus {
    /// Put faults before `inner`.
    pub fn new(inner: Arc<dyn Bus>, faults: Faults) -> Self {
        Self { inner, faults, count: AtomicU64::new(0), cut: AtomicBool::new(false) }
    }

    /// Pull the plug (nothing is sent, and it says so) or put it in again.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    fn plan(&self) -> Plan {
        let mut state =
            self.faults.seed ^ self.count.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut hits = |per_mille: u16| next(&mut state) % 1000 < u64::from(per_mille);
        let plan = Plan {
            lose: hits(self.faults.lose),
            lose_reply: hits(self.faults.lose_reply),
            repeat: hits(self.faults.repeat),
            delay: hits(self.faults.delay).then_some(Duration::ZERO),
        };
        let share = next(&mut state) % 1000;
        let late = self.faults.delay_at_most.mul_f64(f64::from(u32::try_from(share).unwrap_or(0)) / 1000.0);
        Plan { delay: plan.delay.map(|_| late), ..plan }
    }

    fn check(&self) -> Result<(), BusError> {
        if self.cut.load(Ordering::SeqCst) { Err(BusError::Disconnected("cut off".to_owned())) } else { Ok(()) }
    }
}

struct Plan {
    lose: bool,
    lose_reply: bool,
    repeat: bool,
    delay: Option<Duration>,
}

/// `SplitMix64`.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[async_trait]
impl Bus for FaultyBus {
    async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes, BusError> {
        self.check()?;
        let plan = self.plan();
        if plan.lose {
            tokio::time::sleep(timeout).await;
            return Err(BusError::Timeout(subject.to_owned()));
        }
        if let Some(late) = plan.delay {
            tokio::time::sleep(late.min(timeout)).await;
        }
        if plan.repeat {
            // Only the answer to the second copy counts.
            let _ = self.inner.request(subject, payload.clone(), timeout).await;
        }
        let reply = self.inner.request(subject, payload, timeout).await;
        if plan.lose_reply {
            tokio::time::sleep(timeout).await;
            return Err(BusError::Timeout(subject.to_owned()));
        }
        self.check()?;
        reply
    }

    fn send_request(&self, subject: &str, answer_to: &str, payload: Bytes) -> Result<(), BusError> {
        self.check()?;
        let plan = self.plan();
        if plan.lose {
            return Ok(());
        }
        // Where nobody listens.
        let answer_to = if plan.lose_reply { format!("{answer_to}.lost") } else { answer_to.to_owned() };
        if plan.repeat {
            self.inner.send_request(subject, &format!("{answer_to}.lost"), payload.clone())?;
        }
        let Some(late) = plan.delay else { return self.inner.send_request(subject, &answer_to, payload) };
        let (inner, subject) = (self.inner.clone(), subject.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            // What is late may find the bus gone; that is a loss.
            let _ = inner.send_request(&subject, &answer_to, payload);
        });
        Ok(())
    }

    fn inbox(&self) -> String {
        self.inner.inbox()
    }

    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        self.check()?;
        let plan = self.plan();
        if plan.lose {
            return Ok(());
        }
        if let Some(late) = plan.delay {
            tokio::time::sleep(late).await;
        }
        if plan.repeat {
            self.inner.publish(subject, payload.clone()).await?;
        }
        self.inner.publish(subject, payload).await
    }

    async fn subscribe(&self, pattern: &str) -> Result<Subscription, BusError> {
        self.inner.subscribe(pattern).await
    }

    fn max_payload(&self) -> usize {
        self.inner.max_payload()
    }

    fn is_connected(&self) -> bool {
        !self.cut.load(Ordering::SeqCst) && self.inner.is_connected()
    }

    async fn flush(&self) -> Result<(), BusError> {
        self.check()?;
        self.inner.flush().await
    }
}
