//! The deployment actions against a real nginx, a real service manager and the sample service.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod breach;
mod prepare;
mod release;
mod rollback;
mod side;
mod switch;

use std::{fs, path::Path, process::Command};

use muster_agent::{
    Action, ActionError, Checked,
    allow::{Allow, Pinned},
    guard::Guard,
    noop::Noop,
    testkit::Trial,
};
use muster_integration_tests::process::binary;
use serde_json::{Value, json};

/// What programs are started by is what an agent starts them by: what they leave behind ends with them.
fn trial() -> Trial {
    Trial::new(Noop).guarded(Guard::program(binary("muster", "muster")))
}

/// These programs, each allowed under its file name.
fn allowing(programs: &[&Path]) -> Allow {
    let pinned = programs.iter().map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, Pinned { path: path.to_path_buf(), sha256: sha256(path) })
    });
    Allow { commands: pinned.collect() }
}

/// As sha256sum says.
fn sha256(path: &Path) -> String {
    let out = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// Runs a script to its end; what it printed.
fn shell(dir: &Path, script: &str) -> String {
    let out = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

async fn diff(action: &dyn Action, with: &Value) -> String {
    match action.check(&trial().context(), with).await.unwrap() {
        Checked::Different { diff } => diff,
        other @ (Checked::Satisfied(_) | Checked::CannotTell) => panic!("nothing to be done: {other:?}"),
    }
}

async fn satisfied(action: &dyn Action, with: &Value) -> Value {
    match action.check(&trial().context(), with).await.unwrap() {
        Checked::Satisfied(done) => done.output,
        other @ (Checked::Different { .. } | Checked::CannotTell) => panic!("still to be done: {other:?}"),
    }
}

fn permanent<T: std::fmt::Debug>(result: Result<T, ActionError>) -> (String, Value) {
    match result {
        Err(ActionError::Permanent { message, output }) => (message, output.unwrap_or_default()),
        other => panic!("not a permanent failure: {other:?}"),
    }
}

fn retry<T: std::fmt::Debug>(result: Result<T, ActionError>) -> String {
    match result {
        Err(ActionError::Retry { message, .. }) => message,
        other => panic!("not a failure that may pass by itself: {other:?}"),
    }
}

fn needs_person<T: std::fmt::Debug>(result: Result<T, ActionError>) -> String {
    match result {
        Err(ActionError::NeedsPerson { message }) => message,
        other => panic!("not a question: {other:?}"),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_action_says_what_it_promises() {
    let actions = muster_deployment::actions(&Allow::default());
    assert_eq!(actions.len(), 3);
    for action in actions {
        let spec = action.spec();
        assert!(spec.params_schema.is_some() && spec.output_schema.is_some(), "{}", spec.name);
        assert!(spec.idempotent && spec.undoable && spec.checkable && !spec.read_only, "{}", spec.name);
        assert!(spec.summary.ends_with('.'), "{}", spec.name);
    }
}

#[tokio::test]
async fn wrong_parameters_are_named_and_nothing_is_tried() {
    for action in muster_deployment::actions(&Allow::default()) {
        let (message, _) = permanent(action.run(&trial().context(), &json!({"no_such_field": 1})).await);
        assert!(message.contains("no_such_field"), "{message}");
    }
}
