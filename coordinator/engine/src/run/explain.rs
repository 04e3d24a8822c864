//! What a run waits for, on whom, since when, and what happens next, for people.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Run,
    event::{GateVerdict, Purpose, QuestionKind},
    state::{MilestoneState, PhaseState, RunState, StepState},
};
use crate::{
    ids::{PhaseId, StepId},
    policy::timeout,
};

/// One thing that a run waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What waits.
    pub subject: WaitingSubject,
    /// For what.
    pub waits_for: String,
    /// Who can end it.
    pub on_whom: String,
    /// What kind of party that is.
    pub on: WaitsOn,
    /// Since when.
    pub since: Timestamp,
    /// What happens by itself, if nothing else does; reads on with "at" and the moment, where there is one.
    pub next_action: String,
    /// When that is.
    pub next_at: Option<Timestamp>,
    /// What a person can do.
    pub hint: String,
}

/// What kind of party something waits on; what nobody attends to unless told comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsOn {
    /// A person has to answer or to act.
    Person,
    /// An agent has to come, to come back, to have a free slot, or to let go.
    Agent,
    /// Something outside has to send a signal.
    Signal,
    /// A moment has to come.
    Time,
    /// An agent is at work.
    Work,
}

/// What waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitingSubject {
    /// The run itself.
    Run,
    /// A milestone of a phase.
    Milestone(PhaseId),
    /// The gate of a phase.
    Gate(PhaseId),
    /// A step.
    Step(StepId),
}

impl fmt::Display for WaitingSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run => f.write_str("run"),
            Self::Milestone(phase) => write!(f, "milestone of phase {phase}"),
            Self::Gate(phase) => write!(f, "gate of phase {phase}"),
            Self::Step(step) => write!(f, "step {step}"),
        }
    }
}

impl Run {
    /// Everything the run waits for, the most urgent first: what waits for people, then what is at work, then deadlines. Empty
    /// only when the run has ended. Whether an agent is there that could take a queued step is not known here.
    pub fn explain(&self, now: Timestamp) -> Vec<Waiting> {
        if self.has_ended() {
            return Vec::new();
        }
        let mut all: Vec<Waiting> = self.explain_pause().into_iter().collect();
        let (asking, other): (Vec<usize>, Vec<usize>) =
            self.awake.iter().partition(|i| matches!(self.steps[**i].state, StepState::Asking { .. }));
        all.extend(asking.into_iter().chain(other).filter_map(|i| self.explain_step(i, now)));
        all.extend((0..self.phases.len()).filter_map(|p| self.explain_milestone(p)));
        all
    }

    fn explain_pause(&self) -> Option<Waiting> {
        let pause = self.pause.as_ref()?;
        let gate = self.phases.iter().position(|p| {
            p.state == PhaseState::Active
                && p.gate.as_ref().is_some_and(|g| g.verdict == GateVerdict::Inconclusive)
                && pause.question.is_some()
        });
        let by_itself = pause.question.is_some();
        let held = self.failed_in_active_phase().find_map(|i| self.fails_with(i).map(|reason| (i, reason)));
        let mut hint = pause.question.clone().unwrap_or_else(|| "resume the run, or cancel it".to_owned());
        if let Some((i, reason)) = held {
            let id = &self.plan.steps[i].id;
            hint = format!(
                "{hint}; step {id} failed ({reason}): retry or resolve it first, or the run is walked back when it resumes"
            );
        }
        Some(Waiting {
            subject: gate.map_or(WaitingSubject::Run, |p| WaitingSubject::Gate(self.plan.phases[p].id.clone())),
            waits_for: if by_itself { pause.reason.clone() } else { format!("the run is paused: {}", pause.reason) },
            on_whom: self.plan.owner.clone(),
            on: WaitsOn::Person,
            since: pause.since,
            next_action: "the owner is reminded".to_owned(),
            next_at: Some(pause.remind_at),
            hint,
        })
    }

