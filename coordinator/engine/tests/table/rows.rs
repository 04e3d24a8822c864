//! The rows: every event and every command, in every form that the state machine tells apart, about the step `s`, the run and
//! its second phase.

use std::sync::Arc;

use jiff::SignedDuration;
use muster_engine::{
    ids::{PhaseId, StepId},
    run::{
        Command, Event, Fence, Resolution,
        event::{
            AttemptAssigned, AttemptEnd, EndedBy, FailureKind, GateVerdict, NotStarted, Outcome, PhaseOutcome, Purpose,
            QuestionKind, RunOutcome, StatusNote, StepNext, Subject,
        },
        state::{Step, StepState},
    },
};
use serde_json::json;

use crate::common::{World, failed, ok};

/// What an event is about, or a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Step(StepId),
    Phase,
    Milestone,
    Run,
    /// What is kept and changes nothing.
    Evidence,
}

/// What the event is about.
pub(crate) fn about(event: &Event) -> About {
    match event {
        Event::StepMoved { step, .. }
        | Event::StepResolved { step, .. }
        | Event::AttemptPrepared { step, .. }
        | Event::StatusReported { step, .. }
        | Event::AttemptLost { step, .. }
        | Event::AttemptFound { step, .. }
        | Event::AttemptExtended { step, .. }
        | Event::AttemptEnded { step, .. }
        | Event::OwnerReminded { subject: Subject::Step { step }, .. } => About::Step(step.clone()),
        Event::AttemptAssigned(assigned) => About::Step(assigned.step.clone()),
        Event::ReportArrivedStale { .. } => About::Evidence,
        Event::PhaseStarted { .. } | Event::PhaseEnded { .. } | Event::GateJudged { .. } => About::Phase,
        Event::MilestoneAtRisk { .. } | Event::MilestoneMissed { .. } | Event::MilestoneReached { .. } => {
            About::Milestone
        }
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
        | Event::RunEnded { .. } => About::Run,
    }
}

/// Whether the command is one to the whole run.
pub(crate) fn is_to_the_run(command: &Command) -> bool {
    match command {
        Command::RestartClocks
        | Command::RestartQueueClocks
        | Command::FollowWallClock { .. }
        | Command::Tick
        | Command::Cancel { .. }
        | Command::Pause { .. }
        | Command::AcceptLoss
        | Command::Resume { .. }
        | Command::Signal { .. } => true,
        Command::Assign { .. }
        | Command::Prepare { .. }
        | Command::Finish { .. }
        | Command::ReportStatus { .. }
        | Command::Deny { .. }
        | Command::LoseInstance { .. }
        | Command::FindInstance { .. }
        | Command::BuryInstance { .. }
        | Command::RetryStep { .. }
        | Command::ResolveStep { .. } => false,
    }
}

fn s() -> StepId {
    "s".into()
}

fn looked_at(world: &World) -> &Step {
    &world.run.steps[world.run.step_index(&s()).expect("s is in the plan")]
}

/// Of the last attempt, or of one that never was.
fn fence(world: &World) -> Fence {
    let attempt = looked_at(world).last_attempt().max(1);
    Fence { step: s(), attempt, agent: "infra-1".into(), instance: "infra-1-a".into() }
}

fn queued(world: &World, purpose: Purpose) -> StepNext {
    let wake_at = world.now + SignedDuration::from_secs(900);
    StepNext::Queued { purpose, not_before: world.now, wake_at, why: String::new() }
}

/// Everywhere a step can be told to go.
pub(crate) fn nexts(world: &World) -> Vec<(&'static str, StepNext)> {
    let queued = |purpose| queued(world, purpose);
    let asking = |kind| StepNext::Asking { question: "?".to_owned(), kind, remind_at: world.now };
    let reason = || "because".to_owned();
    let ends_at = Some(world.now);
    vec![
        ("queued", queued(Purpose::Run)),
        ("queued (probe)", queued(Purpose::Probe)),
        ("queued (verify)", queued(Purpose::Verify)),
        ("queued (undo)", queued(Purpose::Undo)),
        ("waiting", StepNext::Waiting { signal: Some("go".to_owned()), ends_at: None, wake_at: world.now }),
        ("waiting (moment)", StepNext::Waiting { signal: None, ends_at, wake_at: world.now }),
        ("asking", asking(QuestionKind::NeedsPerson)),
        ("asking (failed)", asking(QuestionKind::Failed)),
        ("asking (may have run)", asking(QuestionKind::MayHaveRun)),
        ("asking (undo)", asking(QuestionKind::UndoFailed)),
        ("succeeded", StepNext::Succeeded),
        ("failed", StepNext::Failed { reason: reason() }),
        ("skipped", StepNext::Skipped { reason: reason() }),
        ("cancelled", StepNext::Cancelled),
        ("undone", StepNext::Undone),
    ]
}

