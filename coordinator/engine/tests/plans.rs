//! Playbooks that are good: what they resolve to, and that the shipped ones and the schema are up to date.

#![expect(clippy::disallowed_methods, reason = "tests read and write files")]

use std::{collections::BTreeSet, path::PathBuf};

use muster_engine::{
    plan::{
        ActionFacts, ActionScope, Catalogue, CatalogueEntry, OnCancel, OnFailure, OnLost, Plan, PlannedUndo,
        PlannedWait, Priority, RetryPolicy, resolve,
    },
    playbook::{Finding, grammar, read, revision},
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn catalogue() -> Catalogue {
    let entry = |undoable, read_only| CatalogueEntry {
        version: "1.2.0".to_owned(),
        facts: ActionFacts {
            idempotent: undoable,
            undoable,
            checkable: undoable,
            concurrent_safe: false,
            read_only,
            scope: ActionScope::Target,
        },
        params_schema: None,
        output_schema: None,
    };
    Catalogue::from([
        ("command.run".into(), entry(false, false)),
        ("tls.certificate".into(), entry(true, false)),
        ("tls.inspect".into(), entry(false, true)),
    ])
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn plan(document: &str, inputs: Value) -> Result<Plan, Vec<Finding>> {
    let reading = read(document.as_bytes(), &catalogue());
    let playbook = reading.playbook.unwrap_or_else(|| panic!("{:#?}", reading.findings));
    resolve(&playbook, revision(document.as_bytes()), inputs, &catalogue())
}

const ROLLOUT: &str = r#"
apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: rollout, owner: devops}
spec:
  inputs:
    type: object
    required: [domain]
    properties:
      domain: {type: string, format: hostname}
      environment: {enum: [dev, prod], default: dev}
      pool: {type: object, properties: {size: {type: integer, default: 20}}, default: {}}
  secrets: [cloudflare_token]
  onCancel: undo
  outputs: {days: steps.inspect.output.days_left}
  phases:
    - id: critical
      priority: critical
      deadline: 1h30m
      milestone: Ready
      steps:
        - id: reload
          needs: [certificate, inspect]
          agent: {role: infra, labels: {site: eu}, host: web-1}
          action: command.run
          with: {command: reload, args: ["{{ inputs.domain }}"]}
          onLost: ask
          onFailure: pause
          undo: {action: command.run, with: {command: reload}}
        - id: certificate
          name: A certificate
          agent: {role: infra}
          action: tls.certificate
          timeout: 5m
          queueTimeout: 1h
          status: 30s
          retry: {maxAttempts: 3, backoff: {initial: 2s, max: 1m, factor: 3}, maxElapsed: 10m}
          verify:
            action: tls.inspect
            with: {address: "{{ inputs.domain }}:443"}
            expect: ["output.days_left >= 30", "steps.certificate.output.path != ''"]
            within: 1m
        - id: inspect
          when: inputs.environment != 'dev'
          agent: {role: infra}
          action: tls.inspect
          with: {address: "{{ inputs.domain }}:443"}
      gate: {successCondition: ["steps.reload.output.exit_code == 0"], failureCondition: ["inputs.pool.size > 100"]}
    - id: after
      when: has(steps.inspect.output)
      steps:
        - id: last
          needs: [certificate]
          agent: {role: infra}
          action: command.run
          undo: irreversible
"#;

#[test]
fn a_playbook_becomes_a_plan() {
    let plan = plan(ROLLOUT, json!({"domain": "shop.example"})).unwrap();
    assert_eq!(plan.inputs, json!({"domain": "shop.example", "environment": "dev", "pool": {"size": 20}}));
    assert_eq!((plan.on_cancel, &plan.secrets[..]), (OnCancel::Undo, &["cloudflare_token".to_owned()][..]));
    let ids: Vec<&str> = plan.steps.iter().map(|step| step.id.as_str()).collect();
    assert_eq!(ids, ["certificate", "inspect", "reload", "last"]);
    let needs: Vec<&[usize]> = plan.steps.iter().map(|step| &step.needs[..]).collect();
    assert_eq!(needs, [&[][..], &[], &[0, 1], &[0]]);
    let phases: Vec<_> = plan.phases.iter().map(|p| (p.id.as_str(), p.priority, p.deadline_ms, &p.steps[..])).collect();
    assert_eq!(
        phases,
        [
            ("critical", Priority::Critical, Some(5_400_000), &[0, 1, 2][..]),
            ("after", Priority::Medium, None, &[3][..])
        ]
    );

    let certificate = &plan.steps[0];
    assert_eq!((certificate.name.as_str(), certificate.action.version.as_str()), ("A certificate", "1.2.0"));
    assert_eq!(
        (certificate.timeout_ms, certificate.queue_timeout_ms, certificate.status_ms),
        (300_000, Some(3_600_000), 30_000)
    );
    let retry =
        RetryPolicy { max_attempts: 3, initial_ms: 2000, max_ms: 60_000, factor: 3.0, max_elapsed_ms: Some(600_000) };
    assert_eq!((certificate.retry, &certificate.undo), (retry, &PlannedUndo::Auto));
    let verify = certificate.verify.as_ref().unwrap();
    assert_eq!((verify.within_ms, verify.every_ms, verify.expect.len()), (60_000, 5000, 2));

    let inspect = &plan.steps[1];
    assert_eq!(
        (inspect.undo.clone(), inspect.when.as_deref()),
        (PlannedUndo::Nothing, Some("inputs.environment != 'dev'"))
    );
    let reload = &plan.steps[2];
    assert_eq!((reload.timeout_ms, reload.queue_timeout_ms, reload.status_ms), (600_000, None, 180_000));
    assert_eq!((reload.retry.max_attempts, reload.on_lost, reload.on_failure), (1, OnLost::Ask, OnFailure::Pause));
    assert!(matches!(&reload.undo, PlannedUndo::Action { with, .. } if *with == json!({"command": "reload"})));
    assert_eq!(reload.agent.host.as_ref().map(muster_engine::ids::HostLabel::as_str), Some("web-1"));
    assert_eq!(plan.steps[3].undo, PlannedUndo::Irreversible);
    assert_eq!(plan.steps[3].with, json!({}));
}

#[test]
fn a_step_says_more_than_its_phase_and_a_phase_more_than_the_playbook() {
    let document = r"
apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: defaults, owner: devops}
spec:
  defaults: {agent: {role: infra, labels: {site: eu}}, timeout: 1m, onFailure: pause, retry: {maxAttempts: 2, maxElapsed: 9m}}
  phases:
    - id: first
      defaults: {timeout: 2m, queueTimeout: 1h, status: 30s, onLost: ask}
      steps:
        - {id: a, action: tls.inspect}
        - {id: b, action: tls.inspect, agent: {role: probe}, timeout: 3m, retry: {maxAttempts: 3}, onFailure: undo, onLost: probe}
    - id: second
      steps:
        - {id: c, action: tls.inspect, critical: false}
        - {id: w, wait: {signal: go}}
        - {id: d, action: tls.inspect}
";
    let mut plan = plan(document, Value::Null).unwrap();
    let d = plan.steps.pop().unwrap();
    let wait = plan.steps.pop().unwrap().wait;
    assert_eq!(wait, Some(PlannedWait::Signal { name: "go".to_owned(), timeout_ms: None }), "a wait is no attempt");
    let [a, b, c] = &plan.steps[..] else { panic!("{plan:?}") };
    assert_eq!((a.agent.role.as_str(), a.agent.labels.len(), a.timeout_ms), ("infra", 1, 120_000));
    assert_eq!((a.queue_timeout_ms, a.status_ms, a.on_lost), (Some(3_600_000), 30_000, OnLost::Ask));
    assert_eq!((a.on_failure, a.retry.max_attempts), (OnFailure::Pause, 2));
    assert_eq!((b.agent.role.as_str(), b.agent.labels.len(), b.timeout_ms), ("probe", 0, 180_000));
    assert_eq!((b.on_failure, b.retry.max_attempts, b.retry.max_elapsed_ms), (OnFailure::Undo, 3, None));
    assert_eq!((c.timeout_ms, c.queue_timeout_ms, c.on_failure, c.critical), (60_000, None, OnFailure::Pause, false));
    assert!(d.critical && a.critical);
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!((json["steps"][0].get("critical"), &json["steps"][2]["critical"]), (None, &json!(false)));
}

