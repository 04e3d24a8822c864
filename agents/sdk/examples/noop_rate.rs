//! How many no-op attempts per second one worker carries out: `noop_rate [local | nats://host:port] [width] [seconds]`.
//! What stands for the coordinator answers at once, so the figure is the worker's and the bus's alone.
#![expect(clippy::print_stdout, reason = "a tool that prints its figure")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use muster_agent::{Action, Catalogue, Worker, WorkerConfig, noop::Noop};
use muster_bus::{
    Bus, LocalBus, NatsBus, NatsOptions,
    message::{AttemptKey, Purpose, Register, RegisterReply, Report, Task},
    subject::{Subjects, shard_of},
};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

fn main() {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(measure());
}

async fn measure() {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().unwrap_or_else(|| "local".to_owned());
    let width: usize = arguments.next().and_then(|w| w.parse().ok()).unwrap_or(256);
    let seconds: u64 = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(3);
    let (here, there): (Arc<dyn Bus>, Arc<dyn Bus>) = if place == "local" {
        let bus = LocalBus::new();
        (Arc::new(bus.clone()), Arc::new(bus))
    } else {
        let connect = || NatsBus::connect(NatsOptions::new([place.clone()], "noop-rate"));
        (Arc::new(connect().await.expect("connects")), Arc::new(connect().await.expect("connects")))
    };
    let subjects = Subjects::new("default");
    let mut registers = here.subscribe(&subjects.register("bench-1")).await.expect("subscribes");
    let reports = here.subscribe("muster.v1.default.report.*.*").await.expect("subscribes");
    let waiting = Waiting::default();
    tokio::spawn(take_reports(reports, waiting.clone()));
    let config = WorkerConfig {
        namespace: "default".to_owned(),
        agent: "bench-1".to_owned(),
        role: "bench".to_owned(),
        labels: [].into(),
        host: None,
        slots: 2000,
        data_dir: None,
        software: String::new(),
    };
    let catalogue = Catalogue::new([Arc::new(Noop) as Arc<dyn Action>]).expect("a catalogue");
    tokio::spawn(Worker::new(config, catalogue, there).run(CancellationToken::new()));
    let delivery = registers.next().await.expect("a registration");
    let register: Register = serde_json::from_slice(&delivery.payload).expect("a registration");
    let task_subject = subjects.task("bench-1", &register.instance);
    let reply = RegisterReply::Registered {
        cluster: "c-1".to_owned(),
        term: 1,
        task_subject: task_subject.clone(),
        beat_every_ms: 60_000,
        lost_after_ms: 60_000,
        status_every_ms: 60_000,
        now_ms: 0,
    };
    delivery.reply.expect("a request").send(Bytes::from(serde_json::to_vec(&reply).expect("JSON")));
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let runs =
        (0..width).map(|run| tokio::spawn(drive(run, here.clone(), waiting.clone(), task_subject.clone(), until)));
    let steps: u64 = join_all(runs.collect::<Vec<_>>()).await.into_iter().map(|steps| steps.expect("ends")).sum();
    println!("{place} width {width}: {} steps/s", u128::from(steps) * 1000 / started.elapsed().as_millis());
}

async fn take_reports(mut reports: muster_bus::Subscription, waiting: Waiting) {
    while let Some(delivery) = reports.next().await {
        let report: Report = serde_json::from_slice(&delivery.payload).expect("a report");
        delivery.reply.expect("a request").send(Bytes::from_static(br#"{"answer":"recorded"}"#));
        if let Some(waiting) = waiting.lock().expect("no panic").remove(&report.key.run) {
            // The run goes on.
            let _ = waiting.send(());
        }
    }
}

async fn drive(run: usize, bus: Arc<dyn Bus>, waiting: Waiting, subject: String, until: Instant) -> u64 {
    let run = format!("0193f3a5-11d0-7e02-9d1b-{run:012}");
    let mut task = Task {
        cluster: "c-1".to_owned(),
        term: 1,
        report_subject: Subjects::new("default").report(shard_of(&run), "bench-1"),
        key: AttemptKey { run: run.clone(), step: "step_1".to_owned(), attempt: 0 },
        purpose: Purpose::Run,
        action: "noop.run".to_owned(),
        version: "1.0.0".to_owned(),
        with: json!({}),
        undo: None,
        prepare: false,
        secrets: Vec::new(),
        timeout_ms: 60_000,
        status_ms: 60_000,
        sent_at_ms: 0,
        start_within_ms: 60_000,
    };
    let mut steps = 0;
    while Instant::now() < until {
        task.key.attempt += 1;
        let (done, end) = oneshot::channel();
        waiting.lock().expect("no panic").insert(run.clone(), done);
        let payload = Bytes::from(serde_json::to_vec(&task).expect("JSON"));
        bus.request(&subject, payload, Duration::from_secs(5)).await.expect("an answer");
        end.await.expect("a report");
        steps += 1;
    }
    steps
}
