//! A new side that turns bad while it is watched, and attempts that end before the watch does.

use std::time::{Duration, Instant};

use muster_agent::{Action, ActionError, Done, testkit::Trial};
use muster_integration_tests::lab::{FIRST, NEXT};
use serde_json::{Value, json};

use crate::{
    diff, needs_person, permanent, retry, satisfied,
    side::{Front, fault, front, get, says},
    trial,
};

/// Waits until the turn that is on trial is being watched.
pub(crate) async fn watching(trial: &Trial) {
    let start = Instant::now();
    while !trial.said().progress.iter().any(|(said, _)| said.contains("watching")) {
        assert!(start.elapsed() < Duration::from_secs(60), "it never came to watching");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs the switch; while it is watched, `then` happens.
async fn run_and(front: &Front, with: &Value, then: impl FnOnce() + Send + 'static) -> Result<Done, ActionError> {
    let (trial, switch) = (trial(), front.switch());
    let ctx = trial.context();
    let other = async {
        watching(&trial).await;
        tokio::task::spawn_blocking(then).await.unwrap();
    };
    tokio::join!(switch.run(&ctx, with), other).0
}

/// Runs the switch; while it is watched, the attempt is cancelled.
async fn run_and_cancel(front: &Front, with: &Value) -> String {
    let (trial, switch) = (trial(), front.switch());
    let ctx = trial.context();
    let other = async {
        watching(&trial).await;
        trial.cancel();
    };
    retry(tokio::join!(switch.run(&ctx, with), other).0)
}

fn watched_long(front: &Front) -> Value {
    let mut with = front.with(NEXT);
    with["watch"] = json!({"for_ms": 60000, "every_ms": 20, "max_error_percent": 0.5, "max_latency_p95_ms": 500});
    with
}

#[tokio::test]
async fn errors_and_slowness_make_it_go_back_by_itself_with_evidence() {
    let front = front();
    let (found, with) = (front.upstream(), watched_long(&front));
    for (mode, field) in [("failing", "failed"), ("slow", "latency_p95_ms")] {
        let green = front.sides.green().to_owned();
        let start = Instant::now();
        let (message, output) = permanent(run_and(&front, &with, move || fault(&green, mode)).await);
        assert!(start.elapsed() < Duration::from_secs(50), "a breach is not waited out");
        assert!(message.contains("the requests go to") && message.contains("blue"), "{message}");
        assert_eq!((&output["side"], &output["switched_back"]), (&json!("blue"), &json!(true)), "{output}");
        assert!(output["watched"][field].as_f64().unwrap() >= 1.0, "{output}");
        assert_eq!((front.upstream(), front.release(), front.unfinished()), (found.clone(), says(FIRST), false));
        // Undo, as the coordinator does after a failure: twice, and green is stopped.
        for _ in 0..2 {
            let prepared = json!({"from": "blue", "starts": true});
            front.switch().undo(&trial().context(), &with, &prepared).await.unwrap();
        }
        assert_eq!((front.release(), get(front.sides.green())), (says(FIRST), "down".into()));
    }
}

#[tokio::test]
async fn it_does_not_go_back_to_a_side_that_is_down() {
    let front = front();
    let with = watched_long(&front);
    let (green, stop) = (front.sides.green().to_owned(), front.sides.stop_program());
    let both = move || {
        fault(&green, "failing");
        assert!(std::process::Command::new(&stop).arg("blue").output().unwrap().status.success());
    };
    let message = needs_person(run_and(&front, &with, both).await);
    assert!(message.contains("stay on green") && message.contains("blue"), "{message}");
    fault(front.sides.green(), "ok");
    assert_eq!(front.release(), says(NEXT));
    let prepared = json!({"from": "blue", "starts": true});
    let message = needs_person(front.switch().undo(&trial().context(), &with, &prepared).await);
    assert!(message.contains("would take the service down"), "{message}");
    assert_eq!(front.release(), says(NEXT));
}

#[tokio::test]
async fn an_attempt_that_ends_before_its_watch_is_not_taken_for_a_success() {
    let front = front();
    let (found, with) = (front.upstream(), watched_long(&front));
    let prepared = front.switch().prepare(&trial().context(), &with).await.unwrap();
    assert!(run_and_cancel(&front, &with).await.contains("stopped while watching"));
    assert_eq!(front.release(), says(NEXT));
    assert!(diff(&front.switch(), &with).await.contains("not seen to its end"));

    // The next attempt knows where it came from, watches to the end, and can be undone.
    assert_eq!(front.switch().prepare(&trial().context(), &with).await.unwrap(), prepared);
    let short = front.with(NEXT);
    let done = front.switch().run(&trial().context(), &short).await.unwrap();
    assert!(done.output["watched"]["requests"].as_u64().unwrap() > 0);
    assert_eq!(satisfied(&front.switch(), &short).await["side"], "green");
    front.switch().undo(&trial().context(), &short, &prepared).await.unwrap();
    assert_eq!((front.upstream(), front.release()), (found, says(FIRST)));
}

#[tokio::test]
async fn a_new_side_that_died_before_the_next_attempt_is_left() {
    let front = front();
    let with = watched_long(&front);
    run_and_cancel(&front, &with).await;
    front.sides.stop("green").unwrap();
    let (message, output) = permanent(front.switch().run(&trial().context(), &with).await);
    assert!(message.contains("green") && output["switched_back"] == true, "{message}");
    assert_eq!(front.release(), says(FIRST));
}
