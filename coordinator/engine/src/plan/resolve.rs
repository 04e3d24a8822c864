//! A playbook and inputs → a plan.

use serde_json::{Map, Value};

use super::{
    AgentSelector, Catalogue, OnFailure, OnLost, PinnedAction, Plan, PlanFacts, PlannedGate, PlannedPhase, PlannedStep,
    PlannedUndo, PlannedVerify, PlannedWait, Priority, RetryPolicy, graph::Graph,
};
use crate::{
    ids::{ActionName, Digest},
    playbook::{
        Finding, Level,
        findings::Findings,
        json_schema::{Schema, fill_defaults},
        lint::{Mode, lint},
        schema::{self, DurationText, Playbook, Undo},
        tree::Path,
    },
};

/// Of one attempt, where the playbook says nothing.
pub const DEFAULT_TIMEOUT_MS: u64 = 600_000;
/// How often an agent says how a step goes, where the playbook says nothing.
pub const DEFAULT_STATUS_MS: u64 = 180_000;
/// Between two looks of a verification, where the playbook says nothing.
pub const DEFAULT_EVERY_MS: u64 = 5000;
/// One attempt; where the playbook asks for more: 1 s before the second, doubled each time, at most 30 s.
pub const DEFAULT_RETRY: RetryPolicy =
    RetryPolicy { max_attempts: 1, initial_ms: 1000, max_ms: 30_000, factor: 2.0, max_elapsed_ms: None };

/// Resolves a playbook to a plan: defaults filled in, inputs checked, actions pinned, steps in topological order (and
/// otherwise as in the document).
///
/// Deterministic: the same playbook, inputs and catalogue give the same plan and the same digest. Returns everything
/// that is wrong: with the inputs (`INVALID_INPUT`), with actions that nobody offers (`UNKNOWN_ACTION`), or with the
/// playbook itself, as lint would say it but without lines.
pub fn resolve(
    playbook: &Playbook,
    revision: Digest,
    inputs: Value,
    catalogue: &Catalogue,
) -> Result<Plan, Vec<Finding>> {
    let mut findings = Findings::default();
    lint(playbook, catalogue, Mode::Plan, None, &mut findings);
    let inputs = check_inputs(playbook, inputs, &mut findings);
    let (mut errors, sound) = findings.finish(None);
    if !sound {
        errors.retain(|finding| finding.level == Level::Error);
        return Err(errors);
    }
    let resolver = Resolver { playbook, catalogue };
    let steps = resolver.steps().map_err(|finding| vec![finding])?;
    let phases = resolver.phases(&steps);
    Ok(Plan {
        playbook: playbook.metadata.name.clone(),
        revision,
        owner: playbook.metadata.owner.clone(),
        inputs,
        secrets: playbook.spec.secrets.clone(),
        on_cancel: playbook.spec.on_cancel.map(Into::into).unwrap_or_default(),
        phases,
        steps,
        outputs: playbook.spec.outputs.clone(),
        facts: PlanFacts::default(),
    })
}

/// The inputs with defaults; null counts as none given.
fn check_inputs(playbook: &Playbook, inputs: Value, findings: &mut Findings) -> Value {
    let path = Path::of("inputs");
    let mut given = match inputs {
        Value::Object(given) => given,
        Value::Null => Map::new(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            findings.error(&path, "INVALID_INPUT", "the inputs are not a map").hint("give them by name");
            return Value::Null;
        }
    };
    let nothing = Map::new();
    let schema = playbook.spec.inputs.as_ref().unwrap_or(&nothing);
    fill_defaults(schema, &mut given);
    if !schema.contains_key("additionalProperties") {
        let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&nothing);
        for name in given.keys().filter(|name| !known.contains_key(*name)) {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            findings
                .error(&path.key(name), "INVALID_INPUT", format!("there is no input {name:?}"))
                .hint(format!("possible: {}", names.join(", ")));
        }
    }
    let given = Value::Object(given);
    // A schema that can't be used has been found by lint.
    if let Ok(schema) = Schema::new(&Value::Object(schema.clone())) {
        for misfit in schema.misfits(&given) {
            let mut place = path.clone();
            place.0.extend(misfit.path);
            findings.error(&place, "INVALID_INPUT", misfit.message).hint("see spec.inputs of the playbook");
        }
    }
    given
}

struct Resolver<'a> {
    playbook: &'a Playbook,
    catalogue: &'a Catalogue,
}