    fn explain_step(&self, i: usize, now: Timestamp) -> Option<Waiting> {
        let (step, planned) = (&self.steps[i], &self.plan.steps[i]);
        let subject = WaitingSubject::Step(planned.id.clone());
        match &step.state {
            StepState::Queued { .. } => self.explain_queued(i, now),
            StepState::Active => self.explain_active(i, now),
            StepState::Waiting { signal, ends_at, wake_at } => {
                let over = *ends_at == Some(*wake_at);
                let (waits_for, on_whom, next, hint) = match signal {
                    Some(signal) => (
                        format!("signal {signal}"),
                        format!("whoever sends {signal}"),
                        if over { "the wait is given up" } else { "the owner is reminded" },
                        format!("send it: muster run signal {} {signal}, or resolve the step", self.id),
                    ),
                    None => (
                        self.moment_text(i, *wake_at),
                        "the clock".to_owned(),
                        "the step is done",
                        "to go on at once, resolve the step as succeeded".to_owned(),
                    ),
                };
                let on = if signal.is_some() { WaitsOn::Signal } else { WaitsOn::Time };
                let (next_action, next_at) = (next.to_owned(), Some(*wake_at));
                Some(Waiting { subject, waits_for, on_whom, on, since: step.since, next_action, next_at, hint })
            }
            StepState::Asking { question, kind, remind_at } => Some(Waiting {
                subject,
                waits_for: question.clone(),
                on_whom: self.plan.owner.clone(),
                on: WaitsOn::Person,
                since: step.since,
                next_action: "the owner is reminded".to_owned(),
                next_at: Some(*remind_at),
                hint: match kind {
                    QuestionKind::Failed | QuestionKind::NeedsPerson => {
                        "mend the cause and retry the step, or resolve it as succeeded, failed or skip"
                    }
                    QuestionKind::MayHaveRun => {
                        "look at what it did, then resolve the step as succeeded, failed or skip, or retry it"
                    }
                    QuestionKind::UndoFailed => {
                        "mend the cause and retry the undo, or resolve the step: succeeded (undone by hand), skip (left as it is) or failed (left as it is, and shown as failed)"
                    }
                }
                .to_owned(),
            }),
            StepState::Pending
            | StepState::Succeeded
            | StepState::Failed { .. }
            | StepState::Skipped { .. }
            | StepState::Cancelled
            | StepState::Undone => None,
        }
    }

    /// The moment itself where the clock that it is one of is not the one that everything else goes by.
    fn moment_text(&self, i: usize, wake_at: Timestamp) -> String {
        match self.moment_of(i).filter(|moment| *moment != wake_at) {
            Some(moment) => format!("its moment, {moment} by the wall clock"),
            None => "its moment".to_owned(),
        }
    }

    fn explain_queued(&self, i: usize, now: Timestamp) -> Option<Waiting> {
        let (step, planned) = (&self.steps[i], &self.plan.steps[i]);
        let StepState::Queued { purpose, not_before, why, .. } = &step.state else {
            return None;
        };
        let waiting = Waiting {
            subject: WaitingSubject::Step(planned.id.clone()),
            waits_for: "the run to go on".to_owned(),
            on_whom: self.plan.owner.clone(),
            on: WaitsOn::Person,
            since: step.since,
            next_action: "nothing is assigned while the run is paused".to_owned(),
            next_at: None,
            hint: format!("muster run resume {} --reason …", self.id),
        };
        let mut waiting = if self.pause.is_some() {
            waiting
        } else if *not_before > now {
            Waiting {
                waits_for: format!("the next try of its {}", purpose_name(*purpose)),
                on_whom: "the clock".to_owned(),
                on: WaitsOn::Time,
                next_action: "it is tried again".to_owned(),
                next_at: Some(*not_before),
                hint: "nothing has to be done; not to wait for it, resolve the step".to_owned(),
                ..waiting
            }
        } else {
            self.for_an_agent(i, *purpose, waiting)
        };
        if !why.is_empty() {
            waiting.waits_for = format!("{} ({why})", waiting.waits_for);
        }
        Some(waiting)
    }

    fn for_an_agent(&self, i: usize, purpose: Purpose, waiting: Waiting) -> Waiting {
        let (step, planned) = (&self.steps[i], &self.plan.steps[i]);
        let mut wanted = format!("role {}", planned.agent.role);
        for (name, value) in &planned.agent.labels {
            wanted = format!("{wanted}, {name}={value}");
        }
        if let Some(host) = self.host_for(i, purpose) {
            wanted = format!("{wanted}, on host {host}");
        }
        let StepState::Queued { wake_at, .. } = &step.state else { return waiting };
        let ends = timeout::queue_ends(step.queued_since.unwrap_or(step.since), planned.queue_timeout_ms);
        let given_up = ends.is_some_and(|ends| ends <= *wake_at);
        let action = self.action_for(i, purpose);
        Waiting {
            waits_for: format!("an agent that offers {} {}", action.name, action.version),
            on_whom: format!("agents of {wanted}"),
            on: WaitsOn::Agent,
            next_action: if given_up { "the wait is given up" } else { "the owner is reminded" }.to_owned(),
            next_at: Some(*wake_at),
            hint: format!("start an agent of {wanted}, or resolve the step"),
            ..waiting
        }
    }

