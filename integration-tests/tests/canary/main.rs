//! Law 10, seen from outside: a secret's value is in the agent's own secrets file, or in the password file that a step names,
//! and nowhere else: in no file, no message on NATS, no answer, no figure. Two agents try to say it: one made for that, in
//! every way an action has, and ours; a server that is asked with the password says it back.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    canary::{Place, Seen, holds, needles},
    process::{Process, wait_for},
    system::{SOON, System, free_address, path},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What a secret may be made of: it needs escapes in JSON, in addresses, and in the shell.
const VALUE: &str = "kX9\"/w+~7Qm2_pRz4!tN8c5%YbG\\3sLd6";
/// The same for the one in a password file.
const PASSWORD: &str = "zH4?/v=~3Fd9_xKu7&gB1s6$WcJ\\2rMe8";
/// What stands instead of it.
const MARK: &str = "[secret canary]";
/// Each a step that fails or succeeds in its own way.
const WAYS: [&str; 9] = ["log", "output", "large", "child", "error", "short_error", "panic", "prepare", "status"];

/// A server that is spoken to like Redis, and says in every error who asks with what. It serves until the test ends.
fn parrot() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            // Who goes away ends the talk; nothing is to be done about it.
            std::thread::spawn(move || drop(repeats(&caller)));
        }
    });
    Ok(address)
}

fn repeats(caller: &TcpStream) -> Result<()> {
    let (mut from, mut to) = (BufReader::new(caller), caller);
    let mut password = String::new();
    let mut line = || -> Result<Option<String>> {
        let mut line = String::new();
        Ok((from.read_line(&mut line)? > 0).then(|| line.trim_end_matches("\r\n").to_owned()))
    };
    while let Some(head) = line()? {
        let count: usize = head.trim_start_matches('*').parse()?;
        let mut words = Vec::new();
        for _ in 0..count {
            // Its length, and itself: no word has a line's end in it.
            line()?;
            words.push(line()?.context("a word")?);
        }
        if words.first().is_some_and(|word| word.eq_ignore_ascii_case("AUTH")) {
            password = words.pop().unwrap_or_default();
            to.write_all(b"+OK\r\n")?;
        } else {
            to.write_all(format!("-ERR nobody asks with {password}\r\n").as_bytes())?;
        }
    }
    Ok(())
}

/// Records every message on a server.
struct Listener {
    heard: Arc<Mutex<Vec<Place>>>,
    runtime: tokio::runtime::Runtime,
}

impl Listener {
    fn start(url: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let heard: Arc<Mutex<Vec<Place>>> = Arc::default();
        let client = runtime.block_on(async_nats::connect(url))?;
        let mut all = runtime.block_on(client.subscribe(">"))?;
        runtime.block_on(client.flush())?;
        let into = Arc::clone(&heard);
        runtime.spawn(async move {
            // Lives as long as it listens.
            let _client = client;
            while let Some(message) = all.next().await {
                let mut bytes = message.payload.to_vec();
                bytes.extend_from_slice(format!("{:?} {:?}", message.headers, message.reply).as_bytes());
                if let Ok(mut heard) = into.lock() {
                    heard.push((format!("NATS {}", message.subject), bytes));
                }
            }
        });
        Ok(Self { heard, runtime })
    }

    fn end(self) -> Vec<Place> {
        self.runtime.shutdown_background();
        self.heard.lock().map(|mut heard| std::mem::take(&mut *heard)).unwrap_or_default()
    }
}

struct House {
    system: System,
    metrics: String,
    secret: PathBuf,
    password: PathBuf,
    seen: Seen,
}

impl House {
    fn start(nats: NatsServer) -> Result<Self> {
        let (dir, metrics, url) = (tempfile::tempdir()?, free_address()?, nats.url());
        let secrets = dir.path().join("secrets");
        fs::create_dir(&secrets)?;
        let secret = secrets.join("canary");
        fs::write(&secret, VALUE)?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        let serve = ["--metrics-listen", metrics.as_str(), "--log", "debug"];
        let password = dir.path().join("redis.password");
        fs::write(&password, format!("{PASSWORD}\n"))?;
        let system = System::start_on(dir, nats, &url, &serve)?;
        Ok(Self { system, metrics, secret, password, seen: Seen::default() })
    }

