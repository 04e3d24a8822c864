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

/// A session that talks to a coordinator which is not up yet, its nats-server, and where it will listen.
fn house() -> (Session, Nats, String) {
    let mut session = Session::new();
    let nats = Nats::start(&session);
    let listen = format!("127.0.0.1:{}", support::closed_port());
    session.env("MUSTER_SERVER", &format!("http://{listen}"));
    session.env("MUSTER_DATA_DIR", "data");
    session.write("nothing.yaml", NOTHING);
    (session, nats, listen)
}

fn up(session: &Session, command: &[&str]) -> Server {
    let server = Server::start(session, command);
    wait_for("the coordinator answers", || answers(session, &["agent", "list"]));
    server
}

#[test]
fn what_was_done_is_there_after_a_restart_and_in_the_journal() {
    let (mut session, nats, listen) = house();
    let command = serve(&nats.url, &listen, "data");
    let mut server = up(&session, &command);
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
    assert!(!session.is_there("other"), "a first start that is refused leaves nothing behind");
    server.stop();
    agent.stop();

    server = up(&session, &command);
    session.run(&["run", "list"]);
    session.run(&["milestone", "list"]);
    let text = |args: &[&str]| String::from_utf8(session.quietly(args).stdout).unwrap();
    assert!(text(&["agent", "list"]).trim_end().ends_with(" -"), "its last beat is not known");
    assert!(text(&["agent", "get", "bench-1"]).contains("Last beat: - (not heard since the coordinator was started"));
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
    let (mut session, nats, listen) = house();
    session.env("MUSTER_LOG", "error");
    let server = up(&session, &serve(&nats.url, &listen, "data"));
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

/// The batch with the first of these events, and everything after it, is not there any more.
fn lose_from(log: &std::path::Path, event: &[u8]) {
    let mut bytes = std::fs::read(log).unwrap();
    let at = bytes.windows(event.len()).position(|w| w == event).expect("the event is journalled");
    let before = bytes[..at].windows(10).rposition(|w| w == b"\n{\"batch\":").expect("there is a batch before");
    let end = before + 2 + bytes[before + 1..].iter().position(|b| *b == b'\n').unwrap();
    bytes[end..].fill(0);
    std::fs::write(log, bytes).unwrap();
}

/// The end of a log is gone: nothing is served until a person accepts that, and then the run that was open waits for one. Nothing
/// that was done is done again under the number it had.
#[test]
fn an_accepted_loss_pauses_what_was_open() {
    let (mut session, nats, listen) = house();
    session.env("MUSTER_LOG", "off");
    session.write(
        "nothing.yaml",
        &NOTHING.replace(
            "needs: [first], agent: {role: bench}",
            "needs: [first], agent: {role: bench, labels: {site: moon}}",
        ),
    );
    let server = up(&session, &serve(&nats.url, &listen, "data"));
    let command = ["agent", "run", "--role", "bench", "--nats", &nats.url, "--data-dir", "agent"];
    let agent = Server::start(&session, &command);
    wait_for("the agent registers", || answers(&session, &["agent", "get", "bench-1"]));
    let run = answers(&session, &["run", "start", "nothing.yaml"]).expect("the run starts");
    let run = run["runId"].as_str().expect("a run has an id").to_owned();
    let get = || answers(&session, &["run", "get", &run]).expect("the run is there");
    wait_for("the first step is done", || (get()["steps"][0]["state"] == "STATE_SUCCEEDED").then_some(()));
    agent.stop();
    server.stop();

    lose_from(&session.folder("data/log").join("00000000000000000001.jsonl"), b"attempt_ended");
    let refused = session.quietly(&serve(&nats.url, &listen, "data"));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("JOURNAL_DAMAGED"), "{refused:?}");

    let accepting = [&serve(&nats.url, &listen, "data")[..], &["--accept-loss"]].concat();
    let server = up(&session, &accepting);
    let agent = Server::start(&session, &command);
    let paused = get();
    assert_eq!(paused["state"], "STATE_WAITING", "{paused:#}");
    assert!(paused["pause"]["question"].as_str().is_some_and(|q| q.contains("what have its steps done")), "{paused}");
    wait_for("the lost attempt has ended", || (get()["steps"][0]["state"] == "STATE_QUEUED").then_some(()));
    let waiting = get();
    assert_eq!(waiting["steps"][0]["attempts"].as_array().map(Vec::len), Some(1), "{waiting}");
    assert!(!waiting["pause"].is_null(), "nothing follows before a person has looked: {waiting}");
    let resumed = session.quietly(&["run", "resume", &run, "--reason", "looked"]);
    assert!(resumed.status.success(), "{resumed:?}");
    let done = wait_for("the step is done", || Some(get()).filter(|run| run["steps"][0]["state"] == "STATE_SUCCEEDED"));
    assert_eq!(done["steps"][0]["attempts"][1]["number"], 1_001, "{done}");
    agent.stop();
    server.stop();

    let server = up(&session, &serve(&nats.url, &listen, "data"));
    assert!(get()["pause"].is_null(), "nobody is asked twice");
    server.stop();
}

/// The store is whole and up to date: it still says what it said before the disk forgot a byte.
#[test]
fn a_damaged_run_is_listed_as_such() {
    let (mut session, nats, listen) = house();
    session.env("MUSTER_LOG", "off");
    let server = up(&session, &serve(&nats.url, &listen, "data"));
    let start = || answers(&session, &["run", "start", "nothing.yaml"]).expect("the run starts")["runId"].clone();
    let (bad, good) = (start(), start());
    server.stop();
    let log = session.folder("data/log").join("00000000000000000001.jsonl");
    let mut bytes = std::fs::read(&log).unwrap();
    let id = bad.as_str().unwrap().as_bytes();
    let at = bytes.windows(id.len()).position(|w| w == id).expect("it is journalled");
    bytes[at + id.len() + 40] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let server = up(&session, &serve(&nats.url, &listen, "data"));
    for (state, run) in [("quarantined", &bad), ("running", &good)] {
        let answer = answers(&session, &["run", "list", "--state", state]).expect("runs are listed");
        let runs = answer["runs"].as_array().expect("there are some");
        assert_eq!(runs.iter().map(|r| &r["runId"]).collect::<Vec<_>>(), [run], "{answer}");
    }
    server.stop();
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
    assert!(!session.is_there("data"), "nothing is made before it may serve");
    session.run(&["journal", "verify", "--data-dir", "nowhere"]);
    session.check("not_served");
}
