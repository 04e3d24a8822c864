//! A Redis server.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{
    port::free_port,
    process::{RunAs, Server, Start, program, run},
    tls::secret,
};
use crate::canary;

/// Redis with a password, without persistence and without a limit of memory: after a restart all is gone.
///
/// Users: `default`, who may do all, and [`REDIS_READER`], who may read; both have the same password.
#[derive(Debug)]
pub struct Redis {
    server: Option<Server>,
    dir: PathBuf,
    run_as: RunAs,
    port: u16,
    password: String,
}

/// A user that may neither write nor administer.
pub const REDIS_READER: &str = "reader";

const PACKAGE: &str = "redis-server";

impl Redis {
    /// Writes its files into `dir` and starts it.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, "")
    }

    /// The same with more lines in its file.
    pub fn start_with(dir: &Path, lines: &str) -> Result<Self> {
        let run_as = RunAs::ordinary("nobody")?;
        run_as.folder(dir)?;
        let password = canary::password();
        let mut made = Self { server: None, dir: dir.to_owned(), run_as, port: free_port()?, password };
        secret(&made.run_as, &made.password_file(), &format!("{}\n", made.password))?;
        let config = format!(
            "# as it was found\nbind 127.0.0.1\nport {}\ndir {}\nuser default on >{password} ~* &* +@all\nuser \
             {REDIS_READER} on >{password} ~* &* +@read +@connection\nappendonly no\nsave \"\"\nloglevel notice\n{lines}",
            made.port,
            dir.display(),
            password = made.password,
        );
        secret(&made.run_as, &made.config(), &config)?;
        made.restart()?;
        Ok(made)
    }

    /// Stops it if it runs and starts it at the same address.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let program = program("redis-server", PACKAGE)?;
        let mut server = Server::start(&Start {
            name: "redis",
            program: &program,
            args: &[self.config().display().to_string()],
            dir: &self.dir,
            run_as: &self.run_as,
            stop: Signal::TERM,
        })?;
        server.ready(Duration::from_secs(10), || {
            let said = self.cli(&["PING"])?;
            ensure!(said == "PONG", "it says {said}");
            Ok(())
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it; the address stays its own.
    pub fn stop(&mut self) {
        self.thaw();
        self.server = None;
    }

    /// Ends it without order: what is not on disk is gone.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// From then on it accepts connections and never answers.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    /// It answers again.
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("redis.conf")
    }

    /// A file that holds the password of both users.
    pub fn password_file(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// The password of both users.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// What redis-cli answers, asked as the user who may do all; an error of the server is an error.
    pub fn cli(&self, words: &[&str]) -> Result<String> {
        let (program, port) = (program("redis-cli", "redis-tools")?, self.port.to_string());
        let mut args = vec!["-e", "-h", "127.0.0.1", "-p", &port, "-a", &self.password, "--no-auth-warning"];
        args.extend(words);
        Ok(run(&RunAs::same(), Path::new("/"), &program, &args)?.trim().to_owned())
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(server) = &mut self.server {
            server.signal(signal);
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}
