//! Every state against every event and every command. The result are the tables in `docs/state-machine.md`, which are written
//! by `UPDATE=1 cargo test -p muster-engine --test table` and compared by this test: a change of the state machine is a
//! change of that page. Where no row, or no column, has a variant of the state machine's types, the tests fail.
#![expect(clippy::disallowed_methods, reason = "the tables are a file")]

#[path = "table/columns.rs"]
mod columns;
mod common;
#[path = "table/rows.rs"]
mod rows;

use std::{collections::BTreeSet, fmt::Write, path::Path};

use columns::Column;
use common::{World, variants::assert_all};
use jiff::SignedDuration;
use muster_engine::run::{
    Command, Event, Rejection, Run,
    event::{AttemptEnd, Outcome, StepNext},
    state::{PhaseState, StepState},
};
use rows::About;

/// Tables of one kind of thing: its states are the columns.
struct Group {
    heading: &'static str,
    columns: Vec<Column>,
    name: fn(&Run) -> String,
    has_event: fn(&Event) -> bool,
    has_command: fn(&Command) -> bool,
    /// What is said of other things has nothing to say here.
    is_beside: fn(&Event) -> bool,
}

fn groups() -> Vec<Group> {
    let of_step = |heading, columns| Group {
        heading,
        columns,
        name: columns::step_name,
        has_event: |_| true,
        has_command: |_| true,
        is_beside: |event| match rows::about(event) {
            About::Step(step) => step.as_str() != "s",
            About::Phase | About::Milestone | About::Evidence => true,
            About::Run => false,
        },
    };
    vec![
        of_step("A step of a run that goes on", columns::steps()),
        of_step("A step of a run that is stopped", columns::stopped_steps()),
        Group {
            heading: "A run",
            columns: columns::runs(),
            name: columns::run_name,
            has_event: |event| !matches!(rows::about(event), About::Step(_) | About::Evidence),
            has_command: rows::is_to_the_run,
            is_beside: |event| rows::about(event) != About::Run,
        },
        Group {
            heading: "A phase",
            columns: columns::phases(),
            name: columns::phase_name,
            has_event: |event| rows::about(event) == About::Phase,
            has_command: |command| {
                matches!(command, Command::Finish { .. } | Command::Resume { .. } | Command::Cancel { .. })
            },
            is_beside: |event| rows::about(event) != About::Phase,
        },
        Group {
            heading: "A milestone",
            columns: columns::milestones(),
            name: columns::milestone_name,
            has_event: |event| {
                let over = matches!(event, Event::PhaseEnded { .. } | Event::RunEnded { .. });
                over || rows::about(event) == About::Milestone
            },
            has_command: |command| matches!(command, Command::Finish { .. } | Command::Tick | Command::Cancel { .. }),
            is_beside: |event| rows::about(event) != About::Milestone,
        },
    ]
}

