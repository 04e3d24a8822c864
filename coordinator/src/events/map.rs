//! What of the journal is told to outsiders, and in which words. What is told is for good: fields may be added, never renamed.

use jiff::Timestamp;
use memchr::memmem;
use muster_bus::event::CloudEvent;
use muster_engine::{
    ids::{AgentName, Namespace, RunId},
    run::{
        Event,
        event::{Criterion, RunStarted, StepNext},
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    journal::Record,
    registry::records::{AgentEvent, Profile, agent_of},
};

/// Texts are cut to so many bytes, and lists to so many entries: an event points at the API, it does not replace it.
const TEXT: usize = 2_048;
const ENTRIES: usize = 32;

/// Whose record it is.
pub(super) enum Topic {
    Run(RunId),
    Agent { namespace: Namespace, name: AgentName },
}

/// What is told of a record.
pub(super) struct Told {
    pub(super) kind: &'static str,
    /// As the API names it.
    subject: String,
    data: Map<String, Value>,
}

/// What a record's type says before anything is parsed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worth {
    Nothing,
    Telling,
    /// If the step goes to a person.
    TellingIfAsking,
}

impl Topic {
    /// Of a record that may be worth telling, by its stream and its type alone; cheap.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let event = record.event.get();
        if let Some(run) = record.stream.0.strip_prefix("run/") {
            let is_worth = match worth(kind_of(event)?.as_ref()) {
                Worth::Nothing => false,
                Worth::Telling => true,
                Worth::TellingIfAsking => memmem::find(event.as_bytes(), b"asking").is_some(),
            };
            return is_worth.then(|| Self::Run(run.into()));
        }
        agent_of(&record.stream).map(|(namespace, name)| Self::Agent { namespace, name })
    }
}

fn worth(kind: &str) -> Worth {
    match kind {
        "run_started" | "phase_started" | "gate_judged" | "phase_ended" | "milestone_at_risk" | "milestone_missed"
        | "milestone_reached" | "run_paused" | "records_lost" | "run_resumed" | "cancel_requested"
        | "rollback_started" | "finish_started" | "run_ended" => Worth::Telling,
        "step_moved" | "step_resolved" | "attempt_ended" => Worth::TellingIfAsking,
        _ => Worth::Nothing,
    }
}

/// The journal writes the type first; what was written otherwise is looked through.
fn kind_of(event: &str) -> Option<std::borrow::Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Tagged<'a> {
        #[serde(rename = "type", borrow)]
        kind: std::borrow::Cow<'a, str>,
    }
    match event.strip_prefix("{\"type\":\"").and_then(|rest| rest.split_once('"')) {
        Some((kind, _)) => Some(kind.into()),
        None => serde_json::from_str::<Tagged<'_>>(event).ok().map(|tagged| tagged.kind),
    }
}

/// The namespace in a run's first record.
///
/// # Errors
/// It is none.
pub(super) fn namespace_of_start(record: &Record) -> Result<Namespace, String> {
    #[derive(Deserialize)]
    struct Start {
        namespace: Namespace,
    }
    serde_json::from_str::<Start>(record.event.get()).map(|start| start.namespace).map_err(|e| e.to_string())
}

/// What is told of the record; nothing if on a second look it is not worth telling.
///
/// # Errors
/// The record can't be read.
pub(super) fn tell(topic: &Topic, namespace: &Namespace, record: &Record) -> Result<Option<Told>, String> {
    match topic {
        Topic::Run(run) => {
            let event: Event = serde_json::from_str(record.event.get()).map_err(|e| e.to_string())?;
            Ok(of_run(&event).map(|Said { kind, place, data }| Told {
                kind,
                subject: format!("namespaces/{namespace}/runs/{run}{place}"),
                data: with(data, "run", run.as_str()),
            }))
        }
        Topic::Agent { name, .. } => {
            let event: AgentEvent = serde_json::from_str(record.event.get()).map_err(|e| e.to_string())?;
            let (kind, data) = of_agent(&event);
            let subject = format!("namespaces/{namespace}/agents/{name}");
            Ok(Some(Told { kind, subject, data: with(data, "agent", name.as_str()) }))
        }
    }
}

/// The event as it is published.
pub(super) fn envelope(told: Told, cluster: &str, record: &Record) -> CloudEvent {
    CloudEvent {
        specversion: "1.0".to_owned(),
        id: format!("{}/{}", record.stream.0, record.seq),
        source: format!("urn:muster:{cluster}"),
        kind: format!("dev.muster.v1.{}", told.kind),
        subject: told.subject,
        time: record.at.to_string(),
        datacontenttype: "application/json".to_owned(),
        data: Value::Object(with(Value::Object(told.data), "by", record.by.as_str())),
    }
}

fn with(data: Value, key: &str, value: &str) -> Map<String, Value> {
    let Value::Object(mut data) = data else { return Map::new() };
    data.insert(key.to_owned(), value.into());
    data
}

/// What there is to say, about which part of the run.
struct Said {
    kind: &'static str,
    place: String,
    data: Value,
}

fn said(kind: &'static str, place: String, data: Value) -> Said {
    Said { kind, place, data }
}

