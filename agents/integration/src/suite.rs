//! `tests.run`: starts a test suite that this agent's host allows, and reads its JUnit XML.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use muster_agent::{
    Action, ActionError, ActionSpec, Context, Done,
    allow::Allow,
    guard::{self, Output},
};
use muster_bus::message::Scope;
use muster_kit::{
    bound::blocking,
    measure::{observation, percent},
    params, process,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::junit;

/// Runs a suite to its end. Tests that fail are a figure for the gate, not a failure of the action, unless `expect` says so. A
/// suite that does not end, writes no report or a broken one, or ends badly though its report knows of no failure, is a failure.
pub struct Run {
    allow: Allow,
}

/// Parameters of `tests.run`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SuiteParams {
    /// Its name in the agent's `allow.toml`.
    pub suite: String,
    /// Its arguments; `{report}` in them is the path at which the report is expected.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub args: Vec<String>,
    /// Variables of its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absolute path of the folder in which it works; `/` when absent.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// Absolute path at which the suite writes its JUnit XML; a new file of its own for each attempt when absent.
    #[serde(default)]
    pub report: Option<PathBuf>,
    /// How long it may take, in milliseconds.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 1, max = 21_600_000))]
    pub timeout_ms: u64,
    /// What makes the action fail.
    #[serde(default)]
    pub expect: Expect,
}

/// What the report must say; what is absent is not looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Of the tests that ran, so many percent passed at least.
    #[serde(default)]
    pub pass_rate_percent: Option<f64>,
    /// So many tests ran at least.
    #[serde(default)]
    pub ran: Option<u64>,
}

fn ten_minutes() -> u64 {
    600_000
}

/// Output of `tests.run`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SuiteOutput {
    /// Passed of those that ran (not skipped), in percent, to two places; 0 when none ran.
    pub pass_rate_percent: f64,
    /// Tests in the report.
    pub total: u64,
    /// Those that passed.
    pub passed: u64,
    /// Those that failed or broke.
    pub failed: u64,
    /// Those that were skipped.
    pub skipped: u64,
    /// Of the passed ones: only when tried again.
    pub flaky: u64,
    /// The first 50 failures.
    pub failures: Vec<FailedTest>,
    /// How long the suite took, in milliseconds.
    pub duration_ms: u64,
    /// How it ended.
    pub exit_code: i32,
}

/// A test that failed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FailedTest {
    /// `classname::name`.
    pub name: String,
    /// The first line of what it said.
    pub message: String,
}

const FAILURES: usize = 50;
/// No report is larger, in bytes.
const LARGEST: u64 = 32 * 1024 * 1024;

#[async_trait]
impl Action for Run {
    fn spec(&self) -> ActionSpec {
        ActionSpec {
            // What a suite leaves behind is not known here, but it is made to be run again.
            idempotent: true,
            scope: Scope::Host,
            ..params::spec::<SuiteParams, SuiteOutput>(
                "tests.run",
                "Run a test suite that the agent allows, and read its JUnit XML: pass rate, totals, failures.",
            )
        }
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: SuiteParams = params::read(with)?;
        with.validate()?;
        let place = Place::of(&with)?;
        let before = Stamp::of(&place.report);
        ctx.progress(&format!("running {}", with.suite), None);
        let start = Instant::now();
        let ended = self.suite(ctx, &with, &place.report).await?;
        let duration = start.elapsed();
        let (report, suite) = (place.report.clone(), with.suite.clone());
        let said = if ended.stderr.trim().is_empty() { &ended.stdout } else { &ended.stderr };
        let counts = blocking(move || read(&report, before)).await.map_err(|e| {
            ActionError::permanent(format!("{e}; the suite {suite:?} {}", guard::ended(ended.code, said)))
        })?;
        drop(place);
        judged(&with, &output(counts, &ended, duration))
    }
}

impl Run {
    /// May start what `allow` lists.
    pub fn new(allow: Allow) -> Self {
        Self { allow }
    }

    async fn suite(&self, ctx: &Context, with: &SuiteParams, report: &Path) -> Result<Output, ActionError> {
        let place = report.display().to_string();
        let args = with.args.iter().map(|arg| arg.replace("{report}", &place));
        let mut command = process::allowed(ctx, &self.allow, &with.suite).await?.args(args);
        if let Some(folder) = &with.folder {
            command = command.folder(folder);
        }
        command = with.env.iter().fold(command, |command, (name, value)| command.env(name, value));
        let limit = Duration::from_millis(with.timeout_ms);
        match tokio::time::timeout(limit, command.output()).await {
            Ok(ended) => ended,
            Err(_) => Err(ActionError::retry(format!(
                "the suite {:?} was ended: it took longer than {} ms; give it more time, or find what hangs",
                with.suite, with.timeout_ms
            ))),
        }
    }
}

