//! What has to be taken back, in which order, and how.

use std::{cmp::Reverse, collections::BTreeSet};

use serde_json::Value;

use super::{
    Run,
    event::{AttemptEnd, Outcome, Purpose},
    state::{Step, StepState},
};
use crate::{
    ids::{AttemptNumber, StepId},
    plan::{PlannedStep, PlannedUndo},
};

/// What the walk back has to do about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// It changed nothing.
    Nothing,
    /// By an attempt of purpose undo.
    Undo,
    /// A person has to say: nobody knows whether it has run.
    Ask,
    /// It was done and can't be taken back.
    Irreversible,
}

/// What the walk back has to do about a step, once all its attempts have ended.
///
/// With `undo: auto` the journal knows: who changes something records `prepared` first. Any other step is judged by how its
/// attempts ended; one that found its work done already (`unchanged`) has nothing to take back.
pub(crate) fn need(step: &Step, planned: &PlannedStep) -> Need {
    let by_person = step.done && !step.attempts.iter().any(|a| a.purpose == Purpose::Run && succeeded(a.end.as_ref()));
    let changed = by_person || step.attempts.iter().any(|a| a.purpose == Purpose::Run && changed(a.end.as_ref()));
    let may_have = step.attempts.iter().any(|a| a.purpose == Purpose::Run && may_have_changed(a.end.as_ref()));
    match &planned.undo {
        PlannedUndo::Auto if !step.prepared.is_empty() => Need::Undo,
        PlannedUndo::Auto if by_person && !may_have => Need::Irreversible,
        PlannedUndo::Action { .. } if changed => Need::Undo,
        PlannedUndo::Action { .. } if may_have => Need::Ask,
        PlannedUndo::Irreversible if changed || may_have => Need::Irreversible,
        PlannedUndo::Nothing | PlannedUndo::Auto | PlannedUndo::Action { .. } | PlannedUndo::Irreversible => {
            Need::Nothing
        }
    }
}

/// The steps to undo, in order, and those that can't be: what was last done, or
/// tried, comes first.
pub(crate) fn plan(run: &Run) -> (Vec<StepId>, BTreeSet<StepId>) {
    let (mut steps, mut irreversible) = (Vec::new(), BTreeSet::new());
    for (i, (step, planned)) in run.steps.iter().zip(&run.plan.steps).enumerate() {
        match need(step, planned) {
            Need::Nothing => {}
            Need::Undo | Need::Ask => steps.push((step.done_order, i)),
            Need::Irreversible => drop(irreversible.insert(planned.id.clone())),
        }
    }
    steps.sort_by_key(|key| Reverse(*key));
    (steps.into_iter().map(|(_, i)| run.plan.steps[i].id.clone()).collect(), irreversible)
}

impl Run {
    /// Whether the run has ended, was walked back, and this step is not taken back though it has changed something, or may have: it
    /// can't be, or a person has left it as it is, or the walk back was cut off.
    pub fn is_not_taken_back(&self, i: usize) -> bool {
        let (step, planned) = (&self.steps[i], &self.plan.steps[i]);
        let Some(rollback) = self.rollback.as_ref().filter(|_| self.has_ended()) else { return false };
        let last = step.attempts.iter().rev().find(|a| a.purpose == Purpose::Run);
        // What is `always` done comes after the walk back.
        let before = last.is_none_or(|a| a.assigned_at <= rollback.since);
        before && step.state != StepState::Undone && need(step, planned) != Need::Nothing
    }

    /// The ids of the steps of which [`Run::is_not_taken_back`] is true.
    pub fn not_taken_back(&self) -> Vec<&StepId> {
        (0..self.steps.len()).filter(|i| self.is_not_taken_back(*i)).map(|i| &self.plan.steps[i].id).collect()
    }
}

/// The attempt whose `prepared` data the next undo is given: the newest first.
pub(crate) fn next_prepared(step: &Step, planned: &PlannedStep) -> Option<AttemptNumber> {
    match &planned.undo {
        PlannedUndo::Auto => step.prepared.keys().next_back().copied(),
        PlannedUndo::Action { .. } | PlannedUndo::Irreversible | PlannedUndo::Nothing => None,
    }
}

/// The parameters of an undo by another action.
pub(crate) fn custom(planned: &PlannedStep) -> Option<&Value> {
    match &planned.undo {
        PlannedUndo::Action { with, .. } => Some(with),
        PlannedUndo::Auto | PlannedUndo::Irreversible | PlannedUndo::Nothing => None,
    }
}

fn succeeded(end: Option<&(jiff::Timestamp, AttemptEnd)>) -> bool {
    matches!(end, Some((_, AttemptEnd::Finished { outcome: Outcome::Succeeded { .. } })))
}

fn changed(end: Option<&(jiff::Timestamp, AttemptEnd)>) -> bool {
    matches!(end, Some((_, AttemptEnd::Finished { outcome: Outcome::Succeeded { unchanged: false, .. } })))
}

fn may_have_changed(end: Option<&(jiff::Timestamp, AttemptEnd)>) -> bool {
    matches!(
        end,
        Some((
            _,
            AttemptEnd::Unknown { .. }
                | AttemptEnd::Finished { outcome: Outcome::Cancelled { may_have_changed: true } }
        ))
    )
}
