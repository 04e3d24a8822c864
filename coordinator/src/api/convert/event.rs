//! Events as the API shows them: the journalled shape, and a sentence for people.

use muster_engine::run::{
    Resolution,
    event::{
        AttemptAssigned, AttemptEnd, Event, GateVerdict, Outcome, PhaseOutcome, Purpose, RunOutcome, StepNext, Subject,
    },
};
use muster_proto::v1 as pb;
use serde_json::Value;

use crate::{
    api::convert::{
        run::{ended_by_text, not_started, phase, run, state_of, step},
        value::{to_struct, to_time},
    },
    control::{RunChange, RunEvent},
};

/// An event as it is journalled.
pub fn event(event: &RunEvent) -> pb::RunEvent {
    let about = About::of(&event.event);
    let mut detail = serde_json::to_value(&*event.event).unwrap_or_default();
    if let Value::Object(map) = &mut detail {
        map.remove("plan");
    }
    let type_name = detail.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    pb::RunEvent {
        sequence: event.seq,
        time: Some(to_time(event.at)),
        actor: event.by.to_string(),
        r#type: type_name,
        step: about.step.unwrap_or_default().to_owned(),
        attempt: about.attempt,
        phase: about.phase.unwrap_or_default().to_owned(),
        summary: sentence(&event.event),
        detail: to_struct(&detail),
    }
}

/// An event with what it changed.
pub fn watched(seen: &RunChange, include_run: bool) -> pb::WatchRunResponse {
    let about = About::of(&seen.event.event);
    let step_index = about.step.and_then(|id| seen.run.plan.step_index(id));
    let phase_index = about
        .phase
        .and_then(|id| seen.run.plan.phase_index(id))
        .or_else(|| step_index.and_then(|i| seen.run.plan.steps.get(i)).map(|s| s.phase));
    pb::WatchRunResponse {
        event: Some(event(&seen.event)),
        state: state_of(&seen.run).into(),
        step: step_index.and_then(|i| step(&seen.run, i)),
        phase: phase_index.and_then(|i| phase(&seen.run, i)),
        run: (include_run && seen.event.seq == seen.run.seq).then(|| run(&seen.run)),
    }
}

/// What an event is about.
#[derive(Default)]
struct About<'a> {
    step: Option<&'a str>,
    attempt: u32,
    phase: Option<&'a str>,
}

impl<'a> About<'a> {
    fn of(event: &'a Event) -> Self {
        let step = |step: &'a muster_engine::ids::StepId, attempt: u32| Self {
            step: Some(step.as_str()),
            attempt,
            phase: None,
        };
        match event {
            Event::StepMoved { step: id, .. }
            | Event::StepResolved { step: id, .. }
            | Event::OwnerReminded { subject: Subject::Step { step: id }, .. } => step(id, 0),
            Event::AttemptAssigned(a) => step(&a.step, a.attempt),
            Event::AttemptPrepared { step: id, attempt, .. }
            | Event::StatusReported { step: id, attempt, .. }
            | Event::AttemptLost { step: id, attempt }
            | Event::AttemptFound { step: id, attempt }
            | Event::AttemptExtended { step: id, attempt, .. }
            | Event::AttemptEnded { step: id, attempt, .. }
            | Event::ReportArrivedStale { step: id, attempt, .. } => step(id, *attempt),
            Event::PhaseStarted { phase }
            | Event::GateJudged { phase, .. }
            | Event::PhaseEnded { phase, .. }
            | Event::MilestoneAtRisk { phase }
            | Event::MilestoneMissed { phase }
            | Event::MilestoneReached { phase, .. } => Self { phase: Some(phase.as_str()), ..Self::default() },
            Event::RunStarted(_)
            | Event::OwnerReminded { subject: Subject::Run, .. }
            | Event::SignalReceived { .. }
            | Event::QueueClocksRestarted
            | Event::WallClockMoved { .. }
            | Event::RunPaused { .. }
            | Event::RecordsLost { .. }
            | Event::RunResumed { .. }
            | Event::CancelRequested { .. }
            | Event::RollbackRequested { .. }
            | Event::RollbackStarted { .. }
            | Event::FinishStarted { .. }
            | Event::RunEnded { .. } => Self::default(),
        }
    }
}

