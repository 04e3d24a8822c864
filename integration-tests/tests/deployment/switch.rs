//! Switching under load, and everything that can be wrong before the first request goes to the new side.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, time::Instant};

use muster_agent::Action;
use muster_deployment::{prepare::Prepare, switch::Switch};
use muster_integration_tests::lab::{FIRST, NEXT};
use serde_json::json;

use crate::{
    allowing, diff, needs_person, permanent, retry, satisfied, shell,
    side::{front, get, says, signal},
    trial,
};

#[tokio::test]
async fn no_request_fails_while_it_switches_and_while_it_goes_back() {
    let front = front();
    let (found, with) = (front.upstream(), front.with(NEXT));
    let wanted = diff(&front.switch(), &with).await;
    for part in [format!("- server {}", front.sides.blue()), format!("+ server {}", front.sides.green())] {
        assert!(wanted.contains(&part), "{wanted}");
    }
    assert!(wanted.contains("green is started"), "{wanted}");
    assert_eq!((front.release(), get(front.sides.green())), (says(FIRST), "down".into()), "a check changes nothing");

    let load = front.load();
    let (prepared, done) = front.switched().await;
    assert_eq!(prepared, json!({"from": "blue", "starts": true}));
    assert_eq!((&done.output["side"], &done.output["standby"]), (&json!("green"), &json!("blue")));
    assert!(done.output["watched"]["requests"].as_u64().unwrap() > 5, "{}", done.output);
    assert_eq!(done.output["watched"]["failed"], 0);
    let units: Vec<_> = done.observations.iter().map(|o| (o.name.as_str(), o.unit.as_str())).collect();
    assert_eq!(units, [("reload", "ms"), ("error_rate", "percent"), ("latency_p95", "ms")]);
    assert_eq!(front.upstream(), found.replace(front.sides.blue(), front.sides.green()), "nothing else is touched");
    assert_eq!((front.release(), get(front.sides.blue())), (says(NEXT), says(FIRST)), "blue stands by");
    assert_eq!(satisfied(&front.switch(), &with).await["side"], "green");
    assert!(!front.unfinished());

    for _ in 0..2 {
        front.switch().undo(&trial().context(), &with, &prepared).await.unwrap();
    }
    assert_eq!((front.release(), get(front.sides.green())), (says(FIRST), "down".into()), "what it started is stopped");
    assert_eq!(front.upstream(), found);
    let seen = load.end().await;
    assert_eq!(
        seen.keys().map(String::as_str).collect::<Vec<_>>(),
        [says(FIRST), says(NEXT)],
        "no request failed: {seen:?}"
    );
    assert!(seen.values().all(|count| *count > 10), "{seen:?}");
}

#[tokio::test]
async fn releases_alternate_and_each_comes_from_its_folder() {
    let front = front();
    front.switched().await;
    let third = front.dir.path().join("third");
    fs::create_dir(&third).unwrap();
    fs::copy(front.sides.releases().join(NEXT).join("sample-service"), third.join("sample-service")).unwrap();
    let list = "find . -type f -printf '%P\\n' | xargs sha256sum | sha256sum | cut -d' ' -f1";
    let release = json!({
        "releases": front.sides.releases(), "version": "1.2.0", "folder": third, "sha256": shell(&third, list),
    });
    Prepare.run(&trial().context(), &release).await.unwrap();
    let with = front.with("1.2.0");
    let done = front.switch().run(&trial().context(), &with).await.unwrap();
    assert_eq!((&done.output["side"], front.release()), (&json!("blue"), says("1.2.0")));
    // The side that takes the requests is never started again.
    let mut over = front.with("1.3.0");
    over["to"] = json!("blue");
    assert!(permanent(front.switch().run(&trial().context(), &over).await).0.contains("takes the requests already"));
    assert_eq!(front.release(), says("1.2.0"));
}

