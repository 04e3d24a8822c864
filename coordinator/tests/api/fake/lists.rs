//! Pages and streams of lists.

use std::sync::Arc;

use futures_util::StreamExt as _;
use muster_coordinator::control::{Page, Watch};
use muster_engine::ids::RunId;

use super::{Fake, State};

pub(super) fn page<T: Clone>(items: Vec<(String, T)>, size: usize, token: &str) -> Page<T> {
    let rest: Vec<_> = items.into_iter().skip_while(|(key, _)| !token.is_empty() && key.as_str() <= token).collect();
    let next = if rest.len() > size { rest[size - 1].0.clone() } else { String::new() };
    Page { items: rest.into_iter().take(size).map(|(_, item)| item).collect(), next_page_token: next }
}

/// A growing list as a stream, from an index on.
pub(super) fn follow<T: Clone + Send + 'static>(
    fake: &Fake,
    id: RunId,
    next: usize,
    list: fn(&State, &RunId) -> Vec<T>,
    ends: impl Fn(&T) -> bool + Send + 'static,
) -> Watch<T> {
    let mut changed = fake.changed.subscribe();
    let state = Arc::clone(&fake.state);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut next = next;
        loop {
            changed.borrow_and_update();
            let items = list(&state.lock().unwrap(), &id);
            for item in items.into_iter().skip(next) {
                next += 1;
                let over = ends(&item);
                if sender.send(Ok(item)).await.is_err() || over {
                    return;
                }
            }
            tokio::select! {
                seen = changed.changed() => if seen.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver).boxed()
}
