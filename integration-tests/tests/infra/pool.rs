//! PgBouncer and PostgreSQL as found, configured, undone, stopped, hanging, and with wrong passwords.

use std::{fs, time::Instant};

use muster_agent::{Action, ActionError, Checked};
use muster_infra::{
    pgbouncer::{Configure, Probe as PoolProbe},
    postgres::Probe,
};
use muster_integration_tests::lab::{self, APP_USER, CONSOLE_USER, DATABASE, PgBouncer, Pooling, Postgres};
use serde_json::{Value, json};

use crate::{assert_gave_up, context, does, knowing, mute, undoes};

/// Fields are dropped in this order.
struct Base {
    pgbouncer: PgBouncer,
    postgres: Postgres,
    dir: lab::Folder,
}

fn base(pooling: Pooling) -> Base {
    let dir = lab::folder().unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres")).unwrap();
    let pgbouncer = PgBouncer::start(&dir.path().join("pgbouncer"), &postgres, pooling).unwrap();
    Base { pgbouncer, postgres, dir }
}

impl Base {
    fn access(&self, dsn: &str) -> Value {
        json!({"dsn": dsn, "password": {"file": self.postgres.password_file()}})
    }

    fn configure(&self) -> Value {
        json!({
            "config": self.pgbouncer.config(),
            "admin": self.access(&self.pgbouncer.console_dsn()),
            "databases": {DATABASE: {"host": "127.0.0.1", "port": self.postgres.port()}},
            "listen_addr": "127.0.0.1", "listen_port": self.pgbouncer.port(),
            "auth_type": "plain", "auth_file": self.pgbouncer.auth_file(),
            "admin_users": [CONSOLE_USER], "settings": {"server_idle_timeout": "60"},
        })
    }

    fn probe(&self) -> Value {
        json!({
            "pool": self.access(&self.pgbouncer.dsn()), "admin": self.access(&self.pgbouncer.console_dsn()),
            "timeout_ms": 2000,
        })
    }

