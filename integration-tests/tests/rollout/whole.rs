//! The rollout by three agents that are processes of their own: from a broken start to a healthy end, and once more.

use muster_integration_tests::{
    lab::{Lab, Pooling},
    probe::probe,
    system::System,
};
use serde_json::{Value, json};

use crate::{conditions, rollout_inputs, shipped, three_agents};

const PLAYBOOK: &str = "revenue-engine-rollout";

/// Runs it to its end, which must be a good one; the run.
fn run(system: &System, inputs: &Value) -> Value {
    let ended = crate::run(system, PLAYBOOK, inputs).unwrap();
    assert_eq!(ended["state"], "STATE_SUCCEEDED", "{ended:#}");
    ended
}

/// Steps whose actions do not promise that they only look, each with whether its run found nothing to change.
fn changes(run: &Value) -> Vec<(&str, bool)> {
    let steps = run["steps"].as_array().unwrap().iter().filter(|step| step["undo"] != "nothing");
    let unchanged = |step: &Value| {
        let mut runs =
            step["attempts"].as_array().unwrap().iter().filter(|attempt| attempt["purpose"] == "PURPOSE_RUN");
        runs.all(|run| run["unchanged"] == true)
    };
    steps.map(|step| (step["id"].as_str().unwrap(), unchanged(step))).collect()
}

fn output<'a>(run: &'a Value, step: &str) -> &'a Value {
    &run["steps"].as_array().unwrap().iter().find(|s| s["id"] == step).unwrap()["output"]
}

#[test]
fn three_agents_mend_the_lab_and_find_nothing_to_change_the_second_time() {
    let lab = Lab::start(Pooling::OneSession).unwrap();
    let (seen_by, inputs) = (lab.inputs().unwrap(), rollout_inputs(&lab));
    let before = probe(&seen_by).unwrap();
    assert!(before.all().iter().all(|(_, ok)| !ok), "all of it begins broken: {before:#?}");
    assert_eq!(before.certificate.verdict, "10 (certificate has expired)");
    assert_eq!((before.redirect.status, before.pooling.served), (200, 1));

    let (system, yaml) = (three_agents(&lab).unwrap(), shipped(PLAYBOOK));
    system.submit(&yaml).unwrap();

    let first = run(&system, &inputs);
    let changing = ["tls_certificate", "redirect", "pgbouncer", "redis", "balance", "backup", "put_in_place", "switch"];
    // A suite is a program of the host: it is run whenever it is asked for, and a test like the others here.
    let with_tests = |unchanged| {
        let changing = changing.map(|step| (step, unchanged));
        [&changing[..], &[("smoke", false)]].concat()
    };
    assert_eq!(changes(&first), with_tests(false));
    conditions::each_turns_red_alone(&yaml, &first).unwrap();
    let phases = first["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 5);
    assert!(phases.iter().all(|phase| phase["milestone"]["state"] == "STATE_REACHED"), "{phases:#?}");
    // What one team's agent found is what the next one worked with.
    let digest = output(&first, "verify_package")["sha256"].as_str().unwrap();
    assert_eq!(digest, inputs["package_sha256"]);
    assert!(output(&first, "backup")["proof"].as_str().unwrap().contains(digest), "{first:#}");

    // Times apart: this machine may be busy.
    let healthy = |when: &str| {
        let after = probe(&seen_by).unwrap();
        let broken = after.all().into_iter().filter(|(what, ok)| !ok && *what != "pooling").collect::<Vec<_>>();
        assert!(broken.is_empty() && after.pooling.served == after.pooling.clients, "{when}: {after:#?}");
    };
    healthy("after the rollout");

    let second = run(&system, &inputs);
    assert_eq!(changes(&second), with_tests(true), "nothing is left to change");
    assert_eq!(output(&second, "switch")["side"], json!("green"));
    healthy("after the second time");
}
