//! A run as the API shows it.

use muster_engine::{
    ids::{Namespace, RunId},
    plan::{PlannedPhase, PlannedStep, PlannedUndo},
    run::{
        Run, WaitsOn,
        event::{
            AttemptEnd, EndedBy, FailureKind, GateVerdict, NotStarted, Observation, Outcome, PhaseOutcome, Purpose,
            QuestionKind,
        },
        state::{Attempt, Gate, Milestone, MilestoneState, Phase, PhaseState, RunState, Step, StepState},
    },
};
use muster_proto::v1 as pb;

use crate::{
    api::convert::{
        late,
        plan::{priority, selector},
        value::{to_struct, to_time, to_value},
    },
    control::{MilestoneView, RunSummary, run_state, state_reason},
};

/// The whole run.
pub fn run(run: &Run) -> pb::Run {
    let name = run_name(&run.namespace, &run.id);
    let steps = (0..run.steps.len()).filter_map(|i| step_of(run, &name, i)).collect();
    let phases = run.phases.iter().zip(&run.plan.phases).map(|(s, p)| phase_of(run, &name, s, p)).collect();
    let ids = |indexes: &mut dyn Iterator<Item = &usize>| -> Vec<String> {
        indexes.filter_map(|i| run.plan.steps.get(*i)).map(|s| s.id.to_string()).collect()
    };
    pb::Run {
        run_id: run.id.to_string(),
        playbook: format!("namespaces/{}/playbooks/{}@{}", run.namespace, run.plan.playbook, run.plan.revision),
        plan_digest: run.plan_digest.to_string(),
        state: state_of(run).into(),
        state_reason: state_reason(run),
        sequence: run.seq,
        creator: run.started_by.to_string(),
        note: run.note.clone(),
        owner: run.plan.owner.clone(),
        inputs: to_struct(&run.plan.inputs),
        outputs: run.outputs.as_deref().map(to_value),
        start_time: Some(to_time(run.started_at)),
        update_time: Some(to_time(run.updated_at)),
        end_time: match &run.state {
            RunState::Ended { at, .. } => Some(to_time(*at)),
            RunState::Running | RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } => None,
        },
        phases,
        steps,
        pause: run.pause.as_ref().map(|p| pb::Pause {
            reason: p.reason.clone(),
            question: p.question.clone().unwrap_or_default(),
            since: Some(to_time(p.since)),
            remind_time: Some(to_time(p.remind_at)),
        }),
        cancellation: run.cancel.as_ref().map(|c| pb::Cancellation {
            reason: c.reason.clone(),
            undo: c.undo,
            force: c.force,
            since: Some(to_time(c.since)),
        }),
        rollback: run.rollback.as_ref().map(|r| pb::Rollback {
            reason: r.reason.clone(),
            remaining: ids(&mut r.remaining.iter()),
            irreversible: ids(&mut r.irreversible.iter()),
            since: Some(to_time(r.since)),
            left: run.not_taken_back().into_iter().map(ToString::to_string).collect(),
        }),
        waiting: None,
        signals: run.signals.keys().cloned().collect(),
        name,
    }
}

/// A run in a list.
pub fn summary(summary: &RunSummary) -> pb::Run {
    pb::Run {
        name: run_name(&summary.namespace, &summary.id),
        run_id: summary.id.to_string(),
        playbook: format!("namespaces/{}/playbooks/{}", summary.namespace, summary.playbook),
        state: state(summary.state).into(),
        state_reason: summary.state_reason.clone(),
        creator: summary.started_by.to_string(),
        start_time: Some(to_time(summary.started_at)),
        end_time: summary.ended_at.map(to_time),
        waiting: summary.waiting.as_ref().map(|waiting| pb::Waiting {
            subject: waiting.subject.clone(),
            waits_for: waiting.waits_for.clone(),
            on_whom: waiting.on_whom.clone(),
            waits_on: waits_on(waiting.on).into(),
            since: Some(to_time(waiting.since)),
            ..pb::Waiting::default()
        }),
        ..pb::Run::default()
    }
}

