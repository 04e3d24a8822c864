//! The coordinator killed with -9 at random moments and around a new segment of its log, an agent killed in the middle of a step,
//! NATS restarted: every run ends, and the ledger that the steps themselves wrote, outside of everything, agrees with the journal.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    process::wait_for,
    system::{SOON, System, path},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const LONG: Duration = Duration::from_secs(120);
const KILLS: u32 = 200;
const KILLS_A_RUN: u32 = 4;
/// Of so many kills one comes while the coordinator starts.
const KILLS_A_START: u32 = 5;

/// A segment of the log is full at 64 MiB; it is made with so many zeros.
const SEGMENT_BYTES: u64 = 64 << 20;
/// A step's parameters: 256 KiB go over NATS at most. Each attempt has them in the log once, as rendered.
const LARGE_BYTES: usize = 200_000;
/// Runs and their steps: together more than a segment and a quarter.
const LARGE_RUNS: usize = 10;
const LARGE_STEPS: usize = 37;

/// What steps really did: one line at the beginning of each try, one at its end.
struct Ledger {
    file: PathBuf,
    gate: PathBuf,
    allow: PathBuf,
}

impl Ledger {
    /// A script that writes the ledger, and an allow list that pins it.
    fn new(system: &System) -> Result<Self> {
        let (dir, file, gate) = (system.dir.path(), system.dir.path().join("ledger"), system.dir.path().join("gate"));
        fs::write(&gate, "open")?;
        let script = dir.join("ledger.sh");
        // `held` waits until the test opens the gate, `large` takes parameters of the size that it is told; `quick` does neither.
        fs::write(
            &script,
            format!(
                "#!/bin/sh\necho \"begin $2 $3\" >> {ledger}\nif [ \"$1\" = held ]; then until [ -e {gate} ]; do sleep 0.05; done; fi\nif [ \"$1\" = large ]; then [ \"$(wc -c)\" -eq \"$4\" ] || exit 9; fi\necho \"end $2 $3\" >> {ledger}\n",
                ledger = file.display(),
                gate = gate.display(),
            ),
        )?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        let mut digest = String::new();
        for byte in Sha256::digest(fs::read(&script)?) {
            write!(digest, "{byte:02x}")?;
        }
        let allow = dir.join("allow.toml");
        fs::write(&allow, format!("[commands.ledger]\npath = \"{}\"\nsha256 = \"{digest}\"\n", script.display()))?;
        Ok(Self { file, gate, allow })
    }

    /// How often each (run, step) began and ended.
    fn tries(&self) -> Result<BTreeMap<(String, String), (u32, u32)>> {
        let mut tries: BTreeMap<(String, String), (u32, u32)> = BTreeMap::new();
        for line in fs::read_to_string(&self.file).unwrap_or_default().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, run, step] = words[..] else { anyhow::bail!("the ledger has a line {line:?}") };
            let entry = tries.entry((run.to_owned(), step.to_owned())).or_default();
            match what {
                "begin" => entry.0 += 1,
                "end" => entry.1 += 1,
                other => anyhow::bail!("the ledger has a word {other:?}"),
            }
        }
        Ok(tries)
    }

    /// Every attempt that the journal knows was begun at most once, and every success was really done.
    fn agrees_with(&self, run: &str, events: &[Value]) -> Result<()> {
        let tries = self.tries()?;
        let mut assigned: BTreeMap<&str, u32> = BTreeMap::new();
        let mut succeeded: BTreeMap<&str, u32> = BTreeMap::new();
        for event in events {
            let step = event["step"].as_str().unwrap_or_default();
            match event["type"].as_str() {
                Some("attempt_assigned") => *assigned.entry(step).or_default() += 1,
                Some("attempt_ended") if event["detail"]["end"]["outcome"]["result"] == "succeeded" => {
                    *succeeded.entry(step).or_default() += 1;
                }
                _ => {}
            }
        }
        for ((ledger_run, step), (begun, ended)) in tries.iter().filter(|((r, _), _)| r == run) {
            let (attempts, successes) =
                (assigned.get(step.as_str()).copied().unwrap_or(0), succeeded.get(step.as_str()).copied().unwrap_or(0));
            ensure!(*begun <= attempts, "{ledger_run} {step}: begun {begun} times, assigned {attempts} times");
            ensure!(*ended >= successes, "{ledger_run} {step}: ended {ended} times, {successes} successes journalled");
        }
        for (step, successes) in succeeded {
            let (begun, _) = tries.get(&(run.to_owned(), step.to_owned())).copied().unwrap_or_default();
            ensure!(begun >= successes, "{run} {step}: {successes} successes journalled, begun {begun} times");
        }
        Ok(())
    }
}

