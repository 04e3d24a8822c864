//! Law 1, seen from outside: nothing leaves the coordinator before what it follows from is on disk.

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{
    system::{SOON, System, path},
    trace,
};

#[test]
fn every_task_and_every_recorded_follows_its_fdatasync() -> Result<()> {
    ensure!(Command::new("strace").arg("-V").output().is_ok(), "strace is missing: apt-get install strace");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("trace");
    let mut system =
        System::start_under(&["strace", "-f", "-xx", "-s", "4194304", "-e", trace::WATCH, "-o", path(&file)?])?;
    system.start_agent("bench-1", "bench", &[])?;
    let mut steps = String::new();
    for n in 1..=10 {
        let needs = if n % 5 == 1 { String::new() } else { format!(", needs: [s{}]", n - 1) };
        writeln!(steps, "        - {{id: s{n}, agent: {{role: bench}}, action: noop.run, with: {{}}{needs}}}")?;
    }
    let playbook = system.submit(&format!(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: law, owner: ops}}\nspec:\n  phases:\n    - id: all\n      steps:\n{steps}"
    ))?;
    let runs = (0..3).map(|_| system.start_run(&playbook)).collect::<Result<Vec<_>>>()?;
    for run in &runs {
        system.wait_run(run, &["SUCCEEDED"], SOON)?;
    }
    system.coordinator.take().context("the coordinator runs")?.terminate(SOON)?;
    let checked = trace::acts_follow_syncs(&fs::read_to_string(&file)?)?;
    ensure!(checked.tasks >= 30, "30 tasks were sent, the trace shows {checked:?}");
    ensure!(checked.recorded >= 30, "30 reports were answered, the trace shows {checked:?}");
    Ok(())
}