fn of_run(event: &Event) -> Option<Said> {
    let whole = String::new();
    let of = |phase: &dyn std::fmt::Display| format!("/phases/{phase}");
    Some(match event {
        Event::RunStarted(started) => said("run_started", whole, start(started)),
        Event::PhaseStarted { phase } => said("phase_started", of(phase), json!({"phase": phase})),
        Event::PhaseEnded { phase, outcome } => {
            said("phase_ended", of(phase), json!({"phase": phase, "outcome": outcome}))
        }
        Event::GateJudged { phase, verdict, criteria } => {
            let data = json!({"phase": phase, "verdict": verdict, "criteria": judged(criteria),
                "criteria_left_out": criteria.len().saturating_sub(ENTRIES)});
            said("gate_judged", of(phase), data)
        }
        Event::MilestoneAtRisk { phase } => said("milestone_at_risk", of(phase), json!({"phase": phase})),
        Event::MilestoneMissed { phase } => said("milestone_missed", of(phase), json!({"phase": phase})),
        Event::MilestoneReached { phase, late } => {
            said("milestone_reached", of(phase), json!({"phase": phase, "late": late}))
        }
        Event::StepMoved { step, next }
        | Event::StepResolved { step, next, .. }
        | Event::AttemptEnded { step, next, .. } => asking(step, next)?,
        Event::RunPaused { reason, question, remind_at } => {
            said("run_paused", whole, paused(reason, question.as_deref(), *remind_at))
        }
        Event::RecordsLost { reason, question, remind_at, .. } => {
            said("run_paused", whole, paused(reason, Some(question), *remind_at))
        }
        Event::RunResumed { reason } => said("run_resumed", whole, json!({"reason": cut(reason)})),
        Event::CancelRequested { reason, undo, force } => {
            said("cancel_requested", whole, json!({"reason": cut(reason), "undo": undo, "force": force}))
        }
        Event::RollbackStarted { reason, steps, irreversible } => {
            let data = json!({"reason": cut(reason), "steps": steps.len(), "irreversible": irreversible.len()});
            said("rollback_started", whole, data)
        }
        Event::FinishStarted { outcome, reason, steps } => {
            let data = json!({"outcome": outcome, "reason": cut(reason), "steps": steps.len()});
            said("finish_started", whole, data)
        }
        Event::RunEnded { outcome, reason, .. } => {
            said("run_ended", whole, json!({"outcome": outcome, "reason": cut(reason)}))
        }
        Event::AttemptAssigned(_)
        | Event::AttemptPrepared { .. }
        | Event::StatusReported { .. }
        | Event::AttemptLost { .. }
        | Event::AttemptFound { .. }
        | Event::AttemptExtended { .. }
        | Event::ReportArrivedStale { .. }
        | Event::OwnerReminded { .. }
        | Event::SignalReceived { .. }
        | Event::QueueClocksRestarted
        | Event::WallClockMoved { .. }
        | Event::RollbackRequested { .. } => return None,
    })
}

fn start(started: &RunStarted) -> Value {
    let plan = &started.plan;
    json!({
        "playbook": cut(&plan.playbook),
        "revision": plan.revision,
        "plan_digest": started.plan_digest,
        "owner": cut(&plan.owner),
        "note": cut(&started.note),
        "phases": plan.phases.len(),
        "steps": plan.steps.len(),
    })
}

fn asking(step: &muster_engine::ids::StepId, next: &StepNext) -> Option<Said> {
    match next {
        StepNext::Asking { question, kind, remind_at } => {
            let data = json!({"step": step, "about": kind, "question": cut(question), "remind_at": remind_at});
            Some(said("step_asking", format!("/steps/{step}"), data))
        }
        StepNext::Queued { .. }
        | StepNext::Waiting { .. }
        | StepNext::Succeeded
        | StepNext::Failed { .. }
        | StepNext::Skipped { .. }
        | StepNext::Cancelled
        | StepNext::Undone => None,
    }
}

fn paused(reason: &str, question: Option<&str>, remind_at: Timestamp) -> Value {
    json!({"reason": cut(reason), "question": question.map(cut), "remind_at": remind_at})
}

fn judged(criteria: &[Criterion]) -> Vec<Value> {
    let shown = criteria.iter().take(ENTRIES);
    shown.map(|c| json!({"expression": cut(&c.expression), "value": c.value, "error": cut(&c.error)})).collect()
}

fn of_agent(event: &AgentEvent) -> (&'static str, Value) {
    match event {
        AgentEvent::AgentRegistered(profile) => ("agent_registered", registered(profile)),
        AgentEvent::AgentDrained { instance } => ("agent_drained", json!({"instance": instance})),
        AgentEvent::AgentEnded { instance } => ("agent_ended", json!({"instance": instance})),
        AgentEvent::AgentForgotten { instance } => ("agent_forgotten", json!({"instance": instance})),
    }
}

fn registered(profile: &Profile) -> Value {
    let labels: Map<String, Value> =
        profile.labels.iter().take(ENTRIES).map(|(key, value)| (key.clone(), cut(value).into())).collect();
    json!({
        "instance": profile.instance,
        "role": cut(&profile.role),
        "labels": labels,
        "host": cut(&profile.host),
        "slots": profile.slots,
        "actions": profile.actions.len(),
        "software": cut(&profile.software),
    })
}

/// The beginning of a text, with `…` for the rest.
fn cut(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    let end = (0..=TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}
