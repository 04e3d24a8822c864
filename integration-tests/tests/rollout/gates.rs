//! The gates of the rollout on a lab that has a fault more than the playbook mends: each closes, and says by what.
//!
//! Where a step refuses before its gate is reached, the gate is judged on what that step gave: it would have closed, too.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    lab::{DATABASE, Lab, Pooling},
    proxy::Proxy,
    system::System,
};
use serde_json::{Value, json};

use crate::{
    conditions::{Evidence, conditions},
    rollout_inputs, run, shipped, three_agents,
};

const PLAYBOOK: &str = "revenue-engine-rollout";

/// The rollout as it is shipped, but for its patience: what a fault does to a step that does not pass by waiting.
fn impatient() -> String {
    let impatiently = |line: &str| match line.split_once("retry: {") {
        Some((before, _)) => format!("{before}retry: {{maxAttempts: 2, backoff: {{initial: 100ms, max: 100ms}}}}\n"),
        None => format!("{line}\n"),
    };
    shipped(PLAYBOOK).lines().map(impatiently).collect()
}

/// The lab, and who brings the rollout onto it again and again.
struct Gates {
    system: System,
    lab: Lab,
    inputs: Value,
    conditions: Vec<String>,
}

impl Gates {
    fn start() -> Result<Self> {
        let lab = Lab::start(Pooling::OneSession)?;
        let (system, inputs, yaml) = (three_agents(&lab)?, rollout_inputs(&lab), impatient());
        system.submit(&yaml)?;
        Ok(Self { system, lab, inputs, conditions: conditions(&yaml)? })
    }

    fn inputs(&self, others: &Value) -> Value {
        let mut inputs = self.inputs.clone();
        inputs.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
        inputs
    }

    /// The run fails, and the reason of its end has all of `says`; the run.
    fn fails(&self, others: &Value, says: &[&str]) -> Result<Value> {
        let ended = run(&self.system, PLAYBOOK, &self.inputs(others))?;
        let reason = ended["stateReason"].as_str().unwrap_or_default();
        ensure!(ended["state"] == "STATE_FAILED", "the run is {}: {reason}", ended["state"]);
        for part in says {
            ensure!(reason.contains(part), "it does not say {part:?}: {reason}");
        }
        Ok(ended)
    }

    /// The run fails by this step; on what it gave nevertheless, the conditions with these parts do not hold either.
    fn refuses(&self, step: &str, others: &Value, says: &str, closed: &[&str]) -> Result<()> {
        let ended = self.fails(others, &[&format!("step {step} failed"), says])?;
        if closed.is_empty() {
            return Ok(());
        }
        let events = self.system.events(ended["runId"].as_str().context("a run has an id")?)?;
        let gave = events.iter().find_map(|event| gave_nevertheless(event, step)).context("it gave nothing")?;
        let of_step = |condition: &&String| condition.contains(&format!("steps.{step}."));
        let conditions: Vec<String> = self.conditions.iter().filter(of_step).cloned().collect();
        let red = Evidence::of(&ended)?.with(step, gave).against(&conditions).join("; ");
        for part in closed {
            ensure!(red.contains(part), "the gate does not close by {part:?}, only by {red:?}");
        }
        Ok(())
    }

    fn a_slow_database(&mut self) -> Result<()> {
        let proxy = Proxy::start(&self.lab.postgres.address())?;
        proxy.delay(Duration::from_millis(40));
        let port: u16 = proxy.address().rsplit(':').next().context("a port")?.parse()?;
        self.refuses("pool_probe", &json!({"database_port": port}), "below 50 ms wanted", &["latency_p95_ms <"])
    }

    /// The folder of its append-only log can't be made: the name is taken.
    fn a_redis_that_cannot_write(&mut self) -> Result<()> {
        let taken = self.lab.redis.config().with_file_name("appendonlydir");
        fs::File::create_new(&taken)?;
        let seen = self.refuses("redis", &json!({}), "append", &[]);
        fs::remove_file(taken)?;
        seen
    }

    fn a_door_that_refuses(&mut self) -> Result<()> {
        let second = self.second_door();
        let healthy = refuse(&second, "/health")?;
        self.lab.sides.nginx.restart()?;
        let seen = self.refuses("balance", &json!({}), "status 503", &["success_percent >= 100.0"]);
        fs::write(second, healthy)?;
        self.lab.sides.nginx.restart()?;
        seen
    }

