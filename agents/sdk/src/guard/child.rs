//! The agent's side: starting a program through a guard, and waiting until all of it has ended.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Child,
    sync::oneshot,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Guard, GuardRecords, Order};
use crate::{
    action::{ActionError, Voice},
    proc::{self, Identity},
    text,
};

/// So much of each output is kept unless said otherwise, in bytes; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 64 * 1024;
/// So much of it stands in a message, in bytes.
const SAID: usize = 1024;
/// Of a longer line a log has the beginning, in bytes.
const LONGEST_LINE: usize = 16 * 1024;
/// What a program gets of the agent's environment.
const INHERITED: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ"];
/// Output that arrives later than this after the end of all is not waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often the members of a session are killed until they are gone.
const KILL_ROUNDS: u32 = 200;

/// The children of one attempt. Clones are the same.
#[derive(Clone)]
pub struct Children {
    guard: Guard,
    records: Option<(GuardRecords, String)>,
    living: TaskTracker,
    cancelled: CancellationToken,
}

impl Children {
    pub(crate) fn new(guard: Guard, records: Option<(GuardRecords, String)>, cancelled: CancellationToken) -> Self {
        Self { guard, records, living: TaskTracker::new(), cancelled }
    }

    /// Wait until none of them is left. Each ends when whoever waits for its output is gone.
    pub(crate) async fn ended(&self) {
        if !self.living.is_empty() {
            self.living.close();
            self.living.wait().await;
        }
    }

    /// A program to be started: an absolute path, or a name to be found in the agent's `PATH`. Never a shell.
    pub fn command(&self, program: impl Into<String>) -> Command {
        let env = INHERITED.iter().filter_map(|&name| Some((name.to_owned(), std::env::var(name).ok()?))).collect();
        Command {
            children: self.clone(),
            order: Order { program: program.into(), arguments: Vec::new(), env, folder: None, stdin_bytes: 0 },
            stdin: Vec::new(),
            limit: OUTPUT_LIMIT,
            log: None,
        }
    }
}

/// A program and what it gets. Of the agent's environment it gets `PATH`, `HOME`, `USER`, `LANG`, `LC_ALL` and `TZ`.
pub struct Command {
    children: Children,
    order: Order,
    stdin: Vec<u8>,
    limit: usize,
    log: Option<Arc<dyn Voice>>,
}

/// What a program left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 + signal when a signal ended it; 127 when it could not be started (`stderr` says why).
    pub code: i32,
    /// What it wrote, with what is not UTF-8 replaced, and with a mark (`…`) at its end where more was written.
    pub stdout: String,
    /// The same.
    pub stderr: String,
    /// More was written than was kept.
    pub truncated: bool,
}

/// How a program ended that said this, for a message: at most the last kilobyte of it.
pub fn ended(code: i32, said: &str) -> String {
    match text::tail(said.trim_end(), SAID) {
        said if said.is_empty() => format!("ended with exit code {code}, and wrote nothing to stderr"),
        said => format!("ended with exit code {code}: {said}"),
    }
}

impl Command {
    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.order.arguments.push(argument.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.order.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A variable of its environment; the last one of a name counts.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.order.env.push((name.into(), value.into()));
        self
    }