#[tokio::test]
async fn a_side_that_does_not_come_up_changes_nothing_for_the_requests() {
    let front = front();
    let found = front.upstream();
    let script = |name: &str, body: &str| {
        let path = front.dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let binary = front.sides.releases().join(NEXT).join("sample-service");
    // A daemon that only leaves its parent is still below the attempt, and ends with it.
    let daemon =
        format!("setsid {} --release {NEXT} --listen {} >/dev/null 2>&1 &", binary.display(), front.sides.green());
    let programs =
        [script("idle", "exit 0"), script("daemon", &daemon), script("broken", "echo no such side >&2; exit 4")];
    let switch = Switch::new(allowing(&[&programs[0], &programs[1], &programs[2]]));
    let mut with = front.with(NEXT);
    with["start_within_ms"] = json!(1500);
    for name in ["idle", "daemon"] {
        with["start"]["command"] = json!(name);
        let prepared = switch.prepare(&trial().context(), &with).await.unwrap();
        let (start, message) = (Instant::now(), retry(switch.run(&trial().context(), &with).await));
        assert!(message.contains("service manager") && message.contains("green"), "{message}");
        assert!(start.elapsed().as_secs() < 30);
        with.as_object_mut().unwrap().remove("stop");
        switch.undo(&trial().context(), &with, &prepared).await.unwrap();
    }
    with["start"]["command"] = json!("broken");
    assert!(permanent(switch.run(&trial().context(), &with).await).0.contains("exit code 4: no such side"));
    with["start"]["command"] = json!("unlisted");
    assert!(permanent(switch.run(&trial().context(), &with).await).0.contains("allow.toml"));
    with.as_object_mut().unwrap().remove("start");
    assert!(retry(switch.run(&trial().context(), &with).await).contains("start it first"));
    // One that takes connections and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    with["service"]["sides"]["green"] = json!(mute.local_addr().unwrap().to_string());
    with["service"]["timeout_ms"] = json!(300);
    assert!(retry(switch.run(&trial().context(), &with).await).contains("no whole answer within 300 ms"));
    assert_eq!((front.release(), front.upstream()), (says(FIRST), found));
}

#[tokio::test]
async fn what_another_hand_changed_is_a_question_or_is_taken_as_it_is() {
    let front = front();
    let (found, with) = (front.upstream(), front.with(NEXT));
    for theirs in [
        found.replace(front.sides.blue(), "127.0.0.1:9"),
        found.replace("server", "server 127.0.0.1:9; server"),
        "# empty\n".to_owned(),
    ] {
        fs::write(front.sides.upstream_file(), &theirs).unwrap();
        for result in [
            front.switch().run(&trial().context(), &with).await.map(drop),
            front.switch().check(&trial().context(), &with).await.map(drop),
            front.switch().undo(&trial().context(), &with, &json!({"from": "blue", "starts": false})).await.map(drop),
        ] {
            assert!(needs_person(result).contains("somebody else changed it"));
        }
        assert_eq!(front.upstream(), theirs, "it is not touched");
    }
    // A comment by hand is kept; a switch by hand between check and run is found and only has to be put to work.
    let theirs = format!("# by hand\n{}", found.replace(front.sides.blue(), front.sides.green()));
    fs::write(front.sides.upstream_file(), &theirs).unwrap();
    shell(front.dir.path(), &format!("./start-side green {} {NEXT}", front.sides.green()));
    front.switch().run(&trial().context(), &with).await.unwrap();
    assert_eq!((front.upstream(), front.release()), (theirs, says(NEXT)));
}

#[tokio::test]
async fn a_configuration_that_nginx_refuses_is_put_back() {
    let front = front();
    let found = front.upstream();
    let broken = front.sides.upstream_file().with_file_name("broken.conf");
    fs::write(&broken, "no_such_directive on;\n").unwrap();
    let load = front.load();
    let (message, _) = permanent(front.switch().run(&trial().context(), &front.with(NEXT)).await);
    assert!(message.contains("no_such_directive"), "{message}");
    assert_eq!((front.upstream(), front.release(), front.unfinished()), (found, says(FIRST), false));
    let seen = load.end().await;
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&says(FIRST)], "{seen:?}");

    // On the way back, too: the file names what nginx works with.
    fs::remove_file(&broken).unwrap();
    let (prepared, _) = front.switched().await;
    let switched = front.upstream();
    fs::write(&broken, "no_such_directive on;\n").unwrap();
    let undone = front.switch().undo(&trial().context(), &front.with(NEXT), &prepared).await;
    assert!(permanent(undone).0.contains("no_such_directive"));
    assert_eq!((front.upstream(), front.release()), (switched, says(NEXT)));
    fs::remove_file(&broken).unwrap();
    front.switch().undo(&trial().context(), &front.with(NEXT), &prepared).await.unwrap();
    assert_eq!(front.release(), says(FIRST));
}

#[tokio::test]
async fn an_nginx_that_is_down_or_hangs_ends_in_time_and_keeps_its_side() {
    let mut front = front();
    let (found, mut with) = (front.upstream(), front.with(NEXT));
    with["service"]["nginx"]["settle_ms"] = json!(1500);
    front.switch().run(&trial().context(), &with).await.unwrap();
    let prepared = json!({"from": "blue", "starts": true});
    front.switch().undo(&trial().context(), &with, &prepared).await.unwrap();

    signal(&front.sides.nginx.pid_file(), "-STOP");
    let (start, result) = (Instant::now(), front.switch().run(&trial().context(), &with).await);
    signal(&front.sides.nginx.pid_file(), "-CONT");
    assert!(retry(result).contains("former configuration") && start.elapsed().as_secs() < 30);
    assert_eq!((front.upstream(), front.unfinished()), (found.clone(), false), "whenever it wakes it reads its side");
    front.switch().undo(&trial().context(), &with, &prepared).await.unwrap();
    assert_eq!(front.release(), says(FIRST));

    front.sides.nginx.stop();
    assert!(diff(&front.switch(), &with).await.contains("green is started"));
    assert!(retry(front.switch().run(&trial().context(), &with).await).contains("not running"));
    assert_eq!((front.upstream(), get(front.sides.green())), (found, "down".into()), "nothing was begun");
    front.switch().undo(&trial().context(), &with, &prepared).await.unwrap();
    front.sides.nginx.restart().unwrap();
    assert_eq!(front.release(), says(FIRST));
}
