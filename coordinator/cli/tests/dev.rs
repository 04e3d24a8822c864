//! Sessions with everything in one process: real runs of real playbooks, and every exit code.

mod support;

use support::{Session, server::Server};

/// One step after another, so that a transcript has one order.
const WALK: &str = r#"apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: walk, owner: devops}
spec:
  inputs: {type: object, properties: {who: {type: string, default: world}}}
  outputs: {greeting: steps.greet.output.stdout}
  phases:
    - id: main
      deadline: 5m
      milestone: Hello was said
      steps:
        - {id: look, agent: {role: infra}, action: command.run, with: {command: uname}, undo: irreversible}
        - id: greet
          needs: [look]
          agent: {role: infra}
          action: command.run
          with: {command: echo, args: ["Hello, {{ inputs.who }}"]}
          undo: irreversible
      gate: {successCondition: ["steps.greet.output.exit_code == 0"]}
"#;

/// A step that fails for good.
fn broken(name: &str, on_failure: &str) -> String {
    format!(
        r#"apiVersion: muster.dev/v1
kind: Playbook
metadata: {{name: {name}, owner: devops}}
spec:
  phases:
    - id: main
      milestone: All is well
      steps:
        - id: look
          agent: {{role: infra}}
          action: command.run
          with: {{command: uname, args: ["--no-such-option"]}}
          onFailure: {on_failure}
          undo: irreversible
"#
    )
}

/// A step that nobody takes.
const STUCK: &str = r"apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: stuck, owner: devops}
spec:
  phases:
    - id: main
      deadline: 1h
      milestone: Somebody came
      steps:
        - {id: wait, agent: {role: nobody}, action: command.run, with: {command: uname}, undo: irreversible}
";

fn session() -> Session {
    let session = Session::new();
    session.write("hello.yaml", include_str!("../../../playbooks/hello.yaml"));
    session.write("walk.yaml", WALK);
    session.write("breaks.yaml", &broken("breaks", "undo"));
    session.write("asks.yaml", &broken("asks", "pause"));
    session.write("stuck.yaml", STUCK);
    session.write("bad.yaml", &STUCK.replace("agent:", "agnet:"));
    session
}

