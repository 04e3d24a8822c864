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

#[cfg(test)]
mod tests {
    use super::*;

    fn criteria(values: &[Option<bool>]) -> Vec<Criterion> {
        let of = |value: &Option<bool>| Criterion { expression: String::new(), value: *value, error: String::new() };
        values.iter().map(of).collect()
    }

    #[test]
    fn judgements_in_a_table() {
        use GateVerdict::{Failed, Inconclusive, Passed};
        let (yes, no, unknown) = (Some(true), Some(false), None);
        let table = [
            (vec![], vec![], Passed),
            (vec![yes, yes], vec![no], Passed),
            (vec![yes, no], vec![], Failed),
            (vec![yes], vec![yes], Failed),
            (vec![yes, unknown], vec![], Inconclusive),
            (vec![yes], vec![unknown], Inconclusive),
            (vec![no, unknown], vec![], Failed),
            (vec![unknown], vec![yes], Failed),
        ];
        for (success, failure, verdict) in table {
            assert_eq!(judge(&criteria(&success), &criteria(&failure)), verdict, "{success:?} {failure:?}");
        }
    }
}
