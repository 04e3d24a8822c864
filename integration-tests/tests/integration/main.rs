//! The integration actions against real packages, suites and services.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod load;
mod package;
mod suite;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use muster_agent::{
    ActionError,
    allow::{Allow, Pinned},
    guard::Guard,
    noop::Noop,
    testkit::Trial,
};
use muster_integration_tests::process::binary;
use serde_json::json;

/// What programs are started by is what an agent starts them by.
fn trial() -> Trial {
    Trial::new(Noop).guarded(Guard::program(binary("muster", "muster")))
}

/// A script that this host allows under `name`.
fn allowed(dir: &Path, name: &str, script: &str) -> Allow {
    let path = dir.join(name);
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let sha256 = sha256(&path);
    Allow { commands: [(name.to_owned(), Pinned { path, sha256 })].into() }
}

/// As sha256sum says.
fn sha256(path: &Path) -> String {
    let out = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// Runs a Python program to its end.
fn python(dir: &Path, program: &str) {
    let out = Command::new("python3").args(["-c", program]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn permanent<T: std::fmt::Debug>(result: Result<T, ActionError>) -> (String, serde_json::Value) {
    match result {
        Err(ActionError::Permanent { message, output }) => (message, output.unwrap_or_default()),
        other => panic!("not a permanent failure: {other:?}"),
    }
}

fn retry<T: std::fmt::Debug>(result: Result<T, ActionError>) -> (String, serde_json::Value) {
    match result {
        Err(ActionError::Retry { message, output }) => (message, output.unwrap_or_default()),
        other => panic!("not a failure that may pass by itself: {other:?}"),
    }
}

#[test]
fn every_action_says_what_it_promises() {
    let actions = muster_integration::actions(&Allow::default());
    assert_eq!(actions.len(), 3);
    for action in actions {
        let spec = action.spec();
        assert!(spec.params_schema.is_some() && spec.output_schema.is_some(), "{}", spec.name);
        assert!(spec.idempotent && !spec.undoable && spec.summary.ends_with('.'), "{}", spec.name);
        assert_eq!(spec.read_only, spec.name != "tests.run", "{}: a suite may write what it likes", spec.name);
    }
}

#[tokio::test]
async fn wrong_parameters_are_named_and_nothing_is_tried() {
    for action in muster_integration::actions(&Allow::default()) {
        let (message, _) = permanent(action.run(&trial().context(), &json!({"no_such_field": 1})).await);
        assert!(message.contains("no_such_field"), "{message}");
    }
}

/// A folder of this test's own, gone with it.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}