    fn explain_active(&self, i: usize, now: Timestamp) -> Option<Waiting> {
        let (step, planned) = (&self.steps[i], &self.plan.steps[i]);
        let (number, attempt) = step.live_attempt()?;
        let over = timeout::ends_by(attempt.dispatch_until, planned.timeout_ms) <= now;
        let what = purpose_name(attempt.purpose);
        let (on, waits_for, hint) = match (attempt.lost_at, over) {
            (Some(lost), _) => (
                WaitsOn::Agent,
                format!("the end of its {what} (attempt {number}): the agent was lost at {lost}, and it may still run"),
                "start the agent again on its host, or look there and resolve the step",
            ),
            (None, true) => (
                WaitsOn::Agent,
                format!("the end of its {what} (attempt {number}): its agent still holds it past its timeout"),
                "look at the agent, and resolve the step if it has ended",
            ),
            (None, false) => {
                let said = attempt.status.as_ref().map(|s| format!(": {}", s.message)).unwrap_or_default();
                (WaitsOn::Work, format!("the end of its {what} (attempt {number}){said}"), "nothing has to be done")
            }
        };
        let told_to_stop = self.tells_to_stop(i, attempt.purpose);
        let next_action = if told_to_stop {
            "the agent is told to stop; without a word from it, the attempt counts as ended"
        } else {
            "the attempt counts as ended"
        };
        Some(Waiting {
            subject: WaitingSubject::Step(planned.id.clone()),
            waits_for,
            on_whom: format!("agent {}", attempt.agent),
            on,
            since: attempt.assigned_at,
            next_action: next_action.to_owned(),
            next_at: Some(attempt.ends_by),
            hint: hint.to_owned(),
        })
    }

    fn explain_milestone(&self, p: usize) -> Option<Waiting> {
        let phase = &self.phases[p];
        let milestone = phase.milestone.as_ref().filter(|_| phase.state == PhaseState::Active)?;
        if self.state != RunState::Running {
            return self.explain_lost_milestone(p);
        }
        let (next_action, next_at) = match milestone.state {
            MilestoneState::Pending => ("it becomes at risk", milestone.at_risk_at),
            MilestoneState::AtRisk => ("it is missed", milestone.due_at),
            MilestoneState::Missed => ("nothing more: it is missed already", None),
            MilestoneState::Reached | MilestoneState::ReachedLate | MilestoneState::Skipped => return None,
        };
        let planned = &self.plan.phases[p];
        let id = &planned.id;
        let (on, waits_for, on_whom, hint) = match phase.open_steps {
            // The end of the last step ends its phase in the same moment, unless the run is paused.
            0 => {
                let gate = if planned.gate.is_some() { "the gate" } else { "the end" };
                (
                    WaitsOn::Person,
                    format!("{gate} of phase {id}: its steps have ended"),
                    self.plan.owner.clone(),
                    "resume the run, or cancel it",
                )
            }
            open => {
                let waits_for = format!("{open} of {} steps of phase {id} to end", planned.steps.len());
                (WaitsOn::Work, waits_for, "the steps of its phase".to_owned(), "see what its steps wait for")
            }
        };
        Some(Waiting {
            subject: WaitingSubject::Milestone(id.clone()),
            waits_for,
            on_whom,
            on,
            since: phase.since,
            next_action: if next_at.is_none() && milestone.due_at.is_none() {
                "nothing: it has no deadline".to_owned()
            } else {
                next_action.to_owned()
            },
            next_at,
            hint: hint.to_owned(),
        })
    }

    /// A phase ends only while the run is running.
    fn explain_lost_milestone(&self, p: usize) -> Option<Waiting> {
        let milestone = self.phases[p].milestone.as_ref().filter(|m| m.state.is_open())?;
        let doing = match self.state {
            RunState::Cancelling => "is being cancelled",
            RunState::RollingBack => "is walked back",
            RunState::Finishing { .. } => "does its last steps",
            RunState::Running | RunState::Ended { .. } => return None,
        };
        let next_action = match milestone.due_at {
            Some(_) => "it is missed: when the run ends, at the latest",
            None => "it is missed when the run ends",
        };
        Some(Waiting {
            subject: WaitingSubject::Milestone(self.plan.phases[p].id.clone()),
            waits_for: format!("the end of the run, which {doing}: it can only be missed"),
            on_whom: "the steps of the run".to_owned(),
            on: WaitsOn::Work,
            since: self.phases[p].since,
            next_action: next_action.to_owned(),
            next_at: milestone.due_at,
            hint: "see what the steps wait for".to_owned(),
        })
    }
}

fn purpose_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Run => "work",
        Purpose::Probe => "check after a loss",
        Purpose::Verify => "verification",
        Purpose::Undo => "undo",
    }
}
