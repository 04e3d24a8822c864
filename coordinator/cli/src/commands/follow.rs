//! Following a run to its end, over restarts of the coordinator and lost connections.

use std::{
    cell::Cell,
    pin::pin,
    time::{Duration, Instant},
};

use muster_proto::v1;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::{
    App,
    run::{explanation, fetch, view},
};
use crate::{
    args::UntilArgs,
    client::Client,
    error::{CliError, Exit, Result},
    words,
};

mod display;

use display::Display;

/// How long a coordinator may be away before following it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_TRIES: Duration = Duration::from_millis(500);
/// How long nothing happens before it is said what the run waits for, and before that is looked at again.
const QUIET: Duration = Duration::from_secs(5);
const STILL_QUIET: Duration = Duration::from_secs(30);
/// The longest wait the API takes at once.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// So that the last moments of a limit are not spent in asking.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// Show what happens, from an event on (none: from where the run is), and end as the run does.
pub(super) async fn watch(
    app: &App,
    client: &Client,
    name: &str,
    after: Option<u64>,
    until: UntilArgs,
) -> Result<Exit> {
    let heard = Cell::new(false);
    let run = within(client, name, &heard, Box::pin(watch_to_end(app, client, name, after, until, &heard))).await?;
    finish(app, client, &run).await
}

/// Wait silently, and end as the run does.
pub(super) async fn wait(app: &App, client: &Client, name: &str, until: UntilArgs) -> Result<Exit> {
    let heard = Cell::new(false);
    let run = within(client, name, &heard, Box::pin(wait_to_end(app, client, name, until, &heard))).await?;
    finish(app, client, &run).await
}

/// Of a run of which nothing was heard it is not known that it has not ended.
pub(super) async fn within<T>(
    client: &Client,
    name: &str,
    heard: &Cell<bool>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(limit) = client.limit() else { return work.await };
    if let Ok(done) = timeout(limit, work).await {
        return done;
    }
    if !heard.get() {
        return Err(client.unanswered());
    }
    let id = name.rsplit('/').next().unwrap_or(name);
    let message =
        format!("run {id} has not ended within {:#}", jiff::SignedDuration::try_from(limit).unwrap_or_default());
    Err(CliError { exit: Exit::TimedOut, ..CliError::failed("TIMED_OUT", message) }
        .hint(format!("it goes on without you; see what it waits for: muster run explain {id}")))
}

async fn watch_to_end(
    app: &App,
    client: &Client,
    name: &str,
    after: Option<u64>,
    until: UntilArgs,
    heard: &Cell<bool>,
) -> Result<v1::Run> {
    let mut run = fetch(client, name).await.map_err(|s| client.error(&s))?;
    heard.set(true);
    let mut display = Display::new(&app.printer, &run);
    let mut after = after.unwrap_or(run.sequence);
    let mut patience = Patience::default();
    while !(is_over(run.state(), until) && after >= run.sequence) {
        match watch_once(client, name, &mut after, &mut run, until, &mut display, &mut patience).await {
            Ok(()) => {}
            Err(status) if status.code() == Code::OutOfRange => {
                run = fetch(client, name).await.map_err(|s| client.error(&s))?;
                after = run.sequence;
            }
            Err(status) => patience.spend(app, client, &status).await?,
        }
    }
    display.end();
    Ok(run)
}

/// Follow one stream until it ends or the run needs no more following.
async fn watch_once(
    client: &Client,
    name: &str,
    after: &mut u64,
    run: &mut v1::Run,
    until: UntilArgs,
    display: &mut Display,
    patience: &mut Patience,
) -> Result<(), Status> {
    let request = v1::WatchRunRequest { name: name.to_owned(), after_sequence: *after, include_run: true };
    let mut stream = client.runs().watch_run(request).await?.into_inner();
    while let Some(seen) = said_or_waits(client, &mut stream, run, display).await? {
        patience.restore();
        if let Some(event) = &seen.event {
            *after = event.sequence;
            display.event(event);
        }
        let Some(newer) = seen.run else { continue };
        // What was already known when the watch began is history: a question in it may have been answered since.
        if newer.sequence >= run.sequence {
            *run = newer;
            display.run(run);
            if is_over(run.state(), until) {
                return Ok(());
            }
        }
    }
    if is_over(run.state(), until) { Ok(()) } else { Err(Status::unavailable("the stream has ended before the run")) }
}

/// What comes next; while nothing does, what the run waits for is shown.
async fn said_or_waits(
    client: &Client,
    stream: &mut Streaming<v1::WatchRunResponse>,
    run: &v1::Run,
    display: &mut Display,
) -> Result<Option<v1::WatchRunResponse>, Status> {
    let mut next = pin!(stream.message());
    let mut quiet = QUIET;
    loop {
        if let Ok(seen) = timeout(quiet, next.as_mut()).await {
            return seen;
        }
        // Not to know it is no reason to end: the stream says when the coordinator is lost.
        if let Ok(answer) = explanation(client, &run.name).await {
            display.waits(run, &answer.waiting);
        }
        quiet = STILL_QUIET;
    }
}