    /// The one that is made to leak, and ours with a program that prints the file.
    fn start_agents(&mut self) -> Result<()> {
        let folder = self.secret.parent().context("a folder")?.to_owned();
        let dir = self.system.dir.path().to_owned();
        let mut command = Command::new(env!("CARGO_BIN_EXE_canary-agent"));
        command.args([&self.system.nats.url(), path(&folder)?]).arg(dir.join("canary-1"));
        let process = Process::start("canary-1", &dir, &mut command)?;
        self.system.agents.insert("canary-1".to_owned(), process);
        self.system.wait_agent("canary-1", "READY")?;
        let cat = ["/usr/bin/cat", "/bin/cat"].into_iter().find(|p| Path::new(p).is_file()).context("no cat here")?;
        let cat = fs::canonicalize(cat)?;
        let sha256 = Sha256::digest(fs::read(&cat)?).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let allow = dir.join("allow.toml");
        fs::write(&allow, format!("[commands.cat]\npath = \"{}\"\nsha256 = \"{sha256}\"\n", cat.display()))?;
        let more = ["--secrets", path(&folder)?, "--allow", path(&allow)?, "--log", "trace"];
        self.system.start_agent("infra-1", "infra", &more)
    }

    fn submit(&self) -> Result<String> {
        let mut yaml = String::from(
            "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: canary, owner: ops}\nspec:\n  secrets: [canary]\n  phases:\n    - id: all\n      steps:\n",
        );
        let until = self.system.dir.path().join("seen");
        for way in WAYS {
            let agent = "agent: {role: canary}, action: canary.leak, onFailure: continue, critical: false";
            writeln!(yaml, "        - {{id: {way}, {agent}, with: {{way: {way}, until: \"{}\"}}}}", until.display())?;
        }
        let read = format!("with: {{command: cat, args: [\"{}\"]}}", self.secret.display());
        let agent =
            "agent: {role: infra}, action: command.run, onFailure: continue, critical: false, undo: irreversible";
        writeln!(yaml, "        - {{id: ours, {agent}, {read}}}")?;
        let target = format!("{{address: \"{}\", password: {{file: \"{}\"}}}}", parrot()?, self.password.display());
        let policy = "retry: {maxAttempts: 1}, onFailure: continue, critical: false";
        let agent = format!("agent: {{role: infra}}, action: redis.probe, {policy}");
        writeln!(yaml, "        - {{id: parrot, {agent}, with: {{target: {target}, connections: 1}}}}")?;
        self.system.submit(&yaml)
    }

    /// Everything that can be asked of a run.
    fn ask(&mut self, run: &str, when: &str) -> Result<()> {
        let questions: [&[&str]; 8] = [
            &["run", "get", run],
            &["run", "events", run, "--limit", "0"],
            &["run", "explain", run],
            &["run", "logs", run],
            &["run", "list"],
            &["agent", "list"],
            &["milestone", "list"],
            &["playbook", "get", "canary"],
        ];
        for question in questions {
            for format in ["table", "json", "yaml"] {
                let output = self.system.cli(&[question, &["-o", format]].concat())?;
                ensure!(output.status.success(), "{question:?}: {}", String::from_utf8_lossy(&output.stderr));
                self.seen.output(&format!("{when}: {question:?} {format}"), &output);
            }
        }
        let mut stream = TcpStream::connect(&self.metrics)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut figures = Vec::new();
        stream.read_to_end(&mut figures)?;
        ensure!(holds(&figures, b"muster_log_lines_kept_total"), "logs are counted");
        self.seen.0.push((format!("{when}: metrics"), figures));
        Ok(())
    }
}

fn text_of(seen: &Seen, place: &str) -> Result<String> {
    let found = seen.0.iter().find(|(at, _)| at.contains(place)).with_context(|| format!("{place} was not seen"))?;
    Ok(String::from_utf8_lossy(&found.1).into_owned())
}