/// A sentence for people.
fn sentence(event: &Event) -> String {
    match event {
        Event::RunStarted(e) => format!("run of {} started", e.plan.playbook),
        Event::PhaseStarted { phase } => format!("phase {phase} started"),
        Event::StepMoved { step, next } => format!("step {step} {}", next_text(next)),
        Event::StepResolved { step, resolution, reason, .. } => {
            format!("step {step} resolved as {}: {reason}", resolution_text(*resolution))
        }
        Event::AttemptAssigned(a) => assigned(a),
        Event::AttemptPrepared { step, attempt, .. } => {
            format!("attempt {attempt} of step {step} recorded how it is taken back")
        }
        Event::StatusReported { step, attempt, status } => match status.percent {
            Some(percent) => format!("attempt {attempt} of step {step}: {} ({percent} %)", status.message),
            None => format!("attempt {attempt} of step {step}: {}", status.message),
        },
        Event::AttemptLost { step, attempt } => {
            format!("the agent of attempt {attempt} of step {step} does not answer; the attempt may still run")
        }
        Event::AttemptFound { step, attempt } => {
            format!("the agent of attempt {attempt} of step {step} answers again and holds it")
        }
        Event::AttemptExtended { step, attempt, ends_by } => {
            format!("the clock of attempt {attempt} of step {step} starts again; it will have ended by {ends_by}")
        }
        Event::AttemptEnded { step, attempt, end, next } => {
            let end = end_text(end);
            format!("attempt {attempt} of step {step} {end}; the step {}", next_after(&end, next))
        }
        Event::ReportArrivedStale { step, attempt, agent, .. } => {
            format!("a late report of {agent} on attempt {attempt} of step {step} is kept and changes nothing")
        }
        Event::OwnerReminded { subject: Subject::Run, .. } => "the owner was told that the run waits".to_owned(),
        Event::OwnerReminded { subject: Subject::Step { step }, .. } => {
            format!("the owner was told that step {step} waits")
        }
        Event::SignalReceived { signal, reason, .. } if reason.is_empty() => format!("signal {signal} has come"),
        Event::SignalReceived { signal, reason, .. } => format!("signal {signal} has come: {reason}"),
        Event::GateJudged { phase, verdict, .. } => format!("gate of phase {phase} {}", verdict_text(*verdict)),
        Event::QueueClocksRestarted => "no agent could be asked for a while: waits for one begin again".to_owned(),
        Event::WallClockMoved { ahead_ms } => wall_clock(*ahead_ms),
        Event::PhaseEnded { phase, outcome } => format!("phase {phase} {}", phase_text(*outcome)),
        Event::MilestoneAtRisk { phase } => format!("milestone of phase {phase} is at risk"),
        Event::MilestoneMissed { phase } => format!("milestone of phase {phase} is missed"),
        Event::MilestoneReached { phase, late: false } => format!("milestone of phase {phase} is reached"),
        Event::MilestoneReached { phase, late: true } => format!("milestone of phase {phase} is reached late"),
        Event::RunPaused { reason, question: None, .. } => format!("run paused: {reason}"),
        Event::RunPaused { reason, question: Some(question), .. } | Event::RecordsLost { reason, question, .. } => {
            format!("run paused: {reason}; {question}")
        }
        Event::RunResumed { reason } => format!("run resumed: {reason}"),
        Event::CancelRequested { reason, force: false, .. } => format!("cancellation: {reason}"),
        Event::CancelRequested { reason, force: true, .. } => format!("forced cancellation: {reason}"),
        Event::RollbackRequested { reason, .. } => format!("walk back, once everything at work has ended: {reason}"),
        Event::RollbackStarted { reason, steps, .. } => format!("walk back over {} steps: {reason}", steps.len()),
        Event::FinishStarted { reason, steps, .. } => {
            let steps: Vec<_> = steps.iter().map(muster_engine::ids::StepId::as_str).collect();
            format!("last, whatever happened: {}; {reason}", steps.join(", "))
        }
        Event::RunEnded { outcome, reason, .. } if reason.is_empty() => format!("run {}", run_text(*outcome)),
        Event::RunEnded { outcome, reason, .. } => format!("run {}: {reason}", run_text(*outcome)),
    }
}

