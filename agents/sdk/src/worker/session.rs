//! Registration and beats.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use muster_bus::message::{Beat, BeatReply, PROTOCOL, Register, RegisterReply};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Shared, WorkerError};

const TIMEOUT: Duration = Duration::from_secs(5);
/// A process that ends does not wait long for the answer to its last word.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between tries while another process of this name answers; it counts as lost after 30 s.
const TAKEN_PAUSE: Duration = Duration::from_secs(5);
/// Left free in a message that lists attempts, for all the rest of it, in bytes.
const OTHER: usize = 48 * 1024;
/// A coordinator that names no sensible interval is not believed.
const BEATS: std::ops::RangeInclusive<u64> = 50..=60_000;

/// Register and beat as long as the worker lives; register again when told to.
pub(super) async fn keep(shared: Arc<Shared>) -> Result<(), WorkerError> {
    let mut said_draining = false;
    loop {
        let (every, named_dead) = register(&shared).await?;
        let mut beats = tokio::time::interval_at(Instant::now() + every, every);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unanswered = 0_u32;
        loop {
            tokio::select! {
                _ = beats.tick() => {}
                // At once, so that the coordinator stops sending tasks.
                () = shared.draining.cancelled(), if !said_draining => said_draining = true,
            }
            match beat(&shared, false).await {
                Ok(BeatReply { register_again: true, .. }) => break,
                Ok(BeatReply { register_again: false, .. }) => unanswered = 0,
                Err(error) => {
                    unanswered += 1;
                    if unanswered.is_power_of_two() {
                        tracing::warn!(unanswered, error, "beats are not answered");
                    }
                }
            }
            // The children of a killed process may take a moment to end.
            if shared.lock.as_ref().is_some_and(|lock| lock.earlier() > named_dead && lock.dead().len() > named_dead) {
                break;
            }
        }
        tracing::info!("registering again");
    }
}

/// Until it is accepted; how often to beat, and how many earlier instances were said to be dead.
async fn register(shared: &Shared) -> Result<(Duration, usize), WorkerError> {
    let mut pause = FIRST_PAUSE;
    let mut tries = 0_u32;
    loop {
        tries += 1;
        let asked = Instant::now();
        let subject = shared.subjects.register(&shared.config.agent);
        let message = message(shared);
        match ask::<_, RegisterReply>(shared, &subject, &message).await {
            Ok(RegisterReply::Registered { cluster, term, beat_every_ms, now_ms, task_subject, .. }) => {
                shared.clock.learn(asked, now_ms);
                shared.book().enter(&cluster, term);
                shared.registered.send_modify(|count| *count += 1);
                let expected = shared.subjects.task(&shared.config.agent, &shared.instance);
                if task_subject != expected {
                    tracing::warn!(
                        task_subject,
                        expected,
                        "the coordinator sends tasks to where this agent does not listen"
                    );
                }
                tracing::info!(agent = shared.config.agent, instance = shared.instance, cluster, term, "registered");
                let every = Duration::from_millis(beat_every_ms.clamp(*BEATS.start(), *BEATS.end()));
                return Ok((every, message.dead.len()));
            }
            Ok(RegisterReply::Refused { why }) if *shared.registered.borrow() == 0 => {
                return Err(WorkerError::Refused { agent: shared.config.agent.clone(), why });
            }
            Ok(RegisterReply::Refused { why }) => {
                // What is at work goes on, and its reports have to get out.
                tracing::error!(why, "the coordinator refuses this agent, which it knew before; trying again");
                pause = LONGEST_PAUSE;
            }
            Ok(RegisterReply::IdInUse { instance }) => {
                if tries.is_power_of_two() {
                    tracing::warn!(
                        other = instance,
                        agent = shared.config.agent,
                        "another process of this name answers; waiting"
                    );
                }
                tokio::time::sleep(TAKEN_PAUSE).await;
                continue;
            }
            Ok(RegisterReply::Retry { why }) => tracing::info!(why, "the coordinator can't register agents yet"),
            Err(why) => {
                if tries.is_power_of_two() {
                    tracing::warn!(tries, why, "no coordinator answers; trying again");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn message(shared: &Shared) -> Register {
    // Reports weigh more: nothing is concluded of an attempt whose report is named here.
    let budget = shared.bus.max_payload().saturating_sub(OTHER) / 4;
    let (holds, spooled) = {
        let book = shared.book();
        (book.names(super::voice::Live::is_at_work, budget), book.spooled(3 * budget))
    };
    let config = &shared.config;
    Register {
        protocol: PROTOCOL,
        agent: config.agent.clone(),
        instance: shared.instance.clone(),
        role: config.role.clone(),
        labels: config.labels.clone(),
        host: config.host.clone(),
        slots: config.slots.max(1),
        durable: shared.lock.is_some(),
        actions: shared.catalogue.offers(),
        holds,
        spooled,
        dead: shared.lock.as_ref().map(crate::lock::Lock::dead).unwrap_or_default(),
        tasks_in_answers: true,
        software: config.software.clone(),
    }
}

/// The last word of this process, so that nobody takes it for lost. It is said once, to whom it may concern: without it all
/// goes the way of a silence.
pub(super) async fn say_goodbye(shared: &Shared) {
    if *shared.registered.borrow() == 0 {
        return;
    }
    if let Ok(Err(error)) = tokio::time::timeout(GOODBYE_WITHIN, beat(shared, true)).await {
        tracing::debug!(error, "nobody has heard the goodbye");
    }
}

/// Wait until what was said has left this process.
pub(super) async fn hand_over(shared: &Shared) {
    if let Ok(Err(error)) = tokio::time::timeout(GOODBYE_WITHIN, shared.bus.flush()).await {
        tracing::debug!(%error, "the last answers may not have got out");
    }
}

async fn beat(shared: &Shared, ending: bool) -> Result<BeatReply, String> {
    let budget = shared.bus.max_payload().saturating_sub(OTHER);
    let (holds, cluster, draining) = {
        let book = shared.book();
        (book.names(|_| true, budget), book.cluster().unwrap_or_default(), book.is_draining())
    };
    let asked = Instant::now();
    let beat = Beat { cluster, instance: shared.instance.clone(), holds, draining, ending };
    let reply: BeatReply = ask(shared, &shared.subjects.beat(&shared.config.agent), &beat).await?;
    shared.clock.learn(asked, reply.now_ms);
    shared.obey(&reply.orders);
    Ok(reply)
}

async fn ask<Q: Serialize, A: DeserializeOwned>(shared: &Shared, subject: &str, question: &Q) -> Result<A, String> {
    let payload = serde_json::to_vec(question).map_err(|e| e.to_string())?;
    let reply = shared.bus.request(subject, Bytes::from(payload), TIMEOUT).await.map_err(|e| e.to_string())?;
    serde_json::from_slice(&reply).map_err(|e| format!("the answer can't be read: {e}"))
}
