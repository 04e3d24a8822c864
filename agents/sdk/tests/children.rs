//! Programs that an agent starts: listed ones alone, and none outlives its attempt, however that ends.
#![allow(clippy::unwrap_used, clippy::format_collect, reason = "tests")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use muster_agent::allow::{Allow, Pinned};
use muster_bus::{
    Bus, LocalBus, NatsBus, NatsOptions,
    message::{FailureKind, Order, Outcome, Purpose, Task, TaskReply},
    testkit::NatsServer,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{AGENT, Agent, Coordinator, SOON, Setup};

/// Starts children in its group, in another session and orphaned, writes their pids to `$1`, and waits for ever.
const FAMILY: &str = r#"#!/bin/sh
sleep 1000 &
one=$!
setsid sleep 1000 &
two=$!
( ( trap '' TERM HUP; sleep 1000 ) & echo $! > "$1.orphan" )
while [ ! -s "$1.orphan" ]; do sleep 0.01; done
echo "$$ $one $two $(cat "$1.orphan")" > "$1.draft"
mv "$1.draft" "$1"
wait
"#;

const TALKER: &str = r#"#!/bin/sh
echo "args: $*"
echo "env: $GREETING $SECRET"
cat
echo "to stderr" >&2
exit "${CODE:-0}"
"#;

const MUTE: &str = "#!/bin/sh\nexit 4\n";

fn script(folder: &Path, name: &str, text: &str) -> (String, Pinned) {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let sha256 = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    (name.to_owned(), Pinned { path, sha256 })
}

fn allow(folder: &Path) -> Allow {
    let commands = [script(folder, "family", FAMILY), script(folder, "talker", TALKER), script(folder, "mute", MUTE)];
    Allow { commands: commands.into() }
}

fn command(coordinator: &Coordinator, step: &str, with: Value) -> Task {
    let mut task = coordinator.task(step, with);
    (task.action, task.purpose) = ("command.run".to_owned(), Purpose::Run);
    task
}

async fn local(folder: &Path, data_dir: bool) -> (Arc<Coordinator>, Agent) {
    let bus = Arc::new(LocalBus::new());
    let coordinator = Coordinator::start(bus.clone()).await;
    let data_dir = data_dir.then(|| folder.join("data"));
    let agent = Agent::start(bus, Setup { allow: allow(folder), data_dir, slots: 4, ..Setup::default() });
    (coordinator, agent)
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what} does not happen"));
}

/// The family, once all of it is there.
async fn pids(file: &Path) -> Vec<u32> {
    until("the family", || file.exists()).await;
    let pids: Vec<u32> = fs::read_to_string(file).unwrap().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 4);
    assert!(pids.iter().all(|&pid| lives(pid)), "all of it is alive");
    pids
}

fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_what_is_listed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (coordinator, _agent) = local(folder.path(), false).await;
    let with = json!({"command": "talker", "args": ["a b", "$HOME; id"], "env": {"GREETING": "hi"}, "stdin": "in\n"});
    let Outcome::Succeeded { output, .. } = coordinator.carry_out(&command(&coordinator, "ok", with)).await else {
        panic!("it succeeds")
    };
    let said = "args: a b $HOME; id\nenv: hi \nin\n";
    assert_eq!(output, json!({"exit_code": 0, "stdout": said, "stderr": "to stderr\n", "truncated": false}));

    let with = json!({"command": "talker", "env": {"CODE": "3"}, "stdin": "x".repeat(100_000)});
    let outcome = coordinator.carry_out(&command(&coordinator, "fails", with)).await;
    let Outcome::Failed { error: FailureKind::Permanent, message, output: Some(output) } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(message.contains("exit code 3: to stderr"), "{message}");
    assert_eq!((&output["exit_code"], &output["truncated"]), (&json!(3), &json!(true)));
    let stdout = output["stdout"].as_str().unwrap();
    assert_eq!((stdout.len(), stdout.ends_with('…')), (64 * 1024 + '…'.len_utf8(), true));

    let outcome = coordinator.carry_out(&command(&coordinator, "mute", json!({"command": "mute"}))).await;
    let Outcome::Failed { message, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(message, "command \"mute\" ended with exit code 4, and wrote nothing to stderr");

    for (step, with, why) in [
        ("unlisted", json!({"command": "/bin/sh"}), "not in this agent's allow.toml"),
        ("key", json!({"command": "talker", "shell": true}), "the parameters do not fit"),
    ] {
        let outcome = coordinator.carry_out(&command(&coordinator, step, with)).await;
        let Outcome::Failed { error: FailureKind::Permanent, message, .. } = outcome else { panic!("{outcome:?}") };
        assert!(message.contains(why), "{message}");
    }
    fs::write(folder.path().join("talker"), "#!/bin/sh\n").unwrap();
    let outcome = coordinator.carry_out(&command(&coordinator, "changed", json!({"command": "talker"}))).await;
    assert!(matches!(&outcome, Outcome::Failed { message, .. } if message.contains("sha256")), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_writes_is_in_the_log_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let (coordinator, _agent) = local(folder.path(), false).await;
    let with = json!({"command": "talker", "args": ["a"], "stdin": format!("in\r\n\n{}\nno end", "x".repeat(100_000))});
    coordinator.carry_out(&command(&coordinator, "ok", with)).await;
    // Both outputs are read at once: the order is that of each alone.
    let (errors, mut said): (Vec<String>, Vec<String>) = coordinator
        .wait("all lines", |heard| {
            let texts: Vec<String> = heard.lines.iter().map(|line| line.text.clone()).collect();
            (texts.len() == 7).then_some(texts)
        })
        .await
        .into_iter()
        .partition(|line| line == "to stderr");
    assert_eq!(errors.len(), 1);
    let long = said.remove(4);
    assert!(long.starts_with("xxx") && long.ends_with('…') && long.len() <= 8 * 1024, "{long}");
    assert_eq!(said, ["args: a", "env:  ", "in", "", "no end"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_child_is_left_when_an_attempt_ends() {
    for data_dir in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (coordinator, agent) = local(folder.path(), data_dir).await;
        for how in ["cancel", "timeout"] {
            let file = folder.path().join(how);
            let mut task = command(&coordinator, how, json!({"command": "family", "args": [file.to_str().unwrap()]}));
            if how == "timeout" {
                task.timeout_ms = 1_500;
            }
            assert_eq!(coordinator.send(&task).await, Ok(TaskReply::Accepted));
            let family = pids(&file).await;
            if how == "cancel" {
                coordinator.order(Order::Cancel { key: task.key.clone() });
            }
            let outcome = coordinator.outcome(&task).await;
            let left: Vec<u32> = family.into_iter().filter(|&pid| lives(pid)).collect();
            assert!(left.is_empty(), "{how}: {left:?} are left at the moment of the report");
            match how {
                "cancel" => assert_eq!(outcome, Outcome::Cancelled { may_have_changed: true }),
                _ => assert!(matches!(outcome, Outcome::Failed { error: FailureKind::Retry, .. }), "{outcome:?}"),
            }
        }
        if data_dir {
            let guards = folder.path().join("data/guards");
            assert_eq!(fs::read_dir(guards).unwrap().count(), 0, "no guard is left on record");
        }
        agent.shutdown.cancel();
        agent.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_end_with_a_guard_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (coordinator, _agent) = local(folder.path(), true).await;
    let file = folder.path().join("pids");
    let task = command(&coordinator, "a", json!({"command": "family", "args": [file.to_str().unwrap()]}));
    assert_eq!(coordinator.send(&task).await, Ok(TaskReply::Accepted));
    let family = pids(&file).await;
    let record = fs::read_dir(folder.path().join("data/guards")).unwrap().next().unwrap().unwrap().path();
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    kill(u32::try_from(record["pid"].as_u64().unwrap()).unwrap());
    let outcome = coordinator.outcome(&task).await;
    assert!(matches!(&outcome, Outcome::Failed { message, .. } if message.contains("exit code 137")), "{outcome:?}");
    // What has left the session is out of reach without its guard; it was started to be.
    let left: Vec<usize> = (0..4).filter(|&n| lives(family[n])).collect();
    assert_eq!(left, [2], "only the one with a session of its own");
    kill(family[2]);
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// A process of the sample agent; killed when dropped.
struct Process(Child);

impl Process {
    fn start(server: &NatsServer, folder: &Path) -> Self {
        let list: String = allow(folder)
            .commands
            .iter()
            .map(|(name, Pinned { path, sha256 })| {
                format!("[commands.{name}]\npath = '{}'\nsha256 = '{sha256}'\n", path.display())
            })
            .collect();
        fs::write(folder.join("allow.toml"), list).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_muster-sample-agent"))
            .args([&server.url(), AGENT])
            .args([folder.join("allow.toml"), folder.join("data")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_end_with_an_agent_that_is_killed_and_the_next_one_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let server = NatsServer::start().unwrap();
    let bus: Arc<dyn Bus> = Arc::new(NatsBus::connect(NatsOptions::new([server.url()], "coordinator")).await.unwrap());
    let coordinator = Coordinator::start(bus).await;
    let mut first = Process::start(&server, folder.path());
    let register = coordinator.registered(1).await;
    assert!(register.durable && register.dead.is_empty());
    let file = folder.path().join("pids");
    let task = command(&coordinator, "a", json!({"command": "family", "args": [file.to_str().unwrap()]}));
    assert_eq!(coordinator.send(&task).await, Ok(TaskReply::Accepted));
    let family = pids(&file).await;
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let _second = Process::start(&server, folder.path());
    // One of the family takes no hint, so that the next process is there before its end: it has to say so later.
    let again = coordinator
        .wait("the word that it is dead", |heard| heard.registers.iter().find(|r| !r.dead.is_empty()).cloned())
        .await;
    assert!(!family.iter().any(|&pid| lives(pid)), "it is not said before it is true");
    assert_eq!((again.dead, again.holds, again.spooled), (vec![register.instance], vec![], vec![]));
    assert!(coordinator.heard().reports.is_empty(), "nobody knows how it ended, and nobody says so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_agent_finishes_its_work() {
    let folder = tempfile::tempdir().unwrap();
    let server = NatsServer::start().unwrap();
    let bus: Arc<dyn Bus> = Arc::new(NatsBus::connect(NatsOptions::new([server.url()], "coordinator")).await.unwrap());
    let coordinator = Coordinator::start(bus).await;
    let mut process = Process::start(&server, folder.path());
    let file = folder.path().join("pids");
    let mut task = command(&coordinator, "a", json!({"command": "family", "args": [file.to_str().unwrap()]}));
    assert_eq!(coordinator.send(&task).await, Ok(TaskReply::Accepted));
    let family = pids(&file).await;
    assert!(Command::new("kill").arg(process.0.id().to_string()).status().unwrap().success());
    coordinator.wait("a draining beat", |heard| heard.beats.iter().any(|beat| beat.draining).then_some(())).await;
    assert!(family.iter().all(|&pid| lives(pid)), "the work goes on");
    task.key.step = "late".to_owned();
    task.sent_at_ms = coordinator.now_ms();
    assert_eq!(coordinator.send(&task).await, Ok(TaskReply::Draining));
    kill(family[0]);
    until("the end of the process", || process.0.try_wait().unwrap().is_some()).await;
    assert!(process.0.wait().unwrap().success());
    assert_eq!(coordinator.heard().recorded.len(), 1);
    assert!(!family.iter().any(|&pid| lives(pid)), "what the program left behind has ended with it");
}
