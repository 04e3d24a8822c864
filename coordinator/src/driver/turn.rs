//! One turn of a run: what is decided on a scratch copy, to be appended as one, and what may leave once it is on disk.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use muster_bus::bus::ReplyTo;
use muster_engine::{
    ids::{Actor, AgentName, InstanceId},
    run::{self as engine, Command, Event, Rejection, Run, Touched, event::RunStarted},
};
use serde_json::value::to_raw_value;

use super::{
    drain::Pass,
    entry::{Answer, Message},
};
use crate::{
    control::ControlError,
    journal::{NewRecord, StreamAppend, StreamId},
};

/// See the module. Nothing of it is to be seen outside before it is appended.
pub(super) struct Turn {
    /// The moment of everything in this turn.
    pub(super) now: Timestamp,
    base: Arc<Run>,
    scratch: Option<engine::Turn>,
    expected_seq: u64,
    /// Who asked for what: the index of the first event that came of it.
    askers: Vec<(usize, Actor)>,
    /// Request ids that this turn takes.
    pub(super) requests: Vec<StreamAppend>,
    /// To be answered once the turn is on disk.
    pub(super) answers: Vec<Pending>,
    /// To be said again if the append fails.
    pub(super) again: Vec<Message>,
    /// While attempts are assigned, or a run is started: nobody drains meanwhile.
    pub(super) pass: Option<Pass>,
    /// A decision did not fit the state: nothing of the turn may be appended.
    pub(super) broken: Option<String>,
}

/// An answer that waits for the sync.
pub(super) enum Pending {
    /// To an agent's report that is recorded.
    Recorded(Recorded),
    /// To one that is not.
    Report(ReplyTo, Bytes),
    /// To a command that was taken: the run after it.
    Taken(Answer),
    /// To a command that was not.
    Refused(Answer, Box<ControlError>),
}

/// That a report is on disk, to the agent that sent it.
pub(super) struct Recorded {
    pub(super) to: ReplyTo,
    pub(super) agent: AgentName,
    pub(super) instance: InstanceId,
}

/// What a turn that is on disk has made.
pub(super) struct Made {
    pub(super) run: Arc<Run>,
    pub(super) events: Vec<(Actor, Event)>,
    pub(super) touched: Touched,
}

impl Turn {
    /// A turn of a run that is on disk.
    pub(super) fn new(run: &Arc<Run>, now: Timestamp) -> Self {
        Self {
            now: now.max(run.updated_at),
            base: Arc::clone(run),
            scratch: None,
            expected_seq: run.seq,
            askers: Vec::new(),
            requests: Vec::new(),
            answers: Vec::new(),
            again: Vec::new(),
            pass: None,
            broken: None,
        }
    }

    /// The turn whose first event is the run's start.
    ///
    /// # Errors
    /// The plan can't be begun.
    pub(super) fn begin(started: RunStarted, by: &Actor, now: Timestamp) -> Result<Self, Rejection> {
        let scratch = engine::Turn::begin(started, by, now)?;
        let mut turn = Self::new(&Arc::new(scratch.run().clone()), now);
        turn.expected_seq = 0;
        turn.scratch = Some(scratch);
        turn.askers.push((0, by.clone()));
        Ok(turn)
    }

    /// The run as this turn has made it.
    pub(super) fn run(&self) -> &Run {
        self.scratch.as_ref().map_or(&self.base, engine::Turn::run)
    }

    /// What this turn has changed so far.
    pub(super) fn touched(&self) -> Option<&Touched> {
        self.scratch.as_ref().map(engine::Turn::touched)
    }

    /// Decide a command and take what comes of it. The first event is the asker's doing, what follows from it is ours.
    pub(super) fn decide(&mut self, command: &Command, by: &Actor) -> Result<(), Rejection> {
        if self.broken.is_some() {
            return Ok(());
        }
        let scratch = self.scratch.get_or_insert_with(|| engine::Turn::new(&self.base));
        let first = scratch.events().len();
        match scratch.take(command, self.now) {
            Ok(()) => {
                if scratch.events().len() > first {
                    self.askers.push((first, by.clone()));
                    self.check();
                }
                Ok(())
            }
            Err(Rejection::Broken(why)) => {
                self.broken = Some(why.to_string());
                Ok(())
            }
            Err(
                rejection @ (Rejection::UnknownStep(_)
                | Rejection::UnknownSignal(_)
                | Rejection::RunEnded
                | Rejection::Forbidden { .. }
                | Rejection::UnknownAttempt { .. }
                | Rejection::Conflict { .. }),
            ) => Err(rejection),
        }
    }

    /// Nothing has happened that has to be on disk.
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.scratch.as_ref().is_none_or(|s| s.events().is_empty())
    }

    /// Everything that has to be on disk, in one append.
    pub(super) fn appends(&mut self, stream: &StreamId, ours: &Actor) -> Vec<StreamAppend> {
        let mut appends = Vec::with_capacity(1 + self.requests.len());
        let events = self.scratch.as_ref().map_or(&[][..], engine::Turn::events);
        let mut records = Vec::with_capacity(events.len());
        for (i, event) in events.iter().enumerate() {
            match to_raw_value(event) {
                Ok(event) => records.push(NewRecord { at: self.now, by: self.asker(i, ours).clone(), event }),
                Err(e) => self.broken = Some(format!("an event can't be written as JSON: {e}")),
            }
        }
        if !records.is_empty() {
            appends.push(StreamAppend { stream: stream.clone(), expected_seq: self.expected_seq, records });
        }
        appends.extend(self.requests.iter().cloned());
        appends
    }

    /// What the turn has made, once it is on disk.
    pub(super) fn made(&mut self, ours: &Actor) -> Made {
        let Some(scratch) = self.scratch.take() else {
            return Made { run: Arc::clone(&self.base), events: Vec::new(), touched: Touched::default() };
        };
        let (run, events, touched) = scratch.into_parts();
        let events = events.into_iter().enumerate().map(|(i, e)| (self.asker(i, ours).clone(), e)).collect();
        Made { run: Arc::new(run), events, touched }
    }

    fn asker<'a>(&'a self, event: usize, ours: &'a Actor) -> &'a Actor {
        self.askers.iter().find(|(first, _)| *first == event).map_or(ours, |(_, by)| by)
    }

    #[cfg(debug_assertions)]
    fn check(&mut self) {
        if let Err(violation) = self.run().check_invariants() {
            self.broken = Some(violation.to_string());
        }
    }

    #[cfg(not(debug_assertions))]
    #[expect(clippy::unused_self, reason = "the same signature as with checks")]
    fn check(&mut self) {}
}