/// Every way in which an attempt ends.
pub(crate) fn ends() -> Vec<(&'static str, AttemptEnd)> {
    let finished = |outcome| AttemptEnd::Finished { outcome };
    let not_started = |why| AttemptEnd::NotStarted { why };
    let unknown = |ended_by| AttemptEnd::Unknown { ended_by };
    vec![
        ("succeeded", finished(ok(json!({})))),
        ("not satisfied", finished(Outcome::NotSatisfied { diff: "none".to_owned() })),
        ("failed", finished(failed(FailureKind::Retry))),
        ("cancelled", finished(Outcome::Cancelled { may_have_changed: true })),
        ("not started: busy", not_started(NotStarted::Busy)),
        ("not started: draining", not_started(NotStarted::Draining)),
        ("not started: refused", not_started(NotStarted::Refused { why: "no".to_owned() })),
        ("not started: denied", not_started(NotStarted::Denied)),
        ("not started: unsent", not_started(NotStarted::Unsent)),
        ("unknown: instance gone", unknown(EndedBy::InstanceGone)),
        ("unknown: clock", unknown(EndedBy::Clock)),
        ("unknown: superseded", unknown(EndedBy::Superseded)),
        ("unknown: person", unknown(EndedBy::Person)),
    ]
}

/// Every event about the step.
fn step_events(world: &World) -> Vec<(String, Event)> {
    let mut all = Vec::new();
    for (to, next) in nexts(world) {
        all.push((format!("StepMoved → {to}"), Event::StepMoved { step: s(), next }));
    }
    for (to, next) in nexts(world) {
        let (resolution, reason) = (Resolution::Retry, String::new());
        let event = Event::StepResolved { step: s(), resolution, reason, output: None, next };
        all.push((format!("StepResolved → {to}"), event));
    }
    let Fence { attempt, agent, instance, .. } = fence(world);
    let (ends_by, undo) = (world.now, Arc::new(json!("was")));
    let mut push = |row: &str, event| all.push((row.to_owned(), event));
    push("AttemptAssigned", assigned(world));
    push("AttemptPrepared", Event::AttemptPrepared { step: s(), attempt, undo });
    push("StatusReported", Event::StatusReported { step: s(), attempt, status: StatusNote::default() });
    push("AttemptLost", Event::AttemptLost { step: s(), attempt });
    push("AttemptFound", Event::AttemptFound { step: s(), attempt });
    push("AttemptExtended", Event::AttemptExtended { step: s(), attempt, ends_by });
    for (to, next) in nexts(world) {
        let end = AttemptEnd::Unknown { ended_by: EndedBy::Clock };
        all.push((format!("AttemptEnded → {to}"), Event::AttemptEnded { step: s(), attempt, end, next }));
    }
    for (how, end) in ends() {
        let undo = looked_at(world).live_attempt().is_some_and(|(_, live)| live.purpose == Purpose::Undo);
        let next = queued(world, if undo { Purpose::Undo } else { Purpose::Run });
        let row = format!("AttemptEnded ({how}) → again");
        all.push((row, Event::AttemptEnded { step: s(), attempt, end, next }));
    }
    let subject = Subject::Step { step: s() };
    all.push(("OwnerReminded".to_owned(), Event::OwnerReminded { subject, next_at: world.now }));
    let stale = Event::ReportArrivedStale { step: s(), attempt, agent, instance, report: json!({}) };
    all.push(("ReportArrivedStale".to_owned(), stale));
    all
}

fn assigned(world: &World) -> Event {
    let i = world.run.step_index(&s()).expect("s is in the plan");
    let purpose = if let StepState::Queued { purpose, .. } = &looked_at(world).state { *purpose } else { Purpose::Run };
    let Fence { agent, instance, .. } = fence(world);
    Event::AttemptAssigned(Box::new(AttemptAssigned {
        step: s(),
        attempt: world.run.next_attempt(i).expect("few attempts"),
        purpose,
        agent,
        instance,
        host: None,
        dispatch_until: world.now,
        ends_by: world.now + SignedDuration::from_secs(1),
        with: Arc::new(json!({})),
        undoes: None,
    }))
}

