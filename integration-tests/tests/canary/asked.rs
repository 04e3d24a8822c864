//! Everything that can be asked: each command of the command line, each method of the API, and the figures.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use muster_coordinator::api::auth::METHODS;
use muster_integration_tests::{
    canary::{Seen, holds},
    process::{binary, checkout},
    system::System,
};

/// Commands that are not asked here, and where what they say is searched, or why they know nothing.
const LEFT_OUT: [(&str, &str); 3] = [
    ("serve", "what it says is in coordinator.log, which is searched as every file is"),
    ("agent run", "what it says is in a log of its name, which is searched as every file is"),
    ("bench", "it measures a system of its own, whose actions do nothing and know no secret"),
];

/// Methods that nobody has to call, since their answers hold no word of a run, an agent or a playbook.
const WORDLESS: [&str; 5] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

const FORMATS: [&str; 3] = ["table", "json", "yaml"];

/// Asks, and keeps what is said.
pub(crate) struct Asked {
    commands: BTreeSet<String>,
    done: BTreeSet<String>,
    /// Where the API is asked: `host:port`.
    api: String,
    /// Where the figures are: `host:port`.
    metrics: String,
    pub(crate) seen: Seen,
}

impl Asked {
    pub(crate) fn new(api: &str, metrics: &str) -> Result<Self> {
        let (api, metrics) = (api.to_owned(), metrics.to_owned());
        Ok(Self { commands: commands()?, done: BTreeSet::new(), api, metrics, seen: Seen::default() })
    }

    /// The answer, whatever it is.
    pub(crate) fn tell(&mut self, system: &System, when: &str, words: &[&str]) -> Result<Output> {
        let path = |length: usize| words.get(..length).map(|words| words.join(" "));
        let command = [path(2), path(1)].into_iter().flatten().find(|path| self.commands.contains(path));
        self.done.insert(command.with_context(|| format!("{words:?} is no command of docs/reference/cli.md"))?);
        let mut muster = Command::new(binary("muster", "muster"));
        system.environment(&mut muster);
        let output = muster.args(words).env("MUSTER_SERVER", format!("http://{}", self.api)).output()?;
        self.seen.output(&format!("{when}: {words:?}"), &output);
        Ok(output)
    }

    /// The answer; it must be one.
    pub(crate) fn ask(&mut self, system: &System, when: &str, words: &[&str]) -> Result<String> {
        let output = self.tell(system, when, words)?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The answers in all formats.
    pub(crate) fn look(&mut self, system: &System, when: &str, words: &[&str]) -> Result<()> {
        FORMATS.iter().try_for_each(|format| self.ask(system, when, &[words, &["-o", format]].concat()).map(drop))
    }

    /// Everything that can be asked of a run and changes nothing.
    pub(crate) fn look_at(&mut self, system: &System, when: &str, run: &str) -> Result<()> {
        let questions: [&[&str]; 8] = [
            &["run", "get", run],
            &["run", "events", run, "--limit", "0"],
            &["run", "explain", run],
            &["run", "logs", run],
            &["run", "list"],
            &["agent", "list"],
            &["agent", "get", "infra-1"],
            &["milestone", "list"],
        ];
        questions.into_iter().try_for_each(|words| self.look(system, when, words))?;
        self.figures(when).map(drop)
    }

    /// The figures as Prometheus gets them.
    pub(crate) fn figures(&mut self, when: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.metrics)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut figures = Vec::new();
        stream.read_to_end(&mut figures)?;
        ensure!(holds(&figures, b"muster_log_lines_kept_total"), "logs are counted");
        let text = String::from_utf8_lossy(&figures).into_owned();
        self.seen.0.push((format!("{when}: metrics"), figures));
        Ok(text)
    }

    /// A call by a stock client, whose answer is a stream: as much as comes at once.
    pub(crate) fn grpcurl(&mut self, token: &str, method: &str, request: &str) -> Result<()> {
        let bearer = format!("authorization: Bearer {token}");
        let mut command = Command::new("grpcurl");
        command.args(["-plaintext", "-H", &bearer, "-max-time", "2", "-d", request, &self.api, method]);
        let output = command.output().context("grpcurl does not start: make tools")?;
        self.seen.output(method, &output);
        Ok(())
    }

    /// A command or method that is new is asked here, or stands in one of the short lists above.
    pub(crate) fn nothing_is_left_out(&self, figures: &str) -> Result<()> {
        let left_out: BTreeSet<_> = LEFT_OUT.iter().map(|(command, _)| (*command).to_owned()).collect();
        let missing: Vec<_> = self.commands.difference(&self.done).filter(|c| !left_out.contains(*c)).collect();
        ensure!(
            missing.is_empty(),
            "these commands are not asked, and the canary may be in what they say: {missing:?}"
        );
        let stale: Vec<_> = left_out.iter().filter(|c| !self.commands.contains(*c) || self.done.contains(*c)).collect();
        ensure!(stale.is_empty(), "these are no commands, or are asked: {stale:?}");
        let mut answers: BTreeMap<&str, f64> = BTreeMap::new();
        for line in figures.lines().filter(|line| line.starts_with("muster_api_requests_total{")) {
            let method = line.split("method=\"").nth(1).and_then(|rest| rest.split('"').next()).context("a method")?;
            let count: f64 = line.rsplit(' ').next().context("a count")?.parse()?;
            *answers.entry(method).or_default() += count;
        }
        let silent = |method: &&str| answers.get(method).is_none_or(|count| *count == 0.0);
        let silent: Vec<_> =
            METHODS.iter().map(|(method, _)| *method).filter(silent).filter(|m| !WORDLESS.contains(m)).collect();
        ensure!(silent.is_empty(), "nobody has seen an answer of {silent:?}");
        Ok(())
    }
}

/// All commands that do something, from the command line's own reference.
fn commands() -> Result<BTreeSet<String>> {
    let page = fs::read_to_string(checkout().join("docs/reference/cli.md"))?;
    let all: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## muster ")).collect();
    ensure!(all.len() > 40, "the reference has {} commands", all.len());
    let is_group = |command: &str| all.iter().any(|other| other.starts_with(&format!("{command} ")));
    Ok(all.iter().filter(|command| !is_group(command)).map(|command| (*command).to_owned()).collect())
}
