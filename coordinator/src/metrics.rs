//! Names of all figures for Prometheus, each with its description. Nothing else in the coordinator names a metric.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Calls that have ended, by `method` and `code`.
pub const API_REQUESTS: &str = "muster_api_requests_total";
/// How long calls took until their answer (a stream: until its first), by `method`.
pub const API_SECONDS: &str = "muster_api_request_seconds";
/// Calls under way.
pub const API_IN_FLIGHT: &str = "muster_api_requests_in_flight";
/// Watches and waits under way.
pub const API_WATCHES: &str = "muster_api_watches";
/// Calls refused for want of a good token or a sufficient role, by `method`.
pub const API_DENIED: &str = "muster_api_denied_total";

/// Runs started.
pub const RUNS_STARTED: &str = "muster_runs_started_total";
/// Runs ended, by `outcome`.
pub const RUNS_ENDED: &str = "muster_runs_ended_total";
/// Attempts assigned, by `purpose`.
pub const ATTEMPTS_ASSIGNED: &str = "muster_attempts_assigned_total";
/// Attempts ended, by `how`.
pub const ATTEMPTS_ENDED: &str = "muster_attempts_ended_total";
/// How long a run's append took until it was on disk.
pub const APPEND_SECONDS: &str = "muster_append_seconds";
/// Runs in quarantine.
pub const RUNS_QUARANTINED: &str = "muster_runs_quarantined";
/// Runs in memory.
pub const RUNS_IN_MEMORY: &str = "muster_runs_in_memory";
/// Runs that wait for nothing but time and people, and are not in memory.
pub const RUNS_PASSIVE: &str = "muster_runs_passive";
/// Reminders that something waits for a person or an agent.
pub const OWNERS_REMINDED: &str = "muster_owner_reminders_total";
/// Whether NATS can be reached: 1 or 0.
pub const BUS_CONNECTED: &str = "muster_bus_connected";
/// Whether the coordinator drains: 1 or 0.
pub const DRAINING: &str = "muster_draining";
/// Steps that wait for an agent.
pub const STEPS_WAITING: &str = "muster_steps_waiting";
/// Agents that answer.
pub const AGENTS_ALIVE: &str = "muster_agents_alive";
/// Leases of agents that have run out.
pub const AGENTS_LOST: &str = "muster_agents_lost_total";
/// Events put into the stream for outsiders, by `kind`.
pub const EVENTS_PUBLISHED: &str = "muster_events_published_total";
/// Events that were left out, since they can't be told or are refused.
pub const EVENTS_SKIPPED: &str = "muster_events_skipped_total";
/// Batches of the journal whose events are not published yet.
pub const EVENTS_BEHIND: &str = "muster_events_behind";
/// Syncs of the journal that appends have waited for.
pub const JOURNAL_SYNCS: &str = "muster_journal_syncs_total";
/// Lines of attempts' logs that were written.
pub const LOG_LINES_KEPT: &str = "muster_log_lines_kept_total";
/// Lines of attempts' logs that are missing, by `why`.
pub const LOG_LINES_LOST: &str = "muster_log_lines_lost_total";
/// Bytes of attempts' logs on disk.
pub const LOG_BYTES: &str = "muster_log_bytes";

/// Upper bounds of the buckets of every histogram in seconds: from a memory access to a slow disk.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Make the process count, and describe what it counts. Once a process; the handle renders.
///
/// # Errors
/// A recorder is there already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    describe_counter!(JOURNAL_SYNCS, "Syncs of the journal that appends have waited for");
    describe_counter!(EVENTS_PUBLISHED, "Events published for outsiders, by kind");
    describe_counter!(EVENTS_SKIPPED, "Events left out, since they can't be told or are refused");
    describe_gauge!(EVENTS_BEHIND, "Batches of the journal whose events are not published yet");
    describe_counter!(RUNS_STARTED, "Runs started");
    describe_counter!(RUNS_ENDED, "Runs ended, by outcome");
    describe_counter!(ATTEMPTS_ASSIGNED, "Attempts assigned to agents, by purpose");
    describe_counter!(ATTEMPTS_ENDED, "Attempts ended, by how");
    describe_histogram!(APPEND_SECONDS, Unit::Seconds, "Time of a run's append until it was on disk");
    describe_gauge!(RUNS_QUARANTINED, "Runs in quarantine");
    describe_gauge!(RUNS_IN_MEMORY, "Runs in memory");
    describe_gauge!(RUNS_PASSIVE, "Runs that wait for nothing but time and people, and are not in memory");
    describe_counter!(OWNERS_REMINDED, "Reminders that something waits for a person or an agent");
    describe_gauge!(BUS_CONNECTED, "Whether NATS can be reached: 1 or 0");
    describe_gauge!(DRAINING, "Whether the coordinator drains, and begins nothing new: 1 or 0");
    describe_gauge!(STEPS_WAITING, "Steps that wait for an agent");
    describe_gauge!(AGENTS_ALIVE, "Agents that answer");
    describe_counter!(AGENTS_LOST, "Leases of agents that have run out");
    describe_counter!(LOG_LINES_KEPT, "Lines of attempts' logs that were written");
    describe_counter!(LOG_LINES_LOST, "Lines of attempts' logs that are missing, by why");
    describe_gauge!(LOG_BYTES, Unit::Bytes, "Bytes of attempts' logs on disk");
    describe_counter!(API_REQUESTS, "Calls of the API that have ended, by method and gRPC code");
    describe_histogram!(API_SECONDS, Unit::Seconds, "Time of a call of the API until its first answer, by method");
    describe_gauge!(API_IN_FLIGHT, "Calls of the API under way");
    describe_gauge!(API_WATCHES, "Watches and waits of the API under way");
    describe_counter!(API_DENIED, "Calls refused for want of a good token or a sufficient role, by method");
}
