//! Faults of a lab that no step of the rollout mends, or that are there before it begins.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use muster_integration_tests::{lab::DATABASE, proxy::Proxy};
use serde_json::json;

use crate::gates::{Gates, ROLLOUT, Red, and, refuse, refused};

impl Gates {
    pub(crate) fn a_slow_database(&mut self) -> Result<Red> {
        let proxy = Proxy::start(&self.lab.postgres.address())?;
        proxy.delay(Duration::from_millis(40));
        let port: u16 = proxy.address().rsplit(':').next().context("a port")?.parse()?;
        self.refuses("pool_probe", &json!({"database_port": port}), "below 50 ms wanted")
            .map(and("expect pool_probe: latency_p95_ms_below"))
    }

    /// The folder of its append-only log can't be made: the name is taken. The step takes no word for it, and gives nothing.
    pub(crate) fn a_redis_that_cannot_write(&mut self) -> Result<Red> {
        let taken = self.lab.redis.config().with_file_name("appendonlydir");
        fs::File::create_new(&taken)?;
        let seen = self.refuses("redis", &json!({}), "append");
        fs::remove_file(taken)?;
        seen
    }

    pub(crate) fn a_door_that_refuses(&mut self) -> Result<Red> {
        let second = self.second_door();
        let healthy = refuse(&second, "/health")?;
        self.lab.sides.nginx.restart()?;
        let seen = self.refuses("balance", &json!({}), "status 503");
        fs::write(second, healthy)?;
        self.lab.sides.nginx.restart()?;
        seen
    }

    /// It replays each commit two seconds later, while somebody writes.
    pub(crate) fn a_replica_that_lags(&mut self) -> Result<Red> {
        let set = |how: &str| {
            self.lab.replica.sql("postgres", how)?;
            self.lab.replica.sql("postgres", "select pg_reload_conf()")
        };
        self.lab.postgres.sql(DATABASE, "create table beats (at timestamptz)")?;
        set("alter system set recovery_min_apply_delay = '2s'")?;
        let stop = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    self.lab.postgres.sql(DATABASE, "insert into beats values (now())")?;
                }
                Ok::<_, anyhow::Error>(())
            });
            let seen = self
                .refuses("replication", &json!({}), "below 1000 ms wanted")
                .map(and("expect replication: lag_ms_below"));
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap().and(seen)
        });
        set("alter system reset recovery_min_apply_delay")?;
        seen
    }

    /// Once it is known who shares the requests: each of them would take its time, too.
    pub(crate) fn a_slow_first_byte(&mut self) -> Result<Red> {
        let proxy = Proxy::start(&self.lab.sides.nginx.http_address())?;
        let servers = json!({"upstream_servers": [{"address": proxy.address()}]});
        let (run, replica) = self.begin_until_the_replica(servers)?;
        proxy.delay(Duration::from_millis(60));
        replica.heal();
        refused(&self.system, ROLLOUT, &run, "site_check", "below 100 ms wanted")
    }

    /// A dead cache that lived for weeks, a door that refuses what is cached, and another site that allows old TLS only.
    pub(crate) fn a_dead_cache_and_old_tls(&mut self) -> Result<Red> {
        self.lab.redis.cli(&["CONFIG", "SET", "maxmemory", "0"])?;
        self.lab.redis.cli(&["SET", "old", "1"])?;
        // What Redis keeps of the script takes the memory that a small cache would have.
        let script = format!("for _ = 1, 120000 do redis.call('GET', 'old') end -- {}", "x".repeat(100_000));
        self.lab.redis.cli(&["EVAL", &script, "0"])?;
        self.lab.redis.cli(&["CONFIG", "SET", "maxmemory", "1"])?;
        // nginx takes the protocols of an address from its default server.
        let other = self.lab.nginx.site().with_file_name("other.conf");
        let (cert, key) = (self.lab.certificates.cert(), self.lab.certificates.key());
        let site = format!(
            "server {{\n  listen {} ssl default_server;\n  server_name other.test;\n  ssl_certificate {};\n  \
             ssl_certificate_key {};\n  ssl_protocols TLSv1.2;\n}}\n",
            self.lab.nginx.https_address(),
            cert.display(),
            key.display(),
        );
        fs::write(&other, site)?;
        self.lab.nginx.restart()?;
        let second = self.second_door();
        let healthy = refuse(&second, "/quotes/1")?;
        self.lab.sides.nginx.restart()?;
        let too_little = json!({"redis_max_memory_bytes": 1 << 20});
        let seen = self.closes("validation", &too_little);
        fs::remove_file(other)?;
        fs::write(second, healthy)?;
        self.lab.nginx.restart()?;
        self.lab.sides.nginx.restart()?;
        seen
    }

    pub(crate) fn another_package(&mut self) -> Result<Red> {
        self.refuses("verify_package", &json!({"program": "bin/none"}), "it lacks")
    }

    /// Before the new release one door lacks a page, and the other one what the load asks for.
    pub(crate) fn failing_tests_and_a_failing_load(&mut self) -> Result<Red> {
        let (front, second) = (self.lab.sides.nginx.site(), self.second_door());
        let healthy = (refuse(&front, "/quotes/1")?, refuse(&second, "/version")?);
        self.lab.sides.nginx.restart()?;
        let seen = self.closes("deployment", &json!({"cached_path": "/quotes/2"}));
        fs::write(front, healthy.0)?;
        fs::write(second, healthy.1)?;
        self.lab.sides.nginx.restart()?;
        seen
    }
}
