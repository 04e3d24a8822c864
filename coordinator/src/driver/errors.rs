//! Errors of [`crate::control`], made in one place so that a code always comes with the same class and hint.

use muster_engine::{
    ids::{AgentName, Digest, RunId, StepId},
    playbook::{Finding, Level},
    run::Rejection,
};

use crate::{
    control::{ControlError, ControlErrorKind, DrainView},
    journal::{AppendError, ReadError},
    logs::PageError,
    store::StoreError,
};

/// What lists are answered while the store can't follow the log.
pub(super) const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";

pub(super) fn error(
    kind: ControlErrorKind,
    code: &'static str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> ControlError {
    ControlError { kind, code, message: message.into(), hint: hint.into(), findings: Vec::new() }
}

pub(super) fn invalid(code: &'static str, message: impl Into<String>, findings: Vec<Finding>) -> ControlError {
    let nobody_offers = |f: &Finding| f.code == "UNKNOWN_ACTION" || f.level == Level::Warning;
    let hint = if findings.is_empty() {
        ""
    } else if findings.iter().all(nobody_offers) {
        "start an agent that offers it, or mend the name of the action"
    } else {
        "mend the findings and submit again"
    };
    ControlError { findings, ..error(ControlErrorKind::Invalid, code, message, hint) }
}

pub(super) fn run_not_found(id: &RunId) -> ControlError {
    error(
        ControlErrorKind::NotFound,
        "RUN_NOT_FOUND",
        format!("there is no run {id}"),
        "list the runs: muster run list",
    )
}

pub(super) fn agent_not_found(name: &AgentName) -> ControlError {
    let hint = "list the agents: muster agent list";
    error(ControlErrorKind::NotFound, "AGENT_NOT_FOUND", format!("there is no agent {name}"), hint)
}

pub(super) fn agent_answers(name: &AgentName) -> ControlError {
    let hint = format!("muster agent drain {name} lets it end; it can be forgotten as soon as it has ended or is lost");
    error(ControlErrorKind::FailedPrecondition, "AGENT_ANSWERS", format!("agent {name} is not lost"), &hint)
}

pub(super) fn agent_may_be_at_work(name: &AgentName, runs: &[RunId]) -> ControlError {
    let first = runs.first().map(RunId::as_str).unwrap_or_default();
    let message = format!("agent {name} is lost, and may still be at work for {} runs, such as {first}", runs.len());
    let hint = format!("look there and say how the attempt has ended: muster run explain {first}");
    error(ControlErrorKind::FailedPrecondition, "AGENT_MAY_BE_AT_WORK", message, &hint)
}

/// What to do about a run in quarantine.
pub(super) const QUARANTINE_HINT: &str =
    "stop the coordinator; muster journal verify then names what is wrong, and docs/journal.md what to do about it";

pub(super) fn quarantined(id: &RunId, why: &str) -> ControlError {
    let message = format!("run {id} is in quarantine: {why}");
    error(ControlErrorKind::FailedPrecondition, "RUN_QUARANTINED", message, QUARANTINE_HINT)
}

pub(super) fn stopping() -> ControlError {
    let hint = "ask again once it is back";
    error(ControlErrorKind::Unavailable, "COORDINATOR_STOPPING", "the coordinator is stopping", hint)
}

pub(super) fn draining(drain: &DrainView) -> ControlError {
    let hint = "start it again once somebody has ended that: muster coordinator resume";
    error(ControlErrorKind::Unavailable, "COORDINATOR_DRAINING", drain.why(), hint)
}

pub(super) fn busy(id: &RunId) -> ControlError {
    let message = format!("run {id} has too many requests waiting");
    error(ControlErrorKind::Unavailable, "RUN_BUSY", message, "ask again in a moment")
}

pub(super) fn rejected(rejection: &Rejection) -> ControlError {
    let message = rejection.to_string();
    match rejection {
        Rejection::UnknownStep(_) => {
            let hint = "the steps of a run: muster run get";
            error(ControlErrorKind::NotFound, "STEP_NOT_FOUND", message, hint)
        }
        Rejection::UnknownSignal(_) => {
            let hint = "the signals of a run stand in its playbook, under wait";
            error(ControlErrorKind::NotFound, "SIGNAL_NOT_FOUND", message, hint)
        }
        Rejection::RunEnded => error(ControlErrorKind::FailedPrecondition, "RUN_ENDED", message, "start a new run"),
        Rejection::Forbidden { .. } => {
            let hint = "see what the run waits for: muster run explain";
            error(ControlErrorKind::FailedPrecondition, "TRANSITION_FORBIDDEN", message, hint)
        }
        Rejection::UnknownAttempt { .. } => error(ControlErrorKind::NotFound, "ATTEMPT_NOT_FOUND", message, ""),
        Rejection::Conflict { .. } => error(ControlErrorKind::FailedPrecondition, "ATTEMPT_ENDED", message, ""),
        Rejection::Broken(_) => error(ControlErrorKind::Internal, "INTERNAL", message, ""),
    }
}

