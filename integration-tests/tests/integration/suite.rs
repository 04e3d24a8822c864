//! Suites: pytest itself, and scripts that do what suites do when they go wrong.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use muster_agent::{Action, ActionError, Done, allow::Allow};
use muster_integration::suite::Run;
use muster_integration_tests::{lab::wait_until, process::checkout};
use serde_json::{Value, json};

use crate::{allowed, folder, permanent, retry, trial};

const GOOD: &str =
    r#"<testsuites><testsuite name="s"><testcase classname="pool" name="opens"/></testsuite></testsuites>"#;

async fn run(allow: Allow, with: &Value) -> Result<Done, ActionError> {
    Run::new(allow).run(&trial().context(), with).await
}

/// Pytest on three tests: one passes, one fails, one is skipped.
fn pytest(dir: &Path) -> Allow {
    let python = checkout().join("target/tools/bin/python");
    let known = std::process::Command::new(&python).args(["-c", "import pytest"]).status();
    assert!(known.is_ok_and(|status| status.success()), "pytest is missing: integration-tests/scripts/install.sh");
    let tests = "import os, pytest\ndef test_good(): assert os.environ['MODE'] == 'full'\ndef test_bad(): assert 1 < 0\n\
                 @pytest.mark.skip(reason='not here')\ndef test_off(): pass\n";
    fs::write(dir.join("test_pool.py"), tests).unwrap();
    let script = format!("#!/bin/sh\nexec {} -m pytest -q -p no:cacheprovider \"$@\"\n", python.display());
    allowed(dir, "pool-suite", &script)
}

#[tokio::test]
async fn pytest_is_run_and_its_failures_are_figures() {
    let (_dir, dir) = folder();
    let allow = pytest(&dir);
    let with = json!({
        "suite": "pool-suite", "args": ["--junitxml={report}"], "folder": dir,
        "env": {"MODE": "full", "PYTHONDONTWRITEBYTECODE": "1"},
    });
    let done = run(allow.clone(), &with).await.unwrap();
    let output = &done.output;
    assert_eq!(output["pass_rate_percent"], 50.0, "{output}");
    assert_eq!(["total", "passed", "failed", "skipped"].map(|f| output[f].as_u64().unwrap()), [3, 1, 1, 1]);
    assert_eq!(output["failures"][0]["name"], "test_pool::test_bad");
    assert!(output["failures"][0]["message"].as_str().unwrap().contains("assert 1 < 0"), "{output}");
    assert_eq!((&output["exit_code"], output["duration_ms"].as_u64().unwrap() > 0), (&json!(1), true));
    let rate = done.observations.iter().find(|o| o.name == "pass_rate").unwrap();
    assert_eq!((rate.value, rate.unit.as_str(), rate.samples), (50.0, "percent", Some(2)));

    let mut strict = with.clone();
    strict["expect"] = json!({"pass_rate_percent": 100});
    let (message, output) = permanent(run(allow.clone(), &strict).await);
    assert!(message.contains("test_pool::test_bad") && output["failed"] == 1, "{message}");
    strict["expect"] = json!({"ran": 3});
    assert!(permanent(run(allow, &strict).await).0.contains("at least 3"));
}

#[tokio::test]
async fn a_suite_that_collects_nothing_is_no_success() {
    let (_dir, dir) = folder();
    let allow = pytest(&dir);
    let with = json!({
        "suite": "pool-suite", "args": ["--junitxml={report}", "-k", "nothing_is_called_so"], "folder": dir,
        "env": {"MODE": "full", "PYTHONDONTWRITEBYTECODE": "1"},
    });
    let (message, output) = permanent(run(allow, &with).await);
    assert!(message.contains("exit code 5") && output["pass_rate_percent"] == 0.0, "{message}");
}

#[tokio::test]
async fn no_report_a_broken_one_and_one_of_before_are_errors() {
    let (_dir, dir) = folder();
    let report = dir.join("junit.xml");
    for (body, why) in [
        ("exit 3", "there is no report"),
        ("printf '<testsuites><testsuite>' >\"$1\"", "breaks off"),
        ("echo all is well >\"$1\"", "no JUnit report"),
        ("head -c 40000000 /dev/zero >\"$1\"", "larger than"),
    ] {
        let allow = allowed(&dir, "suite", &format!("#!/bin/sh\necho said >&2\n{body}\n"));
        let (message, _) = permanent(run(allow, &json!({"suite": "suite", "args": ["{report}"]})).await);
        assert!(message.contains(why) && message.contains("said"), "{message}");
    }
    fs::write(&report, GOOD).unwrap();
    let with = json!({"suite": "suite", "report": report});
    let (message, _) = permanent(run(allowed(&dir, "suite", "#!/bin/sh\nexit 0\n"), &with).await);
    assert!(message.contains("of an earlier run"), "{message}");
    let again = format!("#!/bin/sh\nprintf '%s' '{GOOD}' >{}\n", report.display());
    assert_eq!(run(allowed(&dir, "suite", &again), &with).await.unwrap().output["passed"], 1);
    let crashed = format!("{again}kill -9 $$\n");
    let (message, _) = permanent(run(allowed(&dir, "suite", &crashed), &with).await);
    assert!(message.contains("though no test failed"), "{message}");
}

#[tokio::test]
async fn a_suite_that_hangs_is_ended_with_all_it_started() {
    let (_dir, dir) = folder();
    let pids = dir.join("pids");
    let script = format!("#!/bin/sh\nsleep 1000 &\necho $$ $! >{0}.new; mv {0}.new {0}\nwait\n", pids.display());
    let allow = allowed(&dir, "suite", &script);
    let (action, trial, start) = (Run::new(allow), trial(), Instant::now());
    let hanging = json!({"suite": "suite", "args": ["{report}"], "timeout_ms": 3000});
    let (message, _) = retry(action.run(&trial.context(), &hanging).await);
    assert!(message.contains("longer than 3000 ms"), "{message}");
    let text = fs::read_to_string(&pids).unwrap();
    gone(&text);
    fs::remove_file(&pids).unwrap();

    let long = json!({"suite": "suite", "args": ["{report}"], "timeout_ms": 600_000});
    let ctx = trial.context();
    let stop = async {
        while !pids.exists() && start.elapsed() < Duration::from_secs(60) {
            tokio::task::yield_now().await;
        }
        trial.cancel();
    };
    let (ended, ()) = tokio::join!(action.run(&ctx, &long), stop);
    assert!(retry(ended).0.contains("stopped"));
    gone(&fs::read_to_string(&pids).unwrap());
}

fn gone(pids: &str) {
    for pid in pids.split_whitespace() {
        wait_until(Duration::from_secs(20), || {
            anyhow::ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} still runs");
            Ok(())
        })
        .unwrap();
    }
}

#[tokio::test]
async fn only_what_the_host_allows_is_started() {
    let (_dir, dir) = folder();
    let mark = dir.join("mark");
    let script = format!("#!/bin/sh\ntouch {}\n", mark.display());
    let with = json!({"suite": "suite", "args": ["{report}"]});
    let (message, _) = permanent(run(Allow::default(), &with).await);
    assert!(message.contains("allow.toml"), "{message}");
    let allow = allowed(&dir, "suite", &script);
    fs::write(dir.join("suite"), format!("{script}exit 0\n")).unwrap();
    let (message, _) = permanent(run(allow, &with).await);
    assert!(message.contains("not the one in allow.toml") && !mark.exists(), "{message}");
    let (message, _) = permanent(run(Allow::default(), &json!({"suite": "suite"})).await);
    assert!(message.contains("{report}"), "{message}");
}
