//! Backups of a real server: made, proven, undone, damaged, half done, in the way of others, and with wrong passwords.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use muster_agent::{Action, ActionError, Checked};
use muster_infra::backup::Backup;
use muster_integration_tests::lab::{self, APP_USER, DATABASE, Postgres, RunAs};
use serde_json::{Value, json};

use crate::{assert_gave_up, context, does, guarded::at_work_in, knowing, mute, undoes};

/// Fields are dropped in this order.
struct Base {
    postgres: Postgres,
    dir: lab::Folder,
}

fn base() -> Base {
    let dir = lab::folder().unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres")).unwrap();
    postgres.sql(DATABASE, "create table orders as select generate_series(1, 42) n").unwrap();
    RunAs::ordinary("postgres").unwrap().folder(&dir.path().join("backups")).unwrap();
    Base { postgres, dir }
}

impl Base {
    fn root(&self) -> PathBuf {
        self.dir.path().join("backups")
    }

    fn backup(&self, name: &str) -> Value {
        json!({
            "source": {"dsn": self.postgres.dsn("postgres"), "password": {"file": self.postgres.password_file()}},
            "root": self.root(), "name": name, "timeout_ms": 5000, "limit_ms": 120_000,
            "proof": {"query": "select count(*) from orders", "expect": "42"},
        })
    }