#[test]
fn a_secret_is_in_its_file_and_nowhere_else() -> Result<()> {
    let nats = NatsServer::start().context("nats-server does not start: apt-get install nats-server")?;
    let listener = Listener::start(&nats.url())?;
    let mut house = House::start(nats)?;
    house.start_agents()?;
    let playbook = house.submit()?;
    let run = house.system.start_run(&playbook)?;
    let follow = {
        let mut command = Command::new(muster_integration_tests::process::binary("muster", "muster"));
        house.system.environment(&mut command);
        Process::start("follow", house.system.dir.path(), command.args(["run", "logs", &run, "-f"]))?
    };
    wait_for("the status has come", SOON, || {
        let seen = house.system.json(&["run", "get", &run])?;
        Ok(seen.to_string().contains("logged in with").then_some(()))
    })?;
    house.ask(&run, "at work")?;
    fs::write(house.system.dir.path().join("seen"), "")?;
    house.system.wait_run(&run, &["SUCCEEDED", "FAILED"], SOON)?;
    let mut follow = follow;
    wait_for("whoever follows the log is done", SOON, || Ok((!follow.is_running()).then_some(())))?;
    house.ask(&run, "at the end")?;
    let system = &mut house.system;
    let dir = &system.dir;
    for process in system.agents.values_mut().chain(system.coordinator.as_mut()) {
        process.terminate(SOON)?;
    }
    let mut seen = house.seen;
    let messages = listener.end();
    for kind in ["log.canary-1", "status.canary-1", ".report."] {
        ensure!(
            messages.iter().any(|(at, bytes)| at.contains(kind) && holds(bytes, MARK.as_bytes())),
            "no {kind} tried"
        );
    }
    seen.0.extend(messages);
    seen.files(dir.path(), &[&house.secret, &house.password])?;
    was_said(&seen, &run)?;
    the_parrot_was_heard(&seen, &run, &house.password)?;
    for (file, value) in [(&house.secret, VALUE), (&house.password, PASSWORD)] {
        for (form, needle) in needles(value) {
            let places = seen.holding(&needle);
            ensure!(places.is_empty(), "{form}: what is in {} is in {places:#?}", file.display());
        }
        ensure!(holds(&fs::read(file)?, value.as_bytes()), "only in its own file");
    }
    Ok(())
}

/// The password was sent, came back, and went into what the steps say.
fn the_parrot_was_heard(seen: &Seen, run: &str, file: &Path) -> Result<()> {
    let get = text_of(seen, &format!("at the end: [\"run\", \"get\", \"{run}\"] json"))?;
    let get: Value = serde_json::from_str(&get)?;
    let steps = get["steps"].as_array().context("steps")?;
    let step = steps.iter().find(|step| step["id"] == "parrot").context("no step parrot")?.to_string();
    ensure!(step.contains(&format!("nobody asks with [secret {}]", file.display())), "{step}");
    Ok(())
}

/// A search that finds nothing proves nothing unless it was really said: where it was, its mark stands.
fn was_said(seen: &Seen, run: &str) -> Result<()> {
    let get = text_of(seen, &format!("at the end: [\"run\", \"get\", \"{run}\"] json"))?;
    let get: Value = serde_json::from_str(&get)?;
    let steps = get["steps"].as_array().context("steps")?;
    for way in WAYS.into_iter().chain(["ours"]) {
        let step = steps.iter().find(|step| step["id"] == way).with_context(|| format!("no step {way}"))?;
        let expected = if matches!(way, "log" | "prepare" | "status") { "" } else { MARK };
        ensure!(step.to_string().contains(expected), "{way} did not say it: {step}");
    }
    let at_work = text_of(seen, &format!("at work: [\"run\", \"get\", \"{run}\"] json"))?;
    ensure!(at_work.contains(&format!("logged in with {MARK}")), "{at_work}");
    for place in [format!("[\"run\", \"logs\", \"{run}\"] table"), "follow.log".to_owned(), format!("{run}.jsonl")] {
        let log = text_of(seen, &place)?;
        for line in ["check: ", "plain: ", "JSON: ", "debug: ", "the first of two lines ", "the second of two lines"] {
            let line =
                log.lines().find(|l| l.contains(line)).with_context(|| format!("{place} has no {line:?}:\n{log}"))?;
            ensure!(line.contains(MARK), "{place}: {line}");
        }
    }
    ensure!(text_of(seen, "canary-1.log")?.contains(&format!("can't work with {MARK}")), "the panic is told");
    Ok(())
}
