//! Events for outsiders where each has a key: the coordinator may put them in, and take nothing away.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    events::{has, wait},
    system::{SOON, System},
};

use super::keys::{Connection, Keys, NEWEST, USUAL};

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
";

/// On a server with JetStream, and with a reader whom `muster nats config` does not know.
async fn events_go_through(program: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let keys = Keys::write(dir.path(), &["--agent", "bench-1"])?;
    let config = fs::read_to_string(keys.config()?)?;
    let reader = "users = [\n    {user: reader, password: reads}\n";
    ensure!(config.contains("users = ["), "{config}");
    let file = dir.path().join("with-reader.conf");
    fs::write(&file, config.replacen("users = [", reader, 1))?;
    let file = file.to_str().context("a path")?;
    let nats = NatsServer::start_program(Path::new(program), &["-c", file, "-js"])?;
    let url = nats.url();
    let mut system = System::start_on(dir, nats, &url, &["--nats-nkey", &keys.seed("coordinator")])?;
    system.start_agent("bench-1", "bench", &["--nats-nkey", &keys.seed("bench-1")])?;
    let run = system.start_run(&system.submit(NOTHING)?)?;
    system.wait_run(&run, &["SUCCEEDED"], SOON)?;

    let reader = async_nats::ConnectOptions::with_user_and_password("reader".to_owned(), "reads".to_owned());
    let context = async_nats::jetstream::new(reader.connect(&url).await?);
    wait(&context, "the run's end", |events| has(events, "run_ended", &run)).await?;
    let said = system.coordinator.as_ref().context("it runs")?.output();
    ensure!(!said.contains("Permissions Violation"), "{said}");

    for user in ["coordinator", "bench-1"] {
        let mut connection = Connection::open(&url, user, Some(&keys.seed(user))).await?;
        let forged = "muster.v1.default.event.run_ended";
        let subjects = ["$JS.API.STREAM.DELETE.MUSTER_EVENTS", "$JS.API.STREAM.PURGE.MUSTER_EVENTS", forged];
        for subject in subjects.iter().filter(|subject| user != "coordinator" || **subject != forged) {
            connection.client.publish((*subject).to_owned(), "".into()).await?;
            connection.client.flush().await?;
            let objection = connection.objection().await.with_context(|| format!("{user}: {subject}"))?;
            ensure!(objection.contains("Permissions Violation for Publish"), "{user}: {subject}: {objection}");
        }
    }
    wait(&context, "still there", |events| has(events, "run_ended", &run)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_through_with_a_key_that_can_delete_nothing() -> Result<()> {
    events_go_through(USUAL).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_through_with_a_key_that_can_delete_nothing_on_the_newest_server() -> Result<()> {
    events_go_through(NEWEST).await
}
