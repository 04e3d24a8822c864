//! Carries tasks: again and again until they are answered, or until their run says that nothing may be sent any more.
//!
//! One table holds all errands, and one clock their next moments, since most of them end before anything is to be done: by the
//! attempt's report. A copy leaves only while its errand is in the table, so none leaves after [`Shared::end_errand`].

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_bus::{Bus, BusError, Delivery, message::TaskReply};
use tokio::{sync::Notify, time::Instant};
use tracing::warn;

use super::{
    Shared,
    dispatch::{Errand, Next},
    turn::Recorded,
};

/// How long one copy of a task waits for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A copy in the answer to a report is not answered: the next one asks, unless the attempt's report has come by then.
const ASK_AFTER: Duration = Duration::from_millis(250);

/// Names an errand in this process.
pub(super) type Token = u64;

/// See the module.
pub(super) struct Post {
    /// The answers come on this, and the errand's token.
    inbox: String,
    next: AtomicU64,
    desk: Mutex<Desk>,
    /// There is an earlier moment than the clock waits for.
    earlier: Notify,
}

#[derive(Default)]
struct Desk {
    errands: HashMap<Token, Open>,
    /// Also moments that are no longer of an errand.
    moments: BinaryHeap<Reverse<(Instant, Token)>>,
}

struct Open {
    errand: Errand,
    /// When something is to be done, if nothing happens before.
    due: Instant,
    /// A copy waits for its answer; else it rests.
    asks: bool,
}

impl Post {
    /// Nothing is on its way.
    pub(super) fn new(bus: &dyn Bus) -> Self {
        let (next, desk) = (AtomicU64::new(1), Mutex::default());
        Self { inbox: bus.inbox(), next, desk, earlier: Notify::new() }
    }

    /// Where the answers come.
    pub(super) fn answers(&self) -> String {
        format!("{}.*", self.inbox)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subject(&self, token: Token) -> String {
        format!("{}.{token}", self.inbox)
    }

    fn token(&self, subject: &str) -> Option<Token> {
        subject.strip_prefix(self.inbox.as_str())?.strip_prefix('.')?.parse().ok()
    }

    /// The first of the moments.
    fn first(&self) -> Option<Instant> {
        self.desk().moments.peek().map(|Reverse((at, _))| *at)
    }
}

impl Desk {
    /// Whether this is the first of the moments now.
    fn set(&mut self, token: Token, after: Duration, asks: bool) -> bool {
        let due = Instant::now() + after;
        let Some(open) = self.errands.get_mut(&token) else { return false };
        (open.due, open.asks) = (due, asks);
        self.moments.push(Reverse((due, token)));
        self.moments.peek().is_some_and(|Reverse((_, first))| *first == token)
    }
}

impl Shared {
    /// Carry a task from now on. What comes of it is told to its run.
    pub(super) fn begin_errand(self: &Arc<Self>, mut errand: Errand) -> Token {
        let token = self.post.next.fetch_add(1, Ordering::Relaxed);
        let next = errand.next(self);
        let mut desk = self.post.desk();
        desk.errands.insert(token, Open { errand, due: Instant::now(), asks: false });
        self.follow(desk, token, next);
        token
    }

    /// The same for a task whose instance takes it in the answer to a report of its own. The answer goes in any case.
    pub(super) fn begin_errand_in(self: &Arc<Self>, mut errand: Errand, answer: Recorded) -> Token {
        let orders = self.registry.orders(answer.instance.as_str());
        let Some(payload) = errand.in_answer(self, &orders) else {
            answer.send(self);
            return self.begin_errand(errand);
        };
        let token = self.post.next.fetch_add(1, Ordering::Relaxed);
        let mut desk = self.post.desk();
        desk.errands.insert(token, Open { errand, due: Instant::now(), asks: false });
        let is_first = desk.set(token, ASK_AFTER, false);
        self.rung(desk, is_first);
        answer.to.send(payload);
        token
    }

    /// Send nothing more of it.
    pub(super) fn end_errand(&self, token: Token) {
        let ended = self.post.desk().errands.remove(&token);
        // Not under the lock: it may be the last to hold its run.
        drop(ended);
    }

    /// An answer to a copy, or that it has found nobody.
    pub(super) fn take_answer(self: &Arc<Self>, delivery: &Delivery) {
        let Some(token) = self.post.token(&delivery.subject) else { return };
        let answer = if delivery.nobody {
            Err(BusError::NoResponders("its task subject".to_owned()))
        } else {
            serde_json::from_slice::<TaskReply>(&delivery.payload).map_err(|e| {
                warn!("the answer to a task can't be read: {e}");
                BusError::Timeout("its task subject".to_owned())
            })
        };
        let desk = self.post.desk();
        self.go_on(desk, token, |errand, shared| errand.heard(shared, answer));
    }

    /// Look after errands that were not answered, for ever.
    pub(super) async fn carry(self: Arc<Self>) {
        loop {
            let first = self.post.first();
            let wait = async {
                match first {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.post.earlier.notified() => continue,
                () = self.stop.cancelled() => return,
            }
            while let Some(token) = self.due() {
                let desk = self.post.desk();
                let asks = desk.errands.get(&token).is_some_and(|open| open.asks);
                let unanswered = || Err(BusError::Timeout("its task subject".to_owned()));
                self.go_on(
                    desk,
                    token,
                    |errand, shared| {
                        if asks { errand.heard(shared, unanswered()) } else { errand.next(shared) }
                    },
                );
            }
        }
    }

    /// One whose moment has come.
    fn due(&self) -> Option<Token> {
        let mut desk = self.post.desk();
        let now = Instant::now();
        while let Some(Reverse((at, token))) = desk.moments.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            desk.moments.pop();
            if desk.errands.get(&token).is_some_and(|open| open.due == at) {
                return Some(token);
            }
        }
        None
    }

    /// Do with an errand what follows from `what`, while it is in the table.
    fn go_on(
        self: &Arc<Self>,
        mut desk: MutexGuard<'_, Desk>,
        token: Token,
        what: impl FnOnce(&mut Errand, &Shared) -> Next,
    ) {
        let Some(open) = desk.errands.get_mut(&token) else { return };
        let next = what(&mut open.errand, self);
        self.follow(desk, token, next);
    }

    fn follow(self: &Arc<Self>, mut desk: MutexGuard<'_, Desk>, token: Token, mut next: Next) {
        let Some(open) = desk.errands.get_mut(&token) else { return };
        if let Next::Send(subject, payload) = next {
            match self.bus.send_request(&subject, &self.post.subject(token), payload) {
                Ok(()) => {
                    let is_first = desk.set(token, ANSWER_WITHIN, true);
                    return self.rung(desk, is_first);
                }
                Err(e) => next = open.errand.heard(self, Err(e)),
            }
        }
        match next {
            Next::Rest(pause) => {
                let is_first = desk.set(token, pause, false);
                self.rung(desk, is_first);
            }
            Next::Deny(denial) => {
                let ended = desk.errands.remove(&token);
                drop(desk);
                drop(ended);
                self.tell(denial.entry, denial.message);
            }
            Next::End | Next::Send(..) => {
                let ended = desk.errands.remove(&token);
                drop(desk);
                drop(ended);
            }
        }
    }

    fn rung(&self, desk: MutexGuard<'_, Desk>, is_first: bool) {
        drop(desk);
        if is_first {
            self.post.earlier.notify_one();
        }
    }
}
