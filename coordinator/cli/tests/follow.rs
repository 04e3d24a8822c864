//! Following a run over what goes wrong on the way, against a coordinator that plays bad moments.

mod support;

use std::collections::VecDeque;

use muster_proto::v1::{self, run::State};
use support::{
    Session,
    fake::{Fake, Script},
};
use tonic::Status;

const NAME: &str = "namespaces/default/runs/r1";

fn run(sequence: u64, state: State, reason: &str) -> v1::Run {
    v1::Run {
        name: NAME.to_owned(),
        run_id: "r1".to_owned(),
        playbook: "namespaces/default/playbooks/hello@sha256:00".to_owned(),
        state: state.into(),
        state_reason: reason.to_owned(),
        sequence,
        start_time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
        ..v1::Run::default()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "one item of a stream")]
fn seen(sequence: u64, summary: &str, run: v1::Run) -> Result<v1::WatchRunResponse, Status> {
    let event = v1::RunEvent {
        sequence,
        time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
        actor: "muster".to_owned(),
        summary: summary.to_owned(),
        ..v1::RunEvent::default()
    };
    Ok(v1::WatchRunResponse { event: Some(event), state: run.state, run: Some(run), ..v1::WatchRunResponse::default() })
}

fn follow(script: Script, name: &str, commands: &[&[&str]]) -> Fake {
    let fake = Fake::start(script);
    let mut session = Session::new();
    session.env("MUSTER_SERVER", &fake.url);
    for command in commands {
        session.run(command);
    }
    session.check(name);
    fake
}

#[test]
fn a_lost_stream_goes_on_where_it_broke() {
    let first = vec![
        seen(2, "phase main begins", run(2, State::Running, "")),
        Err(Status::unavailable("the coordinator is ending")),
    ];
    let second = vec![Err(Status::out_of_range("events before 5 are no longer here"))];
    let third = vec![seen(6, "the run succeeded", run(6, State::Succeeded, ""))];
    let script = Script {
        run: run(1, State::Running, ""),
        watches: VecDeque::from([first, second, third]),
        ..Script::default()
    };
    let fake = follow(script, "lost_stream", &[&["run", "watch", "r1"]]);
    assert_eq!(fake.script.lock().unwrap().watched_after, [1, 2, 1]);
}

#[test]
fn a_question_ends_a_watch_with_3_and_an_answered_one_does_not() {
    let question = "step pool asks: may it restart the database?";
    let hint = "muster step resolve r1 pool succeeded --reason '…'";
    let waiting = v1::Waiting { subject: "step pool".into(), hint: hint.into(), ..v1::Waiting::default() };
    // The run is at 4 when the watch begins: what was asked before that is history.
    let watch = vec![
        seen(2, "step pool asks", run(2, State::Waiting, "old question")),
        seen(3, "step pool was answered", run(3, State::Running, "")),
        seen(5, "step pool asks", run(5, State::Waiting, question)),
        seen(6, "the run failed", run(6, State::Failed, "the database is gone")),
    ];
    let script = Script {
        run: run(4, State::Running, ""),
        watches: VecDeque::from([watch.clone(), watch]),
        waiting: vec![waiting],
        ..Script::default()
    };
    follow(script, "question", &[&["run", "watch", "r1"], &["run", "watch", "r1", "--stay"]]);
}

#[test]
fn a_wait_without_end_ends_with_4() {
    let script = Script { run: run(1, State::Running, ""), ..Script::default() };
    follow(script, "timed_out", &[&["--timeout", "300ms", "run", "wait", "r1"]]);
}

#[test]
fn a_run_that_has_ended_is_printed_at_once() {
    let script = Script { run: run(9, State::Cancelled, "no longer wanted"), ..Script::default() };
    follow(
        script,
        "ended",
        &[
            &["run", "wait", "r1"],
            &["-o", "json", "run", "watch", "r1"],
            &["-o", "yaml", "run", "get", "r1"],
            &["run", "get", "r2"],
            &["run", "list"],
        ],
    );
}

#[test]
fn a_refused_document_is_shown_with_all_findings() {
    let fake = Fake::start(Script::default());
    let mut session = Session::new();
    session.env("MUSTER_SERVER", &fake.url);
    session.write("bad.yaml", "kind: Playbook\n");
    session.run(&["playbook", "submit", "bad.yaml"]);
    session.run(&["playbook", "lint", "bad.yaml"]);
    session.run(&["-o", "json", "playbook", "lint", "bad.yaml"]);
    session.check("refused_document");
}

#[test]
fn the_token_comes_from_a_file_and_is_never_shown() {
    let fake = Fake::start(Script { run: run(1, State::Succeeded, ""), ..Script::default() });
    let mut session = Session::new();
    session.env("MUSTER_SERVER", &fake.url);
    session.write("token", "mst_secret\n");
    for (args, env) in [(vec!["--token-file", "token", "run", "get", "r1"], ""), (vec!["run", "get", "r1"], "mst_env")]
    {
        session.env("MUSTER_TOKEN", env);
        let output = session.quietly(&args);
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
        assert!(!String::from_utf8_lossy(&text).contains("mst_"));
    }
    let seen = fake.script.lock().unwrap().authorizations.clone();
    assert_eq!(seen, [Some("Bearer mst_secret".to_owned()), Some("Bearer mst_env".to_owned())]);
}

