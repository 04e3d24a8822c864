//! One task owns one run. A turn takes all that is in the mailbox, decides it on a scratch copy, places what is queued,
//! appends once, waits for the sync, and only then lets anything out.
//!
//! When the append fails its outcome is not known: the scratch is dropped, nothing is done, and the run goes on from what
//! the journal says once that can be read again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use muster_bus::message::AttemptKey;
use muster_engine::{
    ids::{Actor, InstanceId, StepId},
    run::{Command, Run},
};
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    Shared,
    clock::after_ms,
    entry::{Answer, Message, RunEntry, Signals},
    errors,
    listed::{Listed, Why},
    post::Token,
    requests::Request,
    turn::{Pending, Turn},
    watch::Watcher,
};
use crate::journal::StreamId;

/// So many messages are taken in one turn at most; the rest is the next turn's.
const BATCH: usize = 64;

/// How soon something overdue is looked at again, in milliseconds.
const OVERDUE_MS: u64 = 1_000;

/// After a failed append the journal is tried again this soon, then half as often each time up to [`AGAIN_AT_MOST`].
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// The longest rest between two tries.
pub(super) const AGAIN_AT_MOST: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct RunTask {
    pub(super) shared: Arc<Shared>,
    pub(super) entry: Arc<RunEntry>,
    pub(super) inbox: mpsc::Receiver<Message>,
    pub(super) stream: StreamId,
    /// What is on disk.
    pub(super) run: Arc<Run>,
    /// Steps that have a seat, or wait for one.
    pub(super) seats: Vec<(usize, Sits)>,
    pub(super) errands: Vec<(usize, u32, Token)>,
    /// Attempts that another process may have sent a task of.
    pub(super) adopted: Vec<(usize, u32)>,
    /// Stale reports that were journalled, by step.
    pub(super) stale_kept: HashMap<usize, u32>,
    pub(super) watchers: Vec<Watcher>,
    pub(super) cancels: Vec<(usize, InstanceId, AttemptKey)>,
    wake_registered: Option<Timestamp>,
    /// What a failed append has left to be said again.
    pub(super) later: Vec<Message>,
    pub(super) told_of_end: bool,
    /// What lists were told last.
    pub(super) listed: Listed,
    /// Why it is in its state, as lists were told while it was passive.
    pub(super) listed_why: Why,
}

/// What a step has in the placement table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sits {
    /// It waits, or a seat is reserved for it.
    Asked,
    /// This attempt has the seat.
    Attempt(u32),
}

/// Whether the task goes on.
pub(super) enum Flow {
    On,
    Leave,
}

