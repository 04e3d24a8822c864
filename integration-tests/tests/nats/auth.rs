//! An agent with a valid key of its own tries whatever would let it act for others. The server refuses each attempt; the same
//! attempts go through where nothing is checked, and for the one they belong to.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use async_nats::{Message, Subscriber};
use futures_util::StreamExt as _;
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    process::{Process, tail},
    system::{SOON, System},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::keys::{Connection, Keys, NEWEST, USUAL, agent_run};

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
        - {id: second, needs: [first], agent: {role: bench}, action: noop.run}
";

const HELD: &str = "
apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: held, owner: ops}
spec:
  phases:
    - id: main
      milestone: It was held and done
      steps:
        - {id: hold, agent: {role: victim}, action: held.run, timeout: 10m, undo: irreversible}
";

const AGENTS: [&str; 6] = ["--agent", "bench-1", "--agent", "victim-1", "--agent", "evil-1"];

/// A coordinator and a real agent on a server that checks, each with its key.
struct House {
    system: System,
    keys: Keys,
    url: String,
}

impl House {
    fn open(program: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let keys = Keys::write(dir.path(), &AGENTS)?;
        let nats = NatsServer::start_program(Path::new(program), &["-c", &keys.config()?])?;
        let url = nats.url();
        let mut system = System::start_on(dir, nats, &url, &["--nats-nkey", &keys.seed("coordinator")])?;
        system.start_agent("bench-1", "bench", &["--nats-nkey", &keys.seed("bench-1")])?;
        Ok(Self { system, keys, url })
    }

    async fn connect(&self, user: &str) -> Result<Connection> {
        Connection::open(&self.url, user, Some(&self.keys.seed(user))).await
    }

    fn works(&self) -> Result<()> {
        let playbook = self.system.submit(NOTHING)?;
        self.system.wait_run(&self.system.start_run(&playbook)?, &["SUCCEEDED"], SOON).map(drop)
    }

    /// Who keeps to the rules meets none of them.
    fn nobody_objected(&self) -> Result<()> {
        let processes = self.system.agents.values().chain(&self.system.coordinator);
        for said in processes.map(Process::output) {
            ensure!(!said.contains("Permissions Violation") && !said.contains("objects"), "{}", tail(&said));
        }
        Ok(())
    }
}

/// An agent by hand: it has taken a task and says nothing about it yet.
struct Victim {
    connection: Connection,
    inbox: Subscriber,
    task: Value,
    run: String,
}

fn registration(instance: &str) -> Value {
    json!({"protocol": 1, "agent": "victim-1", "instance": instance, "role": "victim", "slots": 1, "actions": [
        {"name": "held.run", "version": "1.0.0"}]})
}

impl Victim {
    async fn at_work(house: &House) -> Result<Self> {
        let connection = house.connect("victim-1").await?;
        let client = &connection.client;
        let mut tasks = client.subscribe("muster.v1.default.task.victim-1.i-1").await?;
        let inbox = client.subscribe("_INBOX_victim-1.>").await?;
        let mut victim = Self { connection, inbox, task: Value::Null, run: String::new() };
        let registered = victim.ask("muster.v1.default.register.victim-1", &registration("i-1")).await?;
        ensure!(registered["answer"] == "registered", "{registered}");
        victim.run = house.system.start_run(&house.system.submit(HELD)?)?;
        let task = next(&mut tasks).await.context("no task")?;
        victim.task = serde_json::from_slice(&task.payload)?;
        let reply = task.reply.context("a task is a request")?;
        victim.connection.client.publish(reply, json!({"answer": "accepted"}).to_string().into()).await?;
        Ok(victim)
    }

    /// A request by hand; nothing else may have come into the inbox before its answer.
    async fn ask(&mut self, subject: &str, payload: &Value) -> Result<Value> {
        let reply = format!("_INBOX_victim-1.{}", uuid::Uuid::new_v4());
        let client = &self.connection.client;
        client.publish_with_reply(subject.to_owned(), reply.clone(), payload.to_string().into()).await?;
        let answer = next(&mut self.inbox).await.context("no answer")?;
        ensure!(answer.subject.as_str() == reply, "{} came unasked: {:?}", answer.subject, answer.payload);
        Ok(serde_json::from_slice(&answer.payload)?)
    }

