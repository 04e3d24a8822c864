//! What runs as a process of its own: `dev`, `serve`, `agent run`; and `journal`, which reads what `serve` wrote.

use std::{num::NonZeroU32, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::PageArgs;

/// `dev`
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Playbooks to submit, start and follow to their end, one after another; without any it stays.
    #[arg(value_name = "PLAYBOOK")]
    pub(crate) playbooks: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) inputs: super::InputArgs,
    /// Where the API answers, without tokens, on a loopback address only; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub(crate) listen: std::net::SocketAddr,
    /// Programs that actions may start, as an agent's allow file has them [default: a few harmless ones].
    #[arg(long, value_name = "FILE")]
    pub(crate) allow: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) until: super::UntilArgs,
    /// Which lines are logged on stderr.
    #[arg(
        long,
        env = "MUSTER_LOG",
        default_value = "warn,muster_coordinator::api=error",
        value_name = "FILTER",
        hide_env_values = true
    )]
    pub(crate) log: String,
}

/// `serve`
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct ServeArgs {
    /// Where journal, store and first token live [default: $XDG_STATE_HOME/muster].
    #[arg(long, env = "MUSTER_DATA_DIR", value_name = "FOLDER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the API answers [default: 127.0.0.1:7400].
    #[arg(long, env = "MUSTER_LISTEN", value_name = "ADDRESS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<String>,
    /// Where /metrics answers Prometheus, without a token; without it: nowhere.
    #[arg(long, env = "MUSTER_METRICS_LISTEN", value_name = "ADDRESS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_listen: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) bus: BusArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) events: EventsArgs,
    /// Certificate chain of the API (PEM); with --tls-key.
    #[arg(long, env = "MUSTER_TLS_CERT", value_name = "FILE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the API's certificate (PEM).
    #[arg(long, env = "MUSTER_TLS_KEY", value_name = "FILE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Answer on an address that others can reach without TLS, for a proxy that adds it.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) clear_text: bool,
    /// Take every request without a token, as an admin's. For a machine of one's own.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) insecure: bool,
    /// Keep no more than this of what attempts write to their logs, in MiB; the oldest is deleted, 0 keeps nothing
    /// [default: 1024].
    #[arg(long, env = "MUSTER_RUN_LOGS_MIB", value_name = "MIB", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_logs_mib: Option<u32>,
    /// Delete the log of a run so many days after its last line [default: 30].
    #[arg(long, env = "MUSTER_RUN_LOGS_DAYS", value_name = "DAYS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_logs_days: Option<NonZeroU32>,
    /// Keep runs that have ended in the journal for so many days at least; 0 keeps everything [default: 365].
    #[arg(long, env = "MUSTER_JOURNAL_DAYS", value_name = "DAYS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) journal_days: Option<u32>,
    /// Go on without the records of the journal that are lost (see which: muster journal verify); every open run then waits for
    /// a person.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) accept_loss: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) log: LogArgs,
}

/// What outsiders are told.
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct EventsArgs {
    /// Publish no events for outsiders; without it they are put into the stream MUSTER_EVENTS, where NATS has JetStream.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) no_events: bool,
    /// How long events are kept; older ones are not published again [default: 720h].
    #[arg(long, env = "MUSTER_EVENTS_KEEP", value_name = "DURATION", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) events_keep: Option<String>,
}

