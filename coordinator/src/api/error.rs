//! Errors of the API: one gRPC code, one reason, one hint each.
//!
//! Every [`Status`] that leaves carries a `google.rpc.ErrorInfo` of domain [`DOMAIN`]. Details travel in an HTTP header
//! that common clients limit to 8 KiB, so findings and texts are cut to a budget, and the cut is said.

use std::collections::HashMap;

use muster_engine::playbook::{Finding, Level};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::control::{ControlError, ControlErrorKind};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "muster.dev";

/// Longest message of a status, in bytes.
const MESSAGE_LIMIT: usize = 1_000;
/// Longest description of one finding, in bytes.
const DESCRIPTION_LIMIT: usize = 600;
/// All findings of one status, in bytes.
const FINDINGS_LIMIT: usize = 3_500;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $code:ident;)+) => {
        /// Why the API itself refuses a request. What the coordinator refuses has the code of its [`ControlError`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[doc = $doc])* $name,)+ }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As it stands in `ErrorInfo.reason`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The gRPC code it always comes with.
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)+ }
            }
        }
    };
}

reasons! {
    /// There is no such method.
    MethodUnknown = "METHOD_UNKNOWN", Unimplemented;
    /// No token was sent.
    TokenMissing = "TOKEN_MISSING", Unauthenticated;
    /// The token is not one of this coordinator's.
    TokenInvalid = "TOKEN_INVALID", Unauthenticated;
    /// The token's time is over.
    TokenExpired = "TOKEN_EXPIRED", Unauthenticated;
    /// The token was revoked.
    TokenRevoked = "TOKEN_REVOKED", Unauthenticated;
    /// The token's role may not do this.
    RoleTooLow = "ROLE_TOO_LOW", PermissionDenied;
    /// A resource name is not of the method's form.
    NameInvalid = "NAME_INVALID", InvalidArgument;
    /// A field that has to be there is not.
    FieldRequired = "FIELD_REQUIRED", InvalidArgument;
    /// A field has a value that is not possible.
    FieldInvalid = "FIELD_INVALID", InvalidArgument;
    /// `filter` can't be read.
    FilterInvalid = "FILTER_INVALID", InvalidArgument;
    /// `request_id` is not a UUID.
    RequestIdInvalid = "REQUEST_ID_INVALID", InvalidArgument;
    /// The message can't be decoded.
    MessageInvalid = "MESSAGE_INVALID", InvalidArgument;
    /// The message is over the size limit.
    MessageTooLarge = "MESSAGE_TOO_LARGE", ResourceExhausted;
    /// Too many requests are under way.
    TooManyRequests = "TOO_MANY_REQUESTS", ResourceExhausted;
    /// Too many watches and waits are under way.
    TooManyWatches = "TOO_MANY_WATCHES", ResourceExhausted;
    /// The caller's deadline came first.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded;
    /// The coordinator is ending.
    ShuttingDown = "SHUTTING_DOWN", Unavailable;
    /// There is no such token.
    TokenNotFound = "TOKEN_NOT_FOUND", NotFound;
    /// The journal does not stand.
    JournalUnavailable = "JOURNAL_UNAVAILABLE", Unavailable;
    /// The transport refused the request.
    TransportRefused = "TRANSPORT_REFUSED", Internal;
}

/// A refusal of the API itself.
pub fn refuse(reason: Reason, message: impl Into<String>, hint: &str) -> Status {
    refuse_with(reason, message, hint, HashMap::new())
}

/// A refusal of the API itself, with more metadata than the hint.
pub(super) fn refuse_with(
    reason: Reason,
    message: impl Into<String>,
    hint: &str,
    mut metadata: HashMap<String, String>,
) -> Status {
    metadata.insert("hint".to_owned(), hint.to_owned());
    let details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
    Status::with_error_details(reason.code(), cut(message.into(), MESSAGE_LIMIT), details)
}

/// A field that is wrong: `INVALID_ARGUMENT` with a field violation.
pub fn bad_field(reason: Reason, field: &str, message: impl Into<String>, hint: &str) -> Status {
    let message = cut(message.into(), MESSAGE_LIMIT);
    let metadata = HashMap::from([("hint".to_owned(), hint.to_owned()), ("field".to_owned(), field.to_owned())]);
    let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
    let mut violation = FieldViolation::new(field, message.clone());
    reason.as_str().clone_into(&mut violation.reason);
    details.set_bad_request(vec![violation]);
    Status::with_error_details(reason.code(), message, details)
}

