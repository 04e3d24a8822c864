//! Every state of a step against every event and every command. The result is the table in `docs/state-machine.md`, which is
//! written by `UPDATE=1 cargo test -p muster-engine --test table` and compared by this test: a change of the state machine is
//! a change of that page.
#![expect(clippy::disallowed_methods, reason = "the table is a file")]

mod common;

use std::{fmt::Write, path::Path, sync::Arc};

use common::{World, failed, ok, simple, step};
use jiff::SignedDuration;
use muster_engine::{
    plan::OnFailure,
    run::{
        Command, Event, Fence, Rejection, Resolution, Run,
        event::{
            AttemptAssigned, AttemptEnd, EndedBy, FailureKind, NotStarted, Outcome, Purpose, QuestionKind, StatusNote,
            StepNext, Subject,
        },
        state::{RunState, StepState},
    },
};
use serde_json::json;

/// `s` is the step that is looked at; `o` is another one that keeps the run going.
fn world(change: impl FnOnce(&mut muster_engine::plan::PlannedStep)) -> World {
    let mut s = step("s", &[]);
    s.on_failure = OnFailure::Continue;
    change(&mut s);
    World::new(simple(vec![s, step("o", &[]), step("p", &[1])]))
}

/// A run that walks back: `s` is next to be undone, `o` after it.
fn walking_back() -> World {
    let mut world = world(|s| s.on_failure = OnFailure::Undo);
    world.change("o");
    world.change("s");
    world.assign("p");
    world.finish("p", failed(FailureKind::Permanent));
    world
}

/// A run that walks back: `o` is next to be undone, `s` after it.
fn waiting_to_be_undone() -> World {
    let mut world = world(|s| s.on_failure = OnFailure::Undo);
    world.change("s");
    world.change("o");
    world.assign("p");
    world.finish("p", failed(FailureKind::Permanent));
    world
}

/// A run that is over but for `s`, which is done always.
fn coming_last(build: fn(&mut World)) -> World {
    let mut world = world(|s| s.always = true);
    world.assign("o");
    world.finish("o", failed(FailureKind::Permanent));
    build(&mut world);
    world
}

/// `s` in every state, in the order of the columns.
fn states() -> Vec<(&'static str, World)> {
    let in_state = |build: fn(&mut World)| {
        let mut world = world(|_| {});
        build(&mut world);
        world
    };
    let walking = |build: fn(&mut World)| {
        let mut world = walking_back();
        build(&mut world);
        world
    };
    let pending = {
        let mut s = step("s", &[0]);
        s.on_failure = OnFailure::Continue;
        World::new(simple(vec![step("o", &[]), s]))
    };
    vec![
        ("pending", pending),
        ("queued", in_state(|_| {})),
        ("active", in_state(|w| drop(w.assign("s")))),
        ("waiting", world(|s| common::waits(s, common::for_signal("go", None)))),
        ("waiting (moment)", world(|s| common::waits(s, common::for_moment(600)))),
        (
            "asking",
            in_state(|w| {
                w.assign("s");
                w.finish("s", failed(FailureKind::NeedsPerson));
            }),
        ),
        ("succeeded", in_state(|w| drop(w.succeed("s")))),
        (
            "failed",
            in_state(|w| {
                w.assign("s");
                w.finish("s", failed(FailureKind::Permanent));
            }),
        ),
        ("skipped", world(|s| s.when = Some("false".to_owned()))),
        (
            "cancelled",
            in_state(|w| {
                w.assign("o");
                w.command(&Command::Cancel { reason: "enough".to_owned(), force: false });
            }),
        ),
        ("to be undone", waiting_to_be_undone()),
        ("queued (undo)", walking(|_| {})),
        ("active (undo)", walking(|w| drop(w.assign("s")))),
        (
            "asking (undo)",
            walking(|w| {
                w.assign("s");
                w.finish("s", failed(FailureKind::Permanent));
            }),
        ),
        ("undone", walking(|w| drop(w.succeed("s")))),
        ("queued (last)", coming_last(|_| {})),
        ("active (last)", coming_last(|w| drop(w.assign("s")))),
        (
            "asking (last)",
            coming_last(|w| {
                w.assign("s");
                w.finish("s", failed(FailureKind::NeedsPerson));
            }),
        ),
    ]
}

