//! Law 10, seen from outside: a secret's value is in the agent's own secrets file, or in the password file that a step names,
//! and nowhere else: in no file, no message on NATS, no event, no answer, no figure. An agent that is made for that tries to say it
//! in every way an action has; ours ask servers that take it, and servers that say it back. Every command and every method of
//! the API is asked.

mod asked;
mod heard;
mod house;
mod parrot;

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use muster_agent::{Action, allow::Allow};
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    canary::{Needle, Seen, holds, lab_needles, needles},
    process::{Process, binary, wait_for},
    sweep::{find, find_in},
    system::{SOON, path},
};
use serde_json::{Value, json};

use crate::{
    heard::Listener,
    house::{House, actions, playbook},
};

/// What a secret may be made of: it needs escapes in JSON, in addresses, and in the shell.
pub(crate) const VALUE: &str = "kX9\"/w+~7Qm2_pRz4!tN8c5%YbG\\3sLd6";
/// The same for the one in a password file.
pub(crate) const PASSWORD: &str = "zH4?/v=~3Fd9_xKu7&gB1s6$WcJ\\2rMe8";
/// What stands instead of it.
const MARK: &str = "[secret canary]";
/// Each a step that fails or succeeds in its own way.
const WAYS: [&str; 9] = ["log", "output", "large", "child", "error", "short_error", "panic", "prepare", "status"];
/// Our actions that neither take a secret nor read what may hold one.
const WITHOUT: [(&str, &str); 8] = [
    ("nginx.site", "it writes what its parameters say"),
    ("nginx.upstream", "it writes what its parameters say"),
    ("tls.inspect", "a handshake shows what is public"),
    ("package.verify", "it gives digests, and names that its parameters have"),
    ("release.prepare", "it gives digests, and names that its parameters have"),
    ("release.switch", "what its programs say goes the way of what those of `command.run` and `tests.run` say"),
    ("release.rollback", "it has neither password nor program"),
    ("noop.run", "it does nothing"),
];

#[test]
fn a_secret_is_in_its_file_and_nowhere_else() -> Result<()> {
    let nats = NatsServer::start_with(&["-js"]).context("nats-server does not start: apt-get install nats-server")?;
    let listener = Listener::start(&nats.url())?;
    let mut house = House::start(nats)?;
    house.start_agents()?;
    let run = leaks(&mut house)?;
    every_action_was_asked(&house)?;
    taken_and_taken_back(&mut house)?;
    turned_before_it_is_taken_back(&mut house)?;
    tried_out(&mut house)?;
    let events = listener.stream(&run)?;
    ensure!(events.iter().any(|(_, bytes)| holds(bytes, run.as_bytes())), "the stream has events of the run");
    drained(&mut house)?;
    house.system.nats.kill()?;
    let mut seen = std::mem::take(&mut house.asked.seen);
    let messages = listener.end();
    for kind in ["log.canary-1", "status.canary-1", ".report.", "log.infra-1"] {
        let tried = messages.iter().any(|(at, bytes)| at.contains(kind) && holds(bytes, MARK.as_bytes()));
        ensure!(tried, "no {kind} tried");
    }
    let answers = house.wire.end();
    ensure!(answers.iter().any(|(_, bytes)| holds(bytes, MARK.as_bytes())), "no answer of the API tried");
    seen.0.extend([messages, answers, events].into_iter().flatten());
    seen.files(house.system.dir.path(), &[])?;
    seen.files(house.system.nats.folder(), &[])?;
    was_said(&seen, &run)?;
    is_nowhere_else(&house, &seen)
}

