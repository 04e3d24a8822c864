//! Faults by other hands: in settings that no step looks at, between two steps of a run, and where a person answers for a step.

use std::{
    fs,
    io::Write as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    lab::{Certificates, DATABASE, DOMAIN, Nginx, PgBouncer, Postgres, psql_program},
    process::wait_for,
    proxy::Proxy,
    system::path,
};
use serde_json::{Value, json};

use crate::{
    conditions::{Evidence, conditions},
    gates::{Gates, ROLLOUT, Red, and, closed, refuse, refused},
    shipped,
};

const LONG: Duration = Duration::from_secs(60);

impl Gates {
    /// Starts a run whose replica is not there before the proxy heals; all else of that phase is done.
    pub(crate) fn begin_until_the_replica(&self, mut others: Value) -> Result<(String, Proxy)> {
        let replica = Proxy::start(&self.lab.replica.address())?;
        replica.cut();
        others["database_replica"] = replica.address().into();
        let run = self.begin(&others)?;
        wait_for("all but the replica is ready", LONG, || {
            let seen = self.system.json(&["run", "get", &run])?;
            let done = |step| state(&seen, step) == "STATE_SUCCEEDED";
            Ok((done("balance") && done("redis")).then_some(()))
        })?;
        Ok((run, replica))
    }

    /// It ends clients that are silent for longer than the verification's pause, and shorter than the probe's.
    pub(crate) fn a_pool_that_drops_who_thinks(&mut self) -> Result<Red> {
        let config = self.lab.pgbouncer.config();
        let found = fs::read_to_string(&config)?;
        fs::write(&config, format!("{found}client_idle_timeout = 0.06\n"))?;
        self.lab.pgbouncer.restart()?;
        let seen = self
            .refuses("pool_probe", &json!({}), "% of the transactions succeeded, 100 % wanted")
            .map(and("expect pool_probe: success_percent"));
        fs::write(config, found)?;
        self.lab.pgbouncer.restart()?;
        seen
    }

    /// Each user has a pool of its own: the database bears the connections of all of them.
    pub(crate) fn a_pool_beside_the_pool(&mut self) -> Result<Red> {
        let (users, password) = (self.lab.pgbouncer.auth_file(), self.lab.postgres.password());
        self.lab.postgres.sql("postgres", &format!("create role reports login password '{password}'"))?;
        let found = fs::read_to_string(&users)?;
        fs::write(&users, format!("{found}\"reports\" \"{password}\"\n"))?;
        self.lab.pgbouncer.restart()?;
        let readers = (0..20).map(|_| Reader::start(&self.lab.pgbouncer, &self.lab.postgres));
        let readers = readers.collect::<Result<Vec<_>>>()?;
        let seen = self.closes("critical", &json!({}));
        drop(readers);
        fs::write(users, found)?;
        self.lab.pgbouncer.restart()?;
        seen
    }

    pub(crate) fn a_replica_at_the_address_of_the_primary(&mut self) -> Result<Red> {
        let reads_only = json!({"database_port": self.lab.replica.port()});
        self.refuses("replication", &reads_only, "the primary refuses writes")
    }

    /// Once the certificate is there, somebody adds a site of this name with another one. The next request refuses that.
    pub(crate) fn another_site_of_this_name(&mut self) -> Result<Red> {
        let (run, replica) = self.begin_until_the_replica(json!({}))?;
        // nginx takes the first site of a name.
        let other = self.lab.nginx.site().with_file_name("another.conf");
        let theirs = Certificates::make(&self.lab.dir().join("theirs"), &Nginx::user()?, "other.test", 60)?;
        let site = format!(
            "server {{\n  listen {} ssl;\n  server_name {};\n  ssl_certificate {};\n  ssl_certificate_key {};\n}}\n",
            self.lab.nginx.https_address(),
            DOMAIN,
            theirs.cert().display(),
            theirs.key().display(),
        );
        fs::write(&other, site)?;
        self.lab.nginx.restart()?;
        replica.heal();
        let seen = refused(&self.system, ROLLOUT, &run, "site_check", "certificate");
        fs::remove_file(other)?;
        self.lab.nginx.restart()?;
        seen
    }

