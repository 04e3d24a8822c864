//! The inputs of `revenue-engine-rollout`, for the lab as it stands.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{APP_USER, CONSOLE_USER, DOMAIN, Lab, UPSTREAM, program};

/// Inputs of `revenue-engine-rollout`; the playbook says what each is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "they are described where they are declared: in the playbook")]
pub struct Inputs {
    pub domain: String,
    pub http_address: String,
    pub https_address: String,
    pub upstream: String,
    pub upstream_file: PathBuf,
    pub upstream_servers: Vec<Member>,
    pub upstream_ask: String,
    pub tls_directory: PathBuf,
    pub nginx_binary: PathBuf,
    pub nginx_config: PathBuf,
    pub nginx_site: PathBuf,
    pub nginx_pid_file: PathBuf,
    pub database_host: String,
    pub database_port: u16,
    pub database_replica: String,
    pub database_user: String,
    pub pgbouncer_config: PathBuf,
    pub pgbouncer_auth_file: PathBuf,
    pub pgbouncer_host: String,
    pub pgbouncer_port: u16,
    pub pgbouncer_admin: String,
    pub password_file: PathBuf,
    pub redis_address: String,
    pub redis_config: PathBuf,
    pub redis_password_file: PathBuf,
    pub redis_max_memory_bytes: u64,
    pub cached_path: String,
    pub backup_root: PathBuf,
    pub release: String,
    pub package: PathBuf,
    pub package_sha256: String,
    pub program: String,
    pub releases: PathBuf,
    pub blue: String,
    pub green: String,
    pub front: String,
    pub front_nginx_config: PathBuf,
    pub front_nginx_upstream: PathBuf,
    pub front_nginx_pid_file: PathBuf,
    pub watch_ms: u64,
    pub slower_by_ms: f64,
    pub requests: u64,
}

/// A server behind nginx.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// `host:port`.
    pub address: String,
}

impl Lab {
    /// The inputs of `revenue-engine-rollout` for this lab.
    ///
    /// # Errors
    /// When nginx is not installed.
    pub fn inputs(&self) -> Result<Inputs> {
        let (sides, release) = (&self.sides, &self.release);
        let doors = [sides.nginx.http_address(), sides.second_door().to_owned()];
        Ok(Inputs {
            domain: DOMAIN.into(),
            http_address: self.nginx.http_address(),
            https_address: self.nginx.https_address(),
            upstream: UPSTREAM.into(),
            upstream_file: self.nginx.site().with_file_name("servers.conf"),
            upstream_servers: doors.map(|address| Member { address }).into(),
            upstream_ask: self.upstream_ask.clone(),
            tls_directory: self.certificates.dir().to_owned(),
            nginx_binary: program("nginx", "nginx-light")?,
            nginx_config: self.nginx.config(),
            nginx_site: self.nginx.site(),
            nginx_pid_file: self.nginx.pid_file(),
            database_host: "127.0.0.1".into(),
            database_port: self.postgres.port(),
            database_replica: self.replica.address(),
            database_user: APP_USER.into(),
            pgbouncer_config: self.pgbouncer.config(),
            pgbouncer_auth_file: self.pgbouncer.auth_file(),
            pgbouncer_host: "127.0.0.1".into(),
            pgbouncer_port: self.pgbouncer.port(),
            pgbouncer_admin: CONSOLE_USER.into(),
            password_file: self.postgres.password_file(),
            redis_address: self.redis.address(),
            redis_config: self.redis.config(),
            redis_password_file: self.redis.password_file(),
            redis_max_memory_bytes: 64 << 20,
            cached_path: "/quotes/1".into(),
            backup_root: self.dir().join("backups"),
            release: release.version().into(),
            package: release.package(),
            package_sha256: release.sha256()?,
            program: "sample-service".into(),
            releases: sides.releases(),
            blue: sides.blue().into(),
            green: sides.green().into(),
            front: sides.nginx.http_address(),
            front_nginx_config: sides.nginx.config(),
            front_nginx_upstream: sides.upstream_file(),
            front_nginx_pid_file: sides.nginx.pid_file(),
            watch_ms: 3000,
            slower_by_ms: 250.0,
            requests: 1000,
        })
    }
}
