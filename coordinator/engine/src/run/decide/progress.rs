//! What follows from what has changed: readiness, skips, gates, the ends of phases, the walk back, the end of the run.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::next::StepAt;
use crate::{
    plan::PlannedGate,
    policy::{gate, timeout},
    run::{
        Event, Run, Touched, eval,
        event::{AttemptEnd, Criterion, GateVerdict, PhaseOutcome, Purpose, QuestionKind, RunOutcome, StepNext},
        state::{Cancel, PhaseState, RunState, StepState},
        undo::{self, Need},
    },
};

/// The next events that follow; none: the run is at rest.
pub(super) fn consequences(run: &Run, fresh: &Touched, now: Timestamp) -> Vec<Event> {
    match &run.state {
        RunState::Running => running(run, fresh, now),
        // A pause holds what can't be taken back; what ended meanwhile is looked at when the run goes on.
        RunState::Cancelling | RunState::RollingBack if run.pause.is_some() => Vec::new(),
        RunState::Cancelling => cancelling(run),
        RunState::RollingBack => rolling_back(run, now),
        RunState::Finishing { outcome, reason } => finishing(run, fresh, now, *outcome, reason),
        RunState::Ended { .. } => Vec::new(),
    }
}

fn running(run: &Run, fresh: &Touched, now: Timestamp) -> Vec<Event> {
    let failed = fresh.steps.iter().find_map(|i| run.fails_with(*i).map(|reason| (*i, reason)));
    if let Some((i, reason)) = failed.filter(|_| run.pause.is_none()) {
        return give_up(run, &format!("step {} failed: {reason}", run.plan.steps[i].id));
    }
    // All that follows from what is fresh, at once: it is looked at this one time. None of them is about a step of another.
    let mut events = skip_dependents(run, fresh);
    events.extend(signalled(run, fresh));
    events.extend(judge_conditions(run, fresh, now));
    if !events.is_empty() {
        return events;
    }
    if run.pause.is_some() {
        return Vec::new();
    }
    match run.phases.iter().position(|p| p.state == PhaseState::Active) {
        Some(p) if run.phases[p].open_steps > 0 => Vec::new(),
        Some(p) => end_phase(run, p, now),
        None => match run.phases.iter().position(|p| p.state == PhaseState::Pending) {
            Some(p) => begin_phase(run, p, now),
            None => vec![end_of_run(run)],
        },
    }
}

/// The active phase has failed, and the walk back is wanted.
fn give_up(run: &Run, reason: &str) -> Vec<Event> {
    let active = run.phases.iter().zip(&run.plan.phases).find(|(p, _)| p.state == PhaseState::Active);
    let ended = active.map(|(_, p)| Event::PhaseEnded { phase: p.id.clone(), outcome: PhaseOutcome::Failed });
    ended.into_iter().chain([Event::RollbackRequested { reason: reason.to_owned() }]).collect()
}

/// Everything behind a step that has failed and does not stop the run; the farthest first, so that nothing becomes ready
/// because what it needs was skipped.
fn skip_dependents(run: &Run, fresh: &Touched) -> Vec<Event> {
    let index = run.plan.facts();
    let mut behind = std::collections::BTreeMap::new();
    let goes_on = |i: usize| matches!(run.steps[i].state, StepState::Failed { .. }) && run.fails_with(i).is_none();
    for failed in fresh.steps.iter().filter(|i| goes_on(**i)) {
        let mut open = vec![*failed];
        while let Some(i) = open.pop() {
            for d in index.dependents(i) {
                let waits = run.steps[*d].state == StepState::Pending && !run.plan.steps[*d].always;
                if waits && behind.insert(*d, *failed).is_none() {
                    open.push(*d);
                }
            }
        }
    }
    let skip = |(i, failed): (usize, usize)| {
        let reason = format!("it needs {}, which failed", run.plan.steps[failed].id);
        Event::StepMoved { step: run.plan.steps[i].id.clone(), next: StepNext::Skipped { reason } }
    };
    behind.into_iter().rev().map(skip).collect()
}

