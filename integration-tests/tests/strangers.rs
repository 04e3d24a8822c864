//! The two agents of `docs/agents/`, which know nothing of our code, do the steps of a playbook: also when a task comes twice
//! or too late, when the coordinator is killed while they are at work, and when nats-server is.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, Subscriber};
use futures_util::StreamExt as _;
use muster_integration_tests::{
    process::{Process, checkout, tail},
    system::{SOON, System},
};
use rustix::process::Signal;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);

const PLAYBOOK: &str = r#"
apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: strangers, owner: ops}
spec:
  phases:
    - id: all
      milestone: Greeted, and the words counted
      steps:
        - id: greet
          agent: {role: greeter}
          action: greet.say
          with: {name: Ada Lovelace}
          timeout: 60s
          undo: irreversible
        - id: count
          needs: [greet]
          agent: {role: counter}
          action: count.words
          with: {text: "{{ steps.greet.output.greeting }}"}
          timeout: 60s
          undo: irreversible
"#;

/// Start an agent of `docs/agents/` and wait until it is ready.
fn start(system: &mut System, agent: &str, program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(checkout().join(program));
    for argument in arguments {
        command.arg(checkout().join(argument));
    }
    command.env("NATS_URL", system.nats.url());
    let process = Process::start(agent, system.dir.path(), &mut command)?;
    system.agents.insert(agent.into(), process);
    system.wait_agent(agent, "READY")
}

/// What an agent says it did for a step of a run.
fn count(system: &System, agent: &str, what: &str, run: &str, step: &str) -> Result<usize> {
    let output = system.agents.get(agent).context("the agent was started")?.output();
    Ok(output.lines().filter(|l| l.replace('/', " ").starts_with(&format!("{what} {run} {step} "))).count())
}

fn check(system: &System, run: &str) -> Result<()> {
    let seen = system.wait_run(run, &["SUCCEEDED"], LONG)?;
    let outputs: Vec<&Value> = seen["steps"].as_array().into_iter().flatten().map(|s| &s["output"]).collect();
    ensure!(outputs.len() == 2, "{seen}");
    ensure!(outputs[0]["greeting"] == "hello, Ada Lovelace", "{seen}");
    ensure!(outputs[1]["words"].as_f64() == Some(3.0), "{seen}");
    for (agent, step) in [("greeter-1", "greet"), ("counter-1", "count")] {
        let begun = count(system, agent, "begin", run, step)?;
        ensure!(begun == 1, "{agent} began {step} of {run} {begun} times");
    }
    Ok(())
}

/// The next message of a run and a step to an agent (`task`) or from it (`report`): its subject and payload.
async fn next(messages: &mut Subscriber, run: &str, step: &str) -> Result<(String, Value)> {
    tokio::time::timeout(SOON, async {
        loop {
            let message = messages.next().await.context("the subscription ended")?;
            let payload: Value = serde_json::from_slice(&message.payload)?;
            if payload["run"] == run && payload["step"] == step {
                return Ok((message.subject.to_string(), payload));
            }
        }
    })
    .await
    .with_context(|| format!("no message about {step} of {run}"))?
}

async fn ask(client: &Client, subject: &str, payload: &Value) -> Result<Value> {
    let answer = client.request(subject.to_owned(), payload.to_string().into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}

/// A task of another term gets no answer, a copy of a new one the same answer again, an unknown late one a refusal.
async fn copies(client: &Client, (subject, task): &(String, Value)) -> Result<()> {
    let mut other = task.clone();
    other["term"] = json!(task["term"].as_u64().context("a task has a term")? + 1);
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(format!("{inbox}.*")).await?;
    // An agent reads its messages in order: if it answered the first, that answer would come first.
    client.publish_with_reply(subject.clone(), format!("{inbox}.other"), other.to_string().into()).await?;
    client.publish_with_reply(subject.clone(), format!("{inbox}.copy"), task.to_string().into()).await?;
    let first = tokio::time::timeout(SOON, answers.next()).await.context("no answer")?.context("no answer")?;
    ensure!(first.subject.ends_with(".copy"), "a task of another term got {:?}", first.payload);
    ensure!(serde_json::from_slice::<Value>(&first.payload)? == json!({"answer": "accepted"}), "{:?}", first.payload);
    let mut late = task.clone();
    late["attempt"] = json!(99);
    late["sent_at_ms"] = json!(task["sent_at_ms"].as_u64().context("a task says when it was sent")? - 60_000);
    let denied = ask(client, subject, &late).await?;
    ensure!(denied["answer"] == "busy", "a late task got {denied}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_written_from_the_page_alone_do_each_step_once() -> Result<()> {
    let python = "target/tools/bin/python";
    ensure!(
        checkout().join(python).exists(),
        "{python} is not there: run `make tools` (integration-tests/scripts/install.sh)"
    );
    let mut system = System::start()?;
    let client = async_nats::connect(system.nats.url()).await?;
    let mut tasks = client.subscribe("muster.v1.default.task.>").await?;
    let mut reports = client.subscribe("muster.v1.default.report.>").await?;
    client.flush().await?;
    start(&mut system, "greeter-1", python, &["docs/agents/greeter.py"])?;
    start(&mut system, "counter-1", "docs/agents/counter.sh", &[])?;
    let playbook = system.submit(PLAYBOOK)?;

    let first = system.start_run(&playbook)?;
    check(&system, &first)?;

    // The coordinator dies between the task and the report: the report comes again and again, until there is somebody to record it.
    let mut runs = vec![first];
    for (agent, step) in [("greeter-1", "greet"), ("counter-1", "count")] {
        let process = system.agents.get(agent).context("the agent was started")?;
        process.signal(Signal::STOP)?;
        let run = system.start_run(&playbook)?;
        next(&mut tasks, &run, step).await?;
        system.kill_coordinator()?;
        system.agents.get(agent).context("the agent was started")?.signal(Signal::CONT)?;
        next(&mut reports, &run, step)
            .await
            .with_context(|| system.agents.get(agent).map(|a| tail(&a.output())).unwrap_or_default())?;
        system.start_coordinator()?;
        check(&system, &run)?;
        runs.push(run);
    }

    let last = system.start_run(&playbook)?;
    check(&system, &last)?;
    let new = [next(&mut tasks, &last, "greet").await?, next(&mut tasks, &last, "count").await?];
    for task in &new {
        copies(&client, task).await.with_context(|| task.0.clone())?;
    }
    runs.push(last);

    // A new nats-server knows nobody: they connect, subscribe and register again.
    system.nats.kill()?;
    system.nats.start_again()?;
    let after = system.start_run(&playbook)?;
    check(&system, &after)?;
    runs.push(after);
    // Whatever came twice: nothing was done twice.
    for run in &runs {
        check(&system, run)?;
    }
    Ok(())
}
