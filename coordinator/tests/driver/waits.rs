//! Steps that wait for a time or a signal: nothing but the journal and the clock has a part in them.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use muster_bus::message::TaskReply;
use muster_coordinator::control::{Control, RunFilter};
use muster_engine::run::{Command, state::StepState};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{House, ns, operator, playbook, succeeded};

const FIRST: &str = "id: s0, action: test.work";
const AFTER: &str = "id: s2, needs: [w], action: test.work, with: {n: \"{{ steps.w.output.n }}\"}";

fn waiting(wait: &str) -> String {
    let yaml = playbook(&[FIRST, AFTER], "");
    yaml.replace("        - {id: s2", &format!("        - {{id: w, needs: [s0], wait: {wait}}}\n        - {{id: s2"))
}

fn signal(payload: Value) -> Command {
    Command::Signal { signal: "approved".to_owned(), payload: Arc::new(payload), reason: String::new() }
}

#[tokio::test(start_paused = true)]
async fn a_time_goes_on_while_the_coordinator_is_away() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&waiting("{for: 1h}").replace("{{ steps.w.output.n }}", "7")).await;
    agent.succeed(1).await;
    let waits = house.until(&run.id, "it waits", |r| matches!(r.steps[1].state, StepState::Waiting { .. })).await;
    let since = waits.steps[1].since;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    house.crash_and_reopen().await;
    let done = house.until(&run.id, "the wait is over", |r| r.steps[1].state == StepState::Succeeded).await;
    let waited = done.steps[1].since.duration_since(since);
    assert!((3600..3602).contains(&waited.as_secs()), "{waited}");
    agent.succeed(1).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn a_signal_is_journalled_before_it_is_answered_and_asked_again_after_a_crash() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&waiting("{signal: approved}")).await;
    agent.succeed(1).await;
    house.until(&run.id, "it waits", |r| matches!(r.steps[1].state, StepState::Waiting { .. })).await;
    let before = house.up.command_run(&ns(), &run.id, signal(json!({ "n": 3 })), &operator()).await.unwrap();
    assert_eq!(before.signals.len(), 1);
    house.crash_and_reopen().await;
    house.until(&run.id, "the wait is over", |r| r.steps[1].state == StepState::Succeeded).await;
    let again = house.up.command_run(&ns(), &run.id, signal(json!({ "n": 4 })), &operator()).await.unwrap();
    assert_eq!((again.signals.len(), again.signals["approved"]["n"].as_i64()), (1, Some(3)), "the first one counts");
    let task = agent.next(TaskReply::Accepted).await;
    assert_eq!(task.with["n"], 3, "what came with the signal is the output of the wait");
    agent.report(&task, succeeded(json!({}))).await;
    house.ended(&run.id).await;
    let late = house.up.command_run(&ns(), &run.id, signal(json!({})), &operator()).await.unwrap_err();
    assert_eq!(late.code, "RUN_ENDED");
    let unknown = Command::Signal { signal: "other".to_owned(), payload: Arc::new(json!({})), reason: String::new() };
    assert_eq!(house.up.command_run(&ns(), &run.id, unknown, &operator()).await.unwrap_err().code, "SIGNAL_NOT_FOUND");
}

/// The wall clock says 09:00 when a coordinator opens.
const AT_TEN: &str = "{until: \"2026-01-07T10:00:00Z\"}";

fn alone(wait: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: alone, owner: devops}}\nspec:\n  phases:\n    - id: only\n      milestone: Done\n      deadline: 10h\n      steps:\n        - {{id: w, wait: {wait}}}\n"
    )
}

fn set_wall(house: &House, ahead: Duration, back: bool) {
    let ms = i64::try_from(ahead.as_millis()).unwrap();
    house.wall_offset_ms.store(if back { -ms } else { ms }, Ordering::SeqCst);
}

/// Nobody may ask for the run itself: that alone would bring it into memory.
async fn is_over(house: &House) -> bool {
    let filter = RunFilter { states: vec!["SUCCEEDED".to_owned()], ..RunFilter::default() };
    !house.up.list_runs(&ns(), &filter, 10, "").await.unwrap().items.is_empty()
}

