//! Going back on purpose.

use muster_agent::Action;
use muster_deployment::switch::Rollback;
use muster_integration_tests::lab::{FIRST, NEXT};
use serde_json::{Value, json};

use crate::{
    diff, permanent, retry, satisfied,
    side::{Front, fault, front, get, says},
    trial,
};

fn away(front: &Front) -> Value {
    json!({"service": front.service(), "away_from": NEXT, "watch": {"for_ms": 500, "every_ms": 20}})
}

#[tokio::test]
async fn a_rollback_under_load_loses_nothing_and_is_not_done_twice() {
    let front = front();
    let (found, with) = (front.upstream(), away(&front));
    assert_eq!(satisfied(&Rollback, &with).await["side"], "blue", "there is nothing to go away from");
    front.switched().await;
    let load = front.load();
    assert!(diff(&Rollback, &with).await.contains(&format!("+ server {}", front.sides.blue())));
    let prepared = Rollback.prepare(&trial().context(), &with).await.unwrap();
    let done = Rollback.run(&trial().context(), &with).await.unwrap();
    assert_eq!((&done.output["side"], front.release(), front.upstream()), (&json!("blue"), says(FIRST), found));
    assert_eq!(satisfied(&Rollback, &with).await["side"], "blue");
    // After a crash behind the end, the same again is not a way forward.
    Rollback.run(&trial().context(), &with).await.unwrap();
    assert_eq!(front.release(), says(FIRST));
    for _ in 0..2 {
        Rollback.undo(&trial().context(), &with, &prepared).await.unwrap();
    }
    assert_eq!((front.release(), get(front.sides.blue())), (says(NEXT), says(FIRST)), "both sides go on running");
    let seen = load.end().await;
    assert!(seen.keys().all(|what| *what == says(FIRST) || *what == says(NEXT)), "{seen:?}");
}

#[tokio::test]
async fn a_dead_release_can_be_left_and_a_dead_side_is_not_gone_to() {
    let front = front();
    front.switched().await;
    front.sides.stop("blue").unwrap();
    assert!(retry(Rollback.run(&trial().context(), &away(&front)).await).contains("nothing was changed"));
    assert_eq!(front.release(), says(NEXT));
    front.switch().run(&trial().context(), &front.with(FIRST)).await.unwrap();
    assert_eq!(front.release(), says(FIRST), "forward to a former release starts it");

    let with = json!({"service": front.service(), "away_from": FIRST});
    front.sides.stop("blue").unwrap();
    assert_ne!(front.release(), says(FIRST), "the service is down");
    let done = Rollback.run(&trial().context(), &with).await.unwrap();
    assert_eq!((&done.output["side"], front.release()), (&json!("green"), says(NEXT)));
}

#[tokio::test]
async fn a_rollback_to_something_worse_goes_forward_again() {
    let front = front();
    front.switched().await;
    // Healthy when it is asked alone, slow for those who come through the front.
    let mut with = away(&front);
    with["watch"] = json!({"for_ms": 20000, "every_ms": 20, "max_latency_p95_ms": 500});
    fault(front.sides.blue(), "slow");
    let (message, output) = permanent(Rollback.run(&trial().context(), &with).await);
    assert!(message.contains("green") && output["switched_back"] == true, "{message}");
    assert_eq!((&output["side"], front.release()), (&json!("green"), says(NEXT)));
}

#[tokio::test]
async fn a_name_that_could_become_a_path_or_an_option_is_refused() {
    let front = front();
    for name in ["..", ".hidden", "a/b", "-rf", "", "1 2", "{side}"] {
        let mut with = front.with(NEXT);
        with["release"] = json!(name);
        assert!(permanent(front.switch().run(&trial().context(), &with).await).0.contains("release"), "{name}");
        let mut with = away(&front);
        with["away_from"] = json!(name);
        assert!(permanent(Rollback.run(&trial().context(), &with).await).0.contains("away_from"), "{name}");
    }
}
