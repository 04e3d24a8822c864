//! `muster run …` and `muster step …`

use clap::{Args, Subcommand, ValueEnum};

use super::{InputArgs, PageArgs, PlaybookRef};

/// Runs.
#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    /// Start a run and print it.
    Start(StartArgs),
    /// List runs, the newest first.
    List(RunListArgs),
    /// Print a run: phases, steps, milestones.
    Get {
        /// The run's id.
        #[arg(value_name = "RUN")]
        run: String,
    },
    /// Follow a run to its end, live. The exit code is the run's.
    Watch {
        /// The run's id.
        #[arg(value_name = "RUN")]
        run: String,
        #[command(flatten)]
        until: UntilArgs,
    },
    /// Wait for a run's end, silently. The exit code is the run's.
    Wait {
        /// The run's id.
        #[arg(value_name = "RUN")]
        run: String,
        #[command(flatten)]
        until: UntilArgs,
    },
    /// Start nothing new; what is at work goes on.
    Pause(ReasonArgs),
    /// Go on after a pause; an inconclusive gate is judged again.
    Resume(ReasonArgs),
    /// Tell a run of something that happened outside: steps that wait for the signal go on.
    Signal(SignalArgs),
    /// Stop a run. Nothing is undone unless the playbook says `onCancel: undo`.
    Cancel {
        #[command(flatten)]
        reason: ReasonArgs,
        /// Do not wait for attempts that may still be at work. An agent that answers is told to stop what it holds of them.
        #[arg(long)]
        force: bool,
    },
    /// Say for what a run waits, on whom, since when, what happens next and when.
    Explain {
        /// The run's id.
        #[arg(value_name = "RUN")]
        run: String,
    },
    /// Print the journalled events of a run.
    Events(EventsArgs),
    /// Print what attempts of a run have written to their logs.
    Logs(LogsArgs),
}

/// `run start`
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// A file (- is stdin), or the name of a stored playbook, or name@sha256:… for one revision.
    #[arg(value_name = "PLAYBOOK")]
    pub(crate) playbook: PlaybookRef,
    #[command(flatten)]
    pub(crate) inputs: InputArgs,
    /// Why, for people; kept with the run.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) note: String,
    /// Refuse to start if the plan has become another one.
    #[arg(long, value_name = "sha256:…")]
    pub(crate) plan_digest: Option<String>,
    /// Check everything, start nothing.
    #[arg(long)]
    pub(crate) validate_only: bool,
    /// A UUID: the same one again gives the same run, not another one.
    #[arg(long, value_name = "UUID")]
    pub(crate) request_id: Option<String>,
    /// Follow the run to its end; the exit code is the run's.
    #[arg(long, conflicts_with = "validate_only")]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) until: UntilArgs,
}

/// Until when a run is followed.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct UntilArgs {
    /// Stay while the run waits for a person, instead of ending with exit code 3.
    #[arg(long)]
    pub(crate) stay: bool,
}

/// `run list`
#[derive(Debug, Args)]
pub(crate) struct RunListArgs {
    /// Only in these states, such as running or waiting.
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub(crate) state: Vec<String>,
    /// Only those that are stuck: that wait most urgently for a person to answer or to act, or for an agent to come, to come back
    /// or to have a free slot.
    #[arg(long)]
    pub(crate) waiting: bool,
    /// Only of this playbook.
    #[arg(long, value_name = "NAME")]
    pub(crate) playbook: Option<String>,
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

/// `run signal`
#[derive(Debug, Args)]
pub(crate) struct SignalArgs {
    /// The run's id.
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// The signal's name, as the playbook says under `wait`.
    #[arg(value_name = "SIGNAL")]
    pub(crate) signal: String,
    /// What comes with it, as JSON: the output of the steps that wait for it.
    #[arg(long, value_name = "JSON")]
    pub(crate) payload: Option<String>,
    /// Why, for people; journalled. May be left out.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
}

/// A command on a run, and why.
#[derive(Debug, Args)]
pub(crate) struct ReasonArgs {
    /// The run's id.
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Why, for people; journalled.
    #[arg(long)]
    pub(crate) reason: String,
}

/// `run events`
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// The run's id.
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Only events after this number.
    #[arg(long, default_value_t = 0, value_name = "SEQ")]
    pub(crate) after: u64,
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

/// `run logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The run's id.
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Only of this step.
    #[arg(long, value_name = "STEP")]
    pub(crate) step: Option<String>,
    /// Only of attempts with this number.
    #[arg(long, value_name = "N")]
    pub(crate) attempt: Option<u32>,
    /// Go on with what comes, until the run ends.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// At most this many lines; 0: all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) limit: usize,
}

/// Steps.
#[derive(Debug, Subcommand)]
pub(crate) enum StepCommand {
    /// Try a step again that failed or that asks.
    Retry {
        /// The run's id.
        #[arg(value_name = "RUN")]
        run: String,
        /// The step's id.
        #[arg(value_name = "STEP")]
        step: String,
        /// Why, for people; journalled.
        #[arg(long)]
        reason: String,
    },
    /// Answer the question of a step.
    Resolve(ResolveArgs),
}

/// `step resolve`
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// The run's id.
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// The step's id.
    #[arg(value_name = "STEP")]
    pub(crate) step: String,
    /// The answer.
    #[arg(value_enum, value_name = "ANSWER")]
    pub(crate) answer: Answer,
    /// Why, for people; journalled.
    #[arg(long)]
    pub(crate) reason: String,
    /// The step's output as a JSON object, with `succeeded`.
    #[arg(long, value_name = "JSON")]
    pub(crate) step_output: Option<String>,
}

/// A person's answer about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Answer {
    /// It is done (for an undo: it is undone).
    Succeeded,
    /// It has failed for good.
    Failed,
    /// Try again.
    Retry,
    /// Leave it out.
    Skip,
}
