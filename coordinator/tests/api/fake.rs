//! A coordinator in memory. Its playbooks are lines: `playbook <name>`, then `step <id>` or `ask <id>` each; anything else
//! is a finding.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use muster_coordinator::{
    control::{
        AgentView, Caller, Control, ControlError, ControlErrorKind as Kind, CoordinatorView, DrainView, Explanation,
        MilestoneView, MostUrgent, Page, Planned, PlaybookRevision, PlaybookSource, RunChange, RunEvent, RunFilter,
        RunSummary, Watch, run_state, state_reason,
    },
    logs,
};
use muster_engine::{
    ids::{Actor, AgentName, Digest, InstanceId, Namespace, RunId, StepId},
    plan::Plan,
    playbook::Finding,
    run::{
        Command, Fence, Run, RunStarted, Turn,
        event::{Event, Outcome},
        state::MilestoneState,
    },
};
use serde_json::Value;
use tokio::sync::watch;

use self::{
    lines::{digest_of, error, findings, parse, rejected},
    lists::{follow, page},
};

mod lines;
mod lists;

pub(crate) const AGENT: &str = "infra-1";

pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// How many events an endless watch has given away.
    pub(crate) flooded: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    playbooks: BTreeMap<(Namespace, String), Vec<PlaybookRevision>>,
    runs: BTreeMap<RunId, Held>,
    answers: HashMap<String, (String, Arc<Run>)>,
    milestones: Vec<(Namespace, MilestoneView)>,
    agents: BTreeMap<AgentName, AgentView>,
    forgotten_until: u64,
    quarantine: BTreeMap<RunId, Arc<str>>,
    logs: BTreeMap<RunId, Vec<logs::Entry>>,
    flood: bool,
    drain: Option<DrainView>,
}

struct Held {
    run: Arc<Run>,
    events: Vec<RunChange>,
    by: Actor,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        let mut state = State::default();
        for name in [AGENT, "infra-2"] {
            state.agents.insert(AgentName::from(name), agent(name));
        }
        Arc::new(Self { state: Arc::new(Mutex::new(state)), changed: watch::channel(0).0, flooded: Arc::default() })
    }

    /// Watches of runs give events for ever, as fast as they are taken.
    pub(crate) fn flood(&self) {
        self.state.lock().unwrap().flood = true;
    }

    /// Events up to this one are no longer here.
    pub(crate) fn forget(&self, until: u64) {
        self.state.lock().unwrap().forgotten_until = until;
    }

    /// The records of a run can't be believed.
    pub(crate) fn quarantine(&self, run_id: &str, why: &str) {
        self.state.lock().unwrap().quarantine.insert(RunId::from(run_id), why.into());
    }

    /// One more agent that says much of itself: so many bytes.
    pub(crate) fn talkative(&self, name: &str, bytes: usize) {
        let talks = AgentView { software: "x".repeat(bytes), ..agent(name) };
        self.state.lock().unwrap().agents.insert(AgentName::from(name), talks);
    }

    /// How often a run was really changed: retried requests must not count.
    pub(crate) fn events_of(&self, run_id: &str) -> usize {
        self.state.lock().unwrap().runs[run_id].events.len()
    }

    /// An agent takes a step and ends it.
    pub(crate) fn work(&self, run_id: &str, step: &str, outcome: Outcome) {
        let id = RunId::from(run_id);
        let (agent, instance) = (AgentName::from(AGENT), InstanceId::from("i1"));
        let dispatch_until = Timestamp::now().checked_add(SignedDuration::from_secs(30)).unwrap();
        let assign = Command::Assign {
            step: StepId::from(step),
            agent: agent.clone(),
            instance: instance.clone(),
            host: None,
            dispatch_until,
        };
        let run = self.change(&id, &assign, &Actor::from("muster")).unwrap();
        let index = run.plan.step_index(step).unwrap();
        let attempt = u32::try_from(run.steps[index].attempts.len()).unwrap();
        let fence = Fence { step: StepId::from(step), attempt, agent, instance };
        self.change(&id, &Command::Finish { fence, outcome }, &Actor::from("agent/infra-1")).unwrap();
    }

    /// A person's command, past the door.
    pub(crate) fn command(&self, run_id: &str, command: &Command) {
        self.change(&RunId::from(run_id), command, &Actor::from("person/dba-1")).unwrap();
    }

    fn change(&self, id: &RunId, command: &Command, by: &Actor) -> Result<Arc<Run>, ControlError> {
        let mut state = self.state.lock().unwrap();
        let held =
            state.runs.get_mut(id).ok_or_else(|| error(Kind::NotFound, "RUN_NOT_FOUND", "there is no such run"))?;
        let now = Timestamp::now();
        let mut turn = Turn::new(&held.run);
        turn.take(command, now).map_err(|r| rejected(&r))?;
        let run = held.take(turn, now, by);
        note_milestones(&mut state.milestones, &run);
        drop(state);
        self.changed.send_modify(|n| *n += 1);
        Ok(run)
    }

    fn source(&self, namespace: &Namespace, source: &PlaybookSource) -> Result<Plan, ControlError> {
        match source {
            PlaybookSource::Inline(yaml) => parse(yaml),
            PlaybookSource::Stored { name, revision } => {
                let state = self.state.lock().unwrap();
                let found = state.playbooks.get(&(namespace.clone(), name.clone())).and_then(|all| match revision {
                    None => all.last(),
                    Some(wanted) => all.iter().find(|p| p.revision == *wanted),
                });
                parse(&found.ok_or_else(|| error(Kind::NotFound, "PLAYBOOK_NOT_FOUND", "no such playbook"))?.yaml)
            }
        }
    }

    /// The answer of the same request before, or none; another request under the same id is refused.
    fn before(&self, caller: &Caller, asked: &str) -> Result<Option<Arc<Run>>, ControlError> {
        let Some(id) = &caller.request_id else { return Ok(None) };
        match self.state.lock().unwrap().answers.get(id) {
            None => Ok(None),
            Some((same, run)) if same == asked => Ok(Some(Arc::clone(run))),
            Some(_) => Err(error(Kind::AlreadyExists, "REQUEST_ID_REUSED", "that id belongs to another request")),
        }
    }

    fn remember(&self, caller: &Caller, asked: String, run: &Arc<Run>) {
        if let Some(id) = &caller.request_id {
            self.state.lock().unwrap().answers.insert(id.clone(), (asked, Arc::clone(run)));
        }
    }
}

