//! Whether another coordinator is at work on this bus: two would give the same agents orders.

use std::time::Duration;

use bytes::Bytes;
use muster_bus::{Bus, BusError, message::Beat, subject::CHECK};
use tracing::warn;

use super::OpenError;

/// How long another coordinator has to answer before this one takes its place.
const CHECK_WITHIN: Duration = Duration::from_secs(2);

/// Whether no other coordinator answers on this bus. [`super::Coordinator::open`] asks this as well; who makes files for a new
/// coordinator asks before, so that one that is refused leaves none behind.
///
/// # Errors
/// [`OpenError::AnotherAnswers`]. That it can't be told is no error: it is logged.
pub async fn answer_alone(bus: &dyn Bus) -> Result<(), OpenError> {
    // The beat of an agent that no coordinator can know.
    let beat = Beat {
        cluster: String::new(),
        instance: "check".to_owned(),
        holds: Vec::new(),
        draining: false,
        ending: false,
    };
    let payload = serde_json::to_vec(&beat).map(Bytes::from).unwrap_or_default();
    match bus.request(CHECK, payload, CHECK_WITHIN).await {
        Ok(_) => Err(OpenError::AnotherAnswers),
        Err(BusError::NoResponders(_)) => Ok(()),
        Err(
            e
            @ (BusError::Timeout(_) | BusError::TooLarge { .. } | BusError::BadSubject(_) | BusError::Disconnected(_)),
        ) => {
            warn!("whether another coordinator is at work can't be told: {e}");
            Ok(())
        }
    }
}
