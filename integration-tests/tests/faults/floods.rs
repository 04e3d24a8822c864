//! Floods, and messages that nobody should send: the coordinator answers what it must, drops what it may, and goes on.

use std::{io::Write as _, net::TcpStream, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{process::wait_for, system::SOON};
use muster_proto::v1::{StartRunRequest, run_service_client::RunServiceClient, start_run_request::Source};
use serde_json::{Value, json};
use tonic::{Code, Request, metadata::AsciiMetadataValue, transport::Endpoint};

use crate::harness::{House, block_on};

const FLOOD: usize = 20_000;
const STARTS: usize = 2_000;
const HUGE: usize = 100 << 20;
const APPEND: (&str, &str, &str, &str) = ("s", "ledger.append", ", undo: irreversible", "");

fn resident_mb(house: &House) -> Result<u64> {
    let pid = house.system.coordinator.as_ref().context("it runs")?.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kb = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|v| v.trim().strip_suffix(" kB"));
    Ok(kb.context("no VmRSS")?.trim().parse::<u64>()? / 1024)
}

/// The journal's present life, which every message names.
fn cluster(house: &House) -> Result<String> {
    let lives = std::fs::read_to_string(house.system.data_dir().join("cluster"))?;
    let life: Value = serde_json::from_str(lives.lines().last().context("a life")?)?;
    Ok(life["cluster"].as_str().context("an id")?.to_owned())
}

#[test]
fn a_flood_of_reports_beats_and_registrations_stops_no_run() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    house.hold("run")?;
    let held = house.run_of(&[APPEND])?;
    house.wait_at("run")?;
    let cluster = cluster(&house)?;
    let report = |run: &str, n: usize| {
        json!({"cluster": cluster, "run": run, "step": "s", "attempt": n + 2, "instance": "i-ghost",
            "report": {"kind": "finished", "outcome": {"result": "succeeded", "output": {}}}})
    };
    let url = house.system.nats.url();
    block_on(async {
        let client = async_nats::connect(&url).await?;
        for n in 0..FLOOD {
            let subject = |what: &str| format!("muster.v1.default.{what}");
            let unknown = report("0190d5a0-0000-7000-8000-000000000001", n).to_string();
            client.publish(subject("report.7.ghost"), unknown.into()).await?;
            client.publish(subject("report.7.fault-1"), report(&held, n).to_string().into()).await?;
            let beat = json!({"cluster": cluster, "instance": "i-ghost", "holds": []});
            client.publish(subject(&format!("beat.ghost-{}", n % 500)), beat.to_string().into()).await?;
            client.publish(subject("status.ghost"), "{}".into()).await?;
            client.publish(subject("register.ghost"), "not json".into()).await?;
        }
        client.flush().await?;
        Ok(())
    })?;
    house.release("run")?;
    house.ends(&held, "SUCCEEDED")?;
    ensure!(house.count("begin", &held, "s") == 1, "done twice");
    let next = house.run_of(&[APPEND])?;
    house.ends(&next, "SUCCEEDED")?;
    let kept = house.system.events(&held)?.iter().filter(|e| e["type"] == "report_arrived_stale").count();
    ensure!(kept <= 100, "{kept} stale reports of one flood were written to disk");
    let resident = resident_mb(&house)?;
    ensure!(resident < 400, "{resident} MB after the flood");
    house.nobody_is_woken()
}

