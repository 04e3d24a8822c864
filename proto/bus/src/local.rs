//! The in-process bus: the same serialised messages, limits, "no responders" and fan-out as NATS, without a server.

use std::{
    collections::HashMap,
    future::pending,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{mpsc, oneshot};

use crate::{
    bus::{Bus, BusError, Delivery, MAX_PAYLOAD, ReplyTo, SUBSCRIPTION_CAPACITY, Subscription},
    subject,
};

/// A bus inside one process; clones are the same bus.
///
/// It loses messages where NATS does: when nobody subscribes, and when a subscriber is behind by
/// [`SUBSCRIPTION_CAPACITY`] messages.
#[derive(Clone, Default)]
pub struct LocalBus {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    routes: RwLock<Routes>,
    next_id: AtomicU64,
    lost: AtomicU64,
}

#[derive(Default)]
struct Routes {
    exact: HashMap<String, Vec<Route>>,
    wild: Vec<(String, Route)>,
}

struct Route {
    id: u64,
    sender: mpsc::Sender<Delivery>,
}

impl LocalBus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Bus for LocalBus {
    async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes, BusError> {
        check(subject, &payload)?;
        let (answer, answered) = oneshot::channel();
        if !self.shared.deliver_request(subject, payload, answer) {
            return Err(BusError::NoResponders(subject.to_owned()));
        }
        let reply = async {
            match answered.await {
                Ok(payload) => payload,
                // Nobody will answer; as on a network, the requester learns it from its clock alone.
                Err(_) => pending().await,
            }
        };
        tokio::time::timeout(timeout, reply).await.map_err(|_| BusError::Timeout(subject.to_owned()))
    }

    fn send_request(&self, subject: &str, answer_to: &str, payload: Bytes) -> Result<(), BusError> {
        check(subject, &payload)?;
        check(answer_to, &Bytes::new())?;
        let asked = {
            let routes = self.shared.routes.read().unwrap_or_else(PoisonError::into_inner);
            let mut asked = false;
            for route in routes.matching(subject) {
                asked = true;
                let reply = answer_on(self.shared.clone(), answer_to.to_owned());
                self.shared.hand_over(route, subject, payload.clone(), Some(reply));
            }
            asked
        };
        if !asked {
            self.shared.deliver(answer_to, &Bytes::new(), true);
        }
        Ok(())
    }

    fn inbox(&self) -> String {
        format!("{}.{}", subject::INBOX, self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        check(subject, &payload)?;
        self.shared.deliver(subject, &payload, false);
        Ok(())
    }

    async fn subscribe(&self, pattern: &str) -> Result<Subscription, BusError> {
        if !subject::is_pattern(pattern) {
            return Err(BusError::BadSubject(pattern.to_owned()));
        }
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_CAPACITY);
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        self.shared.routes.write().unwrap_or_else(PoisonError::into_inner).add(pattern, Route { id, sender });
        Ok(Box::pin(LocalSubscription { shared: self.shared.clone(), pattern: pattern.to_owned(), id, receiver }))
    }

    fn max_payload(&self) -> usize {
        MAX_PAYLOAD
    }

    fn is_connected(&self) -> bool {
        true
    }

    async fn flush(&self) -> Result<(), BusError> {
        Ok(())
    }
}

fn check(subject: &str, payload: &Bytes) -> Result<(), BusError> {
    if !subject::is_subject(subject) {
        return Err(BusError::BadSubject(subject.to_owned()));
    }
    if payload.len() > MAX_PAYLOAD {
        return Err(BusError::TooLarge { size: payload.len(), limit: MAX_PAYLOAD });
    }
    Ok(())
}

impl Shared {
    /// Whether anybody got it. The first answer wins.
    fn deliver_request(&self, subject: &str, payload: Bytes, answer: oneshot::Sender<Bytes>) -> bool {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let mut matching = routes.matching(subject);
        let Some(first) = matching.next() else { return false };
        let Some(second) = matching.next() else {
            self.hand_over(first, subject, payload, Some(reply_to(move || Some(answer))));
            return true;
        };
        let answer = Arc::new(Mutex::new(Some(answer)));
        for route in [first, second].into_iter().chain(matching) {
            let answer = answer.clone();
            let reply = reply_to(move || answer.lock().unwrap_or_else(PoisonError::into_inner).take());
            self.hand_over(route, subject, payload.clone(), Some(reply));
        }
        true
    }

    fn deliver(&self, subject: &str, payload: &Bytes, nobody: bool) {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        for route in routes.matching(subject) {
            let payload = payload.clone();
            self.put(route, Delivery { subject: subject.to_owned(), payload, reply: None, nobody });
        }
    }

    fn hand_over(&self, route: &Route, subject: &str, payload: Bytes, reply: Option<ReplyTo>) {
        self.put(route, Delivery { subject: subject.to_owned(), payload, reply, nobody: false });
    }

    fn put(&self, route: &Route, delivery: Delivery) {
        if let Err(mpsc::error::TrySendError::Full(Delivery { subject, .. })) = route.sender.try_send(delivery) {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            if lost.is_power_of_two() {
                tracing::warn!(
                    subject,
                    lost,
                    "a subscriber is too slow; messages are lost and will be asked for again"
                );
            }
        }
    }
}

fn answer_on(shared: Arc<Shared>, subject: String) -> ReplyTo {
    answer_with(move |payload| shared.deliver(&subject, &payload, false))
}

fn reply_to(take: impl FnOnce() -> Option<oneshot::Sender<Bytes>> + Send + 'static) -> ReplyTo {
    answer_with(move |payload| {
        if let Some(answer) = take() {
            // The requester may be gone; then nobody waits for it.
            let _ = answer.send(payload);
        }
    })
}

fn answer_with(send: impl FnOnce(Bytes) + Send + 'static) -> ReplyTo {
    ReplyTo::new(move |payload: Bytes| {
        if payload.len() > MAX_PAYLOAD {
            tracing::warn!(size = payload.len(), limit = MAX_PAYLOAD, "an answer is over the limit and is not sent");
        } else {
            send(payload);
        }
    })
}

impl Routes {
    fn add(&mut self, pattern: &str, route: Route) {
        if subject::is_subject(pattern) {
            self.exact.entry(pattern.to_owned()).or_default().push(route);
        } else {
            self.wild.push((pattern.to_owned(), route));
        }
    }

    fn remove(&mut self, pattern: &str, id: u64) {
        if let Some(routes) = self.exact.get_mut(pattern) {
            routes.retain(|route| route.id != id);
            if routes.is_empty() {
                self.exact.remove(pattern);
            }
        }
        self.wild.retain(|(_, route)| route.id != id);
    }

    fn matching<'a>(&'a self, subject: &'a str) -> impl Iterator<Item = &'a Route> {
        let exact = self.exact.get(subject).into_iter().flatten();
        let wild = self.wild.iter().filter(|(pattern, _)| subject::matches(pattern, subject)).map(|(_, route)| route);
        exact.chain(wild)
    }
}

struct LocalSubscription {
    shared: Arc<Shared>,
    pattern: String,
    id: u64,
    receiver: mpsc::Receiver<Delivery>,
}

impl Stream for LocalSubscription {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.receiver.poll_recv(cx)
    }
}

impl Drop for LocalSubscription {
    fn drop(&mut self) {
        self.shared.routes.write().unwrap_or_else(PoisonError::into_inner).remove(&self.pattern, self.id);
    }
}
