//! `muster playbook …`

use std::path::Path;

use muster_proto::v1;
use serde_json::{Value, json};

use super::{App, found, goes_on, inputs, note_rest, page_size, read};
use crate::{
    args::{LintArgs, PageArgs, PlanArgs, PlaybookCommand, PlaybookName, PlaybookRef, SubmitArgs},
    client::Client,
    error::{CliError, Exit, Found, Result},
    printer::{Block, Table, View, time, to_message},
};

mod offline;
mod plan;

pub(super) async fn run(app: &App, command: PlaybookCommand) -> Result<Exit> {
    match command {
        PlaybookCommand::Submit(args) => submit(app, &args).await,
        PlaybookCommand::Lint(args) => lint(app, &args).await,
        PlaybookCommand::Plan(args) => plan(app, args).await,
        PlaybookCommand::List { page } => list(app, &page).await,
        PlaybookCommand::Get { playbook } => get(app, &playbook).await,
    }
}

/// Where a playbook comes from, as requests say it.
pub(super) enum Source {
    /// A stored one, by its resource name.
    Stored(String),
    /// A document.
    Yaml {
        /// As it was typed.
        file: String,
        /// What is in it.
        yaml: String,
    },
}

impl Source {
    /// Read it, or name it.
    pub(super) fn of(client: &Client, playbook: &PlaybookRef) -> Result<Self> {
        Ok(match playbook {
            PlaybookRef::File(path) => Self::Yaml { file: path.display().to_string(), yaml: read(path)? },
            PlaybookRef::Stored(name) => Self::Stored(resource(client, name)),
        })
    }

    /// As it was typed.
    pub(super) fn place(&self) -> &str {
        match self {
            Self::Stored(name) => name,
            Self::Yaml { file, .. } => file,
        }
    }

    /// A refusal of the document, with all findings and their places instead of the few that fit into a header.
    pub(super) async fn error(&self, client: &Client, status: &tonic::Status) -> CliError {
        let error = client.error(status);
        match self {
            Self::Yaml { file, yaml } if !error.findings.is_empty() => with_findings(client, file, yaml, error).await,
            Self::Yaml { .. } | Self::Stored(_) => error,
        }
    }
}

async fn with_findings(client: &Client, file: &str, yaml: &str, error: CliError) -> CliError {
    let all = findings(client, file, yaml).await.unwrap_or_default();
    // Inputs and actions are not the document's: lint alone does not know what was wrong with them.
    let findings = if all.iter().any(|f| f.is_error) {
        all
    } else {
        error.findings.into_iter().map(|f| Found { file: file.to_owned(), ..f }).collect()
    };
    CliError { findings, ..error }.at(file)
}

async fn findings(client: &Client, file: &str, yaml: &str) -> Result<Vec<Found>> {
    let request = v1::LintPlaybookRequest { parent: client.parent(), yaml: yaml.to_owned() };
    let answer =
        client.playbooks().lint_playbook(client.soon(request)).await.map_err(|s| client.error(&s))?.into_inner();
    Ok(answer.findings.into_iter().map(|f| found(file, f)).collect())
}

async fn submit(app: &App, args: &SubmitArgs) -> Result<Exit> {
    let client = app.client().await?;
    let mut stored = Vec::new();
    for path in &args.files {
        let playbook = submit_one(app, &client, path, args.validate_only).await?;
        stored.push(playbook);
    }
    if let [playbook] = stored.as_slice() {
        app.printer.data(playbook, |p| playbooks(std::slice::from_ref(p)).into())?;
    } else {
        let all = v1::ListPlaybooksResponse { playbooks: stored, next_page_token: String::new() };
        app.printer.data(&all, |all| playbooks(&all.playbooks).into())?;
    }
    Ok(Exit::Succeeded)
}

/// Store a document, and tell what is not good with it.
pub(super) async fn submit_one(app: &App, client: &Client, path: &Path, validate_only: bool) -> Result<v1::Playbook> {
    let (file, yaml) = (path.display().to_string(), read(path)?);
    let request = v1::SubmitPlaybookRequest {
        parent: client.parent(),
        yaml: yaml.clone(),
        validate_only,
        ..v1::SubmitPlaybookRequest::default()
    };
    let source = Source::Yaml { file: file.clone(), yaml };
    match client.playbooks().submit_playbook(client.soon(request)).await {
        Ok(answer) => {
            let playbook = answer.into_inner();
            let warnings: Vec<Found> = playbook.warnings.iter().map(|w| found(&file, w.clone())).collect();
            app.printer.findings(&warnings);
            Ok(playbook)
        }
        Err(status) => Err(source.error(client, &status).await),
    }
}

async fn lint(app: &App, args: &LintArgs) -> Result<Exit> {
    let client = if args.offline { None } else { Some(app.client().await?) };
    let mut documents = Vec::new();
    for path in &args.files {
        let file = path.display().to_string();
        let found = match &client {
            Some(client) => findings(client, &file, &read(path)?).await?,
            None => offline::findings(&file, &read(path)?)?,
        };
        documents.push((file, found));
    }
    report(app, args, &documents)
}

