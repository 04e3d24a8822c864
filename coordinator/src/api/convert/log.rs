//! Entries of logs as the API shows them.

use muster_proto::v1 as pb;

use crate::{
    api::convert::value::to_time,
    logs::{Entry, Lost},
};

/// A line, or how many are missing.
pub fn entry(entry: Entry) -> pb::RunLogEntry {
    use pb::run_log_entry::Lost as Wire;
    let (lost_lines, lost) = match entry.lost {
        None => (0, Wire::Unspecified),
        Some((count, Lost::OnTheWay)) => (count, Wire::OnTheWay),
        Some((count, Lost::OverLimit)) => (count, Wire::OverLimit),
        Some((count, Lost::NotWritten)) => (count, Wire::NotWritten),
    };
    pb::RunLogEntry {
        step: entry.step.to_string(),
        attempt: entry.attempt,
        line: entry.number,
        time: Some(to_time(entry.at)),
        text: entry.text,
        lost_lines,
        lost: lost.into(),
        position: entry.position,
    }
}

/// The same as an item of a stream.
pub fn watched(seen: Entry) -> pb::WatchRunLogsResponse {
    pb::WatchRunLogsResponse { entry: Some(entry(seen)) }
}