/// On what kind of party something waits.
pub fn waits_on(on: WaitsOn) -> pb::waiting::WaitsOn {
    match on {
        WaitsOn::Person => pb::waiting::WaitsOn::Person,
        WaitsOn::Agent => pb::waiting::WaitsOn::Agent,
        WaitsOn::Signal => pb::waiting::WaitsOn::Signal,
        WaitsOn::Time => pb::waiting::WaitsOn::Time,
        WaitsOn::Work => pb::waiting::WaitsOn::Work,
    }
}

/// One step of a run, by its index in the plan.
pub fn step(run: &Run, index: usize) -> Option<pb::Step> {
    step_of(run, &run_name(&run.namespace, &run.id), index)
}

/// One phase of a run, by its index in the plan.
pub fn phase(run: &Run, index: usize) -> Option<pb::Phase> {
    let (state, planned) = (run.phases.get(index)?, run.plan.phases.get(index)?);
    Some(phase_of(run, &run_name(&run.namespace, &run.id), state, planned))
}

/// What the run is doing.
pub fn state_of(run: &Run) -> pb::run::State {
    state(run_state(run))
}

/// A run whose records can't be believed: as it was before, but for its state.
pub fn quarantined(before: &Run, why: &str) -> pb::Run {
    pb::Run { state: pb::run::State::Quarantined.into(), state_reason: why.to_owned(), ..run(before) }
}

/// A milestone in a list.
pub fn milestone(namespace: &Namespace, view: &MilestoneView) -> pb::Milestone {
    let run = run_name(namespace, &view.run);
    pb::Milestone {
        name: format!("{run}/milestones/{}", view.phase),
        run,
        playbook_id: view.playbook.clone(),
        phase: view.phase.clone(),
        display_name: view.name.clone(),
        state: milestone_state(view.state).into(),
        state_time: Some(to_time(view.since)),
        due_time: view.due_at.map(to_time),
    }
}

fn run_name(namespace: &Namespace, id: &RunId) -> String {
    format!("namespaces/{namespace}/runs/{id}")
}

/// The words of [`RunSummary::state`].
fn state(word: &str) -> pb::run::State {
    pb::run::State::from_str_name(&format!("STATE_{word}")).unwrap_or(pb::run::State::Unspecified)
}

fn phase_of(run: &Run, run_name: &str, phase: &Phase, planned: &PlannedPhase) -> pb::Phase {
    let due = planned.deadline_ms.and_then(|ms| {
        let ms = i64::try_from(ms).ok()?;
        run.started_at.checked_add(jiff::SignedDuration::from_millis(ms)).ok()
    });
    // An end has no events for the phases that it cuts off.
    let open = |state| if run.has_ended() { pb::phase::State::Cancelled } else { state };
    let state = match phase.state {
        PhaseState::Pending => open(pb::phase::State::Pending),
        PhaseState::Active => open(pb::phase::State::Active),
        PhaseState::Ended(PhaseOutcome::Completed) => pb::phase::State::Completed,
        PhaseState::Ended(PhaseOutcome::Skipped) => pb::phase::State::Skipped,
        PhaseState::Ended(PhaseOutcome::Failed) => pb::phase::State::Failed,
    };
    let since = match &run.state {
        RunState::Ended { at, .. } if state == pb::phase::State::Cancelled => *at,
        RunState::Ended { .. }
        | RunState::Running
        | RunState::Cancelling
        | RunState::RollingBack
        | RunState::Finishing { .. } => phase.since,
    };
    pb::Phase {
        id: planned.id.to_string(),
        display_name: planned.name.clone(),
        state: state.into(),
        state_time: Some(to_time(since)),
        priority: priority(planned.priority).into(),
        due_time: due.map(to_time),
        steps: planned.steps.iter().filter_map(|i| run.plan.steps.get(*i)).map(|s| s.id.to_string()).collect(),
        gate: phase.gate.as_ref().map(gate),
        milestone: phase.milestone.as_ref().map(|m| milestone_of(run, run_name, planned, m)),
    }
}

