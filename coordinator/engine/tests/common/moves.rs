//! Everything that can be asked of a run in a state: what makes sense, and what does not.

use std::sync::Arc;

use muster_engine::{
    ids::{AttemptNumber, StepId},
    plan::PlannedWait,
    run::{
        Command, Fence, Outstanding, Resolution, Run,
        event::{FailureKind, NotStarted, Outcome, Purpose, StatusNote},
        state::StepState,
    },
};
use serde_json::json;

use super::{World, failed, ok};

/// What agents and the clock can do, if nothing goes wrong: every place is taken, every attempt prepares and succeeds.
pub fn good(world: &World) -> Vec<Command> {
    let mut all = assignments(world);
    for (fence, purpose) in live(&world.run) {
        if wants_to_prepare(world, &fence) {
            all.push(prepare(&fence));
        } else {
            all.push(Command::Finish { outcome: good_outcome(purpose), fence });
        }
    }
    all.extend(signals(world).into_iter().filter(|(name, _)| !world.run.signals.contains_key(name)).map(|(_, s)| s));
    all
}

/// Every signal that a step of the plan waits for.
fn signals(world: &World) -> Vec<(String, Command)> {
    let mut all = Vec::new();
    for planned in &world.run.plan.steps {
        if let Some(PlannedWait::Signal { name, .. }) = &planned.wait {
            let signal = Command::Signal {
                signal: name.clone(),
                payload: Arc::new(json!({ "ok": true })),
                reason: String::new(),
            };
            all.push((name.clone(), signal));
        }
    }
    all
}

/// What goes wrong with agents and with the wall clock, and what the clock does then.
pub fn disturbances(world: &World) -> Vec<Command> {
    let mut all = Vec::new();
    for (fence, purpose) in live(&world.run) {
        let finish = |outcome| Command::Finish { fence: fence.clone(), outcome };
        all.push(finish(failed(FailureKind::Retry)));
        all.push(finish(failed(FailureKind::Permanent)));
        all.push(Command::LoseInstance { instance: fence.instance.clone() });
        all.push(Command::BuryInstance { instance: fence.instance.clone() });
        all.push(Command::Deny { fence: fence.clone(), why: NotStarted::Busy });
        if purpose == Purpose::Probe {
            all.push(finish(Outcome::NotSatisfied { diff: "not there".to_owned() }));
        }
    }
    if world.run.waits_for_moment() {
        all.extend([-3_600_000, 3_600_000].map(|ahead_ms| Command::FollowWallClock { ahead_ms }));
    }
    all
}

/// What is rare: other ends, denials, comebacks, clocks.
pub fn oddities(world: &World) -> Vec<Command> {
    let mut all = vec![
        Command::RestartClocks,
        Command::RestartQueueClocks,
        Command::Tick,
        Command::FollowWallClock { ahead_ms: 0 },
    ];
    for (fence, _) in live(&world.run) {
        let finish = |outcome| Command::Finish { fence: fence.clone(), outcome };
        all.push(finish(ok(json!(1))));
        all.push(finish(failed(FailureKind::NeedsPerson)));
        all.push(finish(Outcome::NotSatisfied { diff: String::new() }));
        all.push(finish(Outcome::Cancelled { may_have_changed: true }));
        all.push(finish(Outcome::Cancelled { may_have_changed: false }));
        let unchanged = Outcome::Succeeded {
            output: Arc::new(json!({})),
            unchanged: true,
            observations: Vec::new(),
            truncated: false,
        };
        all.push(finish(unchanged));
        let refused = NotStarted::Refused { why: "not allowed".to_owned() };
        for why in [NotStarted::Draining, NotStarted::Denied, refused] {
            all.push(Command::Deny { fence: fence.clone(), why });
        }
        let held = (fence.step.clone(), fence.attempt);
        all.push(Command::FindInstance { instance: fence.instance.clone(), holds: vec![held] });
        all.push(Command::FindInstance { instance: fence.instance.clone(), holds: Vec::new() });
        let status = StatusNote { message: "half way".to_owned(), percent: Some(50), observations: Vec::new() };
        all.push(Command::ReportStatus { fence: fence.clone(), status });
        all.push(prepare(&fence));
    }
    all.extend(repeats(&world.run));
    all.extend(signals(world).into_iter().map(|(_, s)| s));
    all
}

