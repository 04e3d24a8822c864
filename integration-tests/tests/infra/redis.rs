//! Redis as found, configured, undone, restarted, stopped, hanging, changed by another hand, and with wrong passwords.

use std::{
    fs,
    time::{Duration, Instant},
};

use muster_agent::{Action, ActionError, Checked};
use muster_infra::redis::{Configure, Probe};
use muster_integration_tests::lab::{self, REDIS_READER, Redis};
use serde_json::{Value, json};

use crate::{assert_gave_up, context, does, knowing, mute, undoes};

/// Fields are dropped in this order.
struct Base {
    redis: Redis,
    dir: lab::Folder,
}

fn base() -> Base {
    let dir = lab::folder().unwrap();
    let redis = Redis::start(&dir.path().join("redis")).unwrap();
    Base { redis, dir }
}

impl Base {
    fn target(&self) -> Value {
        json!({"address": self.redis.address(), "password": {"file": self.redis.password_file()}})
    }

    fn configure(&self, settings: &Value) -> Value {
        let mut with = json!({"config": self.redis.config(), "target": self.target(), "timeout_ms": 5000});
        with.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        with
    }

    fn persistent(&self) -> Value {
        self.configure(&json!({
            "append_only": true, "append_fsync": "always", "max_memory_bytes": 64 << 20, "max_memory_policy": "allkeys-lru",
            "save_points": [{"after_s": 900, "changes": 1}, {"after_s": 300, "changes": 10}],
        }))
    }

    fn probe(&self, expect: &Value) -> Value {
        json!({"target": self.target(), "timeout_ms": 5000, "expect": expect})
    }

    fn at_work(&self, name: &str) -> String {
        let shown = self.redis.cli(&["CONFIG", "GET", name]).unwrap();
        shown.lines().nth(1).unwrap_or_default().to_owned()
    }

    fn file(&self) -> String {
        fs::read_to_string(self.redis.config()).unwrap()
    }

    async fn run_fails(&self, with: &Value) -> ActionError {
        Configure.run(&context(), with).await.unwrap_err()
    }
}

