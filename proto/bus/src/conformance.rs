//! What every bus must do. Each check panics with what went wrong; [`all`] runs them one after another.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use tokio::time::timeout;

use crate::bus::{Bus, BusError, Delivery, MAX_PAYLOAD, Subscription};

const SOON: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);

/// Two ends of the same bus: two connections to one server, or twice the same local bus.
pub struct Ends {
    /// Asks.
    pub here: Arc<dyn Bus>,
    /// Answers.
    pub there: Arc<dyn Bus>,
}

/// Every check. `prefix` is a token that no one else uses on this bus.
pub async fn all(ends: &Ends, prefix: &str) {
    answers_a_request(ends, &format!("{prefix}.answers")).await;
    says_that_nobody_listens(ends, &format!("{prefix}.nobody")).await;
    says_that_nobody_answered(ends, &format!("{prefix}.silent")).await;
    brings_an_answer_to_an_inbox(ends, &format!("{prefix}.inbox")).await;
    refuses_what_is_too_large(ends, &format!("{prefix}.large")).await;
    refuses_what_is_no_subject(ends, &format!("{prefix}.blank")).await;
    matches_wildcards(ends, &format!("{prefix}.wild")).await;
    fans_out(ends, &format!("{prefix}.fan")).await;
    forgets_a_dropped_subscription(ends, &format!("{prefix}.dropped")).await;
    keeps_the_order_of_one_sender(ends, &format!("{prefix}.order")).await;
    carries_many_at_once(ends, &format!("{prefix}.many")).await;
}

/// A request reaches its subscriber, and its answer comes back, empty ones too.
pub async fn answers_a_request(ends: &Ends, subject: &str) {
    serve(ends.there.as_ref(), subject, |payload| payload).await;
    for payload in [&b"hello"[..], b"", &[0, 255, 13, 10]] {
        let reply = ends.here.request(subject, Bytes::copy_from_slice(payload), SOON).await;
        assert_eq!(reply.as_deref(), Ok(payload), "the answer to {payload:?}");
    }
}

/// Without a subscriber a request fails long before its timeout.
pub async fn says_that_nobody_listens(ends: &Ends, subject: &str) {
    let reply = timeout(SOON, ends.here.request(subject, Bytes::new(), 10 * SOON)).await;
    assert_eq!(reply, Ok(Err(BusError::NoResponders(subject.to_owned()))));
    assert_eq!(ends.here.publish(subject, Bytes::new()).await, Ok(()), "a publication needs no listener");
}

/// A subscriber that drops its `ReplyTo`, or keeps it, lets the request run into its timeout.
pub async fn says_that_nobody_answered(ends: &Ends, subject: &str) {
    let mut requests = subscribe(ends.there.as_ref(), subject).await;
    let asked = ends.here.request(subject, Bytes::new(), SHORT);
    let (reply, delivery) = tokio::join!(asked, async { next(&mut requests).await.reply.is_some() });
    assert!(delivery, "a request carries a way to answer");
    assert_eq!(reply, Err(BusError::Timeout(subject.to_owned())));
}

/// What is sent without waiting is answered to an inbox, also by the bus itself when nobody listens.
pub async fn brings_an_answer_to_an_inbox(ends: &Ends, subject: &str) {
    let inbox = ends.here.inbox();
    assert_ne!(inbox, ends.here.inbox(), "an inbox is nobody else's");
    let mut answers = subscribe(ends.here.as_ref(), &format!("{inbox}.*")).await;
    assert_eq!(ends.here.send_request(subject, &format!("{inbox}.1"), Bytes::new()), Ok(()));
    let unheard = next(&mut answers).await;
    assert_eq!((unheard.subject, unheard.nobody, unheard.payload), (format!("{inbox}.1"), true, Bytes::new()));
    let mut requests = subscribe(ends.there.as_ref(), subject).await;
    assert_eq!(ends.here.send_request(subject, &format!("{inbox}.2"), Bytes::from_static(b"question")), Ok(()));
    let request = next(&mut requests).await;
    assert_eq!((request.payload.as_ref(), request.nobody), (&b"question"[..], false));
    request.reply.expect("a request can be answered").send(Bytes::from_static(b"answer"));
    let answer = next(&mut answers).await;
    assert_eq!((answer.subject, answer.nobody), (format!("{inbox}.2"), false));
    assert_eq!(answer.payload.as_ref(), b"answer");
    let over = Bytes::from(vec![b'x'; ends.here.max_payload() + 1]);
    assert!(matches!(ends.here.send_request(subject, &inbox, over), Err(BusError::TooLarge { .. })));
    assert!(matches!(ends.here.send_request("a b", &inbox, Bytes::new()), Err(BusError::BadSubject(_))));
}

/// The limit is `max_payload`; what is over it is not sent.
pub async fn refuses_what_is_too_large(ends: &Ends, subject: &str) {
    let limit = ends.here.max_payload();
    assert!(limit <= MAX_PAYLOAD, "{limit} is over the common limit");
    serve(ends.there.as_ref(), subject, |payload| Bytes::from(payload.len().to_string())).await;
    let full = ends.here.request(subject, Bytes::from(vec![b'x'; limit]), SOON).await;
    assert_eq!(full, Ok(Bytes::from(limit.to_string())));
    let over = Bytes::from(vec![b'x'; limit + 1]);
    let refused = Err(BusError::TooLarge { size: limit + 1, limit });
    assert_eq!(ends.here.request(subject, over.clone(), SOON).await.map(drop), refused);
    assert_eq!(ends.here.publish(subject, over).await, refused);
}