/// What people can do, whether it makes sense or not.
pub fn people(world: &World) -> Vec<Command> {
    let reason = || "a person said so".to_owned();
    let mut all = vec![
        Command::Cancel { reason: reason(), force: false },
        Command::Cancel { reason: reason(), force: true },
        Command::Pause { reason: reason() },
        Command::AcceptLoss,
        Command::Resume { reason: reason() },
    ];
    for planned in &world.run.plan.steps {
        let step = || planned.id.clone();
        all.push(Command::RetryStep { step: step(), reason: reason() });
        for resolution in [Resolution::Succeeded, Resolution::Failed, Resolution::Retry, Resolution::Skip] {
            let output = (resolution == Resolution::Succeeded).then(|| Arc::new(json!({ "by": "hand" })));
            all.push(Command::ResolveStep { step: step(), resolution, reason: reason(), output });
        }
    }
    all
}

/// The answers that somebody waits for right now.
pub fn answers(world: &World) -> Vec<Command> {
    let asking: Vec<StepId> = (world.run.steps.iter().zip(&world.run.plan.steps))
        .filter(|(s, _)| matches!(s.state, StepState::Asking { .. }))
        .map(|(_, planned)| planned.id.clone())
        .collect();
    let mut all: Vec<_> = people(world)
        .into_iter()
        .filter(|c| matches!(c, Command::ResolveStep { step, .. } if asking.contains(step)))
        .collect();
    if world.run.pause.is_some() {
        all.push(Command::Resume { reason: "go on".to_owned() });
    }
    all
}

/// Reports of attempts that are over: repeated, contradicted, from another process, of attempts that never were.
fn repeats(run: &Run) -> Vec<Command> {
    let mut all = Vec::new();
    for (step, planned) in run.steps.iter().zip(&run.plan.steps) {
        for (n, attempt) in step.attempts.iter().enumerate() {
            let fence = Fence {
                step: planned.id.clone(),
                attempt: AttemptNumber::try_from(n + 1).unwrap(),
                agent: attempt.agent.clone(),
                instance: attempt.instance.clone(),
            };
            all.push(Command::Finish { fence: fence.clone(), outcome: ok(json!({})) });
            all.push(prepare(&fence));
            let other = Fence { instance: "someone-else".into(), ..fence.clone() };
            all.push(Command::Finish { fence: other, outcome: ok(json!({})) });
            let later = Fence { attempt: fence.attempt + 7, ..fence };
            all.push(Command::Finish { fence: later, outcome: ok(json!({})) });
        }
    }
    all
}

/// Each place is taken by the first instance that may.
pub fn assignments(world: &World) -> Vec<Command> {
    let places = world.run.outstanding(world.now).into_iter().filter_map(|o| match o {
        Outstanding::Place(place) => Some(place),
        Outstanding::Dispatch(_) | Outstanding::CancelAttempt(_) | Outstanding::WakeAt(_) => None,
    });
    let assign = places.filter_map(|place| {
        let free = ["infra-1-a", "infra-1-b", "infra-1-c"].into_iter().find(|i| !place.excluded.contains(*i))?;
        Some(world.assignment(place.step.as_str(), free))
    });
    assign.collect()
}

/// The attempts at work.
pub fn live(run: &Run) -> Vec<(Fence, Purpose)> {
    let live = run.steps.iter().zip(&run.plan.steps).filter_map(|(step, planned)| {
        let (attempt, at) = step.live_attempt()?;
        let (agent, instance) = (at.agent.clone(), at.instance.clone());
        Some((Fence { step: planned.id.clone(), attempt, agent, instance }, at.purpose))
    });
    live.collect()
}

fn wants_to_prepare(world: &World, fence: &Fence) -> bool {
    let i = world.run.step_index(&fence.step).unwrap();
    !world.run.steps[i].prepared.contains_key(&fence.attempt)
        && world.run.outstanding(world.now).iter().any(
            |o| matches!(o, Outstanding::Dispatch(d) if d.step == fence.step && d.attempt == fence.attempt && d.prepare),
        )
}

fn prepare(fence: &Fence) -> Command {
    Command::Prepare { fence: fence.clone(), undo: Arc::new(json!({ "was": fence.attempt })) }
}

fn good_outcome(purpose: Purpose) -> Outcome {
    match purpose {
        Purpose::Run | Purpose::Probe | Purpose::Undo => ok(json!({})),
        Purpose::Verify => ok(json!({ "fine": true })),
    }
}
