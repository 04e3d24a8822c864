//! A primary and its replica: following, behind, stopped, hanging, promoted, mixed up, and with wrong passwords.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::ensure;
use muster_agent::{Action, ActionError};
use muster_infra::postgres::Replication;
use muster_integration_tests::lab::{self, APP_USER, DATABASE, Postgres};
use serde_json::{Value, json};

use crate::{assert_gave_up, context};

/// Fields are dropped in this order.
struct Base {
    replica: Postgres,
    primary: Postgres,
    dir: lab::Folder,
}

fn base() -> Base {
    let dir = lab::folder().unwrap();
    let primary = Postgres::start(&dir.path().join("primary")).unwrap();
    let replica = Postgres::replica(&dir.path().join("replica"), &primary).unwrap();
    Base { replica, primary, dir }
}

fn access(server: &Postgres) -> Value {
    json!({"dsn": server.dsn(APP_USER), "password": {"file": server.password_file()}})
}

impl Base {
    fn probe(&self, expect: &Value) -> Value {
        let replicas = json!({"read_1": access(&self.replica)});
        json!({"primary": access(&self.primary), "replicas": replicas, "timeout_ms": 2000, "expect": expect})
    }

    async fn wrong(&self, with: &Value) -> (String, Value) {
        match Replication.run(&context(), with).await {
            Err(ActionError::Retry { message, output: Some(output) }) => (message, output),
            other => panic!("not a failure that may pass by itself, with its output: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_replica_follows_falls_behind_and_catches_up() {
    let base = base();
    let tight = base.probe(&json!({"lag_bytes_below": 1_000_000, "lag_ms_below": 1900}));
    base.primary.sql(DATABASE, "create table t as select generate_series(1, 1000) n").unwrap();
    let done = Replication.run(&context(), &tight).await.unwrap();
    assert_eq!(done.output["primary_writes"], true);
    let replica = &done.output["replicas"]["read_1"];
    assert_eq!([&replica["reads"], &replica["refuses_writes"], &replica["of_this_primary"]], [true, true, true]);
    assert!(done.output["lag_ms_max"].as_f64().unwrap() > 0.0, "{}", done.output);
    assert!(done.observations.iter().any(|o| o.name == "lag" && o.unit == "ms" && o.source.ends_with("read_1")));
    assert!(done.observations.iter().any(|o| o.name == "lag_bytes" && o.unit == "bytes"));
    let left = "select count(*) from pg_class where relname = 'muster_replication_probe'";
    assert_eq!(base.primary.sql(DATABASE, left).unwrap(), "0", "the write is rolled back");

    base.replica.sql("postgres", "select pg_wal_replay_pause()").unwrap();
    base.primary.sql(DATABASE, "insert into t select generate_series(1, 50000)").unwrap();
    let (message, output) = base.wrong(&tight).await;
    assert!(message.contains("has not caught up") && message.contains("bytes behind"), "{message}");
    assert!(output["lag_bytes_max"].as_u64().unwrap() > 1_000_000, "{output}");
    assert_eq!(output["lag_ms_max"], Value::Null);
    base.replica.sql("postgres", "select pg_wal_replay_resume()").unwrap();
    lab::wait_until(Duration::from_secs(20), || {
        ensure!(base.replica.sql(DATABASE, "select count(*) from t")? == "51000", "it is behind");
        Ok(())
    })
    .unwrap();
    Replication.run(&context(), &tight).await.unwrap();
    let impossible = base.probe(&json!({"lag_ms_below": 0.0001}));
    assert!(base.wrong(&impossible).await.0.contains("ms to catch up"));
}

#[tokio::test]
async fn servers_that_are_stopped_hang_or_took_another_role_are_named() {
    let mut base = base();
    let with = base.probe(&json!({}));
    base.replica.freeze();
    let start = Instant::now();
    let (message, output) = base.wrong(&with).await;
    assert!(message.contains("replica read_1") && start.elapsed() < Duration::from_secs(30), "{message}");
    assert_eq!((&output["primary_writes"], &output["replicas"]["read_1"]["reads"]), (&json!(true), &json!(false)));
    base.replica.thaw();
    Replication.run(&context(), &with).await.unwrap();

    // The addresses are mixed up.
    let mut mixed = with.clone();
    mixed["primary"] = access(&base.replica);
    let (message, output) = base.wrong(&mixed).await;
    assert!(message.contains("the primary refuses writes"), "{message}");
    assert_eq!(output["primary_writes"], false);
    let mut mixed = with.clone();
    mixed["replicas"]["read_2"] = access(&base.primary);
    let (message, output) = base.wrong(&mixed).await;
    assert_eq!(message, "replica read_2 takes writes: it is no replica");
    assert_eq!(output["replicas"]["read_1"]["refuses_writes"], true);

    base.replica.sql("postgres", "select pg_promote()").unwrap();
    assert_eq!(base.wrong(&with).await.0, "replica read_1 takes writes: it is no replica");
    base.replica.stop();
    let message = assert_gave_up(Instant::now(), Replication.run(&context(), &with).await);
    assert!(message.contains("replica read_1 can't be reached") && message.contains("refused"), "{message}");
    base.primary.stop();
    assert!(base.wrong(&with).await.0.contains("the primary can't be reached"));
}

#[tokio::test]
async fn a_copy_of_another_primary_is_no_replica_of_this_one() {
    let base = base();
    let other = Postgres::start(&base.dir.path().join("other")).unwrap();
    let mut with = base.probe(&json!({}));
    with["primary"] = access(&other);
    let (message, output) = base.wrong(&with).await;
    assert_eq!(message, "replica read_1 is a copy of another primary");
    assert_eq!(output["replicas"]["read_1"]["lag_bytes"], Value::Null, "positions of two clusters can't be compared");
}

#[tokio::test]
async fn wrong_passwords_and_parameters_are_final_and_never_shown() {
    let base = base();
    let wrong = base.dir.path().join("wrong");
    fs::write(&wrong, "not-the-password\n").unwrap();
    for place in ["/primary/password", "/replicas/read_1/password"] {
        let mut with = base.probe(&json!({}));
        *with.pointer_mut(place).unwrap() = json!({"file": wrong});
        let error = Replication.run(&context(), &with).await.unwrap_err();
        assert!(matches!(&error, ActionError::Permanent { output: Some(_), .. }), "{error}");
        assert!(!error.to_string().contains("not-the-password"), "{error}");
    }
    let mut with = base.probe(&json!({}));
    with["replicas"] = json!({});
    assert!(matches!(Replication.run(&context(), &with).await, Err(ActionError::Permanent { output: None, .. })));
    let mut with = base.probe(&json!({}));
    with["write"] = json!("insert into no_such_table values (1)");
    assert!(base.wrong(&with).await.0.contains("can't be tried at the primary"));
}