    /// What lies in the folder of backups.
    fn there(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    async fn run_fails(&self, with: &Value) -> ActionError {
        Backup.run(&context(), with).await.unwrap_err()
    }
}

fn file_of(data: &Path) -> PathBuf {
    data.join("global/pg_filenode.map")
}

#[tokio::test]
async fn a_backup_is_made_proven_and_taken_away() {
    let base = base();
    let with = base.backup("first");
    let (prepared, done) = does(&Backup, &with).await;
    assert_eq!((&done.output["proof"], base.there()), (&json!("42"), vec!["first".to_owned()]));
    assert!(done.output["size_bytes"].as_u64().unwrap() > 10_000_000, "{}", done.output);
    let system = base.postgres.sql("postgres", "select system_identifier from pg_control_system()").unwrap();
    assert_eq!(done.output["system_identifier"], system.as_str());
    for (name, unit) in [("size", "bytes"), ("backup", "ms"), ("verify", "ms"), ("restore", "ms")] {
        assert!(done.observations.iter().any(|o| o.name == name && o.unit == unit && o.value > 0.0), "{name}");
    }
    let whole = base.root().join("first");
    let mut kept: Vec<_> = fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    kept.sort();
    assert_eq!(kept, ["data", "muster.json"], "nothing is left of the proof");
    let secret = fs::read_to_string(whole.join("muster.json")).unwrap();
    assert!(!secret.contains(base.postgres.password()), "{secret}");

    // Another one stays when this one goes.
    let (second, _) = does(&Backup, &base.backup("second")).await;
    undoes(&Backup, &with, &prepared).await;
    assert_eq!(base.there(), ["second"]);
    undoes(&Backup, &base.backup("second"), &second).await;
    assert_eq!(base.there(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_in_the_way_is_neither_used_nor_removed() {
    let base = base();
    let with = base.backup("first");
    // Between prepare and run.
    let prepared = Backup.prepare(&context(), &with).await.unwrap();
    fs::create_dir(base.root().join("first")).unwrap();
    fs::write(base.root().join("first/theirs"), "theirs").unwrap();
    for error in [
        Backup.check(&context(), &with).await.unwrap_err(),
        base.run_fails(&with).await,
        Backup.undo(&context(), &with, &prepared).await.unwrap_err(),
    ] {
        assert!(matches!(error, ActionError::NeedsPerson { .. }), "{error}");
    }
    assert_eq!(fs::read_to_string(base.root().join("first/theirs")).unwrap(), "theirs");
    fs::remove_dir_all(base.root().join("first")).unwrap();
    // A backup of before this step is not this step's to remove.
    does(&Backup, &with).await;
    let prepared = Backup.prepare(&context(), &with).await.unwrap();
    assert!(matches!(base.run_fails(&with).await, ActionError::NeedsPerson { .. }));
    Backup.undo(&context(), &with, &prepared).await.unwrap();
    assert_eq!(base.there(), ["first"]);

    let file = file_of(&base.root().join("first/data"));
    let mut content = fs::read(&file).unwrap();
    content[100] ^= 1;
    fs::write(&file, content).unwrap();
    let damaged = Backup.check(&context(), &with).await.unwrap_err();
    assert!(matches!(damaged, ActionError::NeedsPerson { .. }), "{damaged}");
    assert!(damaged.to_string().contains("damaged") && damaged.to_string().contains("pg_filenode.map"), "{damaged}");
    fs::remove_file(base.root().join("first/data/backup_manifest")).unwrap();
    let damaged = Backup.check(&context(), &with).await.unwrap_err();
    assert!(
        matches!(damaged, ActionError::NeedsPerson { .. }) && damaged.to_string().contains("manifest"),
        "{damaged}"
    );
}

#[tokio::test]
async fn half_a_backup_is_never_taken_for_one() {
    let base = base();
    let with = base.backup("first");
    let prepared = Backup.prepare(&context(), &with).await.unwrap();
    // As after a crash while copying: PostgreSQL's own program has made part of it.
    let half = base.root().join(".first.muster-new/data/base");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("1"), "half").unwrap();
    assert!(matches!(Backup.check(&context(), &with).await.unwrap(), Checked::Different { .. }));
    Backup.undo(&context(), &with, &prepared).await.unwrap();
    assert_eq!(base.there(), Vec::<String>::new());
    fs::create_dir_all(&half).unwrap();
    let (prepared, _) = does(&Backup, &with).await;
    assert_eq!(base.there(), ["first"]);
    // As after a crash while removing.
    fs::rename(base.root().join("first"), base.root().join(".first.muster-gone")).unwrap();
    undoes(&Backup, &with, &prepared).await;
    assert_eq!(base.there(), Vec::<String>::new());

    // A proof that fails leaves nothing either.
    for (proof, says) in [
        (json!({"query": "select count(*) from orders", "expect": "43"}), "\"43\" wanted"),
        (json!({"query": "select * from no_such_table"}), "no_such_table"),
        (json!({"user": "nobody_known"}), "name its user"),
    ] {
        let mut with = with.clone();
        with["proof"] = proof;
        let error = base.run_fails(&with).await;
        assert!(matches!(error, ActionError::Permanent { .. }) && error.to_string().contains(says), "{error}");
        assert_eq!(base.there(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn settings_of_the_server_do_not_reach_the_copy() {
    let base = base();
    // On a copy with this the server would not start, or would archive over the real archive.
    let mark = base.dir.path().join("archived");
    for setting in [
        "shared_preload_libraries = 'no_such_library'".to_owned(),
        "archive_mode = on".to_owned(),
        format!("archive_command = 'touch {}'", mark.display()),
    ] {
        base.postgres.sql("postgres", &format!("alter system set {setting}")).unwrap();
    }
    let done = Backup.run(&context(), &base.backup("first")).await.unwrap();
    assert_eq!(done.output["proof"], "42");
    assert!(!mark.exists());
    let kept = fs::read_to_string(base.root().join("first/data/postgresql.auto.conf")).unwrap();
    assert!(kept.contains("no_such_library"), "the backup itself is whole");
}

#[tokio::test]
async fn a_proof_that_takes_too_long_ends_with_its_server() {
    let base = base();
    let mut with = base.backup("first");
    with["limit_ms"] = json!(10_000);
    with["proof"] = json!({"query": "select pg_sleep(600)"});
    let message = assert_gave_up(Instant::now(), Backup.run(&context(), &with).await);
    assert!(message.contains("10000 ms"), "{message}");
    assert_eq!(base.there(), Vec::<String>::new());
    assert_eq!(at_work_in(&base.root().display().to_string()), Vec::<u32>::new());
}

#[tokio::test]
async fn servers_that_are_down_or_hang_and_wrong_passwords() {
    let mut base = base();
    let wrong = base.dir.path().join("wrong");
    fs::write(&wrong, "not-the-password\n").unwrap();
    let mut with = base.backup("first");
    with["source"]["password"] = json!({"file": wrong});
    let error = base.run_fails(&with).await;
    assert!(matches!(error, ActionError::NeedsPerson { .. }), "{error}");
    assert!(!error.to_string().contains("not-the-password"), "{error}");
    // May connect, and may not replicate.
    with["source"] = json!({"dsn": base.postgres.dsn(APP_USER), "password": {"secret": "backup_password"}});
    let error = Backup.run(&knowing([("backup_password", base.postgres.password())]), &with).await.unwrap_err();
    assert!(matches!(error, ActionError::NeedsPerson { .. }) && error.to_string().contains("replication"), "{error}");

    let (_listener, address) = mute();
    with["source"] = json!({"dsn": format!("postgres://postgres@{address}/postgres")});
    with["timeout_ms"] = json!(300);
    assert_gave_up(Instant::now(), Backup.run(&context(), &with).await);
    base.postgres.stop();
    let message = assert_gave_up(Instant::now(), Backup.run(&context(), &base.backup("first")).await);
    assert!(message.contains("refused"), "{message}");
    assert_eq!(base.there(), Vec::<String>::new());
}

#[tokio::test]
async fn what_can_not_work_is_refused_before_anything_is_made() {
    let base = base();
    for (field, value) in [
        ("root", json!("relative")),
        ("name", json!("../elsewhere")),
        ("name", json!(".hidden")),
        ("run_as", json!("root")),
    ] {
        let mut with = base.backup("first");
        with[field] = value;
        // Who is not root runs all as themselves.
        if field != "run_as" || rustix::process::geteuid().is_root() {
            let error = base.run_fails(&with).await;
            assert!(matches!(error, ActionError::Permanent { .. }), "{field}: {error}");
        }
    }
    let mut with = base.backup("first");
    with["bin"] = json!("/nonexistent");
    let error = base.run_fails(&with).await;
    assert!(matches!(error, ActionError::NeedsPerson { .. }) && error.to_string().contains("pg_basebackup"), "{error}");
    let space = base.dir.path().join("space");
    RunAs::ordinary("postgres").unwrap().folder(&space).unwrap();
    base.postgres.sql("postgres", &format!("create tablespace t location '{}'", space.display())).unwrap();
    let error = base.run_fails(&base.backup("first")).await;
    assert!(matches!(error, ActionError::Permanent { .. }) && error.to_string().contains("tablespace"), "{error}");
    assert_eq!(base.there(), Vec::<String>::new());
}
