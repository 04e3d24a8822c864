//! The whole grammar of a playbook as types: from them the document is decoded and its JSON Schema is generated.
//!
//! Every key of the grammar is here. What is not built is refused by lint as `NOT_SUPPORTED_YET`, never ignored; an unknown
//! key is an error. Values that need more than a type (durations, expressions, ids) are texts here and are checked by lint.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};

mod words;

/// The version of the grammar that this document is written in.
pub const API_VERSION: &str = "muster.dev/v1";
/// What this document is.
pub const KIND: &str = "Playbook";

/// What to do, in which order, and when it counts as done.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Playbook {
    /// `muster.dev/v1`.
    pub api_version: String,
    /// `Playbook`.
    pub kind: String,
    /// What it is called and whose it is.
    pub metadata: Metadata,
    /// What to do.
    pub spec: Spec,
}

/// What a playbook is called and whose it is.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Letters a to z, digits and dashes: `revenue-engine-rollout`.
    pub name: String,
    /// The team or role that is told when a run waits for a person.
    pub owner: String,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// JSON Schema of the inputs, an object; defaults are filled in when a run is started.
    pub inputs: Option<Map<String, Value>>,
    /// Names of the secrets that steps may ask an agent to use.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// What steps have where neither they nor their phase say anything.
    pub defaults: Option<Defaults>,
    /// Not supported yet: how many runs may go on at once.
    pub concurrency: Option<NotYet<Concurrency>>,
    /// What a cancellation does with what was done.
    pub on_cancel: Option<OnCancel>,
    /// Named CEL expressions, evaluated at the end of the run.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
    /// One after another.
    pub phases: Vec<Phase>,
}

/// Not supported yet: how many runs may go on at once.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Concurrency {
    /// Runs with the same key count together.
    pub key: String,
    /// How many may go on at once.
    pub limit: Option<u32>,
    /// What happens to the next one.
    pub strategy: Option<String>,
}

/// What a cancellation does with what was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnCancel {
    /// Nothing is undone.
    Keep,
    /// Everything done is undone, in reverse order.
    Undo,
}

/// A group of steps with a deadline, a gate and a milestone.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Phase {
    /// `snake_case`, unique in the document.
    pub id: String,
    /// For people.
    pub name: Option<String>,
    /// Orders placement between runs; `medium` where nothing is said.
    pub priority: Option<Priority>,
    /// From the start of the run; never paused.
    pub deadline: Option<DurationText>,
    /// Reached when the steps are done and the gate has passed.
    pub milestone: Option<String>,
    /// CEL; false skips the phase whole.
    pub when: Option<String>,
    /// What the phase's steps have where they say nothing.
    pub defaults: Option<Defaults>,
    /// At least one.
    pub steps: Vec<Step>,
    /// Judged when all steps are done.
    pub gate: Option<Gate>,
    /// Not supported yet: who takes over.
    pub handoff: Option<NotYet<Handoff>>,
}

/// How urgent a phase is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Priority {
    /// First.
    Critical,
    /// Before medium.
    High,
    /// The default.
    Medium,
    /// Last.
    Low,
}

/// One action for an agent.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// `snake_case`, unique in the document: `steps.<id>.output` is what it gives.
    pub id: String,
    /// For people.
    pub name: Option<String>,
    /// Who may do it; needed with `action`.
    pub agent: Option<Agent>,
    /// `<system>.<verb>`.
    pub action: Option<String>,
    /// The action's parameters; texts may have `{{ CEL }}` in them.
    pub with: Option<Map<String, Value>>,
    /// Wait for a time or a signal, instead of an action.
    pub wait: Option<Wait>,
    /// Not supported yet: another playbook as a step.
    pub playbook: Option<NotYet<String>>,
    /// Ids of steps of this phase, or of earlier ones, that come first.
    #[serde(default)]
    pub needs: Vec<String>,
    /// CEL; false skips the step.
    pub when: Option<String>,
    /// Not supported yet: the step once for each element.
    pub for_each: Option<NotYet<String>>,
    /// Not supported yet: the step once for each combination.
    pub matrix: Option<NotYet<Map<String, Value>>>,
    /// Not supported yet: how many of them at once.
    pub max_parallel: Option<NotYet<u32>>,
    /// Of one attempt; 10 minutes where nothing is said, at most 24 hours.
    pub timeout: Option<DurationText>,
    /// How long it may wait for an agent; where nothing is said it waits, with reminders.
    pub queue_timeout: Option<DurationText>,
    /// How often the agent says how it goes; 3 minutes where nothing is said.
    pub status: Option<DurationText>,
    /// When an attempt fails in a way that may pass.
    pub retry: Option<Retry>,
    /// When an attempt has ended and nobody knows how; `probe` where nothing is said.
    pub on_lost: Option<OnLost>,
    /// When the step has failed for good; `undo` where nothing is said.
    pub on_failure: Option<OnFailure>,
    /// Whether the run fails with it; true where nothing is said.
    pub critical: Option<bool>,
    /// Whether it is done after a failure or a cancellation too, once its phase has begun; then it is the last thing before the
    /// run ends. It waits for what it needs to be over, however that ended; where it names nothing, for all other steps of
    /// its phase that are not `always`.
    #[serde(default)]
    pub always: bool,
    /// A second look by another action.
    pub verify: Option<Verify>,
    /// How it is taken back; `auto` where nothing is said.
    pub undo: Option<Undo>,
}