/// The name of the column that a step is in.
fn name(run: &Run) -> String {
    let i = run.step_index(&"s".into()).expect("s is in the plan");
    let step = &run.steps[i];
    if run.rollback.as_ref().is_some_and(|r| r.remaining.contains(&i)) && !run.awake.contains(&i) {
        return "to be undone".to_owned();
    }
    let undo = if step.live_attempt().is_some_and(|(_, a)| a.purpose == Purpose::Undo) { " (undo)" } else { "" };
    let last = if matches!(run.state, RunState::Finishing { .. }) { " (last)" } else { "" };
    match &step.state {
        StepState::Pending => "pending".to_owned(),
        StepState::Queued { purpose: Purpose::Run, .. } => format!("queued{last}"),
        StepState::Queued { purpose, .. } => format!("queued ({})", format!("{purpose:?}").to_lowercase()),
        StepState::Active => format!("active{undo}{last}"),
        StepState::Waiting { signal: Some(_), .. } => "waiting".to_owned(),
        StepState::Waiting { signal: None, .. } => "waiting (moment)".to_owned(),
        StepState::Asking { kind: QuestionKind::UndoFailed, .. } => "asking (undo)".to_owned(),
        StepState::Asking { .. } => format!("asking{last}"),
        StepState::Succeeded => "succeeded".to_owned(),
        StepState::Failed { .. } => "failed".to_owned(),
        StepState::Skipped { .. } => "skipped".to_owned(),
        StepState::Cancelled => "cancelled".to_owned(),
        StepState::Undone => "undone".to_owned(),
    }
}

fn nexts(world: &World) -> Vec<(&'static str, StepNext)> {
    let queued = |purpose| StepNext::Queued {
        purpose,
        not_before: world.now,
        wake_at: world.now + SignedDuration::from_secs(900),
        why: String::new(),
    };
    let asking = |kind| StepNext::Asking { question: "?".to_owned(), kind, remind_at: world.now };
    let reason = || "because".to_owned();
    vec![
        ("queued", queued(Purpose::Run)),
        ("queued (undo)", queued(Purpose::Undo)),
        ("waiting", StepNext::Waiting { signal: Some("go".to_owned()), ends_at: None, wake_at: world.now }),
        ("asking", asking(QuestionKind::NeedsPerson)),
        ("asking (undo)", asking(QuestionKind::UndoFailed)),
        ("succeeded", StepNext::Succeeded),
        ("failed", StepNext::Failed { reason: reason() }),
        ("skipped", StepNext::Skipped { reason: reason() }),
        ("cancelled", StepNext::Cancelled),
        ("undone", StepNext::Undone),
    ]
}

/// The fence of the last attempt, or of one that never was.
fn fence(world: &World) -> Fence {
    let step = &world.run.steps[world.run.step_index(&"s".into()).expect("s is in the plan")];
    let attempt = u32::try_from(step.attempts.len()).expect("few attempts").max(1);
    Fence { step: "s".into(), attempt, agent: "infra-1".into(), instance: "infra-1-a".into() }
}