/// The first run: everything that can be done to say it.
fn leaks(house: &mut House) -> Result<String> {
    let until = house.system.dir.path().join("seen");
    let leak = |way| {
        json!({
            "id": way, "agent": {"role": "canary"}, "action": "canary.leak", "with": {"way": way, "until": until},
            "onFailure": "continue", "critical": false,
        })
    };
    let mut steps: Vec<Value> = WAYS.map(leak).into();
    steps.extend(house.repeated());
    steps.push(house.certificate());
    let run = house.run("canary", &steps)?;
    let mut follow = ["logs", "watch", "wait"].map(|what| {
        let mut command = Command::new(binary("muster", "muster"));
        house.system.environment(&mut command);
        let more = if what == "logs" { "-f" } else { "--stay" };
        Process::start(what, house.system.dir.path(), command.args(["run", what, &run, more]))
    });
    wait_for("the status has come", SOON, || {
        let seen = house.system.json(&["run", "get", &run])?;
        Ok(seen.to_string().contains("logged in with").then_some(()))
    })?;
    house.asked.look_at(&house.system, "at work", &run)?;
    fs::write(until, "")?;
    house.answer(&run, "copy_login", "failed")?;
    house.system.wait_run(&run, &["SUCCEEDED", "FAILED"], SOON * 4)?;
    for process in &mut follow {
        let process = process.as_mut().map_err(|e| anyhow::anyhow!("nobody follows: {e:#}"))?;
        wait_for("whoever follows is done", SOON, || Ok((!process.is_running()).then_some(())))?;
    }
    house.asked.look_at(&house.system, "at the end", &run)?;
    for what in ["watch", "wait"] {
        house.asked.look(&house.system, "at the end", &["run", what, &run])?;
    }
    said_back(house, &run)?;
    Ok(run)
}

/// The password was sent, came back, and went into what each step says.
fn said_back(house: &House, run: &str) -> Result<()> {
    let marks = [MARK.to_owned(), format!("[secret {}]", house.password.display())];
    let steps = house.steps(run)?;
    for wanted in house.repeated() {
        let id = wanted["id"].as_str().unwrap_or_default();
        let said = steps.get(id).with_context(|| format!("no step {id}"))?.to_string();
        // Its answer has a status, and nothing of what it says.
        let silent = wanted["action"] == "load.run";
        ensure!(silent || marks.iter().any(|mark| said.contains(mark)), "{id} was not told it: {said}");
    }
    ensure!(steps["tls"]["state"] == "STATE_SUCCEEDED", "{}", steps["tls"]);
    ensure!(fs::read_dir(house.servers.backups())?.next().is_none(), "what failed leaves no backup");
    Ok(())
}

/// Whoever takes a secret has to be asked both ways; whoever is not asked stands in the list.
fn every_action_was_asked(house: &House) -> Result<()> {
    let allow = Allow::default();
    let all = [muster_infra::actions(), muster_integration::actions(&allow), muster_deployment::actions(&allow)];
    let (repeated, accepted) = (actions(&house.repeated()), actions(&house.accepted()));
    let mut left: BTreeSet<_> = WITHOUT.iter().map(|(name, _)| (*name).to_owned()).collect();
    left.remove("noop.run");
    for action in all.iter().flatten() {
        let spec = Action::spec(&**action);
        let takes_one = spec.params_schema.is_some_and(|schema| schema["$defs"].get("Password").is_some());
        let asked = repeated.contains(&spec.name) && (!takes_one || accepted.contains(&spec.name));
        let without = left.remove(&spec.name) && !takes_one;
        ensure!(asked || without || spec.name == "tls.certificate", "{} is not asked with a secret", spec.name);
    }
    ensure!(left.is_empty(), "these are no actions: {left:?}");
    Ok(())
}

/// The second run: real servers take the passwords, settings are put to work and taken back, a backup is made and removed.
fn taken_and_taken_back(house: &mut House) -> Result<()> {
    let steps = house.accepted();
    let run = house.run("accepted", &steps)?;
    house.system.wait_run(&run, &["FAILED"], SOON * 6)?;
    house.asked.look_at(&house.system, "taken back", &run)?;
    for (id, step) in house.steps(&run)? {
        let takes_back = ["redis_set", "pool_set", "copy"].contains(&id.as_str());
        let wanted = if takes_back {
            "STATE_UNDONE"
        } else if id == "fails" {
            "STATE_FAILED"
        } else {
            "STATE_SUCCEEDED"
        };
        ensure!(step["state"] == wanted, "{id} is not {wanted}: {step}");
    }
    Ok(())
}

