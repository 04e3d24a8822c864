//! Where a step goes after an attempt of it has ended. Asked before the end is applied: the attempt is the step's last.

use jiff::Timestamp;

use crate::{
    plan::{OnFailure, PlannedStep, PlannedUndo, PlannedWait},
    policy::{
        after,
        lost::{self, AfterLoss},
        retry, timeout,
    },
    run::{
        Run, eval,
        event::{AttemptEnd, EndedBy, FailureKind, NotStarted, Outcome, Purpose, QuestionKind, StepNext},
        state::{Attempt, Step},
    },
};

/// A step at a moment.
#[derive(Clone, Copy)]
pub(super) struct StepAt<'a> {
    pub(super) run: &'a Run,
    pub(super) planned: &'a PlannedStep,
    pub(super) step: &'a Step,
    pub(super) now: Timestamp,
}

impl<'a> StepAt<'a> {
    pub(super) fn new(run: &'a Run, i: usize, now: Timestamp) -> Self {
        Self { run, planned: &run.plan.steps[i], step: &run.steps[i], now }
    }

    /// After a report.
    pub(super) fn finished(&self, purpose: Purpose, outcome: &Outcome) -> StepNext {
        match purpose {
            Purpose::Undo => self.undo_finished(outcome),
            Purpose::Run | Purpose::Probe | Purpose::Verify if !self.run.does_steps() => {
                self.finished_while_stopping(outcome)
            }
            Purpose::Run => self.run_finished(outcome),
            Purpose::Probe => self.probe_finished(outcome),
            Purpose::Verify => self.verify_finished(outcome),
        }
    }

    /// After an end that nobody knows the outcome of.
    pub(super) fn unknown(&self, purpose: Purpose, ended_by: EndedBy) -> StepNext {
        let number = self.step.last_attempt();
        let how = match ended_by {
            EndedBy::InstanceGone => "its agent's process is gone",
            EndedBy::Clock => "its time is over and no report has come",
            EndedBy::Superseded => "its agent does not answer",
            EndedBy::Person => "a person says that it has ended",
        };
        if !self.run.does_steps() && purpose != Purpose::Undo {
            return if self.step.done { StepNext::Succeeded } else { StepNext::Cancelled };
        }
        match purpose {
            Purpose::Run => {
                let next = lost::after_lost_run(self.planned.on_lost, self.planned.action.facts);
                self.after_loss(next, &format!("attempt {number} may have run: {how}"))
            }
            Purpose::Probe if self.lost_in_a_row(purpose) < lost::MAX_LOST_LOOKS => {
                self.queued(purpose, self.now, "the check was lost")
            }
            Purpose::Probe => self.ask_may_have_run(&format!("its check (attempt {number}) was lost too: {how}")),
            Purpose::Verify if self.lost_in_a_row(purpose) < lost::MAX_LOST_LOOKS => {
                self.queued(purpose, self.now, "the look was lost")
            }
            Purpose::Verify => self.try_again(&format!("its verification (attempt {number}) was lost: {how}")),
            Purpose::Undo => {
                let again = match (&self.planned.undo, self.lost_in_a_row(purpose) < lost::MAX_LOST_LOOKS) {
                    (PlannedUndo::Auto, again) => again,
                    (PlannedUndo::Action { action, .. }, again) => again && action.facts.idempotent,
                    (PlannedUndo::Irreversible | PlannedUndo::Nothing, _) => false,
                };
                if again {
                    self.queued(purpose, self.now, "the undo was lost")
                } else {
                    self.ask(QuestionKind::UndoFailed, format!("undo (attempt {number}) may have run: {how}"))
                }
            }
        }
    }