/// The steps whose signal has come.
fn signalled(run: &Run, fresh: &Touched) -> Vec<Event> {
    let mut waiting: Vec<usize> = fresh.steps.clone();
    waiting.retain(|i| run.signals.keys().any(|signal| run.steps[*i].waits_for(signal)));
    waiting.sort_unstable();
    waiting.dedup();
    let end = |i: usize| Event::StepMoved { step: run.plan.steps[i].id.clone(), next: StepNext::Succeeded };
    waiting.into_iter().map(end).collect()
}

/// The steps that wait for nothing but a look at their `when`.
fn judge_conditions(run: &Run, fresh: &Touched, now: Timestamp) -> Vec<Event> {
    let index = run.plan.facts();
    let begun = fresh.phases.iter().filter(|p| run.phases[**p].state == PhaseState::Active);
    let mut candidates: Vec<usize> = begun.flat_map(|p| run.plan.phases[*p].steps.iter().copied()).collect();
    for i in &fresh.steps {
        candidates.push(*i);
        candidates.extend(index.dependents(*i));
    }
    candidates.retain(|i| !run.plan.steps[*i].begins_by_itself() && run.is_ready(*i, &run.plan.steps[*i]));
    candidates.sort_unstable();
    candidates.dedup();
    let judge = |i: usize| {
        let at = StepAt::new(run, i, now);
        let when = at.planned.when.as_deref().unwrap_or("true");
        let next = match eval::holds(run, when, None) {
            Ok(true) => at.begun(),
            Ok(false) => StepNext::Skipped { reason: format!("`{when}` does not hold") },
            Err(error) => at.failed_for_good(&format!("`{when}` can't be judged: {error}")),
        };
        Event::StepMoved { step: at.planned.id.clone(), next }
    };
    candidates.into_iter().map(judge).collect()
}

fn begin_phase(run: &Run, p: usize, now: Timestamp) -> Vec<Event> {
    let planned = &run.plan.phases[p];
    let phase = planned.id.clone();
    let holds = planned.when.as_deref().map_or(Ok(true), |when| eval::holds(run, when, None));
    match holds {
        Ok(true) => vec![Event::PhaseStarted { phase }],
        Ok(false) => vec![Event::PhaseEnded { phase, outcome: PhaseOutcome::Skipped }],
        Err(error) => vec![pause_with_question(
            format!("whether phase {phase} is to be run can't be judged: {error}"),
            format!("resume to judge `when` of phase {phase} again, or cancel the run"),
            now,
        )],
    }
}

/// All its steps are over: its gate is judged, and the phase ends.
fn end_phase(run: &Run, p: usize, now: Timestamp) -> Vec<Event> {
    let planned = &run.plan.phases[p];
    let phase = || planned.id.clone();
    let mut events = Vec::with_capacity(2);
    if let Some(gate) = &planned.gate {
        let (verdict, criteria) = judge_gate(run, gate);
        let found = describe(&criteria, &gate.failure_condition);
        events.push(Event::GateJudged { phase: phase(), verdict, criteria });
        match verdict {
            GateVerdict::Passed => {}
            GateVerdict::Failed => {
                events.extend(give_up(run, &format!("the gate of phase {} failed: {found}", planned.id)));
                return events;
            }
            GateVerdict::Inconclusive => {
                events.push(pause_with_question(
                    format!("the gate of phase {} is inconclusive: {found}", planned.id),
                    format!("resume to judge the gate of phase {} again, or cancel the run", planned.id),
                    now,
                ));
                return events;
            }
        }
    }
    if planned.steps.iter().any(|i| run.counts_as_failed(*i).is_some()) {
        events.push(Event::PhaseEnded { phase: phase(), outcome: PhaseOutcome::Failed });
        return events;
    }
    events.push(Event::PhaseEnded { phase: phase(), outcome: PhaseOutcome::Completed });
    if let Some(milestone) = &run.phases[p].milestone {
        let late = milestone.due_at.is_some_and(|due| now >= due);
        events.push(Event::MilestoneReached { phase: phase(), late });
    }
    events
}

