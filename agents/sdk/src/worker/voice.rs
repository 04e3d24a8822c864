//! What an attempt says while it is at work: progress and observations become statuses, lines become a log.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use muster_bus::message::{LogLine, Observation, Status, StatusReply, Task};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{Shared, WorkerError, book::Fingerprint};
use crate::{action::Voice, catalogue::Entry, redact::Redactor, text};

/// The longest line of a log and the longest sentence of a status, in bytes.
const LINE: usize = 8 * 1024;
/// So many observations of one attempt are kept.
pub(crate) const OBSERVATIONS: usize = 256;
/// A status at change is sent no more often than this.
const TICK: Duration = Duration::from_secs(1);
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// So many statuses are on their way at once.
const STATUSES_AT_ONCE: usize = 16;

/// An attempt that is held.
pub(crate) struct Live {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) task: Task,
    pub(crate) entry: Arc<Entry>,
    pub(crate) started: Instant,
    /// Told to the action: by an order, or since its time is up.
    pub(crate) stop: CancellationToken,
    cancelled: AtomicBool,
    at_work: AtomicBool,
    mouth: Arc<Mouth>,
    said: Mutex<Said>,
    lines: AtomicU64,
}

struct Said {
    message: String,
    percent: Option<u8>,
    observations: Vec<Observation>,
    /// Of these so many are in a status that was sent.
    told: usize,
    changed: bool,
    last: Instant,
}

/// What all attempts of a worker speak with.
pub(crate) struct Mouth {
    instance: String,
    secrets: BTreeMap<String, String>,
    /// What is left out: the agent's secrets, and those that actions have had from elsewhere.
    known: RwLock<Known>,
    logs: mpsc::Sender<LogLine>,
}

#[derive(Default)]
struct Known {
    secrets: BTreeMap<String, String>,
    redactor: Arc<Redactor>,
}

impl Live {
    pub(crate) fn new(fingerprint: Fingerprint, task: Task, entry: Arc<Entry>, mouth: Arc<Mouth>) -> Self {
        let started = Instant::now();
        let said = Said {
            message: String::new(),
            percent: None,
            observations: Vec::new(),
            told: 0,
            changed: false,
            last: started,
        };
        Self {
            fingerprint,
            task,
            entry,
            started,
            stop: CancellationToken::new(),
            cancelled: AtomicBool::new(false),
            at_work: AtomicBool::new(true),
            mouth,
            said: Mutex::new(said),
            lines: AtomicU64::new(0),
        }
    }

    /// It was ordered to stop.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.stop.cancel();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(crate) fn work_ended(&self) {
        self.at_work.store(false, Ordering::Release);
    }

    pub(crate) fn is_at_work(&self) -> bool {
        self.at_work.load(Ordering::Acquire)
    }

    /// Everything that was measured so far; for the report, since a status may have been lost.
    pub(crate) fn take_observations(&self) -> Vec<Observation> {
        std::mem::take(&mut self.said().observations)
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A status, if one is due.
    fn status(&self, cluster: &str) -> Option<Status> {
        let mut said = self.said();
        let due = said.changed || said.last.elapsed() >= Duration::from_millis(self.task.status_ms.max(1));
        if !due || !self.is_at_work() {
            return None;
        }
        said.changed = false;
        said.last = Instant::now();
        let observations = said.observations[said.told.min(said.observations.len())..].to_vec();
        said.told = said.observations.len();
        Some(Status {
            cluster: cluster.to_owned(),
            instance: self.mouth.instance.clone(),
            key: self.task.key.clone(),
            message: said.message.clone(),
            percent: said.percent,
            observations,
        })
    }
}

impl Voice for Live {
    fn progress(&self, message: &str, percent: Option<u8>) {
        let message = text::head(&self.mouth.redactor().text(message), LINE);
        let percent = percent.map(|percent| percent.min(100));
        let mut said = self.said();
        if said.message != message || said.percent != percent {
            said.message = message;
            said.percent = percent;
            said.changed = true;
        }
    }

    fn observe(&self, mut observation: Observation) {
        self.mouth.redactor().observation(&mut observation);
        let mut said = self.said();
        if said.observations.len() < OBSERVATIONS {
            said.observations.push(observation);
            said.changed = true;
        }
    }

