//! Processes of the lab: started as an ordinary user, ended by their own pid.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Whom a server runs as: `None` is the user of this process.
#[derive(Clone, Debug)]
pub struct RunAs(Option<User>);

#[derive(Clone, Debug)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl RunAs {
    /// The user of this process.
    pub fn same() -> Self {
        Self(None)
    }

    /// For root: the ordinary user `name`. For anyone else: themselves.
    pub fn ordinary(name: &str) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self(None));
        }
        let users = fs::read_to_string("/etc/passwd").context("/etc/passwd can't be read")?;
        let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let user = fields.into_iter().find(|fields| fields.len() > 3 && fields[0] == name);
        let user = user.with_context(|| format!("there is no user {name}; a server may not run as root"))?;
        Ok(Self(Some(User { name: name.into(), uid: user[2].parse()?, gid: user[3].parse()? })))
    }

    /// Gives a file or folder to this user.
    pub fn own(&self, path: &Path) -> Result<()> {
        let Some(user) = &self.0 else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("{} can't be given to {}", path.display(), user.name))
    }

    /// Makes a folder that belongs to this user.
    pub fn folder(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).with_context(|| format!("{} can't be made", path.display()))?;
        self.own(path)
    }

    /// Writes a file that belongs to this user.
    pub fn file(&self, path: &Path, content: &str) -> Result<()> {
        fs::write(path, content).with_context(|| format!("{} can't be written", path.display()))?;
        self.own(path)
    }

    /// A command as this user. When this process dies in whatever way, the kernel sends it `at_death`.
    fn command(&self, program: &Path, at_death: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", at_death]);
        if let Some(user) = &self.0 {
            command.args(["--reuid", &user.uid.to_string(), "--regid", &user.gid.to_string(), "--clear-groups"]);
        }
        command.arg(program);
        command
    }
}

/// A program's path. What is missing is an error that says how to install it.
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed: apt-get install -y --no-install-recommends {package}"))
}

/// How to start a server.
pub struct Start<'a> {
    /// For messages.
    pub name: &'static str,
    /// Which program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [String],
    /// Its working folder; its log goes there.
    pub dir: &'a Path,
    /// Whom it runs as.
    pub run_as: &'a RunAs,
    /// What makes it end in order; also sent by the kernel when this process dies.
    pub stop: Signal,
}

/// A running server: a process group of its own. It ends with this value, and with this process.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
    stop: Signal,
}

/// How long a server may take to end in order.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

impl Server {
    /// Starts it. It need not be ready: see [`Self::ready`].
    pub fn start(start: &Start<'_>) -> Result<Self> {
        let log = start.dir.join(format!("{}.log", start.name));
        let out = File::options().create(true).append(true).open(&log).context("the server's log can't be opened")?;
        let at_death = if start.stop == Signal::INT { "INT" } else { "TERM" };
        let mut command = start.run_as.command(start.program, at_death);
        command.args(start.args).current_dir(start.dir).env("HOME", start.dir).env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let child = spawn(command).with_context(|| {
            format!("{} can't be started (setpriv of util-linux is needed, too)", start.program.display())
        })?;
        Ok(Self { name: start.name, child, log, stop: start.stop })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so; an error when the process ends or `limit` is over, with the end of its log.
    pub fn ready(&mut self, limit: Duration, ready: impl FnMut() -> Result<()>) -> Result<()> {
        let (name, log) = (self.name, self.log.clone());
        let child = &mut self.child;
        let ended = || match child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(anyhow!("it ended with {status}")),
            Err(e) => Some(e.into()),
        };
        wait(limit, ended, ready).with_context(|| {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!("{name} is not ready; its log ends:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
        })
    }

    /// Ends it in order; by force when that takes too long.
    pub fn stop(&mut self) {
        self.signal(self.stop);
        let start = Instant::now();
        while start.elapsed() < ENDS_WITHIN {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// Ends it at once and without order, with its whole group: a crash.
    pub fn kill(&mut self) {
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), self.as_pid()) {
            let _ = kill_process_group(pid, Signal::KILL);
            drop(self.child.wait());
        }
    }

    /// Sends a signal to its main process; without effect when it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), self.as_pid()) {
            let _ = kill_process(pid, signal);
        }
    }

    fn as_pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a program to its end and gives its standard output; an error with what it said when it fails.
pub fn run(run_as: &RunAs, dir: &Path, program: &Path, args: &[&str]) -> Result<String> {
    let mut command = run_as.command(program, "TERM");
    command.args(args).current_dir(dir).env("HOME", dir).env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = spawn(command)?.wait_with_output()?;
    if !ended.status.success() {
        bail!("{} failed: {}", program.display(), String::from_utf8_lossy(&ended.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Asks every few milliseconds until `ready` agrees; at the limit the error is what it said last.
pub fn wait_until(limit: Duration, ready: impl FnMut() -> Result<()>) -> Result<()> {
    wait(limit, || None, ready)
}

fn wait(
    limit: Duration,
    mut ended: impl FnMut() -> Option<anyhow::Error>,
    mut ready: impl FnMut() -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        if let Some(e) = ended() {
            return Err(e);
        }
        match ready() {
            Ok(()) => return Ok(()),
            Err(e) if start.elapsed() >= limit => return Err(e.context(format!("not within {limit:?}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a process from a thread that lives as long as this process: the kernel's signal "your parent died" is bound to
/// the thread that started it, and threads of tests come and go.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                drop(reply.send(command.spawn()));
            }
        });
        orders
    });
    let (reply, answer) = mpsc::channel();
    let gone = || std::io::Error::other("the thread that starts processes is gone");
    spawner.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