#[test]
fn the_first_command_of_a_newcomer() {
    let session = session();
    let output = session.quietly(&["dev", "hello.yaml"]);
    let (data, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{data}{said}");
    for part in ["We know where we are  reached", "Hello was said        reached", "Hello, world, from Linux"] {
        assert!(data.contains(part), "{part}: {data}");
    }
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
}

#[test]
fn a_run_that_succeeds() {
    let mut session = session();
    session.run(&["dev", "walk.yaml"]);
    session.run(&["dev", "walk.yaml", "--input", "who=moon", "-o", "yaml"]);
    session.check("dev");
}

#[test]
fn every_exit_code() {
    let mut session = session();
    let mut code = |args: &[&str]| session.run(args).status.code().unwrap();
    let codes = [
        code(&["dev", "breaks.yaml"]),
        code(&["dev", "bad.yaml"]),
        code(&["dev", "missing.yaml"]),
        code(&["dev", "--listen", "0.0.0.0:0"]),
        code(&["dev", "asks.yaml"]),
        code(&["dev", "stuck.yaml", "--timeout", "8s"]),
    ];
    assert_eq!(codes, [1, 1, 2, 2, 3, 4]);
    session.check("exit_codes");
}

#[test]
fn a_run_is_started_asked_about_and_stopped() {
    let mut session = session();
    let server = Server::dev(&mut session);
    session.run(&["playbook", "submit", "stuck.yaml"]);
    session.run(&["playbook", "list"]);
    session.run(&["run", "start", "stuck", "--validate-only"]);
    let run = session.start(&["run", "start", "stuck", "--note", "for the transcript"]);
    session.run(&["run", "explain", &run]);
    session.run(&["run", "list", "--waiting"]);
    session.run(&["run", "list", "--waiting", "--playbook", "walk"]);
    session.run(&["run", "pause", &run, "--reason", "a look first"]);
    session.run(&["run", "list", "--state", "paused", "-o", "json"]);
    session.run(&["run", "wait", &run]);
    session.run(&["run", "resume", &run, "--reason", "go on"]);
    session.run(&["run", "list", "--state", "running"]);
    session.run(&["run", "list", "--state", "succeeded"]);
    session.run(&["step", "retry", &run, "wait", "--reason", "impatient"]);
    session.run(&["run", "cancel", &run, "--reason", "nobody comes"]);
    session.run(&["run", "wait", &run]);
    session.run(&["run", "resume", &run, "--reason", "too late"]);
    session.run(&["run", "events", &run]);
    session.run(&["milestone", "list"]);
    session.run(&["playbook", "get", "nothing"]);
    session.check("stopped_run");
    server.stop();
}

#[test]
fn a_question_is_answered() {
    let mut session = session();
    let server = Server::dev(&mut session);
    let run = session.start(&["run", "start", "asks.yaml"]);
    session.run(&["run", "wait", &run]);
    session.run(&["run", "explain", &run]);
    session.run(&["step", "retry", &run, "look", "--reason", "once more"]);
    session.run(&["run", "wait", &run]);
    session.run(&["step", "resolve", &run, "look", "succeeded", "--reason", "seen by hand", "--step-output", "{}"]);
    session.run(&["run", "wait", &run, "-o", "json"]);
    session.check("answered_question");
    server.stop();
}

/// Two steps are done, the third one fails; one can't be taken back, and the undo of the other fails.
const LEFT: &str = r#"apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: left, owner: devops}
spec:
  phases:
    - id: main
      milestone: All is well
      steps:
        - {id: look, agent: {role: infra}, action: command.run, with: {command: uname}, undo: irreversible}
        - id: change
          needs: [look]
          agent: {role: infra}
          action: command.run
          with: {command: echo}
          undo: {action: command.run, with: {command: uname, args: ["--no-such-option"]}}
        - id: breaks
          needs: [change]
          agent: {role: infra}
          action: command.run
          with: {command: uname, args: ["--no-such-option"]}
          undo: irreversible
"#;

#[test]
fn a_walk_back_that_leaves_something_says_what_and_why() {
    let mut session = session();
    session.write("left.yaml", LEFT);
    let server = Server::dev(&mut session);
    let run = session.start(&["run", "start", "left.yaml"]);
    session.run(&["run", "wait", &run]);
    session.run(&["step", "resolve", &run, "change", "skip", "--reason", "the next release replaces it"]);
    session.run(&["run", "watch", &run]);
    session.run(&["run", "get", &run]);
    session.run(&["run", "list"]);
    session.check("left_as_it_is");
    server.stop();
}

const WAITS: &str = r"apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: waits, owner: devops}
spec:
  phases:
    - id: main
      milestone: Somebody has looked
      steps:
        - {id: look, wait: {signal: looked}}
";

#[test]
fn a_signal_says_why_it_is_sent() {
    let mut session = session();
    session.write("waits.yaml", WAITS);
    let server = Server::dev(&mut session);
    let run = session.start(&["run", "start", "waits.yaml"]);
    session.run(&["run", "list"]);
    session.run(&[
        "run",
        "signal",
        &run,
        "looked",
        "--payload",
        r#"{"ticket":4711}"#,
        "--reason",
        "all disks are there",
    ]);
    session.run(&["run", "events", &run]);
    session.check("signal");
    server.stop();
}

#[test]
fn a_second_signal_of_a_name_says_that_it_changes_nothing() {
    let mut session = session();
    session.write("waits.yaml", &format!("{WAITS}        - {{id: more, needs: [look], wait: {{signal: more}}}}\n"));
    let server = Server::dev(&mut session);
    let run = session.start(&["run", "start", "waits.yaml"]);
    session.run(&["run", "signal", &run, "looked", "--reason", "all disks are there"]);
    session.run(&["run", "signal", &run, "looked", "--reason", "one has gone"]);
    session.check("second_signal");
    let shown = session.quietly(&["run", "signal", &run, "looked", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["signals"], serde_json::json!(["looked"]));
    server.stop();
}

#[test]
fn a_coordinator_is_drained() {
    let mut session = session();
    let server = Server::dev(&mut session);
    let run = session.start(&["run", "start", "stuck.yaml"]);
    session.run(&["coordinator", "get"]);
    session.run(&["coordinator", "drain"]);
    session.run(&["run", "start", "stuck.yaml"]);
    session.run(&["run", "explain", &run]);
    session.run(&["run", "get", &run]);
    session.run(&["coordinator", "drain", "--wait", "--timeout", "1s"]);
    session.run(&["coordinator", "resume", "-o", "json"]);
    session.run(&["run", "cancel", &run, "--reason", "seen", "--force"]);
    session.check("drained_coordinator");
    server.stop();
}

#[test]
fn agents_and_tokens() {
    let mut session = session();
    let server = Server::dev(&mut session);
    session.run(&["agent", "list"]);
    session.run(&["agent", "get", "infra-1"]);
    session.run(&["agent", "get", "infra-2", "-o", "json"]);
    session.run(&["agent", "drain", "infra-1"]);
    session.run(&["token", "create", "person/dba-1", "--role", "operator", "--expires-in", "720h"]);
    session.run(&["token", "list", "-o", "json"]);
    session.run(&["token", "revoke", "nothing"]);
    session.check("agents_and_tokens");
    for name in [|name: &str| name.to_owned(), |name: &str| name.trim_start_matches("tokens/").to_owned()] {
        let created = session.quietly(&["token", "create", "service/ci", "--role", "viewer", "-o", "json"]);
        let created: serde_json::Value = serde_json::from_slice(&created.stdout).unwrap();
        let revoked = session.quietly(&["token", "revoke", &name(created["token"]["name"].as_str().unwrap())]);
        assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    }
    server.stop();
}
