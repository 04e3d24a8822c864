//! Pages and streams of lists.

use std::sync::Arc;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use muster_coordinator::{
    control::{ControlError, ControlErrorKind as Kind, Page, Watch},
    logs::{self, Entry, Lost},
};
use muster_engine::ids::RunId;

use super::{Fake, State, lines::error};

impl Fake {
    /// An attempt has written a line, or so many are missing; a position is how many there are.
    pub(crate) fn log(&self, run_id: &str, step: &str, text: &str, lost: Option<(u64, Lost)>) {
        let mut state = self.state.lock().unwrap();
        let entries = state.logs.entry(RunId::from(run_id)).or_default();
        let position = entries.len() as u64 + 1;
        let number = if lost.is_some() { 0 } else { position };
        let (step, text, at) = (step.into(), text.to_owned(), Timestamp::UNIX_EPOCH);
        entries.push(Entry { step, attempt: 1, number, at, text, lost, position });
    }

    pub(super) fn logged(
        &self,
        id: &RunId,
        filter: &logs::Filter,
        after: u64,
        limit: usize,
    ) -> Result<logs::Page, ControlError> {
        let entries = self.state.lock().unwrap().logs.get(id).cloned().unwrap_or_default();
        let length = entries.len() as u64;
        if after > length {
            return Err(error(Kind::OutOfRange, "LOG_POSITION_OUT_OF_RANGE", "no line begins there"));
        }
        let fits = |e: &Entry| e.position > after && filter.step.as_ref().is_none_or(|s| *s == e.step);
        let fitting: Vec<Entry> = entries.into_iter().filter(fits).take(limit).collect();
        let position = fitting.last().map_or(length, |e| e.position);
        Ok(logs::Page { entries: fitting, position, at_end: position == length })
    }
}

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
