//! Every command in the README and the documents is run here, as it stands there, against a system of its own.
//!
//! A block that begins with ```` ```sh ```` is run; all blocks of one document are one bash script with `set -e`. Only four
//! things are other than they read: ports are free ones, the binary is the one under test, nothing is built or installed for it,
//! and a placeholder stands for the run that was started.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use cargo_metadata::MetadataCommand;
use muster_integration_tests::{
    process::{Process, binary, checkout, tail, wait_for},
    sweep::Folder,
    system::free_address,
};

/// The blocks of a document that are commands.
fn commands(document: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(checkout().join(document)).with_context(|| document.to_owned())?;
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match (&mut open, line.trim_end()) {
            (None, "```sh") => open = Some(String::new()),
            (Some(block), "```") => {
                blocks.push(std::mem::take(block));
                open = None;
            }
            (Some(block), line) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, _) => {}
        }
    }
    ensure!(open.is_none(), "{document} has a block that does not end");
    ensure!(!blocks.is_empty(), "{document} has no commands");
    Ok(blocks)
}

/// Run the blocks as one script in a folder that has the checkout's playbooks and documents; what it printed.
fn run(document: &str, blocks: &[String]) -> Result<String> {
    let muster = binary("muster", "muster");
    let dir = Folder::of(tempfile::tempdir()?);
    for folder in ["playbooks", "docs", "integration-tests"] {
        std::os::unix::fs::symlink(checkout().join(folder), dir.path().join(folder))?;
    }
    let mut script = String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n");
    script.push_str(&blocks.join("\n"));
    let api = free_address()?;
    let script = script
        .replace("127.0.0.1:7400", &api)
        .replace("127.0.0.1:4222", &free_address()?)
        .replace("-p 4222", "-p $NATS_PORT")
        .replace("cargo run --release --", "muster")
        .replace("cargo build --release\n", "")
        .replace("make demo\n", "")
        .replace("make test\n", "");
    let nats_port =
        script.split("nats://127.0.0.1:").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    let file = dir.path().join("commands.sh");
    fs::write(&file, &script)?;
    let tools = checkout().join("target/tools/bin");
    let path = [muster.parent().unwrap_or_else(|| Path::new("")), &tools]
        .iter()
        .map(|p| p.display().to_string())
        .chain(std::env::var("PATH"))
        .chain(["/usr/sbin".to_owned()])
        .collect::<Vec<_>>()
        .join(":");
    let mut process = Process::start(
        "commands",
        dir.path(),
        Command::new("bash")
            .arg(&file)
            .current_dir(dir.path())
            .env("PATH", path)
            .env("HOME", dir.path())
            .env("MUSTER_SERVER", format!("http://{api}"))
            .env("MUSTER_LISTEN", &api)
            .env("NATS_PORT", nats_port.unwrap_or("0"))
            .env("NO_COLOR", "1"),
    )?;
    wait_for(&format!("the commands of {document} end"), Duration::from_secs(180), || {
        Ok((!process.is_running()).then_some(()))
    })
    .with_context(|| tail(&process.output()))?;
    let status = process.terminate(Duration::from_secs(1))?;
    let output = process.output();
    ensure!(status.success(), "{document}: {status}\n{}", tail(&output));
    Ok(output)
}

#[test]
fn the_walk_of_the_readme() -> Result<()> {
    let output = run("README.md", &commands("README.md")?)?;
    for expected in ["muster.v1.RunService", "STATE_REACHED", "STATE_SUCCEEDED"] {
        ensure!(output.contains(expected), "the walk does not show {expected}:\n{output}");
    }
    Ok(())
}

/// Keys for everybody, and what is said with them.
#[test]
fn the_page_about_nats_can_be_followed() -> Result<()> {
    // The server is ended with the commands: not before it has read what the last of them has told it to read.
    let reloaded = "timeout 30 sh -c 'until grep -q \"Reloaded server\" commands.log; do sleep 0.1; done'\n".to_owned();
    let blocks: Vec<_> = commands("docs/nats.md")?.into_iter().chain([reloaded]).collect();
    let output = run("docs/nats.md", &blocks)?;
    ensure!(output.contains("infra-1") && output.contains("ready"), "the agent registers:\n{}", tail(&output));
    ensure!(output.contains("one has this data directory, and one answers over NATS"), "{}", tail(&output));
    ensure!(output.contains("renewed") && output.contains("Reloaded server configuration"), "{}", tail(&output));
    Ok(())
}

/// A stock client reads what is told of a run.
#[test]
fn the_page_on_events_can_be_followed() -> Result<()> {
    let output = run("docs/events.md", &commands("docs/events.md")?)?;
    for kind in ["agent_registered", "run_started", "phase_ended", "milestone_reached", "run_ended"] {
        ensure!(output.contains(&format!(" dev.muster.v1.{kind} namespaces/default/")), "{kind}:\n{}", tail(&output));
    }
    Ok(())
}

