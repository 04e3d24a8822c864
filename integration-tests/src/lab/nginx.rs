//! An nginx.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{
    port::free_port,
    process::{RunAs, Server, Start, program},
    tls::Certificates,
};

/// nginx with one site on an HTTP and an HTTPS port, in front of an upstream, without a redirect between the two.
#[derive(Debug)]
pub struct Nginx {
    server: Option<Server>,
    dir: PathBuf,
    run_as: RunAs,
    http: u16,
    https: u16,
}

impl Nginx {
    /// The user that it runs as.
    pub fn user() -> Result<RunAs> {
        RunAs::ordinary("nobody")
    }

    /// Writes its files into `dir` and starts it.
    pub fn start(dir: &Path, domain: &str, certificates: &Certificates, upstream: &str) -> Result<Self> {
        let mut made =
            Self { server: None, dir: dir.to_owned(), run_as: Self::user()?, http: free_port()?, https: free_port()? };
        for folder in ["", "sites", "tmp"] {
            made.run_as.folder(&dir.join(folder))?;
        }
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("  {kind}_temp_path {}/tmp/{kind};\n", dir.display()))
            .concat();
        let main = format!(
            "daemon off;\nworker_processes 1;\npid {};\nerror_log stderr notice;\nevents {{ worker_connections 512; \
             }}\nhttp {{\n  access_log off;\n{temporary}  include {}/sites/*.conf;\n}}\n",
            made.pid_file().display(),
            dir.display()
        );
        made.run_as.file(&made.config(), &main)?;
        let (http, https) = (made.http_address(), made.https_address());
        let place = format!("server_name {domain};\n  location / {{ proxy_pass http://{upstream}; }}\n");
        let site = format!(
            "# as it was found\nserver {{\n  listen {http};\n  {place}}}\nserver {{\n  listen {https} ssl;\n  \
             ssl_certificate {};\n  ssl_certificate_key {};\n  {place}}}\n",
            certificates.cert().display(),
            certificates.key().display()
        );
        made.run_as.file(&made.site(), &site)?;
        made.restart()?;
        Ok(made)
    }

    /// Stops it if it runs and starts it at the same addresses.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let program = program("nginx", "nginx-light")?;
        let args = ["-c", &self.config().display().to_string(), "-e", "stderr"].map(str::to_owned);
        let mut server = Server::start(&Start {
            name: "nginx",
            program: &program,
            args: &args,
            dir: &self.dir,
            run_as: &self.run_as,
            stop: Signal::TERM,
        })?;
        let (address, pid, pid_file) = (self.https_address(), server.pid().to_string(), self.pid_file());
        server.ready(Duration::from_secs(10), || {
            TcpStream::connect(&address)?;
            // It listens before it says who it is.
            ensure!(fs::read_to_string(&pid_file)?.trim() == pid, "its pid file is not written yet");
            Ok(())
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it; the addresses stay its own.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// `host:port` of HTTP.
    pub fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.http)
    }

    /// `host:port` of HTTPS.
    pub fn https_address(&self) -> String {
        format!("127.0.0.1:{}", self.https)
    }

    /// Its main configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("nginx.conf")
    }

    /// Its pid file.
    pub fn pid_file(&self) -> PathBuf {
        self.dir.join("nginx.pid")
    }

    /// The file of its only site.
    pub fn site(&self) -> PathBuf {
        self.dir.join("sites/revenue-engine.conf")
    }
}
