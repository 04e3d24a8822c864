//! What agents and outsiders send, from the bus to the runs and the registry.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use jiff::Timestamp;
use muster_bus::{
    Bus, BusError, Delivery, Subscription,
    bus::MAX_PAYLOAD,
    message::{
        AttemptKey, Beat, BeatReply, LogLine, Register, RegisterReply, Report, ReportReply, Status, StatusReply,
    },
    subject::{AgentSubject, Subjects, sender},
};
use muster_engine::{
    ids::{AgentName, InstanceId, Namespace, RunId, StepId},
    run::Fence,
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    Shared, convert,
    entry::{Burial, Message},
    logs::may_log,
    post::Post,
    projector::Ticket,
    report::reply,
};
use crate::{
    journal::{NewRecord, StreamAppend},
    logs::Line,
    registry::{
        Admission, Admitted, Pulse,
        records::{AgentEvent, stream_of},
    },
};

/// Everything that agents and outsiders send.
pub(super) struct Intake {
    register: Subscription,
    report: Subscription,
    beat: Subscription,
    status: Subscription,
    log: Subscription,
    signal: Subscription,
    /// To tasks.
    answer: Subscription,
}

impl Intake {
    /// Subscribe to everything.
    pub(super) async fn open(bus: &dyn Bus, post: &Post) -> Result<Self, BusError> {
        Ok(Self {
            register: bus.subscribe(Subjects::all(AgentSubject::Register)).await?,
            report: bus.subscribe(Subjects::all(AgentSubject::Report)).await?,
            beat: bus.subscribe(Subjects::all(AgentSubject::Beat)).await?,
            status: bus.subscribe(Subjects::all(AgentSubject::Status)).await?,
            log: bus.subscribe(Subjects::all(AgentSubject::Log)).await?,
            signal: bus.subscribe(Subjects::all(AgentSubject::Signal)).await?,
            answer: bus.subscribe(&post.answers()).await?,
        })
    }

    /// Handle what arrives until the coordinator stops.
    pub(super) fn serve(self, shared: &Arc<Shared>) {
        each(shared, self.report, Shared::take_report);
        each(shared, self.beat, Shared::take_beat);
        each(shared, self.status, |shared, d| shared.take_status(d));
        each(shared, self.log, |shared, d| shared.take_log(&d));
        each(shared, self.signal, Shared::take_signal);
        each(shared, self.answer, |shared, d| shared.take_answer(&d));
        each(shared, self.register, |shared, d| {
            let Ok(permit) = Arc::clone(&shared.slow_intake).try_acquire_owned() else {
                let why = "too many agents register at once".to_owned();
                if let Some(to) = d.reply {
                    to.send(reply(&RegisterReply::Retry { why }));
                }
                return;
            };
            let registering = Arc::clone(shared);
            shared.tasks.spawn(async move {
                registering.take_register(d).await;
                drop(permit);
            });
        });
    }
}

fn each(shared: &Arc<Shared>, mut from: Subscription, take: impl Fn(&Arc<Shared>, Delivery) + Send + 'static) {
    let shared = Arc::clone(shared);
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => return,
                next = from.next() => match next {
                    Some(delivery) => take(&shared, delivery),
                    None => return,
                },
            }
        }
    });
}

/// Who sent it and what it says; a message that can't be read, or that names another sender, is not answered.
fn read<T: DeserializeOwned>(unreadable: &Unreadable, delivery: &Delivery) -> Option<(Namespace, AgentName, T)> {
    let (namespace, agent) = sender(&delivery.subject)?;
    let size = delivery.payload.len();
    if size > MAX_PAYLOAD {
        unreadable.tell(&delivery.subject, &format!("{size} bytes are over the limit of {MAX_PAYLOAD}"));
        return None;
    }
    match serde_json::from_slice(&delivery.payload) {
        Ok(message) => Some((namespace.into(), agent.into(), message)),
        Err(e) => {
            unreadable.tell(&delivery.subject, &e.to_string());
            None
        }
    }
}