/// What the event comes to; `·`: corrupt.
fn after_event(world: &World, event: &Event, name: fn(&Run) -> String) -> String {
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
fn after_command(world: &World, later: i64, command: &Command, group: &Group) -> String {
    let (mut after, before) = (world.clone(), (group.name)(&world.run));
    after.now += SignedDuration::from_secs(later);
    match after.try_command(command) {
        Ok(_) if (group.name)(&after.run) != before => (group.name)(&after.run),
        Ok(events) if events.iter().any(|e| matches!(e, Event::ReportArrivedStale { .. })) => "stale".to_owned(),
        Ok(events) if events.iter().all(group.is_beside) => "nothing".to_owned(),
        Ok(_) => "stays".to_owned(),
        Err(Rejection::Broken(corrupt)) => panic!("{command:?}: {corrupt}"),
        Err(Rejection::Conflict { .. }) => "conflict".to_owned(),
        Err(Rejection::UnknownAttempt { .. } | Rejection::UnknownStep(_) | Rejection::UnknownSignal(_)) => {
            "unknown".to_owned()
        }
        Err(Rejection::Forbidden { .. } | Rejection::RunEnded) => "·".to_owned(),
    }
}

/// Rows by name: the same ones for each column.
type Rows = Vec<(String, Vec<String>)>;

fn event_rows(group: &Group) -> Rows {
    let of = |world: &World| rows::events(world).into_iter().filter(|(_, event)| (group.has_event)(event));
    let column = |world: &World| of(world).map(|(row, e)| (row, after_event(world, &e, group.name))).collect();
    joined(group.columns.iter().map(|(_, world)| column(world)).collect())
}

fn command_rows(group: &Group) -> Rows {
    let of = |world: &World| rows::commands(world).into_iter().filter(|(_, _, command)| (group.has_command)(command));
    let cell = |world: &World, (row, later, command): rows::Asked| {
        (row.to_owned(), after_command(world, later, &command, group))
    };
    joined(group.columns.iter().map(|(_, world)| of(world).map(|asked| cell(world, asked)).collect()).collect())
}

fn joined(columns: Vec<Vec<(String, String)>>) -> Rows {
    let mut rows: Rows = Vec::new();
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

fn table(first: &str, columns: &[Column], rows: &Rows) -> String {
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

#[test]
fn every_state_against_every_event_and_command_is_as_the_page_says() {
    let mut tables = "<!-- tables: UPDATE=1 cargo test -p muster-engine --test table -->\n".to_owned();
    for group in groups() {
        let (events, commands) = (event_rows(&group), command_rows(&group));
        let (events, commands) = (table("event", &group.columns, &events), table("command", &group.columns, &commands));
        write!(tables, "\n## {}\n\n{events}\n{commands}", group.heading).expect("a string takes everything");
    }
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

/// Each column is of the state that its head names, and no cell leads to a state that has none.
#[test]
fn the_tables_are_closed() {
    let said = ["stays", "nothing", "stale", "conflict", "unknown", "·"];
    let mut names = BTreeSet::new();
    for group in groups() {
        for (column, world) in &group.columns {
            assert_eq!((group.name)(&world.run), *column, "{}", world.story());
            assert!(names.insert((group.name as usize, (*column).to_owned())), "{column} is there twice");
        }
    }
    for group in groups() {
        for (row, cells) in event_rows(&group).into_iter().chain(command_rows(&group)) {
            for cell in cells.iter().filter(|cell| !said.contains(&cell.as_str())) {
                assert!(
                    names.contains(&(group.name as usize, cell.clone())),
                    "{row} leads to {cell}: no column has it"
                );
            }
        }
    }
}

/// What the pattern takes out of those that it fits.
macro_rules! picked {
    ($all:expr, $pattern:pat => $value:expr) => {
        $all.into_iter().filter_map(|one| if let $pattern = one { Some($value) } else { None })
    };
}

#[test]
fn every_event_and_command_has_a_row() {
    let (_, world) = columns::steps().swap_remove(0);
    let events: Vec<_> = rows::events(&world).into_iter().map(|(_, event)| event).collect();
    assert_all("the table of events", events.clone());
    assert_all("how a run ends", picked!(events.clone(), Event::RunEnded { outcome, .. } => outcome));
    assert_all("how a phase ends", picked!(events.clone(), Event::PhaseEnded { outcome, .. } => outcome));
    assert_all("how a gate is judged", picked!(events, Event::GateJudged { verdict, .. } => verdict));

    let nexts: Vec<_> = rows::nexts(&world).into_iter().map(|(_, next)| next).collect();
    assert_all("where a step goes", nexts.clone());
    assert_all("what a step is queued for", picked!(nexts.clone(), StepNext::Queued { purpose, .. } => purpose));
    assert_all("what a step asks", picked!(nexts, StepNext::Asking { kind, .. } => kind));

    let ends: Vec<_> = rows::ends().into_iter().map(|(_, end)| end).collect();
    assert_all("how an attempt ends", ends.clone());
    assert_all("how a report ends it", picked!(ends.clone(), AttemptEnd::Finished { outcome } => outcome));
    assert_all("why it never started", picked!(ends.clone(), AttemptEnd::NotStarted { why } => why));
    assert_all("how it ends unknown", picked!(ends, AttemptEnd::Unknown { ended_by } => ended_by));

    let commands: Vec<_> = rows::commands(&world).into_iter().map(|(_, _, command)| command).collect();
    assert_all("the table of commands", commands.clone());
    let outcomes = || picked!(commands.clone(), Command::Finish { outcome, .. } => outcome);
    assert_all("what is reported", outcomes());
    assert_all("what is reported as failed", picked!(outcomes(), Outcome::Failed { kind, .. } => kind));
    assert_all("what is denied", picked!(commands.clone(), Command::Deny { why, .. } => why));
    assert_all("what is answered", picked!(commands, Command::ResolveStep { resolution, .. } => resolution));
}

#[test]
fn every_state_has_a_column() {
    let worlds: Vec<World> = groups().into_iter().flat_map(|group| group.columns).map(|(_, world)| world).collect();
    assert_all("a column of a run", worlds.iter().map(|w| w.run.state.clone()));
    let steps = || worlds.iter().map(|w| w.state("s").clone());
    assert_all("a column of a step", steps());
    assert_all("a column of a queued step", picked!(steps(), StepState::Queued { purpose, .. } => purpose));
    assert_all("a column of a step that asks", picked!(steps(), StepState::Asking { kind, .. } => kind));
    let live = |w: &World| w.run.steps[w.run.step_index(&"s".into())?].live_attempt().map(|(_, a)| a.purpose);
    assert_all("a column of an active step", worlds.iter().filter_map(live));
    let phases = || worlds.iter().flat_map(|w| w.run.phases.iter());
    assert_all("a column of a phase", phases().map(|p| p.state));
    let over = picked!(phases().map(|p| p.state), PhaseState::Ended(outcome) => outcome);
    assert_all("a column of a phase that is over", over);
    assert_all("a column of a milestone", phases().filter_map(|p| p.milestone.as_ref()).map(|m| m.state));
}