pub(super) fn append_failed(e: &AppendError) -> ControlError {
    match e {
        AppendError::TooLarge { .. } => {
            let hint = "make the document, the inputs or the outputs smaller";
            error(ControlErrorKind::ResourceExhausted, "RECORD_TOO_LARGE", e.to_string(), hint)
        }
        AppendError::Damaged { .. } => {
            let hint = "stop the coordinator, then check the journal: muster journal verify";
            error(ControlErrorKind::Internal, "JOURNAL_UNREADABLE", e.to_string(), hint)
        }
        AppendError::Conflict { .. } | AppendError::Unavailable(_) => {
            let hint = "whether it was recorded is not known: ask again with the same request id";
            error(ControlErrorKind::Unavailable, "JOURNAL_UNAVAILABLE", e.to_string(), hint)
        }
    }
}

pub(super) fn read_failed(e: &ReadError) -> ControlError {
    let hint = "stop the coordinator, then check the journal: muster journal verify";
    error(ControlErrorKind::Internal, "JOURNAL_UNREADABLE", e.to_string(), hint)
}

/// The system refused to read it just now.
pub(super) fn unreadable(id: &RunId, why: &str) -> ControlError {
    let hint = "ask again; if it stays so, look at the disk and at the limits of the process (ulimit -n)";
    error(ControlErrorKind::Unavailable, "JOURNAL_UNREADABLE", format!("run {id} can't be read just now: {why}"), hint)
}

pub(super) fn store_failed(e: &StoreError) -> ControlError {
    match e {
        StoreError::BadPageToken => error(ControlErrorKind::Invalid, "BAD_PAGE_TOKEN", e.to_string(), ""),
        StoreError::NoRoom { .. } => {
            let hint = "make room on the coordinator's disk: lists come back by themselves; the rest goes on meanwhile";
            error(ControlErrorKind::Unavailable, STORE_UNAVAILABLE, e.to_string(), hint)
        }
        StoreError::Damaged(_) | StoreError::Io(_) => {
            let hint = "ask again in a moment; if it stays so, look at the coordinator's disk and log: the store is rebuilt \
                        from the journal as soon as it can be written, at the latest at the next start";
            error(ControlErrorKind::Unavailable, STORE_UNAVAILABLE, e.to_string(), hint)
        }
    }
}

pub(super) fn seq_ahead(asked: u64, at: u64) -> ControlError {
    let message = format!("the run is at sequence number {at}, not yet at {asked}");
    error(ControlErrorKind::OutOfRange, "SEQ_OUT_OF_RANGE", message, "watch from 0, or from a number that was read")
}

pub(super) fn no_such_step(id: &RunId, step: &StepId) -> ControlError {
    let hint = "the steps of a run: muster run get";
    error(ControlErrorKind::NotFound, "STEP_NOT_FOUND", format!("run {id} has no step {step}"), hint)
}

pub(super) fn no_logs() -> ControlError {
    let message = "this coordinator keeps no logs of runs";
    error(ControlErrorKind::FailedPrecondition, "LOGS_NOT_KEPT", message, "start it with more than 0 for run_logs_mib")
}

pub(super) fn log_failed(id: &RunId, e: &PageError) -> ControlError {
    let message = format!("the log of run {id}: {e}");
    match e {
        PageError::Position(_) => {
            let hint = "read from the beginning, or from a position that was read";
            error(ControlErrorKind::OutOfRange, "LOG_POSITION_OUT_OF_RANGE", message, hint)
        }
        PageError::Io(why) => {
            let hint = "look at the disk, and at owner and mode of the folder logs in the data directory";
            error(ControlErrorKind::Unavailable, "LOG_UNREADABLE", format!("{message}: {why}"), hint)
        }
    }
}

pub(super) fn plan_changed(is: &Digest) -> ControlError {
    let message = format!("the plan has the digest {is}, which is not the one asked for");
    let hint = "look at the plan again: muster playbook plan; start it with its digest";
    error(ControlErrorKind::FailedPrecondition, "PLAN_CHANGED", message, hint)
}

pub(super) fn playbook_not_found(name: &str) -> ControlError {
    let message = format!("there is no playbook {name}, or no such revision of it");
    error(ControlErrorKind::NotFound, "PLAYBOOK_NOT_FOUND", message, "list the playbooks: muster playbook list")
}

pub(super) fn unwritable(e: &serde_json::Error) -> ControlError {
    error(ControlErrorKind::Internal, "INTERNAL", format!("a record can't be written as JSON: {e}"), "")
}

pub(super) fn broken(why: &str) -> ControlError {
    let hint = "this is a bug in Muster, please report it with the playbook";
    error(ControlErrorKind::Internal, "INTERNAL", format!("the run can't be begun: {why}"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lacks_nothing_but_an_agent_is_told_to_start_one() {
        let finding = |level, code| Finding {
            level,
            code,
            message: String::new(),
            path: String::new(),
            line: 0,
            column: 0,
            hint: String::new(),
        };
        let unknown = finding(Level::Error, "UNKNOWN_ACTION");
        let cases = [
            (vec![unknown.clone(), finding(Level::Warning, "UNUSED")], "start an agent"),
            (vec![unknown, finding(Level::Error, "INVALID_INPUT")], "mend the findings"),
            (vec![finding(Level::Error, "UNKNOWN_KEY")], "mend the findings"),
            (Vec::new(), ""),
        ];
        for (findings, begins) in cases {
            let hint = invalid("PLAN_INVALID", "the playbook can't be planned", findings).hint;
            assert!(hint.starts_with(begins) && hint.is_empty() == begins.is_empty(), "{hint}");
        }
    }
}