async fn wait_to_end(app: &App, client: &Client, name: &str, until: UntilArgs, heard: &Cell<bool>) -> Result<v1::Run> {
    let mut patience = Patience::default();
    let began = Instant::now();
    loop {
        let wait = client.limit().map_or(LONGEST_WAIT, |limit| next_wait(limit.saturating_sub(began.elapsed())));
        let request = v1::WaitRunRequest {
            name: name.to_owned(),
            timeout: prost_types::Duration::try_from(wait).ok(),
            only_end: until.stay,
        };
        match client.runs().wait_run(request).await.map(tonic::Response::into_inner) {
            Ok(v1::WaitRunResponse { run: Some(run), .. }) if is_over(run.state(), until) => return Ok(run),
            Ok(_) => {
                heard.set(true);
                patience.restore();
                if wait < SHORTEST_WAIT {
                    tokio::time::sleep(SHORTEST_WAIT).await;
                }
            }
            Err(status) => patience.spend(app, client, &status).await?,
        }
    }
}

/// How long to let the server wait: its answer has to come while there is time left, or nothing is known at the end.
fn next_wait(left: Duration) -> Duration {
    left.saturating_sub(left / 4).min(LONGEST_WAIT)
}

fn is_over(state: v1::run::State, until: UntilArgs) -> bool {
    words::has_ended(state) || (words::needs_person(state) && !until.stay)
}

/// Print how it ended, and turn that into the exit code.
async fn finish(app: &App, client: &Client, run: &v1::Run) -> Result<Exit> {
    use v1::run::State;
    app.printer.data(run, view::run)?;
    let id = &run.run_id;
    let why = |fallback: &str| if run.state_reason.is_empty() { fallback.to_owned() } else { run.state_reason.clone() };
    match run.state() {
        State::Succeeded => Ok(Exit::Succeeded),
        State::Failed => Err(CliError::failed("RUN_FAILED", format!("run {id} failed: {}", why("no reason given")))
            .hint(format!("see what happened: muster run events {id}"))),
        State::Cancelled => {
            Err(CliError::failed("RUN_CANCELLED", format!("run {id} was cancelled: {}", why("no reason given"))))
        }
        State::Unspecified
        | State::Running
        | State::Waiting
        | State::Paused
        | State::Cancelling
        | State::RollingBack
        | State::Finishing
        | State::Quarantined => Err(waits(client, run, &why("it needs a person")).await),
    }
}

/// A run that goes on only when a person does something: what that is.
async fn waits(client: &Client, run: &v1::Run, why: &str) -> CliError {
    let id = &run.run_id;
    let reason = format!("RUN_{}", words::run_state(run.state()).to_uppercase().replace(' ', "_"));
    let error = CliError::failed(&reason, format!("run {id} waits for a person: {why}"));
    let said = match explanation(client, &run.name).await {
        Ok(answer) => answer.waiting.into_iter().map(|w| w.hint).find(|hint| !hint.is_empty()),
        Err(_) => None,
    };
    let said = said.map(|said| format!("{said}\n")).unwrap_or_default();
    CliError { exit: Exit::WaitingForPerson, ..error }.hint(format!("{said}{}", answer(run)))
}

/// The commands that answer: all that the run takes in this state.
fn answer(run: &v1::Run) -> String {
    let id = &run.run_id;
    if run.state() == v1::run::State::Quarantined {
        return format!("muster run explain {id}");
    }
    let asking = run.steps.iter().find(|step| step.state() == v1::step::State::Asking);
    let mut lines = Vec::new();
    if let Some(step) = asking {
        lines.push(format!("muster step retry {id} {} --reason …", step.id));
        lines.push(format!("muster step resolve {id} {} succeeded|failed|skip --reason …", step.id));
    }
    // A resumed run tries steps again that failed.
    if run.pause.is_some() || asking.is_some_and(|step| step.question() == v1::step::Question::Failed) {
        lines.push(format!("muster run resume {id} --reason …"));
    }
    // A run that is on its way out is cut off by force alone, and once.
    let forward = run.phases.iter().any(|phase| phase.state() == v1::phase::State::Active);
    let leaves = run.rollback.is_some() || run.cancellation.is_some() || !forward;
    let force = if leaves { " --force" } else { "" };
    if !run.cancellation.as_ref().is_some_and(|cancellation| cancellation.force) {
        lines.push(format!("muster run cancel {id}{force} --reason …"));
    }
    lines.join("\n")
}

/// How long a lost connection is borne.
#[derive(Default)]
pub(super) struct Patience {
    lost_since: Option<Instant>,
}

impl Patience {
    pub(super) fn restore(&mut self) {
        self.lost_since = None;
    }

    /// Wait a moment, or give up: at once when trying again can't help.
    pub(super) async fn spend(&mut self, app: &App, client: &Client, status: &Status) -> Result<()> {
        let may_pass = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted);
        let lost_since = *self.lost_since.get_or_insert_with(|| {
            if may_pass {
                app.printer.note(&format!("lost the coordinator ({}): trying again", status.message()));
            }
            Instant::now()
        });
        if !may_pass || lost_since.elapsed() > PATIENCE {
            return Err(client.error(status));
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
        Ok(())
    }
}