/// What steps have where they say nothing. A key is taken whole: a `retry` of a step has nothing of the default one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// Who may do it.
    pub agent: Option<Agent>,
    /// Of one attempt.
    pub timeout: Option<DurationText>,
    /// How long it may wait for an agent.
    pub queue_timeout: Option<DurationText>,
    /// How often the agent says how it goes.
    pub status: Option<DurationText>,
    /// When an attempt fails in a way that may pass.
    pub retry: Option<Retry>,
    /// When an attempt has ended and nobody knows how.
    pub on_lost: Option<OnLost>,
    /// When the step has failed for good.
    pub on_failure: Option<OnFailure>,
}

impl Step {
    /// The step with the defaults of its phase, then of the playbook, where it says nothing itself.
    pub(crate) fn settled(&self, spec: &Spec, phase: &Phase) -> Self {
        let mut step = self.clone();
        for defaults in [&phase.defaults, &spec.defaults].into_iter().flatten() {
            let Defaults { agent, timeout, queue_timeout, status, retry, on_lost, on_failure } = defaults;
            step.agent = step.agent.or_else(|| agent.clone());
            // A wait is no attempt: it may be for people, who take longer.
            step.timeout = step.timeout.or_else(|| timeout.clone().filter(|_| self.wait.is_none()));
            step.queue_timeout = step.queue_timeout.or_else(|| queue_timeout.clone());
            step.status = step.status.or_else(|| status.clone());
            step.retry = step.retry.or_else(|| retry.clone());
            step.on_lost = step.on_lost.or(*on_lost);
            step.on_failure = step.on_failure.or(*on_failure);
        }
        let by_itself = self.on_failure.is_some() || step.on_failure == Some(OnFailure::Pause);
        if step.critical == Some(false) && !by_itself {
            step.on_failure = Some(OnFailure::Continue);
        }
        step
    }
}

/// Who may do a step.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Agent {
    /// The agent's role.
    pub role: String,
    /// All must be equal on the agent.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The host it has to work on.
    pub host: Option<String>,
}

/// One of them: a time, a moment, or a signal.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wait {
    /// So long, from when the step could begin; at most 366 days.
    #[serde(rename = "for")]
    pub duration: Option<DurationText>,
    /// Until a moment, as `2026-01-31T18:00:00Z`; may have `{{ CEL }}` in it.
    pub until: Option<String>,
    /// Until a signal of this name; `timeout` bounds it. What comes with the signal is the step's output.
    pub signal: Option<String>,
}

/// When and how often a failed attempt is tried again.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// The first one included; 1 where nothing is said.
    pub max_attempts: Option<u32>,
    /// How long to wait between two.
    pub backoff: Option<Backoff>,
    /// From the first attempt; none starts after it.
    pub max_elapsed: Option<DurationText>,
}

/// How long to wait between two attempts.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// Before the second attempt; 1 second where nothing is said.
    pub initial: Option<DurationText>,
    /// Upper bound of one wait; 30 seconds where nothing is said.
    pub max: Option<DurationText>,
    /// Growth of the wait; 2 where nothing is said.
    pub factor: Option<f64>,
}

/// When an attempt has ended with an outcome nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnLost {
    /// Ask the action's own check.
    Probe,
    /// Again; only for idempotent actions.
    Retry,
    /// Ask a person.
    Ask,
}

/// When a step has failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// Take back everything done so far; the run fails.
    Undo,
    /// Stop what depends on it, with a question; the rest goes on.
    Pause,
    /// Skip what depends on it; the rest goes on; the run fails at its end.
    Continue,
}

/// A second look at what a step did.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verify {
    /// An action that changes nothing.
    pub action: String,
    /// Its parameters.
    pub with: Option<Map<String, Value>>,
    /// CEL over its `output`; all must be true.
    pub expect: Vec<String>,
    /// How long it may take until all are true; one look where nothing is said.
    pub within: Option<DurationText>,
    /// Between two looks; 5 seconds where nothing is said.
    pub every: Option<DurationText>,
}

