//! `muster run …`

use muster_proto::v1;
use serde_json::Value;

use super::{App, follow, goes_on, inputs, note_rest, page_size, playbook::Source};
use crate::{
    args::{EventsArgs, ReasonArgs, RunCommand, RunListArgs, SignalArgs, StartArgs},
    client::Client,
    error::{Exit, Result},
    printer::{message_of, to_message},
    words,
};

mod logs;
pub(super) mod view;

pub(super) async fn run(app: &App, command: RunCommand) -> Result<Exit> {
    match command {
        RunCommand::Start(args) => start(app, args).await,
        RunCommand::List(args) => list(app, &args).await,
        RunCommand::Get { run } => get(app, &run).await,
        RunCommand::Watch { run, until } => {
            let client = app.client().await?;
            let name = client.name("runs", &run);
            Box::pin(follow::watch(app, &client, &name, None, until)).await
        }
        RunCommand::Wait { run, until } => {
            let client = app.client().await?;
            let name = client.name("runs", &run);
            Box::pin(follow::wait(app, &client, &name, until)).await
        }
        RunCommand::Pause(args) => pause(app, args).await,
        RunCommand::Resume(args) => resume(app, args).await,
        RunCommand::Signal(args) => signal(app, args).await,
        RunCommand::Cancel { reason, force } => cancel(app, reason, force).await,
        RunCommand::Explain { run } => explain(app, &run).await,
        RunCommand::Events(args) => events(app, &args).await,
        RunCommand::Logs(args) => Box::pin(logs::run(app, &args)).await,
    }
}

async fn start(app: &App, args: StartArgs) -> Result<Exit> {
    let inputs = Value::Object(inputs(&args.inputs)?);
    let client = app.client().await?;
    let source = Source::of(&client, &args.playbook)?;
    let (validate_only, watch, until) = (args.validate_only, args.watch, args.until);
    let request = v1::StartRunRequest {
        inputs: Some(to_message(inputs)?),
        note: args.note,
        plan_digest: args.plan_digest.unwrap_or_default(),
        validate_only,
        request_id: args.request_id.unwrap_or_default(),
        ..v1::StartRunRequest::default()
    };
    let run = start_one(&client, &source, request).await?;
    if watch {
        return Box::pin(follow::watch(app, &client, &run.name, Some(0), until)).await;
    }
    app.printer.data(&run, view::run)?;
    if validate_only {
        app.printer.note("nothing was started: --validate-only");
    } else {
        app.printer.note(&format!("follow it: muster run watch {}", run.run_id));
    }
    Ok(Exit::Succeeded)
}

/// Start a run of a playbook; the request says everything but which.
pub(super) async fn start_one(client: &Client, source: &Source, request: v1::StartRunRequest) -> Result<v1::Run> {
    let request = v1::StartRunRequest {
        parent: client.parent(),
        source: Some(match source {
            Source::Stored(name) => v1::start_run_request::Source::Playbook(name.clone()),
            Source::Yaml { yaml, .. } => v1::start_run_request::Source::Yaml(yaml.clone()),
        }),
        ..request
    };
    match client.runs().start_run(client.soon(request)).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(source.error(client, &status).await),
    }
}

async fn list(app: &App, args: &RunListArgs) -> Result<Exit> {
    let client = app.client().await?;
    let mut all = v1::ListRunsResponse::default();
    loop {
        let request = v1::ListRunsRequest {
            parent: client.parent(),
            page_size: page_size(args.page.limit, all.runs.len()),
            page_token: all.next_page_token.clone(),
            filter: filter(args),
        };
        let next = client.runs().list_runs(client.soon(request)).await.map_err(|s| client.error(&s))?.into_inner();
        all.runs.extend(next.runs);
        all.next_page_token = next.next_page_token;
        if !goes_on(args.page.limit, all.runs.len(), &all.next_page_token) {
            break;
        }
    }
    app.printer.data(&all, |all| view::runs(&all.runs).into())?;
    note_rest(app, &all.next_page_token);
    Ok(Exit::Succeeded)
}

fn filter(args: &RunListArgs) -> String {
    let states: Vec<String> =
        args.state.iter().map(|s| format!("state = {}", s.trim().to_uppercase().replace(['-', ' '], "_"))).collect();
    let states = Some(states.join(" OR ")).filter(|states| !states.is_empty());
    let waiting = args.waiting.then(|| "waits_on = PERSON OR waits_on = AGENT".to_owned());
    let playbook = args.playbook.as_ref().map(|name| format!("playbook = \"{name}\""));
    [states, waiting, playbook].into_iter().flatten().collect::<Vec<_>>().join(" AND ")
}

