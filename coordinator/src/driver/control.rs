//! What can be asked of a coordinator, done. Answers come from what is on disk: a run's view is published after its sync, and
//! lists wait for the store to follow.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use jiff::Timestamp;
use muster_engine::{
    ids::{AgentName, Digest, Namespace, RunId},
    playbook::Finding,
    run::{Command, Run, RunStarted},
};
use serde_json::{Value, json};
use tokio::sync::{broadcast, oneshot};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::{
    Coordinator, Shared,
    entry::{Message, RunEntry},
    errors, history,
    requests::Request,
    rows,
    run_task::RunTask,
    runs::Arrival,
    watch,
};
use crate::{
    control::{
        AgentView, Caller, Control, ControlError, CoordinatorView, Explanation, MilestoneView, Page, Planned,
        PlaybookRevision, PlaybookSource, RunChange, RunEvent, RunFilter, RunSummary, Watch,
    },
    journal::AppendError,
    logs,
    registry::{Forgettable, records::AgentEvent},
    store::{MilestoneRow, RunRow, StoreError},
};

/// No page is longer.
const PAGE_AT_MOST: usize = 1_000;

#[async_trait]
impl Control for Coordinator {
    async fn lint(&self, namespace: &Namespace, yaml: &str) -> Vec<Finding> {
        self.shared.lint(namespace, yaml)
    }

    async fn submit_playbook(
        &self,
        namespace: &Namespace,
        yaml: &str,
        validate_only: bool,
        caller: &Caller,
    ) -> Result<PlaybookRevision, ControlError> {
        self.shared.submit(namespace, yaml, validate_only, caller).await
    }

    async fn playbook(
        &self,
        namespace: &Namespace,
        name: &str,
        revision: Option<&Digest>,
    ) -> Result<PlaybookRevision, ControlError> {
        self.shared.playbook(namespace, name, revision).await
    }

