//! The playbooks of the fake, and its refusals.

use muster_coordinator::control::{ControlError, ControlErrorKind as Kind};
use muster_engine::{
    ids::Digest,
    plan::Plan,
    playbook::{Finding, Level},
    run::Rejection,
};

use crate::harness::plan_of;

pub(super) fn error(kind: Kind, code: &'static str, message: &str) -> ControlError {
    ControlError { kind, code, message: message.to_owned(), hint: "look again".to_owned(), findings: Vec::new() }
}

pub(super) fn rejected(rejection: &Rejection) -> ControlError {
    match rejection {
        Rejection::UnknownStep(_) => error(Kind::NotFound, "STEP_NOT_FOUND", &rejection.to_string()),
        Rejection::UnknownSignal(_) => error(Kind::NotFound, "SIGNAL_NOT_FOUND", &rejection.to_string()),
        Rejection::RunEnded
        | Rejection::Forbidden { .. }
        | Rejection::UnknownAttempt { .. }
        | Rejection::Broken(_)
        | Rejection::Conflict { .. } => error(Kind::FailedPrecondition, "STATE_FORBIDS", &rejection.to_string()),
    }
}

pub(super) fn findings(yaml: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, text) in (1..).zip(yaml.lines()) {
        let words: Vec<_> = text.split_whitespace().collect();
        let fine = matches!(words[..], ["playbook", _] if line == 1) || matches!(words[..], ["step" | "ask", _]);
        if !fine {
            findings.push(Finding {
                level: Level::Error,
                code: "LINE_UNKNOWN",
                message: format!("`{text}` is nothing"),
                path: format!("line[{line}]"),
                line,
                column: 1,
                hint: "write `step <id>`".to_owned(),
            });
        }
    }
    findings
}

pub(super) fn parse(yaml: &str) -> Result<Plan, ControlError> {
    let findings = findings(yaml);
    if !findings.is_empty() {
        let mut bad = error(Kind::Invalid, "PLAYBOOK_INVALID", "the playbook has errors");
        bad.findings = findings;
        return Err(bad);
    }
    let mut words = yaml.split_whitespace().skip(1).step_by(2);
    let name = words.next().unwrap_or_default();
    let ids: Vec<(&str, bool)> =
        yaml.lines().skip(1).filter_map(|l| l.split_once(' ')).map(|(kind, id)| (id.trim(), kind == "ask")).collect();
    Ok(plan_of(name, &digest_of(yaml), &ids))
}

/// Not sha256, but of its form, and as distinct as the lengths and sums of tests are.
pub(super) fn digest_of(text: &str) -> Digest {
    let sum = text.bytes().fold(7_u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(b)));
    Digest::from(format!("sha256:{sum:064x}"))
}