/// Messages that can't be read are told once a second at most, with how many were not: who sends many must not fill the log.
#[derive(Default)]
pub(super) struct Unreadable(Mutex<(Option<Instant>, u64)>);

impl Unreadable {
    fn tell(&self, subject: &str, why: &str) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, untold) = &mut *told;
        if last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            *untold += 1;
            return;
        }
        *last = Some(Instant::now());
        // The words of a parser may quote what it was given.
        let why: String = why.chars().take(200).collect();
        warn!(subject, untold = std::mem::take(untold), "a message that can't be read: {why:?}");
    }
}

impl Shared {
    fn take_report(self: &Arc<Self>, delivery: Delivery) {
        let Some((namespace, agent, report)) = read::<Report>(&self.unreadable, &delivery) else { return };
        if report.cluster != self.cluster {
            return;
        }
        let id = RunId::from(report.key.run.as_str());
        let message = Message::Report { agent, report: Box::new(report), reply: delivery.reply };
        if let Some(entry) = self.runs.get(&id).filter(|run| run.namespace == namespace) {
            if let Err(full) = entry.offer(message) {
                refuse_report(full.into_inner());
            }
        } else if let Ok(permit) = Arc::clone(&self.slow_intake).try_acquire_owned() {
            let loading = Arc::clone(self);
            self.tasks.spawn(async move {
                loading.report_to_absent(namespace, id, message).await;
                drop(permit);
            });
        } else {
            refuse_report(message);
        }
    }

    /// The run is not in memory: it ended long ago, or was never here.
    async fn report_to_absent(self: Arc<Self>, namespace: Namespace, id: RunId, message: Message) {
        match self.load(&namespace, &id).await {
            Ok(Some(entry)) => {
                if let Err(message) = entry.tell(message).await {
                    refuse_report(message);
                }
            }
            Ok(None) => answer_report(message, &ReportReply::Gone),
            Err(e) => answer_report(message, &ReportReply::Retry { why: e.to_string() }),
        }
    }

    fn take_beat(self: &Arc<Self>, delivery: Delivery) {
        let Some((namespace, agent, beat)) = read::<Beat>(&self.unreadable, &delivery) else { return };
        if beat.cluster != self.cluster {
            return self.answer_beat(delivery, true, Vec::new());
        }
        let instance = InstanceId::from(beat.instance.as_str());
        let (holds, ending) = (beat.holds.clone(), beat.ending);
        let left = self.left_behind(&namespace, &agent, &beat);
        match self.registry.beat(&namespace, &agent, beat, left, self.clock.now()) {
            Pulse::Unknown => self.answer_beat(delivery, true, Vec::new()),
            Pulse::Alive { orders, found } => {
                if !found.is_empty() {
                    info!(%agent, %instance, "a lost instance answers again");
                    let mut held = by_run(&holds);
                    for entry in found {
                        let holds = held.remove(&entry.id).unwrap_or_default();
                        self.tell(entry, Message::Found { agent: agent.clone(), instance: instance.clone(), holds });
                    }
                }
                self.answer_beat(delivery, false, orders);
                if ending {
                    self.end_leavers();
                }
            }
        }
    }

    /// What an instance holds of runs that have ended without it, and whether it is to stop that; as far as they are in memory, where
    /// a registration brings them.
    fn left_behind(&self, namespace: &Namespace, agent: &AgentName, beat: &Beat) -> Vec<(AttemptKey, bool)> {
        let left = beat.holds.iter().filter_map(|key| {
            let entry = self.runs.get(&RunId::from(key.run.as_str())).filter(|run| run.namespace == *namespace)?;
            let (step, instance) = (key.step.as_str().into(), beat.instance.as_str().into());
            let told =
                entry.run()?.left_behind(&Fence { step, attempt: key.attempt, agent: agent.clone(), instance })?;
            Some((key.clone(), told))
        });
        left.collect()
    }