    fn log(&self, line: &str) {
        let number = self.lines.fetch_add(1, Ordering::Relaxed) + 1;
        let line = LogLine {
            instance: self.mouth.instance.clone(),
            key: self.task.key.clone(),
            line: number,
            at_ms: jiff::Timestamp::now().as_millisecond(),
            text: text::head(&self.mouth.redactor().text(line), LINE),
        };
        // A gap in the numbers says that it was lost.
        let _ = self.mouth.logs.try_send(line);
    }

    fn secret(&self, name: &str) -> Option<String> {
        self.task.secrets.iter().any(|allowed| allowed == name).then(|| self.mouth.secrets.get(name).cloned()).flatten()
    }

    fn keep_secret(&self, name: &str, value: &str) {
        self.mouth.keep_secret(name, value);
    }
}

impl Mouth {
    pub(crate) fn new(instance: String, secrets: BTreeMap<String, String>, logs: mpsc::Sender<LogLine>) -> Self {
        let known = Known { redactor: Arc::new(Redactor::new(&secrets)), secrets: secrets.clone() };
        Self { instance, secrets, known: RwLock::new(known), logs }
    }

    /// Takes out every value that is known so far.
    pub(crate) fn redactor(&self) -> Arc<Redactor> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner).redactor)
    }

    fn keep_secret(&self, name: &str, value: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if value.is_empty() || known.secrets.values().any(|there| there == value) {
            return;
        }
        // The name of a file whose password has changed stands for both.
        let mut key = name.to_owned();
        while known.secrets.contains_key(&key) {
            key.push('\'');
        }
        known.secrets.insert(key, value.to_owned());
        known.redactor = Arc::new(Redactor::new(&known.secrets));
    }
}

/// Send statuses: of each attempt at its interval, and at change.
pub(crate) async fn tell(shared: Arc<Shared>) -> Result<(), WorkerError> {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (held, cluster) = {
            let book = shared.book();
            (book.held(), book.cluster())
        };
        let Some(cluster) = cluster else { continue };
        if !shared.bus.is_connected() {
            continue;
        }
        let statuses: Vec<Status> = held.iter().filter_map(|live| live.status(&cluster)).collect();
        futures_util::stream::iter(statuses)
            .for_each_concurrent(STATUSES_AT_ONCE, |status| tell_one(&shared, status))
            .await;
    }
}

async fn tell_one(shared: &Shared, status: Status) {
    let Ok(payload) = serde_json::to_vec(&status) else { return };
    let subject = shared.subjects.status(&shared.config.agent);
    match shared.bus.request(&subject, Bytes::from(payload), STATUS_TIMEOUT).await {
        Ok(reply) => match serde_json::from_slice::<StatusReply>(&reply) {
            Ok(reply) => shared.obey(&reply.orders),
            Err(error) => tracing::debug!(%error, "the answer to a status can't be read"),
        },
        Err(error) => tracing::debug!(%error, "a status was not taken; the next one will say more"),
    }
}

/// Publish log lines as they come.
pub(crate) async fn publish_logs(shared: Arc<Shared>, mut lines: mpsc::Receiver<LogLine>) -> Result<(), WorkerError> {
    let subject = shared.subjects.log(&shared.config.agent);
    while let Some(line) = lines.recv().await {
        let sent = match serde_json::to_vec(&line) {
            Ok(payload) => shared.bus.publish(&subject, Bytes::from(payload)).await.is_ok(),
            Err(_) => false,
        };
        if !sent {
            shared.count_lost_line();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_action_has_from_a_file_is_left_out_from_then_on() {
        let (logs, _) = mpsc::channel(1);
        let mouth = Mouth::new("i".to_owned(), [("token".to_owned(), "t0k3n-value".to_owned())].into(), logs);
        let said = "t0k3n-value, f1le-passw0rd and n3w-passw0rd";
        assert_eq!(mouth.redactor().text(said), "[secret token], f1le-passw0rd and n3w-passw0rd");
        mouth.keep_secret("/etc/pw", "f1le-passw0rd");
        mouth.keep_secret("/etc/pw", "f1le-passw0rd");
        mouth.keep_secret("/etc/pw", "");
        // The file has another password by now; the old one is still a secret.
        mouth.keep_secret("/etc/pw", "n3w-passw0rd");
        assert_eq!(mouth.redactor().text(said), "[secret token], [secret /etc/pw] and [secret /etc/pw']");
        assert_eq!(mouth.secrets.len(), 1, "no task can ask for it by name");
    }
}
