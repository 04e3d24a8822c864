//! A queued step is given to an instance.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{next::StepAt, run_state, step_state};
use crate::{
    ids::{AgentName, AttemptNumber, HostLabel, InstanceId, StepId},
    policy::timeout,
    run::{
        Event, Rejection, Run,
        event::{AttemptAssigned, Purpose, QuestionKind, StepNext},
        state::StepState,
        undo,
    },
};

/// The instance that takes it.
pub(super) struct To<'a> {
    pub(super) agent: &'a AgentName,
    pub(super) instance: &'a InstanceId,
    pub(super) host: Option<&'a HostLabel>,
    pub(super) dispatch_until: Timestamp,
}

/// The next attempt of a step; where its parameters can't be rendered, the step fails instead, and nothing is assigned.
pub(super) fn assign(run: &Run, id: &StepId, to: &To<'_>, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    let i = run.step_index(id).ok_or_else(|| Rejection::UnknownStep(id.clone()))?;
    let purpose = assignable(run, i, to, now)?;
    let at = StepAt::new(run, i, now);
    let undoes = if purpose == Purpose::Undo { undo::next_prepared(at.step, at.planned) } else { None };
    let with = match with(run, i, purpose, undoes) {
        Ok(with) => with,
        Err(why) => {
            let why = format!("its parameters can't be filled in: {why}");
            let next =
                if purpose == Purpose::Undo { at.ask(QuestionKind::UndoFailed, why) } else { at.failed_for_good(&why) };
            return Ok(vec![Event::StepMoved { step: id.clone(), next }]);
        }
    };
    let attempt = run.next_attempt(i).ok_or_else(|| Rejection::Forbidden {
        what: "another attempt",
        state: "all attempt numbers are used".to_owned(),
    })?;
    Ok(vec![Event::AttemptAssigned(Box::new(AttemptAssigned {
        step: id.clone(),
        attempt,
        purpose,
        agent: to.agent.clone(),
        instance: to.instance.clone(),
        host: to.host.cloned(),
        dispatch_until: to.dispatch_until,
        ends_by: timeout::ends_by(to.dispatch_until.max(now), at.planned.timeout_ms),
        with,
        undoes,
    }))])
}

fn assignable(run: &Run, i: usize, to: &To<'_>, now: Timestamp) -> Result<Purpose, Rejection> {
    let forbidden = |state: String| Rejection::Forbidden { what: "assigning the step", state };
    if run.has_ended() {
        return Err(Rejection::RunEnded);
    }
    if run.pause.is_some() {
        return Err(forbidden(run_state(run)));
    }
    let StepState::Queued { purpose, not_before, .. } = &run.steps[i].state else {
        return Err(forbidden(step_state(run, i)));
    };
    if *not_before > now {
        return Err(forbidden(format!("it has to wait until {not_before}")));
    }
    if run.steps[i].excluded.contains(to.instance) {
        return Err(forbidden(format!("instance {} has refused it", to.instance)));
    }
    match run.host_for(i, *purpose) {
        Some(host) if to.host != Some(host) => Err(forbidden(format!("the step belongs to host {host}"))),
        Some(_) | None => Ok(*purpose),
    }
}

/// A probe and an undo look at what an earlier attempt was told to do; everything else is rendered from the plan.
fn with(run: &Run, i: usize, purpose: Purpose, undoes: Option<AttemptNumber>) -> Result<Arc<Value>, String> {
    let facts = &run.plan.facts().steps[i];
    let (planned, step) = (&run.plan.steps[i], &run.steps[i]);
    let of_run = || step.attempts.iter().rev().find(|a| a.purpose == Purpose::Run).map(|a| Arc::clone(&a.with));
    let from_plan = || match &facts.constant_with {
        Some(with) => Ok(Arc::clone(with)),
        None => crate::run::eval::rendered(run, &planned.with),
    };
    match purpose {
        Purpose::Run => from_plan(),
        Purpose::Probe => of_run().map_or_else(from_plan, Ok),
        Purpose::Verify => match &planned.verify {
            Some(verify) => crate::run::eval::rendered(run, &verify.with),
            None => Err("the plan has no verification for it".to_owned()),
        },
        Purpose::Undo => match undo::custom(planned) {
            Some(with) => crate::run::eval::rendered(run, with),
            None => undoes
                .and_then(|n| step.attempt(n))
                .map(|a| Arc::clone(&a.with))
                .or_else(of_run)
                .map_or_else(from_plan, Ok),
        },
    }
}

/// The step waits for nobody any more: a question instead of an agent.
pub(super) fn gave_up_waiting(at: &StepAt<'_>, purpose: Purpose) -> StepNext {
    let role = &at.planned.agent.role;
    let why = format!("no agent of role {role} took it in time");
    match purpose {
        Purpose::Run | Purpose::Verify => at.failed_for_good(&why),
        Purpose::Probe => at.ask(QuestionKind::MayHaveRun, format!("{why}; a lost attempt of it may have run")),
        Purpose::Undo => at.ask(QuestionKind::UndoFailed, format!("{why}, so it is not undone")),
    }
}