    fn answer_beat(&self, delivery: Delivery, register_again: bool, orders: Vec<muster_bus::message::Order>) {
        if let Some(to) = delivery.reply {
            to.send(reply(&BeatReply { now_ms: self.clock.now().as_millisecond(), register_again, orders }));
        }
    }

    /// A status is no promise: it is answered at once, and journalled by its run when it says something new, at most once
    /// per attempt and interval.
    fn take_status(&self, mut delivery: Delivery) {
        let Some((namespace, agent, status)) = read::<Status>(&self.unreadable, &delivery) else { return };
        if status.cluster != self.cluster {
            return;
        }
        if let Some(to) = delivery.reply.take() {
            to.send(reply(&StatusReply { orders: self.registry.orders(&status.instance) }));
        }
        let now = self.clock.now();
        let entry = self.runs.get(&RunId::from(status.key.run.as_str()));
        let Some(entry) = entry.filter(|run| run.namespace == namespace) else { return };
        let (step, attempt) = (StepId::from(status.key.step.as_str()), status.key.attempt);
        let fence = Fence { step, attempt, agent, instance: status.instance.as_str().into() };
        // Before anything is noted of it: nobody silences another's statuses by sending his own.
        if !entry.run().is_some_and(|run| run.is_live(&fence))
            || !self.statuses.is_due(&entry, &fence.step, attempt, now)
        {
            return;
        }
        // A status that finds no room is lost; the next one says more.
        let _ = entry.offer(Message::Status { fence, status: Box::new(convert::status(status, now)) });
    }

    /// A line is taken of who has the attempt, or had it until a moment ago, and of nobody else.
    fn take_log(&self, delivery: &Delivery) {
        let Some(logs) = &self.logs else { return };
        let Some((namespace, agent, line)) = read::<LogLine>(&self.unreadable, delivery) else { return };
        let entry = self.runs.get(&RunId::from(line.key.run.as_str())).filter(|run| run.namespace == namespace);
        let Some(run) = entry.and_then(|entry| entry.run()) else { return };
        let (step, attempt) = (StepId::from(line.key.step.as_str()), line.key.attempt);
        let fence = Fence { step, attempt, agent, instance: line.instance.as_str().into() };
        if line.line > 0 && may_log(&run, &fence, self.clock.now()) {
            let (at_ms, text) = (line.at_ms, line.text);
            logs.take(Line { run: run.id.clone(), step: fence.step, attempt, number: line.line, at_ms, text });
        }
    }

    async fn take_register(self: Arc<Self>, mut delivery: Delivery) {
        let Some((namespace, agent, register)) = read::<Register>(&self.unreadable, &delivery) else { return };
        let answer = if register.agent == agent.as_str() {
            self.register(&namespace, &register).await
        } else {
            RegisterReply::Refused { why: format!("the subject says that {agent} sends this, not {}", register.agent) }
        };
        if let Some(to) = delivery.reply.take() {
            to.send(reply(&answer));
        }
    }

    async fn register(self: &Arc<Self>, namespace: &Namespace, register: &Register) -> RegisterReply {
        let name = AgentName::from(register.agent.as_str());
        let noting = self.projector.begin();
        let seq = match self.registry.consider(namespace, register) {
            Admission::Refused(why) => {
                warn!(agent = %name, "a registration was refused: {why}");
                return RegisterReply::Refused { why };
            }
            Admission::InUse(instance) => return RegisterReply::IdInUse { instance: instance.as_str().to_owned() },
            Admission::Welcome { journal: None } => None,
            Admission::Welcome { journal: Some((expected_seq, profile)) } => {
                let at = self.clock.now();
                let event = AgentEvent::AgentRegistered(Box::new(profile));
                let by = Self::actor_of(&name);
                if let Err(e) = self.append_agent(namespace, &name, expected_seq, &event, by, at, None).await {
                    return RegisterReply::Retry { why: e.to_string() };
                }
                info!(agent = %name, instance = register.instance, role = register.role, "agent registered");
                Some(expected_seq + 1)
            }
        };
        let now = self.clock.now();
        let admitted = self.registry.admit(namespace, register, seq, now);
        if seq.is_some() {
            self.projector.agent_changed(namespace, &name);
        }
        drop(noting);
        self.tell_runs(namespace, register, admitted).await;
        RegisterReply::Registered {
            cluster: self.cluster.clone(),
            term: self.term,
            task_subject: Subjects::new(namespace.as_str()).task(&register.agent, &register.instance),
            beat_every_ms: self.intervals.beat_every_ms,
            lost_after_ms: self.intervals.lost_after_ms,
            status_every_ms: self.intervals.status_every_ms,
            now_ms: now.as_millisecond(),
        }
    }