impl Held {
    fn take(&mut self, turn: Turn, now: Timestamp, by: &Actor) -> Arc<Run> {
        let (run, events, _) = turn.into_parts();
        self.run = Arc::new(run);
        let first = self.events.len() as u64 + 1;
        for (seq, event) in (first..).zip(events) {
            let run = Arc::clone(&self.run);
            let event = RunEvent { seq, at: now, by: by.clone(), event: Arc::new(event) };
            self.events.push(RunChange { event, run });
        }
        Arc::clone(&self.run)
    }
}

fn note_milestones(seen: &mut Vec<(Namespace, MilestoneView)>, run: &Run) {
    for (phase, planned) in run.phases.iter().zip(&run.plan.phases) {
        let Some(milestone) = &phase.milestone else { continue };
        let last = seen.iter().rev().find(|(_, m)| m.run == run.id && m.phase == planned.id.as_str());
        if last.is_some_and(|(_, m)| m.state == milestone.state) {
            continue;
        }
        seen.push((
            run.namespace.clone(),
            MilestoneView {
                run: run.id.clone(),
                playbook: run.plan.playbook.clone(),
                phase: planned.id.to_string(),
                name: milestone.name.clone(),
                state: milestone.state,
                since: milestone.since,
                due_at: milestone.due_at,
            },
        ));
    }
}

fn agent(name: &str) -> AgentView {
    AgentView {
        namespace: Namespace::from("default"),
        name: AgentName::from(name),
        role: "infra".to_owned(),
        labels: BTreeMap::from([("site".to_owned(), "eu".to_owned())]),
        host: name.to_owned(),
        state: "READY",
        instance: "i1".to_owned(),
        slots: 4,
        busy: 1,
        busy_of_ended_runs: 0,
        last_beat_at: Some(Timestamp::now()),
        actions: vec![("tls.certificate".to_owned(), "1.0.0".to_owned())],
        software: "test 1".to_owned(),
    }
}