#[test]
fn what_is_done_always_comes_after_all_else_of_its_phase_where_it_names_nothing() {
    let document = "apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: always, owner: devops}
spec:
  defaults: {agent: {role: infra}}
  phases:
    - id: first
      steps:
        - {id: told, action: tls.inspect, always: true, when: 'steps.b.output.days_left > 1'}
        - {id: named, action: tls.inspect, always: true, needs: [a]}
        - {id: a, action: tls.inspect}
        - {id: b, action: tls.inspect}
        - {id: behind, action: tls.inspect, needs: [told]}
    - id: second
      steps:
        - {id: c, action: tls.inspect}
";
    let plan = plan(document, Value::Null).unwrap();
    let needs = |id: &str| -> Vec<&str> {
        let step = plan.steps.iter().find(|s| s.id.as_str() == id).unwrap();
        step.needs.iter().map(|n| plan.steps[*n].id.as_str()).collect()
    };
    assert_eq!((needs("told"), needs("named"), needs("behind")), (vec!["a", "b"], vec!["a"], vec!["told"]));
    let json = serde_json::to_value(&plan).unwrap();
    let always: Vec<_> = json["steps"].as_array().unwrap().iter().map(|s| s.get("always").is_some()).collect();
    assert_eq!(always.iter().filter(|a| **a).count(), 2, "a plan without it has its old digest");
}

