//! What is counted of runs, for Prometheus.

use metrics::{Counter, Histogram, counter, gauge, histogram};
use muster_engine::run::{
    Event,
    event::{AttemptEnd, Outcome, Purpose, RunOutcome},
};

use super::Shared;
use crate::metrics::{
    AGENTS_ALIVE, AGENTS_LOST, APPEND_SECONDS, ATTEMPTS_ASSIGNED, ATTEMPTS_ENDED, DRAINING, OWNERS_REMINDED,
    RUNS_ENDED, RUNS_IN_MEMORY, RUNS_PASSIVE, RUNS_QUARANTINED, RUNS_STARTED, STEPS_WAITING,
};

/// Handles of what is counted on the hot path, looked up once. Made after the recorder is installed.
pub(super) struct Figures {
    assigned: [Counter; 4],
    ended: [Counter; 6],
    owners_reminded: Counter,
    runs_started: Counter,
    runs_ended: [Counter; 3],
    pub(super) append_seconds: Histogram,
}

impl Figures {
    pub(super) fn new() -> Self {
        let assigned = |purpose: &'static str| counter!(ATTEMPTS_ASSIGNED, "purpose" => purpose);
        let ended = |how: &'static str| counter!(ATTEMPTS_ENDED, "how" => how);
        let outcome = |outcome: &'static str| counter!(RUNS_ENDED, "outcome" => outcome);
        // An alert on a figure that is not there before it is bad would miss the first time.
        gauge!(RUNS_QUARANTINED).set(0);
        gauge!(DRAINING).set(0);
        counter!(AGENTS_LOST).increment(0);
        Self {
            assigned: ["run", "probe", "verify", "undo"].map(assigned),
            ended: ["succeeded", "not_satisfied", "failed", "cancelled", "not_started", "unknown"].map(ended),
            owners_reminded: counter!(OWNERS_REMINDED),
            runs_started: counter!(RUNS_STARTED),
            runs_ended: ["succeeded", "failed", "cancelled"].map(outcome),
            append_seconds: histogram!(APPEND_SECONDS),
        }
    }

    /// Count what is on disk.
    pub(super) fn count(&self, event: &Event) {
        match event {
            Event::AttemptAssigned(assigned) => {
                let purpose = match assigned.purpose {
                    Purpose::Run => 0,
                    Purpose::Probe => 1,
                    Purpose::Verify => 2,
                    Purpose::Undo => 3,
                };
                self.assigned[purpose].increment(1);
            }
            Event::AttemptEnded { end, .. } => self.ended[how(end)].increment(1),
            Event::OwnerReminded { .. } => self.owners_reminded.increment(1),
            Event::RunStarted(_) => self.runs_started.increment(1),
            Event::RunEnded { outcome, .. } => {
                let outcome = match outcome {
                    RunOutcome::Succeeded => 0,
                    RunOutcome::Failed => 1,
                    RunOutcome::Cancelled => 2,
                };
                self.runs_ended[outcome].increment(1);
            }
            Event::PhaseStarted { .. }
            | Event::StepMoved { .. }
            | Event::StepResolved { .. }
            | Event::AttemptPrepared { .. }
            | Event::StatusReported { .. }
            | Event::AttemptLost { .. }
            | Event::AttemptFound { .. }
            | Event::AttemptExtended { .. }
            | Event::ReportArrivedStale { .. }
            | Event::SignalReceived { .. }
            | Event::QueueClocksRestarted
            | Event::WallClockMoved { .. }
            | Event::GateJudged { .. }
            | Event::PhaseEnded { .. }
            | Event::MilestoneAtRisk { .. }
            | Event::MilestoneMissed { .. }
            | Event::MilestoneReached { .. }
            | Event::RunPaused { .. }
            | Event::RecordsLost { .. }
            | Event::RunResumed { .. }
            | Event::CancelRequested { .. }
            | Event::RollbackRequested { .. }
            | Event::RollbackStarted { .. }
            | Event::FinishStarted { .. } => {}
        }
    }
}

/// Where it is in [`Figures::ended`].
fn how(end: &AttemptEnd) -> usize {
    match end {
        AttemptEnd::Finished { outcome: Outcome::Succeeded { .. } } => 0,
        AttemptEnd::Finished { outcome: Outcome::NotSatisfied { .. } } => 1,
        AttemptEnd::Finished { outcome: Outcome::Failed { .. } } => 2,
        AttemptEnd::Finished { outcome: Outcome::Cancelled { .. } } => 3,
        AttemptEnd::NotStarted { .. } => 4,
        AttemptEnd::Unknown { .. } => 5,
    }
}

/// How much there is of everything, once a second.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) fn measure(shared: &Shared) {
    let (waiting, alive) = shared.registry.depth();
    gauge!(RUNS_IN_MEMORY).set(shared.runs.len() as f64);
    gauge!(RUNS_PASSIVE).set(shared.runs.passive() as f64);
    gauge!(STEPS_WAITING).set(waiting as f64);
    gauge!(AGENTS_ALIVE).set(alive as f64);
}
