//! A PgBouncer.

use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use rustix::process::Signal;

use super::{
    port::free_port,
    postgres::{APP_USER, DATABASE, Postgres, psql},
    process::{RunAs, Server, Start, program},
    tls::secret,
};

/// How the pool is set up when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// One server connection, given to a client for as long as it stays: a second client waits for ever.
    OneSession,
    /// No database that a client may ask for.
    NoDatabase,
}

/// PgBouncer in front of the lab's PostgreSQL. Console user: `pgbouncer`; the password is PostgreSQL's.
#[derive(Debug)]
pub struct PgBouncer {
    server: Option<Server>,
    dir: PathBuf,
    run_as: RunAs,
    port: u16,
    password: String,
}

/// The user of the console.
pub const CONSOLE_USER: &str = "pgbouncer";

impl PgBouncer {
    /// Writes its files into `dir` and starts it.
    pub fn start(dir: &Path, postgres: &Postgres, pooling: Pooling) -> Result<Self> {
        let run_as = RunAs::ordinary("postgres")?;
        run_as.folder(dir)?;
        let password = postgres.password().to_owned();
        let mut made = Self { server: None, dir: dir.to_owned(), run_as, port: free_port()?, password };
        let users = [APP_USER, CONSOLE_USER].map(|user| format!("\"{user}\" \"{}\"\n", made.password)).concat();
        secret(&made.run_as, &made.auth_file(), &users)?;
        let databases = match pooling {
            Pooling::OneSession => {
                format!("{DATABASE} = host=127.0.0.1 port={} dbname={DATABASE}\n", postgres.port())
            }
            Pooling::NoDatabase => String::new(),
        };
        let (port, auth_file) = (made.port, made.auth_file());
        let ini = format!(
            "; as it was found\n[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = plain\nauth_file = {}\nadmin_users = {CONSOLE_USER}\npool_mode = session\n\
             default_pool_size = 1\nmax_client_conn = 100\nignore_startup_parameters = extra_float_digits\n",
            auth_file.display()
        );
        made.run_as.file(&made.config(), &ini)?;
        made.restart()?;
        Ok(made)
    }

    /// Stops it if it runs and starts it at the same address.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let program = program("pgbouncer", "pgbouncer")?;
        let mut server = Server::start(&Start {
            name: "pgbouncer",
            program: &program,
            args: &[self.config().display().to_string()],
            dir: &self.dir,
            run_as: &self.run_as,
            stop: Signal::TERM,
        })?;
        server.ready(Duration::from_secs(10), || Ok(TcpStream::connect(self.address()).map(drop)?))?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it; the address stays its own.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("pgbouncer.ini")
    }

    /// Its file of users.
    pub fn auth_file(&self) -> PathBuf {
        self.dir.join("users.txt")
    }

    /// The pool, for the application.
    pub fn dsn(&self) -> String {
        format!("postgres://{APP_USER}@{}/{DATABASE}", self.address())
    }

    /// The console.
    pub fn console_dsn(&self) -> String {
        format!("postgres://{CONSOLE_USER}@{}/pgbouncer", self.address())
    }

    /// What psql answers to `sql`, asked through the pool.
    pub fn sql(&self, sql: &str) -> Result<String> {
        psql(&self.with_password(&self.dsn()), sql)
    }

    /// What psql answers to a command of the console.
    pub fn console(&self, command: &str) -> Result<String> {
        psql(&self.with_password(&self.console_dsn()), command)
    }

    fn with_password(&self, dsn: &str) -> String {
        dsn.replace('@', &format!(":{}@", self.password))
    }
}