/// How a step is taken back.
#[derive(Clone, Debug, PartialEq)]
pub enum Undo {
    /// By the action's own undo.
    Auto,
    /// It can't be taken back.
    Irreversible,
    /// By another action.
    Action(UndoAction),
}

/// The action that takes a step back.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoAction {
    /// `<system>.<verb>`.
    pub action: String,
    /// Its parameters.
    pub with: Option<Map<String, Value>>,
}

/// Criteria over evidence.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gate {
    /// CEL; all must be true.
    #[serde(default)]
    pub success_condition: Vec<String>,
    /// CEL; one that is true fails the gate.
    #[serde(default)]
    pub failure_condition: Vec<String>,
    /// Not supported yet: between two judgements.
    pub interval: Option<NotYet<DurationText>>,
    /// Not supported yet: how often it is judged.
    pub count: Option<NotYet<u32>>,
    /// Not supported yet: how many failures it bears.
    pub failure_limit: Option<NotYet<u32>>,
    /// Not supported yet: how many inconclusive judgements it bears.
    pub inconclusive_limit: Option<NotYet<u32>>,
    /// Not supported yet: actions whose output is judged.
    pub probes: Option<NotYet<Vec<Map<String, Value>>>>,
    /// Not supported yet: how long it is watched.
    pub watch_for: Option<NotYet<DurationText>>,
    /// Not supported yet: who has to agree.
    pub sign_off: Option<NotYet<SignOff>>,
}

/// Not supported yet: who has to agree.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignOff {
    /// Each of them.
    pub teams: Vec<SignOffTeam>,
    /// How long it is waited for.
    pub within: Option<DurationText>,
}

/// Not supported yet: a team that has to agree.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignOffTeam {
    /// Its name.
    pub team: String,
    /// How many of it.
    pub min: Option<u32>,
    /// Whether one of it can refuse for all.
    pub veto: Option<bool>,
}

/// Not supported yet: who takes over.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Handoff {
    /// A team or a role.
    pub to: Map<String, Value>,
    /// What is handed over.
    pub artifacts: Option<Vec<Value>>,
    /// What accepting needs.
    pub accept: Option<Accept>,
}

/// Not supported yet: what accepting needs.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Accept {
    /// How long it is waited for.
    pub within: Option<DurationText>,
    /// What has to hold.
    pub checks: Option<Vec<Value>>,
}

/// A value that is refused whatever it is: what is said of it is that, not that it has a wrong type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotYet<T>(PhantomData<T>);

impl<'de, T> Deserialize<'de> for NotYet<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for NotYet<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// A length of time as written: `30m`, `1h30m`, `500ms`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct DurationText(#[schemars(regex(pattern = r"^([0-9]+(ms|s|m|h|d))+$"))] pub String);

impl DurationText {
    /// Milliseconds, or why it is none. Units from large to small, each at most once: `d`, `h`, `m`, `s`, `ms`.
    pub fn ms(&self) -> Result<u64, String> {
        const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
        let text = self.0.as_str();
        let bad = || format!("{text:?} is not a duration");
        let (mut rest, mut total, mut units) = (text, 0u64, &UNITS[..]);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            let letters = rest[digits..].find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len() - digits);
            let unit = &rest[digits..digits + letters];
            let place = units.iter().position(|(name, _)| *name == unit).ok_or_else(bad)?;
            total = number.checked_mul(units[place].1).and_then(|ms| total.checked_add(ms)).ok_or_else(bad)?;
            units = &units[place + 1..];
            rest = &rest[digits + letters..];
        }
        if text.is_empty() { Err(bad()) } else { Ok(total) }
    }
}

impl<'de> Deserialize<'de> for Undo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UndoVisitor;
        impl<'de> Visitor<'de> for UndoVisitor {
            type Value = Undo;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, irreversible, or a map with an action")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Undo, E> {
                match text {
                    "auto" => Ok(Undo::Auto),
                    "irreversible" => Ok(Undo::Irreversible),
                    _ => Err(E::unknown_variant(text, &["auto", "irreversible"])),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Undo, A::Error> {
                UndoAction::deserialize(MapAccessDeserializer::new(map)).map(Undo::Action)
            }
        }
        deserializer.deserialize_any(UndoVisitor)
    }
}

impl JsonSchema for Undo {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Undo".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let action = generator.subschema_for::<UndoAction>();
        schemars::json_schema!({
            "description": "How a step is taken back.",
            "anyOf": [{"enum": ["auto", "irreversible"]}, action],
        })
    }
}
