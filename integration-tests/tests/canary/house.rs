//! A system with secrets, the real servers that take them, and those that say them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    lab::{self, PgBouncer, Pooling, Postgres, Redis, RunAs},
    process::{Process, wait_for},
    sweep::Folder,
    system::{SOON, System, free_address, path},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    PASSWORD, VALUE,
    asked::Asked,
    heard::Wire,
    parrot::{Parrot, Tongue},
};

/// Fields are dropped in this order.
pub(crate) struct House {
    pub(crate) system: System,
    pub(crate) asked: Asked,
    pub(crate) wire: Wire,
    pub(crate) servers: Servers,
    pub(crate) parrots: Parrots,
    /// The agents' own file of the secret `canary`.
    pub(crate) secret: PathBuf,
    /// The file that steps name.
    pub(crate) password: PathBuf,
}

/// Real servers. Fields are dropped in this order.
pub(crate) struct Servers {
    pub(crate) pgbouncer: PgBouncer,
    pub(crate) replica: Postgres,
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) dir: Folder,
}

/// Those that say it back: at once, or when they are turned.
pub(crate) struct Parrots {
    pub(crate) redis: Parrot,
    pub(crate) postgres: Parrot,
    pub(crate) http: Parrot,
    pub(crate) turning_redis: Parrot,
    pub(crate) turning_pgbouncer: Parrot,
}

impl Servers {
    fn start() -> Result<Self> {
        let dir = lab::folder()?;
        let redis = Redis::start(&dir.path().join("redis"))?;
        let postgres = Postgres::start(&dir.path().join("postgres"))?;
        let replica = Postgres::replica(&dir.path().join("replica"), &postgres)?;
        let pgbouncer = PgBouncer::start(&dir.path().join("pgbouncer"), &postgres, Pooling::OneSession)?;
        RunAs::ordinary("postgres")?.folder(&dir.path().join("backups"))?;
        Ok(Self { pgbouncer, replica, postgres, redis, dir })
    }

    pub(crate) fn backups(&self) -> PathBuf {
        self.dir.path().join("backups")
    }
}

impl House {
    pub(crate) fn start(nats: NatsServer) -> Result<Self> {
        let servers = Servers::start()?;
        let (dir, metrics, url) = (tempfile::tempdir()?, free_address()?, nats.url());
        let secrets = dir.path().join("secrets");
        fs::create_dir(&secrets)?;
        fs::create_dir(dir.path().join("tls"))?;
        let (secret, password) = (secrets.join("canary"), dir.path().join("redis.password"));
        // Under its name in the lab it may stay where it is.
        let of_redis = secrets.join("password");
        for (file, value) in [(&secret, VALUE), (&password, PASSWORD), (&of_redis, servers.redis.password())] {
            fs::write(file, format!("{value}\n"))?;
            fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        }
        let serve = ["--metrics-listen", metrics.as_str(), "--log", "debug"];
        let system = System::start_on(dir, nats, &url, &serve)?;
        let parrots = Parrots {
            redis: Parrot::start(Tongue::Redis)?,
            postgres: Parrot::start(Tongue::Postgres)?,
            http: Parrot::start(Tongue::Http(VALUE))?,
            turning_redis: Parrot::before(&servers.redis.address(), Tongue::Redis)?,
            turning_pgbouncer: Parrot::before(&servers.pgbouncer.address(), Tongue::Postgres)?,
        };
        let wire = Wire::start(system.address())?;
        let asked = Asked::new(wire.address(), &metrics)?;
        Ok(Self { system, asked, wire, servers, parrots, secret, password })
    }

    /// The one that is made to leak, and ours with programs that print the file.
    pub(crate) fn start_agents(&mut self) -> Result<()> {
        let folder = self.secret.parent().context("a folder")?.to_owned();
        let dir = self.system.dir.path().to_owned();
        let mut command = Command::new(env!("CARGO_BIN_EXE_canary-agent"));
        command.args([&self.system.nats.url(), path(&folder)?]).arg(dir.join("canary-1"));
        let process = Process::start("canary-1", &dir, &mut command)?;
        self.system.agents.insert("canary-1".to_owned(), process);
        self.system.wait_agent("canary-1", "READY")?;
        let cat = ["/usr/bin/cat", "/bin/cat"].into_iter().find(|p| Path::new(p).is_file()).context("no cat here")?;
        let suite = dir.join("suite");
        fs::write(&suite, SUITE)?;
        fs::set_permissions(&suite, fs::Permissions::from_mode(0o755))?;
        let allow = dir.join("allow.toml");
        let lines = [("cat", fs::canonicalize(cat)?), ("suite", suite)].map(|(name, path)| allowed(name, &path));
        fs::write(&allow, lines.into_iter().collect::<Result<String>>()?)?;
        let more = ["--secrets", path(&folder)?, "--allow", path(&allow)?, "--log", "trace"];
        ["infra", "integration"].iter().try_for_each(|role| self.system.start_agent(&format!("{role}-1"), role, &more))
    }

    /// A database as steps name it: who asks, where, and with the password that nobody takes.
    fn said_back(&self, user: &str) -> Value {
        let address = self.parrots.postgres.address();
        json!({"dsn": format!("postgres://{user}@{address}/some"), "password": {"file": self.password}})
    }

