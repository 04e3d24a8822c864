//! What is not read, and how often that is told.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use super::*;

fn beat(size: usize) -> Delivery {
    let mut payload = br#"{"cluster":"c","instance":"i1"}"#.to_vec();
    payload.resize(size, b' ');
    let subject = Subjects::new("default").beat("infra-1");
    Delivery { subject, payload: Bytes::from(payload), reply: None, nobody: false }
}

/// Keeps, of every line of the log, how many before it were not told.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u64>>>);

impl Log {
    fn of(&self, tell: impl FnOnce()) -> Vec<u64> {
        tracing::subscriber::with_default(self.clone(), tell);
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Untold(&self.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Untold<'a>(&'a Mutex<Vec<u64>>);

impl Visit for Untold<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        assert_eq!(field.name(), "untold");
        self.0.lock().unwrap().push(value);
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

#[test]
fn what_is_over_the_limit_is_not_read() {
    let unreadable = Unreadable::default();
    let (namespace, agent, said) = read::<Beat>(&unreadable, &beat(MAX_PAYLOAD)).unwrap();
    assert_eq!((namespace.as_str(), agent.as_str(), said.instance.as_str()), ("default", "infra-1", "i1"));
    let told = Log::default().of(|| assert!(read::<Beat>(&unreadable, &beat(MAX_PAYLOAD + 1)).is_none()));
    assert_eq!(told, [0]);
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_read_is_told_once_a_second_with_how_many_were_not() {
    let (unreadable, log) = (Unreadable::default(), Log::default());
    let broken = Delivery { payload: Bytes::from_static(b"{"), ..beat(0) };
    let five = || (0..5).for_each(|_| assert!(read::<Beat>(&unreadable, &broken).is_none()));
    assert_eq!(log.of(five), [0]);
    tokio::time::advance(Duration::from_millis(999)).await;
    assert!(log.of(five).is_empty());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(log.of(five), [9], "told with all since the last line");
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(log.of(five), [4]);
}
