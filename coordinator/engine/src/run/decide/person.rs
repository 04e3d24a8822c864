//! What people decide.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{next::StepAt, run_state, step_state};
use crate::{
    ids::{AttemptNumber, StepId},
    plan::{OnCancel, PlannedWait},
    policy::timeout,
    run::{
        Event, Rejection, Resolution, Run,
        event::{Purpose, QuestionKind, StepNext},
        state::{PhaseState, RunState, StepState},
    },
};

/// A person's answer about a step.
pub(super) struct Answer<'a> {
    pub(super) resolution: Resolution,
    pub(super) reason: &'a str,
    pub(super) output: Option<&'a Arc<Value>>,
}

pub(super) fn cancel(run: &Run, reason: &str, force: bool) -> Result<Vec<Event>, Rejection> {
    let forced_already = run.cancel.as_ref().is_some_and(|c| c.force);
    match run.state {
        RunState::Ended { .. } => Err(Rejection::RunEnded),
        RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } if !force || forced_already => {
            Err(Rejection::Forbidden { what: "cancelling without force", state: run_state(run) })
        }
        RunState::Running | RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } => {
            let undo = !force && run.plan.on_cancel == OnCancel::Undo;
            Ok(vec![Event::CancelRequested { reason: reason.to_owned(), undo, force }])
        }
    }
}

pub(super) fn pause(run: &Run, reason: &str, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    if run.has_ended() {
        return Err(Rejection::RunEnded);
    }
    if run.pause.is_some() {
        return Err(Rejection::Forbidden { what: "pausing", state: run_state(run) });
    }
    Ok(vec![Event::RunPaused { reason: reason.to_owned(), question: None, remind_at: timeout::remind_at(now) }])
}

/// More attempts of one step than this are not lost with the end of a log.
const NUMBERS_LEFT_OUT: AttemptNumber = 1_000;

pub(super) fn accept_loss(run: &Run, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    if run.has_ended() {
        return Err(Rejection::RunEnded);
    }
    let last = run.steps.iter().map(|s| s.last_attempt()).max().unwrap_or(0).max(run.attempts_from);
    let attempts_from = (last / NUMBERS_LEFT_OUT + 1).saturating_mul(NUMBERS_LEFT_OUT).saturating_add(1);
    Ok(vec![Event::RecordsLost {
        attempts_from,
        reason: "records of the journal are lost, and this run may have gone on in them".to_owned(),
        question: "what have its steps done since the last event here? Look, resolve those that went further, then \
                   resume or cancel the run"
            .to_owned(),
        remind_at: timeout::remind_at(now),
    }])
}

/// Ends a pause, and tries again the steps whose policy was to pause.
pub(super) fn resume(run: &Run, reason: &str, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    if run.has_ended() {
        return Err(Rejection::RunEnded);
    }
    let mut events = Vec::new();
    if run.pause.is_some() {
        events.push(Event::RunResumed { reason: reason.to_owned() });
    }
    for i in &run.awake {
        if matches!(run.steps[*i].state, StepState::Asking { kind: QuestionKind::Failed, .. }) {
            // What can't begin goes on asking.
            events.extend(again(run, *i, Purpose::Run, reason, now).ok());
        }
    }
    if events.is_empty() {
        return Err(Rejection::Forbidden { what: "resuming", state: run_state(run) });
    }
    Ok(events)
}

pub(super) fn signal(run: &Run, signal: &str, payload: &Arc<Value>, reason: &str) -> Result<Vec<Event>, Rejection> {
    let named = |wait: &Option<PlannedWait>| matches!(wait, Some(PlannedWait::Signal { name, .. }) if name == signal);
    if !run.plan.steps.iter().any(|planned| named(&planned.wait)) {
        return Err(Rejection::UnknownSignal(signal.to_owned()));
    }
    if run.has_ended() {
        return Err(Rejection::RunEnded);
    }
    if run.signals.contains_key(signal) {
        return Ok(Vec::new());
    }
    Ok(vec![Event::SignalReceived {
        signal: signal.to_owned(),
        payload: Arc::clone(payload),
        reason: reason.to_owned(),
    }])
}

pub(super) fn retry(run: &Run, id: &StepId, reason: &str, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    let i = known(run, id)?;
    match &run.steps[i].state {
        StepState::Asking { kind: QuestionKind::UndoFailed, .. } => {
            Ok(vec![again(run, i, Purpose::Undo, reason, now)?])
        }
        StepState::Asking { .. } => Ok(vec![again(run, i, Purpose::Run, reason, now)?]),
        StepState::Failed { .. } if may_go_on(run, i) => Ok(vec![again(run, i, Purpose::Run, reason, now)?]),
        StepState::Failed { .. } => Err(Rejection::Forbidden {
            what: "retrying the step",
            state: format!("{}, and the step's phase is over", run_state(run)),
        }),
        StepState::Pending
        | StepState::Queued { .. }
        | StepState::Active
        | StepState::Waiting { .. }
        | StepState::Succeeded
        | StepState::Skipped { .. }
        | StepState::Cancelled
        | StepState::Undone => Err(forbidden(run, i, "retrying the step")),
    }
}

