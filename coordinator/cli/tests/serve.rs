//! A coordinator and an agent as processes of their own, over a real nats-server, and what is on disk afterwards.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use support::{
    Session,
    server::{Nats, Server, wait_for},
};

const NOTHING: &str = r"apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: nothing, owner: devops}
spec:
  phases:
    - id: main
      deadline: 5m
      milestone: Nothing was done
      steps:
        - {id: first, agent: {role: bench}, action: noop.run}
        - {id: second, needs: [first], agent: {role: bench}, action: noop.run}
";

fn serve<'a>(nats: &'a str, listen: &'a str, data: &'a str) -> Vec<&'a str> {
    vec!["serve", "--nats", nats, "--listen", listen, "--data-dir", data]
}

fn answers(session: &Session, args: &[&str]) -> Option<Value> {
    let output = session.command(&[args, &["-o", "json"]].concat()).output().expect("the binary starts");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("-o json prints JSON"))
}

#[test]
fn what_was_done_is_there_after_a_restart_and_in_the_journal() {
    let mut session = Session::new();
    let nats = Nats::start(&session);
    let listen = format!("127.0.0.1:{}", support::closed_port());
    let command = serve(&nats.url, &listen, "data");
    let mut server = Server::start(&session, &command);
    session.env("MUSTER_SERVER", &format!("http://{listen}"));
    session.env("MUSTER_DATA_DIR", "data");
    session.write("nothing.yaml", NOTHING);
    wait_for("the coordinator answers", || answers(&session, &["agent", "list"]));
    let mode = std::fs::metadata(session.folder("data").join("admin.token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let agent =
        Server::start(&session, &["agent", "run", "--role", "bench", "--nats", &nats.url, "--data-dir", "agent"]);
    wait_for("the agent registers", || answers(&session, &["agent", "get", "bench-1"]));
    session.run(&["run", "start", "nothing.yaml", "--watch"]);
    session.run(&["journal", "head"]);
    let second = format!("127.0.0.1:{}", support::closed_port());
    session.run(&serve(&nats.url, &second, "data"));
    session.env("MUSTER_LOG", "error");
    session.run(&serve(&nats.url, &second, "other"));
    server.stop();
    agent.stop();

    server = Server::start(&session, &command);
    wait_for("the coordinator answers again", || answers(&session, &["agent", "list"]));
    session.run(&["run", "list"]);
    session.run(&["milestone", "list"]);
    server.stop();
    session.check("serve");

    let report = answers(&session, &["journal", "verify"]).expect("the journal is whole");
    assert_eq!(
        (&report["whole"], &report["tornBytes"], &report["losses"]),
        (&Value::Bool(true), &0.into(), &Value::Array(vec![]))
    );
    let head = answers(&session, &["journal", "head"]).unwrap();
    assert_eq!((&head["position"], &head["chain"]), (&report["position"], &report["chain"]));
    let exported = session.quietly(&["journal", "export"]);
    let records = String::from_utf8(exported.stdout).unwrap();
    assert_eq!(records.lines().count(), usize::try_from(report["records"].as_u64().unwrap()).unwrap());
    assert!(records.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[test]
fn damage_is_named() {
    let mut session = Session::new();
    let nats = Nats::start(&session);
    let listen = format!("127.0.0.1:{}", support::closed_port());
    session.env("MUSTER_SERVER", &format!("http://{listen}"));
    session.env("MUSTER_LOG", "error");
    let server = Server::start(&session, &serve(&nats.url, &listen, "data"));
    session.env("MUSTER_DATA_DIR", "data");
    wait_for("the coordinator answers", || answers(&session, &["agent", "list"]));
    session.quietly(&["token", "create", "service/ci", "--role", "viewer"]);
    server.stop();
    let log = std::fs::read_dir(session.folder("data/log")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(10).position(|w| w == b"service/ci").unwrap();
    bytes[at] = b'S';
    std::fs::write(&log, bytes).unwrap();
    let found = session.quietly(&["journal", "verify"]);
    let text = String::from_utf8([found.stdout, found.stderr].concat()).unwrap();
    assert_eq!(found.status.code(), Some(1), "{text}");
    for part in ["Whole:    no", "log/00000000000000000001.jsonl", "error: JOURNAL_DAMAGED", "--accept-loss"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let refused = session.quietly(&serve(&nats.url, &listen, "data"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("JOURNAL_DAMAGED"));
}

#[test]
fn what_can_not_be_served_is_said() {
    let mut session = Session::new();
    session.env("MUSTER_LOG", "error");
    let nobody = format!("nats://127.0.0.1:{}", support::closed_port());
    session.run(&serve("nats://127.0.0.1:4222", "nowhere", "data"));
    session.run(&serve("nats://127.0.0.1:4222", "0.0.0.0:0", "data"));
    session.run(&[&serve("nats://127.0.0.1:4222", "127.0.0.1:0", "data")[..], &["--tls-cert", "cert.pem"]].concat());
    session.run(&serve(&nobody, "127.0.0.1:0", "data"));
    session.run(&["journal", "verify", "--data-dir", "nowhere"]);
    session.check("not_served");
}