impl Resolver<'_> {
    fn steps(&self) -> Result<Vec<PlannedStep>, Finding> {
        let all: Vec<(usize, &schema::Step)> = self
            .playbook
            .spec
            .phases
            .iter()
            .enumerate()
            .flat_map(|(phase, of)| of.steps.iter().map(move |step| (phase, step)))
            .collect();
        let at = |id: &String| all.iter().position(|(_, step)| step.id == *id);
        let mut graph = Graph::new(all.len());
        for (index, (_, step)) in all.iter().enumerate() {
            for need in step.needs.iter().filter_map(at) {
                graph.add(index, need);
            }
        }
        graph.add_unsaid(&all);
        // Phases stand one after another in the document, and no step needs one of a later phase: sorting by phase
        // afterwards, stably, keeps every step behind its needs.
        let mut order = graph.order();
        order.sort_by_key(|index| all[*index].0);
        let mut places = vec![0; all.len()];
        for (place, index) in order.iter().enumerate() {
            places[*index] = place;
        }
        order
            .iter()
            .map(|index| {
                let (phase, step) = all[*index];
                let mut needs: Vec<usize> = graph.needs(*index).map(|need| places[need]).collect();
                needs.sort_unstable();
                let settled = step.settled(&self.playbook.spec, &self.playbook.spec.phases[phase]);
                self.step(phase, &settled, needs)
            })
            .collect()
    }

    fn step(&self, phase: usize, step: &schema::Step, needs: Vec<usize>) -> Result<PlannedStep, Finding> {
        let wait = step.wait.as_ref().and_then(|wait| planned_wait(wait, step.timeout.as_ref()));
        let action = match &wait {
            Some(_) => PinnedAction::nothing(),
            None => self.pin(step.action.as_deref().unwrap_or_default())?,
        };
        let undo = match &step.undo {
            _ if action.facts.read_only => PlannedUndo::Nothing,
            Some(Undo::Action(undo)) => {
                PlannedUndo::Action { action: self.pin(&undo.action)?, with: params(undo.with.as_ref()) }
            }
            Some(Undo::Auto) | None if action.facts.undoable => PlannedUndo::Auto,
            Some(Undo::Auto | Undo::Irreversible) | None => PlannedUndo::Irreversible,
        };
        let verify = step.verify.as_ref().map(|verify| self.verify(verify)).transpose()?;
        Ok(PlannedStep {
            id: step.id.as_str().into(),
            name: step.name.clone().unwrap_or_else(|| step.id.clone()),
            phase,
            needs,
            when: step.when.clone(),
            agent: step.agent.as_ref().map(selector).unwrap_or_default(),
            action,
            wait,
            with: params(step.with.as_ref()),
            timeout_ms: ms(step.timeout.as_ref()).unwrap_or(DEFAULT_TIMEOUT_MS),
            queue_timeout_ms: ms(step.queue_timeout.as_ref()),
            status_ms: ms(step.status.as_ref()).unwrap_or(DEFAULT_STATUS_MS),
            retry: step.retry.as_ref().map_or(DEFAULT_RETRY, retry),
            on_lost: step.on_lost.map(OnLost::from).unwrap_or_default(),
            on_failure: step.on_failure.map(OnFailure::from).unwrap_or_default(),
            critical: step.critical.unwrap_or(true),
            always: step.always,
            verify,
            undo,
        })
    }

    fn verify(&self, verify: &schema::Verify) -> Result<PlannedVerify, Finding> {
        Ok(PlannedVerify {
            action: self.pin(&verify.action)?,
            with: params(verify.with.as_ref()),
            expect: verify.expect.clone(),
            within_ms: ms(verify.within.as_ref()).unwrap_or(0),
            every_ms: ms(verify.every.as_ref()).unwrap_or(DEFAULT_EVERY_MS),
        })
    }

    fn phases(&self, steps: &[PlannedStep]) -> Vec<PlannedPhase> {
        let phases = self.playbook.spec.phases.iter().enumerate();
        phases
            .map(|(index, phase)| PlannedPhase {
                id: phase.id.as_str().into(),
                name: phase.name.clone().unwrap_or_else(|| phase.id.clone()),
                priority: phase.priority.map(Priority::from).unwrap_or_default(),
                deadline_ms: ms(phase.deadline.as_ref()),
                milestone: phase.milestone.clone(),
                when: phase.when.clone(),
                steps: (0..steps.len()).filter(|step| steps[*step].phase == index).collect(),
                gate: phase.gate.as_ref().map(|gate| PlannedGate {
                    success_condition: gate.success_condition.clone(),
                    failure_condition: gate.failure_condition.clone(),
                }),
            })
            .collect()
    }

    /// Lint has found every action in the catalogue; this is the same word for whoever comes without it.
    fn pin(&self, action: &str) -> Result<PinnedAction, Finding> {
        let name = ActionName::from(action);
        match self.catalogue.get(&name) {
            Some(entry) => Ok(PinnedAction { name, version: entry.version.clone(), facts: entry.facts }),
            None => Err(Finding {
                level: Level::Error,
                code: "UNKNOWN_ACTION",
                message: format!("no agent offers {action:?}"),
                path: String::new(),
                line: 0,
                column: 0,
                hint: "start an agent that offers it".to_owned(),
            }),
        }
    }
}

/// None where lint has found it empty.
fn planned_wait(wait: &schema::Wait, timeout: Option<&DurationText>) -> Option<PlannedWait> {
    let signal = || Some(PlannedWait::Signal { name: wait.signal.clone()?, timeout_ms: ms(timeout) });
    let until = || Some(PlannedWait::Until { moment: wait.until.clone()? });
    ms(wait.duration.as_ref()).map(|ms| PlannedWait::For { ms }).or_else(until).or_else(signal)
}

fn selector(agent: &schema::Agent) -> AgentSelector {
    AgentSelector {
        role: agent.role.clone(),
        labels: agent.labels.clone(),
        host: agent.host.as_deref().map(Into::into),
    }
}

fn retry(retry: &schema::Retry) -> RetryPolicy {
    let backoff = retry.backoff.as_ref();
    let initial_ms = ms(backoff.and_then(|backoff| backoff.initial.as_ref())).unwrap_or(DEFAULT_RETRY.initial_ms);
    RetryPolicy {
        max_attempts: retry.max_attempts.unwrap_or(DEFAULT_RETRY.max_attempts),
        initial_ms,
        max_ms: ms(backoff.and_then(|backoff| backoff.max.as_ref()))
            .unwrap_or_else(|| DEFAULT_RETRY.max_ms.max(initial_ms)),
        factor: backoff.and_then(|backoff| backoff.factor).unwrap_or(DEFAULT_RETRY.factor),
        max_elapsed_ms: ms(retry.max_elapsed.as_ref()),
    }
}

fn params(with: Option<&Map<String, Value>>) -> Value {
    Value::Object(with.cloned().unwrap_or_default())
}

/// Lint has read every duration.
fn ms(text: Option<&DurationText>) -> Option<u64> {
    text.and_then(|text| text.ms().ok())
}
