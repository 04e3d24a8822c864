//! Every shipped playbook that changes something, made to fail at each of its steps: the servers are as they were.

use std::fs;

use muster_agent::allow::Allow;
use muster_integration_tests::{
    lab::{Lab, Pooling},
    process::checkout,
};
use serde_json::Value;

use crate::{
    kit::{Kit, steps},
    release_inputs, rollout_inputs, shipped,
};

const ROLLOUT: &str = "revenue-engine-rollout";
const RELEASE: &str = "blue-green-release";

fn inputs(playbook: &str, lab: &Lab) -> Value {
    let mut rollout = rollout_inputs(lab);
    rollout["requests"] = 300.into();
    // It is undo that is looked at: three such tests beside each other make no statement about time.
    for limit in ["pool_p95_ms", "ttfb_ms", "replica_lag_ms"] {
        rollout[limit] = 5000.0.into();
    }
    if playbook == ROLLOUT {
        return rollout;
    }
    release_inputs(lab)
}

/// At each step whose number leaves `part` when it is divided by `parts`.
fn fails_everywhere(playbook: &str, part: usize, parts: usize) {
    let lab = Lab::start(Pooling::OneSession).unwrap();
    let (yaml, inputs) = (shipped(playbook), inputs(playbook, &lab));
    let kit = Kit::start(&lab, None).unwrap();
    let steps: Vec<_> = steps(&yaml).into_iter().skip(part).step_by(parts).collect();
    if let Err(error) = kit.undoes_after_failure_at(playbook, &yaml, &inputs, &steps) {
        panic!("{error:?}");
    }
    // What can't be told apart was not compared.
    kit.changes_something(playbook, &yaml, &inputs).unwrap();
}

// Two tests, side by side on servers of their own: most of the time is waiting.
#[test]
fn a_rollout_that_fails_at_any_odd_step_leaves_the_servers_as_they_were() {
    fails_everywhere(ROLLOUT, 0, 2);
}

#[test]
fn a_rollout_that_fails_at_any_even_step_leaves_the_servers_as_they_were() {
    fails_everywhere(ROLLOUT, 1, 2);
}

#[test]
fn a_release_that_fails_at_any_step_leaves_the_servers_as_they_were() {
    fails_everywhere(RELEASE, 0, 1);
}

#[test]
fn an_undo_that_is_left_out_is_seen() {
    let lab = Lab::start(Pooling::OneSession).unwrap();
    let (yaml, inputs) = (shipped(RELEASE), inputs(RELEASE, &lab));
    let kit = Kit::start(&lab, Some("release.prepare")).unwrap();
    let steps: Vec<_> = steps(&yaml).into_iter().filter(|(step, _)| step == "put_in_place").collect();
    let error = kit.undoes_after_failure_at(RELEASE, &yaml, &inputs, &steps).unwrap_err();
    assert!(format!("{error:?}").contains("file sides/releases/1.2.0/sample-service: it was not there"), "{error:?}");
}

#[test]
fn no_shipped_playbook_that_changes_something_is_left_out() {
    let allow = Allow::default();
    let actions =
        [muster_infra::actions(), muster_integration::actions(&allow), muster_deployment::actions(&allow)].concat();
    let changes = |yaml: &str| {
        let named = |action: &str| actions.iter().any(|a| a.spec().name == action && a.spec().undoable);
        steps(yaml).iter().any(|(_, action)| named(action))
    };
    let files = fs::read_dir(checkout().join("playbooks")).unwrap().map(|entry| entry.unwrap().path());
    let mut changing: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .filter(|path| changes(&fs::read_to_string(path).unwrap()))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    changing.sort();
    assert_eq!(changing, [RELEASE, ROLLOUT]);
}