fn events(world: &World) -> Vec<(String, Event)> {
    let id = || "s".into();
    let Fence { attempt, .. } = fence(world);
    let step = &world.run.steps[world.run.step_index(&id()).expect("s is in the plan")];
    let purpose = if let StepState::Queued { purpose, .. } = &step.state { *purpose } else { Purpose::Run };
    let mut all = Vec::new();
    for (to, next) in nexts(world) {
        all.push((format!("StepMoved → {to}"), Event::StepMoved { step: id(), next }));
    }
    for (to, next) in nexts(world) {
        let (resolution, reason) = (Resolution::Retry, String::new());
        let event = Event::StepResolved { step: id(), resolution, reason, output: None, next };
        all.push((format!("StepResolved → {to}"), event));
    }
    let assigned = AttemptAssigned {
        step: id(),
        attempt: world.run.next_attempt(world.run.step_index(&id()).expect("s is in the plan")).expect("few attempts"),
        purpose,
        agent: "infra-1".into(),
        instance: "infra-1-a".into(),
        host: None,
        dispatch_until: world.now,
        ends_by: world.now + SignedDuration::from_secs(1),
        with: Arc::new(json!({})),
        undoes: None,
    };
    all.push(("AttemptAssigned".to_owned(), Event::AttemptAssigned(Box::new(assigned))));
    let undo = Arc::new(json!("was"));
    all.push(("AttemptPrepared".to_owned(), Event::AttemptPrepared { step: id(), attempt, undo }));
    let status = StatusNote::default();
    all.push(("StatusReported".to_owned(), Event::StatusReported { step: id(), attempt, status }));
    all.push(("AttemptLost".to_owned(), Event::AttemptLost { step: id(), attempt }));
    all.push(("AttemptFound".to_owned(), Event::AttemptFound { step: id(), attempt }));
    let ends_by = world.now;
    all.push(("AttemptExtended".to_owned(), Event::AttemptExtended { step: id(), attempt, ends_by }));
    for (to, next) in nexts(world) {
        let end = AttemptEnd::Unknown { ended_by: EndedBy::Clock };
        all.push((format!("AttemptEnded → {to}"), Event::AttemptEnded { step: id(), attempt, end, next }));
    }
    let payload = Arc::new(json!({ "by": "hand" }));
    all.push((
        "SignalReceived".to_owned(),
        Event::SignalReceived { signal: "go".to_owned(), payload, reason: String::new() },
    ));
    all.push(("QueueClocksRestarted".to_owned(), Event::QueueClocksRestarted));
    all.push(("WallClockMoved".to_owned(), Event::WallClockMoved { ahead_ms: 3_600_000 }));
    let subject = Subject::Step { step: id() };
    all.push(("OwnerReminded".to_owned(), Event::OwnerReminded { subject, next_at: world.now }));
    let Fence { step, attempt, agent, instance } = fence(world);
    let stale = Event::ReportArrivedStale { step, attempt, agent, instance, report: json!({}) };
    all.push(("ReportArrivedStale".to_owned(), stale));
    all
}

fn commands(world: &World) -> Vec<(&'static str, Command)> {
    let reason = || "because".to_owned();
    let fence = || fence(world);
    let finish = |outcome| Command::Finish { fence: fence(), outcome };
    let resolve = |resolution| Command::ResolveStep { step: "s".into(), resolution, reason: reason(), output: None };
    let instance = || "infra-1-a".into();
    vec![
        ("Assign", world.assignment("s", "infra-1-a")),
        ("Prepare", Command::Prepare { fence: fence(), undo: Arc::new(json!("other")) }),
        ("Finish: succeeded", finish(ok(json!({ "new": 1 })))),
        ("Finish: failed, retry", finish(failed(FailureKind::Retry))),
        ("Finish: failed, permanent", finish(failed(FailureKind::Permanent))),
        ("Finish: failed, needs a person", finish(failed(FailureKind::NeedsPerson))),
        ("Finish: cancelled", finish(Outcome::Cancelled { may_have_changed: false })),
        ("Deny: busy", Command::Deny { fence: fence(), why: NotStarted::Busy }),
        (
            "ReportStatus",
            Command::ReportStatus {
                fence: fence(),
                status: StatusNote { message: "new".to_owned(), ..StatusNote::default() },
            },
        ),
        ("LoseInstance", Command::LoseInstance { instance: instance() }),
        ("BuryInstance", Command::BuryInstance { instance: instance() }),
        ("FollowWallClock", Command::FollowWallClock { ahead_ms: 3_600_000 }),
        ("Cancel", Command::Cancel { reason: reason(), force: false }),
        ("Cancel, forced", Command::Cancel { reason: reason(), force: true }),
        ("Pause", Command::Pause { reason: reason() }),
        ("AcceptLoss", Command::AcceptLoss),
        ("Resume", Command::Resume { reason: reason() }),
        (
            "Signal",
            Command::Signal {
                signal: "go".to_owned(),
                payload: Arc::new(json!({ "by": "hand" })),
                reason: String::new(),
            },
        ),
        ("RetryStep", Command::RetryStep { step: "s".into(), reason: reason() }),
        ("ResolveStep: succeeded", resolve(Resolution::Succeeded)),
        ("ResolveStep: failed", resolve(Resolution::Failed)),
        ("ResolveStep: retry", resolve(Resolution::Retry)),
        ("ResolveStep: skip", resolve(Resolution::Skip)),
    ]
}