#[tokio::test]
async fn data_survives_a_crash_as_soon_as_it_is_wanted() {
    let mut base = base();
    let (found, with) = (base.file(), base.persistent());
    base.redis.cli(&["SET", "before", "1"]).unwrap();
    let lasting = base.probe(&json!({"append_only": true, "memory_limited": true, "last_save_ok": true}));
    let message = assert_gave_up(Instant::now(), Probe.run(&context(), &lasting).await);
    assert!(message.contains("append-only file"), "{message}");

    let (prepared, done) = does(&Configure, &with).await;
    assert_eq!(done.output["max_memory_bytes"], 64 << 20);
    let names = ["appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "save"];
    let wanted = ["yes", "always", "67108864", "allkeys-lru", "900 1 300 10"];
    assert_eq!(names.map(|name| base.at_work(name)), wanted);
    assert!(base.file().starts_with("# as it was found\n") && base.file().contains("\nloglevel notice\n"));
    Probe.run(&context(), &lasting).await.unwrap();

    base.redis.cli(&["SET", "after", "2"]).unwrap();
    base.redis.kill();
    base.redis.restart().unwrap();
    assert_eq!(base.redis.cli(&["MGET", "before", "after"]).unwrap(), "1\n2");
    assert_eq!(names.map(|name| base.at_work(name)), wanted);
    assert!(matches!(Configure.check(&context(), &with).await.unwrap(), Checked::Satisfied(_)));

    undoes(&Configure, &with, &prepared).await;
    assert_eq!(base.file(), found);
    assert_eq!(names.map(|name| base.at_work(name)), ["no", "everysec", "0", "noeviction", ""]);
    // What was written meanwhile is not lost with the append-only file.
    base.redis.kill();
    base.redis.restart().unwrap();
    assert_eq!(base.redis.cli(&["MGET", "before", "after"]).unwrap(), "1\n2");
}

#[tokio::test]
async fn appending_ends_and_comes_back_with_the_data() {
    let mut base = base();
    does(&Configure, &base.persistent()).await;
    base.redis.cli(&["SET", "key", "appended"]).unwrap();
    let with = base.configure(&json!({"append_only": false}));
    let (prepared, _) = does(&Configure, &with).await;
    assert_eq!(base.at_work("save"), "900 1 300 10", "what is not named stays");
    base.redis.kill();
    base.redis.restart().unwrap();
    assert_eq!(base.redis.cli(&["GET", "key"]).unwrap(), "appended");
    base.redis.cli(&["SET", "key", "later"]).unwrap();

    // The append-only file on disk is older than the data: the stopped server must not start from it.
    base.redis.stop();
    let message = assert_gave_up(Instant::now(), Configure.undo(&context(), &with, &prepared).await);
    assert!(message.contains("start it"), "{message}");
    base.redis.restart().unwrap();
    undoes(&Configure, &with, &prepared).await;
    base.redis.kill();
    base.redis.restart().unwrap();
    assert_eq!((base.redis.cli(&["GET", "key"]).unwrap(), base.at_work("appendonly")), ("later".into(), "yes".into()));
}

#[tokio::test]
async fn half_a_run_is_finished_or_taken_back() {
    let base = base();
    let (found, with) = (base.file(), base.persistent());
    let prepared = Configure.prepare(&context(), &with).await.unwrap();
    // As after a crash between the settings and the file.
    base.redis.cli(&["CONFIG", "SET", "maxmemory", "67108864"]).unwrap();
    base.redis.cli(&["CONFIG", "SET", "appendonly", "yes"]).unwrap();
    let Checked::Different { diff } = Configure.check(&context(), &with).await.unwrap() else {
        panic!("half is not all")
    };
    assert!(diff.contains("appendonly in the file: no -> yes") && !diff.contains("maxmemory at work"), "{diff}");
    assert!(diff.contains("maxmemory-policy at work: noeviction -> allkeys-lru"), "{diff}");
    undoes(&Configure, &with, &prepared).await;
    assert_eq!((base.file(), base.at_work("maxmemory"), base.at_work("appendonly")), (found, "0".into(), "no".into()));
    let (prepared, _) = does(&Configure, &with).await;
    undoes(&Configure, &with, &prepared).await;
}

#[tokio::test]
async fn what_another_hand_changed_is_seen_and_not_guessed_back() {
    let base = base();
    let with = base.configure(&json!({"max_memory_bytes": 1 << 20}));
    let prepared = Configure.prepare(&context(), &with).await.unwrap();
    // Between prepare and run.
    let other = base.file().replace("loglevel notice", "loglevel warning");
    fs::write(base.redis.config(), &other).unwrap();
    Configure.run(&context(), &with).await.unwrap();
    assert_eq!(base.file(), format!("{other}maxmemory 1048576\n"));
    let asked = Configure.undo(&context(), &with, &prepared).await.unwrap_err();
    assert!(matches!(asked, ActionError::NeedsPerson { .. }), "{asked}");
    assert!(base.file().starts_with(&other), "the other hand's change stays");
    // After the run: at work alone, which a restart would end.
    base.redis.cli(&["CONFIG", "SET", "maxmemory", "5"]).unwrap();
    let Checked::Different { diff } = Configure.check(&context(), &with).await.unwrap() else {
        panic!("it is changed")
    };
    assert_eq!(diff, "maxmemory at work: 5 -> 1048576");
    does(&Configure, &with).await;
}

#[tokio::test]
async fn a_stopped_server_is_not_configured_but_can_be_undone() {
    let mut base = base();
    let with = base.configure(&json!({"max_memory_bytes": 1 << 20, "save_points": [{"after_s": 60, "changes": 1}]}));
    let (found, prepared) = (base.file(), does(&Configure, &with).await.0);
    base.redis.stop();
    assert!(matches!(Configure.check(&context(), &with).await.unwrap(), Checked::Different { .. }));
    assert!(assert_gave_up(Instant::now(), Configure.run(&context(), &with).await).contains("start it"));
    let message = assert_gave_up(Instant::now(), Probe.run(&context(), &base.probe(&json!({}))).await);
    assert!(message.contains("refused"), "{message}");
    for _ in 0..2 {
        Configure.undo(&context(), &with, &prepared).await.unwrap();
    }
    assert_eq!(base.file(), found);
    base.redis.restart().unwrap();
    assert_eq!(base.at_work("maxmemory"), "0");
}

#[tokio::test]
async fn wrong_and_missing_passwords_and_rights_are_questions_and_never_shown() {
    let base = base();
    let found = base.file();
    let wrong = base.dir.path().join("wrong");
    fs::write(&wrong, "not-the-password\n").unwrap();
    for target in [
        json!({"address": base.redis.address(), "password": {"file": wrong}}),
        json!({"address": base.redis.address()}),
        json!({"address": base.redis.address(), "password": {"secret": "redis_password"}}),
        json!({"address": base.redis.address(), "user": REDIS_READER, "password": {"file": base.redis.password_file()}}),
    ] {
        let mut with = base.persistent();
        with["target"] = target.clone();
        for error in [Configure.check(&context(), &with).await.unwrap_err(), base.run_fails(&with).await] {
            assert!(matches!(error, ActionError::NeedsPerson { .. }), "{target}: {error}");
            assert!(!error.to_string().contains("not-the-password"), "{error}");
        }
    }
    assert_eq!(base.file(), found);
    let mut probe = base.probe(&json!({}));
    probe["target"]["password"] = json!({"file": wrong});
    let error = Probe.run(&context(), &probe).await.unwrap_err();
    assert!(matches!(&error, ActionError::Permanent { output: Some(o), .. } if o["success_percent"] == 0.0), "{error}");
    assert!(!error.to_string().contains("not-the-password"), "{error}");
    probe["target"]["password"] = json!({"secret": "redis_password"});
    Probe.run(&knowing([("redis_password", base.redis.password())]), &probe).await.unwrap();
}

#[tokio::test]
async fn what_redis_refuses_and_what_does_not_fit_changes_nothing() {
    let base = base();
    let found = base.file();
    // A user who may look at settings and not change them.
    base.redis.cli(&["ACL", "SETUSER", "half", "on", ">half", "+@all", "-config|set"]).unwrap();
    let mut with = base.persistent();
    with["config"] = json!(base.dir.path().join("other.conf"));
    fs::write(base.dir.path().join("other.conf"), "").unwrap();
    let error = base.run_fails(&with).await;
    assert!(matches!(error, ActionError::Permanent { .. }) && error.to_string().contains("reads"), "{error}");
    let half = base.dir.path().join("half");
    fs::write(&half, "half\n").unwrap();
    let mut with = base.persistent();
    with["target"] = json!({"address": base.redis.address(), "user": "half", "password": {"file": half}});
    let error = base.run_fails(&with).await;
    assert!(matches!(error, ActionError::NeedsPerson { .. }), "{error}");
    for wrong in [
        base.configure(&json!({})),
        base.configure(&json!({"save_points": [{"after_s": 0, "changes": 1}]})),
        base.configure(&json!({"max_memory_policy": "everything"})),
    ] {
        assert!(matches!(base.run_fails(&wrong).await, ActionError::Permanent { .. }));
    }
    // The append-only file can't be made: its folder's name is taken by a file.
    fs::write(base.redis.config().with_file_name("appendonlydir"), "").unwrap();
    let mut with = base.configure(&json!({"append_only": true, "append_fsync": "always"}));
    with["settle_ms"] = json!(500);
    let prepared = Configure.prepare(&context(), &with).await.unwrap();
    let error = base.run_fails(&with).await;
    assert!(matches!(error, ActionError::Retry { .. }) && error.to_string().contains("appendonly"), "{error}");
    assert_eq!(base.file(), found, "the file would have it start without its data: {error}");
    assert_eq!(base.at_work("appendfsync"), "everysec", "what was set before the refusal is taken back");
    Configure.undo(&context(), &with, &prepared).await.unwrap();
    assert_eq!((base.file(), base.at_work("appendonly")), (found, "no".into()));
}

#[tokio::test]
async fn redis_probe_measures_and_sees_faults() {
    let mut base = base();
    base.redis.cli(&["SET", "key", "1"]).unwrap();
    let idle = Probe.run(&context(), &base.probe(&json!({}))).await.unwrap();
    assert_eq!((&idle.output["attempted"], &idle.output["success_percent"]), (&json!(200), &json!(100.0)));
    assert_eq!(idle.output["server"]["hit_percent"], Value::Null, "{}", idle.output);
    for key in ["key", "key", "key", "none"] {
        base.redis.cli(&["GET", key]).unwrap();
    }
    let since = |mut with: Value| {
        with["since"] = idle.output["server"]["counted"].clone();
        with
    };
    let good = since(base.probe(&json!({"hit_percent": 75, "latency_p99_ms_below": 1e9})));
    let done = Probe.run(&context(), &good).await.unwrap();
    let percentile = |name: &str| done.output[name].as_f64().unwrap();
    let (p50, p95) = (percentile("latency_p50_ms"), percentile("latency_p95_ms"));
    assert!(0.0 < p50 && p50 <= p95 && p95 <= percentile("latency_p99_ms"), "{}", done.output);
    assert!(done.observations.iter().any(|o| o.name == "hits" && o.unit == "percent" && o.samples == Some(4)));
    assert!(done.observations.iter().any(|o| o.name == "latency_p99" && o.unit == "ms" && o.samples == Some(200)));
    for (expect, says) in [
        (json!({"hit_percent": 76}), "75"),
        (json!({"latency_p95_ms_below": 0.0001}), "95 %"),
        (json!({"memory_limited": true}), "memory"),
        (json!({"append_only": true}), "append-only"),
    ] {
        let message = assert_gave_up(Instant::now(), Probe.run(&context(), &since(base.probe(&expect))).await);
        assert!(message.contains(says), "{message}");
    }
    // In a sample of its own nobody looks anything up.
    let mut sampled = base.probe(&json!({"hit_percent": 1}));
    sampled["sample_ms"] = json!(20);
    assert!(assert_gave_up(Instant::now(), Probe.run(&context(), &sampled).await).contains("no lookup"));
    // A snapshot that can't be saved: its name is taken by a folder.
    fs::create_dir(base.redis.config().with_file_name("dump.rdb")).unwrap();
    base.redis.cli(&["BGSAVE"]).unwrap();
    lab::wait_until(Duration::from_secs(10), || {
        anyhow::ensure!(base.redis.cli(&["INFO", "persistence"])?.contains("rdb_last_bgsave_status:err"), "not yet");
        Ok(())
    })
    .unwrap();
    let message =
        assert_gave_up(Instant::now(), Probe.run(&context(), &base.probe(&json!({"last_save_ok": true}))).await);
    assert!(message.contains("snapshot"), "{message}");
    base.redis.freeze();
    let mut hanging = base.probe(&json!({}));
    hanging["timeout_ms"] = json!(300);
    assert_gave_up(Instant::now(), Probe.run(&context(), &hanging).await);
    base.redis.thaw();
    Probe.run(&context(), &base.probe(&json!({"success_percent": 100}))).await.unwrap();
}

#[tokio::test]
async fn hits_of_the_past_are_no_hits_of_today() {
    let base = base();
    base.redis.cli(&["SET", "key", "1"]).unwrap();
    base.redis.cli(&["EVAL", "for _ = 1, 120000 do redis.call('GET', 'key') end", "0"]).unwrap();
    let old = Probe.run(&context(), &base.probe(&json!({}))).await.unwrap();
    assert_eq!(old.output["server"]["counted"], json!({"hits": 120_000, "misses": 0}));
    let unsaid = ["lookups", "hit_percent"].map(|name| &old.output["server"][name]);
    assert_eq!(unsaid, [&Value::Null; 2], "nobody said since when: no gate may pass by weeks of hits");
    base.redis.cli(&["EVAL", "for n = 1, 1000 do redis.call('GET', 'gone:' .. n) end", "0"]).unwrap();

    let mut with = base.probe(&json!({}));
    with["since"] = old.output["server"]["counted"].clone();
    let dead = Probe.run(&context(), &with).await.unwrap();
    assert_eq!(dead.output["server"]["lookups"], 1000);
    assert_eq!(dead.output["server"]["hit_percent"], 0.0, "{}", dead.output);
    with["expect"] = json!({"hit_percent": 90});
    assert!(assert_gave_up(Instant::now(), Probe.run(&context(), &with).await).contains("0 % found a key"));
    // Set back meanwhile: it counts from there.
    base.redis.cli(&["CONFIG", "RESETSTAT"]).unwrap();
    base.redis
        .cli(&["EVAL", "for _ = 1, 9 do redis.call('GET', 'key') end return redis.call('GET', 'none')", "0"])
        .unwrap();
    let again = Probe.run(&context(), &with).await.unwrap();
    assert_eq!(
        (&again.output["server"]["lookups"], &again.output["server"]["hit_percent"]),
        (&json!(10), &json!(90.0))
    );

    let unsaid = base.probe(&json!({"hit_percent": 90}));
    with["sample_ms"] = json!(10);
    for (with, says) in [(unsaid, "since when"), (with, "not both")] {
        let error = Probe.run(&context(), &with).await.unwrap_err();
        assert!(matches!(error, ActionError::Permanent { .. }) && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() {
    let (_listener, address) = mute();
    let dir = lab::folder().unwrap();
    let (start, config) = (Instant::now(), dir.path().join("redis.conf"));
    fs::write(&config, "port 6379\n").unwrap();
    let target = json!({"address": address});
    let with = json!({"config": config, "target": target, "append_only": true, "timeout_ms": 300});
    assert_gave_up(start, Configure.check(&context(), &with).await);
    assert_gave_up(start, Configure.run(&context(), &with).await);
    assert_gave_up(start, Probe.run(&context(), &json!({"target": target, "timeout_ms": 300})).await);
    assert_eq!(fs::read_to_string(&config).unwrap(), "port 6379\n");
}