/// A run as it is.
pub(super) async fn fetch(client: &Client, name: &str) -> Result<v1::Run, tonic::Status> {
    let request = v1::GetRunRequest { name: name.to_owned() };
    client.runs().get_run(client.soon(request)).await.map(tonic::Response::into_inner)
}

async fn get(app: &App, run: &str) -> Result<Exit> {
    let client = app.client().await?;
    let mut run = fetch(&client, &client.name("runs", run)).await.map_err(|s| client.error(&s))?;
    // What holds an open run may be nothing of its own.
    if !words::has_ended(run.state())
        && let Ok(answer) = explanation(&client, &run.name).await
    {
        run.waiting = answer.waiting.into_iter().next();
    }
    app.printer.data(&run, view::run)?;
    Ok(Exit::Succeeded)
}

async fn pause(app: &App, args: ReasonArgs) -> Result<Exit> {
    let client = app.client().await?;
    let request = v1::PauseRunRequest {
        name: client.name("runs", &args.run),
        reason: args.reason,
        ..v1::PauseRunRequest::default()
    };
    changed(app, client.runs().pause_run(client.soon(request)).await.map_err(|s| client.error(&s))?.get_ref())
}

async fn resume(app: &App, args: ReasonArgs) -> Result<Exit> {
    let client = app.client().await?;
    let request = v1::ResumeRunRequest {
        name: client.name("runs", &args.run),
        reason: args.reason,
        ..v1::ResumeRunRequest::default()
    };
    changed(app, client.runs().resume_run(client.soon(request)).await.map_err(|s| client.error(&s))?.get_ref())
}

async fn signal(app: &App, args: SignalArgs) -> Result<Exit> {
    let payload = args.payload.as_deref().map(|text| message_of("--payload", text)).transpose()?;
    let client = app.client().await?;
    let (name, signal, reason) = (client.name("runs", &args.run), args.signal, args.reason);
    // Whether there is such a run, the signal's own answer says.
    let had_come = fetch(&client, &name).await.is_ok_and(|run| run.signals.contains(&signal));
    let known = format!("signal {signal} had come before: the first one counts, and this one has changed nothing");
    let request = v1::SignalRunRequest { name, signal, payload, reason, ..v1::SignalRunRequest::default() };
    let answer = client.runs().signal_run(client.soon(request)).await.map_err(|s| client.error(&s))?;
    changed(app, answer.get_ref())?;
    if had_come {
        app.printer.note(&known);
    }
    Ok(Exit::Succeeded)
}

async fn cancel(app: &App, args: ReasonArgs, force: bool) -> Result<Exit> {
    let client = app.client().await?;
    let request = v1::CancelRunRequest {
        name: client.name("runs", &args.run),
        reason: args.reason,
        force,
        ..v1::CancelRunRequest::default()
    };
    changed(app, client.runs().cancel_run(client.soon(request)).await.map_err(|s| client.error(&s))?.get_ref())
}

/// A run after a command on it.
pub(super) fn changed(app: &App, run: &v1::Run) -> Result<Exit> {
    app.printer.data(run, |run| view::runs(std::slice::from_ref(run)).into())?;
    Ok(Exit::Succeeded)
}

/// What a run waits for.
pub(super) async fn explanation(client: &Client, name: &str) -> Result<v1::ExplainRunResponse> {
    let request = v1::ExplainRunRequest { name: name.to_owned() };
    let answer = client.runs().explain_run(client.soon(request)).await.map_err(|s| client.error(&s))?;
    Ok(answer.into_inner())
}

async fn explain(app: &App, run: &str) -> Result<Exit> {
    let client = app.client().await?;
    let name = client.name("runs", run);
    let answer = explanation(&client, &name).await?;
    app.printer.data(&answer, view::waiting)?;
    Ok(Exit::Succeeded)
}

async fn events(app: &App, args: &EventsArgs) -> Result<Exit> {
    let client = app.client().await?;
    let parent = client.name("runs", &args.run);
    let (mut printed, mut page_token) = (0, String::new());
    loop {
        let request = v1::ListRunEventsRequest {
            parent: parent.clone(),
            page_size: page_size(args.page.limit, printed),
            page_token,
        };
        let answer = client.runs().list_run_events(client.soon(request)).await.map_err(|s| client.error(&s))?;
        let answer = answer.into_inner();
        page_token = answer.next_page_token;
        for event in answer.events.iter().filter(|e| e.sequence > args.after) {
            app.printer.item(event, view::event)?;
            printed += 1;
        }
        if !goes_on(args.page.limit, printed, &page_token) {
            break;
        }
    }
    note_rest(app, &page_token);
    Ok(Exit::Succeeded)
}
