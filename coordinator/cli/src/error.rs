//! What a command says when it could not be done: reason, what happened, where, and what to do next.

use std::{error::Error as StdError, fmt, path::Path, process::ExitCode, time::Duration};

use muster_engine::playbook::{Finding, Level};
use tonic::Code;
use tonic_types::StatusExt as _;

/// How a command ended, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It is done; of a run: it succeeded.
    Succeeded,
    /// It is not done; of a run: it failed or was cancelled.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// A run waits for a person.
    WaitingForPerson,
    /// Not in the time that was given.
    TimedOut,
}

impl Exit {
    fn number(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::WaitingForPerson => 3,
            Self::TimedOut => 4,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CliError {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// `UPPER_SNAKE_CASE`, stable; the reason of the API's `ErrorInfo` where the coordinator said no.
    pub(crate) reason: String,
    /// What happened.
    pub(crate) message: String,
    /// Where: a file with line and column, an address, a run.
    pub(crate) place: Option<Box<str>>,
    /// What to do next; one thing a line.
    pub(crate) hint: Option<String>,
    /// Of a bad playbook.
    pub(crate) findings: Vec<Found>,
}

/// A finding with the document it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The file as it was typed; `-` for stdin.
    pub(crate) file: String,
    /// An error stops the document.
    pub(crate) is_error: bool,
    /// `UPPER_SNAKE_CASE`.
    pub(crate) code: String,
    /// What is wrong.
    pub(crate) message: String,
    /// `spec.phases[0].steps[1].timeout`
    pub(crate) path: String,
    /// From 1; 0: not known.
    pub(crate) line: u32,
    /// From 1; 0: not known.
    pub(crate) column: u32,
    /// What to do.
    pub(crate) hint: String,
}

impl Found {
    /// Of the engine's own.
    pub(crate) fn of(file: &str, finding: Finding) -> Self {
        Self {
            file: file.to_owned(),
            is_error: finding.level == Level::Error,
            code: finding.code.to_owned(),
            message: finding.message,
            path: finding.path,
            line: finding.line,
            column: finding.column,
            hint: finding.hint,
        }
    }

    /// `file:line:column`, as far as it is known.
    pub(crate) fn place(&self) -> String {
        match (self.file.is_empty(), self.line) {
            (true, 0) => String::new(),
            (false, 0) => self.file.clone(),
            (true, line) => format!("{line}:{}", self.column),
            (false, line) => format!("{}:{line}:{}", self.file, self.column),
        }
    }

    /// As editors and CI understand it: `file:line:column: error CODE message`, then path and hint.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut head = self.place();
        if !head.is_empty() {
            head += ": ";
        }
        head += if self.is_error { "error" } else { "warning" };
        if !self.code.is_empty() {
            head = format!("{head} {}", self.code);
        }
        let more = [("at", &self.path), ("hint", &self.hint)];
        let more =
            more.into_iter().filter(|(_, text)| !text.is_empty()).map(|(what, text)| format!("  {what}: {text}"));
        std::iter::once(format!("{head} {}", self.message)).chain(more).collect()
    }
}

/// The result of a command.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    /// It could not be done.
    pub(crate) fn failed(reason: &str, message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            reason: reason.to_owned(),
            message: message.into(),
            place: None,
            hint: None,
            findings: Vec::new(),
        }
    }

    /// It was asked for in a wrong way.
    pub(crate) fn usage(reason: &str, message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::failed(reason, message) }
    }

    /// A file could not be read or written; the command line named a wrong one.
    pub(crate) fn file(path: &Path, verb: &str, error: &std::io::Error) -> Self {
        Self::usage("FILE_UNREADABLE", format!("can't {verb} the file: {error}")).at(path.display().to_string())
    }

    /// Say where.
    pub(crate) fn at(mut self, place: impl Into<Box<str>>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Say what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The server has said nothing for as long as it was given: nothing is known, and it may have heard.
    pub(crate) fn unanswered(server: &str, limit: Duration) -> Self {
        let limit = jiff::SignedDuration::try_from(limit).unwrap_or_default();
        let message = format!("no answer came from the server within {limit:#}");
        let hint = "give more time with --timeout, or look at the server's log; what it was asked to do may be done";
        Self { exit: Exit::TimedOut, ..Self::failed("TIMED_OUT", message) }.at(server).hint(hint)
    }

    /// What the coordinator said, or why it could not be asked within `limit`.
    pub(crate) fn from_status(status: &tonic::Status, server: &str, limit: Duration) -> Self {
        if is_out_of_time(status) {
            return Self::unanswered(server, limit);
        }
        if let Some(broken) = broken(status, server) {
            return broken;
        }
        let (said, mut metadata) =
            status.get_details_error_info().map(|info| (info.reason, info.metadata)).unwrap_or_default();
        let of_document = metadata.contains_key("findings");
        let code = status.code();
        let exit = if code == Code::DeadlineExceeded {
            Exit::TimedOut
        } else if code == Code::InvalidArgument && !of_document {
            Exit::Usage
        } else {
            Exit::Failed
        };
        let reason = if said.is_empty() { reason_of(status.code()) } else { &said };
        let mut error = Self { exit, ..Self::failed(reason, status.message()) };
        error.findings = if of_document { findings_of(status) } else { Vec::new() };
        error.hint = metadata.remove("hint").filter(|h| !h.is_empty());
        error.hint = error.hint.or_else(|| usual_hint(status.code()).map(str::to_owned));
        if matches!(status.code(), Code::Unavailable | Code::Unauthenticated | Code::DeadlineExceeded) {
            error.place = Some(server.into());
        }
        error
    }
}