/// The third run: what was put to work can't be taken back, since its servers say the password instead.
fn turned_before_it_is_taken_back(house: &mut House) -> Result<()> {
    let steps = house.turning();
    let run = house.run("turning", &steps)?;
    wait_for("settings are at work", SOON, || {
        let at_work = house.steps(&run)?["pool_set"]["state"] == "STATE_SUCCEEDED";
        Ok(at_work.then_some(()))
    })?;
    house.parrots.turning_redis.turn();
    house.parrots.turning_pgbouncer.turn();
    house.asked.ask(&house.system, "turned", &["run", "pause", &run, "--reason", "a test"])?;
    house.asked.ask(&house.system, "turned", &["run", "signal", &run, "turned"])?;
    house.asked.ask(&house.system, "turned", &["run", "resume", &run, "--reason", "a test"])?;
    for step in ["pool_set", "redis_set"] {
        house.answer(&run, step, "retry")?;
        house.answer(&run, step, "succeeded")?;
        let said = house.steps(&run)?[step].to_string();
        ensure!(said.contains("nobody asks with [secret "), "{step} was not told it: {said}");
    }
    house.system.wait_run(&run, &["FAILED"], SOON)?;
    house.asked.look_at(&house.system, "turned", &run)
}

/// What else there is to be asked while the system works.
fn tried_out(house: &mut House) -> Result<()> {
    let House { system, asked, .. } = house;
    let dir = path(system.dir.path())?.to_owned();
    asked.look(system, "later", &["playbook", "list"])?;
    asked.look(system, "later", &["coordinator", "get"])?;
    let made = asked.ask(system, "later", &["token", "create", "person/dba-1", "--role", "viewer", "-o", "json"])?;
    let made: Value = serde_json::from_str(&made)?;
    asked.look(system, "later", &["token", "list"])?;
    let id = made["token"]["name"].as_str().context("a token has a name")?;
    asked.ask(system, "later", &["token", "revoke", id])?;
    let keys = format!("{dir}/keys");
    asked.ask(system, "later", &["nats", "config", "--out", &keys, "--agent", "infra-1"])?;
    asked.ask(system, "later", &["completions", "bash"])?;
    asked.grpcurl(
        &system.token()?,
        "muster.v1.MilestoneService/WatchMilestones",
        "{\"parent\": \"namespaces/default\"}",
    )?;
    let run = house.run("open", &[json!({"id": "never", "wait": {"signal": "never"}, "timeout": "1h"})])?;
    house.asked.ask(&house.system, "later", &["run", "cancel", &run, "--reason", "a test"])?;
    let first = house.repeated().into_iter().find(|step| step["action"] == "redis.probe").context("a probe")?;
    let dev = format!("{dir}/dev.yaml");
    fs::write(&dev, playbook("dev", &[], &[first]))?;
    let said = house.asked.ask(&house.system, "dev", &["dev", &dev, "--log", "debug"])?;
    ensure!(said.contains("SUCCEEDED") || said.contains("succeeded"), "{said}");
    Ok(())
}

