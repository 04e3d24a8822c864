//! Actions at work in a real agent under a real coordinator: taken back by a run that fails, and ended with an agent that
//! is killed.

use std::{fs, time::Duration};

use muster_integration_tests::{
    lab::{self, Postgres, Redis, RunAs},
    process::wait_for,
    system::System,
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);

/// A step of a playbook, after those in `needs`.
fn step(id: &str, needs: &[&str], action: &str, with: &Value) -> Value {
    let undo = if action == "redis.probe" { "irreversible" } else { "auto" };
    json!({
        "id": id, "needs": needs, "agent": {"role": "infra"}, "action": action, "with": with, "timeout": "5m",
        "retry": {"maxAttempts": 1}, "onFailure": "undo", "undo": undo,
    })
}

fn playbook(name: &str, steps: &[Value]) -> String {
    let phases = json!([{"id": "only", "steps": steps}]);
    json!({
        "apiVersion": "muster.dev/v1", "kind": "Playbook", "metadata": {"name": name, "owner": "dba"},
        "spec": {"phases": phases},
    })
    .to_string()
}

fn backup(postgres: &Postgres, root: &std::path::Path, query: &str) -> Value {
    json!({
        "source": {"dsn": postgres.dsn("postgres"), "password": {"file": postgres.password_file()}},
        "root": root, "name": "before", "proof": {"query": query},
    })
}

/// Processes whose command line names this folder.
pub(crate) fn at_work_in(folder: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let names = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(folder)
    };
    pids.filter(names).collect()
}

#[test]
fn a_run_that_fails_takes_back_settings_and_backup() {
    let dir = lab::folder().unwrap();
    let redis = Redis::start(&dir.path().join("redis")).unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres")).unwrap();
    let root = dir.path().join("backups");
    RunAs::ordinary("postgres").unwrap().folder(&root).unwrap();
    let found = fs::read(redis.config()).unwrap();
    let mut system = System::start().unwrap();
    system.start_agent("infra-1", "infra", &[]).unwrap();
    let target = json!({"address": redis.address(), "password": {"file": redis.password_file()}});
    let configure =
        json!({"config": redis.config(), "target": target, "append_only": true, "max_memory_bytes": 1 << 20});
    let fails = json!({"target": target, "expect": {"latency_p95_ms_below": 0.0}});
    let yaml = playbook(
        "fails",
        &[
            step("keep", &[], "redis.configure", &configure),
            step("backup", &["keep"], "backup.postgres", &backup(&postgres, &root, "select 7")),
            step("probe", &["backup"], "redis.probe", &fails),
        ],
    );
    let run = system.start_run(&system.submit(&yaml).unwrap()).unwrap();
    system.wait_run(&run, &["FAILED"], LONG).unwrap();
    let events = system.events(&run).unwrap();
    let text = serde_json::to_string(&events).unwrap();
    assert!(text.contains("\"proof\":\"7\""), "the backup was made: {text}");
    for secret in [redis.password(), postgres.password()] {
        assert!(!text.contains(secret), "a password is in the journal");
    }
    assert_eq!(fs::read(redis.config()).unwrap(), found);
    assert_eq!(redis.cli(&["CONFIG", "GET", "appendonly"]).unwrap(), "appendonly\nno");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "the backup is gone");
}

#[test]
fn a_restored_server_ends_with_the_agent_that_is_killed() {
    let dir = lab::folder().unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres")).unwrap();
    let root = dir.path().join("backups");
    RunAs::ordinary("postgres").unwrap().folder(&root).unwrap();
    let mut system = System::start().unwrap();
    system.start_agent("infra-1", "infra", &[]).unwrap();
    let with = backup(&postgres, &root, "select pg_sleep(600)");
    let yaml = playbook("hangs", &[step("backup", &[], "backup.postgres", &with)]);
    system.start_run(&system.submit(&yaml).unwrap()).unwrap();
    let copy = root.join(".before.muster-new/copy").display().to_string();
    let server = |there: bool| {
        let what = if there { "the restored server is at work" } else { "the restored server has ended" };
        let seen = wait_for(what, LONG, || Ok((at_work_in(&copy).is_empty() != there).then_some(())));
        seen.unwrap();
    };
    let pid_file = root.join(".before.muster-new/copy/postmaster.pid");
    wait_for("the restored server answers", LONG, || {
        let said = fs::read_to_string(&pid_file).unwrap_or_default();
        Ok(said.trim_end().ends_with("ready").then_some(()))
    })
    .unwrap();
    server(true);
    system.agents.get_mut("infra-1").unwrap().kill().unwrap();
    server(false);
    assert!(!root.join("before").exists(), "what was not proven has no name");
}
