//! What the worker holds and what it has answered.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use muster_bus::message::{AttemptKey, Task, TaskReply};
use tokio::time::Instant;

use super::voice::Live;

/// More answers are not kept; a task that would need one more is left to its next copy.
const ANSWERS: usize = 1_000_000;
/// Answers are kept at least this long, and twice the longest `start_within`.
const KEEP_ANSWERS: Duration = Duration::from_secs(10);
/// How long the next copy of a task that came in an answer is expected.
const OWE_AN_ANSWER: Duration = Duration::from_secs(1);
/// What an attempt's name takes in a message besides its run and step, in bytes.
const NAME_OVERHEAD: usize = 45;

/// Two independent hashes of an attempt's key: cheaper to keep than the key, and never equal by chance.
pub(crate) type Fingerprint = (u64, u64);

pub(crate) struct Book {
    slots: usize,
    at_work: usize,
    draining: bool,
    session: Option<(String, u64)>,
    held: HashMap<Fingerprint, Arc<Live>>,
    answers: Answers,
    /// Answers that nobody has heard: these tasks came in an answer themselves.
    owed: HashMap<Fingerprint, Instant>,
    leftover: Vec<AttemptKey>,
    tally: Tally,
    hashers: (RandomState, RandomState),
}

/// What was done since the start, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) started: u64,
    pub(crate) declined: u64,
    pub(crate) work_ns: u64,
}

/// What to do with a task.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Start it, and answer `accepted`.
    Start(Fingerprint),
    /// Answer this.
    Answer(TaskReply),
    /// Say nothing.
    Silence(&'static str),
}

impl Book {
    pub(crate) fn new(slots: usize, leftover: Vec<AttemptKey>) -> Self {
        Self {
            slots,
            at_work: 0,
            draining: false,
            session: None,
            held: HashMap::new(),
            answers: Answers::new(),
            owed: HashMap::new(),
            leftover,
            tally: Tally::default(),
            hashers: (RandomState::new(), RandomState::new()),
        }
    }

    /// The coordinator whose tasks count.
    pub(crate) fn enter(&mut self, cluster: &str, term: u64) {
        self.session = Some((cluster.to_owned(), term));
    }

    pub(crate) fn cluster(&self) -> Option<String> {
        self.session.as_ref().map(|(cluster, _)| cluster.clone())
    }

    /// Judge a task that is `age_ms` old; `can_do` says why it can't be done. A refusal is remembered here; after `Start`
    /// comes [`Self::hold`].
    pub(crate) fn judge(&mut self, task: &Task, age_ms: i64, can_do: Result<(), &String>) -> Verdict {
        if self.session.as_ref().is_none_or(|(cluster, term)| *cluster != task.cluster || *term != task.term) {
            return Verdict::Silence("it is from another coordinator than the one this agent is registered with");
        }
        let fingerprint = self.fingerprint(&task.key);
        if self.held.contains_key(&fingerprint) {
            return Verdict::Answer(TaskReply::Accepted);
        }
        self.answers.turn(Duration::from_millis(task.start_within_ms));
        if let Some(answer) = self.answers.get(fingerprint) {
            self.owed.remove(&fingerprint);
            return Verdict::Answer(answer.clone());
        }
        if self.answers.is_full() {
            return Verdict::Silence("too many answers have to be remembered");
        }
        let refuse = |why: String| TaskReply::Refused { why };
        let answer = if age_ms > i64::try_from(task.start_within_ms).unwrap_or(i64::MAX) {
            // Not refused: under another number it may come in time.
            TaskReply::Busy
        } else if self.draining {
            TaskReply::Draining
        } else if let Err(why) = can_do {
            refuse(why.clone())
        } else if self.at_work >= self.slots {
            TaskReply::Busy
        } else {
            return Verdict::Start(fingerprint);
        };
        self.answers.insert(fingerprint, answer.clone());
        self.tally.declined += 1;
        Verdict::Answer(answer)
    }

    pub(crate) fn hold(&mut self, live: &Arc<Live>) {
        self.at_work += 1;
        self.tally.started += 1;
        self.held.insert(live.fingerprint, live.clone());
    }