fn logged(position: u64, text: &str) -> v1::RunLogEntry {
    v1::RunLogEntry {
        step: "pool".to_owned(),
        attempt: 2,
        line: position,
        time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
        text: text.to_owned(),
        position,
        ..v1::RunLogEntry::default()
    }
}

#[test]
fn logs_are_one_line_each_whatever_they_hold() {
    let lost = |lost: v1::run_log_entry::Lost, lost_lines| v1::RunLogEntry {
        line: 0,
        lost_lines,
        lost: lost.into(),
        ..logged(7, "")
    };
    let log = vec![
        logged(1, "  reloads pgbouncer"),
        logged(2, "\u{1b}[31mred\u{7} over\rwritten"),
        logged(3, "two\n2026-01-01T00:00:00Z  forged#1                  lines\n"),
        lost(v1::run_log_entry::Lost::OnTheWay, 1),
        lost(v1::run_log_entry::Lost::OverLimit, 1_200),
        lost(v1::run_log_entry::Lost::NotWritten, 3),
    ];
    let script = Script { log, ..Script::default() };
    follow(script, "logs", &[&["run", "logs", "r1"], &["run", "logs", "r1", "-o", "json"]]);
}

#[test]
fn followed_logs_go_on_where_they_broke_and_end_with_the_run() {
    let seen = |position, text| Ok(v1::WatchRunLogsResponse { entry: Some(logged(position, text)) });
    let first = vec![seen(40, "one"), Err(Status::unavailable("the coordinator is ending"))];
    let second = vec![seen(80, "two"), seen(120, "three")];
    let third = vec![seen(40, "one"), seen(80, "two")];
    let script = Script { log_watches: VecDeque::from([first, second, third]), ..Script::default() };
    let command = ["run", "logs", "r1", "-f", "--step", "pool", "--attempt", "2"];
    let fake = follow(script, "followed_logs", &[&command, &["run", "logs", "r1", "-f", "--limit", "1"]]);
    let filter = "step = \"pool\" AND attempt = 2".to_owned();
    let asked = [(filter.clone(), 0), (filter, 40), (String::new(), 0)];
    assert_eq!(fake.script.lock().unwrap().logs_after, asked);
}

/// A step whose attempts at it ended so.
fn done_by(id: &str, attempts: &[(v1::attempt::State, bool)]) -> v1::Step {
    let attempts = attempts.iter().zip(1..).map(|((state, unchanged), number)| v1::Attempt {
        number,
        purpose: v1::attempt::Purpose::Run.into(),
        state: (*state).into(),
        agent: "infra-1".to_owned(),
        unchanged: *unchanged,
        ..v1::Attempt::default()
    });
    v1::Step {
        id: id.to_owned(),
        phase: "main".to_owned(),
        state: v1::step::State::Succeeded.into(),
        attempts: attempts.collect(),
        ..v1::Step::default()
    }
}

#[test]
fn a_step_that_was_found_done_is_unchanged_unless_an_earlier_attempt_may_have_done_it() {
    use v1::attempt::State as Attempt;
    let run = v1::Run {
        steps: vec![
            done_by("found-done", &[(Attempt::Succeeded, true)]),
            done_by("was-busy-then-found-done", &[(Attempt::NotStarted, false), (Attempt::Succeeded, true)]),
            done_by("changed", &[(Attempt::Succeeded, false)]),
            done_by("failed-then-found-done", &[(Attempt::Failed, false), (Attempt::Succeeded, true)]),
            done_by("lost-then-found-done", &[(Attempt::MayHaveRun, false), (Attempt::Succeeded, true)]),
            done_by("by-a-person", &[]),
        ],
        ..run(6, State::Succeeded, "")
    };
    let script = Script { run, ..Script::default() };
    follow(script, "unchanged", &[&["run", "get", "r1"], &["run", "watch", "r1"]]);
}

#[test]
fn an_output_that_was_cut_is_said_to_be() {
    use v1::attempt::State as Attempt;
    let gives = |id, attempts: &[_], cut: &[bool]| {
        let mut step = done_by(id, attempts);
        step.output = Some(prost_types::Value { kind: Some(prost_types::value::Kind::BoolValue(true)) });
        for (attempt, cut) in step.attempts.iter_mut().zip(cut) {
            attempt.truncated = *cut;
        }
        step
    };
    let left = "left as it is by dba-1".to_owned();
    let run = v1::Run {
        steps: vec![
            gives("cut", &[(Attempt::Succeeded, false)], &[true]),
            gives("found-done-and-cut", &[(Attempt::Succeeded, true)], &[true]),
            gives("cut-with-a-reason", &[(Attempt::Succeeded, false)], &[true]),
            gives(
                "whole-at-the-second-try",
                &[(Attempt::Succeeded, false), (Attempt::Succeeded, false)],
                &[true, false],
            ),
            gives("whole", &[(Attempt::Succeeded, false)], &[false]),
        ],
        ..run(6, State::Succeeded, "")
    };
    let mut script = Script { run, ..Script::default() };
    script.run.steps[2].state_reason = left;
    follow(script, "cut", &[&["run", "get", "r1"], &["run", "watch", "r1"]]);
}