/// How long it takes from now until the run is over, in seconds.
async fn takes(house: &House) -> u64 {
    let since = Instant::now();
    for _ in 0..50_000 {
        if is_over(house).await {
            return since.elapsed().as_secs();
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    panic!("it is never over");
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

#[tokio::test(start_paused = true)]
async fn a_moment_goes_by_the_wall_clock_when_that_is_set() {
    for in_memory in [true, false] {
        // Forward past it, and forward to before it; back, and back and right again.
        let cases: [(&[(u64, bool)], u64); 4] = [
            (&[(90, false)], 0),
            (&[(20, false)], 30 * 60),
            (&[(30, true)], 80 * 60),
            (&[(30, true), (0, true)], 48 * 60),
        ];
        for (jumps, left) in cases {
            let house = House::open().await;
            let run = house.start(&alone(AT_TEN)).await;
            let watch = if in_memory { Some(house.up.watch_run(&ns(), &run.id, 0).await.unwrap()) } else { None };
            tokio::time::sleep(minutes(10)).await;
            assert_eq!(house.up.runs_in_memory(), usize::from(in_memory));
            for (n, (ahead, back)) in jumps.iter().enumerate() {
                tokio::time::sleep(minutes(2 * n as u64)).await;
                set_wall(&house, minutes(*ahead), *back);
            }
            let took = takes(&house).await;
            assert!((left..left + 3).contains(&took), "in memory {in_memory}, {jumps:?}: {took} s and not {left}");
            let due = house.run(&run.id).await.phases[0].milestone.as_ref().unwrap().due_at;
            assert_eq!(due, run.phases[0].milestone.as_ref().unwrap().due_at, "deadlines stay");
            drop(watch);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_moment_goes_by_the_wall_clock_that_a_coordinator_finds() {
    for keeps_store in [true, false] {
        // An hour ahead: the moment is over; two hours behind: the time in the journal stands still, the moment does not; half an
        // hour behind at first, and right again: what the run was told is no longer so.
        for (before, ahead, back, left) in [(0, 60, false, 0), (0, 120, true, 3 * 3_600), (30, 10, false, 50 * 60)] {
            let mut house = House::open().await;
            house.start(&alone(AT_TEN)).await;
            tokio::time::sleep(minutes(10)).await;
            set_wall(&house, minutes(before), true);
            tokio::time::sleep(minutes(20)).await;
            assert_eq!(house.up.runs_in_memory(), 0);
            set_wall(&house, minutes(ahead), back);
            if keeps_store {
                house = house.crash_and_reopen_with_its_store().await;
            } else {
                house.crash_and_reopen().await;
            }
            let took = takes(&house).await;
            assert!((left..left + 3).contains(&took), "{before} {ahead} {back}: {took} s and not {left}");
        }
    }
}

/// The first wait is for a time, the second for a moment: what is known of the wall clock may be old by then.
#[tokio::test(start_paused = true)]
async fn a_wait_that_begins_after_the_wall_clock_was_set_is_not_misled() {
    for in_memory in [true, false] {
        let house = House::open().await;
        let both = format!("{}        - {{id: v, needs: [w], wait: {AT_TEN}}}\n", alone("{for: 10m}"));
        let run = house.start(&both).await;
        let _watch = if in_memory { Some(house.up.watch_run(&ns(), &run.id, 0).await.unwrap()) } else { None };
        tokio::time::sleep(minutes(5)).await;
        set_wall(&house, minutes(20), false);
        let took = takes(&house).await;
        assert!((35 * 60..35 * 60 + 3).contains(&took), "in memory {in_memory}: {took}");
    }
    let house = House::open().await;
    set_wall(&house, minutes(20), false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    house.start(&alone(AT_TEN)).await;
    let took = takes(&house).await;
    assert!((40 * 60 - 6..40 * 60).contains(&took), "started when the wall clock was ahead already: {took}");
}

/// A jump back in the last second is no excuse.
#[tokio::test(start_paused = true)]
async fn a_moment_is_never_early() {
    let house = House::open().await;
    house.start(&alone(AT_TEN)).await;
    tokio::time::sleep(Duration::from_millis(3_599_900)).await;
    set_wall(&house, minutes(60), true);
    let took = takes(&house).await;
    assert!((3_600..3_603).contains(&took), "{took}");
}
