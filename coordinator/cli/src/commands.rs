//! What each command does. All of them talk to a coordinator through the API, but for those that are one, or an agent, or
//! that read the files of a stopped one.

use std::{io::Read as _, path::Path, time::Duration};

use clap::CommandFactory as _;
use muster_proto::v1;
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use crate::{
    args::{AgentCommand, Cli, Command, InputArgs},
    client::Client,
    config::{Settings, Typed},
    error::{CliError, Exit, Found, Result},
    printer::Printer,
};

mod agent;
mod agent_run;
mod bench;
mod coordinator;
mod dev;
mod doctor;
mod follow;
mod journal;
mod milestone;
mod nats;
mod playbook;
mod run;
mod serve;
mod step;
mod token;

/// How long the process waits for threads that are at work on a disk when everything else has ended.
const LEFT_BEHIND_WAIT: Duration = Duration::from_secs(3);

/// What every command has.
pub(crate) struct App {
    pub(crate) settings: Settings,
    pub(crate) printer: Printer,
    token: Option<SecretString>,
}

impl App {
    /// A connection to the coordinator.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(&self.settings, self.token.clone()).await
    }
}

/// Do what was asked, say why not, and how it ended.
pub(crate) fn main(cli: Cli) -> Exit {
    let format = cli.global.output.unwrap_or_default();
    let mut app = match settings(&cli) {
        Ok(settings) => App { printer: Printer::new(settings.output), settings, token: None },
        Err(error) => {
            Printer::new(format).error(&error);
            return error.exit;
        }
    };
    app.token = cli.global.token.filter(|token| !token.is_empty()).map(SecretString::from);
    let printer = app.printer.clone();
    run(app, cli.command).unwrap_or_else(|error| {
        printer.error(&error);
        error.exit
    })
}

fn settings(cli: &Cli) -> Result<Settings> {
    let typed = Typed::global(&cli.global);
    let typed = match &cli.command {
        Command::Agent(AgentCommand::Run(args)) => typed.agent(args)?,
        Command::Serve(args) => typed.serve(args),
        Command::Doctor(args) => typed.doctor(args),
        Command::Dev(_)
        | Command::Agent(_)
        | Command::Coordinator(_)
        | Command::Playbook(_)
        | Command::Run(_)
        | Command::Step(_)
        | Command::Milestone(_)
        | Command::Token(_)
        | Command::Nats(_)
        | Command::Bench(_)
        | Command::BenchPeer(_)
        | Command::Journal(_)
        | Command::Completions { .. } => typed,
    };
    Settings::load(&typed)
}

fn run(app: App, command: Command) -> Result<Exit> {
    let runtime = Runtime::new().map_err(|e| CliError::failed("RUNTIME_FAILED", format!("can't start: {e}")))?;
    // Only ring is built in; a second call can only find the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = runtime.block_on(Box::pin(async move {
        match command {
            Command::Dev(args) => Box::pin(dev::run(&app, args)).await,
            Command::Serve(args) => Box::pin(serve::run(&app, args.accept_loss)).await,
            Command::Agent(command) => agent::run(&app, command).await,
            Command::Coordinator(command) => coordinator::run(&app, command).await,
            Command::Playbook(command) => playbook::run(&app, command).await,
            Command::Run(command) => run::run(&app, command).await,
            Command::Step(command) => step::run(&app, command).await,
            Command::Milestone(command) => milestone::run(&app, command).await,
            Command::Token(command) => token::run(&app, command).await,
            Command::Doctor(_) => Box::pin(doctor::run(&app)).await,
            Command::Nats(command) => nats::run(&app, &command),
            Command::Bench(args) => bench::run(&app, &args).await,
            Command::BenchPeer(args) => bench::peer(&args).await,
            Command::Journal(command) => journal::run(&app, &command),
            Command::Completions { shell } => completions(&app, shell),
        }
    }));
    // A thread that a disk keeps must not keep the process.
    runtime.shutdown_timeout(LEFT_BEHIND_WAIT);
    done
}

fn completions(app: &App, shell: clap_complete::Shell) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "muster", &mut script);
    app.printer.text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Succeeded)
}

/// A document; `-` is stdin.
fn read(path: &Path) -> Result<String> {
    if path.as_os_str() != "-" {
        return std::fs::read_to_string(path).map_err(|e| CliError::file(path, "read", &e));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| CliError::file(path, "read", &e))?;
    Ok(text)
}

/// The inputs that were given; what is missing or wrong is for the playbook's schema to say.
fn inputs(args: &InputArgs) -> Result<Map<String, Value>> {
    let mut inputs = match &args.inputs {
        Some(path) => object(path)?,
        None => Map::new(),
    };
    for input in &args.input {
        let bad = |why: &str| {
            CliError::usage("INPUT_INVALID", format!("--input {input:?}: {why}")).hint(
                "name=text, or name:=JSON for anything else than text: --input domain=example.org --input count:=3",
            )
        };
        let (name, value) = input.split_once('=').ok_or_else(|| bad("there is no ="))?;
        let (name, value) = match name.strip_suffix(':') {
            Some(name) => (name, serde_json::from_str(value).map_err(|e| bad(&format!("no JSON: {e}")))?),
            None => (name, Value::from(value)),
        };
        inputs.insert(name.to_owned(), value);
    }
    Ok(inputs)
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    let bad = |why: String| CliError::usage("INPUT_INVALID", why).at(path.display().to_string());
    match serde_saphyr::from_str(&read(path)?).map_err(|e| bad(e.to_string()))? {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(bad("the file holds no object".to_owned()))
        }
    }
}

/// A finding of the API's, of a document that was read here.
fn found(file: &str, finding: v1::Finding) -> Found {
    Found {
        file: file.to_owned(),
        is_error: finding.level() == v1::finding::Level::Error,
        code: finding.code,
        message: finding.message,
        path: finding.path,
        line: finding.line,
        column: finding.column,
        hint: finding.hint,
    }
}

/// How many to ask for in one page, to get `limit` (0: all) in as few as possible.
fn page_size(limit: usize, have: usize) -> i32 {
    let wanted = if limit == 0 { 1_000 } else { limit.saturating_sub(have).min(1_000) };
    i32::try_from(wanted).unwrap_or(1_000)
}

/// Whether another page is needed.
fn goes_on(limit: usize, have: usize, next_page_token: &str) -> bool {
    !next_page_token.is_empty() && (limit == 0 || have < limit)
}

/// Tell a person that there is more.
fn note_rest(app: &App, next_page_token: &str) {
    if !next_page_token.is_empty() {
        app.printer.note("there are more: --limit 0 prints all");
    }
}
