//! What time, and the coming and going of instances, do to a run.

use jiff::Timestamp;

use super::{next::StepAt, place};
use crate::{
    ids::{AttemptNumber, InstanceId, StepId},
    policy::timeout,
    run::{
        Event, Run,
        event::{AttemptEnd, EndedBy, NotStarted, PhaseOutcome, StepNext, Subject},
        state::{MilestoneState, PhaseState, StepState},
    },
};

/// Everything that is due. Too early: nothing.
pub(super) fn tick(run: &Run, now: Timestamp) -> Vec<Event> {
    if run.has_ended() {
        return Vec::new();
    }
    let mut events: Vec<Event> = run.awake.iter().filter_map(|i| tick_step(run, *i, now)).collect();
    if run.pause.as_ref().is_some_and(|p| p.remind_at <= now) {
        events.push(Event::OwnerReminded { subject: Subject::Run, next_at: timeout::remind_at(now) });
    }
    for (p, phase) in run.phases.iter().enumerate() {
        let Some(milestone) = &phase.milestone else { continue };
        if phase.state == PhaseState::Ended(PhaseOutcome::Skipped) {
            continue;
        }
        let due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let id = || run.plan.phases[p].id.clone();
        match milestone.state {
            MilestoneState::Pending | MilestoneState::AtRisk if due(milestone.due_at) => {
                events.push(Event::MilestoneMissed { phase: id() });
            }
            MilestoneState::Pending if due(milestone.at_risk_at) => {
                events.push(Event::MilestoneAtRisk { phase: id() });
            }
            MilestoneState::Pending
            | MilestoneState::AtRisk
            | MilestoneState::Missed
            | MilestoneState::Reached
            | MilestoneState::ReachedLate
            | MilestoneState::Skipped => {}
        }
    }
    events
}

fn tick_step(run: &Run, i: usize, now: Timestamp) -> Option<Event> {
    let at = StepAt::new(run, i, now);
    let id = || at.planned.id.clone();
    match &at.step.state {
        StepState::Queued { purpose, wake_at, .. } if *wake_at <= now && run.pause.is_none() => {
            let since = at.step.queued_since.unwrap_or(at.step.since);
            let timeout_ms = at.planned.queue_timeout_ms;
            if timeout::queue_ends(since, timeout_ms).is_some_and(|ends| ends <= now) {
                return Some(Event::StepMoved { step: id(), next: place::gave_up_waiting(&at, *purpose) });
            }
            let next_at = timeout::queue_wake(now, since, timeout_ms);
            Some(Event::OwnerReminded { subject: Subject::Step { step: id() }, next_at })
        }
        StepState::Active => match at.step.live_attempt() {
            Some((number, attempt)) if attempt.ends_by <= now => Some(lost(run, i, number, EndedBy::Clock, now)),
            Some(_) | None => None,
        },
        StepState::Waiting { signal, ends_at, wake_at } if *wake_at <= now => Some(match (ends_at, signal) {
            // It is woken for nothing else; the end itself may be a moment of another clock.
            (Some(_), None) => Event::StepMoved { step: id(), next: StepNext::Succeeded },
            (Some(ends), Some(signal)) if *ends <= now => {
                let next = at.failed_for_good(&format!("signal {signal} has not come in time"));
                Event::StepMoved { step: id(), next }
            }
            (ends, _) => {
                let next_at = timeout::remind_at(now);
                let next_at = ends.map_or(next_at, |ends| ends.min(next_at));
                Event::OwnerReminded { subject: Subject::Step { step: id() }, next_at }
            }
        }),
        StepState::Asking { remind_at, .. } if *remind_at <= now => {
            Some(Event::OwnerReminded { subject: Subject::Step { step: id() }, next_at: timeout::remind_at(now) })
        }
        StepState::Queued { .. }
        | StepState::Waiting { .. }
        | StepState::Asking { .. }
        | StepState::Pending
        | StepState::Succeeded
        | StepState::Failed { .. }
        | StepState::Skipped { .. }
        | StepState::Cancelled
        | StepState::Undone => None,
    }
}