#[test]
fn steps_that_come_last_and_name_nothing_do_not_wait_for_each_other() {
    let document = "apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: always, owner: devops}
spec:
  defaults: {agent: {role: infra}}
  phases:
    - id: first
      steps:
        - {id: a, action: tls.inspect, always: true}
        - {id: b, action: tls.inspect, always: true}
        - {id: x, action: tls.inspect, needs: [a]}
        - {id: y, action: tls.inspect, needs: [b]}
        - {id: z, action: tls.inspect}
";
    let plan = plan(document, Value::Null).unwrap();
    let needs = |id: &str| -> Vec<&str> {
        let step = plan.steps.iter().find(|s| s.id.as_str() == id).unwrap();
        step.needs.iter().map(|n| plan.steps[*n].id.as_str()).collect()
    };
    assert_eq!((needs("a"), needs("b"), needs("x"), needs("y")), (vec!["z"], vec!["z"], vec!["a"], vec!["b"]));
}

#[test]
fn the_same_plan_has_the_same_digest() {
    let one = plan(ROLLOUT, json!({"domain": "shop.example"})).unwrap();
    let same = plan(ROLLOUT, json!({"environment": "dev", "domain": "shop.example"})).unwrap();
    let other = plan(ROLLOUT, json!({"domain": "other.example"})).unwrap();
    assert_eq!(one.digest(), same.digest());
    assert_ne!(one.digest(), other.digest());
    assert!(one.digest().as_str().starts_with("sha256:") && one.digest().as_str().len() == 71);
    let again: Plan = serde_json::from_str(&serde_json::to_string(&one).unwrap()).unwrap();
    assert_eq!((again.digest(), &again), (one.digest(), &one));
    assert_eq!(revision(b"abc").as_str(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn inputs_that_do_not_fit_are_all_told() {
    for (inputs, expected) in [
        (json!({}), vec![r#"inputs: "domain" is a required property"#]),
        (json!(null), vec![r#"inputs: "domain" is a required property"#]),
        (json!([1]), vec!["inputs: the inputs are not a map"]),
        (
            json!({"domain": "not a host", "environment": "test", "colour": "red", "pool": {"size": "x"}}),
            vec![
                r#"inputs.colour: there is no input "colour""#,
                r#"inputs.domain: "not a host" is not a "hostname""#,
                r#"inputs.environment: "test" is not one of "dev" or "prod""#,
                r#"inputs.pool.size: "x" is not of type "integer""#,
            ],
        ),
    ] {
        let findings = plan(ROLLOUT, inputs.clone()).unwrap_err();
        let mut found: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.path, f.message)).collect();
        found.sort();
        assert_eq!(found, expected, "{inputs}");
        assert!(findings.iter().all(|finding| finding.code == "INVALID_INPUT"));
    }
}

#[test]
fn an_action_that_nobody_offers_is_a_warning_first_and_an_error_then() {
    let reading = read(ROLLOUT.as_bytes(), &Catalogue::new());
    let codes: BTreeSet<&str> = reading.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, BTreeSet::from(["UNKNOWN_ACTION"]));
    let playbook = reading.playbook.expect("warnings do not stop a document");
    let inputs = json!({"domain": "shop.example"});
    let findings = resolve(&playbook, "sha256:0".into(), inputs, &Catalogue::new()).unwrap_err();
    assert_eq!(findings.len(), 6, "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.code == "UNKNOWN_ACTION"));
}

#[test]
fn the_shipped_playbooks_are_good() {
    let hello = std::fs::read_to_string(root().join("playbooks/hello.yaml")).unwrap();
    let reading = read(hello.as_bytes(), &catalogue());
    assert_eq!(reading.findings, []);
    let plan = plan(&hello, json!({"shout": true})).unwrap();
    assert_eq!(plan.inputs, json!({"name": "world", "shout": true}));
    let milestones: Vec<_> = plan.phases.iter().filter_map(|phase| phase.milestone.as_deref()).collect();
    assert_eq!(milestones, ["We know where we are", "Hello was said"]);
}

#[test]
fn the_schema_is_up_to_date() {
    let file = root().join("playbooks/schema/playbook.v1.schema.json");
    let generated = serde_json::to_string_pretty(&grammar()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == generated, "UPDATE=1 cargo test -p muster-engine --test plans writes {}", file.display());
    let schema = jsonschema::validator_for(&grammar()).unwrap();
    for document in [ROLLOUT.to_owned(), std::fs::read_to_string(root().join("playbooks/hello.yaml")).unwrap()] {
        let value: Value = serde_saphyr::from_str(&document).unwrap();
        let errors: Vec<String> = schema.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

fn never_panics(document: &[u8]) {
    let reading = read(document, &catalogue());
    if let Some(playbook) = reading.playbook {
        let _ = resolve(&playbook, revision(document), json!({"domain": "shop.example"}), &catalogue());
    } else {
        assert!(!reading.findings.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_panic(document in proptest::collection::vec(any::<u8>(), 0..200)) {
        never_panics(&document);
    }

    #[test]
    fn any_yaml_like_text_is_read_without_panic(document in "([ \\-a-z:{}\\[\\],\"'&*!|>#?\\n\\t]|: |- |\\n  ){0,120}") {
        never_panics(document.as_bytes());
    }

    #[test]
    fn a_damaged_playbook_is_read_without_panic(
        cuts in proptest::collection::vec((0usize..ROLLOUT.len(), 0usize..12, "[ -~\\n]{0,6}"), 1..5),
    ) {
        let mut bytes = ROLLOUT.as_bytes().to_vec();
        for (at, length, insert) in cuts {
            let at = at.min(bytes.len());
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, insert.into_bytes());
        }
        never_panics(&bytes);
    }
}
