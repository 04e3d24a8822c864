//! Playbooks without a coordinator.

mod support;

use support::Session;

const HELLO: &str = include_str!("../../../playbooks/hello.yaml");
const BAD: &str = include_str!("../../engine/tests/bad_playbooks/everything_at_once.yaml");
const CYCLE: &str = include_str!("../../engine/tests/bad_playbooks/cycle.yaml");

fn session() -> Session {
    let session = Session::new();
    session.write("hello.yaml", HELLO);
    session.write("bad.yaml", BAD);
    session.write("cycle.yaml", CYCLE);
    session
}

#[test]
fn lint_says_everything_at_once() {
    let mut session = session();
    session.run(&["playbook", "lint", "--offline", "hello.yaml"]);
    session.run(&["playbook", "lint", "--offline", "hello.yaml", "bad.yaml", "cycle.yaml"]);
    session.run(&["playbook", "lint", "--offline", "-o", "json", "cycle.yaml"]);
    session.run(&["playbook", "lint", "--offline", "missing.yaml"]);
    session.check("lint");
}

#[test]
fn a_plan_needs_no_coordinator() {
    let mut session = session();
    session.run(&["playbook", "plan", "--offline", "hello.yaml"]);
    session.run(&["playbook", "plan", "--offline", "hello.yaml", "-i", "name=", "-i", "shout:=1"]);
    session.run(&["playbook", "plan", "--offline", "bad.yaml"]);
    session.run(&["playbook", "plan", "--offline", "hello"]);
    session.write("inputs.yaml", "name: moon\nshout: true\n");
    session.run(&["playbook", "plan", "--offline", "hello.yaml", "--inputs", "inputs.yaml", "-o", "yaml"]);
    session.check("plan");
}

#[test]
fn the_same_inputs_give_the_same_digest() {
    let session = session();
    let digest = |more: &[&str]| {
        let args = [&["playbook", "plan", "--offline", "hello.yaml", "-o", "json"], more].concat();
        let plan: serde_json::Value = serde_json::from_slice(&session.quietly(&args).stdout).unwrap();
        plan["digest"].as_str().unwrap().to_owned()
    };
    assert_eq!(digest(&[]), digest(&["-i", "name=world"]));
    assert_ne!(digest(&[]), digest(&["-i", "name=moon"]));
}