    fn report(&self) -> (String, Value) {
        let task = &self.task;
        let outcome = json!({"kind": "finished", "outcome": {"result": "succeeded", "output": {}}});
        let report = json!({"cluster": task["cluster"], "instance": "i-1", "run": task["run"], "step": task["step"],
            "attempt": task["attempt"], "report": outcome});
        (task["report_subject"].as_str().unwrap_or_default().to_owned(), report)
    }

    fn is_at_work(&self, house: &House) -> Result<bool> {
        Ok(house.system.json(&["run", "get", &self.run])?["steps"][0]["state"] == "STATE_ACTIVE")
    }
}

async fn next(messages: &mut Subscriber) -> Option<Message> {
    tokio::time::timeout(SOON, messages.next()).await.ok().flatten()
}

/// What is not for an agent to say, and what is not for it to hear.
fn attempts(victim: &Victim) -> (Vec<(String, Value)>, Vec<String>) {
    let beat = json!({"cluster": victim.task["cluster"], "instance": "i-1", "holds": []});
    let line = json!({"cluster": victim.task["cluster"], "line": "nothing to see"});
    let space = "muster.v1.default";
    let publications = vec![
        victim.report(),
        ("_INBOX_victim-1.a.1".to_owned(), json!({"answer": "recorded"})),
        ("_MUSTER_INBOX.a.1".to_owned(), json!({"answer": "accepted"})),
        (format!("{space}.register.victim-1"), registration("i-evil")),
        (format!("{space}.beat.victim-1"), beat.clone()),
        (format!("{space}.status.victim-1"), beat),
        (format!("{space}.log.victim-1"), line),
        (format!("{space}.task.victim-1.i-1"), victim.task.clone()),
        (format!("{space}.signal.{}.go.evil-1", victim.run), json!({"protocol": 1})),
        // Its own name, in a namespace where it has no key.
        ("muster.v1.blue.register.evil-1".to_owned(), registration("i-evil")),
    ];
    let subscriptions = [
        "muster.v1.default.task.victim-1.i-1",
        "muster.v1.*.task.*.*",
        "muster.v1.*.report.*.*",
        "_INBOX_victim-1.a.1",
        "_MUSTER_INBOX.a.1",
        "muster.>",
        ">",
    ];
    (publications, subscriptions.map(str::to_owned).to_vec())
}

/// Each attempt, made by a client that the server refuses.
async fn refused(evil: &mut Connection, victim: &Victim) -> Result<()> {
    let (publications, subscriptions) = attempts(victim);
    for (subject, payload) in publications {
        evil.client.publish(subject.clone(), payload.to_string().into()).await?;
        evil.client.flush().await?;
        let objection = evil.objection().await.with_context(|| subject.clone())?;
        ensure!(objection.contains("Permissions Violation for Publish to"), "{subject}: {objection}");
        ensure!(objection.contains(&format!("\"{subject}\"")), "{subject}: {objection}");
    }
    for pattern in subscriptions {
        // Kept: dropping it would take it back.
        let _subscriber = evil.client.subscribe(pattern.clone()).await?;
        evil.client.flush().await?;
        let objection = evil.objection().await.with_context(|| pattern.clone())?;
        ensure!(objection.contains("Permissions Violation for Subscription to"), "{pattern}: {objection}");
        ensure!(objection.contains(&format!("\"{pattern}\"")), "{pattern}: {objection}");
    }
    Ok(())
}

/// The same attempts where nothing is checked: what is said is heard.
async fn taken(program: &str, victim: &Victim) -> Result<()> {
    let open = NatsServer::start_program(Path::new(program), &[])?;
    let (evil, other) =
        (Connection::open(&open.url(), "evil-1", None).await?, Connection::open(&open.url(), "other", None).await?);
    let (publications, subscriptions) = attempts(victim);
    for (subject, payload) in publications {
        let mut heard = other.client.subscribe(subject.clone()).await?;
        other.settle().await?;
        evil.client.publish(subject.clone(), payload.to_string().into()).await?;
        let message = next(&mut heard).await.with_context(|| subject.clone())?;
        ensure!(message.payload == payload.to_string().as_bytes(), "{subject}");
    }
    for pattern in subscriptions {
        let mut heard = evil.client.subscribe(pattern.clone()).await?;
        evil.settle().await?;
        let subject = pattern.replace('*', "x").replace('>', "muster");
        other.client.publish(subject, "x".into()).await?;
        next(&mut heard).await.with_context(|| pattern.clone())?;
    }
    Ok(())
}