/// The journal of the README's walk, read as the page says once the coordinator has stopped.
#[test]
fn the_journal_is_read_as_its_page_says() -> Result<()> {
    let stop = "kill %2\nwait %2\nexport MUSTER_DATA_DIR=\"$PWD/muster-data\"\ncd muster-data\n".to_owned();
    let reading = commands("docs/journal.md")?;
    let reading = reading.iter().map(|block| {
        let block =
            block.replace("run/0199…'", "run/'\"${run##*/}\"''").replace("run/0199…\"", "run/'\"${run##*/}\"'\"");
        block.replace("run/0199…", "\"run/${run##*/}\"")
    });
    let blocks: Vec<_> = commands("README.md")?.into_iter().chain([stop]).chain(reading).collect();
    let output = run("docs/journal.md", &blocks)?;
    let hash = output.lines().find_map(|line| line.strip_suffix("  -")).context("sha256sum printed a hash")?;
    let prev = format!("\"prev\":\"{}\"", &hash[..32]);
    ensure!(output.contains(&prev), "no record carries {prev}:\n{}", tail(&output));
    ensure!(output.contains("\"run_started\"]"), "the first export shows types of events:\n{}", tail(&output));
    Ok(())
}

/// The page for whoever writes an agent: its system, its playbook, its run.
#[test]
fn the_page_for_agents_can_be_followed() -> Result<()> {
    let page = fs::read_to_string(checkout().join("docs/agents.md"))?;
    let playbook = page.split("```yaml\n").filter_map(|rest| rest.split("```").next());
    let playbook = playbook.filter(|block| block.contains("kind: Playbook")).last().context("a playbook is shown")?;
    let [system, run_it] =
        <[String; 2]>::try_from(commands("docs/agents.md")?).map_err(|b| anyhow!("{} blocks", b.len()))?;
    let between = format!("cat >greeting.yaml <<'YAML'\n{playbook}YAML\n");
    let run_it = run_it.replace(" RUN ", " \"$(muster run list -o json | jq -r '.runs[0].runId')\" ");
    let output = run("docs/agents.md", &[system.replace("apt-get install nats-server\n", ""), between, run_it])?;
    ensure!(output.contains("State:    succeeded"), "the run is watched to its end:\n{}", tail(&output));
    Ok(())
}

/// The page on releases: its command needs no system.
#[test]
fn the_playbook_of_the_page_on_releases_passes_lint() -> Result<()> {
    let output = run("docs/deployment.md", &commands("docs/deployment.md")?)?;
    ensure!(output.contains("blue-green-release.yaml: nothing found"), "{output}");
    Ok(())
}

/// A worked example tells to run tests; each of them is there, and so is run with all others.
#[test]
fn the_tests_that_the_examples_name_are_there() -> Result<()> {
    let metadata = MetadataCommand::new().manifest_path(checkout().join("Cargo.toml")).no_deps().exec()?;
    let mut seen = 0;
    for page in fs::read_dir(checkout().join("docs/examples"))? {
        let page = page?.path();
        let text = fs::read_to_string(&page)?;
        for line in text.lines().filter_map(|line| line.strip_prefix("$ ")) {
            let words: Vec<_> = line.split(' ').filter(|word| !word.contains('=')).collect();
            ensure!(words.starts_with(&["cargo", "test", "-p"]), "{}: {line:?} is run by nobody", page.display());
            let package = metadata.packages.iter().find(|p| p.name == words[3]).with_context(|| line.to_owned())?;
            let target = words.iter().position(|word| *word == "--test").map(|at| words[at + 1]);
            let is_there = target.is_none_or(|target| package.targets.iter().any(|t| t.is_test() && t.name == target));
            ensure!(is_there, "{}: there is no such test: {line}", page.display());
            seen += 1;
        }
    }
    ensure!(seen >= 3, "only {seen} commands were found");
    Ok(())
}

/// A block that begins with ```` ```rust file=path ```` stands in that file as it stands in the page.
#[test]
fn blocks_that_name_a_file_stand_in_it() -> Result<()> {
    let mut seen = 0;
    for page in fs::read_dir(checkout().join("docs/examples"))? {
        let page = page?.path();
        let text = fs::read_to_string(&page)?;
        for block in text.split("\n```").skip(1) {
            let Some((head, body)) = block.split_once('\n') else { continue };
            let Some(file) = head.split(' ').find_map(|word| word.strip_prefix("file=")) else { continue };
            let source = fs::read_to_string(checkout().join(file))
                .with_context(|| format!("{} names {file}", page.display()))?;
            ensure!(source.contains(body), "{} shows what is not in {file}:\n{body}", page.display());
            seen += 1;
        }
    }
    ensure!(seen >= 10, "only {seen} blocks were found");
    Ok(())
}
