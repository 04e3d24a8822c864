//! An agent that can't keep a secret: `canary-agent URL SECRETS DATA`. Its one action says the value of the secret `canary`,
//! which is the file of that name in SECRETS, in every way an action has.

use std::{collections::BTreeMap, error::Error, fs, path::Path, process::ExitCode, sync::Arc, time::Duration};

use muster_agent::{
    Action, ActionError, ActionSpec, Catalogue, Checked, Context, Done, Redactor, Worker, WorkerConfig, guard,
};
use muster_bus::{NatsBus, NatsOptions, message::Observation};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    guard::main(run)
}

async fn run(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
    let [url, secrets, data_dir] = &arguments[..] else {
        return Err("usage: canary-agent URL SECRETS DATA".into());
    };
    let value = fs::read_to_string(Path::new(secrets).join("canary"))?;
    let secrets = BTreeMap::from([("canary".to_owned(), value.trim_end().to_owned())]);
    Redactor::new(&secrets).tell_panics();
    let config = WorkerConfig {
        namespace: "default".to_owned(),
        agent: "canary-1".to_owned(),
        role: "canary".to_owned(),
        labels: [].into(),
        host: None,
        slots: 4,
        data_dir: Some(data_dir.into()),
        software: "canary-agent".to_owned(),
    };
    let bus = NatsBus::connect(NatsOptions::for_agent([url], "canary-1")).await?;
    let actions: [Arc<dyn Action>; 1] = [Arc::new(Leak)];
    let worker = Worker::new(config, Catalogue::new(actions)?, Arc::new(bus)).with_secrets(secrets);
    worker.run(CancellationToken::new()).await?;
    Ok(())
}

struct Leak;

#[async_trait::async_trait]
impl Action for Leak {
    fn spec(&self) -> ActionSpec {
        let mut spec = ActionSpec::new("canary.leak", "1.0.0");
        (spec.idempotent, spec.checkable, spec.undoable) = (true, true, true);
        spec
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        ctx.log(&format!("check: {}", secret(ctx)?));
        let diff = format!("{with} differs from {}", secret(ctx)?);
        Ok(Checked::Different { diff })
    }

    async fn prepare(&self, ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        Ok(if with["way"] == "prepare" { json!({"password": secret(ctx)?}) } else { json!({}) })
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let value = secret(ctx)?;
        match with["way"].as_str().unwrap_or_default() {
            "log" => log(ctx, &value),
            "status" => return status(ctx, &value, with).await,
            "output" => {
                let output =
                    json!({"said": value, (format!("key {value}")): [{"deep": json!({"in": value}).to_string()}]});
                return Ok(Done { output, observations: vec![observation(&value)] });
            }
            "large" => {
                let room = 64 * 1024 - value.len() / 2;
                return child(ctx, &[("A", "x".repeat(room).as_str()), ("B", &value)]).await;
            }
            "child" => {
                let (first, second) = value.split_at(value.len() / 2);
                return child(ctx, &[("A", first), ("B", second)]).await;
            }
            "error" => {
                let long = format!("{}{value}", "x".repeat(8 * 1024 - value.len() / 2));
                return Err(ActionError::Permanent { message: long, output: Some(json!({"tried": value})) });
            }
            "short_error" => return Err(ActionError::permanent(format!("login with {value} was refused"))),
            "panic" => panic!("can't work with {value}"),
            other => return Err(ActionError::permanent(format!("{other:?} is no way to say it"))),
        }
        Ok(Done::default())
    }
}

fn secret(ctx: &Context) -> Result<String, ActionError> {
    ctx.voice.secret("canary").ok_or_else(|| ActionError::permanent("the task names no secret canary"))
}

fn log(ctx: &Context, value: &str) {
    let (first, second) = value.split_at(value.len() / 2);
    ctx.log(value);
    ctx.log(&format!("plain: {value}, twice: {value}{value}"));
    ctx.log(&format!("JSON: {}", json!({"password": value})));
    ctx.log(&format!("JSON in JSON: {}", json!(json!({"password": value}).to_string())));
    ctx.log(&format!("debug: {value:?}"));
    ctx.log(&format!("the first of two lines {first}"));
    ctx.log(&format!("{second} the second of two lines"));
    ctx.log(&format!("at the cut: {}{value}", "x".repeat(8 * 1024 - 12 - value.len() / 2)));
}

/// Until the test has seen it.
async fn status(ctx: &Context, value: &str, with: &Value) -> Result<Done, ActionError> {
    ctx.progress(&format!("logged in with {value}"), Some(50));
    ctx.voice.observe(observation(value));
    let seen = Path::new(with["until"].as_str().unwrap_or_default());
    while !seen.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(Done::default())
}

fn observation(value: &str) -> Observation {
    Observation {
        name: format!("of {value}"),
        value: 1.0,
        unit: value.to_owned(),
        samples: None,
        at_ms: Some(1_800_000_000_000),
        source: format!("user:{value}@db-1"),
    }
}

/// A program that writes in two pieces.
async fn child(ctx: &Context, pieces: &[(&str, &str)]) -> Result<Done, ActionError> {
    let script = "printf %s \"$A\"; sleep 0.05; printf %s \"$B\"; printf %s \"$A$B\" >&2";
    let mut command = ctx.command("/bin/sh").args(["-c", script]).logged(ctx.voice.clone());
    for (name, piece) in pieces {
        command = command.env(*name, *piece);
    }
    let output = command.output().await?;
    Ok(Done { output: json!({"stdout": output.stdout, "stderr": output.stderr}), observations: Vec::new() })
}