    /// Each action that takes a secret, on a server that says it back; and those that meet one in what they read.
    pub(crate) fn repeated(&self) -> Vec<Value> {
        let asks = self.said_back("asks");
        let redis = json!({"address": self.parrots.redis.address(), "password": {"file": self.password}});
        let by_name = json!({"address": self.parrots.redis.address(), "password": {"secret": "canary"}});
        let url = format!("http://{}/", self.parrots.http.address());
        let backups = self.servers.backups();
        let (pool_file, redis_file) = (self.servers.pgbouncer.config(), self.servers.redis.config());
        [
            ("redis", "redis.probe", json!({"target": redis, "connections": 1})),
            ("redis_by_name", "redis.probe", json!({"target": by_name, "connections": 1})),
            ("redis_set", "redis.configure", json!({"target": redis, "config": redis_file, "append_only": true})),
            ("database", "postgres.probe", json!({"target": asks, "connections": 1})),
            ("login", "postgres.probe", json!({"target": self.said_back("refused"), "connections": 1})),
            ("replicas", "postgres.replication", json!({"primary": asks, "replicas": {"read_1": asks}})),
            ("pool", "pgbouncer.probe", json!({"pool": asks, "admin": asks, "clients": 1})),
            ("pool_set", "pgbouncer.configure", self.pooled(&pool_file, &asks)),
            ("copy", "backup.postgres", json!({"source": asks, "root": backups, "name": "none"})),
            (
                "copy_login",
                "backup.postgres",
                json!({"source": self.said_back("refused"), "root": backups, "name": "no"}),
            ),
            ("page", "http.check", json!({"url": url})),
            ("page_header", "http.check", json!({"url": url, "expect": {"headers": {"x-said": "hello"}}})),
            ("page_redirect", "http.check", json!({"url": url, "expect": {"redirect_to_https": true}})),
            ("load", "load.run", json!({"target": {"url": url}, "requests": 2})),
            ("suite", "tests.run", json!({"suite": "suite", "args": ["{report}", self.secret]})),
            ("ours", "command.run", json!({"command": "cat", "args": [self.secret]})),
        ]
        .map(|(id, action, with)| step(id, action, &with, "continue"))
        .into()
    }

    fn pooled(&self, config: &Path, admin: &Value) -> Value {
        json!({
            "config": config, "admin": admin, "databases": {lab::DATABASE: {"host": "127.0.0.1", "port": self.servers.postgres.port()}},
            "listen_addr": "127.0.0.1", "listen_port": self.servers.pgbouncer.port(), "auth_type": "plain",
            "auth_file": self.servers.pgbouncer.auth_file(), "admin_users": [lab::CONSOLE_USER],
        })
    }

    /// The same actions on servers that take the secret; the last step fails, so that all is taken back.
    pub(crate) fn accepted(&self) -> Vec<Value> {
        let Servers { pgbouncer, replica, postgres, redis, .. } = &self.servers;
        let file = json!({"file": postgres.password_file()});
        let dsn = |dsn: String| json!({"dsn": dsn, "password": file});
        let cache = json!({"address": redis.address(), "password": {"secret": "password"}});
        let (app, console) = (dsn(postgres.dsn(lab::APP_USER)), dsn(pgbouncer.console_dsn()));
        let replicas = json!({"read_1": dsn(replica.dsn(lab::APP_USER))});
        let source = dsn(postgres.dsn("postgres"));
        let mut steps = vec![
            step("redis", "redis.probe", &json!({"target": cache}), "undo"),
            step(
                "redis_set",
                "redis.configure",
                &json!({"target": cache, "config": redis.config(), "append_only": true}),
                "undo",
            ),
            step("database", "postgres.probe", &json!({"target": app}), "undo"),
            step("replicas", "postgres.replication", &json!({"primary": app, "replicas": replicas}), "undo"),
            step("pool_set", "pgbouncer.configure", &self.pooled(&pgbouncer.config(), &console), "undo"),
            step(
                "copy",
                "backup.postgres",
                &json!({"source": source, "root": self.servers.backups(), "name": "taken"}),
                "undo",
            ),
            step("pool", "pgbouncer.probe", &json!({"pool": dsn(pgbouncer.dsn()), "admin": console}), "undo"),
            step("fails", "command.run", &json!({"command": "cat", "args": ["/nonexistent"]}), "undo"),
        ];
        one_after_another(&mut steps);
        steps
    }

    /// Settings that are put to work on servers that turn, before they are taken back.
    pub(crate) fn turning(&self) -> Vec<Value> {
        let Servers { pgbouncer, postgres, redis, .. } = &self.servers;
        let target = json!({"address": self.parrots.turning_redis.address(), "password": {"secret": "password"}});
        let console =
            format!("postgres://{}@{}/pgbouncer", lab::CONSOLE_USER, self.parrots.turning_pgbouncer.address());
        let console = json!({"dsn": console, "password": {"file": postgres.password_file()}});
        let mut steps = vec![
            step(
                "redis_set",
                "redis.configure",
                &json!({"target": target, "config": redis.config(), "append_only": true}),
                "undo",
            ),
            step("pool_set", "pgbouncer.configure", &self.pooled(&pgbouncer.config(), &console), "undo"),
            json!({"id": "turned", "wait": {"signal": "turned"}, "timeout": "10m"}),
            step("fails", "command.run", &json!({"command": "cat", "args": ["/nonexistent"]}), "undo"),
        ];
        one_after_another(&mut steps);
        steps
    }

