//! Recorded histories replay for ever: after any change of the engine, the events that were journalled give the state that
//! they gave on the day they were written. State may gain fields; what was recorded never changes.
//!
//! A new history: add a scenario below and run `UPDATE=1 cargo test -p muster-engine --test replay`. What is recorded already
//! is never written again; a history that can't be replayed any more is a bug in the engine, not in the file.
#![expect(clippy::disallowed_methods, reason = "histories are files")]

mod common;

use std::path::{Path, PathBuf};

use common::{World, failed, gate, ok, phase, plan, simple, step, verify};
use jiff::Timestamp;
use muster_engine::{
    plan::{OnCancel, OnFailure, PlannedWait},
    run::{
        Command, Event, Resolution, Run,
        event::{FailureKind, NotStarted, Outcome},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A line of a history.
#[derive(Serialize, Deserialize)]
struct Line {
    at: Timestamp,
    event: Event,
}

/// How a history is made.
type Scenario = (&'static str, fn() -> World);

const SCENARIOS: [Scenario; 10] = [
    ("rollout-with-verify-and-gate", rollout),
    ("retries-then-walk-back", retries_then_walk_back),
    ("lost-then-probed", lost_then_probed),
    ("cancel-crossed-by-success", cancel_crossed),
    ("stuck-gate", stuck_gate),
    ("waits-and-a-step-that-is-not-critical", waits),
    ("accepted-loss-then-resumed", accepted_loss),
    ("always-after-a-walk-back", always_last),
    ("moments-while-the-wall-clock-is-set", moments),
    ("forced-cancel-then-a-report", forced_cancel),
];

fn rollout() -> World {
    let mut certificate = step("tls_certificate", &[]);
    certificate.with = json!({ "domain": "{{ inputs.domain }}" });
    certificate.verify = Some(verify("output.chain_valid", 60_000, 5_000));
    let mut pool = step("pgbouncer", &[0]);
    pool.when = Some("inputs.environment != 'dev'".to_owned());
    let mut probe = step("pool_probe", &[1]);
    probe.action.facts.read_only = true;
    let mut critical = phase("critical");
    critical.gate = Some(gate(&["steps.pool_probe.output.latency_p95_ms < 50"], &[]));
    let mut plan = plan(vec![critical], vec![certificate, pool, probe]);
    plan.inputs = json!({ "domain": "shop.example", "environment": "staging" });
    plan.outputs.insert("p95".to_owned(), "steps.pool_probe.output.latency_p95_ms".to_owned());
    let mut world = World::new(plan);
    world.go_to(1).change("tls_certificate");
    world.go_to(2).assign("tls_certificate");
    world.go_to(3).finish("tls_certificate", ok(json!({ "chain_valid": false })));
    world.go_to(8).assign("tls_certificate");
    world.go_to(9).finish("tls_certificate", ok(json!({ "chain_valid": true })));
    world.go_to(10).change("pgbouncer");
    world.go_to(11).assign("pool_probe");
    world.go_to(12).finish("pool_probe", ok(json!({ "latency_p95_ms": 12.5 })));
    world
}

fn retries_then_walk_back() -> World {
    let mut world = World::new(simple(vec![step("first", &[]), step("second", &[0]), step("third", &[1])]));
    world.go_to(1).change("first");
    world.go_to(2).assign("second");
    let fence = world.fence("second");
    world.command(&Command::Deny { fence, why: NotStarted::Busy });
    world.go_to(10).change("second");
    for n in 0..3 {
        world.go_to(20 + n * 60).assign("third");
        world.prepare("third", json!({ "try": n }));
        world.finish("third", failed(FailureKind::Retry));
    }
    for _ in 0..3 {
        world.succeed("third");
    }
    world.assign("second");
    world.finish("second", failed(FailureKind::Permanent));
    world.go_to(900);
    world.tick();
    let reason = "undone by hand".to_owned();
    let resolution = Resolution::Succeeded;
    world.command(&Command::ResolveStep { step: "second".into(), resolution, reason, output: None });
    world.succeed("first");
    world
}

fn lost_then_probed() -> World {
    let mut world = World::new(simple(vec![step("only", &[])]));
    let late = world.go_to(1).assign("only");
    world.prepare("only", json!("was"));
    world.go_to(40).command(&Command::LoseInstance { instance: "infra-1-a".into() });
    world.go_to(60).command(&Command::BuryInstance { instance: "infra-1-a".into() });
    world.assign_to("only", "infra-1-b");
    world.go_to(61).finish("only", Outcome::NotSatisfied { diff: "the file is missing".to_owned() });
    world.go_to(70).assign_to("only", "infra-1-b");
    world.go_to(71).finish("only", ok(json!({ "path": "x" })));
    world.command(&Command::Finish { fence: late, outcome: ok(json!({ "path": "late" })) });
    world
}

fn always_last() -> World {
    let mut off = step("page_off", &[1]);
    off.always = true;
    let mut told = step("told", &[]);
    (told.always, told.when) = (true, Some("inputs.environment == 'dev'".to_owned()));
    let mut world = World::new(simple(vec![step("page_on", &[]), step("deploy", &[0]), off, told, step("z", &[2])]));
    world.go_to(1).change("page_on");
    world.go_to(2).change("deploy");
    world.go_to(3).change("page_off");
    world.go_to(4).assign("z");
    world.finish("z", failed(FailureKind::Permanent));
    for step in ["page_off", "deploy", "page_on"] {
        world.succeed(step);
    }
    world.go_to(5).assign("page_off");
    world.finish("page_off", failed(FailureKind::Retry));
    world.assign_soon("page_off");
    world.prepare("page_off", json!("was on"));
    world.finish("page_off", ok(json!({})));
    world
}

fn cancel_crossed() -> World {
    let mut plan = simple(vec![step("first", &[]), step("second", &[]), step("third", &[0])]);
    plan.on_cancel = OnCancel::Undo;
    let mut world = World::new(plan);
    world.go_to(1).assign("first");
    world.prepare("first", json!("was"));
    world.go_to(2).command(&Command::Cancel { reason: "wrong environment".to_owned(), force: false });
    world.go_to(3).finish("first", ok(json!({})));
    world.go_to(4).succeed("first");
    world
}

fn forced_cancel() -> World {
    let mut world = World::new(simple(vec![step("first", &[]), step("second", &[0])]));
    let fence = world.go_to(1).assign("first");
    world.go_to(2).command(&Command::Cancel { reason: "wrong environment".to_owned(), force: true });
    world.go_to(3).command(&Command::Finish { fence, outcome: Outcome::Cancelled { may_have_changed: true } });
    world
}

fn stuck_gate() -> World {
    let mut critical = phase("critical");
    critical.gate = Some(gate(&["steps.probe.output.success_rate >= 0.99"], &["steps.probe.output.errors > 10"]));
    let mut second = step("later", &[0]);
    second.phase = 1;
    second.on_failure = OnFailure::Continue;
    let mut world = World::new(plan(vec![critical, phase("high")], vec![step("probe", &[]), second]));
    world.go_to(5).assign("probe");
    world.finish("probe", ok(json!({ "errors": 0 })));
    world.go_to(905);
    world.tick();
    world.command(&Command::Resume { reason: "the figure is there".to_owned() });
    world.go_to(1_300);
    world.tick();
    world
}

fn waits() -> World {
    let (mut soak, mut approval) = (step("soak", &[0]), step("approval", &[1]));
    common::waits(&mut soak, PlannedWait::For { ms: 600_000 });
    common::waits(&mut approval, common::for_signal("approved", Some(3_600_000)));
    let mut extra = step("extra", &[]);
    (extra.on_failure, extra.critical) = (OnFailure::Continue, false);
    let mut other = phase("other");
    other.when = Some("false".to_owned());
    let mut left_out = step("left_out", &[]);
    left_out.phase = 1;
    let steps = vec![step("deploy", &[]), soak, approval, extra, left_out];
    let mut world = World::new(plan(vec![phase("first"), other], steps));
    world.go_to(1).succeed("deploy");
    world.assign("extra");
    world.finish("extra", failed(FailureKind::Permanent));
    world.go_to(601).tick();
    world.go_to(1_501).tick();
    let payload = std::sync::Arc::new(json!({ "by": "qa" }));
    world.go_to(1_600).command(&Command::Signal { signal: "approved".to_owned(), payload, reason: String::new() });
    world
}

fn moments() -> World {
    let (mut first, mut second) = (step("first", &[]), step("second", &[0]));
    common::waits(&mut first, common::for_moment(600));
    common::waits(&mut second, common::for_moment(1_200));
    let mut world = World::new(simple(vec![first, second, step("last", &[1])]));
    world.go_to(10).command(&Command::FollowWallClock { ahead_ms: 300_000 });
    world.go_to(300).tick();
    world.go_to(310).command(&Command::FollowWallClock { ahead_ms: -60_000 });
    world.go_to(1_260).tick();
    world.succeed("last");
    world
}

fn accepted_loss() -> World {
    let mut world = World::new(simple(vec![step("a", &[]), step("b", &[0])]));
    world.go_to(1).assign("a");
    world.go_to(5).command(&Command::AcceptLoss);
    world.command(&Command::BuryInstance { instance: "infra-1-a".into() });
    let answer =
        |resolution| Command::ResolveStep { step: "a".into(), resolution, reason: "looked".to_owned(), output: None };
    world.command(&answer(Resolution::Retry));
    world.go_to(60).command(&Command::Resume { reason: "looked".to_owned() });
    world.succeed("a");
    world.succeed("b");
    world
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories")
}

fn replay(history: &str) -> Run {
    let mut lines = history.lines().map(|line| serde_json::from_str::<Line>(line).expect("a line of a history"));
    let first = lines.next().expect("a history has a first line");
    let Event::RunStarted(started) = &first.event else { panic!("the first event starts the run") };
    let mut run = Run::start(first.at, &"person/operator".into(), started);
    for line in lines {
        run.apply(line.at, &line.event).expect("a recorded event fits");
    }
    run.check_invariants().expect("invariants hold at the end of what was journalled in one append");
    run
}

/// The state without the plan, which is in the first line of the history.
fn state_of(run: &Run) -> Value {
    let mut state = serde_json::to_value(run).expect("a run can be written");
    state.as_object_mut().expect("a run is a map").remove("plan");
    state
}

fn record(name: &str, world: &World) {
    let mut text = String::new();
    for (at, event) in &world.history {
        let line = Line { at: *at, event: Event::clone(event) };
        text.push_str(&serde_json::to_string(&line).expect("an event can be written"));
        text.push('\n');
    }
    std::fs::write(folder().join(format!("{name}.jsonl")), text).expect("the history can be written");
    let state = serde_json::to_string_pretty(&state_of(&world.run)).expect("a state can be written");
    std::fs::write(folder().join(format!("{name}.state.json")), state + "\n").expect("the state can be written");
}

/// Everything that was recorded is still so; there may be more.
fn still_holds(path: &str, recorded: &Value, found: &Value) {
    match (recorded, found) {
        (Value::Object(recorded), Value::Object(found)) => {
            for (name, value) in recorded {
                still_holds(&format!("{path}.{name}"), value, found.get(name).unwrap_or(&Value::Null));
            }
        }
        (Value::Array(recorded), Value::Array(found)) => {
            assert_eq!(recorded.len(), found.len(), "{path} has another length");
            for (n, (recorded, found)) in recorded.iter().zip(found).enumerate() {
                still_holds(&format!("{path}[{n}]"), recorded, found);
            }
        }
        (recorded, found) => assert_eq!(recorded, found, "{path} is not what it was"),
    }
}

#[test]
fn recorded_histories_replay_to_the_state_they_had() {
    if std::env::var("UPDATE").is_ok() {
        for (name, scenario) in SCENARIOS {
            if !folder().join(format!("{name}.jsonl")).exists() {
                record(name, &scenario());
            }
        }
    }
    let mut count = 0;
    for entry in std::fs::read_dir(folder()).expect("the folder of histories is there") {
        let path = entry.expect("the folder can be read").path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            let history = std::fs::read_to_string(&path).expect("a history can be read");
            let state = std::fs::read_to_string(path.with_extension("state.json")).expect("its state is beside it");
            let recorded = serde_json::from_str(&state).expect("a state is JSON");
            still_holds(&path.display().to_string(), &recorded, &state_of(&replay(&history)));
            count += 1;
        }
    }
    assert!(count >= SCENARIOS.len(), "{count} histories: run with UPDATE=1 to record the new ones");
}

/// A line lost, doubled or moved is noticed, or at least leads to another state: never a panic.
#[test]
fn a_damaged_history_is_corrupt_and_never_a_panic() {
    let mut noticed = 0;
    for (_, scenario) in SCENARIOS {
        let world = scenario();
        let Event::RunStarted(started) = &*world.history[0].1 else { panic!("the first event starts the run") };
        let events = &world.history[1..];
        for n in 0..events.len() {
            for m in 0..events.len() {
                let mut damaged = events.to_vec();
                damaged.swap(n, m);
                if n == m {
                    damaged.remove(n);
                }
                let mut run = Run::start(world.history[0].0, &"person/operator".into(), started);
                let corrupt = damaged.iter().find_map(|(at, event)| {
                    let before = run.clone();
                    let corrupt = run.apply(*at, event).err()?;
                    assert_eq!(run, before, "a corrupt event leaves the run as it was");
                    Some(corrupt)
                });
                noticed += usize::from(corrupt.is_some());
            }
        }
    }
    assert!(noticed > 500, "only {noticed} damaged histories were noticed");
}