fn assigned(a: &AttemptAssigned) -> String {
    let what = match a.purpose {
        Purpose::Run => "",
        Purpose::Probe => ", to check",
        Purpose::Verify => ", to verify",
        Purpose::Undo => ", to undo",
    };
    format!("attempt {} of step {} goes to {}{what}", a.attempt, a.step, a.agent)
}

/// Where the step goes, without the reason if that was just said.
fn next_after(said: &str, next: &StepNext) -> String {
    match next {
        StepNext::Queued { why, .. } if said.contains(why.as_str()) => "waits for an agent".to_owned(),
        StepNext::Failed { reason } if said.contains(reason.as_str()) => "failed".to_owned(),
        StepNext::Queued { .. }
        | StepNext::Waiting { .. }
        | StepNext::Asking { .. }
        | StepNext::Succeeded
        | StepNext::Failed { .. }
        | StepNext::Skipped { .. }
        | StepNext::Cancelled
        | StepNext::Undone => next_text(next),
    }
}

fn wall_clock(ahead_ms: i64) -> String {
    let seconds = ahead_ms.unsigned_abs() / 1_000;
    let way = if ahead_ms < 0 { "behind" } else { "ahead of" };
    format!("the wall clock is {seconds} s {way} the coordinator's; moments that are waited for go by the wall clock")
}

fn next_text(next: &StepNext) -> String {
    match next {
        StepNext::Queued { why, .. } if why.is_empty() => "waits for an agent".to_owned(),
        StepNext::Queued { why, .. } => format!("waits: {why}"),
        StepNext::Waiting { signal: Some(signal), .. } => format!("waits for signal {signal}"),
        StepNext::Waiting { signal: None, ends_at, wake_at } => format!("waits until {}", ends_at.unwrap_or(*wake_at)),
        StepNext::Asking { question, .. } => format!("asks: {question}"),
        StepNext::Succeeded => "succeeded".to_owned(),
        StepNext::Failed { reason } => format!("failed: {reason}"),
        StepNext::Skipped { reason } => format!("is skipped: {reason}"),
        StepNext::Cancelled => "is cancelled".to_owned(),
        StepNext::Undone => "is undone".to_owned(),
    }
}

fn end_text(end: &AttemptEnd) -> String {
    match end {
        AttemptEnd::Finished { outcome: Outcome::Succeeded { unchanged, truncated, .. } } => {
            let how = if *unchanged { "found everything as it should be" } else { "succeeded" };
            let cut = if *truncated { "; its output was too large and is cut" } else { "" };
            format!("{how}{cut}")
        }
        AttemptEnd::Finished { outcome: Outcome::NotSatisfied { diff } } if diff.is_empty() => {
            "found that it is not done".to_owned()
        }
        AttemptEnd::Finished { outcome: Outcome::NotSatisfied { diff } } => {
            format!("found that it is not done: {diff}")
        }
        AttemptEnd::Finished { outcome: Outcome::Failed { message, .. } } => format!("failed: {message}"),
        AttemptEnd::Finished { outcome: Outcome::Cancelled { .. } } => "stopped when told to".to_owned(),
        AttemptEnd::NotStarted { why } => format!("did not start: {}", not_started(why)),
        AttemptEnd::Unknown { ended_by } => format!("may have run: {}", ended_by_text(*ended_by)),
    }
}

fn resolution_text(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::Succeeded => "succeeded",
        Resolution::Failed => "failed",
        Resolution::Retry => "retry",
        Resolution::Skip => "skip",
    }
}

fn verdict_text(verdict: GateVerdict) -> &'static str {
    match verdict {
        GateVerdict::Passed => "passed",
        GateVerdict::Failed => "failed",
        GateVerdict::Inconclusive => "could not be judged",
    }
}

fn phase_text(outcome: PhaseOutcome) -> &'static str {
    match outcome {
        PhaseOutcome::Completed => "completed",
        PhaseOutcome::Skipped => "is skipped",
        PhaseOutcome::Failed => "failed",
    }
}

fn run_text(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Succeeded => "succeeded",
        RunOutcome::Failed => "failed",
        RunOutcome::Cancelled => "was cancelled",
    }
}