/// Blanks, line ends and empty tokens never get onto the wire; wildcards only into subscriptions.
pub async fn refuses_what_is_no_subject(ends: &Ends, subject: &str) {
    for bad in ["", "a b", "a\r\nPING", ".a", "a.", "a..b"] {
        let refused = BusError::BadSubject(bad.to_owned());
        assert_eq!(ends.here.publish(bad, Bytes::new()).await, Err(refused.clone()), "{bad:?}");
        assert_eq!(ends.here.request(bad, Bytes::new(), SOON).await, Err(refused.clone()), "{bad:?}");
        assert_eq!(ends.here.subscribe(bad).await.err(), Some(refused), "{bad:?}");
    }
    let wild = format!("{subject}.*");
    assert_eq!(ends.here.publish(&wild, Bytes::new()).await, Err(BusError::BadSubject(wild)));
}

/// `*` stands for one token, `>` for one or more.
pub async fn matches_wildcards(ends: &Ends, subject: &str) {
    let mut one = subscribe(ends.there.as_ref(), &format!("{subject}.*.end")).await;
    let mut rest = subscribe(ends.there.as_ref(), &format!("{subject}.>")).await;
    for sent in ["", ".a", ".a.end", ".a.b.end", ".b.end"] {
        publish(ends.here.as_ref(), &format!("{subject}{sent}"), "").await;
    }
    for wanted in [".a.end", ".b.end"] {
        assert_eq!(next(&mut one).await.subject, format!("{subject}{wanted}"));
    }
    for wanted in [".a", ".a.end", ".a.b.end", ".b.end"] {
        assert_eq!(next(&mut rest).await.subject, format!("{subject}{wanted}"));
    }
}

/// Every subscription gets a copy; the first answer to a request wins, and the others do no harm.
pub async fn fans_out(ends: &Ends, subject: &str) {
    let mut first = subscribe(ends.there.as_ref(), subject).await;
    let mut second = subscribe(ends.here.as_ref(), &format!("{subject}.>")).await;
    let mut third = subscribe(ends.here.as_ref(), subject).await;
    publish(ends.here.as_ref(), subject, "copy").await;
    for subscription in [&mut first, &mut third] {
        let delivery = next(subscription).await;
        assert_eq!((delivery.payload.as_ref(), delivery.reply.is_none()), (&b"copy"[..], true));
    }
    let answers = async {
        for subscription in [&mut first, &mut third] {
            next(subscription).await.reply.expect("a request can be answered").send(Bytes::from_static(b"answer"));
        }
    };
    let (reply, ()) = tokio::join!(ends.here.request(subject, Bytes::new(), SOON), answers);
    assert_eq!(reply, Ok(Bytes::from_static(b"answer")));
    publish(ends.there.as_ref(), &format!("{subject}.last"), "").await;
    assert_eq!(next(&mut second).await.subject, format!("{subject}.last"), "it got nothing before");
}

/// Dropping a subscription takes its subscriber away.
pub async fn forgets_a_dropped_subscription(ends: &Ends, subject: &str) {
    drop(subscribe(ends.here.as_ref(), subject).await);
    let gone = async {
        while ends.here.request(subject, Bytes::new(), SHORT).await != Err(BusError::NoResponders(subject.to_owned())) {
        }
    };
    timeout(SOON, gone).await.expect("the subscription is gone");
}

/// What one sender sends to one subject arrives in that order.
pub async fn keeps_the_order_of_one_sender(ends: &Ends, subject: &str) {
    let mut subscription = subscribe(ends.there.as_ref(), subject).await;
    for number in 0..1000 {
        publish(ends.here.as_ref(), subject, &number.to_string()).await;
    }
    ends.here.flush().await.expect("it is connected");
    for number in 0..1000 {
        assert_eq!(next(&mut subscription).await.payload, number.to_string());
    }
}

/// Many requests at once each get their own answer.
pub async fn carries_many_at_once(ends: &Ends, subject: &str) {
    serve(ends.there.as_ref(), subject, |payload| payload).await;
    let requests = (0..2000).map(|number: u32| async move {
        let reply = ends.here.request(subject, Bytes::from(number.to_string()), SOON).await;
        assert_eq!(reply, Ok(Bytes::from(number.to_string())));
    });
    join_all(requests).await;
}

async fn subscribe(bus: &dyn Bus, pattern: &str) -> Subscription {
    bus.subscribe(pattern).await.expect("it can be subscribed to")
}

async fn publish(bus: &dyn Bus, subject: &str, payload: &str) {
    bus.publish(subject, Bytes::copy_from_slice(payload.as_bytes())).await.expect("it can be published to");
}

async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(SOON, subscription.next()).await.expect("it arrives in time").expect("the subscription lives")
}

/// Answer everything on `subject` as long as the bus lives.
async fn serve(bus: &dyn Bus, subject: &str, answer: impl Fn(Bytes) -> Bytes + Send + 'static) {
    let mut requests = subscribe(bus, subject).await;
    tokio::spawn(async move {
        while let Some(delivery) = requests.next().await {
            if let Some(reply) = delivery.reply {
                reply.send(answer(delivery.payload));
            }
        }
    });
}