fn milestone_of(run: &Run, run_name: &str, planned: &PlannedPhase, milestone: &Milestone) -> pb::Milestone {
    pb::Milestone {
        name: format!("{run_name}/milestones/{}", planned.id),
        run: run_name.to_owned(),
        playbook_id: run.plan.playbook.clone(),
        phase: planned.id.to_string(),
        display_name: milestone.name.clone(),
        state: milestone_state(milestone.state).into(),
        state_time: Some(to_time(milestone.since)),
        due_time: milestone.due_at.map(to_time),
    }
}

fn milestone_state(state: MilestoneState) -> pb::milestone::State {
    match state {
        MilestoneState::Pending => pb::milestone::State::Pending,
        MilestoneState::AtRisk => pb::milestone::State::AtRisk,
        MilestoneState::Missed => pb::milestone::State::Missed,
        MilestoneState::Reached => pb::milestone::State::Reached,
        MilestoneState::ReachedLate => pb::milestone::State::ReachedLate,
        MilestoneState::Skipped => pb::milestone::State::Skipped,
    }
}

fn gate(gate: &Gate) -> pb::Gate {
    let criteria = gate.criteria.iter().map(|c| pb::Criterion {
        expression: c.expression.clone(),
        value: c.value,
        error: c.error.clone(),
    });
    pb::Gate {
        verdict: match gate.verdict {
            GateVerdict::Passed => pb::gate::Verdict::Passed,
            GateVerdict::Failed => pb::gate::Verdict::Failed,
            GateVerdict::Inconclusive => pb::gate::Verdict::Inconclusive,
        }
        .into(),
        criteria: criteria.collect(),
        time: Some(to_time(gate.at)),
    }
}

fn step_of(run: &Run, run_name: &str, index: usize) -> Option<pb::Step> {
    let (step, planned) = (run.steps.get(index)?, run.plan.steps.get(index)?);
    let mut shown = pb::Step {
        name: format!("{run_name}/steps/{}", planned.id),
        id: planned.id.to_string(),
        display_name: planned.name.clone(),
        phase: run.plan.phases.get(planned.phase).map(|p| p.id.to_string()).unwrap_or_default(),
        needs: planned.needs.iter().filter_map(|i| run.plan.steps.get(*i)).map(|s| s.id.to_string()).collect(),
        action: planned.action.name.to_string(),
        action_version: planned.action.version.clone(),
        agent: Some(selector(&planned.agent)),
        state_time: Some(to_time(step.since)),
        host: step.host.as_ref().map(ToString::to_string).unwrap_or_default(),
        output: step.output.as_deref().map(to_value),
        done: step.done,
        undo: undo(&planned.undo),
        max_attempts: planned.retry.max_attempts,
        attempts: step.attempts.iter().map(attempt).collect(),
        ..pb::Step::default()
    };
    fill_state(&mut shown, run, step, planned);
    if run.is_not_taken_back(index) && shown.state() != pb::step::State::Undone {
        shown.state_reason = not_taken_back(step, planned);
    }
    Some(shown)
}

/// Why a step that should have been is not taken back: what a person said, and what became of its undo.
fn not_taken_back(step: &Step, planned: &PlannedStep) -> String {
    let undo = step.attempts.iter().rev().find(|a| a.purpose == Purpose::Undo).map(attempt);
    let failed = undo.map(|undo| undo.message).filter(|message| !message.is_empty());
    let why = match (&step.left, &step.state, &planned.undo) {
        (Some(left), _, _) => Some(left.clone()),
        (None, StepState::Failed { reason }, _) => return format!("not taken back: {reason}"),
        (None, _, PlannedUndo::Irreversible) => Some("it can't be".to_owned()),
        (None, _, PlannedUndo::Auto | PlannedUndo::Action { .. } | PlannedUndo::Nothing) => None,
    };
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    let failed = failed.map(|message| format!(" (undo failed: {message})")).unwrap_or_default();
    format!("not taken back{why}{failed}")
}

