//! Streams to watchers: pulled, never pushed, so that a slow one costs nothing but its place.

use futures_util::{StreamExt as _, stream};
use tonic::{Status, codegen::BoxStream};

use crate::{
    api::{
        door::{Gate, shutting_down},
        error::from_control,
    },
    control::Watch,
};

/// A watch as a response stream. An item is taken from the source only when the connection has room for it; it ends with
/// an error when the source has one, or the server ends.
pub(super) fn respond<T, U>(
    gate: &Gate,
    watch: Watch<T>,
    convert: impl Fn(T) -> U + Send + Sync + 'static,
) -> Result<BoxStream<U>, Status>
where
    T: Send + 'static,
    U: Send + 'static,
{
    let place = gate.enter()?;
    let shutdown = gate.shutdown.clone();
    let start = Some((watch, place, shutdown, convert));
    Ok(Box::pin(stream::unfold(start, |state| async move {
        let (mut watch, place, shutdown, convert) = state?;
        let item = tokio::select! {
            biased;
            item = watch.next() => item,
            () = shutdown.cancelled() => return Some((Err(shutting_down()), None)),
        };
        match item {
            None => None,
            Some(Ok(item)) => Some((Ok(convert(item)), Some((watch, place, shutdown, convert)))),
            Some(Err(error)) => Some((Err(from_control(error)), None)),
        }
    })))
}
