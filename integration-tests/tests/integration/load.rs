//! Load on the sample service, with its faults.

use std::{
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use muster_agent::Action;
use muster_integration::load::Run;
use muster_integration_tests::lab::{self, SampleService};
use serde_json::{Value, json};

use crate::{folder, permanent, retry, trial};

fn fault(service: &SampleService, mode: &str) {
    let url = format!("http://{}/admin/fault/{mode}", service.address());
    let put =
        Command::new(lab::program("curl", "curl").unwrap()).args(["-sf", "--noproxy", "*", "-X", "PUT", &url]).output();
    assert!(put.unwrap().status.success());
}

fn load(service: &SampleService) -> Value {
    json!({"target": {"url": format!("http://{}/version", service.address())}, "requests": 400, "timeout_ms": 5000})
}

fn number(output: &Value, field: &str) -> f64 {
    output[field].as_f64().unwrap_or_else(|| panic!("{field}: {}", output[field]))
}

#[tokio::test]
async fn a_healthy_service_gives_figures_with_units() {
    let (_dir, dir) = folder();
    let service = SampleService::start(&dir).unwrap();
    for new_connections in [false, true] {
        let mut with = load(&service);
        with["new_connections"] = json!(new_connections);
        let done = Run.run(&trial().context(), &with).await.unwrap();
        assert_eq!((&done.output["requests"], &done.output["failed"]), (&json!(400), &json!(0)), "{}", done.output);
        assert_eq!(done.output["statuses"], json!({"200": 400}));
        let [p50, p95, p99] = ["latency_p50_ms", "latency_p95_ms", "latency_p99_ms"].map(|f| number(&done.output, f));
        assert!(0.0 < p50 && p50 <= p95 && p95 <= p99, "{}", done.output);
        assert!(number(&done.output, "ttfb_p95_ms") <= p99 && number(&done.output, "rps") > 1.0);
        let units: Vec<_> = done.observations.iter().map(|o| (o.name.as_str(), o.unit.as_str(), o.samples)).collect();
        for expected in [("error_rate", "percent"), ("throughput", "requests/s"), ("latency_p95", "ms")] {
            assert!(units.contains(&(expected.0, expected.1, Some(400))), "{units:?}");
        }
    }
}

#[tokio::test]
async fn a_failing_and_a_slow_service_are_figures_for_the_gate() {
    let (_dir, dir) = folder();
    let service = SampleService::start(&dir).unwrap();
    fault(&service, "failing");
    let done = Run.run(&trial().context(), &load(&service)).await.unwrap();
    assert_eq!((number(&done.output, "error_rate_percent"), &done.output["latency_p95_ms"]), (100.0, &Value::Null));
    assert_eq!(done.output["statuses"], json!({"503": 400}));
    let mut with = load(&service);
    with["good_statuses"] = json!([503]);
    let done = Run.run(&trial().context(), &with).await.unwrap();
    assert_eq!(done.output["failed"], 0, "what is good is the playbook's word");

    fault(&service, "slow");
    let mut with = load(&service);
    with["duration_ms"] = json!(300);
    let (start, done) = (Instant::now(), Run.run(&trial().context(), &with).await.unwrap());
    assert!(number(&done.output, "latency_p50_ms") >= 1000.0, "{}", done.output);
    assert_eq!(done.output["requests"], 8, "after 300 ms none is begun");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_dead_and_a_hanging_server_end_in_time() {
    let closed = json!({"target": {"url": format!("http://127.0.0.1:{}/", lab::free_port().unwrap())}, "requests": 20});
    let (message, output) = retry(Run.run(&trial().context(), &closed).await);
    assert!(message.contains("no answer to 20 requests") && output["failed"] == 20, "{message}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = json!({"url": format!("http://{}/", listener.local_addr().unwrap())});
    let hanging = json!({"target": target, "requests": 1000, "duration_ms": 500, "timeout_ms": 200, "concurrency": 4});
    let start = Instant::now();
    let (message, output) = retry(Run.run(&trial().context(), &hanging).await);
    assert!(message.contains("within 200 ms"), "{message}");
    assert!(number(&output, "failed") <= 16.0 && start.elapsed() < Duration::from_secs(20), "{output}");
}

#[tokio::test]
async fn a_cancelled_load_stops() {
    let (_dir, dir) = folder();
    let service = SampleService::start(&dir).unwrap();
    let mut with = load(&service);
    with["requests"] = json!(1_000_000);
    with["duration_ms"] = json!(600_000);
    let (trial, start) = (trial(), Instant::now());
    let ctx = trial.context();
    let stop = async {
        while trial.said().progress.is_empty() && start.elapsed() < Duration::from_secs(20) {
            tokio::task::yield_now().await;
        }
        trial.cancel();
    };
    let both = async { tokio::join!(Run.run(&ctx, &with), stop).0 };
    let ended = tokio::time::timeout(Duration::from_secs(40), both).await.expect("it stops when it is told");
    assert!(retry(ended).0.contains("cancelled"));
}

#[tokio::test]
async fn what_is_over_a_limit_is_not_begun() {
    for (field, value) in [("requests", 0), ("requests", 1_000_001), ("concurrency", 257), ("duration_ms", 3_600_001)] {
        let mut with = json!({"target": {"url": "http://127.0.0.1:1/"}});
        with[field] = json!(value);
        assert!(permanent(Run.run(&trial().context(), &with).await).0.contains(field));
    }
    let file = json!({"target": {"url": "file:///etc/hostname"}});
    assert!(permanent(Run.run(&trial().context(), &file).await).0.contains("http://"));
}
