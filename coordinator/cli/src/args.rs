//! The command line: noun, then verb. What is typed here wins over the environment, which wins over the configuration file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

mod nats;
mod playbook;
mod run;
mod server;

pub(crate) use nats::{NatsCommand, NatsConfigArgs};
pub(crate) use playbook::{InputArgs, LintArgs, PlanArgs, PlaybookCommand, PlaybookName, PlaybookRef, SubmitArgs};
pub(crate) use run::{
    Answer, EventsArgs, LogsArgs, ReasonArgs, ResolveArgs, RunCommand, RunListArgs, SignalArgs, StartArgs, StepCommand,
    UntilArgs,
};
pub(crate) use server::{
    AgentCommand, AgentRunArgs, CoordinatorCommand, DevArgs, DoctorArgs, JournalArgs, JournalCommand, LogFormat, Role,
    ServeArgs,
};

/// Muster drives infrastructure remediation and deployment: playbooks in, milestones out.
#[derive(Debug, Parser)]
#[command(name = "muster", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 succeeded, 1 failed, 2 usage, 3 waiting for a person, 4 timed out.
Data goes to stdout, progress and errors to stderr. NO_COLOR turns colours off.
Options of these names are also read from the environment: MUSTER_SERVER, MUSTER_TOKEN,
MUSTER_TOKEN_FILE, MUSTER_CA, MUSTER_NAMESPACE, MUSTER_TIMEOUT, MUSTER_OUTPUT, MUSTER_CONFIG.";

/// Options that every command knows.
#[derive(Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct GlobalArgs {
    /// Where the coordinator answers [default: http://127.0.0.1:7400].
    #[arg(long, global = true, env = "MUSTER_SERVER", value_name = "URL", hide_env = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    /// Bearer token. A file is safer: other users can see command lines.
    #[arg(long, global = true, env = "MUSTER_TOKEN", value_name = "TOKEN", hide_env = true)]
    #[serde(skip)]
    pub(crate) token: Option<String>,
    /// File that holds the bearer token [default: admin.token of the local data directory, for a local server].
    #[arg(long, global = true, env = "MUSTER_TOKEN_FILE", value_name = "FILE", hide_env = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate authority (PEM) that signed the server's certificate [default: the system's].
    #[arg(long, global = true, env = "MUSTER_CA", value_name = "FILE", hide_env = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// Namespace of playbooks, runs and agents [default: default].
    #[arg(long, global = true, env = "MUSTER_NAMESPACE", value_name = "NAME", hide_env = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// Longest time the command may take, such as 30s or 5m [default: 30s; no limit where a run is followed].
    #[arg(long, global = true, env = "MUSTER_TIMEOUT", value_name = "DURATION", hide_env = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<String>,
    /// How data is printed [default: table].
    #[arg(short, long, global = true, env = "MUSTER_OUTPUT", value_name = "FORMAT", hide_env = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<Format>,
    /// Configuration file [default: $XDG_CONFIG_HOME/muster/config.toml, where there is one].
    #[arg(long, global = true, env = "MUSTER_CONFIG", value_name = "FILE", hide_env = true)]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// Canonical protobuf JSON (camelCase), one document; streams: one object a line.
    Json,
    /// The same as YAML.
    Yaml,
}

/// What is done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process, in memory: for a first look and for writing playbooks.
    Dev(DevArgs),
    /// Run a coordinator: durable journal, NATS, gRPC.
    Serve(ServeArgs),
    /// Agents: run one, list them, drain one.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// The coordinator: let it begin nothing new, see what is at work.
    #[command(subcommand)]
    Coordinator(CoordinatorCommand),
    /// Playbooks: submit, lint, plan, list.
    #[command(subcommand)]
    Playbook(PlaybookCommand),
    /// Runs: start, follow, stop, and find out what they wait for.
    #[command(subcommand)]
    Run(RunCommand),
    /// Steps: try again, or answer their questions.
    #[command(subcommand)]
    Step(StepCommand),
    /// Milestones: what is reached, at risk, missed.
    #[command(subcommand)]
    Milestone(MilestoneCommand),
    /// Tokens: who may use the API.
    #[command(subcommand)]
    Token(TokenCommand),
    /// NATS: write a configuration of nats-server, with a key for each agent.
    #[command(subcommand)]
    Nats(NatsCommand),
    /// Look at what a coordinator needs, whether it runs or not: NATS, disk, clock, files, certificates.
    ///
    /// Each check says what is wrong and how to mend it. It ends with 1 if there is a problem; a warning is none. In the data
    /// directory nothing is changed; the time of a sync is measured with a file that is deleted.
    Doctor(DoctorArgs),
    /// Measure this machine: steps per second, latency, syncs, beside what it can do at best.
    ///
    /// A figure that does not reach its floor is marked, and named in the last line. The exit code is 0 all the same: a floor is for a
    /// person to judge.
    Bench(crate::bench::BenchArgs),
    /// The other side of a limit's measurement.
    #[command(hide = true)]
    BenchPeer(crate::bench::PeerArgs),
    /// The journal of a stopped coordinator: verify, head, export, restored.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Print the completion script of a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Milestones.
#[derive(Debug, Subcommand)]
pub(crate) enum MilestoneCommand {
    /// List milestones, of one run or of all.
    List {
        /// Only of this run.
        #[arg(value_name = "RUN")]
        run: Option<String>,
        #[command(flatten)]
        page: PageArgs,
    },
}

/// Tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print it, once. Only its hash is kept.
    Create {
        /// Who will use it: person/<id> or service/<id>.
        #[arg(value_name = "PRINCIPAL")]
        principal: String,
        /// What it allows.
        #[arg(long, value_enum)]
        role: TokenRole,
        /// How long it is valid, such as 720h; without it: until revoked.
        #[arg(long, value_name = "DURATION")]
        expires_in: Option<String>,
    },
    /// Make a token useless, at once.
    Revoke {
        /// The token's id, as `token create` printed it, or `tokens/ID`, as `-o json` names it.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// List tokens, without their secrets.
    List,
}

/// What a token allows; each includes the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenRole {
    /// Read.
    Viewer,
    /// Read, submit, start, answer.
    Operator,
    /// What an agent needs.
    Agent,
    /// Everything.
    Admin,
}

/// How much of a list.
#[derive(Debug, Args)]
pub(crate) struct PageArgs {
    /// At most this many; 0: all.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) limit: usize,
}
