//! What a gate's criteria come to.

use crate::run::event::{Criterion, GateVerdict};

/// One success criterion that is false, or one failure criterion that is true, fails the gate, whatever the others say;
/// otherwise one that could not be evaluated leaves it inconclusive.
pub fn judge(success: &[Criterion], failure: &[Criterion]) -> GateVerdict {
    let failed = success.iter().any(|c| c.value == Some(false)) || failure.iter().any(|c| c.value == Some(true));
    let unknown = success.iter().chain(failure).any(|c| c.value.is_none());
    match (failed, unknown) {
        (true, _) => GateVerdict::Failed,
        (false, true) => GateVerdict::Inconclusive,
        (false, false) => GateVerdict::Passed,
    }
}
