//! What leaves a run's task once its turn is on disk, and never before: answers, tasks, orders to stop, and what watchers and lists are
//! told.

use jiff::Timestamp;
use muster_engine::{
    ids::Actor,
    run::{Dispatch, Event, Outstanding},
};
use std::sync::Arc;
use tracing::debug;

use super::{
    dispatch::Errand,
    run_task::{RunTask, key_of},
    turn::{Made, Pending, Recorded, Turn},
};
use crate::control::{RunChange, RunEvent};

impl RunTask {
    /// The turn is on disk: let its effects out.
    pub(super) fn act(&mut self, mut turn: Turn) {
        let Made { run, events, touched } = turn.made(&self.shared.ours);
        let at = turn.now;
        let first = run.seq - events.len() as u64 + 1;
        let before = std::mem::replace(&mut self.run, run);
        if !events.is_empty() {
            self.entry.publish(&self.run);
            self.note_for_lists(&touched);
        }
        let mut recorded = Vec::new();
        for pending in turn.answers {
            match pending {
                Pending::Recorded(answer) => recorded.push(answer),
                Pending::Report(to, payload) => to.send(payload),
                Pending::Taken(answer) => drop(answer.send(Ok(Arc::clone(&self.run)))),
                Pending::Refused(answer, e) => drop(answer.send(Err(*e))),
            }
        }
        if !touched.is_empty() {
            self.reconcile(self.run.outstanding_for(&touched, at), &mut recorded);
        }
        for answer in recorded {
            answer.send(&self.shared);
        }
        for (_, event) in &events {
            self.shared.figures.count(event);
            if let Event::OwnerReminded { subject, .. } = event {
                self.remind(subject, at);
            }
        }
        if !touched.phases.is_empty() {
            self.shared.tell_milestones(&before, &self.run);
        }
        if !self.watchers.is_empty() {
            let events = (first..).zip(events).map(|(seq, (by, event))| (seq, at, by, event));
            self.tell_watchers(events.collect());
        }
        self.set_wake_up();
        if self.run.has_ended() && !self.told_of_end {
            self.told_of_end = true;
            self.leave_table();
            debug!(run_id = %self.entry.id, "run ended");
            self.shared.runs.ended(&self.entry);
        }
    }

    /// Make the outside what it should be: tasks are under way, agents are told to stop. A task goes in one of the `answers` if
    /// that is to its instance; the others are left.
    pub(super) fn reconcile(&mut self, outstanding: Vec<Outstanding>, answers: &mut Vec<Recorded>) {
        self.end_errands();
        for one in outstanding {
            match one {
                Outstanding::Dispatch(dispatch) => {
                    let (step, attempt) = (dispatch.index, dispatch.attempt);
                    if self.errands.iter().any(|(s, a, _)| *s == step && *a == attempt) {
                        continue;
                    }
                    let unsent = !self.adopted.contains(&(step, attempt));
                    let answer = self.answer_for(&dispatch, answers);
                    let errand = Errand::new(&self.entry, &self.run, dispatch, unsent);
                    let token = match answer {
                        Some(answer) => self.shared.begin_errand_in(errand, answer),
                        None => self.shared.begin_errand(errand),
                    };
                    self.errands.push((step, attempt, token));
                }
                Outstanding::CancelAttempt(cancel) => {
                    let key = key_of(&self.entry, &cancel.step, cancel.attempt);
                    self.shared.registry.order_cancel(&cancel.instance, key.clone());
                    self.cancels.push((cancel.index, cancel.instance, key));
                }
                Outstanding::Place(_) | Outstanding::WakeAt(_) => {}
            }
        }
    }

    /// One that can take the task along.
    fn answer_for(&self, dispatch: &Dispatch, answers: &mut Vec<Recorded>) -> Option<Recorded> {
        // Of two to one report, who asked first waits no longer.
        // Who had the id of the instance before may still report of that time.
        let is_to = |answer: &Recorded| answer.agent == dispatch.agent && answer.instance == dispatch.instance;
        let at = answers.iter().rposition(is_to)?;
        let takes = self.shared.registry.takes_in_answers(&self.entry.namespace, &dispatch.agent, &dispatch.instance);
        takes.then(|| answers.swap_remove(at))
    }

    fn end_errands(&mut self) {
        let run = &self.run;
        // What is to be stopped of a run that has ended, its agent is told while it holds it.
        let is_live = |step: usize, attempt: u32| {
            !run.has_ended() && run.steps[step].live_attempt().is_some_and(|(number, _)| number == attempt)
        };
        let (shared, registry) = (&self.shared, &self.shared.registry);
        self.errands.retain(|(step, attempt, errand)| {
            let live = is_live(*step, *attempt);
            if !live {
                shared.end_errand(*errand);
            }
            live
        });
        self.cancels.retain(|(step, instance, key)| {
            let live = is_live(*step, key.attempt);
            if !live {
                registry.forget_order(instance, key);
            }
            live
        });
    }

    pub(super) fn tell_watchers(&mut self, events: Vec<(u64, Timestamp, Actor, Event)>) {
        for (seq, at, by, event) in events {
            let event = RunEvent { seq, at, by, event: Arc::new(event) };
            let change = RunChange { event, run: Arc::clone(&self.run) };
            self.watchers.retain(|watcher| watcher.send(change.clone()));
        }
        if self.run.has_ended() {
            self.watchers.clear();
        }
    }
}
