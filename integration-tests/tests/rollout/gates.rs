//! Each condition of a shipped playbook, with the fault of real servers that turns it red, or that leaves it inconclusive where the
//! step itself insists first: a condition without one fails.
//!
//! A gate names its red conditions, and the run is walked back. Where a step refuses before its gate is reached, the gate is
//! judged on what that step gave: it would have closed, too. Such a condition does not stand there for nothing: a person may
//! answer for a step that asks, and then the gate has nothing but its condition. What `verify` and `expect` want is in
//! `verifications`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use muster_agent::allow::Allow;
use muster_integration_tests::{
    lab::{Lab, Pooling},
    process::checkout,
    system::System,
};
use serde_json::{Value, json};

use crate::{
    conditions::{Evidence, conditions, parts, steps},
    ended, greeting, release_inputs, rollout_inputs, shipped, start, three_agents, verifications,
};

pub(crate) const ROLLOUT: &str = "revenue-engine-rollout";
pub(crate) const RELEASE: &str = "blue-green-release";
pub(crate) const HELLO: &str = "hello";

/// Parts of conditions that a fault has turned red, as [`parts`] has them.
pub(crate) type Red = Vec<String>;

/// A fault, what it must turn red, and how it is brought about.
struct Fault {
    name: &'static str,
    playbook: &'static str,
    closes: &'static [&'static str],
    bring: fn(&mut Gates) -> Result<Red>,
}