#[test]
fn a_flood_of_starts_is_taken_or_refused_and_every_run_that_was_taken_ends() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    let first = house.run_of(&[APPEND])?;
    house.ends(&first, "SUCCEEDED")?;
    let address = format!("http://{}", house.system.address());
    let token: AsciiMetadataValue = format!("Bearer {}", house.system.token()?).parse()?;
    let started = block_on(async {
        let channel = Endpoint::from_shared(address)?.connect().await?;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..STARTS {
            let (mut client, token) = (RunServiceClient::new(channel.clone()), token.clone());
            tasks.spawn(async move {
                let mut request = Request::new(StartRunRequest {
                    parent: "namespaces/default".into(),
                    source: Some(Source::Playbook("namespaces/default/playbooks/faults".into())),
                    ..Default::default()
                });
                request.metadata_mut().insert("authorization", token);
                client.start_run(request).await
            });
        }
        let mut started = Vec::new();
        while let Some(answer) = tasks.join_next().await {
            match answer? {
                Ok(run) => started.push(run.into_inner().run_id),
                Err(refused) if matches!(refused.code(), Code::ResourceExhausted | Code::Unavailable) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(started)
    })?;
    ensure!(!started.is_empty(), "none was taken");
    wait_for("all runs that were taken end", Duration::from_secs(120), || {
        let open = house.system.json(&["run", "list", "--state", "running", "--limit", "1"])?;
        let runs = open["runs"].as_array().or(open.as_array()).map_or(0, Vec::len);
        Ok((runs == 0).then_some(()))
    })?;
    for run in &started {
        ensure!(house.count("begin", run, "s") == 1 && house.count("end", run, "s") == 1, "{run} was not done once");
    }
    house.nobody_is_woken()
}

#[test]
fn what_nobody_should_send_is_answered_or_dropped_and_changes_nothing() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    house.hold("run")?;
    let run = house.run_of(&[APPEND])?;
    house.wait_at("run")?;
    let events = house.system.events(&run)?;
    let assigned = events.iter().find(|e| e["type"] == "attempt_assigned").context("it is assigned")?;
    let instance = assigned["detail"]["instance"].as_str().context("an instance")?.to_owned();
    let cluster = cluster(&house)?;
    let report = |run: &str| {
        json!({"cluster": cluster, "run": run, "step": "s", "attempt": 1, "instance": instance,
            "report": {"kind": "finished", "outcome": {"result": "succeeded", "output": {}}}})
        .to_string()
    };
    let url = house.system.nats.url();
    block_on(async {
        let client = async_nats::connect(&url).await?;
        let ask = async |agent: &str, payload: String| -> Result<Option<Value>> {
            let subject = format!("muster.v1.default.report.7.{agent}");
            match tokio::time::timeout(Duration::from_secs(3), client.request(subject, payload.into())).await {
                Ok(Ok(answer)) => Ok(Some(serde_json::from_slice(&answer.payload)?)),
                Ok(Err(_)) | Err(_) => Ok(None),
            }
        };
        let unknown = ask("ghost", report("0190d5a0-0000-7000-8000-000000000001")).await?.context("an answer")?;
        ensure!(unknown["answer"] == "gone", "of a run that was never here: {unknown}");
        let stolen = ask("ghost", report(&run)).await?.context("an answer")?;
        ensure!(stolen["answer"] == "stale", "of another agent's attempt: {stolen}");
        let bad = ask("fault-1", "\u{0}not json".to_owned()).await?;
        ensure!(bad.as_ref().is_none_or(|b| b["answer"] != "recorded"), "of no JSON: {bad:?}");
        let large = "x".repeat(900 << 10);
        let large = ask("fault-1", report(&run).replace("{}", &format!("{{\"x\":\"{large}\"}}"))).await?;
        ensure!(large.as_ref().is_none_or(|l| l["answer"] != "recorded"), "of 900 KB: {large:?}");
        Ok(())
    })?;
    // A client that keeps to no limit at all: the broker hangs up, and nobody else notices.
    let mut raw = TcpStream::connect(url.trim_start_matches("nats://"))?;
    write!(raw, "CONNECT {{\"verbose\":false}}\r\nPUB muster.v1.default.report.7.fault-1 {HUGE}\r\n")?;
    let piece = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while sent < HUGE && raw.write_all(&piece).is_ok() {
        sent += piece.len();
    }
    let resident = resident_mb(&house)?;
    ensure!(resident < 200, "{resident} MB");
    let states = house.system.json(&["run", "get", &run])?;
    ensure!(states["steps"][0]["state"] == "STATE_ACTIVE", "something has changed: {states}");
    house.release("run")?;
    house.ends(&run, "SUCCEEDED")?;
    ensure!(house.count("begin", &run, "s") == 1, "done twice");
    wait_for("the log says that something could not be read", SOON, || {
        let log = house.system.coordinator.as_ref().context("it runs")?.output();
        Ok(log.contains("can't be read").then_some(()))
    })?;
    house.nobody_is_woken()
}

/// The broker would hang up on it: the agent cuts what it gives, says so, and does not begin what it could not take back.
#[test]
fn what_an_agent_gives_beyond_the_limit_is_cut_and_what_undo_would_need_is_refused() -> Result<()> {
    let mut house = House::start()?;
    house.agent("fault-1")?;
    let large = |action, keys, more| ("s", action, keys, more);
    // A debug build takes its time for 100 MB.
    let append = ", undo: irreversible, timeout: 60s";
    let run = house.run_of(&[large("ledger.append", append, ", output_mb: 100")])?;
    let step = &house.ends(&run, "SUCCEEDED")?["steps"][0];
    ensure!(step["attempts"][0]["truncated"] == true, "nobody says that it is cut");
    let kept = step["output"]["rest"].as_str().context("the beginning is there")?.len();
    ensure!(step["output"]["first"] == "kept" && kept <= 16 << 10, "{kept} bytes of it are there");
    for shows in ["get", "events"] {
        let shown = String::from_utf8(house.system.cli(&["run", shows, &run])?.stdout)?;
        ensure!(shown.contains("its output was too large and is cut"), "`run {shows}` says nothing of it: {shown}");
    }

    let run = house.run_of(&[large("ledger.append", append, ", output_mb: 1, fails: true")])?;
    let ended = house.ends(&run, "FAILED")?;
    let reason = ended["stateReason"].as_str().unwrap_or_default();
    ensure!(reason.contains("it was told to fail (its output was too large and is cut)"), "{reason}");

    let run = house.run_of(&[large("ledger.put", "", ", undo_mb: 1")])?;
    let ended = house.ends(&run, "FAILED")?;
    let reason = ended["stateReason"].as_str().unwrap_or_default();
    ensure!(reason.contains("what undo would need is ") && reason.contains("; the limit is "), "{reason}");
    ensure!(house.count("begin", &run, "s") == 0 && !house.is_put(&run, "s"), "it was done all the same");

    let next = house.run_of(&[APPEND])?;
    house.ends(&next, "SUCCEEDED")?;
    let (resident, held) = (resident_mb(&house)?, house.system.json(&["agent", "get", "fault-1"])?);
    ensure!(resident < 200 && held["state"].as_str().is_some_and(|s| s.ends_with("READY")), "{resident} MB, {held}");
    house.nobody_is_woken()
}