impl RunTask {
    /// The task of a run that is on disk.
    pub(super) fn new(
        shared: &Arc<Shared>,
        entry: &Arc<RunEntry>,
        inbox: mpsc::Receiver<Message>,
        run: Arc<Run>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            entry: Arc::clone(entry),
            inbox,
            stream: stream_of(&entry.id),
            run,
            seats: Vec::new(),
            errands: Vec::new(),
            adopted: Vec::new(),
            stale_kept: HashMap::new(),
            watchers: Vec::new(),
            cancels: Vec::new(),
            wake_registered: None,
            later: Vec::new(),
            told_of_end: false,
            listed: Listed::default(),
            listed_why: Why::default(),
        }
    }

    /// A run that the journal already has: do what is outstanding, and go on.
    pub(super) fn resume(&mut self) {
        // What a run that has ended may have left at an agent, that agent says when it registers.
        for i in self.run.live_steps().filter(|_| !self.run.has_ended()) {
            if let Some((number, attempt)) = self.run.steps[i].live_attempt() {
                self.shared.registry.occupy(&self.entry, i, &attempt.instance);
                self.seats.push((i, Sits::Attempt(number)));
            }
        }
        self.listed = Listed::of(&self.run);
        self.listed_why = Why::of(&self.run);
        self.told_of_end = self.run.has_ended();
        self.adopted = self.run.live_steps().filter_map(|i| Some((i, self.run.steps[i].live_attempt()?.0))).collect();
        self.reconcile(self.run.outstanding(self.shared.clock.now()), &mut Vec::new());
        self.set_wake_up();
        self.entry.look_again();
    }

    /// Take turns until the run leaves memory.
    pub(super) async fn serve(mut self) {
        loop {
            if self.told_of_end && self.inbox.is_closed() && self.inbox.is_empty() {
                break;
            }
            let Some(first) = self.next().await else { break };
            let mut batch = std::mem::take(&mut self.later);
            batch.push(first);
            while batch.len() < BATCH
                && let Ok(next) = self.inbox.try_recv()
            {
                batch.push(next);
            }
            // In a box of its own: a run that waits does not keep the room for a turn.
            if matches!(Box::pin(self.turn(batch)).await, Flow::Leave) || self.shared.is_stopping() {
                break;
            }
        }
        for (_, _, errand) in self.errands.drain(..) {
            self.shared.end_errand(errand);
        }
        for watcher in self.watchers.drain(..) {
            watcher.end(errors::stopping());
        }
        self.end_wake_up();
    }

    pub(super) fn end_wake_up(&mut self) {
        if let Some(at) = self.wake_registered.take() {
            self.shared.timers.set(&self.entry, Some(at), None);
        }
    }

    async fn turn(&mut self, batch: Vec<Message>) -> Flow {
        let signals = self.entry.take_signals();
        if signals.timer() {
            self.wake_registered = None;
        }
        let mut turn = Turn::new(&self.run, self.shared.clock.now());
        for message in batch {
            self.take(&mut turn, message);
        }
        self.follow_wall_clock(&mut turn);
        self.tick(&mut turn);
        self.place(&mut turn, !signals.nothing());
        self.follow_wall_clock(&mut turn);
        if turn.broken.is_none() && !turn.is_empty() {
            let appends = turn.appends(&self.stream, &self.shared.ours);
            if turn.broken.is_none() {
                let shared = Arc::clone(&self.shared);
                match shared.append(appends).await {
                    Ok(_noting) => {
                        self.act(turn);
                        return self.may_leave(signals);
                    }
                    Err(e) => return self.give_up(turn, e).await,
                }
            }
        }
        if let Some(why) = turn.broken.take() {
            return self.quarantine(turn, &why);
        }
        self.act(turn);
        self.may_leave(signals)
    }

    fn take(&mut self, turn: &mut Turn, message: Message) {
        match message {
            Message::Report { agent, report, reply } => self.report(turn, agent, *report, reply),
            Message::Command { command, request, answer } => {
                Self::command(turn, &command, &request, answer, &self.shared);
            }
            Message::Status { fence, status } => {
                let by = Shared::actor_of(&fence.agent);
                let _ = turn.decide(&Command::ReportStatus { fence, status: *status }, &by);
            }
            Message::Deny { fence, why } => {
                turn.again.push(Message::Deny { fence: fence.clone(), why: why.clone() });
                let by = Shared::actor_of(&fence.agent);
                self.ours(turn, &Command::Deny { fence, why }, &by);
            }
            Message::Lost { instance } => {
                turn.again.push(Message::Lost { instance: instance.clone() });
                self.ours(turn, &Command::LoseInstance { instance }, &self.shared.ours);
            }
            Message::Found { agent, instance, holds } => self.found(turn, agent, instance, holds),
            Message::Buried(burial) => self.buried(turn, burial),
            Message::RestartClocks => {
                turn.again.push(Message::RestartClocks);
                self.ours(turn, &Command::RestartClocks, &self.shared.ours);
            }
            Message::Watch { watcher, reply } => {
                if reply.send(Arc::clone(&self.run)).is_ok() {
                    self.watchers.push(watcher);
                }
            }
            Message::Poke => {}
        }
    }

    /// A command of the house's own: when it is rejected, the state has moved on and nothing is left to do.
    pub(super) fn ours(&self, turn: &mut Turn, command: &Command, by: &Actor) {
        if let Err(rejection) = turn.decide(command, by) {
            debug!(run_id = %self.entry.id, "not taken: {rejection}");
        }
    }

    fn command(turn: &mut Turn, command: &Command, request: &Request, answer: Answer, shared: &Shared) {
        let in_this_turn = request.taken_by(&turn.requests);
        match in_this_turn.map_or_else(|| request.taken(&shared.journal), |taken| Ok(Some(taken))) {
            Ok(None) => {}
            Ok(Some(taken)) => {
                let pending = match taken.run() {
                    Ok(_) => Pending::Taken(answer),
                    Err(e) => Pending::Refused(answer, Box::new(e)),
                };
                return turn.answers.push(pending);
            }
            Err(e) => return turn.answers.push(Pending::Refused(answer, Box::new(errors::read_failed(&e)))),
        }
        match turn.decide(command, &request.actor) {
            Ok(()) => {
                let run = turn.run().id.clone();
                turn.requests.extend(request.append(turn.now, Some(&run)));
                turn.answers.push(Pending::Taken(answer));
            }
            Err(rejection) => turn.answers.push(Pending::Refused(answer, Box::new(errors::rejected(&rejection)))),
        }
    }

    /// What is due by the clock. An instance that says it holds an attempt is believed before its clock ends it.
    fn tick(&self, turn: &mut Turn) {
        let Some(wake_up) = turn.run().wake_up(turn.now) else { return };
        if wake_up.at > turn.now {
            return;
        }
        let connected = self.shared.bus.is_connected();
        // Their reports can't reach us: their clocks start again, as after a recovery. So does a wait for an agent.
        let overdue = |i: usize| turn.run().steps[i].live_attempt().is_some_and(|(_, a)| a.ends_by <= turn.now);
        if !connected && turn.run().live_steps().any(overdue) {
            self.ours(turn, &Command::RestartClocks, &self.shared.ours);
        } else if turn.run().has_queue_clock() && (!connected || self.shared.drain.now().is_some()) {
            self.ours(turn, &Command::RestartQueueClocks, &self.shared.ours);
        }
        for (instance, holds) in self.held_past_their_clock(turn) {
            self.ours(turn, &Command::FindInstance { instance, holds }, &self.shared.ours);
        }
        self.ours(turn, &Command::Tick, &self.shared.ours);
    }

    /// What waits for a moment of the wall clock goes by where that is at present. Before a tick, which would take an old word
    /// for it, and at the end of a turn in which a wait may have begun.
    pub(super) fn follow_wall_clock(&self, turn: &mut Turn) {
        let rest = turn.run().waits_for_moment().then_some(turn.run().wall_ahead_ms);
        if let Some(ahead_ms) = self.shared.clock.misleads(rest) {
            self.ours(turn, &Command::FollowWallClock { ahead_ms }, &self.shared.ours);
        }
    }

    /// Nothing hangs on it but what the journal has.
    pub(super) fn is_alone(&self) -> bool {
        let nothing_sent = self.errands.is_empty() && self.cancels.is_empty() && self.stale_kept.is_empty();
        let nothing_waits = self.seats.is_empty() && self.later.is_empty() && self.watchers.is_empty();
        nothing_sent && nothing_waits && !self.shared.is_stopping()
    }

    /// The timers poke at the registered moment or before it, never after.
    pub(super) fn set_wake_up(&mut self) {
        let now = self.shared.clock.now();
        // What is past and was not done by the tick before is looked at again, but not without a rest.
        let wanted = self.run.wake_up(now).map(|w| if w.at <= now { after_ms(now, OVERDUE_MS) } else { w.at });
        let in_time = match (self.wake_registered, wanted) {
            (Some(registered), Some(wanted)) => registered <= wanted,
            (Some(_), None) => !self.run.has_ended(),
            (None, None) => true,
            (None, Some(_)) => false,
        };
        if !in_time {
            self.shared.timers.set(&self.entry, self.wake_registered, wanted);
            self.wake_registered = wanted;
        }
    }

    fn may_leave(&mut self, signals: Signals) -> Flow {
        if signals.retire() && self.told_of_end && self.watchers.is_empty() {
            self.shared.runs.remove(&self.entry);
            self.inbox.close();
        }
        Flow::On
    }
}

/// The stream of a run.
pub(super) fn stream_of(id: &muster_engine::ids::RunId) -> StreamId {
    StreamId(format!("run/{id}").into())
}

pub(super) fn key_of(entry: &RunEntry, step: &StepId, attempt: u32) -> AttemptKey {
    AttemptKey { run: entry.id.as_str().to_owned(), step: step.as_str().to_owned(), attempt }
}
