//! How the messages of the hot path are read. They name their attempt by members of their own, which is a flattened struct in
//! [`crate::message`]; reading such a one would copy every message into a tree first, at twice the time. So would an enum that
//! holds a task.

use serde::Deserialize;
use serde_json::Value;

use crate::message::{self, AttemptKey, Order, Purpose, ReportBody};

/// Reads as [`message::Task`].
#[derive(Deserialize)]
pub(crate) struct Task {
    cluster: String,
    term: u64,
    run: String,
    step: String,
    attempt: u32,
    purpose: Purpose,
    action: String,
    version: String,
    with: Value,
    #[serde(default)]
    undo: Option<Value>,
    #[serde(default)]
    prepare: bool,
    #[serde(default)]
    secrets: Vec<String>,
    timeout_ms: u64,
    status_ms: u64,
    sent_at_ms: i64,
    start_within_ms: u64,
    report_subject: String,
}

impl From<Task> for message::Task {
    fn from(read: Task) -> Self {
        Self {
            cluster: read.cluster,
            term: read.term,
            key: AttemptKey { run: read.run, step: read.step, attempt: read.attempt },
            purpose: read.purpose,
            action: read.action,
            version: read.version,
            with: read.with,
            undo: read.undo,
            prepare: read.prepare,
            secrets: read.secrets,
            timeout_ms: read.timeout_ms,
            status_ms: read.status_ms,
            sent_at_ms: read.sent_at_ms,
            start_within_ms: read.start_within_ms,
            report_subject: read.report_subject,
        }
    }
}

/// Reads as [`message::Report`].
#[derive(Deserialize)]
pub(crate) struct Report {
    cluster: String,
    instance: String,
    run: String,
    step: String,
    attempt: u32,
    #[serde(rename = "report")]
    body: ReportBody,
}

impl From<Report> for message::Report {
    fn from(read: Report) -> Self {
        Self {
            cluster: read.cluster,
            instance: read.instance,
            key: AttemptKey { run: read.run, step: read.step, attempt: read.attempt },
            report: read.body,
        }
    }
}

/// Reads as [`message::ReportReply`].
#[derive(Deserialize)]
pub(crate) struct ReportReply {
    answer: Answer,
    #[serde(default)]
    orders: Vec<Order>,
    #[serde(default)]
    task: Option<Box<message::Task>>,
    #[serde(default)]
    why: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Recorded,
    Stale,
    Conflict,
    Gone,
    Retry,
}

impl From<ReportReply> for message::ReportReply {
    fn from(read: ReportReply) -> Self {
        match read.answer {
            Answer::Recorded => Self::Recorded { orders: read.orders, task: read.task },
            Answer::Stale => Self::Stale,
            Answer::Conflict => Self::Conflict,
            Answer::Gone => Self::Gone,
            Answer::Retry => Self::Retry { why: read.why },
        }
    }
}