    /// Where it works.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.order.folder = Some(folder.to_owned());
        self
    }

    /// What it reads; nothing unless said.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How much of each output is kept, in bytes; 64 KiB unless said.
    #[must_use]
    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Each line that it writes, to either output, is a line of the attempt's log as soon as it is whole.
    #[must_use]
    pub fn logged(mut self, voice: Arc<dyn Voice>) -> Self {
        self.log = Some(voice);
        self
    }

    /// Start it and wait for its end. When the attempt is cancelled or its time is up, or this future is dropped, the
    /// program and all that it started are ended.
    ///
    /// # Errors
    /// Retry when it was stopped; permanent when the guard can't be started. A program that ends badly is no error.
    pub async fn output(mut self) -> Result<Output, ActionError> {
        self.order.stdin_bytes = self.stdin.len();
        let program = self.order.program.clone();
        let failed = |error: io::Error| ActionError::permanent(format!("can't start {program}: {error}"));
        let mut child = self.spawn().map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (ended, mut end) = oneshot::channel();
        let reaper = Reaper::new(child, &self.children).map_err(failed)?;
        // On its own, so that it goes on when this future is dropped.
        self.children.living.spawn(async move {
            // Nobody may wait for it any more.
            let _ = ended.send(reaper.wait().await);
        });
        let guarded = matches!(self.children.guard, Guard::Program { .. });
        let talk = async {
            let mut lifeline = stdin;
            if let Some(pipe) = &mut lifeline {
                // A program may end without reading; how it ended is what counts.
                let _ = feed(pipe, &self.order, &self.stdin, guarded).await;
            }
            if !guarded {
                lifeline = None;
            }
            let new = || Kept::new(self.limit, self.log.clone());
            let (mut out, mut err) = (new(), new());
            let status = {
                let reads = async { tokio::join!(out.read(stdout), err.read(stderr)) };
                tokio::pin!(reads);
                tokio::select! {
                    _ = &mut reads => end.await,
                    status = &mut end => {
                        // Whoever still holds the other end was out of a killed guard's reach.
                        let _ = tokio::time::timeout(LAST_WORDS, &mut reads).await;
                        status
                    }
                }
            };
            drop(lifeline);
            let status = status.map_err(|_| io::Error::other("nobody waited for it"))??;
            Ok(Output {
                code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
                stdout: out.text(),
                stderr: err.text(),
                truncated: out.truncated || err.truncated,
            })
        };
        tokio::select! {
            output = talk => output.map_err(failed),
            () = self.children.cancelled.cancelled() => {
                Err(ActionError::retry(format!("{} was stopped before its end", self.order.program)))
            }
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = match &self.children.guard {
            Guard::Program { program, arguments } => {
                let mut command = tokio::process::Command::new(program);
                command.args(arguments);
                command
            }
            Guard::Off => {
                let mut command = tokio::process::Command::new(&self.order.program);
                command.args(&self.order.arguments).env_clear().envs(self.order.env.iter().cloned());
                command.current_dir(self.order.folder.clone().unwrap_or_else(|| PathBuf::from("/")));
                command.process_group(0).kill_on_drop(true);
                command
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }
}

async fn feed(pipe: &mut tokio::process::ChildStdin, order: &Order, stdin: &[u8], guarded: bool) -> io::Result<()> {
    if guarded {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        pipe.write_all(&line).await?;
    }
    pipe.write_all(stdin).await?;
    pipe.flush().await
}

/// What came, and whether there was more.
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
    limit: usize,
    lines: Option<Lines>,
}

impl Kept {
    fn new(limit: usize, log: Option<Arc<dyn Voice>>) -> Self {
        let lines = log.map(|voice| Lines { voice, line: Vec::new(), cut: false });
        Self { bytes: Vec::new(), truncated: false, limit, lines }
    }

    /// The mark says where it was cut: what is left of a secret there is found by it.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        if self.truncated { format!("{text}…") } else { text.into_owned() }
    }

    /// Until its end; an error is an end.
    async fn read(&mut self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = vec![0; 8 * 1024];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            let room = self.limit - self.bytes.len();
            self.bytes.extend_from_slice(&buffer[..count.min(room)]);
            self.truncated |= count > room;
            if let Some(lines) = &mut self.lines {
                lines.take(&buffer[..count]);
            }
        }
        if let Some(lines) = &mut self.lines {
            lines.end();
        }
    }
}

/// Lines as they become whole; of a long one the beginning.
struct Lines {
    voice: Arc<dyn Voice>,
    line: Vec<u8>,
    cut: bool,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = LONGEST_LINE - self.line.len();
            self.cut |= text.len() > room;
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if whole {
                self.tell();
            }
        }
    }

    /// What is left without a line end.
    fn end(&mut self) {
        if !self.line.is_empty() {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let mark = if std::mem::take(&mut self.cut) { "…" } else { "" };
        self.voice.log(&format!("{}{mark}", line.trim_end_matches('\r')));
        self.line.clear();
    }
}

/// Waits for a guard and sees to it that nothing outlives it.
struct Reaper {
    child: Child,
    leader: Option<Identity>,
    record: Option<PathBuf>,
}

impl Reaper {
    /// Writes the guard down, which has not yet been told what to start.
    fn new(child: Child, children: &Children) -> io::Result<Self> {
        let leader = child.id().and_then(proc::identity);
        let record = match (&children.records, leader) {
            (Some((records, instance)), Some(leader)) => Some(records.add(instance, leader)?),
            (Some(_) | None, _) => None,
        };
        Ok(Self { child, leader, record })
    }

    async fn wait(mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        if let Some(leader) = self.leader {
            kill_session(leader).await;
        }
        if let Some(record) = &self.record
            && let Err(error) = std::fs::remove_file(record)
        {
            tracing::warn!(file = %record.display(), %error, "can't forget a guard that has ended");
        }
        status
    }
}

/// A guard leaves nobody behind, unless it was killed itself.
async fn kill_session(leader: Identity) {
    for _ in 0..KILL_ROUNDS {
        let Ok(all) = proc::all() else { return };
        let left: Vec<u32> =
            all.iter().filter(|stat| stat.session == leader.pid && !stat.zombie).map(|stat| stat.pid).collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            proc::signal(pid, Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tracing::warn!(session = leader.pid, "children of an attempt can't be killed; look at them");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_colon_stands_before_nothing() {
        assert_eq!(ended(4, "no such side\n"), "ended with exit code 4: no such side");
        assert_eq!(ended(4, " \n"), "ended with exit code 4, and wrote nothing to stderr");
    }
}