fn judge_gate(run: &Run, planned: &PlannedGate) -> (GateVerdict, Vec<Criterion>) {
    let judge = |expression: &String| {
        let (value, error) = match eval::judged(run, expression) {
            Ok(value) => (Some(value), String::new()),
            Err(error) => (None, error),
        };
        Criterion { expression: expression.clone(), value, error }
    };
    let mut success: Vec<_> = planned.success_condition.iter().map(judge).collect();
    let failure: Vec<_> = planned.failure_condition.iter().map(judge).collect();
    let verdict = gate::judge(&success, &failure);
    success.extend(failure);
    (verdict, success)
}

/// The criteria that are not as they should be.
fn describe(criteria: &[Criterion], failure_conditions: &[String]) -> String {
    let first_failure = criteria.len() - failure_conditions.len().min(criteria.len());
    let wrong = criteria.iter().enumerate().filter_map(|(n, c)| match c.value {
        None => Some(format!("`{}` can't be judged: {}", c.expression, c.error)),
        Some(value) if value == (n >= first_failure) => Some(format!("`{}` is {value}", c.expression)),
        Some(_) => None,
    });
    wrong.collect::<Vec<_>>().join("; ")
}

fn pause_with_question(reason: String, question: String, now: Timestamp) -> Event {
    Event::RunPaused { reason, question: Some(question), remind_at: timeout::remind_at(now) }
}

fn end_of_run(run: &Run) -> Event {
    let failed = (0..run.steps.len()).find_map(|i| {
        let reason = run.counts_as_failed(i)?;
        Some(format!("step {} failed: {reason}", run.plan.steps[i].id))
    });
    let (outputs, errors) = outputs(run);
    let (outcome, mut reason) = match failed {
        Some(reason) => (RunOutcome::Failed, reason),
        None => (RunOutcome::Succeeded, succeeded(run)),
    };
    for error in errors {
        reason.push_str("; ");
        reason.push_str(&error);
    }
    Event::RunEnded { outcome, reason, outputs }
}

fn succeeded(run: &Run) -> String {
    let failed = run.steps.iter().zip(&run.plan.steps).filter(|(s, _)| matches!(s.state, StepState::Failed { .. }));
    let failed: Vec<_> = failed.map(|(_, planned)| format!("step {} failed", planned.id)).collect();
    if failed.is_empty() {
        return "every phase is over".to_owned();
    }
    format!("every phase is over; not critical: {}", failed.join(", "))
}

fn outputs(run: &Run) -> (Option<Arc<Value>>, Vec<String>) {
    if run.plan.outputs.is_empty() {
        return (None, Vec::new());
    }
    let (mut outputs, mut errors) = (serde_json::Map::new(), Vec::new());
    for (name, expression) in &run.plan.outputs {
        match eval::value(run, expression) {
            Ok(value) => drop(outputs.insert(name.clone(), value)),
            Err(error) => errors.push(format!("output {name} has no value: {error}")),
        }
    }
    (Some(Arc::new(Value::Object(outputs))), errors)
}

fn cancelling(run: &Run) -> Vec<Event> {
    let Some(cancel) = &run.cancel else { return Vec::new() };
    let live: Vec<_> = run.live_steps().map(|i| run.plan.steps[i].id.as_str()).collect();
    if cancel.force {
        return vec![ended(RunOutcome::Cancelled, cancelled(cancel, &live))];
    }
    if !live.is_empty() {
        return Vec::new();
    }
    if cancel.undo
        && let Some(walk) = begin_walk_back(run, &format!("cancelled: {}", cancel.reason))
    {
        return vec![walk];
    }
    vec![last_steps_or_end(run, RunOutcome::Cancelled, cancel.reason.clone())]
}

