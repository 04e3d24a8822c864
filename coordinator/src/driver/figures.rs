//! What is counted of runs, for Prometheus.

use metrics::{counter, gauge};
use muster_engine::run::{
    Event,
    event::{AttemptEnd, Outcome, Purpose, RunOutcome},
};

use super::Shared;
use crate::metrics::{
    AGENTS_ALIVE, ATTEMPTS_ASSIGNED, ATTEMPTS_ENDED, RUNS_ENDED, RUNS_IN_MEMORY, RUNS_STARTED, STEPS_WAITING,
};

/// Count what is on disk.
pub(super) fn count(event: &Event) {
    match event {
        Event::AttemptAssigned(assigned) => {
            let purpose = match assigned.purpose {
                Purpose::Run => "run",
                Purpose::Probe => "probe",
                Purpose::Verify => "verify",
                Purpose::Undo => "undo",
            };
            counter!(ATTEMPTS_ASSIGNED, "purpose" => purpose).increment(1);
        }
        Event::AttemptEnded { end, .. } => counter!(ATTEMPTS_ENDED, "how" => how(end)).increment(1),
        Event::RunStarted(_) => counter!(RUNS_STARTED).increment(1),
        Event::RunEnded { outcome, .. } => {
            let outcome = match outcome {
                RunOutcome::Succeeded => "succeeded",
                RunOutcome::Failed => "failed",
                RunOutcome::Cancelled => "cancelled",
            };
            counter!(RUNS_ENDED, "outcome" => outcome).increment(1);
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
        | Event::OwnerReminded { .. }
        | Event::GateJudged { .. }
        | Event::PhaseEnded { .. }
        | Event::MilestoneAtRisk { .. }
        | Event::MilestoneMissed { .. }
        | Event::MilestoneReached { .. }
        | Event::RunPaused { .. }
        | Event::RunResumed { .. }
        | Event::CancelRequested { .. }
        | Event::RollbackRequested { .. }
        | Event::RollbackStarted { .. } => {}
    }
}

fn how(end: &AttemptEnd) -> &'static str {
    match end {
        AttemptEnd::Finished { outcome: Outcome::Succeeded { .. } } => "succeeded",
        AttemptEnd::Finished { outcome: Outcome::NotSatisfied { .. } } => "not_satisfied",
        AttemptEnd::Finished { outcome: Outcome::Failed { .. } } => "failed",
        AttemptEnd::Finished { outcome: Outcome::Cancelled { .. } } => "cancelled",
        AttemptEnd::NotStarted { .. } => "not_started",
        AttemptEnd::Unknown { .. } => "unknown",
    }
}

/// How much there is of everything, once a second.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) fn measure(shared: &Shared) {
    let (waiting, alive) = shared.registry.depth();
    gauge!(RUNS_IN_MEMORY).set(shared.runs.len() as f64);
    gauge!(STEPS_WAITING).set(waiting as f64);
    gauge!(AGENTS_ALIVE).set(alive as f64);
}
