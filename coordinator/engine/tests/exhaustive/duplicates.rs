//! What comes again, late, or from somebody else: it changes nothing, in whatever state.

use std::sync::Arc;

use jiff::Timestamp;
use muster_engine::{
    ids::AttemptNumber,
    run::{
        Command, Event, Fence, Rejection, Run, Turn,
        event::{AttemptEnd, NotStarted, Outcome, Purpose, StatusNote},
        state::Attempt,
    },
};
use serde_json::json;

use super::Seen;
use crate::common::{World, ok};

/// What has to become of a command that changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Nothing,
    Evidence,
    Conflict,
    Unknown,
}

/// Sends all of them, one after another, and compares the state with what it was.
pub(super) fn change_nothing(world: &World, seen: &mut Seen) {
    let run = &world.run;
    let mut turn = Turn::new(run);
    for (command, expected) in duplicates(world) {
        let before = turn.events().len();
        let answer = match turn.take(&command, world.now) {
            Ok(()) if turn.events().len() == before => Answer::Nothing,
            Ok(()) => {
                let kept = matches!(turn.events()[before..], [Event::ReportArrivedStale { .. }]);
                assert!(kept, "{command:?} is not only kept:\n{}", world.story());
                Answer::Evidence
            }
            Err(Rejection::Conflict { .. }) => Answer::Conflict,
            Err(Rejection::UnknownAttempt { .. } | Rejection::UnknownStep(_)) => Answer::Unknown,
            Err(other) => panic!("{command:?}: {other}\n{}", world.story()),
        };
        assert_eq!(answer, expected, "{command:?} after\n{}", world.story());
        seen.duplicates += 1;
        seen.judge(run, &command);
    }
    let (after, mut expected) = (turn.into_parts().0, with_what_it_ended_without(run, world.now));
    (expected.seq, expected.updated_at) = (after.seq, after.updated_at);
    assert!(after == expected, "a report that changes nothing has changed\n{}", world.story());
}

/// Of what a run has ended without, the first report says how it ended; that alone is noted.
fn with_what_it_ended_without(run: &Run, now: Timestamp) -> Run {
    let mut run = run.clone();
    if run.has_ended() {
        for step in &mut run.steps {
            for attempt in &mut Arc::make_mut(step).attempts {
                if attempt.end.is_none() && attempt.reported_late.is_none() {
                    attempt.reported_late = Some((now, ok(json!({}))));
                }
            }
        }
    }
    run
}

fn duplicates(world: &World) -> Vec<(Command, Answer)> {
    let run = &world.run;
    let mut all = of_nobody(world);
    for (step, planned) in run.steps.iter().zip(&run.plan.steps) {
        let fence = |number| Fence {
            step: planned.id.clone(),
            attempt: number,
            agent: "infra-1".into(),
            instance: "infra-1-a".into(),
        };
        let finish = |fence| Command::Finish { fence, outcome: ok(json!({})) };
        let foreign = |fence| Command::Finish { fence, outcome: ok(json!("by another")) };
        let prepare = |fence| Command::Prepare { fence, undo: Arc::new(json!("it was otherwise")) };
        let never = step.last_attempt() + 1;
        all.push((finish(fence(never)), Answer::Unknown));
        all.push((prepare(fence(never)), Answer::Unknown));
        for attempt in &step.attempts {
            let own =
                Fence { agent: attempt.agent.clone(), instance: attempt.instance.clone(), ..fence(attempt.number) };
            let is_last = attempt.number == step.last_attempt();
            let elsewhere = Fence { instance: "infra-1-z".into(), ..own.clone() };
            all.push((foreign(elsewhere.clone()), Answer::Evidence));
            if is_last {
                all.push((prepare(elsewhere.clone()), Answer::Evidence));
                all.push((Command::Deny { fence: elsewhere, why: NotStarted::Busy }, Answer::Nothing));
                all.push((foreign(Fence { agent: "infra-2".into(), ..own.clone() }), Answer::Evidence));
            }
            all.extend(of_attempt(run, attempt, step.prepared.get(&attempt.number), &own));
        }
    }
    all
}

/// Reports of the instance that has, or had, the attempt.
fn of_attempt(
    run: &Run,
    attempt: &Attempt,
    prepared: Option<&Arc<serde_json::Value>>,
    fence: &Fence,
) -> Vec<(Command, Answer)> {
    let finish = |outcome: Outcome| Command::Finish { fence: fence.clone(), outcome };
    let prepare = |undo: Arc<serde_json::Value>| Command::Prepare { fence: fence.clone(), undo };
    let otherwise = || Arc::new(json!("it was otherwise"));
    let deny = Command::Deny { fence: fence.clone(), why: NotStarted::Denied };
    let status = StatusNote { message: "late".to_owned(), ..StatusNote::default() };
    let status = Command::ReportStatus { fence: fence.clone(), status };
    let mut all = Vec::new();
    match &attempt.end {
        None if run.has_ended() => {
            all.extend([(finish(ok(json!({}))), Answer::Evidence), (prepare(otherwise()), Answer::Evidence)]);
            all.extend([(deny, Answer::Nothing), (status, Answer::Nothing)]);
        }
        None => match prepared {
            Some(undo) => {
                all.extend([(prepare(Arc::clone(undo)), Answer::Nothing), (prepare(otherwise()), Answer::Conflict)]);
                all.push((deny, Answer::Nothing));
            }
            None if attempt.purpose != Purpose::Run => all.push((prepare(otherwise()), Answer::Evidence)),
            None => {}
        },
        Some((_, end)) => {
            let contradicts = match end {
                AttemptEnd::Finished { outcome } => {
                    all.push((finish(outcome.clone()), Answer::Nothing));
                    Answer::Conflict
                }
                AttemptEnd::NotStarted { .. } | AttemptEnd::Unknown { .. } => Answer::Evidence,
            };
            all.push((finish(ok(json!("something else"))), contradicts));
            all.push((prepare(otherwise()), Answer::Evidence));
            all.extend(prepared.map(|undo| (prepare(Arc::clone(undo)), Answer::Evidence)));
            all.extend([(deny, Answer::Nothing), (status, Answer::Nothing)]);
        }
    }
    all
}

/// About a step that is not in the plan, an instance that has nothing of the run, and a moment that has not come.
fn of_nobody(world: &World) -> Vec<(Command, Answer)> {
    let nobody = || "infra-1-z".into();
    let number: AttemptNumber = 1;
    let nowhere = Fence { step: "nowhere".into(), attempt: number, agent: "infra-1".into(), instance: nobody() };
    let mut all = vec![
        (Command::Finish { fence: nowhere, outcome: ok(json!({})) }, Answer::Unknown),
        (Command::LoseInstance { instance: nobody() }, Answer::Nothing),
        (Command::BuryInstance { instance: nobody() }, Answer::Nothing),
        (Command::FindInstance { instance: nobody(), holds: Vec::new() }, Answer::Nothing),
    ];
    if world.run.wake_up(world.now).is_none_or(|wake| wake.at > world.now) {
        all.push((Command::Tick, Answer::Nothing));
    }
    all
}
