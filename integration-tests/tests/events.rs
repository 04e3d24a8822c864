//! What outsiders read of a run in the stream `MUSTER_EVENTS`, on a real nats-server: while everything works, and after the
//! coordinator, the server or the stream has gone.

use anyhow::{Context as _, Result, ensure};
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    events::{STREAM, all, connect, has, ids_of, wait},
    process::{Process, tail, wait_for},
    system::{SOON, System},
};
use serde_json::Value;

const NOTHING: &str = "
apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: nothing, owner: ops}
spec:
  phases:
    - id: main
      milestone: Nothing was done
      steps:
        - {id: first, agent: {role: bench}, action: noop.run}
      gate:
        successCondition: [\"true\"]
";

/// What is told of it, in order.
const TOLD: [&str; 6] =
    ["run_started", "phase_started", "gate_judged", "phase_ended", "milestone_reached", "run_ended"];

fn with_jetstream() -> Result<System> {
    start(&["-js"], &[])
}

fn start(nats: &[&str], serve: &[&str]) -> Result<System> {
    let nats = NatsServer::start_with(nats)?;
    let url = nats.url();
    let mut system = System::start_on(tempfile::tempdir()?, nats, &url, serve)?;
    system.start_agent("bench-1", "bench", &[])?;
    Ok(system)
}

fn run(system: &System) -> Result<String> {
    let id = system.start_run(&system.submit(NOTHING)?)?;
    system.wait_run(&id, &["SUCCEEDED"], SOON)?;
    Ok(id)
}

/// The ids that the journal says there have to be.
fn wanted(system: &System, run: &str) -> Result<Vec<String>> {
    let told = |event: &Value| event["type"].as_str().is_some_and(|kind| TOLD.contains(&kind));
    let events = system.events(run)?;
    let numbers = events.iter().filter(|event| told(event)).map(|event| event["sequence"].to_string());
    let ids: Vec<String> = numbers.map(|seq| format!("run/{run}/{}", seq.trim_matches('"'))).collect();
    ensure!(ids.len() == TOLD.len(), "the journal has {ids:?}");
    Ok(ids)
}

fn said(coordinator: Option<&Process>) -> Result<String> {
    Ok(coordinator.context("a coordinator runs")?.output())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_events_of_a_run_arrive_in_order() -> Result<()> {
    let system = with_jetstream()?;
    let context = connect(&system.nats.url()).await?;
    let run = run(&system)?;
    let events = wait(&context, "the run's end", |events| has(events, "run_ended", &run)).await?;
    ensure!(ids_of(&events, &format!("run/{run}")) == wanted(&system, &run)?, "{events:#?}");
    let of_run: Vec<&Value> = events.iter().filter(|event| event["data"]["run"] == run.as_str()).collect();
    let kinds: Vec<&str> =
        of_run.iter().filter_map(|event| event["type"].as_str()?.strip_prefix("dev.muster.v1.")).collect();
    ensure!(kinds == TOLD, "{kinds:?}");
    ensure!(of_run[2]["data"]["verdict"] == "passed" && of_run[5]["data"]["outcome"] == "succeeded", "{of_run:#?}");
    ensure!(of_run[2]["subject"] == format!("namespaces/default/runs/{run}/phases/main"), "{of_run:#?}");
    ensure!(
        events[0]["type"] == "dev.muster.v1.agent_registered" && events[0]["data"]["agent"] == "bench-1",
        "{events:#?}"
    );
    let config = context.get_stream(STREAM).await?.cached_info().config.clone();
    ensure!(config.max_age.as_secs() == 720 * 3600 && config.max_bytes > 0, "{config:?}");
    Ok(())
}

/// At whichever moment it ends: each event is there at least once, and each for the first time in the order of its run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_killed_owes_no_event() -> Result<()> {
    let mut system = with_jetstream()?;
    let context = connect(&system.nats.url()).await?;
    let playbook = system.submit(NOTHING)?;
    let mut runs = Vec::new();
    for _ in 0..4 {
        for _ in 0..5 {
            runs.push(system.start_run(&playbook)?);
        }
        system.kill_coordinator()?;
        system.start_coordinator()?;
    }
    for run in &runs {
        system.wait_run(run, &["SUCCEEDED"], SOON)?;
    }
    let events = wait(&context, "all ends", |events| runs.iter().all(|run| has(events, "run_ended", run))).await?;
    for run in &runs {
        let mut ids = Vec::new();
        for id in ids_of(&events, &format!("run/{run}")) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ensure!(ids == wanted(&system, run)?, "{run}: {ids:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_deleted_is_made_and_filled_again() -> Result<()> {
    let system = with_jetstream()?;
    let context = connect(&system.nats.url()).await?;
    let first = run(&system)?;
    let before = wait(&context, "the run's end", |events| has(events, "run_ended", &first)).await?;
    context.delete_stream(STREAM).await?;
    let second = run(&system)?;
    let after =
        wait(&context, "both ends", |events| has(events, "run_ended", &first) && has(events, "run_ended", &second))
            .await?;
    for event in before {
        ensure!(after.contains(&event), "it is told again in the same words: {event}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_gets_what_it_missed() -> Result<()> {
    let mut system = with_jetstream()?;
    let first = run(&system)?;
    let context = connect(&system.nats.url()).await?;
    wait(&context, "the run's end", |events| has(events, "run_ended", &first)).await?;
    system.nats.kill()?;
    let waiting = system.start_run(&system.submit(NOTHING)?)?;
    wait_for("the coordinator says that events wait", SOON, || {
        Ok(said(system.coordinator.as_ref())?.contains("events for outsiders wait in the journal").then_some(()))
    })?;
    system.nats.start_again()?;
    system.wait_run(&waiting, &["SUCCEEDED"], SOON)?;
    let context = connect(&system.nats.url()).await?;
    let events = wait(&context, "its end", |events| has(events, "run_ended", &waiting)).await?;
    ensure!(ids_of(&events, &format!("run/{waiting}")) == wanted(&system, &waiting)?, "{events:#?}");
    ensure!(has(&events, "run_ended", &first), "what was there still is");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_jetstream_or_when_told_so_there_are_no_events_and_all_else_works() -> Result<()> {
    let system = start(&[], &[])?;
    run(&system)?;
    let said_without = said(system.coordinator.as_ref())?;
    ensure!(said_without.matches("no events are published for outsiders").count() == 1, "{}", tail(&said_without));
    ensure!(!said_without.contains("WARN"), "{}", tail(&said_without));
    let system = start(&["-js"], &["--no-events"])?;
    run(&system)?;
    let context = connect(&system.nats.url()).await?;
    ensure!(all(&context).await? == Vec::<Value>::new(), "nothing is published");
    ensure!(context.get_stream(STREAM).await.is_err(), "and no stream is made");
    Ok(())
}