    /// It replays each commit two seconds later, while somebody writes.
    fn a_replica_that_lags(&mut self) -> Result<()> {
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
            let seen = self.refuses("replication", &json!({}), "below 1000 ms wanted", &["lag_ms_max <", "wrong"]);
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap().and(seen)
        });
        set("alter system reset recovery_min_apply_delay")?;
        seen
    }

    fn a_slow_first_byte(&mut self) -> Result<()> {
        let proxy = Proxy::start(&self.lab.sides.nginx.http_address())?;
        proxy.delay(Duration::from_millis(60));
        let servers = json!({"upstream_servers": [{"address": proxy.address()}]});
        self.refuses("site_check", &servers, "below 100 ms wanted", &["ttfb_ms <"])
    }

    /// A dead cache that lived for weeks, a door that refuses what is cached, and another site that allows old TLS only.
    fn a_dead_cache_and_old_tls(&mut self) -> Result<()> {
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
        let gate = "the gate of phase validation failed";
        let says = [gate, "protocol == 'TLSv1.3'` is false", "error_rate_percent < 1.0` is false", "> 90.0` is false"];
        let seen = self.fails(&too_little, &says);
        fs::remove_file(other)?;
        fs::write(second, healthy)?;
        self.lab.nginx.restart()?;
        self.lab.sides.nginx.restart()?;
        seen.map(drop)
    }

    fn another_package(&mut self) -> Result<()> {
        self.refuses("verify_package", &json!({"program": "bin/none"}), "it lacks", &["missing"])
    }

    /// Before the new release one door lacks a page, and the other one what the load asks for.
    fn failing_tests_and_a_failing_load(&mut self) -> Result<()> {
        let (front, second) = (self.lab.sides.nginx.site(), self.second_door());
        let healthy = (refuse(&front, "/quotes/1")?, refuse(&second, "/version")?);
        self.lab.sides.nginx.restart()?;
        let says = [
            "the gate of phase deployment failed",
            "pass_rate_percent > 90.0` is false",
            "load.output.error_rate_percent < 1.0` is false",
        ];
        let seen = self.fails(&json!({"cached_path": "/quotes/2"}), &says);
        fs::write(front, healthy.0)?;
        fs::write(second, healthy.1)?;
        self.lab.sides.nginx.restart()?;
        seen.map(drop)
    }

    fn second_door(&self) -> PathBuf {
        self.lab.sides.nginx.site().with_file_name("second.conf")
    }
}

/// What a step gave though it failed, where this is the event of that.
fn gave_nevertheless(event: &Value, step: &str) -> Option<Value> {
    let outcome = &event["detail"]["end"]["outcome"];
    let of_step = event["step"] == step && outcome["result"] == "failed";
    outcome.get("output").filter(|_| of_step).cloned()
}

/// From its next start on, the nginx of this file refuses a path; what the file said before.
fn refuse(file: &Path, path: &str) -> Result<String> {
    let found = fs::read_to_string(file)?;
    let refusing = found.replace("location / {", &format!("location = {path} {{ return 503; }}\n  location / {{"));
    ensure!(refusing != found, "{} has no place for it", file.display());
    fs::write(file, refusing)?;
    Ok(found)
}

type Fault = fn(&mut Gates) -> Result<()>;

#[test]
fn each_gate_of_the_rollout_is_closed_by_a_fault_that_it_names() {
    let mut gates = Gates::start().unwrap();
    let faults: [(&str, Fault); 8] = [
        ("a slow database", Gates::a_slow_database),
        ("a Redis that can't write", Gates::a_redis_that_cannot_write),
        ("a door that refuses", Gates::a_door_that_refuses),
        ("a replica that lags", Gates::a_replica_that_lags),
        ("a slow first byte", Gates::a_slow_first_byte),
        ("a dead cache, old TLS", Gates::a_dead_cache_and_old_tls),
        ("another package", Gates::another_package),
        ("failing tests and load", Gates::failing_tests_and_a_failing_load),
    ];
    let tried = faults.map(|(name, fault)| fault(&mut gates).with_context(|| format!("by {name}")));
    let open: Vec<String> = tried.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    assert!(open.is_empty(), "a gate stays open, or says something else:\n{}", open.join("\n"));
}
