//! Transcripts of whole sessions with the real binary.

mod support;

use support::Session;

#[test]
fn help() {
    let mut session = Session::new();
    session.run(&["--help"]);
    session.run(&["run", "start", "-h"]);
    session.check("help");
}

#[test]
fn what_is_typed_wrong_ends_with_2() {
    let mut session = Session::new();
    session.run(&["run", "strat", "hello"]);
    session.run(&["run", "resume", "r1"]);
    session.run(&["--server", "127.0.0.1:7400", "run", "list"]);
    session.run(&["--timeout", "soon", "run", "list"]);
    session.run(&["run", "start", "missing.yaml", "-i", "domain"]);
    session.run(&["run", "start", "hello", "-i", "count:=three"]);
    session.write("bad.toml", "[serve]\nlisen = '127.0.0.1:7400'\n");
    session.run(&["--config", "bad.toml", "run", "list"]);
    session.run(&["--config", "missing.toml", "run", "list"]);
    session.run(&["--token-file", "missing", "run", "list"]);
    session.check("usage");
}

#[test]
fn a_server_that_does_not_answer_is_named() {
    let mut session = Session::new();
    session.env("MUSTER_SERVER", &format!("http://127.0.0.1:{}", support::closed_port()));
    session.run(&["run", "list"]);
    session.run(&["-o", "json", "milestone", "list"]);
    session.check("unreachable");
}

/// As a stopped process: its socket takes connections, and nobody reads.
#[test]
fn a_server_that_says_nothing_in_time_ends_with_4() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut session = Session::new();
    session.env("MUSTER_SERVER", &format!("http://{}", silent.local_addr().unwrap()));
    session.write("hello.yaml", "kind: Playbook\n");
    session.run(&["run", "list", "--timeout", "200ms"]);
    session.run(&["playbook", "lint", "hello.yaml", "--timeout", "200ms"]);
    session.run(&["run", "wait", "r1", "--timeout", "200ms"]);
    session.run(&["run", "watch", "r1", "--timeout", "200ms"]);
    session.check("silent");
}

#[test]
fn completions_are_scripts() {
    let session = Session::new();
    let bash = session.quietly(&["completions", "bash"]);
    assert!(bash.status.success());
    assert!(String::from_utf8_lossy(&bash.stdout).contains("complete -F _muster"));
}

#[test]
fn an_agent_says_what_it_lacks() {
    let mut session = Session::new();
    session.run(&["agent", "run"]);
    session.run(&["agent", "run", "--role", "infra", "--label", "site"]);
    session.run(&["agent", "run", "--role", "infra", "--log", "loud=very"]);
    session.write("allow.toml", "[commands.true]\npath = 'bin/true'\nsha256 = '00'\n");
    session.run(&["agent", "run", "--role", "infra", "--allow", "allow.toml"]);
    session.folder("secrets");
    session.write("secrets/token", "hunter2\n");
    session.mode("secrets/token", 0o644);
    session.run(&["agent", "run", "--role", "infra", "--secrets", "secrets"]);
    session.run(&["agent", "run", "--role", "infra", "--nats", "http://127.0.0.1:4222"]);
    session.run(&["agent", "run", "--role", "infra", "--name", "not a name"]);
    session.check("agent_run");
}