/// What the event comes to; `·`: corrupt.
fn after_event(world: &World, event: &Event) -> String {
    let (mut run, before) = (world.run.clone(), name(&world.run));
    match run.apply(world.now, event) {
        Ok(_) if name(&run) == before => "stays".to_owned(),
        Ok(_) => name(&run),
        Err(_) => {
            assert_eq!(run, world.run, "a corrupt event leaves the run as it was");
            "·".to_owned()
        }
    }
}

/// What the command comes to; `·`: refused.
fn after_command(world: &World, command: &Command) -> String {
    let (mut after, before) = (world.clone(), name(&world.run));
    match after.try_command(command) {
        Ok(events) if events.is_empty() => "nothing".to_owned(),
        Ok(events) if events.iter().all(|e| matches!(e, Event::ReportArrivedStale { .. })) => "stale".to_owned(),
        Ok(_) if name(&after.run) == before => "stays".to_owned(),
        Ok(_) => name(&after.run),
        Err(Rejection::Broken(corrupt)) => panic!("{command:?}: {corrupt}"),
        Err(Rejection::Conflict { .. }) => "conflict".to_owned(),
        Err(Rejection::UnknownAttempt { .. } | Rejection::UnknownStep(_) | Rejection::UnknownSignal(_)) => {
            "unknown".to_owned()
        }
        Err(Rejection::Forbidden { .. } | Rejection::RunEnded) => "·".to_owned(),
    }
}

fn table(first: &str, columns: &[(&str, World)], rows: &[(String, Vec<String>)]) -> String {
    let mut text = format!("| {first} |");
    for (column, _) in columns {
        write!(text, " {column} |").expect("a string takes everything");
    }
    text.push('\n');
    text.push_str(&"|---".repeat(columns.len() + 1));
    text.push_str("|\n");
    for (row, cells) in rows {
        writeln!(text, "| {row} | {} |", cells.join(" | ")).expect("a string takes everything");
    }
    text
}

/// Rows by name: the same ones for each column.
fn rows(columns: Vec<Vec<(String, String)>>) -> Vec<(String, Vec<String>)> {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for column in columns {
        for (n, (row, cell)) in column.into_iter().enumerate() {
            if n == rows.len() {
                rows.push((row, vec![cell]));
            } else {
                assert_eq!(rows[n].0, row);
                rows[n].1.push(cell);
            }
        }
    }
    rows
}

#[test]
fn every_state_of_a_step_against_every_event_and_command_is_as_the_page_says() {
    let states = states();
    for (column, world) in &states {
        assert_eq!(name(&world.run), *column, "{}", world.story());
    }
    let by_event = states
        .iter()
        .map(|(_, world)| events(world).into_iter().map(|(row, event)| (row, after_event(world, &event))).collect());
    let by_command = states.iter().map(|(_, world)| {
        commands(world).into_iter().map(|(row, command)| (row.to_owned(), after_command(world, &command))).collect()
    });
    let events = table("event", &states, &rows(by_event.collect()));
    let commands = table("command", &states, &rows(by_command.collect()));
    let tables = format!(
        "<!-- tables: UPDATE=1 cargo test -p muster-engine --test table -->\n\n## Events\n\n{events}\n## Commands\n\n{commands}"
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/state-machine.md");
    let page = std::fs::read_to_string(&path).expect("docs/state-machine.md is there");
    let (words, written) = page.split_once("<!-- tables").expect("the page has a place for the tables");
    if std::env::var("UPDATE").is_ok() {
        std::fs::write(&path, format!("{words}{tables}")).expect("the page can be written");
        return;
    }
    let hint = "docs/state-machine.md is not what the engine does: UPDATE=1 cargo test -p muster-engine --test table";
    assert_eq!(format!("<!-- tables{written}"), tables, "{hint}");
}
