//! Outsiders with keys of their own: one who may signal runs, and one who may read events. Each can do that and nothing else.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream;
use futures_util::StreamExt as _;
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    process::{checkout, tail, wait_for},
    system::{SOON, System},
};
use serde_json::{Value, json};

use super::keys::{Connection, Keys, NEWEST, USUAL};

const WAITS: &str = "
apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: waits, owner: ops}
spec:
  phases:
    - id: main
      milestone: It was approved
      steps:
        - {id: approval, wait: {signal: approved}, timeout: 1h}
        - {id: after, needs: [approval], agent: {role: bench}, action: noop.run}
";

const USERS: [&str; 10] =
    ["--agent", "bench-1", "--signaller", "ci", "--signaller", "cd", "--reader", "tickets", "--reader", "chat"];

/// A coordinator and an agent on a server that checks, with JetStream.
struct House {
    system: System,
    keys: Keys,
    url: String,
}

impl House {
    fn open(program: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let keys = Keys::write(dir.path(), &USERS)?;
        let nats = NatsServer::start_program(Path::new(program), &["-c", &keys.config()?, "-js"])?;
        let url = nats.url();
        let mut system = System::start_on(dir, nats, &url, &["--nats-nkey", &keys.seed("coordinator")])?;
        system.start_agent("bench-1", "bench", &["--nats-nkey", &keys.seed("bench-1")])?;
        Ok(Self { system, keys, url })
    }

    async fn connect(&self, user: &str) -> Result<Connection> {
        Connection::open(&self.url, user, Some(&self.keys.seed(user))).await
    }

    /// A run that waits for the signal `approved`.
    fn start(&self) -> Result<String> {
        let run = self.system.start_run(&self.system.submit(WAITS)?)?;
        wait_for("it waits", SOON, || Ok(self.waits(&run)?.then_some(())))?;
        Ok(run)
    }

    fn waits(&self, run: &str) -> Result<bool> {
        Ok(self.system.json(&["run", "get", run])?["steps"][0]["state"] == "STATE_WAITING")
    }

    /// Who was it, in the words of the journal.
    fn signalled_by(&self, run: &str) -> Result<Vec<String>> {
        let events = self.system.cli(&["run", "events", run])?;
        let said = String::from_utf8(events.stdout)?;
        Ok(said
            .lines()
            .filter(|line| line.contains("approved") && line.contains("signal/"))
            .map(str::to_owned)
            .collect())
    }
}

async fn signal(connection: &Connection, subject: &str, message: &Value) -> Result<Value> {
    let answer = tokio::time::timeout(SOON, connection.client.request(subject.to_owned(), message.to_string().into()));
    Ok(serde_json::from_slice(&answer.await.context("no answer")??.payload)?)
}

/// The server refuses each of these publications and subscriptions.
async fn is_refused(connection: &mut Connection, publications: &[String], subscriptions: &[&str]) -> Result<()> {
    for subject in publications {
        connection.client.publish(subject.clone(), "{}".into()).await?;
        connection.client.flush().await?;
        let objection = connection.objection().await.with_context(|| subject.clone())?;
        ensure!(objection.contains(&format!("Publish to \"{subject}\"")), "{subject}: {objection}");
    }
    for pattern in subscriptions {
        let _subscriber = connection.client.subscribe((*pattern).to_owned()).await?;
        connection.client.flush().await?;
        let objection = connection.objection().await.with_context(|| (*pattern).to_owned())?;
        ensure!(objection.contains(&format!("Subscription to \"{pattern}\"")), "{pattern}: {objection}");
    }
    Ok(())
}