pub(super) fn resolve(run: &Run, id: &StepId, answer: &Answer<'_>, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    let i = known(run, id)?;
    let step = &run.steps[i];
    let purpose = match &step.state {
        StepState::Queued { purpose, .. } => *purpose,
        StepState::Asking { kind: QuestionKind::UndoFailed, .. } => Purpose::Undo,
        StepState::Waiting { .. } | StepState::Asking { .. } => Purpose::Run,
        StepState::Active if word_counts(run, i, now) => match step.live_attempt() {
            Some((_, attempt)) if attempt.purpose == Purpose::Undo => Purpose::Undo,
            Some(_) | None => Purpose::Run,
        },
        StepState::Failed { .. } if answer.resolution == Resolution::Retry => {
            return retry(run, id, answer.reason, now);
        }
        StepState::Failed { .. } if answer.resolution != Resolution::Failed && may_go_on(run, i) => Purpose::Run,
        StepState::Active
        | StepState::Failed { .. }
        | StepState::Pending
        | StepState::Succeeded
        | StepState::Skipped { .. }
        | StepState::Cancelled
        | StepState::Undone => return Err(forbidden(run, i, "resolving the step")),
    };
    let undoing = purpose == Purpose::Undo;
    let reason = || answer.reason.to_owned();
    let next = match answer.resolution {
        Resolution::Retry if !undoing && !run.does_steps() => {
            return Err(Rejection::Forbidden { what: "retrying the step", state: run_state(run) });
        }
        Resolution::Retry => return Ok(vec![again(run, i, purpose, answer.reason, now)?]),
        Resolution::Succeeded if undoing => StepNext::Undone,
        Resolution::Succeeded => StepNext::Succeeded,
        Resolution::Skip if undoing && step.done => StepNext::Succeeded,
        Resolution::Skip if undoing => StepNext::Failed { reason: reason() },
        Resolution::Skip => StepNext::Skipped { reason: reason() },
        Resolution::Failed => StepNext::Failed { reason: reason() },
    };
    Ok(vec![resolved(id, answer, next)])
}

/// Whether a person may say how an unconfirmed attempt has ended: its instance is lost, or its time is over.
fn word_counts(run: &Run, i: usize, now: Timestamp) -> bool {
    run.steps[i].live_attempt().is_some_and(|(_, attempt)| {
        attempt.lost_at.is_some() || timeout::ends_by(attempt.dispatch_until, run.plan.steps[i].timeout_ms) <= now
    })
}

/// A wait that can't begin (its moment is none) is as it was: to try again is refused.
fn again(run: &Run, i: usize, purpose: Purpose, reason: &str, now: Timestamp) -> Result<Event, Rejection> {
    let at = StepAt::new(run, i, now);
    let next = if purpose == Purpose::Run { at.begun() } else { at.queued(purpose, now, "") };
    match next {
        StepNext::Failed { reason: why } | StepNext::Asking { question: why, .. } => {
            Err(Rejection::Forbidden { what: "retrying the step", state: why })
        }
        StepNext::Queued { .. }
        | StepNext::Waiting { .. }
        | StepNext::Succeeded
        | StepNext::Skipped { .. }
        | StepNext::Cancelled
        | StepNext::Undone => {
            let answer = Answer { resolution: Resolution::Retry, reason, output: None };
            Ok(resolved(&at.planned.id, &answer, next))
        }
    }
}

fn resolved(id: &StepId, answer: &Answer<'_>, next: StepNext) -> Event {
    Event::StepResolved {
        step: id.clone(),
        resolution: answer.resolution,
        reason: answer.reason.to_owned(),
        output: answer.output.cloned(),
        next,
    }
}

fn known(run: &Run, id: &StepId) -> Result<usize, Rejection> {
    let i = run.step_index(id).ok_or_else(|| Rejection::UnknownStep(id.clone()))?;
    if run.has_ended() { Err(Rejection::RunEnded) } else { Ok(i) }
}

fn may_go_on(run: &Run, i: usize) -> bool {
    let planned = &run.plan.steps[i];
    match run.state {
        RunState::Running => run.phases[planned.phase].state == PhaseState::Active,
        RunState::Finishing { .. } => planned.always,
        RunState::Cancelling | RunState::RollingBack | RunState::Ended { .. } => false,
    }
}

fn forbidden(run: &Run, i: usize, what: &'static str) -> Rejection {
    Rejection::Forbidden { what, state: step_state(run, i) }
}
