//! Tests that are never red prove nothing: each fault here is planted into a copy of the engine, and the test that is named has
//! to find it. A fault whose place has moved is an error, too.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic, and writes files")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Something that must not pass.
struct Fault {
    what: &'static str,
    /// Below `coordinator/engine/src`.
    file: &'static str,
    find: &'static str,
    plant: &'static str,
    /// The test target and the test that turns red.
    red: (&'static str, &'static str),
}

const FAULTS: &[Fault] = &[
    Fault {
        what: "skip the fence: any process of the agent may end the attempt",
        file: "run/verdict.rs",
        find: "if attempt.agent != fence.agent || attempt.instance != fence.instance {",
        plant: "if attempt.agent != fence.agent {",
        red: ("lost", "every_kind_of_report_gets_its_verdict"),
    },
    Fault {
        what: "drop an undo: the first step of a walk back is left as it is",
        file: "run/undo.rs",
        find: "    steps.sort_by_key(|key| Reverse(*key));",
        plant: "    steps.sort_by_key(|key| Reverse(*key));\n    steps.pop();",
        red: ("undo", "steps_are_undone_one_by_one_the_last_done_first_with_what_they_prepared"),
    },
    Fault {
        what: "undo in the order in which things were done",
        file: "run/undo.rs",
        find: "    steps.sort_by_key(|key| Reverse(*key));",
        plant: "    steps.sort_by_key(|key| *key);\n    let _ = Reverse(0);",
        red: ("undo", "steps_are_undone_one_by_one_the_last_done_first_with_what_they_prepared"),
    },
    Fault {
        what: "forget a wake-up: nobody looks at an attempt whose time is over",
        file: "run/outstanding.rs",
        find: "            StepState::Active => step.live_attempt().map(|(_, a)| (a.ends_by, Due::Clock(i))),",
        plant: "            StepState::Active => None,",
        red: ("exhaustive", "two_steps_one_behind_the_other"),
    },
    Fault {
        what: "forget a wake-up: nobody looks at a backoff that is over",
        file: "run/outstanding.rs",
        find: "Some((*not_before, Due::MayStart(i))),",
        plant: "None,",
        red: ("clock", "a_backoff_is_announced_and_at_its_end_the_step_can_be_placed"),
    },
    Fault {
        what: "take lost for stopped: the walk back does not wait for what may still run",
        file: "run/decide/progress.rs",
        find: "        if run.live_steps().next().is_some() {\n            return Vec::new();\n        }\n        return vec![\n            begin_walk_back",
        plant: "        return vec![\n            begin_walk_back",
        red: ("exhaustive", "two_steps_side_by_side"),
    },
    Fault {
        what: "do again what may have run and must not be done twice",
        file: "policy/lost.rs",
        find: "    if facts.idempotent || facts.read_only { AfterLoss::RunAgain } else { AfterLoss::Ask }",
        plant: "    if facts.read_only { AfterLoss::Ask } else { AfterLoss::RunAgain }",
        red: ("lost", "a_probe_that_finds_nothing_leads_to_a_new_try_or_to_a_question"),
    },
    Fault {
        what: "forget what is done always: a run that was stopped just ends",
        file: "run/decide/progress.rs",
        find: "    if steps.is_empty() { ended(outcome, reason) }",
        plant: "    if !steps.is_empty() { ended(outcome, reason) }",
        red: ("always", "after_a_failure_it_comes_last_once_all_is_taken_back"),
    },
    Fault {
        what: "do once more, at the end, what may have run",
        file: "run/decide/progress.rs",
        find: "StepState::Cancelled => !began || planned.action.facts.idempotent,",
        plant: "StepState::Cancelled => true,",
        red: ("always", "a_try_that_was_lost_is_done_again_only_where_that_does_no_harm"),
    },
    Fault {
        what: "end an attempt by the clock before its agent has had its grace",
        file: "policy/timeout.rs",
        find: "    after(start_until, timeout_ms.saturating_add(GRACE_MS))",
        plant: "    after(start_until, timeout_ms)",
        red: ("lost", "an_attempt_ends_by_the_clock_and_a_later_report_is_evidence_only"),
    },
    Fault {
        what: "try for ever",
        file: "policy/retry.rs",
        find: "    if counted >= policy.max_attempts {",
        plant: "    if counted >= policy.max_attempts.saturating_add(1_000) {",
        red: ("failures", "a_failure_that_may_pass_is_tried_again_after_a_growing_wait_until_no_try_is_left"),
    },
    Fault {
        what: "lose a success that crosses a cancellation",
        file: "run/decide/next.rs",
        find: "            Outcome::Succeeded { .. } => StepNext::Succeeded,\n            Outcome::NotSatisfied { .. } | Outcome::Failed { .. }",
        plant: "            Outcome::Succeeded { .. } => StepNext::Cancelled,\n            Outcome::NotSatisfied { .. } | Outcome::Failed { .. }",
        red: ("people", "a_success_that_crosses_the_cancellation_is_recorded"),
    },
    Fault {
        what: "start work while the run is paused",
        file: "run/outstanding.rs",
        find: "if *not_before <= now && self.pause.is_none() => {",
        plant: "if *not_before <= now => {",
        red: ("people", "a_paused_run_assigns_nothing_lets_attempts_end_and_reminds"),
    },
    Fault {
        what: "walk back while a person looks",
        file: "run/decide/progress.rs",
        find: "failed.filter(|_| run.pause.is_none())",
        plant: "failed",
        red: ("people", "nothing_is_walked_back_while_the_run_is_paused"),
    },
    Fault {
        what: "send a task after the last moment at which it may start",
        file: "run/outstanding.rs",
        find: "if now < attempt.dispatch_until && number >= self.attempts_from {",
        plant: "if number >= self.attempts_from {",
        red: ("basic", "a_dispatch_says_all_that_a_task_needs"),
    },
    Fault {
        what: "pass a gate that can't be judged",
        file: "policy/gate.rs",
        find: "        (false, true) => GateVerdict::Inconclusive,",
        plant: "        (false, true) => GateVerdict::Passed,",
        red: ("failures", "an_inconclusive_gate_pauses_with_a_question_and_is_judged_again_at_resume"),
    },
    Fault {
        what: "deny an attempt that has begun",
        file: "run/decide/report.rs",
        find: "if !run.has_ended() && !run.live_attempt_has_begun(i) => {",
        plant: "if !run.has_ended() => {",
        red: ("lost", "an_attempt_that_has_prepared_cannot_be_denied_any_more"),
    },
    Fault {
        what: "forget a signal",
        file: "run/decide/progress.rs",
        find: "    let mut waiting: Vec<usize> = fresh.steps.clone();",
        plant: "    let _ = fresh;\n    let mut waiting: Vec<usize> = Vec::new();",
        red: ("waits", "a_signal_ends_the_wait_and_brings_its_output"),
    },
    Fault {
        what: "forget what else has moved in the same moment",
        file: "run/decide/progress.rs",
        find: "    events.extend(signalled(run, fresh));\n    events.extend(judge_conditions(run, fresh, now));",
        plant: "    events.extend(signalled(run, fresh));\n    if events.is_empty() {\n        events.extend(judge_conditions(run, fresh, now));\n    }",
        red: ("failures", "a_step_that_fails_does_not_hide_another_that_is_skipped"),
    },
    Fault {
        what: "count a lost attempt as a failed one",
        file: "run/decide/next.rs",
        find: "            AfterLoss::RunAgain => self.run_again(why),",
        plant: "            AfterLoss::RunAgain => self.try_again(why),",
        red: ("lost", "lost_attempts_do_not_count_as_failed_ones_and_the_third_is_a_question"),
    },
    Fault {
        what: "give up an attempt that must not be at work twice",
        file: "run/decide/clock.rs",
        find: ".facts.concurrent_safe {",
        plant: ".facts.idempotent {",
        red: ("lost", "lost_is_not_stopped"),
    },
    Fault {
        what: "break the run over a wait that can't begin",
        file: "run/decide/person.rs",
        find: "            Err(Rejection::Forbidden { what: \"retrying the step\", state: why })",
        plant: "            let next = StepNext::Failed { reason: why };\n            let answer = Answer { resolution: Resolution::Retry, reason, output: None };\n            Ok(resolved(&at.planned.id, &answer, next))",
        red: ("waits", "a_wait_that_can_not_begin_can_not_be_tried_again"),
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The tree as it is, without what is built and without history.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, target) = (entry.file_name(), to.join(entry.file_name()));
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if fs::read(&target).ok() != Some(fs::read(entry.path())?) {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn engine_test(tree: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--quiet", "--locked", "--offline", "-p", "muster-engine"]).args(args).current_dir(tree);
    // What is built here is for one look, and not to be debugged.
    command.env("CARGO_TARGET_DIR", root().join("target/seeded/target")).env("CARGO_PROFILE_DEV_DEBUG", "0");
    command.env_remove("RUSTFLAGS").env("RUST_BACKTRACE", "0").output().unwrap()
}

/// Why the fault was not found; none: it was.
fn look(tree: &Path, fault: &Fault) -> Option<String> {
    let file = tree.join("coordinator/engine/src").join(fault.file);
    let sound = fs::read_to_string(&file).unwrap();
    if sound.matches(fault.find).count() != 1 {
        return Some(format!("{}: its place is not there, or not alone", fault.what));
    }
    fs::write(&file, sound.replace(fault.find, fault.plant)).unwrap();
    let (target, test) = fault.red;
    let built = engine_test(tree, &["--test", target, "--no-run"]);
    let run = engine_test(tree, &["--test", target, "--", "--exact", test]);
    fs::write(&file, sound).unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    if !built.status.success() {
        Some(format!("{}: it does not compile\n{}", fault.what, String::from_utf8_lossy(&built.stderr)))
    } else if run.status.success() || !said.contains("1 failed") {
        Some(format!("{}: {target}::{test} does not find it\n{said}", fault.what))
    } else {
        None
    }
}

#[test]
fn every_planted_fault_turns_its_test_red() {
    let tree = root().join("target/seeded/tree");
    copy(&root(), &tree).unwrap();
    let missed: Vec<String> = FAULTS.iter().filter_map(|fault| look(&tree, fault)).collect();
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
}
