//! A PostgreSQL server.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::{
    port::free_port,
    process::{RunAs, Server, Start, run},
    tls::secret,
};
use crate::canary;

/// PostgreSQL with SCRAM passwords, the database `revenue_engine` and the role `app`; all roles have the same password.
#[derive(Debug)]
pub struct Postgres {
    server: Option<Server>,
    bin: PathBuf,
    dir: PathBuf,
    run_as: RunAs,
    port: u16,
    password: String,
}

/// The name of the lab's database.
pub const DATABASE: &str = "revenue_engine";
/// The role of the lab's application.
pub const APP_USER: &str = "app";

const INSTALL: &str = "PostgreSQL is not installed: apt-get install -y --no-install-recommends postgresql-15";
const READY_WITHIN: Duration = Duration::from_secs(60);

impl Postgres {
    /// Makes a cluster in `dir` and starts it.
    pub fn start(dir: &Path) -> Result<Self> {
        let bin = newest_bin().context(INSTALL)?;
        let run_as = RunAs::ordinary("postgres")?;
        run_as.folder(dir)?;
        let password = canary::password();
        let mut made = Self { server: None, bin, dir: dir.to_owned(), run_as, port: free_port()?, password };
        secret(&made.run_as, &made.password_file(), &format!("{}\n", made.password))?;
        let (data, password) = (made.data(), made.password_file().display().to_string());
        let pwfile = format!("--pwfile={password}");
        let args = ["-D", &data, "-U", "postgres", "-A", "scram-sha-256", &pwfile, "-E", "UTF8", "--no-locale", "-N"];
        run(&made.run_as, dir, &made.bin.join("initdb"), &args)?;
        made.restart()?;
        made.sql("postgres", &format!("create database {DATABASE}"))?;
        made.sql("postgres", &format!("create role {APP_USER} login password '{}'", made.password))?;
        Ok(made)
    }

    /// Makes a streaming replica of `primary` in `dir` and starts it. Same roles, same password.
    pub fn replica(dir: &Path, primary: &Self) -> Result<Self> {
        let (bin, run_as, password) = (primary.bin.clone(), primary.run_as.clone(), primary.password.clone());
        run_as.folder(dir)?;
        let mut made = Self { server: None, bin, dir: dir.to_owned(), run_as, port: free_port()?, password };
        secret(&made.run_as, &made.password_file(), &format!("{}\n", made.password))?;
        let from = format!("postgres://postgres:{}@{}/", made.password, primary.address());
        let args = ["-d", &from, "-D", &made.data(), "-R", "-X", "stream", "-c", "fast"];
        run(&made.run_as, dir, &made.bin.join("pg_basebackup"), &args)?;
        made.restart()?;
        Ok(made)
    }

    /// Stops it if it runs and starts it at the same address.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let args = ["-D", &self.data(), "-h", "127.0.0.1", "-p", &self.port.to_string(), "-k", "", "-c", "fsync=off"]
            .map(str::to_owned);
        let mut server = Server::start(&Start {
            name: "postgres",
            program: &self.bin.join("postgres"),
            args: &args,
            dir: &self.dir,
            run_as: &self.run_as,
            stop: Signal::INT,
        })?;
        server.ready(READY_WITHIN, || self.sql("postgres", "select 1").map(drop))?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it; the address stays its own.
    pub fn stop(&mut self) {
        self.thaw();
        self.server = None;
    }

    /// From then on it accepts connections and never answers them: nobody is there to take them.
    pub fn freeze(&mut self) {
        if let Some(server) = &mut self.server {
            server.signal(Signal::STOP);
        }
    }

    /// It answers again.
    pub fn thaw(&mut self) {
        if let Some(server) = &mut self.server {
            server.signal(Signal::CONT);
        }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file that holds the password of all roles.
    pub fn password_file(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// The password of all roles.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// `postgres://user@host:port/database`, without a password.
    pub fn dsn(&self, user: &str) -> String {
        format!("postgres://{user}@{}/{DATABASE}", self.address())
    }

    /// What psql answers to `sql`, asked as the superuser.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        psql(&format!("postgres://postgres:{}@{}/{database}", self.password, self.address()), sql)
    }

    fn data(&self) -> String {
        self.dir.join("data").display().to_string()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What psql answers to `sql` at `url` (which may hold a password), each row a line.
pub fn psql(url: &str, sql: &str) -> Result<String> {
    let psql = newest_bin().context(INSTALL)?.join("psql");
    let url = format!("{url}?connect_timeout=5");
    let args = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", sql];
    Ok(run(&RunAs::same(), Path::new("/"), &psql, &args)?.trim().to_owned())
}

/// Path of psql.
pub fn psql_program() -> Result<PathBuf> {
    Ok(newest_bin().context(INSTALL)?.join("psql"))
}

fn newest_bin() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(Result::ok);
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let complete = |path: &PathBuf| path.join("bin/initdb").is_file() && path.join("bin/psql").is_file();
    let newest = versions.map(|e| e.path()).filter(complete).max_by_key(|path| version(path));
    newest.map(|path| path.join("bin"))
}