/// Every event about a phase: the second one, or the only one.
fn phase_events(world: &World) -> Vec<(&'static str, Event)> {
    let id = || -> PhaseId { world.run.plan.phases[usize::from(world.run.phases.len() > 1)].id.clone() };
    let ended = |outcome| Event::PhaseEnded { phase: id(), outcome };
    let judged = |verdict| Event::GateJudged { phase: id(), verdict, criteria: Vec::new() };
    vec![
        ("PhaseStarted", Event::PhaseStarted { phase: id() }),
        ("GateJudged: passed", judged(GateVerdict::Passed)),
        ("GateJudged: failed", judged(GateVerdict::Failed)),
        ("GateJudged: inconclusive", judged(GateVerdict::Inconclusive)),
        ("PhaseEnded: completed", ended(PhaseOutcome::Completed)),
        ("PhaseEnded: skipped", ended(PhaseOutcome::Skipped)),
        ("PhaseEnded: failed", ended(PhaseOutcome::Failed)),
        ("MilestoneAtRisk", Event::MilestoneAtRisk { phase: id() }),
        ("MilestoneMissed", Event::MilestoneMissed { phase: id() }),
        ("MilestoneReached", Event::MilestoneReached { phase: id(), late: false }),
        ("MilestoneReached, late", Event::MilestoneReached { phase: id(), late: true }),
    ]
}

/// Every event about the run.
fn run_events(world: &World) -> Vec<(&'static str, Event)> {
    let (reason, remind_at) = (|| "because".to_owned(), world.now);
    let pause = |question: Option<&str>| Event::RunPaused {
        reason: reason(),
        question: question.map(str::to_owned),
        remind_at,
    };
    let cancel = |undo, force| Event::CancelRequested { reason: reason(), undo, force };
    let finish = |outcome| Event::FinishStarted { outcome, reason: reason(), steps: vec![s()] };
    let end = |outcome| Event::RunEnded { outcome, reason: reason(), outputs: None };
    let started = crate::common::started((*world.run.plan).clone());
    let signal = Event::SignalReceived { signal: "go".to_owned(), payload: Arc::new(json!({})), reason: String::new() };
    let attempts_from = world.run.attempts_from + 1_000;
    let lost = Event::RecordsLost { attempts_from, reason: reason(), question: "?".to_owned(), remind_at };
    let back = |steps| Event::RollbackStarted { reason: reason(), steps, irreversible: std::iter::empty().collect() };
    vec![
        ("RunStarted", Event::RunStarted(Box::new(started))),
        ("OwnerReminded: run", Event::OwnerReminded { subject: Subject::Run, next_at: world.now }),
        ("SignalReceived", signal),
        ("QueueClocksRestarted", Event::QueueClocksRestarted),
        ("WallClockMoved", Event::WallClockMoved { ahead_ms: 3_600_000 }),
        ("RunPaused", pause(None)),
        ("RunPaused: question", pause(Some("?"))),
        ("RecordsLost", lost),
        ("RunResumed", Event::RunResumed { reason: reason() }),
        ("CancelRequested", cancel(false, false)),
        ("CancelRequested, undo", cancel(true, false)),
        ("CancelRequested, forced", cancel(false, true)),
        ("RollbackRequested", Event::RollbackRequested { reason: reason() }),
        ("RollbackStarted", back(vec![s()])),
        ("FinishStarted", finish(RunOutcome::Failed)),
        ("RunEnded: succeeded", end(RunOutcome::Succeeded)),
        ("RunEnded: failed", end(RunOutcome::Failed)),
        ("RunEnded: cancelled", end(RunOutcome::Cancelled)),
    ]
}

/// Every event.
pub(crate) fn events(world: &World) -> Vec<(String, Event)> {
    let owned = |(row, event): (&str, Event)| (row.to_owned(), event);
    let of_more = phase_events(world).into_iter().chain(run_events(world)).map(owned);
    step_events(world).into_iter().chain(of_more).collect()
}