/// State, reason, question and next moment.
fn fill_state(shown: &mut pb::Step, run: &Run, step: &Step, planned: &PlannedStep) {
    let state = match &step.state {
        StepState::Pending => pb::step::State::Pending,
        StepState::Queued { purpose: what_for, not_before, wake_at, why } => {
            shown.queued_purpose = purpose(*what_for).into();
            let next_at = if *not_before > step.since { *not_before } else { *wake_at };
            shown.next_time = run.pause.is_none().then(|| to_time(next_at));
            shown.state_reason = match (&run.pause, why.as_str()) {
                (Some(_), "") => "waits for the run to go on".to_owned(),
                (Some(_), why) => format!("waits for the run to go on ({why})"),
                (None, "") => format!("waits for an agent of role {}", planned.agent.role),
                (None, why) => why.to_owned(),
            };
            pb::step::State::Queued
        }
        StepState::Active => {
            let last = step.attempts.last();
            match last.and_then(|a| Some((a, a.reported_late.as_ref()?))) {
                Some((attempt, (at, outcome))) => {
                    shown.state_time = Some(to_time(*at));
                    shown.state_reason = late::why(attempt, outcome);
                    late::state(step, attempt, outcome)
                }
                None if run.has_ended() => {
                    let agent = last.map(|a| format!(" at agent {}", a.agent)).unwrap_or_default();
                    shown.state_reason = format!("may still run{agent}: the run has ended without it");
                    pb::step::State::Active
                }
                None => {
                    shown.next_time = last.map(|a| to_time(a.ends_by));
                    pb::step::State::Active
                }
            }
        }
        StepState::Waiting { signal, wake_at, ends_at } => {
            shown.next_time = Some(to_time(*wake_at));
            shown.state_reason = match signal {
                Some(signal) => format!("waits for signal {signal}"),
                None => match ends_at.filter(|ends| ends != wake_at) {
                    Some(moment) => format!("waits for its moment, {moment} by the wall clock"),
                    None => "waits for its moment".to_owned(),
                },
            };
            pb::step::State::Waiting
        }
        StepState::Asking { question, kind, remind_at } => {
            shown.question = match kind {
                QuestionKind::Failed => pb::step::Question::Failed,
                QuestionKind::NeedsPerson => pb::step::Question::NeedsPerson,
                QuestionKind::MayHaveRun => pb::step::Question::MayHaveRun,
                QuestionKind::UndoFailed => pb::step::Question::UndoFailed,
            }
            .into();
            shown.next_time = Some(to_time(*remind_at));
            shown.state_reason.clone_from(question);
            pb::step::State::Asking
        }
        StepState::Succeeded => pb::step::State::Succeeded,
        StepState::Failed { reason } => {
            shown.state_reason.clone_from(reason);
            pb::step::State::Failed
        }
        StepState::Skipped { reason } => {
            shown.state_reason.clone_from(reason);
            pb::step::State::Skipped
        }
        StepState::Cancelled => pb::step::State::Cancelled,
        StepState::Undone => pb::step::State::Undone,
    };
    shown.state = state.into();
}

pub(super) fn undo(undo: &PlannedUndo) -> String {
    match undo {
        PlannedUndo::Auto => "auto".to_owned(),
        PlannedUndo::Action { action, .. } => format!("action {}", action.name),
        PlannedUndo::Irreversible => "irreversible".to_owned(),
        PlannedUndo::Nothing => "nothing".to_owned(),
    }
}

fn purpose(purpose: Purpose) -> pb::attempt::Purpose {
    match purpose {
        Purpose::Run => pb::attempt::Purpose::Run,
        Purpose::Probe => pb::attempt::Purpose::Probe,
        Purpose::Verify => pb::attempt::Purpose::Verify,
        Purpose::Undo => pb::attempt::Purpose::Undo,
    }
}

