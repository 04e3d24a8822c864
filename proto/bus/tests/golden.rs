//! Golden files: the shape of every message, and a talk from registration to `recorded`, frozen.

use std::{collections::BTreeSet, fs, path::PathBuf};

use muster_bus::{
    message::{
        Beat, BeatReply, LogLine, PROTOCOL, Register, RegisterReply, Report, ReportReply, Signal, SignalReply, Status,
        StatusReply, Task, TaskReply, UnknownProtocol, check_protocol,
    },
    subject,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Parses, says the same again, and does not mind a field that it does not know.
fn round_trip<M: Serialize + DeserializeOwned>(name: &str, given: &Value) {
    let message: M = serde_json::from_value(given.clone()).unwrap_or_else(|e| panic!("{name} does not parse: {e}"));
    let again = serde_json::to_value(&message).expect("a message can be written");
    assert_eq!(&again, given, "{name} changes on its way through");
    let mut extended = given.clone();
    extended["added_in_a_later_version"] = json!({"anything": [1, 2, 3]});
    let message: M = serde_json::from_value(extended).unwrap_or_else(|e| panic!("{name} minds a new field: {e}"));
    assert_eq!(&serde_json::to_value(&message).expect("a message can be written"), given);
}

fn check_kind(kind: &str, name: &str, message: &Value) {
    match kind {
        "register" => round_trip::<Register>(name, message),
        "register_reply" => round_trip::<RegisterReply>(name, message),
        "task" => round_trip::<Task>(name, message),
        "task_reply" => round_trip::<TaskReply>(name, message),
        "report" => round_trip::<Report>(name, message),
        "report_reply" => round_trip::<ReportReply>(name, message),
        "beat" => round_trip::<Beat>(name, message),
        "beat_reply" => round_trip::<BeatReply>(name, message),
        "status" => round_trip::<Status>(name, message),
        "status_reply" => round_trip::<StatusReply>(name, message),
        "log_line" => round_trip::<LogLine>(name, message),
        "signal" => round_trip::<Signal>(name, message),
        "signal_reply" => round_trip::<SignalReply>(name, message),
        other => panic!("{name}: {other} is no message"),
    }
}

#[test]
fn every_golden_file_round_trips() {
    let mut kinds = BTreeSet::new();
    for entry in fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let kind = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let variants: Vec<(String, Value)> =
            serde_json::from_str::<serde_json::Map<String, Value>>(&fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
                .into_iter()
                .collect();
        assert!(!variants.is_empty(), "{kind} has no variant");
        for (variant, message) in variants {
            check_kind(&kind, &format!("{kind}/{variant}"), &message);
        }
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), 13, "a golden file is missing: {kinds:?}");
}

/// Every variant of the enums is in some golden file; the list is what the messages can say.
#[test]
fn every_variant_has_a_golden_message() {
    let mut said = BTreeSet::new();
    for entry in fs::read_dir(golden()).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for value in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
            collect(&value.unwrap(), &mut said);
        }
    }
    let wanted = [
        "answer accepted",
        "answer busy",
        "answer conflict",
        "answer draining",
        "answer gone",
        "answer id_in_use",
        "answer recorded",
        "answer refused",
        "answer registered",
        "answer retry",
        "answer stale",
        "error needs_person",
        "error permanent",
        "error retry",
        "kind finished",
        "kind prepared",
        "order cancel",
        "order drain",
        "purpose probe",
        "purpose run",
        "purpose undo",
        "purpose verify",
        "result cancelled",
        "result failed",
        "result not_satisfied",
        "result succeeded",
        "scope host",
        "scope target",
    ];
    assert_eq!(said, wanted.into_iter().map(str::to_owned).collect());
}

fn collect(value: &Value, said: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if let (true, Some(word)) = (
                    ["answer", "order", "kind", "result", "error", "purpose", "scope"].contains(&key.as_str()),
                    value.as_str(),
                ) {
                    said.insert(format!("{key} {word}"));
                }
                collect(value, said);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, said)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn a_stranger_may_leave_out_what_is_optional() {
    let least = json!({"protocol": 1, "agent": "a", "instance": "i", "role": "r", "actions": [{"name": "x.y", "version": "1.0.0"}]});
    let register: Register = serde_json::from_value(least).unwrap();
    assert_eq!((register.slots, register.durable, register.host), (1, false, None));
    let beat: Beat = serde_json::from_value(json!({"cluster": "c", "instance": "i"})).unwrap();
    assert_eq!((beat.holds.len(), beat.draining, beat.ending), (0, false, false));
    let report = json!({"cluster": "c", "instance": "i", "run": "r", "step": "s", "attempt": 1,
        "report": {"kind": "finished", "outcome": {"result": "succeeded"}}});
    serde_json::from_value::<Report>(report).unwrap();
}