    async fn list_playbooks(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<PlaybookRevision>, ControlError> {
        self.shared.list_playbooks(namespace, page_of(page_size), page_token).await
    }

    async fn plan(
        &self,
        namespace: &Namespace,
        source: &PlaybookSource,
        inputs: Value,
    ) -> Result<Planned, ControlError> {
        self.shared.plan(namespace, source, inputs).await
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
        let request = Request::new(namespace, caller, || {
            let named = match source {
                PlaybookSource::Stored { name, revision } => json!([name, revision]),
                PlaybookSource::Inline(yaml) => json!(yaml),
            };
            json!(["start_run", namespace, named, inputs, note, plan_digest]).to_string()
        });
        if request.taken(&self.shared.journal).map_err(|e| errors::read_failed(&e))?.is_some() {
            return self.shared.repeated_start(&request);
        }
        let planned = self.shared.plan(namespace, source, inputs).await?;
        if plan_digest.is_some_and(|wanted| *wanted != planned.digest) {
            return Err(errors::plan_changed(&planned.digest));
        }
        let started = RunStarted {
            run: uuid::Uuid::now_v7().to_string().into(),
            namespace: namespace.clone(),
            plan: planned.plan,
            plan_digest: planned.digest,
            note: note.to_owned(),
        };
        if validate_only {
            return Ok(Arc::new(Run::start(self.shared.clock.now(), &caller.actor, &started)));
        }
        self.shared.start(started, request).await
    }

    async fn run(&self, namespace: &Namespace, id: &RunId) -> Result<Arc<Run>, ControlError> {
        let entry = self.shared.existing(namespace, id).await?;
        entry.run().ok_or_else(|| match entry.view().quarantine {
            Some(why) => errors::quarantined(id, &why),
            None => errors::run_not_found(id),
        })
    }

    fn quarantine(&self, id: &RunId) -> Option<Arc<str>> {
        self.shared.runs.get(id).and_then(|entry| entry.view().quarantine)
    }

    async fn list_runs(
        &self,
        namespace: &Namespace,
        filter: &RunFilter,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<RunSummary>, ControlError> {
        let (namespace, filter, token) = (namespace.clone(), filter.clone(), page_token.to_owned());
        let shared = Arc::clone(&self.shared);
        let wanted = move |row: &RunRow| filter.admits(&row.state, &row.playbook, || shared.waits_on(row));
        let page =
            self.shared.look_up(move |store| store.list_runs(&namespace, wanted, page_of(page_size), &token)).await?;
        let summary = |row: RunRow| {
            let entry = self.shared.runs.get(&row.id);
            let waiting = entry.as_ref().and_then(|entry| self.shared.most_urgent(entry));
            rows::summary_of(row, entry.map(|entry| entry.view()), waiting)
        };
        Ok(Page { items: page.items.into_iter().map(summary).collect(), next_page_token: page.next_page_token })
    }

    async fn command_run(
        &self,
        namespace: &Namespace,
        id: &RunId,
        command: Command,
        caller: &Caller,
    ) -> Result<Arc<Run>, ControlError> {
        self.shared.command(namespace, id, command, caller).await
    }

    async fn run_events(
        &self,
        namespace: &Namespace,
        id: &RunId,
        after_seq: u64,
        limit: usize,
    ) -> Result<Vec<RunEvent>, ControlError> {
        // It has to be there, and in this namespace.
        self.run(namespace, id).await?;
        history::page(&self.shared.journal, id, after_seq, limit.min(PAGE_AT_MOST)).await
    }

    async fn watch_run(
        &self,
        namespace: &Namespace,
        id: &RunId,
        after_seq: u64,
    ) -> Result<Watch<RunChange>, ControlError> {
        let entry = self.shared.existing(namespace, id).await?;
        let (watcher, live) = watch::channel();
        let (reply, now) = oneshot::channel();
        self.shared.say_or_refuse(entry, Message::Watch { watcher, reply }).await?;
        let run = now.await.map_err(|_| errors::stopping())?;
        if after_seq > run.seq {
            return Err(errors::seq_ahead(after_seq, run.seq));
        }
        let before = history::changes(&self.shared.journal, id, after_seq, run.seq);
        Ok(if run.has_ended() { Box::pin(before) } else { Box::pin(before.chain(live)) })
    }

    async fn run_logs(
        &self,
        namespace: &Namespace,
        id: &RunId,
        filter: &logs::Filter,
        after: u64,
        limit: usize,
    ) -> Result<logs::Page, ControlError> {
        let logs = self.shared.logs_of(namespace, id, filter).await?;
        self.shared.logs_settled().await;
        logs.page(id, filter, after, limit.min(PAGE_AT_MOST)).await.map_err(|e| errors::log_failed(id, &e))
    }

    async fn watch_run_logs(
        &self,
        namespace: &Namespace,
        id: &RunId,
        filter: &logs::Filter,
        after: u64,
    ) -> Result<Watch<logs::Entry>, ControlError> {
        let logs = self.shared.logs_of(namespace, id, filter).await?;
        // A position that is nowhere is refused now, not in the stream.
        let first = logs.page(id, filter, after, 1).await.map_err(|e| errors::log_failed(id, &e))?;
        Ok(Box::pin(self.shared.follow_logs(namespace, id, logs, filter.clone(), first)))
    }

    async fn explain_run(&self, namespace: &Namespace, id: &RunId) -> Result<Vec<Explanation>, ControlError> {
        let entry = self.shared.existing(namespace, id).await?;
        Ok(self.shared.explain(&entry))
    }

    async fn list_milestones(
        &self,
        namespace: &Namespace,
        run: Option<&RunId>,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<MilestoneView>, ControlError> {
        let (namespace, run, token) = (namespace.clone(), run.cloned(), page_token.to_owned());
        let page = self
            .shared
            .look_up(move |store| store.list_milestones(&namespace, run.as_ref(), page_of(page_size), &token))
            .await?;
        Ok(Page { items: page.items.into_iter().map(milestone_of).collect(), next_page_token: page.next_page_token })
    }

    async fn watch_milestones(
        &self,
        namespace: &Namespace,
        run: Option<&RunId>,
    ) -> Result<Watch<MilestoneView>, ControlError> {
        if let Some(id) = run {
            self.shared.existing(namespace, id).await?;
        }
        Ok(milestones_of(self.shared.milestones.subscribe(), namespace.clone(), run.cloned()))
    }

    async fn list_agents(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<AgentView>, ControlError> {
        let page_size = page_of(page_size);
        let mut items = self.shared.registry.views(namespace, page_token, page_size + 1);
        let more = items.len() > page_size;
        items.truncate(page_size);
        let last = items.last().filter(|_| more).map(|a| a.name.as_str().to_owned());
        Ok(Page { items, next_page_token: last.unwrap_or_default() })
    }

    async fn agent(&self, namespace: &Namespace, name: &AgentName) -> Result<AgentView, ControlError> {
        self.shared.registry.view(namespace, name).ok_or_else(|| errors::agent_not_found(name))
    }

    async fn drain_agent(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        caller: &Caller,
    ) -> Result<AgentView, ControlError> {
        let shared = &self.shared;
        let Some((seq, instance, draining)) = shared.registry.drain_at(namespace, name) else {
            return Err(errors::agent_not_found(name));
        };
        let at = shared.clock.now();
        let request = Request::new(namespace, caller, || format!("drain_agent {namespace} {name}"));
        if shared.was_done(&request)? {
            return self.agent(namespace, name).await;
        }
        if draining {
            shared.take_id(&request, at).await?;
            return self.agent(namespace, name).await;
        }
        let event = AgentEvent::AgentDrained { instance };
        let drained = || shared.registry.drain(namespace, name, seq + 1);
        shared.decide_about_agent(namespace, name, (seq, &event), &request, at, drained).await?;
        self.agent(namespace, name).await
    }

    async fn forget_agent(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        caller: &Caller,
    ) -> Result<AgentView, ControlError> {
        let shared = &self.shared;
        let request = Request::new(namespace, caller, || format!("forget_agent {namespace} {name}"));
        let done = shared.was_done(&request)?;
        let known = shared.registry.known(namespace, name).ok_or_else(|| errors::agent_not_found(name))?;
        if done {
            return Ok(known);
        }
        match shared.registry.forget_at(namespace, name) {
            None => Err(errors::agent_not_found(name)),
            Some(Forgettable::Answers) => Err(errors::agent_answers(name)),
            Some(Forgettable::MayBeAtWork(runs)) => Err(errors::agent_may_be_at_work(name, &runs)),
            Some(Forgettable::Yes { seq, instance }) => {
                let event = AgentEvent::AgentForgotten { instance };
                let forgotten = || shared.registry.forget(namespace, name, seq + 1);
                let at = shared.clock.now();
                shared.decide_about_agent(namespace, name, (seq, &event), &request, at, forgotten).await?;
                Ok(known)
            }
        }
    }

    fn coordinator(&self) -> CoordinatorView {
        self.shared.coordinator()
    }

    async fn drain_coordinator(&self, caller: &Caller) -> Result<CoordinatorView, ControlError> {
        self.shared.set_draining(true, caller).await
    }

    async fn resume_coordinator(&self, caller: &Caller) -> Result<CoordinatorView, ControlError> {
        self.shared.set_draining(false, caller).await
    }
}

impl Shared {
    /// What a person decides about an agent is journalled with the request, and then takes effect.
    async fn decide_about_agent(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        (seq, event): (u64, &AgentEvent),
        request: &Request,
        at: Timestamp,
        takes_effect: impl FnOnce(),
    ) -> Result<(), ControlError> {
        let taken = request.append(at, None);
        match self.append_agent(namespace, name, seq, event, request.actor.clone(), at, taken).await {
            Ok(noting) => {
                takes_effect();
                self.projector.agent_changed(namespace, name);
                drop(noting);
                Ok(())
            }
            Err(AppendError::Conflict { stream, .. }) if request.is_stream(&stream) => self.was_done(request).map(drop),
            Err(e) => Err(errors::append_failed(&e)),
        }
    }

    /// Start a run of a plan; answered when its start, and what could be assigned at once, is on disk.
    pub(super) async fn start(
        self: &Arc<Self>,
        started: RunStarted,
        request: Request,
    ) -> Result<Arc<Run>, ControlError> {
        if self.is_stopping() {
            return Err(errors::stopping());
        }
        let (id, namespace) = (started.run.clone(), started.namespace.clone());
        let (entry, inbox) = RunEntry::new(self.runs.next_key(), id, namespace, None);
        if !matches!(self.runs.insert(&entry, || true), Arrival::In(_)) {
            return Err(errors::busy(&entry.id));
        }
        let (answer, answered) = oneshot::channel();
        self.tasks.spawn(RunTask::start(Arc::clone(self), entry, inbox, started, request, answer));
        answered.await.map_err(|_| errors::stopping())?
    }

    /// Tell a run what somebody wants; answered after the sync.
    pub(super) async fn command(
        self: &Arc<Self>,
        namespace: &Namespace,
        id: &RunId,
        command: Command,
        caller: &Caller,
    ) -> Result<Arc<Run>, ControlError> {
        let request = Request::new(namespace, caller, || format!("command_run {namespace} {id} {command:?}"));
        let entry = self.existing(namespace, id).await?;
        let (answer, answered) = oneshot::channel();
        let message = Message::Command { command: Box::new(command), request: Box::new(request), answer };
        self.say_or_refuse(entry, message).await?;
        answered.await.map_err(|_| errors::stopping())?
    }

    /// A run that is there, in memory or not.
    async fn existing(self: &Arc<Self>, namespace: &Namespace, id: &RunId) -> Result<Arc<RunEntry>, ControlError> {
        self.load(namespace, id).await?.ok_or_else(|| errors::run_not_found(id))
    }

    /// Ask the store, once it has what was on disk when the question came.
    pub(super) async fn look_up<T: Send + 'static>(
        &self,
        question: impl FnOnce(&crate::store::Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ControlError> {
        self.projector.settled().await.map_err(|e| errors::store_failed(&e))?;
        let store = Arc::clone(&self.store);
        let answer = tokio::task::spawn_blocking(move || question(&store)).await;
        let answer = answer.map_err(|_| errors::stopping())?;
        if let Err(StoreError::Damaged(_) | StoreError::Io(_)) = &answer {
            self.projector.look_at_the_store();
        }
        answer.map_err(|e| errors::store_failed(&e))
    }
}

fn page_of(asked: usize) -> usize {
    if asked == 0 { 100 } else { asked.min(PAGE_AT_MOST) }
}

fn milestone_of(row: MilestoneRow) -> MilestoneView {
    MilestoneView {
        run: row.run,
        playbook: row.playbook,
        phase: row.phase.as_str().to_owned(),
        name: row.name,
        state: row.state,
        since: row.since,
        due_at: row.due_at,
    }
}

fn milestones_of(
    changes: broadcast::Receiver<(Namespace, MilestoneView)>,
    namespace: Namespace,
    run: Option<RunId>,
) -> Watch<MilestoneView> {
    let changes = BroadcastStream::new(changes).filter_map(move |change| {
        let change = match change {
            Ok((of, view)) if of == namespace && run.as_ref().is_none_or(|id| *id == view.run) => Some(Ok(view)),
            Ok(_) => None,
            Err(BroadcastStreamRecvError::Lagged(_)) => Some(Err(watch::too_slow())),
        };
        std::future::ready(change)
    });
    // An error is the last thing a watcher hears.
    Box::pin(changes.scan(false, |over, change| {
        let item = (!*over).then_some(change);
        *over |= matches!(item, Some(Err(_)));
        std::future::ready(item)
    }))
}