    /// Append to an agent's stream, and what goes with it.
    #[expect(clippy::too_many_arguments, reason = "an envelope, and what is in it")]
    pub(super) async fn append_agent(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        expected_seq: u64,
        event: &AgentEvent,
        by: muster_engine::ids::Actor,
        at: Timestamp,
        with: Option<StreamAppend>,
    ) -> Result<Ticket<'_>, crate::journal::AppendError> {
        let event = serde_json::value::to_raw_value(event)
            .map_err(|e| crate::journal::AppendError::Unavailable(e.to_string()))?;
        let records = vec![NewRecord { at, by, event }];
        let append = StreamAppend { stream: stream_of(namespace, name), expected_seq, records };
        self.append([append].into_iter().chain(with).collect()).await
    }

    /// What a registration says about attempts, to the runs they belong to.
    async fn tell_runs(self: &Arc<Self>, namespace: &Namespace, register: &Register, admitted: Admitted) {
        let agent = AgentName::from(register.agent.as_str());
        let instance = InstanceId::from(register.instance.as_str());
        let spooled = by_run(&register.spooled);
        let host = register.host.as_ref().unwrap_or(&register.agent).as_str();
        for (dead, runs) in admitted.buried {
            for entry in runs {
                let spooled = spooled.get(&entry.id).cloned().unwrap_or_default();
                let agent = register.agent.as_str().into();
                let burial = Burial { instance: dead.clone(), agent, host: host.into(), spooled };
                self.tell(entry, Message::Buried(Box::new(burial)));
            }
        }
        if let Some((old, runs)) = admitted.replaced {
            warn!(agent = register.agent, "instance {instance} has taken the place of {old}, which no longer answers");
            for entry in runs {
                self.tell(entry, Message::Lost { instance: old.clone() });
            }
        }
        let mut held = by_run(&register.holds);
        for (run, more) in spooled {
            held.entry(run).or_default().extend(more);
        }
        for entry in admitted.at_instance {
            let holds = held.remove(&entry.id).unwrap_or_default();
            self.tell(entry, Message::Found { agent: agent.clone(), instance: instance.clone(), holds });
        }
        for (run, holds) in held {
            match self.load(namespace, &run).await {
                Ok(Some(entry)) => {
                    self.tell(entry, Message::Found { agent: agent.clone(), instance: instance.clone(), holds });
                }
                Ok(None) => {
                    warn!(agent = register.agent, run_id = %run, "the agent holds attempts of a run that is not here");
                }
                Err(e) => warn!(run_id = %run, "the run can't be loaded: {e}"),
            }
        }
    }
}

fn refuse_report(message: Message) {
    debug!("a run has no room for another report");
    answer_report(message, &ReportReply::Retry { why: "the run has too much to do just now".to_owned() });
}

fn answer_report(message: Message, answer: &ReportReply) {
    if let Message::Report { reply: Some(to), .. } = message {
        to.send(reply(answer));
    }
}

fn by_run(keys: &[AttemptKey]) -> BTreeMap<RunId, Vec<(StepId, u32)>> {
    let mut runs: BTreeMap<RunId, Vec<(StepId, u32)>> = BTreeMap::new();
    for key in keys {
        runs.entry(key.run.as_str().into()).or_default().push((key.step.as_str().into(), key.attempt));
    }
    runs
}
