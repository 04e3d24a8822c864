//! What `/proc` says of processes. Linux only.

use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};

/// A process, told apart from a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// Of its start, in clock ticks since the system's.
    pub(crate) started: u64,
}

/// A line of `/proc/{pid}/stat`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) session: u32,
    pub(crate) started: u64,
    /// It has ended, and its parent has not yet asked how.
    pub(crate) zombie: bool,
}

/// Of one process; none if there is no such process.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, also `)`.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(15)?.parse().ok()?;
    Some(Stat { pid, parent, session, started, zombie: matches!(state, "Z" | "X") })
}

/// Of all processes that are there now.
pub(crate) fn all() -> io::Result<Vec<Stat>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(stat).collect())
}

/// Of this process.
pub(crate) fn myself() -> io::Result<Identity> {
    let pid = std::process::id();
    identity(pid).ok_or_else(|| io::Error::other("this process is not in /proc; is /proc mounted?"))
}

/// Of a process that is there.
pub(crate) fn identity(pid: u32) -> Option<Identity> {
    stat(pid).map(|stat| Identity { pid, started: stat.started })
}

/// Whether it is still there.
pub(crate) fn is_alive(identity: Identity) -> bool {
    stat(identity.pid).is_some_and(|stat| stat.started == identity.started && !stat.zombie)
}

/// Whether the session that `leader` began still has members. A session's id is not given to a new process as long as
/// one is left, so another start time under it means that all are gone.
pub(crate) fn session_is_alive(leader: Identity) -> io::Result<bool> {
    if stat(leader.pid).is_some_and(|stat| stat.started != leader.started) {
        return Ok(false);
    }
    Ok(all()?.iter().any(|stat| stat.session == leader.pid && !stat.zombie))
}

/// Send a signal; a process that is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Gone, or another's: neither can be mended here.
        let _ = kill_process(pid, signal);
    }
}

/// Names this start of the system.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_processes_apart() {
        let me = myself().unwrap();
        assert!(is_alive(me));
        assert!(!is_alive(Identity { started: me.started + 1, ..me }));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let was = identity(child.id());
        child.wait().unwrap();
        assert!(!was.is_some_and(is_alive));
        assert!(all().unwrap().iter().any(|stat| stat.pid == me.pid));
        assert!(!boot_id().unwrap().is_empty());
    }
}
