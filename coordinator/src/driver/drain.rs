//! While the coordinator drains: no run is started and no attempt is assigned, and whoever asks is told by whom and since when.
//!
//! That it drains is journalled for those who read later, and not replayed: a process that starts serves.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use muster_bus::message::AttemptKey;
use muster_engine::{
    ids::{InstanceId, Namespace},
    run::{Outstanding, Run},
};
use serde::Serialize;
use serde_json::value::to_raw_value;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tracing::info;

use super::{Shared, errors, requests::Request};
use crate::{
    control::{AtWork, Caller, ControlError, CoordinatorView, DrainView},
    journal::{AppendError, NewRecord, StreamAppend, StreamId},
    metrics::DRAINING,
};

/// What is journalled of the coordinator itself.
const STREAM: &str = "coordinator/drain";

/// Request ids of what concerns no namespace.
const NOWHERE: &str = "coordinator";

/// So many of the attempts at work are named.
const NAMED: usize = 100;

/// Who drains, and the gate that everything new passes.
#[derive(Default)]
pub(super) struct Drain {
    now: Mutex<Option<DrainView>>,
    /// Held to read while something new goes to disk: who has it to write knows that nothing is on its way.
    gate: Arc<RwLock<()>>,
}

/// Leave to begin something new; given back when that is on disk and can be seen.
pub(super) struct Pass {
    _held: OwnedRwLockReadGuard<()>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum CoordinatorEvent {
    CoordinatorDrained,
    CoordinatorResumed,
}

impl Drain {
    /// By whom and since when; none: it serves.
    pub(super) fn now(&self) -> Option<DrainView> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, now: Option<DrainView>) {
        metrics::gauge!(DRAINING).set(f64::from(u8::from(now.is_some())));
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Leave to assign an attempt, without waiting. Who hears no is looked at again when that may have changed.
    pub(super) fn try_pass(&self) -> Option<Pass> {
        let held = Arc::clone(&self.gate).try_read_owned().ok()?;
        self.now().is_none().then_some(Pass { _held: held })
    }

    /// Leave to start a run.
    pub(super) async fn pass(&self) -> Result<Pass, DrainView> {
        let held = Arc::clone(&self.gate).read_owned().await;
        self.now().map_or(Ok(Pass { _held: held }), Err)
    }
}

impl DrainView {
    /// For people.
    pub(super) fn why(&self) -> String {
        format!("the coordinator is draining, by {}, since {:.0}", self.by, self.since)
    }
}

impl Shared {
    /// As it is.
    pub(super) fn coordinator(&self) -> CoordinatorView {
        let mut at_work: Vec<AtWork> =
            self.runs.all().iter().filter_map(|entry| entry.run()).flat_map(|run| self.at_work(&run)).collect();
        at_work.sort_by(|a, b| (a.since, &a.run, &a.step).cmp(&(b.since, &b.run, &b.step)));
        let at_work_count = at_work.len();
        at_work.truncate(NAMED);
        CoordinatorView { cluster: self.cluster.clone(), drain: self.drain.now(), at_work_count, at_work }
    }

    /// Drain, or serve again; answered when it is so for everything that is not on disk yet. Goes to its end also when nobody
    /// waits for the answer any more.
    pub(super) async fn set_draining(
        self: &Arc<Self>,
        drains: bool,
        caller: &Caller,
    ) -> Result<CoordinatorView, ControlError> {
        let (shared, caller) = (Arc::clone(self), caller.clone());
        let decided = self.tasks.spawn(async move {
            let decided = {
                let _alone = shared.drain.gate.write().await;
                shared.decide_to_drain(drains, &caller).await
            };
            // Who came to the gate meanwhile was sent away.
            if shared.drain.now().is_none() {
                shared.look_at_all();
            }
            decided
        });
        decided.await.map_err(|_| errors::stopping())??;
        Ok(self.coordinator())
    }

    /// What is begun is on disk, and nothing begins meanwhile.
    async fn decide_to_drain(&self, drains: bool, caller: &Caller) -> Result<(), ControlError> {
        let (event, word) = if drains {
            (CoordinatorEvent::CoordinatorDrained, "drain_coordinator")
        } else {
            (CoordinatorEvent::CoordinatorResumed, "resume_coordinator")
        };
        let request = Request::new(&Namespace::from(NOWHERE), caller, || word.to_owned());
        if self.was_done(&request)? {
            return Ok(());
        }
        let at = self.clock.now();
        if self.drain.now().is_some() == drains {
            return self.take_id(&request, at).await;
        }
        self.append_drain(event, &request, at).await?;
        info!(by = %caller.actor, "{}", if drains { "draining: nothing new begins" } else { "serving again" });
        self.drain.set(drains.then(|| DrainView { by: caller.actor.clone(), since: at }));
        self.registry.hold_seats(drains);
        Ok(())
    }

    async fn append_drain(
        &self,
        event: CoordinatorEvent,
        request: &Request,
        at: Timestamp,
    ) -> Result<(), ControlError> {
        let stream = StreamId(STREAM.into());
        let known = self.journal.read_stream(&stream, 0, usize::MAX).map_err(|e| errors::read_failed(&e))?;
        let event = to_raw_value(&event).map_err(|e| errors::unwritable(&e))?;
        let records = vec![NewRecord { at, by: request.actor.clone(), event }];
        let append = StreamAppend { stream, expected_seq: known.len() as u64, records };
        match self.append([append].into_iter().chain(request.append(at, None)).collect()).await {
            Ok(_) => Ok(()),
            Err(AppendError::Conflict { stream, .. }) if request.is_stream(&stream) => self.was_done(request).map(drop),
            Err(e) => Err(errors::append_failed(&e)),
        }
    }

    /// Whether the run does not go on because of the drain.
    pub(super) fn is_held_by_drain(&self, run: &Run) -> bool {
        let waits = || run.outstanding(self.clock.now()).iter().any(|one| matches!(one, Outstanding::Place(_)));
        self.drain.now().is_some() && waits()
    }

    /// Of a run that has ended, what its agent still says that it holds.
    fn at_work(&self, run: &Run) -> Vec<AtWork> {
        let live = run.live_steps().filter_map(|i| Some((i, run.steps[i].live_attempt()?)));
        let named = live.map(|(i, (number, attempt))| {
            let at_work = AtWork {
                namespace: run.namespace.clone(),
                run: run.id.clone(),
                step: run.plan.steps[i].id.clone(),
                attempt: number,
                agent: attempt.agent.clone(),
                since: attempt.assigned_at,
            };
            (at_work, &attempt.instance)
        });
        let left = |at: &AtWork, instance: &InstanceId| {
            let (run, step) = (at.run.as_str().to_owned(), at.step.as_str().to_owned());
            self.registry.is_left(instance, &AttemptKey { run, step, attempt: at.attempt })
        };
        named.filter(|(at, instance)| !run.has_ended() || left(at, instance)).map(|(at, _)| at).collect()
    }
}