fn cancelled(cancel: &Cancel, not_waited_for: &[&str]) -> String {
    if not_waited_for.is_empty() {
        return cancel.reason.clone();
    }
    format!("{} (forced; not waited for: {})", cancel.reason, not_waited_for.join(", "))
}

fn rolling_back(run: &Run, now: Timestamp) -> Vec<Event> {
    let reason = || run.failure.clone().unwrap_or_else(|| "something failed".to_owned());
    let Some(rollback) = &run.rollback else {
        if run.live_steps().next().is_some() {
            return Vec::new();
        }
        return vec![
            begin_walk_back(run, &reason()).unwrap_or_else(|| last_steps_or_end(run, RunOutcome::Failed, reason())),
        ];
    };
    let Some(i) = rollback.remaining.first().copied() else {
        return vec![match &run.cancel {
            Some(cancel) => last_steps_or_end(run, RunOutcome::Cancelled, cancel.reason.clone()),
            None => last_steps_or_end(run, RunOutcome::Failed, reason()),
        }];
    };
    if run.awake.contains(&i) {
        return Vec::new();
    }
    let at = StepAt::new(run, i, now);
    let next = match undo::need(at.step, at.planned) {
        Need::Ask => at.ask(
            QuestionKind::UndoFailed,
            format!("nobody knows whether {} has run: is it to be undone?", at.planned.id),
        ),
        Need::Undo | Need::Nothing | Need::Irreversible => at.queued(Purpose::Undo, now, ""),
    };
    vec![Event::StepMoved { step: at.planned.id.clone(), next }]
}

/// None: there is nothing to take back.
fn begin_walk_back(run: &Run, reason: &str) -> Option<Event> {
    let (steps, irreversible) = undo::plan(run);
    let anything = !steps.is_empty() || !irreversible.is_empty();
    anything.then(|| Event::RollbackStarted { reason: reason.to_owned(), steps, irreversible })
}

fn ended(outcome: RunOutcome, reason: String) -> Event {
    Event::RunEnded { outcome, reason, outputs: None }
}

/// The end, or before it the `always` steps of the phases that have begun: those that have not been done, or were taken back.
/// One that may have run is done once more only where that does no harm.
fn last_steps_or_end(run: &Run, outcome: RunOutcome, reason: String) -> Event {
    let comes = |i: &usize| {
        let (step, planned) = (&run.steps[*i], &run.plan.steps[*i]);
        let began = step.attempts.iter().any(|a| !matches!(a.end, Some((_, AttemptEnd::NotStarted { .. }))));
        let may_come = match step.state {
            StepState::Undone => true,
            StepState::Cancelled => !began || planned.action.facts.idempotent,
            StepState::Pending
            | StepState::Queued { .. }
            | StepState::Active
            | StepState::Waiting { .. }
            | StepState::Asking { .. }
            | StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. } => false,
        };
        planned.always && may_come && run.phases[planned.phase].state != PhaseState::Pending
    };
    let steps: Vec<_> = (0..run.steps.len()).filter(comes).map(|i| run.plan.steps[i].id.clone()).collect();
    if steps.is_empty() { ended(outcome, reason) } else { Event::FinishStarted { outcome, reason, steps } }
}

fn finishing(run: &Run, fresh: &Touched, now: Timestamp, outcome: RunOutcome, reason: &str) -> Vec<Event> {
    let mut events = signalled(run, fresh);
    events.extend(judge_conditions(run, fresh, now));
    let open = || !run.awake.is_empty() || run.steps.iter().any(|s| s.state == StepState::Pending);
    if !events.is_empty() || run.pause.is_some() || open() {
        return events;
    }
    let mut reason = reason.to_owned();
    for (step, planned) in run.steps.iter().zip(&run.plan.steps).filter(|(_, planned)| planned.always) {
        if let StepState::Failed { reason: why } = &step.state {
            reason = format!("{reason}; step {} failed: {why}", planned.id);
        }
    }
    vec![ended(outcome, reason)]
}