    /// After a denial: it never started, and does not count.
    pub(super) fn not_started(&self, purpose: Purpose, why: &NotStarted) -> StepNext {
        if !self.run.does_steps() && purpose != Purpose::Undo {
            return if self.step.done { StepNext::Succeeded } else { StepNext::Cancelled };
        }
        let instance = self.step.attempts.last().map_or("", |a| a.instance.as_str());
        let since = self.step.queued_since;
        let soon = after(self.now, retry::BUSY_BACKOFF_MS);
        let (not_before, why) = match why {
            NotStarted::Busy => (soon, format!("instance {instance} was busy")),
            NotStarted::Draining => (soon, format!("instance {instance} takes nothing new")),
            NotStarted::Refused { why } => (self.now, format!("instance {instance} refused it: {why}")),
            NotStarted::Denied => (self.now, format!("instance {instance} never had it")),
            NotStarted::Unsent => (self.now, format!("nothing could be sent to instance {instance}")),
        };
        self.waiting(purpose, not_before, since.unwrap_or(not_before), &why)
    }

    /// The step waits for an agent, from that moment on.
    pub(super) fn queued(&self, purpose: Purpose, not_before: Timestamp, why: &str) -> StepNext {
        self.waiting(purpose, not_before, not_before, why)
    }

    fn waiting(&self, purpose: Purpose, not_before: Timestamp, since: Timestamp, why: &str) -> StepNext {
        let wake_at = timeout::queue_wake(not_before, since, self.planned.queue_timeout_ms).max(not_before);
        StepNext::Queued { purpose, not_before, wake_at, why: why.to_owned() }
    }

    /// Everything it needs is done: it waits for an agent, or for what it is there to wait for.
    pub(super) fn begun(&self) -> StepNext {
        let ends_at = match &self.planned.wait {
            None => return self.queued(Purpose::Run, self.now, ""),
            Some(PlannedWait::For { ms }) => Some(after(self.now, *ms)),
            Some(PlannedWait::Until { moment }) => match eval::moment(self.run, moment) {
                Ok(moment) => Some(moment),
                Err(error) => return self.failed_for_good(&error),
            },
            Some(PlannedWait::Signal { timeout_ms, .. }) => timeout_ms.map(|ms| after(self.now, ms)),
        };
        let signal = match &self.planned.wait {
            Some(PlannedWait::Signal { name, .. }) => Some(name.clone()),
            Some(PlannedWait::For { .. } | PlannedWait::Until { .. }) | None => None,
        };
        let remind_at = timeout::remind_at(self.now);
        let wake_at = match ends_at {
            Some(ends) if signal.is_none() => self.run.wait_is_over_at(self.planned, ends),
            Some(ends) => ends.min(remind_at),
            None => remind_at,
        };
        StepNext::Waiting { signal, ends_at, wake_at }
    }

    /// The step waits for a person.
    pub(super) fn ask(&self, kind: QuestionKind, question: String) -> StepNext {
        StepNext::Asking { question, kind, remind_at: timeout::remind_at(self.now) }
    }

    /// The step has failed, and no try is left.
    pub(super) fn failed_for_good(&self, reason: &str) -> StepNext {
        match self.planned.on_failure {
            OnFailure::Pause => self.ask(QuestionKind::Failed, reason.to_owned()),
            OnFailure::Undo | OnFailure::Continue => StepNext::Failed { reason: reason.to_owned() },
        }
    }

    /// Done: a second look where the playbook wants one.
    fn done(&self) -> StepNext {
        match &self.planned.verify {
            Some(_) => self.queued(Purpose::Verify, self.now, ""),
            None => StepNext::Succeeded,
        }
    }

    fn run_finished(&self, outcome: &Outcome) -> StepNext {
        match outcome {
            Outcome::Succeeded { .. } => self.done(),
            Outcome::NotSatisfied { diff } => {
                self.try_again(&format!("the action ended without the wanted state: {diff}"))
            }
            Outcome::Failed { kind: FailureKind::Retry, message, .. } => self.try_again(message),
            Outcome::Failed { kind: FailureKind::Permanent, message, .. } => self.failed_for_good(message),
            Outcome::Failed { kind: FailureKind::NeedsPerson, message, .. } => {
                self.ask(QuestionKind::NeedsPerson, message.clone())
            }
            Outcome::Cancelled { may_have_changed } => {
                if *may_have_changed && !self.planned.action.facts.idempotent {
                    self.ask_may_have_run("its agent stopped it on the way")
                } else {
                    self.try_again("its agent stopped it on the way")
                }
            }
        }
    }

