//! Moments of the wall clock. Everything else goes by the journal's time, which never goes back; how far the two are apart
//! is told to a run by an event, so that a wall clock that is mended moves what waits for a moment of it, and nothing else.

use jiff::Timestamp;

use super::{Run, Touched, apply::refuse, state::StepState};
use crate::{plan::PlannedStep, policy::of_a_clock_behind};

impl Run {
    /// Whether a step waits for a moment of the wall clock.
    pub fn waits_for_moment(&self) -> bool {
        self.awake.iter().any(|i| self.moment_of(*i).is_some())
    }

    /// The moment of the wall clock that the step waits for.
    pub(super) fn moment_of(&self, i: usize) -> Option<Timestamp> {
        let planned = &self.plan.steps[i];
        match &self.steps[i].state {
            StepState::Waiting { signal: None, ends_at, .. } if planned.waits_for_moment() => *ends_at,
            StepState::Waiting { .. }
            | StepState::Pending
            | StepState::Queued { .. }
            | StepState::Active
            | StepState::Asking { .. }
            | StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => None,
        }
    }

    /// When a wait that is for no signal is over, in the journal's time.
    pub(super) fn wait_is_over_at(&self, planned: &PlannedStep, ends_at: Timestamp) -> Timestamp {
        let ahead_ms = if planned.waits_for_moment() { self.wall_ahead_ms } else { 0 };
        of_a_clock_behind(ends_at, ahead_ms)
    }

    /// What waits for a moment is woken at another time of the journal's.
    pub(super) fn wall_clock_moved(&mut self, ahead_ms: i64, touched: &mut Touched) -> Result<(), String> {
        refuse(!self.waits_for_moment(), "nothing waits for a moment")?;
        self.wall_ahead_ms = ahead_ms;
        for i in self.awake.clone() {
            let Some(ends) = self.moment_of(i) else { continue };
            let wakes = self.wait_is_over_at(&self.plan.steps[i], ends);
            if let StepState::Waiting { wake_at, .. } = &mut self.touch(i, touched).state {
                *wake_at = wakes;
            }
        }
        Ok(())
    }
}
