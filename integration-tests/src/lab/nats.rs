//! A nats-server.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{
    port::free_port,
    process::{RunAs, Server, Start, program},
};

/// nats-server with JetStream, one node.
#[derive(Debug)]
pub struct Nats {
    server: Option<Server>,
    dir: PathBuf,
    run_as: RunAs,
    port: u16,
}

impl Nats {
    /// Starts it in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        let run_as = RunAs::ordinary("nobody")?;
        run_as.folder(dir)?;
        let mut made = Self { server: None, dir: dir.to_owned(), run_as, port: free_port()? };
        made.restart()?;
        Ok(made)
    }

    /// Stops it if it runs and starts it at the same address.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let program = program("nats-server", "nats-server")?;
        let store = self.dir.join("jetstream").display().to_string();
        let args = ["-a", "127.0.0.1", "-p", &self.port.to_string(), "-js", "-sd", &store].map(str::to_owned);
        let mut server = Server::start(&Start {
            name: "nats-server",
            program: &program,
            args: &args,
            dir: &self.dir,
            run_as: &self.run_as,
            stop: Signal::TERM,
        })?;
        let address = self.address();
        server.ready(Duration::from_secs(15), || greets(&address))?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it; the address stays its own.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Ends it without order: a crash. The address stays its own.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// The running server, to signal it.
    pub fn server(&mut self) -> Option<&mut Server> {
        self.server.as_mut()
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `nats://host:port`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }
}

fn greets(address: &str) -> Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    ensure!(line.starts_with("INFO "), "it says {line:?}");
    Ok(())
}
