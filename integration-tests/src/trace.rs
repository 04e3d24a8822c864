//! Reads what `strace -f -xx` saw of a coordinator, and tells in which order records were written, synced and acted on.
//!
//! kill -9 keeps the page cache and proves nothing about syncs; the order of system calls does.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// What strace has to be told to watch.
pub const WATCH: &str =
    "trace=write,pwrite64,writev,pwritev,sendto,sendmsg,recvfrom,read,readv,recvmsg,fdatasync,fsync";

/// Run, step and number of an attempt.
pub type Key = (String, String, u64);

/// What was found: how much was checked, so that a test can tell that it was something.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Tasks that were sent, each after the sync of its assignment.
    pub tasks: usize,
    /// `recorded` answers, each after the sync of the attempt's end.
    pub recorded: usize,
}

/// Check that each task send follows the sync of its `attempt_assigned`, and each `recorded` the sync of what it confirms.
///
/// # Errors
/// The first one that does not, with its place.
pub fn acts_follow_syncs(trace: &str) -> Result<Checked> {
    let mut world = World::default();
    for (number, line) in trace.lines().enumerate() {
        world.see(line).with_context(|| format!("line {} of the trace", number + 1))?;
    }
    Ok(world.checked)
}

#[derive(Default)]
struct World {
    /// Calls that have begun and not returned, by thread.
    open: BTreeMap<String, Call>,
    /// Records whose write has returned, by file descriptor.
    written: BTreeMap<u32, Vec<Fact>>,
    /// Records that a sync that has begun will cover, by thread.
    covered: BTreeMap<String, Vec<Fact>>,
    durable: BTreeSet<Fact>,
    /// Bytes of a log line that is not whole yet, and of NATS messages, by file descriptor.
    partial_log: BTreeMap<u32, Vec<u8>>,
    sent: BTreeMap<u32, Vec<u8>>,
    received: BTreeMap<u32, Vec<u8>>,
    /// Reply subject → what the agent reported.
    asked: BTreeMap<String, Fact>,
    checked: Checked,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    Assigned(Key),
    Prepared(Key),
    Ended(Key),
}

struct Call {
    name: String,
    fd: u32,
    bytes: Vec<u8>,
}

impl World {
    fn see(&mut self, line: &str) -> Result<()> {
        let (thread, rest) = line.trim_start().split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let mut call = self.open.remove(thread).context("a call resumes that has not begun")?;
            call.bytes.extend(strings(resumed));
            return self.returned(thread, &call, resumed);
        }
        let Some((name, args)) = rest.split_once('(') else { return Ok(()) };
        let fd = args.split(|c: char| !c.is_ascii_digit()).next().and_then(|d| d.parse().ok()).unwrap_or(u32::MAX);
        let call = Call { name: name.to_owned(), fd, bytes: strings(args) };
        self.began(thread, &call)?;
        if rest.ends_with("<unfinished ...>") {
            self.open.insert(thread.to_owned(), call);
            return Ok(());
        }
        self.returned(thread, &call, rest)
    }

    fn began(&mut self, thread: &str, call: &Call) -> Result<()> {
        match call.name.as_str() {
            "fdatasync" | "fsync" => {
                let facts = self.written.get(&call.fd).cloned().unwrap_or_default();
                self.covered.insert(thread.to_owned(), facts);
            }
            "write" | "writev" | "sendto" | "sendmsg" => self.leaving(call)?,
            _ => {}
        }
        Ok(())
    }

    fn returned(&mut self, thread: &str, call: &Call, rest: &str) -> Result<()> {
        let result: i64 =
            rest.rsplit(" = ").next().and_then(|r| r.split(' ').next()).and_then(|r| r.parse().ok()).unwrap_or(-1);
        match call.name.as_str() {
            "fdatasync" | "fsync" if result == 0 => {
                self.durable.extend(self.covered.remove(thread).unwrap_or_default());
            }
            "write" | "pwrite64" | "writev" | "pwritev" if result > 0 => self.wrote(call),
            "read" | "readv" | "recvfrom" | "recvmsg" if result > 0 => self.arrived(call)?,
            _ => {}
        }
        Ok(())
    }

    /// Records of the log, as far as their lines are whole.
    fn wrote(&mut self, call: &Call) {
        let buffer = self.partial_log.entry(call.fd).or_default();
        buffer.extend(&call.bytes);
        let whole = buffer.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        let lines: Vec<u8> = buffer.drain(..whole).collect();
        for line in lines.split(|b| *b == b'\n') {
            if let Some(fact) = serde_json::from_slice(line).ok().and_then(|record| fact_of(&record)) {
                self.written.entry(call.fd).or_default().push(fact);
            }
        }
    }

    /// NATS messages that leave; a message leaves when its first byte is handed over.
    fn leaving(&mut self, call: &Call) -> Result<()> {
        let buffer = self.sent.entry(call.fd).or_default();
        buffer.extend(&call.bytes);
        for message in take_messages(buffer, &["PUB", "HPUB"]) {
            if message.subject.contains(".task.") {
                self.leaves(&message.payload).with_context(|| format!("a task on {}", message.subject))?;
            } else if message.payload["answer"] == "recorded" {
                if let Some(task) = message.payload.get("task") {
                    self.leaves(task).context("a task in an answer")?;
                }
                let Some(fact) = self.asked.get(&message.subject) else { continue };
                ensure!(self.durable.contains(fact), "`recorded` is sent before {fact:?} is synced");
                self.checked.recorded += 1;
            }
        }
        Ok(())
    }

    fn leaves(&mut self, task: &Value) -> Result<()> {
        let key = key_of(task).context("it names no attempt")?;
        ensure!(
            self.durable.contains(&Fact::Assigned(key.clone())),
            "the task of {key:?} is sent before its assignment is synced"
        );
        self.checked.tasks += 1;
        Ok(())
    }

    fn arrived(&mut self, call: &Call) -> Result<()> {
        let buffer = self.received.entry(call.fd).or_default();
        buffer.extend(&call.bytes);
        for message in take_messages(buffer, &["MSG", "HMSG"]) {
            let (Some(reply), true) = (message.reply, message.subject.contains(".report.")) else { continue };
            let key = key_of(&message.payload).with_context(|| format!("a report on {}", message.subject))?;
            let fact =
                if message.payload["report"]["kind"] == "prepared" { Fact::Prepared(key) } else { Fact::Ended(key) };
            self.asked.insert(reply, fact);
        }
        Ok(())
    }
}

