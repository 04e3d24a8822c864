//! Between what agents say and what the engine knows: the same things in two shapes, so that each can stay what it is.

use std::sync::Arc;

use jiff::Timestamp;
use muster_bus::message;
use muster_engine::run::event::{FailureKind, Observation, Outcome, Purpose, StatusNote};

/// What an agent reports, as the engine knows it. Observations without a time were made when they arrived.
pub(super) fn outcome(said: message::Outcome, arrived: Timestamp) -> Outcome {
    match said {
        message::Outcome::Succeeded { output, unchanged, observations: made, truncated } => Outcome::Succeeded {
            output: Arc::new(output),
            unchanged,
            observations: observations(made, arrived),
            truncated,
        },
        message::Outcome::NotSatisfied { diff } => Outcome::NotSatisfied { diff },
        message::Outcome::Failed { error, message, output } => {
            Outcome::Failed { kind: failure_kind(error), message, output: output.map(Arc::new) }
        }
        message::Outcome::Cancelled { may_have_changed } => Outcome::Cancelled { may_have_changed },
    }
}

/// What an agent says of its work, as the engine knows it.
pub(super) fn status(said: message::Status, arrived: Timestamp) -> StatusNote {
    StatusNote {
        message: said.message,
        percent: said.percent.map(|p| p.min(100)),
        observations: observations(said.observations, arrived),
    }
}

/// What an attempt is for, as agents are told.
pub(super) fn purpose(known: Purpose) -> message::Purpose {
    match known {
        Purpose::Run => message::Purpose::Run,
        Purpose::Probe => message::Purpose::Probe,
        Purpose::Verify => message::Purpose::Verify,
        Purpose::Undo => message::Purpose::Undo,
    }
}

fn failure_kind(said: message::FailureKind) -> FailureKind {
    match said {
        message::FailureKind::Retry => FailureKind::Retry,
        message::FailureKind::Permanent => FailureKind::Permanent,
        message::FailureKind::NeedsPerson => FailureKind::NeedsPerson,
    }
}

fn observations(said: Vec<message::Observation>, arrived: Timestamp) -> Vec<Observation> {
    let known = said.into_iter().map(|o| Observation {
        at: o.at_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(arrived),
        name: o.name,
        value: o.value,
        unit: o.unit,
        samples: o.samples,
        source: o.source,
    });
    known.collect()
}
