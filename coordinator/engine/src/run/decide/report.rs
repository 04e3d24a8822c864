//! What agents say.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::next::StepAt;
use crate::run::{
    Event, Fence, Rejection, Report, Run, Verdict,
    event::{AttemptEnd, NotStarted, Outcome, StatusNote},
};

/// The attempt's end; a stale one is kept as evidence.
pub(super) fn finish(run: &Run, fence: &Fence, outcome: &Outcome, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    match run.verdict(fence, Report::Finished(outcome)) {
        Verdict::New => {
            let end = AttemptEnd::Finished { outcome: outcome.clone() };
            let (i, purpose) = live(run, fence)?;
            let next = StepAt::new(run, i, now).finished(purpose, outcome);
            Ok(vec![Event::AttemptEnded { step: fence.step.clone(), attempt: fence.attempt, end, next }])
        }
        Verdict::Repeated => Ok(Vec::new()),
        Verdict::Stale => Ok(vec![stale(fence, json!({ "finished": outcome }))]),
        Verdict::Conflict => Err(conflict(fence)),
        Verdict::Unknown => Err(unknown(run, fence)),
    }
}

/// What undo will need, before the first change.
pub(super) fn prepare(run: &Run, fence: &Fence, undo: &Arc<Value>) -> Result<Vec<Event>, Rejection> {
    match run.verdict(fence, Report::Prepared(undo)) {
        Verdict::New => {
            let (step, attempt, undo) = (fence.step.clone(), fence.attempt, Arc::clone(undo));
            Ok(vec![Event::AttemptPrepared { step, attempt, undo }])
        }
        Verdict::Repeated => Ok(Vec::new()),
        Verdict::Stale => Ok(vec![stale(fence, json!({ "prepared": undo }))]),
        Verdict::Conflict => Err(conflict(fence)),
        Verdict::Unknown => Err(unknown(run, fence)),
    }
}

/// How it goes; only what is new, of the attempt that is at work.
pub(super) fn status(run: &Run, fence: &Fence, status: &StatusNote) -> Vec<Event> {
    let Ok((i, _)) = live(run, fence) else { return Vec::new() };
    let known = run.steps[i].live_attempt().and_then(|(_, a)| a.status.as_ref());
    if run.has_ended() || known == Some(status) {
        return Vec::new();
    }
    vec![Event::StatusReported { step: fence.step.clone(), attempt: fence.attempt, status: status.clone() }]
}

/// It never started. Who has prepared or sent a status says otherwise: that attempt ends by its report or its clock.
pub(super) fn deny(run: &Run, fence: &Fence, why: &NotStarted, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    if run.step_index(&fence.step).is_none() {
        return Err(Rejection::UnknownStep(fence.step.clone()));
    }
    match live(run, fence) {
        Ok((i, purpose)) if !run.has_ended() && !run.live_attempt_has_begun(i) => {
            let next = StepAt::new(run, i, now).not_started(purpose, why);
            let end = AttemptEnd::NotStarted { why: why.clone() };
            Ok(vec![Event::AttemptEnded { step: fence.step.clone(), attempt: fence.attempt, end, next }])
        }
        Ok(_) | Err(_) => Ok(Vec::new()),
    }
}

fn live(run: &Run, fence: &Fence) -> Result<(usize, crate::run::event::Purpose), Rejection> {
    let i = run.step_index(&fence.step).filter(|_| run.is_live(fence));
    let found = i.and_then(|i| Some((i, run.steps[i].live_attempt()?.1.purpose)));
    found.ok_or_else(|| unknown(run, fence))
}

fn stale(fence: &Fence, report: Value) -> Event {
    Event::ReportArrivedStale {
        step: fence.step.clone(),
        attempt: fence.attempt,
        agent: fence.agent.clone(),
        instance: fence.instance.clone(),
        report,
    }
}

fn conflict(fence: &Fence) -> Rejection {
    Rejection::Conflict { step: fence.step.clone(), attempt: fence.attempt }
}

fn unknown(run: &Run, fence: &Fence) -> Rejection {
    if run.step_index(&fence.step).is_none() {
        Rejection::UnknownStep(fence.step.clone())
    } else {
        Rejection::UnknownAttempt { step: fence.step.clone(), attempt: fence.attempt }
    }
}