/// Only who waits for a moment of it goes by the wall clock.
pub(super) fn follow_wall_clock(run: &Run, ahead_ms: i64) -> Vec<Event> {
    let moves = run.waits_for_moment() && run.wall_ahead_ms != ahead_ms;
    if moves { vec![Event::WallClockMoved { ahead_ms }] } else { Vec::new() }
}

/// A lease ran out: a mark, and nothing more; unless the same at once, somewhere else, does no harm.
pub(super) fn lose(run: &Run, instance: &InstanceId, now: Timestamp) -> Vec<Event> {
    let lose = |(i, number): (usize, AttemptNumber)| {
        let (_, attempt) = run.steps[i].live_attempt()?;
        if run.action_for(i, attempt.purpose).facts.concurrent_safe {
            return Some(lost(run, i, number, EndedBy::Superseded, now));
        }
        let step = run.plan.steps[i].id.clone();
        attempt.lost_at.is_none().then_some(Event::AttemptLost { step, attempt: number })
    };
    held_by(run, instance).filter_map(lose).collect()
}

/// The instance answers again.
pub(super) fn find(run: &Run, instance: &InstanceId, holds: &[(StepId, AttemptNumber)], now: Timestamp) -> Vec<Event> {
    let mut events = Vec::new();
    for (i, number) in held_by(run, instance) {
        let at = StepAt::new(run, i, now);
        let Some((_, attempt)) = at.step.live_attempt() else { continue };
        let step = || at.planned.id.clone();
        if holds.iter().any(|(id, n)| *n == number && *id == at.planned.id) {
            if attempt.lost_at.is_some() {
                events.push(Event::AttemptFound { step: step(), attempt: number });
            }
            if attempt.ends_by <= now {
                let ends_by = timeout::remind_at(now);
                events.push(Event::AttemptExtended { step: step(), attempt: number, ends_by });
            }
        } else if timeout::cannot_start_after(attempt.dispatch_until) <= now && !run.live_attempt_has_begun(i) {
            let why = NotStarted::Denied;
            let next = at.not_started(attempt.purpose, &why);
            events.push(Event::AttemptEnded {
                step: step(),
                attempt: number,
                end: AttemptEnd::NotStarted { why },
                next,
            });
        }
    }
    events
}

/// The instance's process is dead, and everything it started.
pub(super) fn bury(run: &Run, instance: &InstanceId, now: Timestamp) -> Vec<Event> {
    held_by(run, instance).map(|(i, number)| lost(run, i, number, EndedBy::InstanceGone, now)).collect()
}

/// The clocks of unconfirmed attempts start again in full, and those of waits for an agent.
pub(super) fn restart(run: &Run, now: Timestamp) -> Vec<Event> {
    if run.has_ended() {
        return Vec::new();
    }
    let mut events = Vec::new();
    for i in run.live_steps() {
        let planned = &run.plan.steps[i];
        if let Some((attempt, live)) = run.steps[i].live_attempt() {
            let ends_by = timeout::ends_by(live.dispatch_until.max(now), planned.timeout_ms);
            if ends_by > live.ends_by {
                events.push(Event::AttemptExtended { step: planned.id.clone(), attempt, ends_by });
            }
        }
    }
    events.extend(restart_queue_clocks(run));
    events
}

/// The clocks of waits for an agent start again.
pub(super) fn restart_queue_clocks(run: &Run) -> Vec<Event> {
    if run.has_queue_clock() { vec![Event::QueueClocksRestarted] } else { Vec::new() }
}

fn held_by<'a>(run: &'a Run, instance: &'a InstanceId) -> impl Iterator<Item = (usize, AttemptNumber)> + 'a {
    let open = !run.has_ended();
    run.live_steps().filter(move |_| open).filter_map(move |i| {
        let (number, attempt) = run.steps[i].live_attempt()?;
        (attempt.instance == *instance).then_some((i, number))
    })
}

fn lost(run: &Run, i: usize, attempt: AttemptNumber, ended_by: EndedBy, now: Timestamp) -> Event {
    let at = StepAt::new(run, i, now);
    let purpose = at.step.live_attempt().map_or(crate::run::event::Purpose::Run, |(_, a)| a.purpose);
    Event::AttemptEnded {
        step: at.planned.id.clone(),
        attempt,
        end: AttemptEnd::Unknown { ended_by },
        next: at.unknown(purpose, ended_by),
    }
}
