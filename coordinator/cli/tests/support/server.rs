//! A process that serves until it is told to stop.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::Session;

/// A process of the binary; killed with the test.
pub(crate) struct Server {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Server {
    /// `muster dev` without a playbook; the session talks to it from then on.
    pub(crate) fn dev(session: &mut Session) -> Self {
        let mut server = Self::start(session, &["dev"]);
        let mut line = String::new();
        server.said.read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("it said: {line}")).trim_end_matches(',');
        session.env("MUSTER_SERVER", url);
        server
    }

    /// Any other; whether it is ready is for the test to see.
    pub(crate) fn start(session: &Session, args: &[&str]) -> Self {
        let mut child = session.command(args).stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        Self { child, said }
    }

    /// SIGTERM; it ends with 0 and has nothing to complain about. What it said.
    pub(crate) fn stop(mut self) -> String {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        assert!(!rest.contains("ERROR"), "{rest}");
        rest
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A real nats-server on a free port; killed with the test.
pub(crate) struct Nats {
    child: Child,
    pub(crate) url: String,
}

impl Nats {
    pub(crate) fn start(session: &Session) -> Self {
        let ports = session.folder("nats");
        let mut command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir"]).arg(&ports);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child =
            child.unwrap_or_else(|e| panic!("can't start nats-server ({e}); install it: apt-get install nats-server"));
        let file = ports.join(format!("nats-server_{}.ports", child.id()));
        let mut nats = Self { child, url: String::new() };
        nats.url = wait_for("nats-server writes its port", || {
            let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
            ports["nats"][0].as_str().map(str::to_owned)
        });
        nats
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Look until it is so, for at most half a minute.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
