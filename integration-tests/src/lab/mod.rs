//! Real servers on 127.0.0.1, each in its own folder, on a free port, as an ordinary user.
//!
//! They end with the value that started them, and also when the process dies in whatever way. A server that is not
//! installed is an error that says how to install it.

mod nats;
mod nginx;
mod pgbouncer;
mod port;
mod postgres;
mod process;
mod redis;
mod service;
mod sides;
mod tls;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use self::{
    nats::Nats,
    nginx::Nginx,
    pgbouncer::{CONSOLE_USER, PgBouncer, Pooling},
    port::free_port,
    postgres::{APP_USER, DATABASE, Postgres, psql, psql_program},
    process::{RunAs, Server, Start, program, run, wait_until},
    redis::{REDIS_READER, Redis},
    service::SampleService,
    sides::{BlueGreen, FIRST, NEXT},
    tls::Certificates,
};

/// The host name of the lab's site.
pub const DOMAIN: &str = "revenue-engine.tradingrobotplug.com";

/// A folder that ordinary users can reach, and that goes away with this value.
pub fn folder() -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("muster-lab-").tempdir().context("no temporary folder can be made")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    if rustix::process::geteuid().is_root() {
        for parent in dir.path().ancestors() {
            let open = fs::metadata(parent)?.permissions().mode() & 0o001 != 0;
            ensure!(open, "{} can't be reached by ordinary users; set TMPDIR to a folder that can", parent.display());
        }
    }
    Ok(dir)
}

/// The roadmap's systems as they are found: an expired certificate, no redirect to HTTPS, no pooling, a Redis that forgets.
///
/// Fields are dropped in this order: clients before what they use.
#[derive(Debug)]
pub struct Lab {
    /// In front of the service.
    pub nginx: Nginx,
    /// In front of the database.
    pub pgbouncer: PgBouncer,
    /// Reads: follows the database.
    pub replica: Postgres,
    /// The database.
    pub postgres: Postgres,
    /// Without persistence and without a limit of memory.
    pub redis: Redis,
    /// What nginx stands in front of.
    pub service: SampleService,
    /// The bus.
    pub nats: Nats,
    /// Expired for five days.
    pub certificates: Certificates,
    dir: TempDir,
}

impl Lab {
    /// Starts all of it.
    pub fn start(pooling: Pooling) -> Result<Self> {
        let dir = folder()?;
        let nats = Nats::start(&dir.path().join("nats"))?;
        let service = SampleService::start(&dir.path().join("service"))?;
        let postgres = Postgres::start(&dir.path().join("postgres"))?;
        let pgbouncer = PgBouncer::start(&dir.path().join("pgbouncer"), &postgres, pooling)?;
        let replica = Postgres::replica(&dir.path().join("replica"), &postgres)?;
        let redis = Redis::start(&dir.path().join("redis"))?;
        let certificates = Certificates::make(&dir.path().join("tls"), &Nginx::user()?, DOMAIN, -5)?;
        let nginx = Nginx::start(&dir.path().join("nginx"), DOMAIN, &certificates, &service.address())?;
        Ok(Self { nginx, pgbouncer, replica, postgres, redis, service, nats, certificates, dir })
    }

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The inputs of `revenue-engine-rollout` for this lab.
    pub fn inputs(&self) -> Result<Inputs> {
        Ok(Inputs {
            domain: DOMAIN.into(),
            http_address: self.nginx.http_address(),
            https_address: self.nginx.https_address(),
            upstream: self.service.address(),
            tls_directory: self.certificates.dir().to_owned(),
            nginx_binary: program("nginx", "nginx-light")?,
            nginx_config: self.nginx.config(),
            nginx_site: self.nginx.site(),
            nginx_pid_file: self.nginx.pid_file(),
            database_host: "127.0.0.1".into(),
            database_port: self.postgres.port(),
            database_user: APP_USER.into(),
            pgbouncer_config: self.pgbouncer.config(),
            pgbouncer_auth_file: self.pgbouncer.auth_file(),
            pgbouncer_host: "127.0.0.1".into(),
            pgbouncer_port: self.pgbouncer.port(),
            pgbouncer_admin: CONSOLE_USER.into(),
            password_file: self.postgres.password_file(),
        })
    }
}

/// Inputs of `revenue-engine-rollout`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inputs {
    /// Host name of the site.
    pub domain: String,
    /// Where nginx listens for HTTP.
    pub http_address: String,
    /// Where nginx listens for HTTPS.
    pub https_address: String,
    /// What nginx stands in front of.
    pub upstream: String,
    /// Folder of `ca.crt`, `ca.key`, `site.crt`, `site.key`.
    pub tls_directory: PathBuf,
    /// The program.
    pub nginx_binary: PathBuf,
    /// nginx' main configuration.
    pub nginx_config: PathBuf,
    /// The site's file.
    pub nginx_site: PathBuf,
    /// nginx' pid file.
    pub nginx_pid_file: PathBuf,
    /// PostgreSQL's host.
    pub database_host: String,
    /// PostgreSQL's port.
    pub database_port: u16,
    /// The application's role.
    pub database_user: String,
    /// PgBouncer's file.
    pub pgbouncer_config: PathBuf,
    /// PgBouncer's file of users.
    pub pgbouncer_auth_file: PathBuf,
    /// Where PgBouncer listens.
    pub pgbouncer_host: String,
    /// Its port.
    pub pgbouncer_port: u16,
    /// The user of its console.
    pub pgbouncer_admin: String,
    /// A file that holds the password of both users.
    pub password_file: PathBuf,
}
