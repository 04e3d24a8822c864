//! The guard's side: what runs when the binary is started with `guard`.

use std::{
    collections::HashSet,
    io::{self, BufRead, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, getpid, set_child_subreaper, setsid};

use super::Order;
use crate::proc;

/// What is asked to end gets this long before it is killed.
const END_WITHIN: Duration = Duration::from_secs(2);
/// What is killed gets this long to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Be a guard; the exit code to end with: the program's own, 128 + signal if a signal ended it, 127 if it could not be
/// started. To be called first thing, before any thread is started.
pub fn run() -> i32 {
    match guard() {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        Err(error) => {
            // Nobody is left to be told if this fails too.
            let _ = writeln!(io::stderr(), "guard: {error}");
            127
        }
    }
}

fn guard() -> io::Result<ExitStatus> {
    setsid()?;
    set_child_subreaper(Some(getpid()))?;
    let mut lifeline = io::stdin().lock();
    let mut line = String::new();
    lifeline.read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let mut stdin = vec![0; order.stdin_bytes];
    lifeline.read_exact(&mut stdin)?;
    drop(lifeline);
    let mut child = start(&order)?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that does not read its input is no fault.
        thread::spawn(move || pipe.write_all(&stdin));
    }
    thread::spawn(|| {
        let mut rest = Vec::new();
        // An end, a byte, or an error: each means that the attempt is over.
        let _ = io::stdin().lock().take(1).read_to_end(&mut rest);
        end(Signal::TERM, END_WITHIN);
        end(Signal::KILL, GONE_WITHIN);
    });
    let status = child.wait()?;
    end(Signal::KILL, GONE_WITHIN);
    Ok(status)
}

fn start(order: &Order) -> io::Result<Child> {
    let mut command = Command::new(&order.program);
    command.args(&order.arguments).env_clear().envs(order.env.iter().map(|(name, value)| (name, value)));
    command.stdin(if order.stdin_bytes == 0 { Stdio::null() } else { Stdio::piped() });
    if let Some(folder) = &order.folder {
        command.current_dir(folder);
    }
    command
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("can't start {}: {error}", order.program)))
}

/// Send `signal` to everything in the session and everything below this process until nothing is left or time is up.
fn end(signal: Signal, within: Duration) {
    let deadline = Instant::now() + within;
    let mut told = HashSet::new();
    while let Ok(left) = left() {
        if left.is_empty() || Instant::now() >= deadline {
            break;
        }
        for pid in left {
            if told.insert(pid) {
                proc::signal(pid, signal);
            }
        }
        thread::sleep(POLL);
    }
}

fn left() -> io::Result<Vec<u32>> {
    let me = std::process::id();
    let all = proc::all()?;
    let mut below = HashSet::from([me]);
    // Whose parent has died has this process for a parent, so the tree has no gaps; parents may be listed after children.
    loop {
        let before = below.len();
        below.extend(all.iter().filter(|stat| below.contains(&stat.parent)).map(|stat| stat.pid).collect::<Vec<_>>());
        if below.len() == before {
            break;
        }
    }
    let ours = |stat: &&proc::Stat| stat.pid != me && !stat.zombie && (stat.session == me || below.contains(&stat.pid));
    Ok(all.iter().filter(ours).map(|stat| stat.pid).collect())
}