/// What the coordinator refused.
pub fn from_control(error: ControlError) -> Status {
    let hint = if error.hint.is_empty() { hint_of(error.kind).to_owned() } else { cut(error.hint, DESCRIPTION_LIMIT) };
    let mut metadata = HashMap::from([("hint".to_owned(), hint)]);
    let mut violations = violations(&error.findings);
    if !error.findings.is_empty() {
        metadata.insert("findings".to_owned(), error.findings.len().to_string());
        metadata.insert("findings_shown".to_owned(), violations.len().to_string());
    }
    let left_out = error.findings.len() - violations.len();
    if left_out > 0 {
        let mut more = FieldViolation::new("", format!("and {left_out} more, which LintPlaybook lists"));
        "MORE_FINDINGS".clone_into(&mut more.reason);
        violations.push(more);
    }
    let mut details = ErrorDetails::with_error_info(error.code, DOMAIN, metadata);
    if !violations.is_empty() {
        details.set_bad_request(violations);
    }
    if error.kind == ControlErrorKind::FailedPrecondition {
        details.add_precondition_failure_violation(error.code, "", cut(error.message.clone(), DESCRIPTION_LIMIT));
    }
    if error.kind == ControlErrorKind::Internal {
        tracing::error!(code = error.code, message = error.message, "a request met a bug");
    }
    Status::with_error_details(code_of(error.kind), cut(error.message, MESSAGE_LIMIT), details)
}

fn code_of(kind: ControlErrorKind) -> Code {
    match kind {
        ControlErrorKind::Invalid => Code::InvalidArgument,
        ControlErrorKind::NotFound => Code::NotFound,
        ControlErrorKind::AlreadyExists => Code::AlreadyExists,
        ControlErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ControlErrorKind::OutOfRange => Code::OutOfRange,
        ControlErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ControlErrorKind::Unavailable => Code::Unavailable,
        ControlErrorKind::Internal => Code::Internal,
    }
}

/// Where the coordinator has no better one.
fn hint_of(kind: ControlErrorKind) -> &'static str {
    match kind {
        ControlErrorKind::Invalid => "send what the method's description says",
        ControlErrorKind::NotFound => "list what there is",
        ControlErrorKind::AlreadyExists => "choose another name or id",
        ControlErrorKind::FailedPrecondition => "see what it waits for: muster run explain",
        ControlErrorKind::OutOfRange => "start again from what is there",
        ControlErrorKind::ResourceExhausted => "ask for less, or later",
        ControlErrorKind::Unavailable => "try again in a moment",
        ControlErrorKind::Internal => "look into the coordinator's log, and report it",
    }
}

/// Errors first, as many as the header holds.
fn violations(findings: &[Finding]) -> Vec<FieldViolation> {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|f| f.level);
    let mut room = FINDINGS_LIMIT;
    let mut shown = Vec::new();
    for finding in sorted {
        let mut violation =
            FieldViolation::new(cut(finding.path.clone(), 200), cut(describe(finding), DESCRIPTION_LIMIT));
        finding.code.clone_into(&mut violation.reason);
        let size = violation.field.len() + violation.description.len() + violation.reason.len() + 8;
        if size > room {
            break;
        }
        room -= size;
        shown.push(violation);
    }
    shown
}

/// `line 7, column 11: error: no such key (hint: …)`.
fn describe(finding: &Finding) -> String {
    let mut text = String::new();
    if finding.line > 0 {
        text = format!("line {}, column {}: ", finding.line, finding.column);
    }
    text += match finding.level {
        Level::Error => "error: ",
        Level::Warning => "warning: ",
    };
    text += &finding.message;
    if !finding.hint.is_empty() {
        text += " (hint: ";
        text += &finding.hint;
        text += ")";
    }
    text
}

