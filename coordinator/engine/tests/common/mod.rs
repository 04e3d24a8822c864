//! Plans, commands and a driver in miniature for the tests of the run.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod moves;
pub mod variants;

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use muster_engine::{
    ids::StepId,
    plan::{
        ActionFacts, ActionScope, AgentSelector, OnCancel, OnFailure, OnLost, PinnedAction, Plan, PlanFacts,
        PlannedGate, PlannedPhase, PlannedStep, PlannedUndo, PlannedVerify, PlannedWait, Priority, RetryPolicy,
    },
    run::{
        Command, Event, Fence, Outstanding, Rejection, Run, RunStarted, Turn,
        event::{FailureKind, Outcome, Purpose},
        state::{MilestoneState, RunState, StepState},
    },
};
use serde_json::{Value, json};

/// Seconds after the moment at which every test run starts.
pub fn at(seconds: i64) -> Timestamp {
    let start: Timestamp = "2026-01-07T10:00:00Z".parse().unwrap();
    start + SignedDuration::from_secs(seconds)
}

pub fn facts() -> ActionFacts {
    ActionFacts {
        idempotent: true,
        undoable: true,
        checkable: true,
        concurrent_safe: false,
        read_only: false,
        scope: ActionScope::Target,
    }
}

pub fn action(name: &str) -> PinnedAction {
    PinnedAction { name: name.into(), version: "1.0.0".to_owned(), facts: facts() }
}

/// A step of the first phase, with what a playbook's defaults would give it.
pub fn step(id: &str, needs: &[usize]) -> PlannedStep {
    PlannedStep {
        id: id.into(),
        name: id.to_owned(),
        phase: 0,
        needs: needs.to_vec(),
        when: None,
        agent: AgentSelector { role: "infra".to_owned(), labels: BTreeMap::new(), host: None },
        action: action("test.do"),
        with: json!({ "for": id }),
        timeout_ms: 600_000,
        queue_timeout_ms: None,
        status_ms: 180_000,
        retry: RetryPolicy { max_attempts: 3, initial_ms: 1_000, max_ms: 30_000, factor: 2.0, max_elapsed_ms: None },
        on_lost: OnLost::Probe,
        on_failure: OnFailure::Undo,
        critical: true,
        always: false,
        wait: None,
        verify: None,
        undo: PlannedUndo::Auto,
    }
}

/// The step waits, and does nothing.
pub fn waits(step: &mut PlannedStep, wait: PlannedWait) {
    step.action = PinnedAction::nothing();
    (step.undo, step.wait) = (PlannedUndo::Nothing, Some(wait));
}

pub fn for_signal(name: &str, timeout_ms: Option<u64>) -> PlannedWait {
    PlannedWait::Signal { name: name.to_owned(), timeout_ms }
}

/// Seconds after the start of the test run, by the wall clock.
pub fn for_moment(seconds: i64) -> PlannedWait {
    PlannedWait::Until { moment: at(seconds).to_string() }
}

pub fn verify(expect: &str, within_ms: u64, every_ms: u64) -> PlannedVerify {
    let mut look = action("test.look");
    look.facts.read_only = true;
    PlannedVerify { action: look, with: json!({}), expect: vec![expect.to_owned()], within_ms, every_ms }
}

pub fn gate(success: &[&str], failure: &[&str]) -> PlannedGate {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    PlannedGate { success_condition: owned(success), failure_condition: owned(failure) }
}

pub fn phase(id: &str) -> PlannedPhase {
    PlannedPhase {
        id: id.into(),
        name: id.to_owned(),
        priority: Priority::High,
        deadline_ms: Some(1_800_000),
        milestone: Some(format!("{id} ready")),
        when: None,
        steps: Vec::new(),
        gate: None,
    }
}

/// A plan; the phases are told their steps.
pub fn plan(mut phases: Vec<PlannedPhase>, steps: Vec<PlannedStep>) -> Plan {
    for (p, phase) in phases.iter_mut().enumerate() {
        phase.steps = steps.iter().enumerate().filter(|(_, s)| s.phase == p).map(|(i, _)| i).collect();
    }
    Plan {
        playbook: "test".to_owned(),
        revision: "sha256:0".into(),
        owner: "devops".to_owned(),
        inputs: json!({ "environment": "staging" }),
        secrets: Vec::new(),
        on_cancel: OnCancel::Keep,
        phases,
        steps,
        outputs: BTreeMap::new(),
        facts: PlanFacts::default(),
    }
}

/// One phase `only`.
pub fn simple(steps: Vec<PlannedStep>) -> Plan {
    plan(vec![phase("only")], steps)
}

pub fn started(plan: Plan) -> RunStarted {
    RunStarted {
        run: "0190d5a0-0000-7000-8000-000000000001".into(),
        namespace: "default".into(),
        plan: Arc::new(plan),
        plan_digest: "sha256:0".into(),
        note: String::new(),
    }
}

pub fn ok(output: Value) -> Outcome {
    Outcome::Succeeded { output: Arc::new(output), unchanged: false, observations: Vec::new(), truncated: false }
}

pub fn failed(kind: FailureKind) -> Outcome {
    Outcome::Failed { kind, message: "it broke".to_owned(), output: None }
}

/// Equal, without a look at the plan, which the two share.
fn same(a: &Run, b: &Run) -> bool {
    Arc::ptr_eq(&a.plan, &b.plan)
        && (a.seq, a.updated_at, &a.state, &a.pause) == (b.seq, b.updated_at, &b.state, &b.pause)
        && (a.attempts_from, a.wall_ahead_ms) == (b.attempts_from, b.wall_ahead_ms)
        && (&a.cancel, &a.rollback, &a.failure, &a.outputs) == (&b.cancel, &b.rollback, &b.failure, &b.outputs)
        && (&a.phases, &a.steps, &a.awake, a.done_count) == (&b.phases, &b.steps, &b.awake, b.done_count)
}

