//! `muster doctor`: what a coordinator needs, looked at one by one. Nothing is changed, and a check that fails stops no other.

use std::{future::Future, time::Duration};

use serde_json::json;

use super::App;
use crate::{
    error::{CliError, Exit, Result},
    printer::{Block, Table, View},
};

mod bus;
mod certificates;
mod coordinator;
mod disk;
mod files;

/// How long something on the network may take.
const WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn run(app: &App) -> Result<Exit> {
    let settings = &app.settings;
    let data_dir = settings.serve.data_dir();
    let mut checks = Vec::new();
    let heard = bus::look(&settings.serve, &mut checks).await;
    let here = coordinator::data_dir(&data_dir, &mut checks).await;
    coordinator::look(app, heard, here, &mut checks).await;
    disk::look(&data_dir, &mut checks).await;
    files::look(settings, &data_dir, &mut checks);
    certificates::look(settings, &mut checks);
    print(app, &checks)?;
    let is_sound = checks.iter().all(|check| check.state != State::Problem);
    Ok(if is_sound { Exit::Succeeded } else { Exit::Failed })
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// It works; it should be looked at.
    Warning,
    /// It does not work, or is not safe.
    Problem,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What was looked at, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    /// `snake_case`, stable.
    name: &'static str,
    state: State,
    /// What is so, or what is wrong.
    message: String,
    /// How to mend it; empty when nothing is wrong.
    hint: String,
}

impl Check {
    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, state: State::Ok, message: message.into(), hint: String::new() }
    }

    fn warning(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, state: State::Warning, message: message.into(), hint: hint.into() }
    }

    fn problem(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, state: State::Problem, message: message.into(), hint: hint.into() }
    }

    /// A problem that a command would have ended with.
    fn error(name: &'static str, error: CliError) -> Self {
        let place = error.place.map(|place| format!("{place}: ")).unwrap_or_default();
        let hint = error.hint.unwrap_or_else(|| "look at the message".to_owned());
        Self::problem(name, format!("{place}{} {}", error.reason, error.message), hint)
    }
}

/// What comes in time.
async fn in_time<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(WITHIN, work).await.ok()
}

fn print(app: &App, checks: &[Check]) -> Result<()> {
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let value = json!({
        "problems": count(State::Problem),
        "warnings": count(State::Warning),
        "checks": checks.iter().map(|check| json!({
            "name": check.name,
            "state": check.state.word(),
            "message": check.message,
            "hint": check.hint,
        })).collect::<Vec<_>>(),
    });
    app.printer.value(&value, || view(checks))
}

fn view(checks: &[Check]) -> View {
    let rows = checks.iter().map(|c| vec![c.name.to_owned(), c.state.word().to_owned(), c.message.clone()]);
    let mut blocks = vec![Block::Table(Table::new(&["CHECK", "IS", "WHAT"], "").rows(rows))];
    let bad = checks.iter().filter(|check| !check.hint.is_empty());
    let hints: Vec<_> = bad.map(|c| vec![c.name.to_owned(), c.hint.replace('\n', "; ")]).collect();
    if !hints.is_empty() {
        blocks.push(Block::Table(Table::new(&["CHECK", "TO DO"], "").rows(hints)));
    }
    View::new(blocks)
}
