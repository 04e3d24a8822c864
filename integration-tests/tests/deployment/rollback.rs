//! Going back on purpose.

use std::{fs, time::Instant};

use muster_agent::Action;
use muster_deployment::switch::Rollback;
use muster_integration_tests::lab::{FIRST, NEXT};
use serde_json::{Value, json};

use crate::{
    breach::watching,
    diff, needs_person, permanent, retry, satisfied,
    side::{Front, fault, front, get, says, signal},
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
async fn an_nginx_that_hangs_or_is_down_is_given_up_and_nothing_is_left_half() {
    let mut front = front();
    front.switched().await;
    let (switched, mut with) = (front.upstream(), away(&front));
    with["service"]["nginx"]["settle_ms"] = json!(1500);
    let prepared = Rollback.prepare(&trial().context(), &with).await.unwrap();
    signal(&front.sides.nginx.pid_file(), "-STOP");
    let (start, hung) = (Instant::now(), Rollback.run(&trial().context(), &with).await);
    signal(&front.sides.nginx.pid_file(), "-CONT");
    assert!(retry(hung).contains("former configuration") && start.elapsed().as_secs() < 30);
    assert_eq!(
        (front.upstream(), front.unfinished()),
        (switched.clone(), false),
        "whenever it wakes it reads its side"
    );
    assert!(diff(&Rollback, &with).await.contains(&format!("+ server {}", front.sides.blue())));
    Rollback.run(&trial().context(), &with).await.unwrap();
    assert_eq!(front.release(), says(FIRST));

    // Taken back while nginx hangs: it is not said to be done before it is.
    signal(&front.sides.nginx.pid_file(), "-STOP");
    let (start, hung) = (Instant::now(), Rollback.undo(&trial().context(), &with, &prepared).await);
    signal(&front.sides.nginx.pid_file(), "-CONT");
    assert!(retry(hung).contains("former configuration") && start.elapsed().as_secs() < 30);
    Rollback.undo(&trial().context(), &with, &prepared).await.unwrap();
    assert_eq!((front.upstream(), front.release()), (switched.clone(), says(NEXT)));

    front.sides.nginx.stop();
    assert!(diff(&Rollback, &with).await.contains("+ server"), "a look does not need nginx");
    assert!(retry(Rollback.run(&trial().context(), &with).await).contains("not running"));
    assert_eq!((front.upstream(), front.unfinished()), (switched, false), "nothing was begun");
    Rollback.undo(&trial().context(), &with, &prepared).await.unwrap();
    front.sides.nginx.restart().unwrap();
    assert_eq!(front.release(), says(NEXT));
    let done = Rollback.run(&trial().context(), &with).await.unwrap();
    assert_eq!((&done.output["side"], front.release()), (&json!("blue"), says(FIRST)));
}

#[tokio::test]
async fn half_a_rollback_is_finished_or_taken_back() {
    let front = front();
    let found = front.upstream();
    front.switched().await;
    let (switched, mut with) = (front.upstream(), away(&front));
    // Named, and not reloaded: as after a crash in between.
    fs::write(front.sides.upstream_file(), &found).unwrap();
    assert_eq!(front.release(), says(NEXT), "nginx works with what it has read");
    assert!(diff(&Rollback, &with).await.contains("nginx is reloaded"));
    Rollback.run(&trial().context(), &with).await.unwrap();
    assert_eq!((front.release(), front.unfinished()), (says(FIRST), false));

    // Turned, and not watched to the end.
    front.switch().run(&trial().context(), &front.with(NEXT)).await.unwrap();
    let prepared = Rollback.prepare(&trial().context(), &with).await.unwrap();
    with["watch"] = json!({"for_ms": 60000, "every_ms": 20});
    let crashed = trial();
    let ctx = crashed.context();
    let crash = async {
        watching(&crashed).await;
        crashed.cancel();
    };
    assert!(retry(tokio::join!(Rollback.run(&ctx, &with), crash).0).contains("stopped while watching"));
    assert_eq!((front.release(), front.unfinished()), (says(FIRST), true));
    assert!(diff(&Rollback, &with).await.contains("not seen to its end"), "it is not taken for a success");
    assert_eq!(Rollback.prepare(&trial().context(), &with).await.unwrap(), prepared, "it knows where it came from");
    for _ in 0..2 {
        Rollback.undo(&trial().context(), &with, &prepared).await.unwrap();
    }
    assert_eq!((front.upstream(), front.release(), front.unfinished()), (switched, says(NEXT), false));
    // Half again, and then to its end.
    let crashed = trial();
    let ctx = crashed.context();
    let crash = async {
        watching(&crashed).await;
        crashed.cancel();
    };
    retry(tokio::join!(Rollback.run(&ctx, &with), crash).0);
    let short = away(&front);
    let done = Rollback.run(&trial().context(), &short).await.unwrap();
    assert!(done.output["watched"]["requests"].as_u64().unwrap() > 0, "{}", done.output);
    assert_eq!((satisfied(&Rollback, &short).await["side"].clone(), front.unfinished()), (json!("blue"), false));
}

#[tokio::test]
async fn what_another_hand_changed_is_not_rolled_back_over() {
    let front = front();
    front.switched().await;
    let (switched, with) = (front.upstream(), away(&front));
    let prepared = Rollback.prepare(&trial().context(), &with).await.unwrap();
    for theirs in [
        switched.replace(front.sides.green(), "127.0.0.1:9"),
        switched.replace("server", "server 127.0.0.1:9; server"),
        "# empty\n".to_owned(),
    ] {
        fs::write(front.sides.upstream_file(), &theirs).unwrap();
        for result in [
            Rollback.check(&trial().context(), &with).await.map(drop),
            Rollback.run(&trial().context(), &with).await.map(drop),
            Rollback.undo(&trial().context(), &with, &prepared).await.map(drop),
        ] {
            assert!(needs_person(result).contains("somebody else changed it"));
        }
        assert_eq!((front.upstream(), front.release()), (theirs, says(NEXT)), "it is not touched");
    }
    // Between prepare and run, by hand and well: only the reload is left to do, and the comment stays.
    let theirs = format!("# by hand\n{}", switched.replace(front.sides.green(), front.sides.blue()));
    fs::write(front.sides.upstream_file(), &theirs).unwrap();
    Rollback.run(&trial().context(), &with).await.unwrap();
    assert_eq!((front.upstream(), front.release()), (theirs.clone(), says(FIRST)));
    Rollback.undo(&trial().context(), &with, &prepared).await.unwrap();
    let back = theirs.replace(front.sides.blue(), front.sides.green());
    assert_eq!((front.upstream(), front.release()), (back, says(NEXT)));
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