    /// Its slot is free. Whether somebody waits for that.
    pub(crate) fn work_ended(&mut self, live: &Live) -> bool {
        self.at_work -= 1;
        let took = u64::try_from(live.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.tally.work_ns = self.tally.work_ns.saturating_add(took);
        self.draining
    }

    /// Its report is recorded, or not wanted.
    pub(crate) fn forget(&mut self, fingerprint: Fingerprint) {
        if self.held.remove(&fingerprint).is_some() {
            self.answers.insert(fingerprint, TaskReply::Accepted);
        }
    }

    /// A report of an earlier process is done.
    pub(crate) fn forget_leftover(&mut self, key: &AttemptKey) {
        if let Some(at) = self.leftover.iter().position(|left| left == key) {
            self.leftover.swap_remove(at);
        }
    }

    /// A task that came without asking will not be started; its next copy is to hear that.
    pub(crate) fn owe(&mut self, fingerprint: Fingerprint) {
        let now = Instant::now();
        self.owed.retain(|_, until| *until > now);
        self.owed.insert(fingerprint, now + OWE_AN_ANSWER);
    }

    /// Until when to wait for the copies of tasks that will not be started; none: for none.
    pub(crate) fn owes_until(&self) -> Option<Instant> {
        self.owed.values().copied().max().filter(|until| *until > Instant::now())
    }

    pub(crate) fn find(&self, key: &AttemptKey) -> Option<Arc<Live>> {
        self.held.get(&self.fingerprint(key)).cloned()
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.at_work == 0
    }

    /// Everything that is held.
    pub(crate) fn held(&self) -> Vec<Arc<Live>> {
        self.held.values().cloned().collect()
    }

    /// The attempts that `wanted` picks; when they take more than `budget` bytes, the oldest of them.
    pub(crate) fn names(&self, wanted: impl Fn(&Live) -> bool, budget: usize) -> Vec<AttemptKey> {
        let mut lives: Vec<&Arc<Live>> = self.held.values().filter(|live| wanted(live)).collect();
        if lives.iter().map(|live| size(&live.task.key)).sum::<usize>() > budget {
            lives.sort_by_key(|live| live.started);
        }
        within(lives.into_iter().map(|live| &live.task.key), budget)
    }

    /// Reports that nobody has taken yet, those of earlier processes first.
    pub(crate) fn spooled(&self, budget: usize) -> Vec<AttemptKey> {
        let own = self.names(|live| !live.is_at_work(), budget);
        within(self.leftover.iter().chain(&own), budget)
    }

    pub(crate) fn fingerprint(&self, key: &AttemptKey) -> Fingerprint {
        (self.hashers.0.hash_one(key), self.hashers.1.hash_one(key))
    }
}

fn size(key: &AttemptKey) -> usize {
    key.run.len() + key.step.len() + NAME_OVERHEAD
}

fn within<'a>(keys: impl Iterator<Item = &'a AttemptKey>, mut budget: usize) -> Vec<AttemptKey> {
    keys.take_while(|key| {
        let fits = size(key) <= budget;
        budget = budget.saturating_sub(size(key));
        fits
    })
    .cloned()
    .collect()
}

/// Answers of the last while, in two generations.
struct Answers {
    current: HashMap<Fingerprint, TaskReply>,
    previous: HashMap<Fingerprint, TaskReply>,
    turned: Instant,
    keep: Duration,
}

impl Answers {
    fn new() -> Self {
        Self { current: HashMap::new(), previous: HashMap::new(), turned: Instant::now(), keep: KEEP_ANSWERS }
    }

    fn turn(&mut self, start_within: Duration) {
        self.keep = self.keep.max(start_within.saturating_mul(2));
        if self.turned.elapsed() >= self.keep {
            self.previous = std::mem::take(&mut self.current);
            self.turned = Instant::now();
        }
    }

    fn get(&self, fingerprint: Fingerprint) -> Option<&TaskReply> {
        self.current.get(&fingerprint).or_else(|| self.previous.get(&fingerprint))
    }

    fn insert(&mut self, fingerprint: Fingerprint, answer: TaskReply) {
        self.current.insert(fingerprint, answer);
    }

    fn is_full(&self) -> bool {
        self.current.len() + self.previous.len() >= ANSWERS
    }
}
