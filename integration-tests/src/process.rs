//! Child processes of a test: in a group of their own, their output in a file, ended by their own pid when dropped.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// A child with everything it has started.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Start `command`; what it prints goes to `{name}.log` in `dir`, after what an earlier one has left there.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).with_context(|| format!("{}", log.display()))?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("can't start {name}: {command:?}"))?;
        Ok(Self { name: name.into(), child, log })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9` of the process alone, and wait for its end; its children live on.
    ///
    /// # Errors
    /// When it has already ended.
    pub fn kill(&mut self) -> Result<()> {
        kill_process(self.id(), Signal::KILL).with_context(|| format!("kill -9 {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Send a signal to the process alone.
    ///
    /// # Errors
    /// When it has already ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.id(), signal).with_context(|| format!("signal {signal:?} to {}", self.name))
    }

    /// Ask it and its group to end (SIGTERM; a program that wraps another one may not pass it on), and wait for that.
    ///
    /// # Errors
    /// When it does not end in time; it is killed when dropped.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill_process_group(self.id(), Signal::TERM).with_context(|| format!("signal to {}", self.name))?;
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "{} does not end within {within:?}:\n{}", self.name, tail(&self.output()));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good as ended.
        let _ = kill_process_group(self.id(), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Poll until `holds` gives a value, for at most `within`; the error says what was waited for and what was seen last.
///
/// # Errors
/// When it did not hold in time.
pub fn wait_for<T>(what: &str, within: Duration, mut holds: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        let last = match holds() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= end {
            match last {
                Some(error) => return Err(error.context(format!("{what}: not within {within:?}"))),
                None => bail!("{what}: not within {within:?}"),
            }
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// The last lines of a log, for a message.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// The root of the checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Binaries that this process has built.
static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The path of a binary of this workspace, built once for this test process in the profile of the tests; or as it is in the
/// folder that `MUSTER_BINARIES` names, for those who have just built all of them.
///
/// # Panics
/// When it does not build: no test of it can say anything then.
pub fn binary(package: &str, name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("MUSTER_BINARIES") {
        return Path::new(&folder).join(name);
    }
    let mut built = BUILT.lock().expect("no build panics while it holds this lock");
    let profile_dir = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent()?.parent().map(Path::to_path_buf))
        .expect("a test binary lies in target/<profile>/deps");
    if built.insert(name.to_owned()) {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--package", package, "--bin", name]).current_dir(checkout());
        if profile_dir.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().expect("cargo starts");
        assert!(status.success(), "{name} does not build");
    }
    profile_dir.join(name)
}
