//! A session: commands in a folder of their own, written down as a person would see them.

#![allow(dead_code, reason = "each test file uses another part")]
#![allow(clippy::unwrap_used, reason = "tests only")]

pub(crate) mod fake;
pub(crate) mod server;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// What a transcript says instead of what changes from run to run.
const FILTERS: &[(&str, &str)] = &[
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[47][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "<id>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
    (r"(?m)\d\d:\d\d:\d\dZ ", "<clock> "),
    (r"127\.0\.0\.1:\d{4,5}", "127.0.0.1:<port>"),
    (r"sha256:[0-9a-f]{64}", "sha256:<digest>"),
    (r"/[^ \n]*/\.tmp\w+", "<home>"),
    (r"muster_[0-9a-f]{12}_[0-9a-f]{64}", "<secret>"),
    (r"\b[0-9a-f]{12}\b", "<token>"),
    (r"\bU[A-Z2-7]{55}\b", "<key>"),
    (r" \(os error \d+\)", ""),
];

/// Commands, one after another, with what they said.
pub(crate) struct Session {
    home: tempfile::TempDir,
    env: BTreeMap<String, String>,
    text: String,
}

impl Session {
    /// In an empty folder, with an empty environment.
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), env: BTreeMap::new(), text: String::new() }
    }

    /// Set a variable for all commands that follow.
    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    /// Put a file into the folder.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Make a folder.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Whether there is a file or folder of this name.
    pub(crate) fn is_there(&self, name: &str) -> bool {
        self.home.path().join(name).exists()
    }

    /// Change who may do what with a file.
    pub(crate) fn mode(&self, name: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(self.home.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A command of this session, not started yet.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(args).current_dir(self.home.path()).env_clear().envs(&self.env);
        command.env("HOME", self.home.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Run a command without writing it down.
    pub(crate) fn quietly(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Run a command, and write down what it said and how it ended.
    pub(crate) fn run(&mut self, args: &[&str]) -> Output {
        let output = self.quietly(args);
        writeln!(self.text, "$ muster {}", args.join(" ")).unwrap();
        self.text += &String::from_utf8_lossy(&output.stdout);
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            writeln!(self.text, "! {line}").unwrap();
        }
        writeln!(self.text, "[exit {}]\n", output.status.code().unwrap()).unwrap();
        output
    }

    /// Run a command that starts a run, and write it down; the run's id.
    pub(crate) fn start(&mut self, args: &[&str]) -> String {
        let output = self.run(args);
        let text = String::from_utf8(output.stdout).unwrap();
        let id =
            text.lines().find_map(|line| line.strip_prefix("Run:")).unwrap_or_else(|| panic!("no run: {}", self.text));
        id.trim().to_owned()
    }

    /// Compare all that was written down with the transcript of this name.
    pub(crate) fn check(&self, name: &str) {
        let mut settings = insta::Settings::clone_current();
        settings.set_omit_expression(true);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_snapshot_path("../transcripts");
        for (pattern, instead) in FILTERS {
            settings.add_filter(pattern, *instead);
        }
        settings.bind(|| insta::assert_snapshot!(name, self.text));
    }
}

/// A port on which nobody listens.
pub(crate) fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