/// What is its own goes through, but not to where it does not belong.
async fn own_beat(evil: &Connection, reply: &str) -> Result<()> {
    let beat = json!({"cluster": "", "instance": "i-evil", "holds": []}).to_string();
    evil.client.publish_with_reply("muster.v1.default.beat.evil-1", reply.to_owned(), beat.into()).await?;
    Ok(evil.client.flush().await?)
}

async fn keeps_everybody_to_what_is_theirs(program: &str) -> Result<()> {
    let mut house = House::open(program)?;
    house.works()?;
    let mut victim = Victim::at_work(&house).await?;
    let mut evil = house.connect("evil-1").await?;
    refused(&mut evil, &victim).await?;
    taken(program, &victim).await?;

    let mut own = evil.client.subscribe("_INBOX_evil-1.x").await?;
    own_beat(&evil, "_INBOX_victim-1.forged").await?;
    // What it could guess of the coordinator's own inbox: an answer there would be taken for a task's.
    own_beat(&evil, "_MUSTER_INBOX.forged").await?;
    own_beat(&evil, "_INBOX_evil-1.x").await?;
    next(&mut own).await.context("its own beat is answered")?;

    ensure!(victim.is_at_work(&house)?, "nobody has ended it");
    let agent = house.system.json(&["agent", "get", "victim-1"])?;
    ensure!(agent.to_string().contains("i-1") && !agent.to_string().contains("i-evil"), "{agent}");
    let (subject, report) = victim.report();
    let recorded = victim.ask(&subject, &report).await?;
    ensure!(recorded["answer"] == "recorded", "the same report from the one whose it is: {recorded}");
    house.system.wait_run(&victim.run, &["SUCCEEDED"], SOON)?;
    house.nobody_objected()?;
    other_keys(&mut house, evil).await
}

/// A key is taken away and another one is given while everything runs.
async fn other_keys(house: &mut House, mut evil: Connection) -> Result<()> {
    Keys::write(house.system.dir.path(), &["--remove", "evil-1", "--agent", "bench-2"])?;
    let pid = i32::try_from(house.system.nats.pid()).ok().and_then(Pid::from_raw).context("a pid")?;
    kill_process(pid, Signal::HUP)?;
    ensure!(evil.is_thrown_out().await, "a key that was removed is still good");
    let seed = house.keys.seed("bench-2");
    house.system.start_agent("bench-2", "bench", &["--nats-nkey", &seed])?;
    house.works()?;
    house.nobody_objected()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_can_not_act_for_another() -> Result<()> {
    keeps_everybody_to_what_is_theirs(USUAL).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_can_not_act_for_another_on_the_newest_server() -> Result<()> {
    keeps_everybody_to_what_is_theirs(NEWEST).await
}

/// Without a key, or with one that the server does not know, there is no connection, and the reason is said.
#[test]
fn who_has_no_key_stays_outside() -> Result<()> {
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let keys = Keys::write(dir.path(), &AGENTS)?;
    let strange = Keys::write(other.path(), &AGENTS)?.seed("bench-1");
    let nats = NatsServer::start_program(Path::new(USUAL), &["-c", &keys.config()?])?;
    let agent = |more: &[&str]| agent_run(dir.path(), &nats.url(), more);
    for refused in [agent(&[])?, agent(&["--nats-nkey", &strange])?] {
        ensure!(refused.contains("error: BUS_REFUSED ") && refused.contains("--nats-nkey FILE"), "{refused}");
    }
    let of_another = agent(&["--nats-nkey", &keys.seed("evil-1")])?;
    ensure!(of_another.contains("error: BUS_REFUSED ") && of_another.contains("but not as bench-1"), "{of_another}");
    let own = keys.seed("bench-1");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o640))?;
    let exposed = agent(&["--nats-nkey", &own])?;
    ensure!(exposed.contains("error: SECRET_EXPOSED ") && exposed.contains("chmod 600"), "{exposed}");
    let public = agent(&["--nats-nkey", &keys.config()?])?;
    ensure!(public.contains("error: SECRET_EXPOSED "), "{public}");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600))?;
    fs::write(&own, "SU no seed at all")?;
    let bad = agent(&["--nats-nkey", &own])?;
    ensure!(bad.contains("error: NKEY_INVALID ") && !bad.contains("no seed at all"), "{bad}");
    Ok(())
}