fn playbook(name: &str, steps: usize, mode: &str) -> String {
    let mut yaml = format!(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: {name}, owner: ops}}\nspec:\n  phases:\n    - id: all\n      milestone: Done\n      steps:\n"
    );
    for n in 1..=steps {
        let needs = if n == 1 { String::new() } else { format!("          needs: [s{}]\n", n - 1) };
        // Writing to a string can't fail.
        let _ = writeln!(
            yaml,
            "        - id: s{n}\n{needs}          agent: {{role: infra}}\n          action: command.run\n          with: {{command: ledger, args: [{mode}, \"{{{{ run.id }}}}\", s{n}]}}\n          timeout: 60s\n          undo: irreversible"
        );
    }
    yaml
}

/// Its steps have parameters of [`LARGE_BYTES`], each rendered from the same input.
fn large_playbook() -> String {
    let text = "x".repeat(LARGE_BYTES);
    let mut yaml = format!(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: large, owner: ops}}\nspec:\n  inputs: {{type: object, properties: {{text: {{type: string, default: {text}}}}}}}\n  phases:\n    - id: all\n      milestone: Done\n      steps:\n"
    );
    for n in 1..=LARGE_STEPS {
        let needs = if n == 1 { String::new() } else { format!("          needs: [s{}]\n", n - 1) };
        // Writing to a string can't fail.
        let _ = writeln!(
            yaml,
            "        - id: s{n}\n{needs}          agent: {{role: infra}}\n          action: command.run\n          with: {{command: ledger, args: [large, \"{{{{ run.id }}}}\", s{n}, \"{LARGE_BYTES}\"], stdin: \"{{{{ inputs.text }}}}\"}}\n          timeout: 60s\n          queueTimeout: 10m\n          undo: irreversible"
        );
    }
    yaml
}

/// The segments of a log, the first one first.
fn segments(log: &Path) -> Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(log)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|e| e == "jsonl"));
    files.sort();
    Ok(files)
}

/// How far a segment is written: what is behind that are zeros, and no record has one.
fn written(segment: &Path) -> Result<u64> {
    let file = File::open(segment)?;
    let (mut from, mut to) = (0, file.metadata()?.len());
    while from < to {
        let (middle, mut byte) = (from.midpoint(to), [0]);
        match file.read_at(&mut byte, middle)? {
            1 if byte[0] != 0 => from = middle + 1,
            _ => to = middle,
        }
    }
    Ok(from)
}

