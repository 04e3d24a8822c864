//! What a run does about what agents say: reports, and which attempts an instance holds.

use bytes::Bytes;
use muster_bus::{
    bus::ReplyTo,
    message::{Report, ReportBody, ReportReply},
};
use muster_engine::{
    ids::{AgentName, InstanceId, StepId},
    run::{Command, Fence, Rejection, Report as Reported, Run, Verdict, state::Attempt},
};
use std::{sync::Arc, time::Duration};
use tracing::{info, warn};

use super::{
    Shared, convert,
    entry::{Burial, Message},
    run_task::{RunTask, key_of},
    turn::{Pending, Recorded, Turn},
};

/// How long a burial waits for the spooled reports of the buried before it is looked at again.
const SPOOL_WAIT: Duration = Duration::from_secs(5);

/// So many stale reports are journalled of one step while its run stays in memory; all are answered.
const STALE_KEPT: u32 = 10;

impl RunTask {
    /// An agent's report: recorded once, repeated without another record, stale and conflicting ones told so.
    pub(super) fn report(&mut self, turn: &mut Turn, agent: AgentName, report: Report, to: Option<ReplyTo>) {
        let by = Shared::actor_of(&agent);
        let (instance, sender) = (report.instance, agent.clone());
        let fence = Fence {
            step: report.key.step.into(),
            attempt: report.key.attempt,
            agent,
            instance: instance.as_str().into(),
        };
        let (verdict, command) = match report.report {
            ReportBody::Prepared { undo } => {
                let undo = Arc::new(undo);
                (turn.run().verdict(&fence, Reported::Prepared(&undo)), Command::Prepare { fence, undo })
            }
            ReportBody::Finished { outcome } => {
                // What has no time of its own keeps the time of the first arrival, so that a repetition is the same.
                let ended = turn.run().step_index(&fence.step).and_then(|i| {
                    let attempt = turn.run().steps[i].attempt(fence.attempt)?;
                    attempt.end.as_ref().map(|(at, _)| *at)
                });
                let outcome = convert::outcome(outcome, ended.unwrap_or(turn.now));
                (turn.run().verdict(&fence, Reported::Finished(&outcome)), Command::Finish { fence, outcome })
            }
        };
        if let Command::Finish { fence, .. } = &command
            && turn.run().left_behind(fence).is_some()
        {
            self.shared.registry.let_go(&fence.instance, &key_of(&self.entry, &fence.step, fence.attempt));
        }
        if verdict == Verdict::Stale && !self.is_evidence(turn, &command) {
            if let Some(to) = to {
                turn.answers.push(Pending::Report(to, reply(&ReportReply::Stale)));
            }
            return;
        }
        let taken = turn.decide(&command, &by);
        let answer = match (verdict, taken) {
            (Verdict::New | Verdict::Repeated, Ok(())) => {
                let instance = InstanceId::from(instance.as_str());
                turn.answers.extend(to.map(|to| Pending::Recorded(Recorded { to, agent: sender, instance })));
                return;
            }
            (Verdict::Stale, Ok(())) => reply(&ReportReply::Stale),
            (Verdict::Conflict, _) | (_, Err(Rejection::Conflict { .. })) => reply(&ReportReply::Conflict),
            (Verdict::Unknown, _) | (_, Err(Rejection::UnknownStep(_) | Rejection::UnknownAttempt { .. })) => {
                warn!(run_id = %self.entry.id, agent = %by, "a report of an attempt that was never assigned");
                reply(&ReportReply::Gone)
            }
            (
                _,
                Err(
                    e @ (Rejection::RunEnded
                    | Rejection::Forbidden { .. }
                    | Rejection::UnknownSignal(_)
                    | Rejection::Broken(_)),
                ),
            ) => reply(&ReportReply::Retry { why: e.to_string() }),
        };
        if let Some(to) = to {
            turn.answers.push(Pending::Report(to, answer));
        }
    }

    /// Whether a stale report is kept: from an agent that was given the step, and not without end.
    fn is_evidence(&mut self, turn: &Turn, command: &Command) -> bool {
        let (Command::Finish { fence, .. } | Command::Prepare { fence, .. }) = command else { return false };
        let Some(i) = turn.run().step_index(&fence.step) else { return false };
        let kept = self.stale_kept.entry(i).or_default();
        let is_kept = *kept < STALE_KEPT && turn.run().steps[i].attempts.iter().any(|a| a.agent == fence.agent);
        *kept += u32::from(is_kept);
        is_kept
    }