/// A run with its history. Every event is checked: invariants hold after it, and the turn's state equals the fold.
#[derive(Clone)]
pub struct World {
    pub run: Run,
    pub history: Vec<(Timestamp, Arc<Event>)>,
    pub now: Timestamp,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let turn = Turn::begin(started(plan), &"person/operator".into(), at(0)).unwrap();
        let (decided, events, _) = turn.into_parts();
        let Event::RunStarted(first) = &events[0] else { panic!("the first event of a run starts it") };
        let mut run = Run::start(at(0), &"person/operator".into(), first);
        for event in &events[1..] {
            run.apply(at(0), event).unwrap();
        }
        run.check_invariants().unwrap();
        assert_eq!(run, decided);
        Self { run, history: events.into_iter().map(|e| (at(0), Arc::new(e))).collect(), now: at(0) }
    }

    pub fn go_to(&mut self, seconds: i64) -> &mut Self {
        self.now = at(seconds).max(self.now);
        self
    }

    /// Decide, apply, check. The events of this command.
    pub fn try_command(&mut self, command: &Command) -> Result<Vec<Event>, Rejection> {
        let mut turn = Turn::new(&self.run);
        turn.take(command, self.now)?;
        let (decided, events, _) = turn.into_parts();
        for event in &events {
            self.run.apply(self.now, event).unwrap();
            self.history.push((self.now, Arc::new(event.clone())));
        }
        assert!(same(&self.run, &decided), "{:#?} is not {decided:#?}", self.run);
        self.run.check_invariants().unwrap_or_else(|v| panic!("{v} after {command:?}:\n{}", self.story()));
        Ok(events)
    }

    /// The history, a line for each event.
    pub fn story(&self) -> String {
        let line = |(at, event): &(Timestamp, Arc<Event>)| {
            if matches!(**event, Event::RunStarted(_)) {
                return format!("{at} run_started");
            }
            format!("{at} {}", serde_json::to_string(&**event).unwrap())
        };
        self.history.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    pub fn command(&mut self, command: &Command) -> Vec<Event> {
        self.try_command(command).unwrap()
    }

    pub fn tick(&mut self) -> Vec<Event> {
        self.command(&Command::Tick)
    }

    pub fn assign(&mut self, step: &str) -> Fence {
        self.assign_to(step, "infra-1-a")
    }

    /// Once it may start.
    pub fn assign_soon(&mut self, step: &str) -> Fence {
        if let StepState::Queued { not_before, .. } = self.state(step) {
            self.now = self.now.max(*not_before);
        }
        self.assign(step)
    }

    pub fn assign_to(&mut self, step: &str, instance: &str) -> Fence {
        let command = self.assignment(step, instance);
        self.command(&command);
        self.fence(step)
    }

    pub fn assignment(&self, step: &str, instance: &str) -> Command {
        Command::Assign {
            step: step.into(),
            agent: "infra-1".into(),
            instance: instance.into(),
            host: Some("host-1".into()),
            dispatch_until: self.now + SignedDuration::from_secs(30),
        }
    }

    /// The fence of the step's last attempt.
    pub fn fence(&self, step: &str) -> Fence {
        let steps = self.run.step_index(&step.into()).unwrap();
        let attempts = &self.run.steps[steps].attempts;
        let last = attempts.last().unwrap();
        Fence { step: step.into(), attempt: last.number, agent: last.agent.clone(), instance: last.instance.clone() }
    }

    pub fn finish(&mut self, step: &str, outcome: Outcome) -> Vec<Event> {
        let fence = self.fence(step);
        self.command(&Command::Finish { fence, outcome })
    }

    pub fn prepare(&mut self, step: &str, undo: Value) -> Vec<Event> {
        let fence = self.fence(step);
        self.command(&Command::Prepare { fence, undo: Arc::new(undo) })
    }

    /// Assign and succeed.
    pub fn succeed(&mut self, step: &str) -> Vec<Event> {
        self.assign(step);
        self.finish(step, ok(json!({})))
    }

    /// Assign, prepare and succeed.
    pub fn change(&mut self, step: &str) -> Vec<Event> {
        self.assign(step);
        self.prepare(step, json!({ "was": step }));
        self.finish(step, ok(json!({})))
    }

    pub fn state(&self, step: &str) -> &StepState {
        &self.run.steps[self.run.step_index(&step.into()).unwrap()].state
    }

    pub fn milestone(&self, phase: usize) -> MilestoneState {
        self.run.phases[phase].milestone.as_ref().unwrap().state
    }

    pub fn is_queued(&self, step: &str, wanted: Purpose) -> bool {
        matches!(self.state(step), StepState::Queued { purpose, .. } if *purpose == wanted)
    }

    pub fn is_asking(&self, step: &str) -> bool {
        matches!(self.state(step), StepState::Asking { .. })
    }

    pub fn ended(&self) -> Option<muster_engine::run::event::RunOutcome> {
        match &self.run.state {
            RunState::Ended { outcome, .. } => Some(*outcome),
            RunState::Running | RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } => None,
        }
    }

    /// Steps that could be placed right now.
    pub fn places(&self) -> Vec<(StepId, Purpose)> {
        let places = self.run.outstanding(self.now).into_iter().filter_map(|o| match o {
            Outstanding::Place(p) => Some((p.step, p.purpose)),
            Outstanding::Dispatch(_) | Outstanding::CancelAttempt(_) | Outstanding::WakeAt(_) => None,
        });
        places.collect()
    }
}
