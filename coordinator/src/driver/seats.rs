//! A run's seats in the placement table: asked for by steps that are queued, given back by those that are over.

use muster_bus::message::AttemptKey;
use muster_engine::run::{Command, Fence, Outstanding, state::StepState};

use super::{
    clock::after_ms,
    run_task::{RunTask, Sits, key_of},
    turn::Turn,
};
use crate::registry::placement::Wish;

impl RunTask {
    /// Give seats back, ask for new ones, and assign what got one. `look_at_all`: something around the run has changed.
    pub(super) fn place(&mut self, turn: &mut Turn, look_at_all: bool) {
        self.give_seats_back(turn);
        let wanted = match turn.touched() {
            _ if look_at_all => turn.run().outstanding(turn.now),
            Some(touched) => turn.run().outstanding_for(touched, turn.now),
            None => return,
        };
        let mut left = self.assign(turn, wanted);
        while left {
            self.give_seats_back(turn);
            left = self.assign(turn, turn.run().outstanding(turn.now));
        }
        self.give_seats_back(turn);
    }

    /// Whether a step has failed instead of being assigned, since its parameters can't be filled in: what follows from that is
    /// outstanding and was not looked at.
    fn assign(&mut self, turn: &mut Turn, wanted: Vec<Outstanding>) -> bool {
        let dispatch_until = after_ms(turn.now, self.shared.intervals.dispatch_within_ms);
        let mut left = false;
        for one in wanted {
            let Outstanding::Place(place) = one else { continue };
            if !self.shared.can_give_out() {
                return left;
            }
            let index = place.index;
            if !self.seats.iter().any(|(step, _)| *step == index) {
                self.seats.push((index, Sits::Asked));
            }
            let step = place.step.clone();
            let Some(seat) = self.shared.registry.place(&self.entry, index, Wish::of(place)) else { continue };
            if turn.pass.is_none() {
                turn.pass = self.shared.drain.try_pass();
            }
            if turn.pass.is_none() {
                continue;
            }
            let before = turn.run().seq;
            let command =
                Command::Assign { step, agent: seat.agent, instance: seat.instance, host: seat.host, dispatch_until };
            self.ours(turn, &command, &self.shared.ours);
            left |= turn.run().seq > before && turn.run().steps[index].state != StepState::Active;
        }
        left
    }

    fn give_seats_back(&mut self, turn: &Turn) {
        let run = turn.run();
        let (shared, entry) = (&self.shared, &self.entry);
        self.seats.retain_mut(|(index, sits)| {
            let Some(step) = run.steps.get(*index) else { return false };
            let live = step.live_attempt().map(|(number, _)| number);
            let keeps = match (*sits, &step.state) {
                (Sits::Attempt(number), _) => live == Some(number),
                (Sits::Asked, StepState::Queued { .. }) => run.pause.is_none(),
                (Sits::Asked, StepState::Active) => true,
                (
                    Sits::Asked,
                    StepState::Pending
                    | StepState::Waiting { .. }
                    | StepState::Asking { .. }
                    | StepState::Succeeded
                    | StepState::Failed { .. }
                    | StepState::Skipped { .. }
                    | StepState::Cancelled
                    | StepState::Undone,
                ) => false,
            };
            if !keeps {
                shared.registry.release(entry, *index);
            } else if let (Sits::Asked, Some(number)) = (*sits, live) {
                *sits = Sits::Attempt(number);
            }
            keeps
        });
    }

    /// The run needs no seats any more; what may still run at an agent though the run has ended takes its slot.
    pub(super) fn leave_table(&mut self) {
        let registry = &self.shared.registry;
        for (index, sits) in std::mem::take(&mut self.seats) {
            match sits {
                Sits::Attempt(_) => match self.left_behind(index) {
                    Some((key, told)) => registry.leave_behind(&self.entry, index, key, told),
                    None => registry.release(&self.entry, index),
                },
                Sits::Asked => registry.release(&self.entry, index),
            }
        }
    }

    /// The attempt that the run has ended without, and whether its agent is to stop it.
    fn left_behind(&self, index: usize) -> Option<(AttemptKey, bool)> {
        let (number, attempt) = self.run.steps[index].live_attempt()?;
        let step = &self.run.plan.steps[index].id;
        let (agent, instance) = (attempt.agent.clone(), attempt.instance.clone());
        let told = self.run.left_behind(&Fence { step: step.clone(), attempt: number, agent, instance })?;
        Some((key_of(&self.entry, step, number), told))
    }
}