    /// The instance answers, and says what it holds. An attempt that was never assigned means that our records are not whole;
    /// but only an agent that was given something of this run is believed about that. Who has taken the id of another agent's
    /// instance is not believed to be it.
    pub(super) fn found(&self, turn: &mut Turn, agent: AgentName, instance: InstanceId, mut holds: Vec<(StepId, u32)>) {
        if at_instance(turn.run(), &instance).any(|(_, attempt)| attempt.agent != agent) {
            warn!(run_id = %self.entry.id, %agent, "instance {instance} is one of another agent here; ignored");
            return;
        }
        if !turn.run().steps.iter().any(|step| step.attempts.iter().any(|a| a.agent == agent)) {
            if !holds.is_empty() {
                warn!(run_id = %self.entry.id, %agent, "the agent says that it holds attempts of a run that was never given to it");
            }
            holds.clear();
        }
        let unknown = holds.iter().find(|(step, attempt)| {
            let run = turn.run();
            run.step_index(step).is_none_or(|i| !run.may_have_assigned(i, *attempt))
        });
        if let Some((step, attempt)) = unknown {
            let why =
                format!("instance {instance} holds attempt {attempt} of step {step}, which the journal does not have");
            turn.broken = Some(why);
            return;
        }
        turn.again.push(Message::Found { agent, instance: instance.clone(), holds: holds.clone() });
        self.ours(turn, &Command::FindInstance { instance, holds }, &self.shared.ours);
    }

    /// An instance is proven dead. Only the next process of the same agent on the same host can know that, and nothing is
    /// concluded while a report of the attempt is still to come.
    pub(super) fn buried(&self, turn: &mut Turn, burial: Box<Burial>) {
        let run = turn.run();
        let mut strange = false;
        let mut waits = false;
        for (i, attempt) in at_instance(run, &burial.instance) {
            strange |= attempt.agent != burial.agent || attempt.host.as_ref().is_some_and(|h| *h != burial.host);
            waits |= burial.spooled.iter().any(|(step, n)| *n == attempt.number && *step == run.plan.steps[i].id);
        }
        let Burial { instance, agent, host, .. } = &*burial;
        if strange {
            warn!(run_id = %self.entry.id, %agent, "instance {instance} can't be known dead from host {host}; ignored");
        } else if waits {
            info!(run_id = %self.entry.id, %agent, "instance {instance} has ended; its spooled report is waited for");
            let (entry, stop) = (Arc::clone(&self.entry), self.shared.stop.clone());
            self.shared.tasks.spawn(async move {
                if tokio::time::timeout(SPOOL_WAIT, stop.cancelled()).await.is_err() {
                    let _ = entry.tell(Message::Buried(burial)).await;
                }
            });
        } else {
            let command = Command::BuryInstance { instance: instance.clone() };
            turn.again.push(Message::Buried(burial));
            self.ours(turn, &command, &self.shared.ours);
        }
    }

    /// Instances that say, right now, that they hold an attempt whose clock has run out.
    pub(super) fn held_past_their_clock(&self, turn: &Turn) -> Vec<(InstanceId, Vec<(StepId, u32)>)> {
        let run = turn.run();
        let mut held: Vec<(InstanceId, Vec<(StepId, u32)>)> = Vec::new();
        for i in run.live_steps() {
            let Some((number, attempt)) = run.steps[i].live_attempt() else { continue };
            if attempt.ends_by > turn.now {
                continue;
            }
            let step = &run.plan.steps[i].id;
            let key = key_of(&self.entry, step, number);
            if self.shared.registry.says_it_holds(&run.namespace, &attempt.agent, &attempt.instance, &key) {
                held.push((attempt.instance.clone(), vec![(step.clone(), number)]));
            }
        }
        // An instance has to be named with all that it holds: what is left out counts as not held.
        for (instance, holds) in &mut held {
            for i in run.live_steps() {
                let Some((number, attempt)) = run.steps[i].live_attempt() else { continue };
                let one = (run.plan.steps[i].id.clone(), number);
                if attempt.instance == *instance && !holds.contains(&one) {
                    holds.push(one);
                }
            }
        }
        held
    }
}

impl Recorded {
    /// With what the instance shall do besides.
    pub(super) fn send(self, shared: &Shared) {
        let orders = shared.registry.orders(self.instance.as_str());
        self.to.send(if orders.is_empty() {
            Bytes::from_static(br#"{"answer":"recorded"}"#)
        } else {
            reply(&ReportReply::Recorded { orders, task: None })
        });
    }
}

/// An answer as it travels.
pub(super) fn reply<T: serde::Serialize>(answer: &T) -> Bytes {
    serde_json::to_vec(answer).map(Bytes::from).unwrap_or_default()
}

/// The unconfirmed attempts at an instance, with the indexes of their steps.
fn at_instance<'a>(run: &'a Run, instance: &'a InstanceId) -> impl Iterator<Item = (usize, &'a Attempt)> + 'a {
    let live = run.live_steps().filter_map(|i| run.steps[i].live_attempt().map(|(_, attempt)| (i, attempt)));
    live.filter(move |(_, attempt)| attempt.instance == *instance)
}