fn fact_of(record: &Value) -> Option<Fact> {
    let run = record["stream"].as_str()?.strip_prefix("run/")?.to_owned();
    let event = &record["event"];
    let key = (run, event["step"].as_str()?.to_owned(), event["attempt"].as_u64()?);
    match event["type"].as_str()? {
        "attempt_assigned" => Some(Fact::Assigned(key)),
        "attempt_prepared" => Some(Fact::Prepared(key)),
        "attempt_ended" => Some(Fact::Ended(key)),
        _ => None,
    }
}

fn key_of(payload: &Value) -> Option<Key> {
    Some((payload["run"].as_str()?.to_owned(), payload["step"].as_str()?.to_owned(), payload["attempt"].as_u64()?))
}

struct Message {
    subject: String,
    reply: Option<String>,
    payload: Value,
}

/// Take all whole messages of these verbs out of a NATS connection's bytes; a connection that is not NATS gives none.
fn take_messages(buffer: &mut Vec<u8>, verbs: &[&str]) -> Vec<Message> {
    let (mut messages, mut at) = (Vec::new(), 0);
    while let Some(length) = buffer[at..].windows(2).position(|w| w == b"\r\n") {
        let line = String::from_utf8_lossy(&buffer[at..at + length]).into_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        let body = at + length + 2;
        let Some(verb) = words.first().filter(|w| verbs.contains(w)) else {
            at = body;
            continue;
        };
        let Some(size) = words.last().and_then(|w| w.parse::<usize>().ok()) else { break };
        if buffer.len() < body + size + 2 {
            break;
        }
        let headers = if verb.starts_with('H') { words[words.len() - 2].parse().unwrap_or(0) } else { 0 };
        // PUB subject [reply] [headers] size, MSG subject sid [reply] [headers] size
        let skip = if verb.ends_with("MSG") { 2 } else { 1 };
        let tail = if verb.starts_with('H') { 2 } else { 1 };
        let reply = (words.len() > 1 + skip + tail).then(|| words[1 + skip].to_owned());
        if let Ok(payload) = serde_json::from_slice(&buffer[body + headers..body + size]) {
            messages.push(Message { subject: words[1].to_owned(), reply, payload });
        }
        at = body + size + 2;
    }
    buffer.drain(..at);
    messages
}

/// The bytes of all strings in a line: `"\x7b\x22"`.
fn strings(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for quoted in line.split('"').skip(1).step_by(2) {
        bytes.extend(quoted.split("\\x").skip(1).filter_map(|hex| u8::from_str_radix(hex.get(..2)?, 16).ok()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        text.bytes().fold(String::new(), |hex, byte| format!("{hex}\\x{byte:02x}"))
    }

    /// The ways in which a task leaves: by itself, and in the answer to a report.
    fn messages() -> [String; 2] {
        let task = r#"{"run":"r","step":"s","attempt":1}"#;
        let answer = format!(r#"{{"answer":"recorded","task":{task}}}"#);
        [("muster.v1.default.task.a.i _INBOX.1", task), ("_INBOX_a.1", &answer)]
            .map(|(subject, payload)| format!("PUB {subject} {}\r\n{payload}\r\n", payload.len()))
    }

    fn trace(sync_first: bool, message: &str) -> String {
        let record = r#"{"v":1,"stream":"run/r","event":{"type":"attempt_assigned","step":"s","attempt":1}}"#;
        let write = format!("7 pwrite64(5, \"{}\", 90, 0) = 90", hex(&format!("{record}\n")));
        let send = format!("8 sendto(9, \"{}\", 70, 0, NULL, 0) = 70", hex(message));
        let (begin, end) = ("7 fdatasync(5 <unfinished ...>".to_owned(), "7 <... fdatasync resumed>) = 0".to_owned());
        if sync_first { [write, begin, end, send].join("\n") } else { [write, begin, send, end].join("\n") }
    }

    #[test]
    fn a_send_after_the_sync_is_counted() {
        for message in messages() {
            let checked = acts_follow_syncs(&trace(true, &message)).unwrap();
            assert_eq!(checked, Checked { tasks: 1, recorded: 0 }, "{message}");
        }
    }

    #[test]
    fn a_send_while_the_sync_is_under_way_is_an_error() {
        for message in messages() {
            let error = format!("{:#}", acts_follow_syncs(&trace(false, &message)).unwrap_err());
            assert!(error.contains("sent before its assignment is synced"), "{message}: {error}");
        }
    }
}
