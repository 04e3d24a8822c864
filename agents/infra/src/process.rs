//! Other processes on this host: a signal to a server by its pid file, a short command to its end.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use muster_agent::{ActionError, Context};
use rustix::process::{Pid, Signal, kill_process};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

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
    pub(crate) fn reload_if_running(&self) -> Result<bool, ActionError> {
        match self.reload() {
            Ok(()) => Ok(true),
            Err(ActionError::Retry { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Sends SIGHUP. The server answers when it likes: wait for what it should do.
    ///
    /// # Errors
    /// [`ActionError::Retry`] when it is not running, [`ActionError::NeedsPerson`] when this user may not signal it.
    pub(crate) fn reload(&self) -> Result<(), ActionError> {
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

    fn pid(&self) -> Result<Pid, ActionError> {
        crate::params::absolute("pid_file", &self.pid_file)?;
        let file = self.pid_file.display();
        let text = std::fs::read_to_string(&self.pid_file).map_err(|e| {
            ActionError::retry(format!("{} is not running: its pid file {file} can't be read: {e}", self.process))
        })?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| ActionError::retry(format!("{file} holds no pid")))?;
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

/// What a command printed on both channels, and whether it ended with 0.
pub(crate) struct Ended {
    /// Exit code 0.
    pub(crate) good: bool,
    /// Standard output, then standard error; at most 4 KiB.
    pub(crate) text: String,
}

/// Runs a program to its end; it is killed when `limit_ms` is over or the attempt is cancelled.
pub(crate) async fn run(ctx: &Context, limit_ms: u64, program: &Path, args: &[String]) -> Result<Ended, ActionError> {
    let name = program.display().to_string();
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| ActionError::needs_person(format!("{name} can't be started: {e}; install it or name its path")))?;
    let out = crate::bound::within(ctx, limit_ms, &name, child.wait_with_output())
        .await?
        .map_err(|e| ActionError::retry(format!("{name} could not be waited for: {e}")))?;
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text[..text.len().min(4096)]).trim().to_owned();
    Ok(Ended { good: out.status.success(), text })
}