impl SuiteParams {
    fn validate(&self) -> Result<(), ActionError> {
        if self.timeout_ms == 0 || self.timeout_ms > 21_600_000 {
            return Err(ActionError::permanent("timeout_ms: it is not within 1 to 21600000"));
        }
        self.folder.iter().try_for_each(|folder| params::absolute("folder", folder))?;
        self.report.iter().try_for_each(|report| params::absolute("report", report))?;
        if self.report.is_none() && !self.args.iter().any(|arg| arg.contains("{report}")) {
            return Err(ActionError::permanent(
                "report: where does the suite write its JUnit XML? Name the path, or give it {report} in args",
            ));
        }
        Ok(())
    }
}

/// Where the report will be; a folder of its own goes away with it.
struct Place {
    report: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    fn of(with: &SuiteParams) -> Result<Self, ActionError> {
        if let Some(report) = &with.report {
            return Ok(Self { report: report.clone(), _folder: None });
        }
        let folder = tempfile::Builder::new().prefix("muster-suite-").tempdir();
        let folder = folder.map_err(|e| ActionError::retry(format!("no folder for the report can be made: {e}")))?;
        Ok(Self { report: folder.path().join("junit.xml"), _folder: Some(folder) })
    }
}

/// Which file was there: a report of an earlier run must not be taken for this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { inode: meta.ino(), bytes: meta.len(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

fn read(report: &Path, before: Option<Stamp>) -> Result<junit::Counts, ActionError> {
    let name = report.display();
    let wrong = |why: &dyn std::fmt::Display| ActionError::permanent(format!("{name} is no JUnit report: {why}"));
    let after = Stamp::of(report);
    if after.is_none() {
        return Err(ActionError::permanent(format!("there is no report at {name}")));
    }
    if after == before {
        return Err(ActionError::permanent(format!("the report at {name} is of an earlier run")));
    }
    let mut text = String::new();
    let file = File::open(report).map_err(|e| wrong(&e))?;
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(|e| wrong(&e))?;
    if text.len() as u64 > LARGEST {
        return Err(wrong(&format!("it is larger than {LARGEST} bytes")));
    }
    junit::read(&text, FAILURES).map_err(|why| wrong(&why))
}

fn output(counts: junit::Counts, ended: &Output, duration: Duration) -> SuiteOutput {
    let ran = counts.passed + counts.failed;
    let failures = counts.failures.into_iter().map(|f| FailedTest { name: f.name, message: f.message }).collect();
    SuiteOutput {
        pass_rate_percent: percent(counts.passed, ran),
        total: ran + counts.skipped,
        passed: counts.passed,
        failed: counts.failed,
        skipped: counts.skipped,
        flaky: counts.flaky,
        failures,
        duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        exit_code: ended.code,
    }
}

fn judged(with: &SuiteParams, output: &SuiteOutput) -> Result<Done, ActionError> {
    let refused = |message: String| ActionError::Permanent { message, output: Some(params::output(output)) };
    let (suite, ran) = (&with.suite, output.passed + output.failed);
    if output.exit_code != 0 && output.failed == 0 {
        let code = output.exit_code;
        return Err(refused(format!("the suite {suite:?} ended with exit code {code}, though no test failed")));
    }
    if let Some(wanted) = with.expect.ran.filter(|wanted| ran < *wanted) {
        return Err(refused(format!("{ran} tests of the suite {suite:?} ran, at least {wanted} were wanted")));
    }
    if let Some(wanted) = with.expect.pass_rate_percent.filter(|wanted| output.pass_rate_percent < *wanted) {
        let (rate, names) = (output.pass_rate_percent, output.failures.iter().take(5).map(|f| f.name.as_str()));
        let names = names.collect::<Vec<_>>().join(", ");
        return Err(refused(format!(
            "{rate} percent of the suite {suite:?} passed, {wanted} were wanted; failed: {names}"
        )));
    }
    let seen = |name: &str, value: f64, unit: &str, of: u64| observation("tests.run", name, value, unit, Some(of));
    let seconds = Duration::from_millis(output.duration_ms).as_secs_f64();
    let failed = u32::try_from(output.failed).map_or(f64::MAX, f64::from);
    let observations = vec![
        seen("pass_rate", output.pass_rate_percent, "percent", ran),
        seen("failed", failed, "count", ran),
        seen("duration", seconds, "s", 1),
    ];
    Ok(Done { output: params::output(output), observations })
}