async fn signals_and_nothing_else(program: &str) -> Result<()> {
    let house = House::open(program)?;
    let mut ci = house.connect("ci").await?;
    let run = house.start()?;
    let space = "muster.v1.default";
    let mine = format!("{space}.signal.{run}.approved.ci");

    let never = [
        format!("{space}.signal.{run}.approved.cd"),
        format!("muster.v1.blue.signal.{run}.approved.ci"),
        format!("{space}.register.ci"),
        format!("{space}.report.7.ci"),
        format!("{space}.report.7.bench-1"),
        format!("{space}.beat.ci"),
        format!("{space}.status.bench-1"),
        format!("{space}.log.bench-1"),
        format!("{space}.task.bench-1.i"),
        format!("{space}.event.run_ended"),
        "_INBOX_bench-1.a".to_owned(),
        "_MUSTER_INBOX.a".to_owned(),
        "$JS.API.STREAM.INFO.MUSTER_EVENTS".to_owned(),
    ];
    let deaf =
        ["muster.v1.default.task.bench-1.*", "muster.v1.*.signal.*.*.*", "_INBOX_cd.>", "muster.>", "$SRV.>", ">"];
    is_refused(&mut ci, &never, &deaf).await?;

    let refused = |answer: &Value, reason: &str| answer["answer"] == "refused" && answer["reason"] == reason;
    let unknown = format!("{space}.signal.{run}.other.ci");
    let answer = signal(&ci, &unknown, &json!({"protocol": 1})).await?;
    ensure!(refused(&answer, "SIGNAL_NOT_FOUND"), "{answer}");
    let nowhere = format!("{space}.signal.0199c1d2-0000-7000-8000-000000000001.approved.ci");
    let answer = signal(&ci, &nowhere, &json!({"protocol": 1})).await?;
    ensure!(refused(&answer, "RUN_NOT_FOUND"), "{answer}");
    let answer = signal(&ci, &mine, &json!({"payload": {}})).await?;
    ensure!(refused(&answer, "MESSAGE_INVALID"), "{answer}");
    // Published, with an answer wanted elsewhere, or with none: neither is taken.
    let said = json!({"protocol": 1}).to_string();
    ci.client.publish(mine.clone(), said.clone().into()).await?;
    ci.client.publish_with_reply(mine.clone(), "_INBOX_bench-1.forged", said.into()).await?;
    // Behind them on the same subscription of the coordinator.
    let answer = signal(&ci, &mine, &json!({"payload": {}})).await?;
    ensure!(refused(&answer, "MESSAGE_INVALID"), "{answer}");
    ensure!(house.waits(&run)?, "nothing has signalled it yet");

    let answer = signal(&ci, &mine, &json!({"protocol": 1, "payload": {"ticket": "OPS-7"}})).await?;
    ensure!(answer == json!({"answer": "recorded"}), "{answer}");
    let again = signal(&ci, &mine, &json!({"protocol": 1, "payload": {"ticket": "OPS-8"}})).await?;
    ensure!(again["answer"] == "recorded" || refused(&again, "RUN_ENDED"), "{again}");
    house.system.wait_run(&run, &["SUCCEEDED"], SOON)?;
    ensure!(house.signalled_by(&run)?.len() == 1, "{:?}", house.signalled_by(&run)?);
    let output = house.system.json(&["run", "get", &run])?["steps"][0]["output"].to_string();
    ensure!(output.contains("OPS-7"), "what came first counts: {output}");
    let said = house.system.coordinator.as_ref().context("it runs")?.output();
    ensure!(!said.contains("Permissions Violation"), "{}", tail(&said));
    Ok(())
}

/// The Python of `docs/nats.md` as it stands there, by a stranger's NATS library, where the seeds are.
fn signals_as_the_page_says(program: &str) -> Result<()> {
    let house = House::open(program)?;
    let run = house.start()?;
    let page = fs::read_to_string(checkout().join("docs/nats.md"))?;
    let [shown] = page.split("```python\n").skip(1).collect::<Vec<_>>()[..] else { bail!("one example is shown") };
    let example = shown.split("```").next().context("it ends")?;
    let lines = example.trim_end().replace('\n', "\n    ");
    let script = format!(
        "import asyncio, nats, sys\nurl, run = sys.argv[1:]\nasync def main():\n    {lines}\n    print(answer.data.decode())\n    \
         await connection.close()\nasyncio.run(main())\n"
    );
    let python = checkout().join("target/tools/bin/python");
    let mut example = Command::new(&python);
    example.args(["-c", &script, &house.url, &run]).current_dir(house.keys.seeds());
    let said = example.output().with_context(|| format!("{}: run `make tools`", python.display()))?;
    let answer: Value = serde_json::from_slice(&said.stdout).with_context(|| format!("{said:?}"))?;
    ensure!(answer == json!({"answer": "recorded"}), "{answer}");
    house.system.wait_run(&run, &["SUCCEEDED"], SOON)?;
    ensure!(house.signalled_by(&run)?[0].contains("signal/ci"), "{:?}", house.signalled_by(&run)?);
    Ok(())
}