    fn probe_finished(&self, outcome: &Outcome) -> StepNext {
        match outcome {
            Outcome::Succeeded { .. } => self.done(),
            Outcome::NotSatisfied { diff } => {
                let next = lost::after_unsatisfied_probe(self.planned.action.facts);
                self.after_loss(next, &format!("a lost attempt did not reach the wanted state: {diff}"))
            }
            Outcome::Failed { message, .. } => self.ask_may_have_run(&format!("its check failed: {message}")),
            Outcome::Cancelled { .. } => self.ask_may_have_run("its check was stopped"),
        }
    }

    fn verify_finished(&self, outcome: &Outcome) -> StepNext {
        match outcome {
            Outcome::Succeeded { output, .. } => {
                let expect = self.planned.verify.as_ref().map_or(&[][..], |v| &v.expect);
                let unmet = expect.iter().find_map(|e| match eval::holds(self.run, e, Some(output)) {
                    Ok(true) => None,
                    Ok(false) => Some(format!("`{e}` does not hold")),
                    Err(error) => Some(format!("`{e}` can't be judged: {error}")),
                });
                unmet.map_or(StepNext::Succeeded, |why| self.look_again(&why))
            }
            Outcome::NotSatisfied { diff } => self.look_again(diff),
            Outcome::Failed { kind: FailureKind::NeedsPerson, message, .. } => {
                self.ask(QuestionKind::NeedsPerson, message.clone())
            }
            Outcome::Failed { kind: FailureKind::Retry | FailureKind::Permanent, message, .. } => {
                self.look_again(message)
            }
            Outcome::Cancelled { .. } => self.look_again("the look was stopped"),
        }
    }

    fn look_again(&self, why: &str) -> StepNext {
        let every = self.planned.verify.as_ref().map_or(0, |v| v.every_ms.max(1));
        let at = after(self.now, every);
        match self.step.verify_until {
            Some(until) if at <= until => self.queued(Purpose::Verify, at, why),
            Some(_) | None => self.try_again(&format!("verification: {why}")),
        }
    }

    fn undo_finished(&self, outcome: &Outcome) -> StepNext {
        let number = self.step.last_attempt();
        match outcome {
            Outcome::Succeeded { .. } => {
                let undoes = self.step.attempts.last().and_then(|a| a.undoes);
                if undoes.is_some() && self.step.prepared.keys().any(|k| Some(*k) != undoes) {
                    self.queued(Purpose::Undo, self.now, "an earlier attempt is to be undone too")
                } else {
                    StepNext::Undone
                }
            }
            Outcome::Failed { kind: FailureKind::Retry, message, .. } => match self.next_try(Purpose::Undo) {
                Some(at) => self.queued(Purpose::Undo, at, message),
                None => self.ask(QuestionKind::UndoFailed, format!("undo failed: {message}")),
            },
            Outcome::Failed { kind: FailureKind::Permanent | FailureKind::NeedsPerson, message, .. } => {
                self.ask(QuestionKind::UndoFailed, format!("undo failed: {message}"))
            }
            Outcome::NotSatisfied { diff } => self
                .ask(QuestionKind::UndoFailed, format!("undo (attempt {number}) did not reach the old state: {diff}")),
            Outcome::Cancelled { .. } => {
                self.ask(QuestionKind::UndoFailed, format!("undo (attempt {number}) was stopped on the way"))
            }
        }
    }