#[async_trait]
impl Control for Fake {
    async fn lint(&self, _: &Namespace, yaml: &str) -> Vec<Finding> {
        findings(yaml)
    }

    async fn submit_playbook(
        &self,
        namespace: &Namespace,
        yaml: &str,
        validate_only: bool,
        caller: &Caller,
    ) -> Result<PlaybookRevision, ControlError> {
        let plan = parse(yaml)?;
        let revision = PlaybookRevision {
            namespace: namespace.clone(),
            name: plan.playbook.clone(),
            revision: digest_of(yaml),
            yaml: yaml.into(),
            owner: plan.owner,
            submitted_at: Timestamp::now(),
            submitted_by: caller.actor.clone(),
            warnings: Vec::new(),
        };
        if !validate_only {
            let mut state = self.state.lock().unwrap();
            state.playbooks.entry((namespace.clone(), plan.playbook)).or_default().push(revision.clone());
        }
        Ok(revision)
    }

    async fn playbook(
        &self,
        namespace: &Namespace,
        name: &str,
        revision: Option<&Digest>,
    ) -> Result<PlaybookRevision, ControlError> {
        let state = self.state.lock().unwrap();
        let all = state.playbooks.get(&(namespace.clone(), name.to_owned()));
        all.and_then(|all| all.iter().rev().find(|p| revision.is_none_or(|r| p.revision == *r)).cloned())
            .ok_or_else(|| error(Kind::NotFound, "PLAYBOOK_NOT_FOUND", "no such playbook"))
    }

