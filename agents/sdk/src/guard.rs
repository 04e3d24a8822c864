//! Children that end with their attempt, also when the agent is killed.
//!
//! A program is not started by the agent itself but by a guard: the agent's binary again, with the argument `guard`. The
//! guard opens a session of its own and adopts whatever is left over in it; its standard input is a lifeline that the
//! agent holds open. When the lifeline breaks (the agent ends it, or is killed) or the program ends, the guard ends
//! everything that the program has started. (A death signal would follow the thread that forked, and an agent's threads
//! come and go; a pipe follows the process.)
//!
//! With a data folder each guard is written down before its program starts, so that the agent's next process can tell
//! whether all children of the one before are dead.

mod child;
mod process;

use std::{
    error::Error,
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

pub use child::{Children, Command, Output, ended};
pub use process::run;
use serde::{Deserialize, Serialize};

use crate::proc::{self, Identity};

/// How a guard is started.
#[derive(Clone, Debug)]
pub enum Guard {
    /// Through this program, which calls [`run`].
    Program {
        /// The binary.
        program: PathBuf,
        /// What makes it a guard.
        arguments: Vec<OsString>,
    },
    /// Not at all: for tests of actions, whose binary can't be a guard. A child then outlives a killed agent.
    Off,
}

impl Guard {
    /// This binary with the argument `guard`; the same version also after the file has been replaced.
    pub fn this_binary() -> Self {
        Self::program("/proc/self/exe")
    }

    /// Another binary with the argument `guard`.
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self::Program { program: program.into(), arguments: vec!["guard".into()] }
    }
}

/// The `main` of an agent's program: a guard if it was started as one, else `agent` with its arguments, on a runtime of its
/// own. What it ends with is told on standard error.
pub fn main<A>(agent: impl FnOnce(Vec<String>) -> A) -> ExitCode
where
    A: Future<Output = Result<(), Box<dyn Error>>>,
{
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "guard") {
        return ExitCode::from(u8::try_from(run()).unwrap_or(u8::MAX));
    }
    let ended =
        tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(agent(arguments)));
    let Err(error) = ended else { return ExitCode::SUCCESS };
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    // Nobody is left to be told if this fails too.
    let _ = writeln!(io::stderr(), "{error}{source}");
    ExitCode::FAILURE
}

/// What the guard is told on its standard input: a line of this, then `stdin_bytes` bytes, then silence as long as the
/// program may live.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    program: String,
    arguments: Vec<String>,
    env: Vec<(String, String)>,
    folder: Option<PathBuf>,
    stdin_bytes: usize,
}

/// The folder in which guards are written down.
#[derive(Clone, Debug)]
pub(crate) struct GuardRecords {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record {
    instance: String,
    #[serde(flatten)]
    leader: Identity,
}

impl GuardRecords {
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Write down that `instance` has a guard; the file to remove when it has ended.
    fn add(&self, instance: &str, leader: Identity) -> io::Result<PathBuf> {
        let path = self.folder.join(format!("{}-{}.json", leader.pid, leader.started));
        // Not lost with this process, and without meaning after the next start of the system: no sync.
        fs::write(&path, serde_json::to_vec(&Record { instance: instance.to_owned(), leader })?)?;
        Ok(path)
    }

    /// Whether anything that `instance` has started may still be alive. Forgets what is dead.
    pub(crate) fn any_alive(&self, instance: &str) -> io::Result<bool> {
        let mut alive = false;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let record = match fs::read(&path).map(|bytes| serde_json::from_slice::<Record>(&bytes)) {
                Ok(Ok(record)) => record,
                // Written by a process that died over it, before its program was started; or a guard just ended.
                Ok(Err(_)) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if record.instance != instance {
                continue;
            }
            if proc::session_is_alive(record.leader)? {
                alive = true;
            } else {
                fs::remove_file(&path)?;
            }
        }
        Ok(alive)
    }
}
