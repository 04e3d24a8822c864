//! Other processes on this host: a signal to a server by its pid file, a short command to its end.

use std::path::{Path, PathBuf};

use muster_agent::{ActionError, Context, allow::Allow, guard};
use rustix::process::{Pid, Signal, kill_process};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A server that reads its configuration again on SIGHUP.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Absolute path of the file that holds its pid.
    pub pid_file: PathBuf,
    /// The name its process must have, so that a stale pid file never hits a stranger: `nginx`.
    pub process: String,
}

impl Server {
    /// Sends SIGHUP where it runs and says so; one that does not run will read its files when it starts.
    pub fn reload_if_running(&self) -> Result<bool, ActionError> {
        match self.reload() {
            Ok(()) => Ok(true),
            Err(ActionError::Retry { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Sends SIGHUP; nginx is waited for until only new workers take connections. `true`: it runs.
    ///
    /// # Errors
    /// [`ActionError::Retry`] when nginx keeps its former workers for ten seconds.
    pub async fn reload_and_wait(&self, ctx: &Context) -> Result<bool, ActionError> {
        let former = if self.process == "nginx" { self.children() } else { Vec::new() };
        let runs = self.reload_if_running()?;
        let left = || std::future::ready(if have_left(&former) { Ok(()) } else { Err(KEPT_WORKERS.into()) });
        crate::bound::until(ctx, SETTLE_MS, 20, "the reloaded nginx", left).await?;
        Ok(runs)
    }

    /// Sends SIGHUP. The server answers when it likes: wait for what it should do.
    ///
    /// # Errors
    /// [`ActionError::Retry`] when it is not running, [`ActionError::NeedsPerson`] when this user may not signal it.
    pub fn reload(&self) -> Result<(), ActionError> {
        let pid = self.pid()?;
        kill_process(pid, Signal::HUP).map_err(|e| match e {
            rustix::io::Errno::PERM => ActionError::needs_person(format!(
                "this agent may not signal {} (pid {}); run it as the server's user",
                self.process,
                pid.as_raw_nonzero()
            )),
            e => ActionError::retry(format!("{} (pid {}) can't be signalled: {e}", self.process, pid.as_raw_nonzero())),
        })
    }

    /// The pids of its children; empty when it does not run.
    pub fn children(&self) -> Vec<u32> {
        let Ok(parent) = self.pid() else { return Vec::new() };
        let parent = parent.as_raw_nonzero().to_string();
        let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            // "pid (name) state parent …", and a name may hold anything.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(parent.as_str())
        })
        .collect()
    }

    /// Its pid.
    ///
    /// # Errors
    /// [`ActionError::Retry`] when it is not running.
    pub fn pid(&self) -> Result<Pid, ActionError> {
        crate::params::absolute("pid_file", &self.pid_file)?;
        let file = self.pid_file.display();
        let text = std::fs::read_to_string(&self.pid_file).map_err(|e| {
            ActionError::retry(format!("{} is not running: its pid file {file} can't be read: {e}", self.process))
        })?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid =
            pid.ok_or_else(|| ActionError::retry(format!("{} is not running: {file} holds no pid", self.process)))?;
        let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap_or_default();
        if name.trim_end() == self.process {
            return Ok(pid);
        }
        Err(ActionError::retry(format!(
            "{} is not running: {file} names pid {}, which is {}",
            self.process,
            pid.as_raw_nonzero(),
            if name.is_empty() { "gone" } else { name.trim_end() }
        )))
    }
}

/// Whether none of the workers that were there before a reload takes connections any more: each is gone, or says that it is
/// shutting down. Until then both generations do, and one answer of the new one proves nothing.
pub fn have_left(former: &[u32]) -> bool {
    former
        .iter()
        .map(|pid| title(*pid))
        .all(|title| !title.contains("worker process") || title.contains("shutting down"))
}

/// Those of these workers that are still there, shutting down or not: each still answers something.
pub fn still_there(workers: &[u32]) -> Vec<u32> {
    workers.iter().copied().filter(|pid| title(*pid).contains("worker process")).collect()
}

/// Those of these workers that are there only until they have answered what they were asked.
pub fn leaving(workers: &[u32]) -> Vec<u32> {
    workers.iter().copied().filter(|pid| title(*pid).contains("worker process is shutting down")).collect()
}

/// The command line that a process shows; empty when it is gone.
fn title(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// For messages: a reload that nginx did not do.
pub const KEPT_WORKERS: &str = "workers with the former configuration still take connections; see nginx' log";
const SETTLE_MS: u64 = 10_000;

/// What a program printed, and whether it ended with 0.
pub struct Ended {
    /// Exit code 0.
    pub good: bool,
    /// Standard output, then standard error; at most 4 KiB of each.
    pub text: String,
}

/// Runs a program to its end; it is ended when `limit_ms` is over or the attempt is cancelled.
pub async fn run(ctx: &Context, limit_ms: u64, program: &Path, args: &[String]) -> Result<Ended, ActionError> {
    let name = program.display().to_string();
    let command = ctx.command(name.as_str()).args(args).limit(4096);
    let output = crate::bound::within(ctx, limit_ms, &name, command.output()).await??;
    let text = format!("{}{}", output.stdout, output.stderr).trim().to_owned();
    if output.code == 127 {
        return Err(ActionError::needs_person(format!("{name} can't be started: {text}; install it or name its path")));
    }
    Ok(Ended { good: output.code == 0, text })
}

/// A program that `allow` lists, ready to be started: its content has just been compared with the list. Never a shell. What it
/// writes is in the attempt's log.
///
/// # Errors
/// Permanent when it is not listed, or is another file than was listed.
pub async fn allowed(ctx: &Context, allow: &Allow, name: &str) -> Result<guard::Command, ActionError> {
    let (list, listed) = (allow.clone(), name.to_owned());
    let path = crate::bound::blocking(move || {
        list.verify(&listed).map_err(|e| {
            let why = std::error::Error::source(&e).map(|inner| format!(": {inner}")).unwrap_or_default();
            ActionError::permanent(format!("{e}{why}"))
        })
    })
    .await?;
    let program = path
        .to_str()
        .ok_or_else(|| ActionError::permanent(format!("command {name:?}: its path is not UTF-8; move it")))?;
    Ok(ctx.command(program).logged(ctx.voice.clone()))
}
