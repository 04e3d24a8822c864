//! Real servers on 127.0.0.1, each in its own folder, on a free port, as an ordinary user.
//!
//! They end with the value that started them, and also when the process dies in whatever way. A server that is not
//! installed is an error that says how to install it.

mod inputs;
mod nats;
mod nginx;
mod pgbouncer;
mod port;
mod postgres;
mod process;
mod redis;
mod release;
mod service;
mod sides;
mod tls;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

pub use self::{
    inputs::{Inputs, Member},
    nats::Nats,
    nginx::Nginx,
    pgbouncer::{CONSOLE_USER, PgBouncer, Pooling},
    port::free_port,
    postgres::{APP_USER, DATABASE, Postgres, psql, psql_program},
    process::{RunAs, Server, Start, program, run, wait_until},
    redis::{REDIS_READER, Redis},
    release::Release,
    service::SampleService,
    sides::{BlueGreen, FIRST, NEXT, SECOND_DOOR},
    tls::Certificates,
};
pub use crate::sweep::Folder;

/// The host name of the lab's site.
pub const DOMAIN: &str = "revenue-engine.tradingrobotplug.com";

/// What nginx calls the servers behind it.
const UPSTREAM: &str = "revenue_engine";

/// A folder that ordinary users can reach, and that goes away with this value, searched for passwords.
pub fn folder() -> Result<Folder> {
    let dir = tempfile::Builder::new().prefix("muster-lab-").tempdir().context("no temporary folder can be made")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    if rustix::process::geteuid().is_root() {
        for parent in dir.path().ancestors() {
            let open = fs::metadata(parent)?.permissions().mode() & 0o001 != 0;
            ensure!(open, "{} can't be reached by ordinary users; set TMPDIR to a folder that can", parent.display());
        }
    }
    Ok(Folder::of(dir))
}

/// The roadmap's systems as they are found: an expired certificate, no redirect to HTTPS, no pooling; a Redis that forgets at
/// once what it is told, all requests through one of two doors, no backup; an old release on blue, a new one as a package.
///
/// Fields are dropped in this order: clients before what they use.
#[derive(Debug)]
pub struct Lab {
    /// In front of the service: HTTP and HTTPS for everybody.
    pub nginx: Nginx,
    /// In front of the database.
    pub pgbouncer: PgBouncer,
    /// Reads: follows the database.
    pub replica: Postgres,
    /// The database.
    pub postgres: Postgres,
    /// What nginx stands in front of: two sides, behind two doors.
    pub sides: BlueGreen,
    /// Without persistence, and with too little memory for anything.
    pub redis: Redis,
    /// What is to be brought.
    pub release: Release,
    /// The bus.
    pub nats: Nats,
    /// Expired for five days.
    pub certificates: Certificates,
    upstream_ask: String,
    dir: Folder,
}

impl Lab {
    /// Starts all of it.
    pub fn start(pooling: Pooling) -> Result<Self> {
        let dir = folder()?;
        let nats = Nats::start(&dir.path().join("nats"))?;
        let postgres = Postgres::start(&dir.path().join("postgres"))?;
        let pgbouncer = PgBouncer::start(&dir.path().join("pgbouncer"), &postgres, pooling)?;
        let replica = Postgres::replica(&dir.path().join("replica"), &postgres)?;
        let redis = Redis::start_with(&dir.path().join("redis"), "maxmemory 1\nmaxmemory-policy allkeys-random\n")?;
        let release = Release::make(&dir.path().join("release"))?;
        let (cache, password) = (redis.address(), redis.password_file().display().to_string());
        let sides = dir.path().join("sides");
        let sides = BlueGreen::start_with(&sides, &["--cache", &cache, "--cache-password-file", &password])?;
        RunAs::ordinary("postgres")?.folder(&dir.path().join("backups"))?;
        let certificates = Certificates::make(&dir.path().join("tls"), &Nginx::user()?, DOMAIN, -5)?;
        let servers = dir.path().join("nginx/sites/servers.conf");
        fs::create_dir_all(dir.path().join("nginx/sites"))?;
        let first = sides.nginx.http_address();
        fs::write(&servers, format!("# as it was found\nupstream {UPSTREAM} {{\n  server {first};\n}}\n"))?;
        let nginx = Nginx::start(&dir.path().join("nginx"), DOMAIN, &certificates, UPSTREAM)?;
        let upstream_ask = format!("127.0.0.1:{}", free_port()?);
        Ok(Self { nginx, pgbouncer, replica, postgres, sides, redis, release, nats, certificates, upstream_ask, dir })
    }

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The `allow.toml` of an agent: what the playbook makes it start. Roles: `integration`, `deployment`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn allow_file(&self, role: &str) -> Result<PathBuf> {
        let sides = [self.sides.start_program(), self.sides.stop_program()];
        let programs = if role == "deployment" { &sides[..] } else { &[self.release.smoke_suite()] };
        let file = self.dir().join(format!("allow-{role}.toml"));
        let entries = programs.iter().map(|program| release::allowed(program)).collect::<Result<String>>()?;
        fs::write(&file, entries)?;
        Ok(file)
    }
}