#[test]
fn another_protocol_is_refused() {
    assert_eq!(check_protocol(PROTOCOL), Ok(()));
    let refused = check_protocol(PROTOCOL + 1);
    assert_eq!(refused, Err(UnknownProtocol { given: 2 }));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "this coordinator speaks protocol 1, not 2; use an agent made for protocol 1"
    );
}

/// Whoever writes an agent copies these.
#[test]
fn the_messages_in_the_guide_are_right() {
    let guide = golden().join("../../../../docs/agents.md");
    let text = fs::read_to_string(guide).unwrap();
    let mut kinds = BTreeSet::new();
    for part in text.split("<!-- message: ").skip(1) {
        let (kind, rest) = part.split_once(" -->\n```json\n").expect("a message follows its mark");
        let (json, _) = rest.split_once("\n```\n").expect("a block ends");
        let message: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{kind}: {e}"));
        let full = complete(kind, &message);
        check_kind(kind, &format!("the guide's {kind}"), &full);
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), 8, "{kinds:?}");
    let longest = text.lines().filter_map(|line| line.strip_prefix("   {")).max_by_key(|line| line.len());
    assert!(longest.is_some(), "the bytes on the wire are shown");
    for (head, payload) in text.lines().zip(text.lines().skip(1)) {
        let Some(payload) = payload.strip_prefix("   {").filter(|payload| !payload.contains('…')) else { continue };
        let bytes = payload.trim_end_matches("␍␊").len() + 1;
        assert!(head.trim_end_matches("␍␊").ends_with(&format!(" {bytes}")), "{head} is followed by {bytes} bytes");
    }
}

/// With what a stranger may leave out.
fn complete(kind: &str, message: &Value) -> Value {
    let mut full = message.clone();
    if kind == "register" {
        for action in full["actions"].as_array_mut().expect("a list") {
            for (field, value) in [
                ("undoable", json!(false)),
                ("checkable", json!(false)),
                ("concurrent_safe", json!(false)),
                ("read_only", json!(false)),
                ("scope", json!("host")),
            ] {
                action[field] = value;
            }
        }
    }
    full
}

/// One line of the transcript.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    from: String,
    to: String,
    /// Empty for a reply, which goes where the request said.
    subject: String,
    payload: Value,
}

#[test]
fn the_transcript_is_a_talk_that_can_happen() {
    let text = fs::read_to_string(golden().join("transcript.jsonl")).unwrap();
    let lines: Vec<Line> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let mut asked: Option<&'static str> = None;
    for (number, line) in lines.iter().enumerate() {
        let name = format!("line {}", number + 1);
        assert_ne!(line.from, line.to, "{name}");
        let reply = asked.take();
        if line.subject.is_empty() {
            check_kind(reply.unwrap_or_else(|| panic!("{name} answers nothing")), &name, &line.payload);
            continue;
        }
        assert!(reply.is_none(), "{name}: the line before wants an answer");
        let (kind, answer) = kind_of(line);
        check_kind(kind, &name, &line.payload);
        asked = answer;
    }
    assert!(asked.is_none());
    assert_eq!(lines.last().unwrap().payload, json!({"answer": "recorded"}));
}

fn kind_of(line: &Line) -> (&'static str, Option<&'static str>) {
    let tokens: Vec<&str> = line.subject.split('.').collect();
    if line.from == "coordinator" {
        assert_eq!((tokens.len(), tokens[3]), (6, "task"), "{}", line.subject);
        return ("task", Some("task_reply"));
    }
    assert_eq!(subject::sender(&line.subject), Some(("default", line.from.as_str())), "{}", line.subject);
    match tokens[3] {
        "register" => ("register", Some("register_reply")),
        "report" => {
            let run = line.payload["run"].as_str().expect("a report names its run");
            assert_eq!(tokens[4], subject::shard_of(run).to_string(), "the shard of {run}");
            ("report", Some("report_reply"))
        }
        "beat" => ("beat", Some("beat_reply")),
        "status" => ("status", Some("status_reply")),
        "log" => ("log_line", None),
        other => panic!("{other} is no subject"),
    }
}