/// A command, and how many seconds later it is given.
pub(crate) type Asked = (&'static str, i64, Command);

const HOUR: i64 = 3_600;

/// Every command.
pub(crate) fn commands(world: &World) -> Vec<Asked> {
    let mut all = vec![("Assign", 0, world.assignment("s", "infra-1-a"))];
    all.extend(reports(world));
    all.extend(denials(world));
    all.extend(instances(world));
    all.extend(clocks());
    all.extend(people());
    all
}

fn reports(world: &World) -> Vec<Asked> {
    let fence = || fence(world);
    let finish = |outcome| Command::Finish { fence: fence(), outcome };
    let prepare = |undo| Command::Prepare { fence: fence(), undo: Arc::new(undo) };
    let cancelled = |may_have_changed| Outcome::Cancelled { may_have_changed };
    let unchanged = Outcome::Succeeded {
        output: Arc::new(json!({ "new": 2 })),
        unchanged: true,
        observations: Vec::new(),
        truncated: false,
    };
    let again = looked_at(world).attempts.last().and_then(|a| match &a.end {
        Some((_, AttemptEnd::Finished { outcome })) => Some(outcome.clone()),
        Some((_, AttemptEnd::NotStarted { .. } | AttemptEnd::Unknown { .. })) | None => None,
    });
    let elsewhere = Fence { instance: "infra-1-z".into(), ..fence() };
    let never = Fence { attempt: fence().attempt + 1, ..fence() };
    let status = StatusNote { message: "new".to_owned(), ..StatusNote::default() };
    vec![
        ("Prepare", 0, prepare(json!("other"))),
        ("Prepare: the same", 0, prepare(json!("was"))),
        ("Finish: succeeded", 0, finish(ok(json!({ "new": 1 })))),
        ("Finish: succeeded, unchanged", 0, finish(unchanged)),
        ("Finish: not satisfied", 0, finish(Outcome::NotSatisfied { diff: "none".to_owned() })),
        ("Finish: failed, retry", 0, finish(failed(FailureKind::Retry))),
        ("Finish: failed, permanent", 0, finish(failed(FailureKind::Permanent))),
        ("Finish: failed, needs a person", 0, finish(failed(FailureKind::NeedsPerson))),
        ("Finish: cancelled", 0, finish(cancelled(false))),
        ("Finish: cancelled, may have changed", 0, finish(cancelled(true))),
        ("Finish: the same", 0, finish(again.unwrap_or_else(|| ok(json!({}))))),
        ("Finish: of another instance", 0, Command::Finish { fence: elsewhere, outcome: ok(json!({})) }),
        ("Finish: of an attempt that never was", 0, Command::Finish { fence: never, outcome: ok(json!({})) }),
        ("ReportStatus", 0, Command::ReportStatus { fence: fence(), status }),
    ]
}

fn denials(world: &World) -> Vec<Asked> {
    let deny = |why| Command::Deny { fence: fence(world), why };
    vec![
        ("Deny: busy", 0, deny(NotStarted::Busy)),
        ("Deny: draining", 0, deny(NotStarted::Draining)),
        ("Deny: refused", 0, deny(NotStarted::Refused { why: "no".to_owned() })),
        ("Deny: denied", 0, deny(NotStarted::Denied)),
        ("Deny: unsent", 0, deny(NotStarted::Unsent)),
    ]
}

fn instances(world: &World) -> Vec<Asked> {
    let instance = || "infra-1-a".into();
    let find = |holds| Command::FindInstance { instance: instance(), holds };
    let held = || vec![(s(), fence(world).attempt)];
    vec![
        ("LoseInstance", 0, Command::LoseInstance { instance: instance() }),
        ("BuryInstance", 0, Command::BuryInstance { instance: instance() }),
        ("FindInstance: holds it", 0, find(held())),
        ("FindInstance: holds it, an hour later", HOUR, find(held())),
        ("FindInstance: holds nothing", 0, find(Vec::new())),
        ("FindInstance: holds nothing, an hour later", HOUR, find(Vec::new())),
    ]
}

fn clocks() -> Vec<Asked> {
    vec![
        ("RestartClocks", 0, Command::RestartClocks),
        ("RestartClocks, an hour later", HOUR, Command::RestartClocks),
        ("RestartQueueClocks", 0, Command::RestartQueueClocks),
        ("FollowWallClock", 0, Command::FollowWallClock { ahead_ms: 3_600_000 }),
        ("Tick", 0, Command::Tick),
        ("Tick, an hour later", HOUR, Command::Tick),
    ]
}

fn people() -> Vec<Asked> {
    let reason = || "because".to_owned();
    let resolve = |resolution| Command::ResolveStep { step: s(), resolution, reason: reason(), output: None };
    let signal =
        Command::Signal { signal: "go".to_owned(), payload: Arc::new(json!({ "by": "hand" })), reason: String::new() };
    vec![
        ("Cancel", 0, Command::Cancel { reason: reason(), force: false }),
        ("Cancel, forced", 0, Command::Cancel { reason: reason(), force: true }),
        ("Pause", 0, Command::Pause { reason: reason() }),
        ("AcceptLoss", 0, Command::AcceptLoss),
        ("Resume", 0, Command::Resume { reason: reason() }),
        ("Signal", 0, signal),
        ("RetryStep", 0, Command::RetryStep { step: s(), reason: reason() }),
        ("ResolveStep: succeeded", 0, resolve(Resolution::Succeeded)),
        ("ResolveStep: failed", 0, resolve(Resolution::Failed)),
        ("ResolveStep: retry", 0, resolve(Resolution::Retry)),
        ("ResolveStep: skip", 0, resolve(Resolution::Skip)),
        ("ResolveStep: succeeded, an hour later", HOUR, resolve(Resolution::Succeeded)),
    ]
}
