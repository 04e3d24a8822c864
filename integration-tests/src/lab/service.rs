//! The sample service as a process.

use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::{
    port::free_port,
    process::{RunAs, Server, Start},
};

/// The program `sample-service`, running.
#[derive(Debug)]
pub struct SampleService {
    // Held for its end.
    _server: Server,
    port: u16,
}

impl SampleService {
    /// Starts it in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_release(dir, "1.0.0")
    }

    /// Starts it in `dir`; it says that it is of this version.
    pub fn start_release(dir: &Path, release: &str) -> Result<Self> {
        let run_as = RunAs::same();
        run_as.folder(dir)?;
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let mut server = Server::start(&Start {
            name: "sample-service",
            program: &beside("sample-service")?,
            args: &["--listen", &address, "--release", release].map(str::to_owned),
            dir,
            run_as: &run_as,
            stop: Signal::TERM,
        })?;
        server.ready(Duration::from_secs(10), || Ok(TcpStream::connect(&address).map(drop)?))?;
        Ok(Self { _server: server, port })
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// A program of this workspace: beside this one, or one folder up for a test.
pub(super) fn beside(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folders = this.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: cargo build -p muster-integration-tests --bin {name}"))
}