const fn fault(name: &'static str, closes: &'static [&'static str], bring: fn(&mut Gates) -> Result<Red>) -> Fault {
    Fault { name, playbook: ROLLOUT, closes, bring }
}

/// With the roadmap's limits of time.
const MEASURED: [Fault; 8] = [
    fault(
        "a slow database",
        &[
            "steps.pool_probe.output.latency_p95_ms < double(inputs.pool_p95_ms)",
            "expect pool_probe: latency_p95_ms_below",
        ],
        Gates::a_slow_database,
    ),
    fault("a Redis that can't write", &[], Gates::a_redis_that_cannot_write),
    fault("a door that refuses", &["steps.balance.output.success_percent >= 100.0"], Gates::a_door_that_refuses),
    fault(
        "a replica that lags",
        &[
            "size(steps.replication.output.wrong) == 0",
            "steps.replication.output.lag_ms_max < double(inputs.replica_lag_ms)",
            "expect replication: lag_ms_below",
        ],
        Gates::a_replica_that_lags,
    ),
    fault("a slow first byte", &["steps.site_check.output.ttfb_ms < double(inputs.ttfb_ms)"], Gates::a_slow_first_byte),
    fault(
        "a dead cache, old TLS",
        &[
            "steps.tls_check.output.protocol == 'TLSv1.3'",
            "steps.cache_load.output.error_rate_percent < 1.0",
            "steps.cache_probe.output.server.hit_percent > 90.0",
        ],
        Gates::a_dead_cache_and_old_tls,
    ),
    fault("another package", &["size(steps.verify_package.output.missing) == 0"], Gates::another_package),
    fault(
        "failing tests and load",
        &["steps.smoke.output.pass_rate_percent > 90.0", "steps.load.output.error_rate_percent < 1.0"],
        Gates::failing_tests_and_a_failing_load,
    ),
];

/// Of these, time says nothing. The last two leave the lab mended.
const COUNTED: [Fault; 8] = [
    fault(
        "a pool that drops who thinks",
        &["steps.pool_probe.output.success_percent >= 100.0", "expect pool_probe: success_percent"],
        Gates::a_pool_that_drops_who_thinks,
    ),
    fault("a pool beside the pool", &["steps.pool_probe.output.within_pool"], Gates::a_pool_beside_the_pool),
    fault(
        "a replica at the primary's address",
        &["steps.replication.output.primary_writes"],
        Gates::a_replica_at_the_address_of_the_primary,
    ),
    fault(
        "another site of this name",
        &["steps.tls_check.output.chain_valid", "steps.tls_check.output.name_valid"],
        Gates::another_site_of_this_name,
    ),
    fault(
        "half a database, a cache that nobody asks",
        &["steps.database_check.output.success_percent >= 100.0", "steps.cache_probe.output.server.lookups > 0"],
        Gates::half_a_database_and_an_unasked_cache,
    ),
    Fault {
        name: "a front with a limit, and without a page",
        playbook: RELEASE,
        closes: &[
            "steps.smoke.output.pass_rate_percent >= 100.0",
            "steps.load.output.error_rate_percent < 1.0",
            "steps.load.output.latency_p95_ms < double(inputs.latency_p95_ms)",
        ],
        bring: Gates::a_front_with_a_limit,
    },
    fault("a Redis that knows another password", &["steps.redis.output.append_only"], Gates::a_word_for_redis),
    fault("a stranger in the backup's place", &["steps.backup.output.size_bytes > 0"], Gates::a_word_for_the_backup),
];

/// The playbook as it is shipped, but for its patience: what a fault does to a step that does not pass by waiting. A little more
/// has who asks a replica that is held back.
fn impatient(playbook: &str) -> String {
    let mut tries = 2;
    let impatiently = |line: &str| {
        if let Some(id) = line.trim_start().strip_prefix("- id: ") {
            tries = if id.starts_with("replication") { 4 } else { 2 };
        }
        match line.split_once("retry: {") {
            Some((before, _)) => {
                format!("{before}retry: {{maxAttempts: {tries}, backoff: {{initial: 100ms, max: 100ms}}}}\n")
            }
            None => format!("{line}\n"),
        }
    };
    shipped(playbook).lines().map(impatiently).collect()
}

/// The lab, and who brings playbooks onto it again and again.
pub(crate) struct Gates {
    pub(crate) system: System,
    pub(crate) lab: Lab,
    playbook: &'static str,
    inputs: Value,
}

impl Gates {
    fn start() -> Result<Self> {
        let lab = Lab::start(Pooling::OneSession)?;
        let (system, inputs) = (three_agents(&lab)?, rollout_inputs(&lab));
        for playbook in [ROLLOUT, RELEASE] {
            system.submit(&impatient(playbook))?;
        }
        Ok(Self { system, lab, playbook: ROLLOUT, inputs })
    }

    /// Brings each of them about; what stays open is the error.
    fn close_by(&mut self, faults: &[Fault]) -> Result<()> {
        let mut open = Vec::new();
        for Fault { name, playbook, closes, bring } in faults {
            self.playbook = playbook;
            match bring(self).with_context(|| format!("by {name}")) {
                Err(error) => open.push(format!("{error:#}")),
                Ok(red) => open.extend(
                    closes
                        .iter()
                        .filter(|part| !red.iter().any(|r| r == *part))
                        .map(|part| format!("by {name}: `{part}` is not red, only {red:?}")),
                ),
            }
        }
        ensure!(open.is_empty(), "a gate stays open, or says something else:\n{}", open.join("\n"));
        Ok(())
    }

    /// Starts a run with these inputs beside those of the lab; its id.
    pub(crate) fn begin(&self, others: &Value) -> Result<String> {
        let mut inputs = if self.playbook == RELEASE { release_inputs(&self.lab) } else { self.inputs.clone() };
        inputs.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
        start(&self.system, self.playbook, &inputs)
    }

    /// See [`refused`]; of a run with these inputs.
    pub(crate) fn refuses(&self, step: &str, others: &Value, says: &str) -> Result<Red> {
        refused(&self.system, self.playbook, &self.begin(others)?, step, says)
    }

    /// See [`closed`]; of a run with these inputs.
    pub(crate) fn closes(&self, phase: &str, others: &Value) -> Result<Red> {
        closed(&self.system, self.playbook, &self.begin(others)?, phase)
    }

    pub(crate) fn second_door(&self) -> PathBuf {
        self.lab.sides.nginx.site().with_file_name("second.conf")
    }
}

/// The run fails by this step; the parts of conditions that are false on what it gave nevertheless.
pub(crate) fn refused(system: &System, playbook: &str, run: &str, step: &str, says: &str) -> Result<Red> {
    let (ended, reason) = failed(system, run)?;
    for part in [&format!("step {step} failed"), says] {
        ensure!(reason.contains(part), "it does not say {part:?}: {reason}");
    }
    let mut evidence = Evidence::of(&ended)?;
    if let Some(gave) = system.events(run)?.iter().find_map(|event| gave_nevertheless(event, step)) {
        evidence = evidence.with(step, gave);
    }
    Ok(evidence.red(&conditions(&shipped(playbook))?))
}

/// The run fails by this gate; the false parts of the conditions that it names.
pub(crate) fn closed(system: &System, playbook: &str, run: &str, phase: &str) -> Result<Red> {
    let (ended, reason) = failed(system, run)?;
    let gate = format!("the gate of phase {phase} failed");
    ensure!(reason.contains(&gate), "it does not say {gate:?}: {reason}");
    let mut named = conditions(&shipped(playbook))?;
    named.retain(|condition| reason.contains(&format!("`{condition}` is false")));
    Ok(Evidence::of(&ended)?.red(&named))
}

/// The run fails, and is walked back; the run and why.
fn failed(system: &System, run: &str) -> Result<(Value, String)> {
    let ended = ended(system, run)?;
    let reason = ended["stateReason"].as_str().unwrap_or_default().to_owned();
    ensure!(ended["state"] == "STATE_FAILED", "the run is {}: {reason}", ended["state"]);
    let steps = ended["steps"].as_array().context("a run has steps")?;
    let left = steps.iter().filter(|step| step["undo"] == "auto" && step["state"] == "STATE_SUCCEEDED");
    let left: Vec<_> = left.map(|step| &step["id"]).collect();
    ensure!(left.is_empty(), "not walked back: {left:?}");
    Ok((ended, reason))
}

/// What a step gave though it failed, where this is the event of that.
fn gave_nevertheless(event: &Value, step: &str) -> Option<Value> {
    let outcome = &event["detail"]["end"]["outcome"];
    let of_step = event["step"] == step && outcome["result"] == "failed";
    outcome.get("output").filter(|_| of_step).cloned()
}

/// The same, beside what the step insists on: by its words it is that.
pub(crate) fn and(insists: &str) -> impl FnOnce(Red) -> Red {
    let insists = insists.to_owned();
    |mut red| {
        red.push(insists);
        red
    }
}

/// From its next start on, the nginx of this file refuses a path; what the file said before.
pub(crate) fn refuse(file: &Path, path: &str) -> Result<String> {
    let found = fs::read_to_string(file)?;
    let refusing = found.replace("location / {", &format!("location = {path} {{ return 503; }}\n  location / {{"));
    ensure!(refusing != found, "{} has no place for it", file.display());
    fs::write(file, refusing)?;
    Ok(found)
}

#[test]
fn each_gate_that_measures_is_closed_by_a_fault_that_it_names() {
    Gates::start().unwrap().close_by(&MEASURED).unwrap();
}

#[test]
fn each_gate_that_counts_is_closed_by_a_fault_that_it_names() {
    let mut gates = Gates::start().unwrap();
    let inputs = gates.inputs.as_object_mut().unwrap();
    inputs.extend(["pool_p95_ms", "ttfb_ms", "replica_lag_ms"].map(|limit| (limit.to_owned(), json!(5000.0))));
    inputs.insert("requests".into(), json!(200));
    gates.close_by(&COUNTED).unwrap();
}

#[test]
fn no_condition_of_a_shipped_playbook_is_without_a_fault() {
    let by_fault = MEASURED.iter().chain(&COUNTED);
    let by_fault = by_fault.flat_map(|fault| fault.closes.iter().map(|part| (fault.playbook, (*part).to_owned())));
    let by_greeting = greeting::CLOSES.iter().map(|part| (HELLO, (*part).to_owned()));
    let by_look = verifications::red_before().map(|part| (ROLLOUT, part));
    let red: BTreeSet<_> = by_fault.chain(by_greeting).chain(by_look).map(|(p, part)| (p.to_owned(), part)).collect();
    let of_playbook = |name: String| parts(&shipped(&name)).unwrap().into_iter().map(move |part| (name.clone(), part));
    let wanted: BTreeSet<_> = playbooks().flat_map(of_playbook).collect();
    let only = |these: &BTreeSet<_>, those| these.difference(those).cloned().collect::<Vec<(String, String)>>();
    assert_eq!(only(&wanted, &red), [], "no fault turns these red");
    assert_eq!(only(&red, &wanted), [], "no playbook has these");
}

#[test]
fn no_action_that_only_looks_is_without_a_condition() {
    let allow = Allow::default();
    let actions =
        [muster_infra::actions(), muster_integration::actions(&allow), muster_deployment::actions(&allow)].concat();
    let mut unasked: BTreeSet<_> = actions.iter().map(|a| a.spec()).filter(|s| !s.undoable).map(|s| s.name).collect();
    assert!(unasked.contains("http.check") && !unasked.contains("nginx.site"), "{unasked:?}");
    for name in playbooks() {
        let parts = parts(&shipped(&name)).unwrap();
        for step in steps(&shipped(&name)).unwrap() {
            let of_step = format!("steps.{}.", step.id);
            if parts.iter().any(|part| part.contains(&of_step)) {
                unasked.remove(&step.action.unwrap_or_default());
            }
            unasked.remove(&step.verify.map(|verify| verify.action).unwrap_or_default());
        }
    }
    assert_eq!(unasked, BTreeSet::new(), "no shipped playbook judges what these see");
}

/// The names of the shipped playbooks.
fn playbooks() -> impl Iterator<Item = String> {
    let files = fs::read_dir(checkout().join("playbooks")).unwrap().map(|entry| entry.unwrap().path());
    let playbooks = files.filter(|file| file.extension().is_some_and(|ending| ending == "yaml"));
    playbooks.map(|file| file.file_stem().unwrap().to_string_lossy().into_owned())
}