/// Give a status of the transport (a message too large, an encoding nobody knows) the `ErrorInfo` it lacks.
pub(super) fn complete(status: &Status) -> Option<Status> {
    if status.code() == Code::Ok || !status.details().is_empty() {
        return None;
    }
    let (reason, hint) = match status.code() {
        Code::Unimplemented => (Reason::MethodUnknown, "list the methods by reflection"),
        Code::OutOfRange | Code::ResourceExhausted => {
            (Reason::MessageTooLarge, "send less in one message; a playbook has at most 1 MiB")
        }
        Code::DeadlineExceeded | Code::Cancelled => (Reason::DeadlineExceeded, "allow more time"),
        Code::InvalidArgument | Code::Internal => (Reason::MessageInvalid, "send what the method's description says"),
        Code::Ok
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => (Reason::TransportRefused, "look at the message"),
    };
    Some(refuse(reason, status.message(), hint))
}

/// Cut at a character, and say so.
fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit - 3).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text += "…";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(n: u32, level: Level) -> Finding {
        Finding {
            level,
            code: "KEY_UNKNOWN",
            message: format!("`stepz` is not a key of a phase ({n})"),
            path: format!("spec.phases[{n}].stepz"),
            line: n,
            column: 5,
            hint: "did you mean `steps`?".to_owned(),
        }
    }

    fn invalid(findings: Vec<Finding>) -> Status {
        from_control(ControlError {
            kind: ControlErrorKind::Invalid,
            code: "PLAYBOOK_INVALID",
            message: "the playbook has errors".to_owned(),
            hint: "muster playbook lint".to_owned(),
            findings,
        })
    }

    #[test]
    fn a_finding_has_its_place() {
        let details = invalid(vec![finding(7, Level::Error)]).get_error_details();
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, "spec.phases[7].stepz");
        assert_eq!(violation.reason, "KEY_UNKNOWN");
        assert_eq!(
            violation.description,
            "line 7, column 5: error: `stepz` is not a key of a phase (7) (hint: did you mean `steps`?)"
        );
        assert_eq!(details.error_info().unwrap().metadata["findings"], "1");
    }

    #[test]
    fn many_findings_fit_a_header_errors_first() {
        let mut findings: Vec<_> = (1..=300).map(|n| finding(n, Level::Warning)).collect();
        findings.push(finding(999, Level::Error));
        let status = invalid(findings);
        assert!(status.details().len() < 6_000, "{} bytes of details", status.details().len());
        let details = status.get_error_details();
        let shown = &details.bad_request().unwrap().field_violations;
        assert_eq!(shown[0].field, "spec.phases[999].stepz");
        let info = details.error_info().unwrap();
        assert_eq!(info.metadata["findings"], "301");
        assert_eq!(info.metadata["findings_shown"], (shown.len() - 1).to_string());
        assert_eq!(
            shown.last().unwrap().description,
            format!("and {} more, which LintPlaybook lists", 302 - shown.len())
        );
    }

    #[test]
    fn every_kind_has_its_code() {
        let cases = [
            (ControlErrorKind::Invalid, Code::InvalidArgument),
            (ControlErrorKind::NotFound, Code::NotFound),
            (ControlErrorKind::AlreadyExists, Code::AlreadyExists),
            (ControlErrorKind::FailedPrecondition, Code::FailedPrecondition),
            (ControlErrorKind::OutOfRange, Code::OutOfRange),
            (ControlErrorKind::ResourceExhausted, Code::ResourceExhausted),
            (ControlErrorKind::Unavailable, Code::Unavailable),
            (ControlErrorKind::Internal, Code::Internal),
        ];
        for (kind, code) in cases {
            let status = from_control(ControlError {
                kind,
                code: "SOME_REASON",
                message: "what happened".to_owned(),
                hint: "what to do".to_owned(),
                findings: Vec::new(),
            });
            assert_eq!(status.code(), code);
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), ("SOME_REASON", DOMAIN));
            assert_eq!(info.metadata["hint"], "what to do");
            assert_eq!(details.precondition_failure().is_some(), kind == ControlErrorKind::FailedPrecondition);
        }
    }

    #[test]
    fn a_bare_status_is_completed_and_a_full_one_left() {
        let full = complete(&Status::out_of_range("too large")).unwrap();
        assert_eq!(full.get_error_details().error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
        assert!(complete(&full).is_none());
        assert!(complete(&Status::new(Code::Ok, "")).is_none());
    }

    #[test]
    fn texts_are_cut_at_characters() {
        assert_eq!(cut("äöü".repeat(10), 10), "äöü…");
        assert_eq!(cut("short".to_owned(), 10), "short");
    }
}
