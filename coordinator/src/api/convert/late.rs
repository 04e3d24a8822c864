//! What agents have reported of what a forced cancel left behind, after the run's end: it is shown, and nothing follows from it.

use muster_engine::run::{
    event::{Outcome, Purpose},
    state::{Attempt, Step},
};
use muster_proto::v1 as pb;

/// How an attempt ended after its run, in its agent's words.
pub(super) fn why(attempt: &Attempt, outcome: &Outcome) -> String {
    let said = match outcome {
        Outcome::Succeeded { .. } => "that it is done".to_owned(),
        Outcome::NotSatisfied { diff } if diff.is_empty() => "that it is not done".to_owned(),
        Outcome::NotSatisfied { diff } => format!("that it is not done: {diff}"),
        Outcome::Failed { message, .. } => format!("that it failed: {message}"),
        Outcome::Cancelled { may_have_changed: false } => "that it has stopped".to_owned(),
        Outcome::Cancelled { may_have_changed: true } => {
            "that it has stopped, and may have changed something".to_owned()
        }
    };
    format!("the run ended without it; agent {} has reported since {said}", attempt.agent)
}

/// Where a step is of which the end was reported after the run's; nothing has followed from that.
pub(super) fn state(step: &Step, attempt: &Attempt, outcome: &Outcome) -> pb::step::State {
    let undo = attempt.purpose == Purpose::Undo;
    match outcome {
        Outcome::Succeeded { .. } if !undo => pb::step::State::Succeeded,
        Outcome::Succeeded { .. } if step.prepared.keys().all(|n| Some(*n) == attempt.undoes) => {
            pb::step::State::Undone
        }
        Outcome::Failed { .. } => pb::step::State::Failed,
        Outcome::Succeeded { .. } | Outcome::NotSatisfied { .. } | Outcome::Cancelled { .. } => {
            pb::step::State::Cancelled
        }
    }
}

/// When it ended, or was said to have.
pub(super) fn ended_at(attempt: &Attempt) -> Option<jiff::Timestamp> {
    let late = attempt.reported_late.as_ref().map(|(at, _)| *at);
    attempt.end.as_ref().map(|(at, _)| *at).or(late)
}