fn attempt(attempt: &Attempt) -> pb::Attempt {
    let mut shown = pb::Attempt {
        number: attempt.number,
        purpose: purpose(attempt.purpose).into(),
        agent: attempt.agent.to_string(),
        instance: attempt.instance.to_string(),
        host: attempt.host.as_ref().map(ToString::to_string).unwrap_or_default(),
        assign_time: Some(to_time(attempt.assigned_at)),
        end_time: late::ended_at(attempt).map(to_time),
        expire_time: Some(to_time(attempt.ends_by)),
        with: Some(to_value(&attempt.with)),
        ..pb::Attempt::default()
    };
    if let Some(status) = &attempt.status {
        shown.status.clone_from(&status.message);
        shown.percent = status.percent.map(u32::from);
        shown.observations = status.observations.iter().map(observation).collect();
    }
    let state = match &attempt.end {
        None => match &attempt.reported_late {
            Some((_, outcome)) => fill_outcome(&mut shown, outcome),
            None if attempt.lost_at.is_some() => pb::attempt::State::Lost,
            None => pb::attempt::State::Active,
        },
        Some((_, AttemptEnd::Finished { outcome })) => fill_outcome(&mut shown, outcome),
        Some((_, AttemptEnd::NotStarted { why })) => {
            shown.message = not_started(why);
            pb::attempt::State::NotStarted
        }
        Some((_, AttemptEnd::Unknown { ended_by })) => {
            ended_by_text(*ended_by).clone_into(&mut shown.message);
            pb::attempt::State::MayHaveRun
        }
    };
    shown.state = state.into();
    shown
}

fn fill_outcome(shown: &mut pb::Attempt, outcome: &Outcome) -> pb::attempt::State {
    match outcome {
        Outcome::Succeeded { output: _, unchanged, observations, truncated } => {
            shown.unchanged = *unchanged;
            shown.truncated = *truncated;
            if !observations.is_empty() {
                shown.observations = observations.iter().map(observation).collect();
            }
            pb::attempt::State::Succeeded
        }
        Outcome::NotSatisfied { diff } => {
            shown.message.clone_from(diff);
            pb::attempt::State::NotSatisfied
        }
        Outcome::Failed { kind, message, output: _ } => {
            shown.message.clone_from(message);
            shown.failure = match kind {
                FailureKind::Retry => pb::attempt::Failure::Retry,
                FailureKind::Permanent => pb::attempt::Failure::Permanent,
                FailureKind::NeedsPerson => pb::attempt::Failure::NeedsPerson,
            }
            .into();
            pb::attempt::State::Failed
        }
        Outcome::Cancelled { may_have_changed } => {
            if *may_have_changed {
                "it may have changed something before it stopped".clone_into(&mut shown.message);
            }
            pb::attempt::State::Cancelled
        }
    }
}

pub(super) fn not_started(why: &NotStarted) -> String {
    match why {
        NotStarted::Busy => "all slots of the agent were taken".to_owned(),
        NotStarted::Draining => "the agent takes nothing new".to_owned(),
        NotStarted::Unsent => "nothing could be sent to the agent".to_owned(),
        NotStarted::Refused { why } => format!("the agent refused it: {why}"),
        NotStarted::Denied => "the agent never had it".to_owned(),
    }
}

pub(super) fn ended_by_text(ended_by: EndedBy) -> &'static str {
    match ended_by {
        EndedBy::Superseded => "the agent does not answer, and may still be at it",
        EndedBy::InstanceGone => "the agent's process was found dead",
        EndedBy::Clock => "its time is over, and no report has come",
        EndedBy::Person => "a person said that it has ended",
    }
}

fn observation(o: &Observation) -> pb::Observation {
    pb::Observation {
        name: o.name.clone(),
        value: o.value,
        unit: o.unit.clone(),
        samples: o.samples.unwrap_or(0),
        time: Some(to_time(o.at)),
        source: o.source.clone(),
    }
}
