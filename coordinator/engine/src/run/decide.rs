//! Commands to events: all policy is below this module. Nothing is half done: a rejected command changes nothing.

mod clock;
mod next;
mod person;
mod place;
mod progress;
mod report;

use jiff::Timestamp;

use super::{
    Command, Corrupt, Event, Rejection, Run, Touched,
    event::RunStarted,
    state::{RunState, StepState},
};
use crate::ids::Actor;

/// A scratch copy of a run on which commands are decided one after another, so that all their events go to the journal in
/// one append. Drop it, and nothing has happened.
#[derive(Clone, Debug)]
pub struct Turn {
    run: Run,
    events: Vec<Event>,
    touched: Touched,
}

impl Turn {
    /// A turn that starts from this state.
    pub fn new(run: &Run) -> Self {
        Self { run: run.clone(), events: Vec::new(), touched: Touched::default() }
    }

    /// The first turn of a new run: its first event is `RunStarted`.
    pub fn begin(started: RunStarted, by: &Actor, now: Timestamp) -> Result<Self, Rejection> {
        let run = Run::start(now, by, &started);
        let touched = Touched { run: true, ..Touched::default() };
        let mut turn = Self { run, events: vec![Event::RunStarted(Box::new(started))], touched: touched.clone() };
        turn.follow(touched, now)?;
        Ok(turn)
    }

    /// Decide a command, with everything that follows from it. An empty `Ok` is a command that has nothing to say: a report
    /// that is recorded already, a tick before anything is due.
    ///
    /// # Errors
    /// The turn is as it was, except after [`Rejection::Broken`]: then it is to be dropped.
    pub fn take(&mut self, command: &Command, now: Timestamp) -> Result<(), Rejection> {
        let direct = self.run.direct(command, now)?;
        if direct.is_empty() {
            return Ok(());
        }
        let mut fresh = Touched::default();
        for event in direct {
            fresh.merge(self.push(event, now)?);
        }
        self.follow(fresh, now)
    }

    /// The state after everything taken so far.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The events of everything taken so far, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// What everything taken so far has changed.
    pub fn touched(&self) -> &Touched {
        &self.touched
    }

    /// The state to go on with once the events are on disk, the events, and what changed. Equal to applying the events.
    pub fn into_parts(self) -> (Run, Vec<Event>, Touched) {
        (self.run, self.events, self.touched)
    }

    /// Apply what follows from what has changed, until nothing follows.
    fn follow(&mut self, mut fresh: Touched, now: Timestamp) -> Result<(), Rejection> {
        let bound = 100 + 10 * (self.run.steps.len() + self.run.phases.len());
        for _ in 0..bound {
            let events = progress::consequences(&self.run, &fresh, now);
            if events.is_empty() {
                return Ok(());
            }
            fresh = Touched::default();
            for event in events {
                fresh.merge(self.push(event, now)?);
            }
        }
        let why = "its consequences do not come to rest".to_owned();
        Err(Rejection::Broken(Corrupt { seq: self.run.seq, event: "none", why }))
    }

    fn push(&mut self, event: Event, now: Timestamp) -> Result<Touched, Rejection> {
        let touched = self.run.apply(now, &event)?;
        self.touched.merge(touched.clone());
        self.events.push(event);
        Ok(touched)
    }
}

impl Run {
    /// The events that a command comes to, with everything that follows from it; see [`Turn::take`]. The caller applies
    /// them at the same `now`.
    pub fn decide(&self, command: &Command, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        let mut turn = Turn::new(self);
        turn.take(command, now)?;
        Ok(turn.events)
    }

    /// What a command says itself, without what follows from it.
    fn direct(&self, command: &Command, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Finish { fence, outcome } => report::finish(self, fence, outcome, now),
            Command::Prepare { fence, undo } => report::prepare(self, fence, undo),
            Command::ReportStatus { fence, status } => Ok(report::status(self, fence, status)),
            Command::Deny { fence, why } => report::deny(self, fence, why, now),
            Command::LoseInstance { instance } => Ok(clock::lose(self, instance, now)),
            Command::FindInstance { instance, holds } => Ok(clock::find(self, instance, holds, now)),
            Command::BuryInstance { instance } => Ok(clock::bury(self, instance, now)),
            Command::RestartClocks => Ok(clock::restart(self, now)),
            Command::RestartQueueClocks => Ok(clock::restart_queue_clocks(self)),
            Command::FollowWallClock { ahead_ms } => Ok(clock::follow_wall_clock(self, *ahead_ms)),
            Command::Tick => Ok(clock::tick(self, now)),
            Command::Assign { step, agent, instance, host, dispatch_until } => {
                let to = place::To { agent, instance, host: host.as_ref(), dispatch_until: *dispatch_until };
                place::assign(self, step, &to, now)
            }
            Command::Cancel { reason, force } => person::cancel(self, reason, *force),
            Command::Pause { reason } => person::pause(self, reason, now),
            Command::AcceptLoss => person::accept_loss(self, now),
            Command::Resume { reason } => person::resume(self, reason, now),
            Command::Signal { signal, payload, reason } => person::signal(self, signal, payload, reason),
            Command::RetryStep { step, reason } => person::retry(self, step, reason, now),
            Command::ResolveStep { step, resolution, reason, output } => {
                let answer = person::Answer { resolution: *resolution, reason, output: output.as_ref() };
                person::resolve(self, step, &answer, now)
            }
        }
    }
}

/// The state in words, for a rejection.
fn run_state(run: &Run) -> String {
    match &run.state {
        RunState::Running if run.pause.is_some() => "the run is paused",
        RunState::Running => "the run is running",
        RunState::Cancelling => "the run is being cancelled",
        RunState::RollingBack => "the run is being walked back",
        RunState::Finishing { .. } => "the run does its last steps",
        RunState::Ended { .. } => "the run has ended",
    }
    .to_owned()
}

/// The state in words, for a rejection.
fn step_state(run: &Run, i: usize) -> String {
    let Some(step) = run.steps.get(i) else { return "the step is not there".to_owned() };
    match &step.state {
        StepState::Pending => "the step has not begun".to_owned(),
        StepState::Queued { .. } => "the step waits for an agent".to_owned(),
        StepState::Active => match step.live_attempt() {
            Some((number, attempt)) => format!("attempt {number} of the step is at work at agent {}", attempt.agent),
            None => "the step is at work".to_owned(),
        },
        StepState::Waiting { signal: Some(signal), .. } => format!("the step waits for signal {signal}"),
        StepState::Waiting { signal: None, .. } => "the step waits for a moment".to_owned(),
        StepState::Asking { .. } => "the step waits for a person".to_owned(),
        StepState::Succeeded => "the step has succeeded".to_owned(),
        StepState::Failed { .. } => "the step has failed".to_owned(),
        StepState::Skipped { .. } => "the step is skipped".to_owned(),
        StepState::Cancelled => "the step is cancelled".to_owned(),
        StepState::Undone => "the step is undone".to_owned(),
    }
}