/// `doctor`
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct DoctorArgs {
    /// The coordinator's data directory [default: as for serve].
    #[arg(long, env = "MUSTER_DATA_DIR", value_name = "FOLDER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) bus: BusArgs,
    /// Certificate chain of the API (PEM), as serve is given it.
    #[arg(long, env = "MUSTER_TLS_CERT", value_name = "FILE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the API's certificate (PEM).
    #[arg(long, env = "MUSTER_TLS_KEY", value_name = "FILE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// How NATS is reached.
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct BusArgs {
    /// NATS servers, separated by commas [default: nats://127.0.0.1:4222].
    #[arg(long, env = "MUSTER_NATS", value_name = "URLS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nats: Option<String>,
    /// File that holds the NKEY seed for NATS.
    #[arg(long, env = "MUSTER_NATS_NKEY", value_name = "FILE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nats_nkey: Option<PathBuf>,
    /// Certificate authority (PEM) that signed the certificate of NATS; with it nothing is said without TLS
    /// [default: the system's].
    #[arg(long, env = "MUSTER_NATS_CA", value_name = "FILE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nats_ca: Option<PathBuf>,
}

/// What is logged, on stderr.
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct LogArgs {
    /// text or json [default: text].
    #[arg(long, env = "MUSTER_LOG_FORMAT", value_name = "FORMAT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log_format: Option<LogFormat>,
    /// Which lines: a level, or directives such as info,muster_coordinator=debug [default: info].
    #[arg(long, env = "MUSTER_LOG", value_name = "FILTER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Agents.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run an agent with the actions of a role.
    Run(Box<AgentRunArgs>),
    /// List agents: state, slots, actions.
    List {
        #[command(flatten)]
        page: PageArgs,
    },
    /// Print an agent: labels, instance, actions.
    Get {
        /// The agent's name.
        #[arg(value_name = "AGENT")]
        agent: String,
    },
    /// Give an agent nothing new: it finishes what it holds, then its process ends.
    Drain {
        /// The agent's name.
        #[arg(value_name = "AGENT")]
        agent: String,
    },
    /// Take a lost agent that will not come back from the lists.
    Forget {
        /// The agent's name.
        #[arg(value_name = "AGENT")]
        agent: String,
    },
}

/// The coordinator.
#[derive(Debug, Subcommand)]
pub(crate) enum CoordinatorCommand {
    /// Print whether it drains, by whom and since when, and what is at work.
    Get,
    /// Begin nothing new: runs can't be started, and no attempt is given to an agent; what is at work ends.
    ///
    /// It lasts until `resume`, or until the coordinator is started again.
    Drain {
        /// Wait until nothing is at work; --timeout bounds that.
        #[arg(long)]
        wait: bool,
    },
    /// Give out work again.
    Resume,
}

/// `agent run`
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct AgentRunArgs {
    /// Which actions it has.
    #[arg(long, env = "MUSTER_AGENT_ROLE", value_enum, hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<Role>,
    /// Its name, [a-z0-9_-]{1,63} [default: <role>-1].
    #[arg(long, env = "MUSTER_AGENT_NAME", value_name = "NAME", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// A label that steps may ask for; again for more.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    #[serde(skip)]
    pub(crate) labels: Vec<String>,
    /// Where it works; steps of a host-scoped action stay there [default: its name].
    #[arg(long, env = "MUSTER_AGENT_HOST", value_name = "LABEL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<String>,
    /// How many attempts at once [default: 4].
    #[arg(long, env = "MUSTER_AGENT_SLOTS", value_name = "N", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slots: Option<u32>,
    /// Where its lock file and spool live [default: $XDG_STATE_HOME/muster-agent/<name>].
    #[arg(long, env = "MUSTER_AGENT_DATA_DIR", value_name = "FOLDER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Programs that actions may start, pinned by path and sha256 [default: none].
    #[arg(long, env = "MUSTER_AGENT_ALLOW", value_name = "FILE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allow: Option<PathBuf>,
    /// Folder whose files are the secrets that actions may use, each called as its file is [default: none].
    #[arg(long, env = "MUSTER_AGENT_SECRETS", value_name = "FOLDER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secrets: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) bus: BusArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) log: LogArgs,
}

/// Which actions an agent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Servers and what runs on them.
    Infra,
    /// Packages, test suites, load.
    Integration,
    /// Releases.
    Deployment,
    /// Actions that do nothing, for figures.
    Bench,
}

impl Role {
    /// As steps ask for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Infra => "infra",
            Self::Integration => "integration",
            Self::Deployment => "deployment",
            Self::Bench => "bench",
        }
    }
}

/// The journal of a stopped coordinator.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Read everything and check every hash; damage is named with its place and its streams.
    Verify(JournalArgs),
    /// Print the end of what is on disk.
    Head(JournalArgs),
    /// Print all records as JSON lines.
    Export {
        #[command(flatten)]
        journal: JournalArgs,
        /// Only this stream, such as run/<id>.
        #[arg(long, value_name = "STREAM")]
        stream: Option<String>,
    },
    /// Say that the data directory is a backup that was put back: at the next start every open run waits for a person.
    ///
    /// What was done after the backup is not in it, and nothing in its files shows that. So runs would go on from a state that
    /// has passed, and agents would take new attempts for ones that they have done. Once for each restore, before the first start;
    /// not after a stop, a crash or a move.
    Restored(JournalArgs),
}

/// Where the journal is.
#[derive(Debug, Args)]
pub(crate) struct JournalArgs {
    /// The coordinator's data directory [default: as for serve].
    #[arg(long, env = "MUSTER_DATA_DIR", value_name = "FOLDER", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,
}