    /// The run is over but for this: what is done is done, and nothing is tried again.
    fn finished_while_stopping(&self, outcome: &Outcome) -> StepNext {
        match outcome {
            Outcome::Succeeded { .. } => StepNext::Succeeded,
            Outcome::NotSatisfied { .. } | Outcome::Failed { .. } | Outcome::Cancelled { .. } if self.step.done => {
                StepNext::Succeeded
            }
            // It has its turn at the end, with all its tries.
            Outcome::Failed { kind: FailureKind::Retry, .. } if self.planned.always => StepNext::Cancelled,
            Outcome::Failed { message, .. } => StepNext::Failed { reason: message.clone() },
            Outcome::NotSatisfied { .. } | Outcome::Cancelled { .. } => StepNext::Cancelled,
        }
    }

    fn after_loss(&self, next: AfterLoss, why: &str) -> StepNext {
        match next {
            AfterLoss::Probe => self.queued(Purpose::Probe, self.now, why),
            AfterLoss::RunAgain => self.run_again(why),
            AfterLoss::Ask => self.ask_may_have_run(why),
        }
    }

    fn ask_may_have_run(&self, why: &str) -> StepNext {
        let question = format!("{why}. Look at what it did: has {} been done?", self.planned.id);
        self.ask(QuestionKind::MayHaveRun, question)
    }

    /// Another run attempt in place of a lost one, which is no failure of the action.
    fn run_again(&self, why: &str) -> StepNext {
        let runs = || self.counted(Purpose::Run);
        let lost = runs().filter(|a| matches!(a.end, None | Some((_, AttemptEnd::Unknown { .. })))).count();
        if lost >= lost::MAX_LOST_RUNS as usize {
            return self.ask_may_have_run(&format!("{why}; that was the {lost}. attempt that was lost"));
        }
        let seed = retry::seed(self.run.id.as_str(), self.planned.id.as_str(), self.step.last_attempt());
        let first = runs().next().map(|a| a.assigned_at);
        match retry::next_try(&self.planned.retry, 0, first, self.now, seed) {
            Some(at) => self.queued(Purpose::Run, at, why),
            None => self.failed_for_good(why),
        }
    }

    /// The attempts of a purpose that began, since a person last asked for another try.
    fn counted(&self, purpose: Purpose) -> impl Iterator<Item = &Attempt> + '_ {
        let forgiven = usize::try_from(self.step.forgiven_attempts).unwrap_or(usize::MAX);
        let of_purpose = self.step.attempts.iter().skip(forgiven).filter(move |a| a.purpose == purpose);
        of_purpose.filter(|a| !matches!(a.end, Some((_, AttemptEnd::NotStarted { .. }))))
    }

    /// Another run attempt, while the policy has one.
    fn try_again(&self, why: &str) -> StepNext {
        match self.next_try(Purpose::Run) {
            Some(at) => self.queued(Purpose::Run, at, why),
            None => self.failed_for_good(why),
        }
    }

    fn next_try(&self, purpose: Purpose) -> Option<Timestamp> {
        let undoes = self.step.attempts.last().and_then(|a| a.undoes);
        let tries = || self.counted(purpose).filter(move |a| purpose != Purpose::Undo || a.undoes == undoes);
        let lost = |a: &&Attempt| purpose == Purpose::Run && matches!(a.end, Some((_, AttemptEnd::Unknown { .. })));
        let count = u32::try_from(tries().filter(|a| !lost(a)).count()).unwrap_or(u32::MAX);
        let seed = retry::seed(self.run.id.as_str(), self.planned.id.as_str(), self.step.last_attempt());
        retry::next_try(&self.planned.retry, count, tries().next().map(|a| a.assigned_at), self.now, seed)
    }

    /// How many attempts of this purpose, the live one included, were lost without one of another purpose between.
    fn lost_in_a_row(&self, purpose: Purpose) -> u32 {
        let lost = self.step.attempts.iter().rev().take_while(|a| {
            a.purpose == purpose
                && match &a.end {
                    None | Some((_, AttemptEnd::Unknown { .. } | AttemptEnd::NotStarted { .. })) => true,
                    Some((_, AttemptEnd::Finished { .. })) => false,
                }
        });
        u32::try_from(lost.filter(|a| !matches!(a.end, Some((_, AttemptEnd::NotStarted { .. })))).count())
            .unwrap_or(u32::MAX)
    }
}