/// Agents and coordinator are told to begin nothing new.
fn drained(house: &mut House) -> Result<()> {
    let House { system, asked, .. } = house;
    asked.ask(system, "draining", &["coordinator", "drain"])?;
    let (data, nats) = (path(&system.data_dir())?.to_owned(), system.nats.url());
    // A busy machine or a full disk may be a problem; what it says counts here.
    for format in ["table", "json"] {
        asked.tell(system, "draining", &["doctor", "--data-dir", &data, "--nats", &nats, "-o", format])?;
    }
    asked.ask(system, "draining", &["coordinator", "resume"])?;
    asked.ask(system, "draining", &["agent", "drain", "canary-1"])?;
    // It may be gone by itself.
    asked.tell(system, "draining", &["agent", "forget", "canary-1"])?;
    let figures = asked.figures("at last")?;
    for agent in system.agents.values_mut().chain(system.coordinator.as_mut()) {
        agent.terminate(SOON)?;
    }
    for words in [&["journal", "verify"][..], &["journal", "head"], &["journal", "export"], &["journal", "restored"]] {
        let said = asked.ask(system, "stopped", &[words, &["--data-dir", &data]].concat())?;
        ensure!(!said.trim().is_empty(), "{words:?} says nothing");
    }
    asked.nothing_is_left_out(&figures)
}

fn is_nowhere_else(house: &House, seen: &Seen) -> Result<()> {
    let keys = ["site.key", "ca.key"].map(|name| house.keys().join(name));
    let of_redis = house.secret.with_file_name("password");
    let own = [&house.secret, &house.password, &of_redis, &keys[0], &keys[1]].map(|file| file.display().to_string());
    let mut all: Vec<Needle> = needles(VALUE);
    all.extend(needles(PASSWORD));
    for key in &keys {
        let lines = fs::read_to_string(key)?;
        let long = lines.lines().filter(|line| line.len() >= 24 && !line.starts_with('-'));
        let before = all.len();
        all.extend(long.map(|line| ("a line of a key", line.as_bytes().to_vec())));
        ensure!(all.len() > before, "{} has lines", key.display());
    }
    let everywhere = [&all[..], lab_needles()].concat();
    let mut places = find_in(seen, &everywhere)?;
    for file in &own {
        let held =
            places.iter().position(|(place, _)| place == file).with_context(|| format!("{file} was not searched"))?;
        places.remove(held);
    }
    ensure!(places.is_empty(), "a secret is in {places:#?}");
    let at_the_servers = find(house.servers.dir.path(), &all)?;
    ensure!(at_the_servers.is_empty(), "a secret that they were asked with is in {at_the_servers:?}");
    Ok(())
}

fn text_of(seen: &Seen, place: &str) -> Result<String> {
    let found = seen.0.iter().find(|(at, _)| at.contains(place)).with_context(|| format!("{place} was not seen"))?;
    Ok(String::from_utf8_lossy(&found.1).into_owned())
}

/// A search that finds nothing proves nothing unless it was really said: where it was, its mark stands.
fn was_said(seen: &Seen, run: &str) -> Result<()> {
    let get = |when: &str| text_of(seen, &format!("{when}: [\"run\", \"get\", \"{run}\", \"-o\", \"json\"]: stdout"));
    let at_the_end: Value = serde_json::from_str(&get("at the end")?)?;
    let steps = at_the_end["steps"].as_array().context("steps")?;
    for way in WAYS {
        let step = steps.iter().find(|step| step["id"] == way).with_context(|| format!("no step {way}"))?;
        let expected = if matches!(way, "log" | "prepare" | "status") { "" } else { MARK };
        ensure!(step.to_string().contains(expected), "{way} did not say it: {step}");
    }
    let at_work = get("at work")?;
    ensure!(at_work.contains(&format!("logged in with {MARK}")), "{at_work}");
    let logs = format!("at the end: [\"run\", \"logs\", \"{run}\", \"-o\", \"table\"]: stdout");
    for place in [logs, "/logs.log".to_owned(), format!("{run}.jsonl")] {
        let log = text_of(seen, &place)?;
        for line in ["check: ", "plain: ", "JSON: ", "debug: ", "the first of two lines ", "the second of two lines"] {
            let line =
                log.lines().find(|l| l.contains(line)).with_context(|| format!("{place} has no {line:?}:\n{log}"))?;
            ensure!(line.contains(MARK), "{place}: {line}");
        }
    }
    ensure!(text_of(seen, "/canary-1.log")?.contains(&format!("can't work with {MARK}")), "the panic is told");
    Ok(())
}
