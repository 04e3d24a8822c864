//! A process that serves until it is told to stop.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStderr, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::Session;

/// Killed with the test.
pub(crate) struct Server {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Server {
    /// `muster dev` without a playbook; the session talks to it from then on.
    pub(crate) fn dev(session: &mut Session) -> Self {
        let mut child = session.command(&["dev"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("it said: {line}")).trim_end_matches(',');
        session.env("MUSTER_SERVER", url);
        Self { child, said }
    }

    /// SIGTERM; it ends with 0 and has nothing to complain about.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        assert!(!rest.contains("ERROR"), "{rest}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