async fn reads_and_nothing_else(program: &str) -> Result<()> {
    let house = House::open(program)?;
    let run = house.start()?;
    let mut tickets = house.connect("tickets").await?;
    let stream = jetstream::new(tickets.client.clone()).get_stream_no_info("MUSTER_EVENTS").await?;
    let mut config = jetstream::consumer::pull::Config {
        durable_name: Some("tickets".to_owned()),
        filter_subject: "muster.v1.default.event.>".to_owned(),
        ..Default::default()
    };
    let consumer = stream.create_consumer(config.clone()).await?;
    let mut messages = consumer.messages().await?;
    let heard = async {
        while let Some(message) = messages.next().await {
            let message = message?;
            let event: Value = serde_json::from_slice(&message.payload)?;
            message.double_ack().await.map_err(|e| anyhow::anyhow!(e))?;
            if event["type"] == "dev.muster.v1.run_started" && event["data"]["run"] == run.as_str() {
                return Ok(());
            }
        }
        anyhow::bail!("the consumer has ended")
    };
    tokio::time::timeout(SOON, heard).await.context("no event of the run")??;
    drop(messages);

    // In its name the server would say to a run what it may not say itself: what an event says is no signal.
    let forged = format!("muster.v1.default.signal.{run}.approved.ci");
    let next = "$JS.API.CONSUMER.MSG.NEXT.MUSTER_EVENTS.tickets";
    for asked in [next, "$JS.API.STREAM.INFO.MUSTER_EVENTS"] {
        tickets.client.publish_with_reply(asked, forged.clone(), "".into()).await?;
    }
    // Behind it on the same connection, and then behind that on the coordinator's subscription.
    ensure!(stream.get_info().await.is_ok(), "the stream is there");
    let other = format!("muster.v1.default.signal.{run}.other.ci");
    let answer = signal(&house.connect("ci").await?, &other, &json!({"protocol": 1})).await?;
    ensure!(answer["reason"] == "SIGNAL_NOT_FOUND" && house.waits(&run)?, "the run waits on: {answer}");

    config.durable_name = Some("chat".to_owned());
    let never = [
        forged,
        "muster.v1.default.event.run_ended".to_owned(),
        "muster.v1.default.beat.tickets".to_owned(),
        "muster.v1.default.task.bench-1.i".to_owned(),
        "_INBOX_bench-1.a".to_owned(),
        "$JS.API.STREAM.DELETE.MUSTER_EVENTS".to_owned(),
        "$JS.API.STREAM.PURGE.MUSTER_EVENTS".to_owned(),
        "$JS.API.STREAM.UPDATE.MUSTER_EVENTS".to_owned(),
        "$JS.API.STREAM.MSG.DELETE.MUSTER_EVENTS".to_owned(),
        "$JS.API.STREAM.CREATE.OTHER".to_owned(),
        "$JS.API.CONSUMER.CREATE.MUSTER_EVENTS.chat".to_owned(),
        "$JS.API.CONSUMER.DELETE.MUSTER_EVENTS.chat".to_owned(),
        "$JS.API.CONSUMER.MSG.NEXT.MUSTER_EVENTS.chat".to_owned(),
        "$JS.ACK.MUSTER_EVENTS.chat.1.1.1.1.0".to_owned(),
    ];
    is_refused(&mut tickets, &never, &["muster.v1.default.event.>", "_INBOX_chat.>", "muster.>", "$SRV.>", ">"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_signal_does_that_and_nothing_else() -> Result<()> {
    signals_and_nothing_else(USUAL).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_signal_does_that_and_nothing_else_on_the_newest_server() -> Result<()> {
    signals_and_nothing_else(NEWEST).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_read_events_does_that_and_nothing_else() -> Result<()> {
    reads_and_nothing_else(USUAL).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_read_events_does_that_and_nothing_else_on_the_newest_server() -> Result<()> {
    reads_and_nothing_else(NEWEST).await
}

#[test]
fn the_example_of_the_page_signals_a_run() -> Result<()> {
    signals_as_the_page_says(USUAL).context(USUAL)
}