    /// The folder of the keys that are made here.
    pub(crate) fn keys(&self) -> PathBuf {
        self.system.dir.path().join("tls")
    }

    /// Keys that are made where they lie.
    pub(crate) fn certificate(&self) -> Value {
        let file = |name: &str| self.keys().join(name);
        let with = json!({
            "domain": lab::DOMAIN, "cert": file("site.crt"), "key": file("site.key"), "ca": file("ca.crt"), "ca_key": file("ca.key"),
        });
        step("tls", "tls.certificate", &with, "continue")
    }

    /// Submits it, and starts a run of it.
    pub(crate) fn run(&mut self, name: &str, steps: &[Value]) -> Result<String> {
        let file = self.system.dir.path().join(format!("{name}.yaml"));
        fs::write(&file, playbook(name, &["canary", "password"], steps))?;
        let file = path(&file)?.to_owned();
        for words in [["playbook", "lint", &file], ["playbook", "submit", &file], ["playbook", "plan", name]] {
            self.asked.look(&self.system, "before", &words)?;
        }
        self.asked.look(&self.system, "before", &["playbook", "get", name])?;
        let started = self.asked.ask(&self.system, "before", &["run", "start", name, "-o", "json"])?;
        let run: Value = serde_json::from_str(&started)?;
        Ok(run["runId"].as_str().context("a run has an id")?.to_owned())
    }

    /// The steps of a run, by their ids.
    pub(crate) fn steps(&self, run: &str) -> Result<BTreeMap<String, Value>> {
        let run = self.system.json(&["run", "get", run])?;
        let steps = run["steps"].as_array().context("a run has steps")?;
        Ok(steps.iter().map(|step| (step["id"].as_str().unwrap_or_default().to_owned(), step.clone())).collect())
    }

    /// Waits until a step asks a person, and answers.
    pub(crate) fn answer(&mut self, run: &str, step: &str, answer: &str) -> Result<()> {
        let asks = || Ok((self.steps(run)?[step]["state"] == "STATE_ASKING").then_some(()));
        wait_for(&format!("{step} asks"), SOON * 2, asks)?;
        self.asked.look_at(&self.system, &format!("{step} asks"), run)?;
        let words = match answer {
            "retry" => vec!["step", "retry", run, step],
            answer => vec!["step", "resolve", run, step, answer],
        };
        self.asked.ask(&self.system, step, &[&words[..], &["--reason", "a test"]].concat()).map(drop)
    }
}

/// A suite that says the file of its second argument in all that it says.
const SUITE: &str = r#"#!/bin/sh
said=$(cat "$2")
printf 'out %s\n' "$said"
printf 'err %s\n' "$said" >&2
printf '<testsuites><testsuite name="s"><testcase classname="c" name="n"><failure message='\''no %s'\''/></testcase></testsuite></testsuites>' \
  "$said" >"$1"
exit 1
"#;

fn allowed(name: &str, path: &Path) -> Result<String> {
    let sha256 = Sha256::digest(fs::read(path)?).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    Ok(format!("[commands.{name}]\npath = \"{}\"\nsha256 = \"{sha256}\"\n", path.display()))
}

/// The role that has an action.
fn role(action: &str) -> &'static str {
    if action == "load.run" || action == "tests.run" { "integration" } else { "infra" }
}

fn step(id: &str, action: &str, with: &Value, on_failure: &str) -> Value {
    let takes_back = ["redis.configure", "pgbouncer.configure", "backup.postgres", "tls.certificate"].contains(&action);
    json!({
        "id": id, "agent": {"role": role(action)}, "action": action, "with": with, "timeout": "5m",
        "retry": {"maxAttempts": 1}, "onFailure": on_failure, "critical": on_failure == "undo",
        "undo": if takes_back { "auto" } else { "irreversible" },
    })
}

fn one_after_another(steps: &mut [Value]) {
    let mut before: Option<Value> = None;
    for step in steps {
        if let Some(before) = before.replace(step["id"].clone()) {
            step["needs"] = json!([before]);
        }
    }
}

/// A playbook of one phase.
pub(crate) fn playbook(name: &str, secrets: &[&str], steps: &[Value]) -> String {
    json!({
        "apiVersion": "muster.dev/v1", "kind": "Playbook", "metadata": {"name": name, "owner": "ops"},
        "spec": {"secrets": secrets, "phases": [{"id": "all", "milestone": format!("{name} is done"), "steps": steps}]},
    })
    .to_string()
}

/// The names of the actions in these steps.
pub(crate) fn actions(steps: &[Value]) -> BTreeSet<String> {
    steps.iter().filter_map(|step| step["action"].as_str()).map(str::to_owned).collect()
}
