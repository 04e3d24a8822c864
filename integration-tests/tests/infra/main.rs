//! The infra actions against real servers. What an action says is held against what openssl, curl and psql say.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod backup;
mod guarded;
mod pool;
mod redis;
mod replication;
mod site;
mod tls;
mod upstream;

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use muster_agent::{Action, ActionError, Checked, Context, Done, noop::Noop, testkit::Trial};
use serde_json::Value;

fn context() -> Context {
    Trial::new(Noop).context()
}

fn knowing<const N: usize>(secrets: [(&str, &str); N]) -> Context {
    let secrets = secrets.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Trial::with_secrets(Noop, secrets).context()
}

/// What the worker does with a task: check, prepare, run; then the check must be satisfied, with the same output.
async fn does(action: &dyn Action, with: &Value) -> (Value, Done) {
    let ctx = context();
    assert!(matches!(action.check(&ctx, with).await.unwrap(), Checked::Different { .. }), "something is to be done");
    let prepared = action.prepare(&ctx, with).await.unwrap();
    let done = action.run(&ctx, with).await.unwrap();
    match action.check(&ctx, with).await.unwrap() {
        Checked::Satisfied(again) => assert_eq!(again.output, done.output),
        different @ (Checked::Different { .. } | Checked::CannotTell) => panic!("still to be done: {different:?}"),
    }
    (prepared, done)
}

/// Takes it back twice, as after a crash.
async fn undoes(action: &dyn Action, with: &Value, prepared: &Value) {
    action.undo(&context(), with, prepared).await.unwrap();
    action.undo(&context(), with, prepared).await.unwrap();
    assert!(matches!(action.check(&context(), with).await.unwrap(), Checked::Different { .. }), "it is taken back");
}

/// Accepts connections and never says a word.
fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// The error is one that may pass by itself, and it came in time.
fn assert_gave_up<T: std::fmt::Debug>(start: Instant, result: Result<T, ActionError>) -> String {
    assert!(start.elapsed() < Duration::from_secs(60), "it took {:?}", start.elapsed());
    match result {
        Err(ActionError::Retry { message, .. }) => message,
        other => panic!("not a failure that may pass by itself: {other:?}"),
    }
}

#[test]
fn every_action_says_what_it_promises() {
    for action in muster_infra::actions() {
        let spec = action.spec();
        assert!(spec.params_schema.is_some() && spec.output_schema.is_some(), "{}", spec.name);
        assert!(spec.idempotent && spec.summary.ends_with('.'), "{}", spec.name);
        assert_ne!(spec.read_only, spec.undoable, "{}: it either looks or can be undone", spec.name);
    }
}

#[tokio::test]
async fn wrong_parameters_are_named_and_nothing_is_tried() {
    for action in muster_infra::actions() {
        let wrong = serde_json::json!({"no_such_field": 1});
        let error = action.run(&context(), &wrong).await.unwrap_err();
        assert!(matches!(error, ActionError::Permanent { .. }), "{}: {error}", action.spec().name);
        assert!(error.to_string().contains("no_such_field"), "{error}");
    }
}