/// A small generator, so that a failure can be repeated by its seed.
#[derive(Debug)]
struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    fn new() -> Self {
        let seed = std::env::var("SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::from(d.subsec_nanos())));
        Self { seed, state: seed | 1 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % bound
    }
}

fn verify_journal(system: &mut System) -> Result<()> {
    let mut coordinator = system.coordinator.take().context("a coordinator runs")?;
    coordinator.terminate(SOON)?;
    let data = system.data_dir();
    let output = system.cli(&["journal", "verify", "--data-dir", path(&data)?])?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn the_coordinator_is_killed_at_200_random_moments_of_busy_runs() -> Result<()> {
    let mut random = Random::new();
    let mut system = System::start()?;
    let ledger = Ledger::new(&system)?;
    system.start_agent("infra-1", "infra", &["--slots", "8", "--allow", path(&ledger.allow)?])?;
    let playbook = system.submit(&playbook("busy", 12, "quick"))?;
    let (mut runs, mut start_ms) = (Vec::new(), 200);
    for kill in 0..KILLS {
        if kill % KILLS_A_RUN == 0 {
            runs.push(system.start_run(&playbook)?);
        }
        if kill % KILLS_A_START == 0 && kill > 0 {
            // One that has not begun to serve: it reads its log, and takes its runs up.
            system.kill_coordinator()?;
            system.launch_coordinator()?;
            std::thread::sleep(Duration::from_millis(random.below(start_ms)));
        } else {
            std::thread::sleep(Duration::from_millis(random.below(200)));
        }
        system.kill_coordinator()?;
        let launched = Instant::now();
        system.start_coordinator()?;
        start_ms = u64::try_from(launched.elapsed().as_millis())?.max(1);
    }
    let served = system.coordinator.as_ref().context("it runs")?.output().matches(" serving ").count();
    let cut_off = usize::try_from(1 + KILLS + (KILLS - 1) / KILLS_A_START)? - served;
    ensure!(cut_off >= 10, "only {cut_off} starts were cut off, again with SEED={}", random.seed);
    for run in &runs {
        system.wait_run(run, &["SUCCEEDED"], LONG).with_context(|| format!("again with SEED={}", random.seed))?;
        ledger.agrees_with(run, &system.events(run)?)?;
        for n in 1..=12 {
            let tries = ledger.tries()?.get(&(run.clone(), format!("s{n}"))).copied();
            ensure!(tries == Some((1, 1)), "run {run} step s{n} was done {tries:?} times; its agent was never lost");
        }
    }
    verify_journal(&mut system)
}

#[test]
fn the_coordinator_is_killed_before_at_and_after_a_roll_of_its_log() -> Result<()> {
    let mut system = System::start()?;
    let ledger = Ledger::new(&system)?;
    system.start_agent("infra-1", "infra", &["--slots", "4", "--allow", path(&ledger.allow)?])?;
    let playbook = system.submit(&large_playbook())?;
    let runs = (0..LARGE_RUNS).map(|_| system.start_run(&playbook)).collect::<Result<Vec<_>>>()?;
    let log = system.data_dir().join("log");
    let nth_is_written = |n: usize, bytes| -> Result<bool> {
        segments(&log)?.get(n).map_or(Ok(false), |segment| Ok(written(segment)? > bytes))
    };
    let moments: [(&str, &dyn Fn() -> Result<bool>); 4] = [
        ("the next segment's zeros are written", &|| Ok(log.join("spare").exists())),
        ("a segment is nearly full", &|| nth_is_written(0, SEGMENT_BYTES - (2 << 20))),
        ("the next one is in its place", &|| Ok(segments(&log)?.len() == 2)),
        ("the next one has more than its first batch", &|| nth_is_written(1, 3 << 20)),
    ];
    for (moment, has_come) in moments {
        wait_for(moment, LONG, || Ok(has_come()?.then_some(())))?;
        system.kill_coordinator()?;
        let ended = ledger.tries()?.values().filter(|(_, ended)| *ended > 0).count();
        ensure!(ended < LARGE_RUNS * LARGE_STEPS, "all steps had ended when {moment}: no run was at work");
        system.start_coordinator()?;
    }
    wait_for("all runs succeed", LONG, || {
        let listed = system.json(&["run", "list", "--state", "succeeded"])?.to_string();
        Ok(runs.iter().all(|run| listed.contains(run.as_str())).then_some(()))
    })?;
    let tries = ledger.tries()?;
    ensure!(tries.len() == LARGE_RUNS * LARGE_STEPS, "{} steps were done", tries.len());
    ensure!(tries.values().all(|&tries| tries == (1, 1)), "its agent was never lost, and yet: {tries:?}");
    let segments = segments(&log)?;
    ensure!(segments.len() == 2, "the log has {segments:?}");
    verify_journal(&mut system)
}

#[test]
fn an_agent_killed_in_the_middle_of_a_step_leaves_a_question_not_a_guess() -> Result<()> {
    let mut system = System::start()?;
    let ledger = Ledger::new(&system)?;
    let allow = ledger.allow.clone();
    system.start_agent("infra-1", "infra", &["--allow", path(&allow)?])?;
    fs::remove_file(&ledger.gate)?;
    let playbook = system.submit(&playbook("held", 2, "held"))?;
    let run = system.start_run(&playbook)?;
    wait_for("the first step begins", SOON, || Ok((!ledger.tries()?.is_empty()).then_some(())))?;
    system.agents.get_mut("infra-1").context("the agent runs")?.kill()?;
    system.start_agent("infra-1", "infra", &["--allow", path(&allow)?])?;
    // The next process found the former one dead with all its children: the attempt has ended, and nobody knows how.
    let waiting = system.wait_run(&run, &["WAITING"], SOON)?;
    ensure!(waiting["steps"][0]["state"] == "STATE_ASKING", "{waiting}");
    fs::write(&ledger.gate, "open")?;
    ensure!(
        ledger.tries()?.values().all(|(begun, ended)| (*begun, *ended) == (1, 0)),
        "the child outlived its agent: {:?}",
        ledger.tries()?
    );
    let explained = system.cli(&["run", "explain", &run])?;
    ensure!(String::from_utf8_lossy(&explained.stdout).contains("s1"), "{explained:?}");
    ensure!(
        system
            .cli(&["step", "resolve", &run, "s1", "retry", "--reason", "the ledger has no end of it"])?
            .status
            .success()
    );
    system.wait_run(&run, &["SUCCEEDED"], LONG)?;
    ledger.agrees_with(&run, &system.events(&run)?)?;
    verify_journal(&mut system)
}

#[test]
fn nats_is_killed_and_comes_back_in_a_busy_run() -> Result<()> {
    let mut system = System::start()?;
    let ledger = Ledger::new(&system)?;
    system.start_agent("infra-1", "infra", &["--slots", "4", "--allow", path(&ledger.allow)?])?;
    let playbook = system.submit(&playbook("cut", 8, "quick"))?;
    let runs = (0..6).map(|_| system.start_run(&playbook)).collect::<Result<Vec<_>>>()?;
    wait_for("work begins", SOON, || Ok((ledger.tries()?.len() > 2).then_some(())))?;
    system.nats.kill()?;
    system.nats.start_again()?;
    for run in &runs {
        system.wait_run(run, &["SUCCEEDED"], LONG)?;
        ledger.agrees_with(run, &system.events(run)?)?;
    }
    verify_journal(&mut system)
}
