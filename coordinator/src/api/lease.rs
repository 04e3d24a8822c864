//! A token that ends ends what was opened with it: who holds a stream or waits is told as who comes anew.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, codegen::BoxFuture};

use super::{auth::denied, token::Denied};

/// A token expires by the wall clock, which may be set: that is looked at this often at least.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a token is good.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    /// It was revoked.
    pub(super) revoked: CancellationToken,
    /// It is refused from then on.
    pub(super) expires_at: Option<Timestamp>,
}

impl Lease {
    /// Returns once the token is no longer good: at once when it is revoked, and within a second of its expiry.
    pub(super) async fn ended(self) -> Denied {
        tokio::select! {
            () = self.revoked.cancelled() => Denied::Revoked,
            () = expired(self.expires_at) => Denied::Expired,
        }
    }
}

async fn expired(at: Option<Timestamp>) {
    let Some(at) = at else { return std::future::pending().await };
    loop {
        let left = at.duration_since(Timestamp::now());
        if left <= SignedDuration::ZERO {
            return;
        }
        let left = Duration::try_from(left).unwrap_or_default();
        tokio::time::sleep(left.clamp(Duration::from_millis(1), LOOK_EVERY)).await;
    }
}

/// The answer of a call that may last, for as long as its token is good.
pub(super) async fn within(lease: Lease, call: impl Future<Output = Response<Body>>) -> Response<Body> {
    let mut ended: BoxFuture<Denied, Infallible> = Box::pin(async move { Ok(lease.ended().await) });
    tokio::select! {
        biased;
        Ok(why) = &mut ended => denied(why).into_http(),
        response = call => response.map(|body| Body::new(Leased { body: Some(body), ended })),
    }
}

/// A stream that ends with its token.
struct Leased {
    /// None: it is over.
    body: Option<Body>,
    ended: BoxFuture<Denied, Infallible>,
}

impl http_body::Body for Leased {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if let Poll::Ready(Ok(why)) = this.ended.as_mut().poll(cx) {
            this.body = None;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(denied(why).add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        let next = Pin::new(body).poll_frame(cx);
        if matches!(next, Poll::Ready(None)) {
            this.body = None;
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}