    async fn list_playbooks(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<PlaybookRevision>, ControlError> {
        let state = self.state.lock().unwrap();
        let all = state.playbooks.iter().filter(|((ns, _), _)| ns == namespace);
        let items = all.filter_map(|((_, name), revisions)| Some((name.clone(), revisions.last()?.clone())));
        Ok(page(items.collect(), page_size, page_token))
    }

    async fn plan(
        &self,
        namespace: &Namespace,
        source: &PlaybookSource,
        inputs: Value,
    ) -> Result<Planned, ControlError> {
        let mut plan = self.source(namespace, source)?;
        plan.inputs = inputs;
        let digest = digest_of(&serde_json::to_string(&plan).unwrap());
        Ok(Planned { plan: Arc::new(plan), digest, warnings: Vec::new() })
    }

    async fn start_run(
        &self,
        namespace: &Namespace,
        source: &PlaybookSource,
        inputs: Value,
        note: &str,
        plan_digest: Option<&Digest>,
        validate_only: bool,
        caller: &Caller,
    ) -> Result<Arc<Run>, ControlError> {
        let asked = format!("{source:?} {inputs} {note} {plan_digest:?} {validate_only}");
        if let Some(run) = self.before(caller, &asked)? {
            return Ok(run);
        }
        let planned = self.plan(namespace, source, inputs).await?;
        if plan_digest.is_some_and(|d| *d != planned.digest) {
            return Err(error(Kind::FailedPrecondition, "PLAN_CHANGED", "the plan is another one"));
        }
        let now = Timestamp::now();
        let mut state = self.state.lock().unwrap();
        let id = RunId::from(format!("0199-{:04}", state.runs.len() + 1));
        let started = RunStarted {
            run: id.clone(),
            namespace: namespace.clone(),
            plan: planned.plan,
            plan_digest: planned.digest,
            note: note.to_owned(),
        };
        let turn = Turn::begin(started, &caller.actor, now).map_err(|r| rejected(&r))?;
        let mut held = Held { run: Arc::new(turn.run().clone()), events: Vec::new(), by: caller.actor.clone() };
        let run = held.take(turn, now, &caller.actor);
        if !validate_only {
            state.runs.insert(id, held);
            note_milestones(&mut state.milestones, &run);
        }
        drop(state);
        self.changed.send_modify(|n| *n += 1);
        self.remember(caller, asked, &run);
        Ok(run)
    }

    async fn run(&self, namespace: &Namespace, id: &RunId) -> Result<Arc<Run>, ControlError> {
        let state = self.state.lock().unwrap();
        let held = state.runs.get(id).filter(|h| h.run.namespace == *namespace);
        held.map(|h| Arc::clone(&h.run)).ok_or_else(|| error(Kind::NotFound, "RUN_NOT_FOUND", "there is no such run"))
    }

    fn quarantine(&self, id: &RunId) -> Option<Arc<str>> {
        self.state.lock().unwrap().quarantine.get(id).cloned()
    }

    async fn list_runs(
        &self,
        namespace: &Namespace,
        filter: &RunFilter,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<RunSummary>, ControlError> {
        let state = self.state.lock().unwrap();
        let all = state.runs.values().filter(|h| h.run.namespace == *namespace).map(|h| RunSummary {
            id: h.run.id.clone(),
            namespace: namespace.clone(),
            playbook: h.run.plan.playbook.clone(),
            state: run_state(&h.run),
            state_reason: state_reason(&h.run),
            started_at: h.run.started_at,
            started_by: h.by.clone(),
            ended_at: None,
            waiting: h.run.explain(Timestamp::now()).into_iter().min_by_key(|w| w.on).map(|w| MostUrgent {
                subject: w.subject.to_string(),
                waits_for: w.waits_for,
                on_whom: w.on_whom,
                on: w.on,
                since: w.since,
            }),
        });
        let fits = |s: &RunSummary| filter.admits(s.state, &s.playbook, || s.waiting.as_ref().map(|w| w.on));
        Ok(page(all.filter(fits).map(|s| (s.id.to_string(), s)).collect(), page_size, page_token))
    }

    async fn command_run(
        &self,
        namespace: &Namespace,
        id: &RunId,
        command: Command,
        caller: &Caller,
    ) -> Result<Arc<Run>, ControlError> {
        self.run(namespace, id).await?;
        let asked = format!("{id} {command:?}");
        if let Some(run) = self.before(caller, &asked)? {
            return Ok(run);
        }
        let run = self.change(id, &command, &caller.actor)?;
        self.remember(caller, asked, &run);
        Ok(run)
    }

    async fn run_events(
        &self,
        namespace: &Namespace,
        id: &RunId,
        after_seq: u64,
        limit: usize,
    ) -> Result<Vec<RunEvent>, ControlError> {
        self.run(namespace, id).await?;
        let state = self.state.lock().unwrap();
        let events = state.runs[id].events.iter().map(|change| &change.event);
        Ok(events.filter(|e| e.seq > after_seq).take(limit.min(1_000)).cloned().collect())
    }

    async fn watch_run(
        &self,
        namespace: &Namespace,
        id: &RunId,
        after_seq: u64,
    ) -> Result<Watch<RunChange>, ControlError> {
        self.run(namespace, id).await?;
        let (forgotten, flood) = {
            let state = self.state.lock().unwrap();
            (state.forgotten_until, state.flood.then(|| state.runs[id].events[0].clone()))
        };
        if after_seq < forgotten {
            return Err(error(Kind::OutOfRange, "SEQUENCE_EXPIRED", "that number is no longer here"));
        }
        if let Some(event) = flood {
            let flooded = Arc::clone(&self.flooded);
            return Ok(stream::repeat_with(move || {
                flooded.fetch_add(1, Ordering::SeqCst);
                Ok(event.clone())
            })
            .boxed());
        }
        let events = |s: &State, id: &RunId| s.runs[id].events.clone();
        Ok(follow(self, id.clone(), usize::try_from(after_seq).unwrap(), events, |e: &RunChange| {
            matches!(*e.event.event, Event::RunEnded { .. })
        }))
    }

    async fn run_logs(
        &self,
        namespace: &Namespace,
        id: &RunId,
        filter: &logs::Filter,
        after: u64,
        limit: usize,
    ) -> Result<logs::Page, ControlError> {
        self.run(namespace, id).await?;
        self.logged(id, filter, after, limit)
    }

    async fn watch_run_logs(
        &self,
        namespace: &Namespace,
        id: &RunId,
        filter: &logs::Filter,
        after: u64,
    ) -> Result<Watch<logs::Entry>, ControlError> {
        let page = self.run_logs(namespace, id, filter, after, usize::MAX).await?;
        let page = stream::iter(page.entries.into_iter().map(Ok));
        // It goes on until the run has ended.
        let ended = self.run(namespace, id).await?.has_ended();
        Ok(if ended { page.boxed() } else { page.chain(stream::pending()).boxed() })
    }

    async fn explain_run(&self, namespace: &Namespace, id: &RunId) -> Result<Vec<Explanation>, ControlError> {
        let run = self.run(namespace, id).await?;
        let waiting = run.explain(Timestamp::now());
        Ok(waiting.into_iter().map(Explanation::from).collect())
    }

    async fn list_milestones(
        &self,
        namespace: &Namespace,
        run: Option<&RunId>,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<MilestoneView>, ControlError> {
        let state = self.state.lock().unwrap();
        let mut last = BTreeMap::new();
        for (ns, m) in &state.milestones {
            if ns == namespace && run.is_none_or(|r| *r == m.run) {
                last.insert(format!("{}.{}", m.run, m.phase), m.clone());
            }
        }
        Ok(page(last.into_iter().collect(), page_size, page_token))
    }

    async fn watch_milestones(
        &self,
        namespace: &Namespace,
        run: Option<&RunId>,
    ) -> Result<Watch<MilestoneView>, ControlError> {
        let (namespace, run) = (namespace.clone(), run.cloned());
        let past = self.state.lock().unwrap().milestones.len();
        let all = |s: &State, _: &RunId| s.milestones.clone();
        let only = run.clone();
        let last = move |(_, m): &(Namespace, MilestoneView)| {
            only.as_ref().is_some_and(|r| *r == m.run) && m.state == MilestoneState::Reached
        };
        let watch = follow(self, RunId::from(""), past, all, last);
        let wanted = move |item: Result<(Namespace, MilestoneView), ControlError>| {
            let wanted = item
                .ok()
                .filter(|(ns, m)| *ns == namespace && run.as_ref().is_none_or(|r| *r == m.run))
                .map(|(_, m)| Ok(m));
            std::future::ready(wanted)
        };
        Ok(watch.filter_map(wanted).boxed())
    }

    async fn list_agents(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<AgentView>, ControlError> {
        let state = self.state.lock().unwrap();
        let all = state.agents.values().filter(|a| a.namespace == *namespace);
        Ok(page(all.map(|a| (a.name.to_string(), a.clone())).collect(), page_size, page_token))
    }

    async fn agent(&self, namespace: &Namespace, name: &AgentName) -> Result<AgentView, ControlError> {
        let state = self.state.lock().unwrap();
        let found = state.agents.get(name).filter(|a| a.namespace == *namespace);
        found.cloned().ok_or_else(|| error(Kind::NotFound, "AGENT_NOT_FOUND", "there is no such agent"))
    }

    async fn drain_agent(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        _: &Caller,
    ) -> Result<AgentView, ControlError> {
        self.agent(namespace, name).await?;
        let mut state = self.state.lock().unwrap();
        let agent = state.agents.get_mut(name).unwrap();
        agent.state = "DRAINING";
        Ok(agent.clone())
    }

    async fn forget_agent(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        _: &Caller,
    ) -> Result<AgentView, ControlError> {
        let agent = self.agent(namespace, name).await?;
        if agent.state != "LOST" {
            return Err(error(Kind::FailedPrecondition, "AGENT_ANSWERS", "the agent is not lost"));
        }
        self.state.lock().unwrap().agents.remove(name);
        Ok(agent)
    }

    fn coordinator(&self) -> CoordinatorView {
        let state = self.state.lock().unwrap();
        CoordinatorView {
            cluster: "fake".to_owned(),
            drain: state.drain.clone(),
            at_work_count: 0,
            at_work: Vec::new(),
        }
    }

    async fn drain_coordinator(&self, caller: &Caller) -> Result<CoordinatorView, ControlError> {
        let drain = DrainView { by: caller.actor.clone(), since: Timestamp::UNIX_EPOCH };
        self.state.lock().unwrap().drain.get_or_insert(drain);
        Ok(self.coordinator())
    }

    async fn resume_coordinator(&self, _: &Caller) -> Result<CoordinatorView, ControlError> {
        self.state.lock().unwrap().drain = None;
        Ok(self.coordinator())
    }
}