/// Print what was found; errors fail the command, warnings only when that is asked for.
fn report(app: &App, args: &LintArgs, documents: &[(String, Vec<Found>)]) -> Result<Exit> {
    let count = |errors: bool| documents.iter().flat_map(|(_, found)| found).filter(|f| f.is_error == errors).count();
    let (errors, warnings) = (count(true), count(false));
    let value = json!({
        "documents": documents.iter().map(|(file, found)| {
            json!({"file": file, "findings": found.iter().map(finding_json).collect::<Vec<_>>()})
        }).collect::<Vec<_>>(),
        "errors": errors,
        "warnings": warnings,
    });
    app.printer.value(&value, || {
        let lines = documents.iter().flat_map(|(file, found)| {
            let none = found.is_empty().then(|| format!("{file}: nothing found"));
            found.iter().flat_map(Found::lines).chain(none).collect::<Vec<_>>()
        });
        View::new(lines.map(Block::Text).collect())
    })?;
    if errors == 0 && (warnings == 0 || !args.strict) {
        return Ok(Exit::Succeeded);
    }
    let message = format!("{}, {}", counted(errors, "error"), counted(warnings, "warning"));
    Err(CliError::failed("PLAYBOOK_INVALID", message).hint("every finding above says where, and what to do"))
}

fn finding_json(found: &Found) -> Value {
    json!({
        "level": if found.is_error { "LEVEL_ERROR" } else { "LEVEL_WARNING" },
        "code": found.code,
        "message": found.message,
        "path": found.path,
        "line": found.line,
        "column": found.column,
        "hint": found.hint,
    })
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

async fn plan(app: &App, args: PlanArgs) -> Result<Exit> {
    let inputs = Value::Object(inputs(&args.inputs)?);
    let (place, plan) = if args.offline {
        offline::plan(&args.playbook, inputs)?
    } else {
        plan_at(&app.client().await?, &args.playbook, inputs).await?
    };
    let warnings: Vec<Found> = plan.warnings.iter().map(|w| found(&place, w.clone())).collect();
    app.printer.findings(&warnings);
    app.printer.data(&plan, plan::view)?;
    Ok(Exit::Succeeded)
}

async fn plan_at(client: &Client, playbook: &PlaybookRef, inputs: Value) -> Result<(String, v1::Plan)> {
    let source = Source::of(client, playbook)?;
    let inputs = to_message(inputs)?;
    let request = v1::PlanPlaybookRequest {
        parent: client.parent(),
        source: Some(match &source {
            Source::Stored(name) => v1::plan_playbook_request::Source::Playbook(name.clone()),
            Source::Yaml { yaml, .. } => v1::plan_playbook_request::Source::Yaml(yaml.clone()),
        }),
        inputs: Some(inputs),
    };
    match client.playbooks().plan_playbook(client.soon(request)).await {
        Ok(answer) => Ok((source.place().to_owned(), answer.into_inner())),
        Err(status) => Err(source.error(client, &status).await),
    }
}

async fn list(app: &App, page: &PageArgs) -> Result<Exit> {
    let client = app.client().await?;
    let mut all = v1::ListPlaybooksResponse::default();
    loop {
        let request = v1::ListPlaybooksRequest {
            parent: client.parent(),
            page_size: page_size(page.limit, all.playbooks.len()),
            page_token: all.next_page_token.clone(),
        };
        let next = client.playbooks().list_playbooks(client.soon(request)).await.map_err(|s| client.error(&s))?;
        let next = next.into_inner();
        all.playbooks.extend(next.playbooks);
        all.next_page_token = next.next_page_token;
        if !goes_on(page.limit, all.playbooks.len(), &all.next_page_token) {
            break;
        }
    }
    app.printer.data(&all, |all| playbooks(&all.playbooks).into())?;
    note_rest(app, &all.next_page_token);
    Ok(Exit::Succeeded)
}

async fn get(app: &App, playbook: &PlaybookName) -> Result<Exit> {
    let client = app.client().await?;
    let request = v1::GetPlaybookRequest { name: resource(&client, playbook) };
    let answer = client.playbooks().get_playbook(client.soon(request)).await.map_err(|s| client.error(&s))?;
    app.printer.data(&answer.into_inner(), |p| View::new(vec![Block::Text(p.yaml.trim_end().to_owned())]))?;
    Ok(Exit::Succeeded)
}

fn resource(client: &Client, playbook: &PlaybookName) -> String {
    let name = client.name("playbooks", &playbook.name);
    playbook.revision.as_ref().map_or_else(|| name.clone(), |revision| format!("{name}@{revision}"))
}

fn playbooks(playbooks: &[v1::Playbook]) -> Table {
    Table::new(&["PLAYBOOK", "REVISION", "OWNER", "SUBMITTED", "BY"], "no playbooks").rows(playbooks.iter().map(|p| {
        vec![
            p.playbook_id.clone(),
            p.revision.clone(),
            p.owner.clone(),
            time(p.create_time.as_ref()),
            p.creator.clone(),
        ]
    }))
}