    /// Once the primary was asked, every second connection to it is refused; and the load asks for what no cache keeps.
    pub(crate) fn half_a_database_and_an_unasked_cache(&mut self) -> Result<Red> {
        let (primary, replica) =
            (Proxy::start(&self.lab.postgres.address())?, Proxy::start(&self.lab.replica.address())?);
        replica.cut();
        let port: u16 = primary.address().rsplit(':').next().context("a port")?.parse()?;
        let others = json!({"database_port": port, "database_replica": replica.address(), "cached_path": "/version"});
        let run = self.begin(&others)?;
        wait_for("the primary was asked", LONG, || {
            let asked =
                "select count(*) from pg_stat_activity where usename = 'app' and query like '%pg_control_system%'";
            Ok((self.lab.postgres.sql(DATABASE, asked)? != "0").then_some(()))
        })?;
        primary.refuse_every_second();
        replica.heal();
        closed(&self.system, ROLLOUT, &run, "validation")
    }

    /// So many requests a second, a few that wait, and no more; and without a page that the smoke tests want.
    pub(crate) fn a_front_with_a_limit(&mut self) -> Result<Red> {
        let front = self.lab.sides.nginx.site();
        let found = refuse(&front, "/quotes/1")?;
        let limited = "location = /version { limit_req zone=front burst=6; proxy_pass http://revenue_engine; }";
        let with_limit = fs::read_to_string(&front)?.replace("location / {", &format!("{limited}\n  location / {{"));
        fs::write(&front, format!("limit_req_zone $server_name zone=front:64k rate=12r/s;\n{with_limit}"))?;
        self.lab.sides.nginx.restart()?;
        let seen = self.closes("go_live", &json!({"latency_p95_ms": 250.0}));
        fs::write(front, found)?;
        self.lab.sides.nginx.restart()?;
        seen
    }

    pub(crate) fn a_word_for_redis(&mut self) -> Result<Red> {
        let wrong = self.lab.dir().join("wrong-password");
        fs::write(&wrong, "not this one\n")?;
        self.takes_no_word_for("redis", "performance", &json!({"redis_password_file": wrong}), "password")
    }

    pub(crate) fn a_word_for_the_backup(&mut self) -> Result<Red> {
        let stranger = self.lab.dir().join("backups").join(format!("before-{}", self.lab.release.version()));
        fs::create_dir(&stranger)?;
        self.takes_no_word_for("backup", "protection", &json!({}), path(&stranger)?)
    }

    /// The step asks for a person, who says that it is done: the gate waits, for nobody has seen what it wants.
    fn takes_no_word_for(&self, step: &str, phase: &str, others: &Value, says: &str) -> Result<Red> {
        let run = self.begin(others)?;
        let seen = |what: &str, holds: &dyn Fn(&Value) -> bool| {
            wait_for(what, LONG, || Ok(Some(self.system.json(&["run", "get", &run])?).filter(|seen| holds(seen))))
        };
        seen("the step asks", &|run| state(run, step) == "STATE_ASKING" && run.to_string().contains(says))?;
        let word = ["step", "resolve", &run, step, "succeeded", "--reason", "it looks good"];
        ensure!(self.system.cli(&word)?.status.success(), "a person may answer");
        let inconclusive = format!("the gate of phase {phase} is inconclusive");
        let held = seen("the gate waits", &|run| pause(run).contains(&inconclusive))?;
        let mut named = conditions(&shipped(ROLLOUT))?;
        named.retain(|condition| pause(&held).contains(&format!("`{condition}` can't be judged")));
        let cancel = ["run", "cancel", &run, "--reason", "seen enough"];
        ensure!(self.system.cli(&cancel)?.status.success(), "a waiting run is cancelled");
        self.system.wait_run(&run, &["CANCELLED"], LONG)?;
        Ok(Evidence::of(&held)?.unknown(&named))
    }
}

fn state<'a>(run: &'a Value, step: &str) -> &'a str {
    let steps = run["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    steps.iter().find(|s| s["id"] == step).and_then(|s| s["state"].as_str()).unwrap_or_default()
}

/// Why a run waits.
fn pause(run: &Value) -> &str {
    run["pause"]["reason"].as_str().unwrap_or_default()
}

/// Another user of the pool, in a transaction that does not end before its reader does.
struct Reader(Child);

impl Reader {
    fn start(pool: &PgBouncer, postgres: &Postgres) -> Result<Self> {
        let url = format!("postgres://reports:{}@{}/{DATABASE}", postgres.password(), pool.address());
        let mut psql = Command::new(psql_program()?);
        psql.args(["-X", "-q", "-d", &url]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut reader = Self(psql.spawn()?);
        reader.0.stdin.as_mut().context("it reads")?.write_all(b"begin;\nselect 1;\n")?;
        Ok(reader)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Gone already is as good as ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