    fn config_value(&self, name: &str) -> String {
        let shown = self.pgbouncer.console("SHOW CONFIG").unwrap();
        let line = shown.lines().find(|line| line.starts_with(&format!("{name}|"))).unwrap();
        line.split('|').nth(1).unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_pool_that_serves_one_client_is_mended_and_broken_again() {
    let base = base(Pooling::OneSession);
    let (found, with) = (fs::read(base.pgbouncer.config()).unwrap(), base.configure());
    let red = PoolProbe.run(&context(), &base.probe()).await.unwrap().output;
    assert_eq!((&red["succeeded"], &red["success_percent"]), (&json!(10), &json!(2.0)), "one client of fifty: {red}");

    let (prepared, _) = does(&Configure, &with).await;
    assert_eq!(base.config_value("pool_mode"), "transaction");
    assert_eq!(base.config_value("default_pool_size"), "20");
    assert_eq!(base.config_value("max_client_conn"), "1000");
    assert_eq!(base.config_value("reserve_pool_size"), "5");
    assert_eq!(base.config_value("server_idle_timeout"), "60");
    let file = fs::read_to_string(base.pgbouncer.config()).unwrap();
    assert!(file.contains("; as it was found") && file.contains("ignore_startup_parameters = extra_float_digits"));

    let green = PoolProbe.run(&context(), &base.probe()).await.unwrap();
    assert_eq!(green.output["success_percent"], json!(100.0), "{}", green.output);
    for (expect, holds) in [
        (json!({"success_percent": 100, "latency_p95_ms_below": 1e9}), true),
        (json!({"latency_p95_ms_below": 0.001}), false),
    ] {
        let mut with = base.probe();
        with["expect"] = expect;
        let probed = PoolProbe.run(&context(), &with).await;
        assert_eq!(probed.is_ok(), holds, "{probed:?}");
    }
    assert_eq!((&green.output["pool_size"], &green.output["within_pool"]), (&json!(20), &json!(true)));
    assert!(green.output["latency_p95_ms"].as_f64().unwrap() > 0.0);
    assert!(green.observations.iter().any(|o| o.name == "latency_p95" && o.unit == "ms" && o.samples == Some(500)));
    let backends = "select count(*) from pg_stat_activity where usename = 'app'";
    let backends: u64 = base.postgres.sql("postgres", backends).unwrap().parse().unwrap();
    assert!((1..=20).contains(&backends), "fifty clients on {backends} server connections");

    undoes(&Configure, &with, &prepared).await;
    assert_eq!(fs::read(base.pgbouncer.config()).unwrap(), found);
    assert_eq!(base.config_value("pool_mode"), "session");
    assert_eq!(base.config_value("reserve_pool_size"), "0");
}

#[tokio::test]
async fn a_database_is_added_and_taken_away() {
    let base = base(Pooling::NoDatabase);
    let with = base.configure();
    assert!(base.pgbouncer.sql("select 1").is_err());
    let failed = PoolProbe.run(&context(), &base.probe()).await;
    assert!(
        matches!(&failed, Err(ActionError::Retry { output: Some(output), .. }) if output["success_percent"] == 0.0)
    );
    let (prepared, _) = does(&Configure, &with).await;
    assert_eq!(base.pgbouncer.sql("select 40 + 2").unwrap(), "42");
    undoes(&Configure, &with, &prepared).await;
    assert!(base.pgbouncer.sql("select 1").is_err());
}

#[tokio::test]
async fn what_needs_a_restart_or_is_unknown_is_said() {
    let base = base(Pooling::OneSession);
    let mut with = base.configure();
    let prepared = Configure.prepare(&context(), &with).await.unwrap();
    with["listen_port"] = json!(lab::free_port().unwrap());
    let asked = Configure.run(&context(), &with).await.unwrap_err();
    assert!(matches!(asked, ActionError::NeedsPerson { .. }) && asked.to_string().contains("restart"), "{asked}");
    Configure.undo(&context(), &with, &prepared).await.unwrap();
    let mut with = base.configure();
    with["settings"] = json!({"no_such_setting": "1"});
    let refused = Configure.run(&context(), &with).await.unwrap_err();
    assert!(matches!(refused, ActionError::Permanent { .. }), "{refused}");
    with["databases"] = json!({"a b": {"host": "127.0.0.1"}});
    assert!(matches!(Configure.run(&context(), &with).await, Err(ActionError::Permanent { .. })));
}

#[tokio::test]
async fn a_stopped_pool_is_not_configured_but_can_be_undone() {
    let mut base = base(Pooling::OneSession);
    let (found, with) = (fs::read(base.pgbouncer.config()).unwrap(), base.configure());
    let (prepared, _) = does(&Configure, &with).await;
    base.pgbouncer.stop();
    assert!(matches!(Configure.check(&context(), &with).await.unwrap(), Checked::Different { .. }));
    assert!(assert_gave_up(Instant::now(), Configure.run(&context(), &with).await).contains("start it"));
    assert!(assert_gave_up(Instant::now(), PoolProbe.run(&context(), &base.probe()).await).contains("does not run"));
    Configure.undo(&context(), &with, &prepared).await.unwrap();
    assert_eq!(fs::read(base.pgbouncer.config()).unwrap(), found);
    base.pgbouncer.restart().unwrap();
    assert_eq!(base.config_value("pool_mode"), "session");
}

#[tokio::test]
async fn wrong_and_missing_passwords_are_questions_and_never_shown() {
    let base = base(Pooling::OneSession);
    let wrong = base.dir.path().join("wrong");
    fs::write(&wrong, "not-the-password\n").unwrap();
    let (mut configure, mut probe) = (base.configure(), base.probe());
    configure["admin"]["password"] = json!({"file": wrong});
    probe["admin"]["password"] = json!({"secret": "pool_password"});
    for error in [
        Configure.check(&context(), &configure).await.unwrap_err(),
        Configure.run(&context(), &configure).await.unwrap_err(),
        PoolProbe.run(&context(), &probe).await.unwrap_err(),
    ] {
        assert!(matches!(error, ActionError::NeedsPerson { .. }), "{error}");
        assert!(!error.to_string().contains("not-the-password"), "{error}");
    }
    let known = knowing([("pool_password", base.postgres.password())]);
    PoolProbe.run(&known, &probe).await.unwrap();

    let dsn = base.postgres.dsn(APP_USER);
    let with = json!({"target": {"dsn": dsn, "password": {"file": wrong}}, "connections": 2});
    let error = Probe.run(&context(), &with).await.unwrap_err();
    assert!(matches!(&error, ActionError::Permanent { output: Some(o), .. } if o["success_percent"] == 0.0), "{error}");
    let open = dsn.replace('@', &format!(":{}@", base.postgres.password()));
    let error = Probe.run(&context(), &json!({"target": {"dsn": open}})).await.unwrap_err();
    assert!(!error.to_string().contains(base.postgres.password()), "{error}");
}

#[tokio::test]
async fn postgres_probe_measures_and_sees_faults() {
    let mut base = base(Pooling::OneSession);
    let with = json!({"target": base.access(&base.postgres.dsn(APP_USER)), "connections": 10, "timeout_ms": 20_000});
    let done = Probe.run(&context(), &with).await.unwrap();
    assert_eq!((&done.output["succeeded"], &done.output["success_percent"]), (&json!(10), &json!(100.0)));
    let (p50, p95) = (done.output["latency_p50_ms"].as_f64().unwrap(), done.output["latency_p95_ms"].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p95, "{p50} {p95}");
    // Every second question fails.
    base.postgres.sql(DATABASE, "create sequence turn; grant usage on sequence turn to app").unwrap();
    let mut half = with.clone();
    half["query"] = json!("select 1 / (nextval('turn') % 2)");
    let half = Probe.run(&context(), &half).await.unwrap().output;
    assert_eq!((&half["succeeded"], &half["success_percent"]), (&json!(5), &json!(50.0)), "{half}");
    assert_eq!(half["errors"], json!({"division by zero (22012)": 5}));
    base.postgres.stop();
    let message = assert_gave_up(Instant::now(), Probe.run(&context(), &with).await);
    assert!(message.contains("refused"), "{message}");
}

#[tokio::test]
async fn what_hangs_is_given_up_in_time() {
    let (_listener, address) = mute();
    let dir = lab::folder().unwrap();
    let dsn = json!({"dsn": format!("postgres://app@{address}/revenue_engine")});
    let start = Instant::now();
    let with = json!({"target": dsn, "connections": 3, "timeout_ms": 300});
    assert_gave_up(start, Probe.run(&context(), &with).await);
    let with = json!({"pool": dsn, "admin": dsn, "clients": 3, "timeout_ms": 300});
    assert_gave_up(start, PoolProbe.run(&context(), &with).await);
    let with = json!({
        "config": dir.path().join("pgbouncer.ini"), "admin": dsn, "databases": {DATABASE: {"host": "127.0.0.1"}},
        "listen_addr": "127.0.0.1", "listen_port": 6432, "auth_type": "plain", "auth_file": "/etc/users.txt",
        "admin_users": [CONSOLE_USER], "timeout_ms": 300,
    });
    assert_gave_up(start, Configure.check(&context(), &with).await);
    assert_gave_up(start, Configure.run(&context(), &with).await);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written before the console answers");
}