/// The time was over on this side: tonic calls that a cancellation.
fn is_out_of_time(status: &tonic::Status) -> bool {
    let mut cause = StdError::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The connection was there and broke: such a status is made on this side, and only those have a source.
fn broken(status: &tonic::Status, server: &str) -> Option<CliError> {
    let error = StdError::source(status)?;
    if !matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled) {
        return None;
    }
    let hint = if server.starts_with("http://") {
        "use https:// if the server has TLS"
    } else {
        "try again, or look at the server's log"
    };
    Some(CliError::failed("CONNECTION_BROKEN", chain(error)).at(server).hint(hint))
}

fn reason_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "TIMED_OUT",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn usual_hint(code: Code) -> Option<&'static str> {
    if code == Code::Unauthenticated {
        return Some("give a token with --token-file or MUSTER_TOKEN; `muster token create` makes one");
    }
    if code == Code::PermissionDenied {
        return Some("ask an admin for a token with the role that this needs");
    }
    if code == Code::Unimplemented {
        return Some("server and command line are of different versions: compare `muster --version` on both sides");
    }
    (code == Code::DeadlineExceeded).then_some("give more time with --timeout, or look at the server's log")
}

fn findings_of(status: &tonic::Status) -> Vec<Found> {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|v| found(v.field, v.reason, &v.description)).collect()
}

/// A description is `line 7, column 11: error: what (hint: what to do)`; what does not look like this is kept whole.
fn found(path: String, code: String, description: &str) -> Found {
    let (place, rest) = description
        .strip_prefix("line ")
        .and_then(|d| d.split_once(": "))
        .and_then(|(place, rest)| Some((place.split_once(", column ")?, rest)))
        .map_or(((0, 0), description), |((line, column), rest)| {
            ((line.parse().unwrap_or(0), column.parse().unwrap_or(0)), rest)
        });
    let (is_error, rest) = match rest.strip_prefix("warning: ") {
        Some(rest) => (false, rest),
        None => (true, rest.strip_prefix("error: ").unwrap_or(rest)),
    };
    let (message, hint) =
        rest.strip_suffix(')').and_then(|r| r.rsplit_once(" (hint: ")).map_or((rest, ""), |parts| parts);
    Found {
        file: String::new(),
        is_error,
        code,
        message: message.to_owned(),
        path,
        line: place.0,
        column: place.1,
        hint: hint.to_owned(),
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.reason, self.message)
    }
}

impl std::error::Error for CliError {}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    /// Whoever looks at the clock first: this side, or the server with a status of its own.
    #[test]
    fn an_answer_that_does_not_come_in_time_is_no_broken_connection() {
        let here = tonic::Status::from_error(Box::new(Late(tonic::TimeoutExpired(()))));
        assert_eq!(here.code(), Code::Cancelled, "the case is made as tonic makes it");
        let error = CliError::from_status(&here, "http://localhost:7400", LIMIT);
        assert_eq!((error.exit, error.reason.as_str()), (Exit::TimedOut, "TIMED_OUT"));
        assert_eq!(error.message, "no answer came from the server within 3s");
        let theirs = tonic::Status::deadline_exceeded("the caller's deadline came before the answer");
        let error = CliError::from_status(&theirs, "http://localhost:7400", LIMIT);
        assert_eq!((error.exit, error.message.as_str()), (Exit::TimedOut, theirs.message()));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("transport error")]
    struct Late(#[source] tonic::TimeoutExpired);

    /// A connection that breaks is told by its transport in one of three codes, whichever task sees it first.
    #[test]
    fn a_broken_connection_is_named_and_the_servers_own_word_is_left() {
        for code in [tonic::Code::Unknown, tonic::Code::Internal, tonic::Code::Cancelled] {
            let here = tonic::Status::from_error(Box::new(Transport(tonic::Status::new(code, "it broke"))));
            assert_eq!(here.code(), code);
            let error = CliError::from_status(&here, "http://localhost:7400", LIMIT);
            assert_eq!(
                (error.reason.as_str(), error.place.as_deref()),
                ("CONNECTION_BROKEN", Some("http://localhost:7400"))
            );
            let theirs = CliError::from_status(&tonic::Status::new(code, "no"), "http://localhost:7400", LIMIT);
            assert_ne!(theirs.reason, "CONNECTION_BROKEN");
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the transport has ended")]
    struct Transport(#[source] tonic::Status);

    #[test]
    fn a_description_is_taken_apart() {
        let it = found("spec".into(), "KEY_UNKNOWN".into(), "line 7, column 11: error: no such key (hint: spell it)");
        assert_eq!((it.line, it.column, it.is_error), (7, 11, true));
        assert_eq!((it.message.as_str(), it.hint.as_str()), ("no such key", "spell it"));
        let it = found(String::new(), String::new(), "warning: nobody offers tls.renew");
        assert_eq!((it.line, it.is_error, it.message.as_str()), (0, false, "nobody offers tls.renew"));
        let it = found(String::new(), String::new(), "line of fire: odd (as it is)");
        assert_eq!(it.message, "line of fire: odd (as it is)");
    }
}
