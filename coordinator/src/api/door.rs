//! The door: every request passes it. It knows the methods, asks for tokens, keeps the limits, counts, and sees to it
//! that no error leaves without its `ErrorInfo`.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service},
};

use crate::{
    api::{
        auth::{Access, Authority, LASTING, METHODS},
        error::{Reason, complete, refuse},
        lease::{self, Lease},
    },
    metrics::{API_DENIED, API_IN_FLIGHT, API_REQUESTS, API_SECONDS, API_WATCHES},
};

/// How much may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls at once, watches and waits included.
    pub requests: usize,
    /// Watches and waits at once.
    pub watches: usize,
    /// Connections at once; one beyond it is closed.
    pub connections: usize,
    /// Streams at once on one connection; clients wait beyond it.
    pub streams_per_connection: u32,
    /// Bytes of one message from outside.
    pub message_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 4_096,
            watches: 1_024,
            connections: 1_024,
            streams_per_connection: 1_024,
            message_bytes: 2 * 1024 * 1024,
        }
    }
}

/// What services need of the door: places for watches, and the word that the server is ending.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    watches: Arc<Semaphore>,
    /// The server is ending.
    pub(super) shutdown: CancellationToken,
}

/// A watch's place; given back when dropped.
#[derive(Debug)]
pub(super) struct WatchPlace(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Drop for WatchPlace {
    fn drop(&mut self) {
        gauge!(API_WATCHES).decrement(1.0);
    }
}

impl Gate {
    /// Places for so many watches.
    pub(super) fn new(limits: &Limits, shutdown: CancellationToken) -> Self {
        Self { watches: Arc::new(Semaphore::new(limits.watches)), shutdown }
    }

    /// A place for one watch or wait.
    pub(super) fn enter(&self) -> Result<WatchPlace, Status> {
        let place = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| {
            refuse(Reason::TooManyWatches, "too many watches and waits are under way", "try again later")
        })?;
        gauge!(API_WATCHES).increment(1.0);
        Ok(WatchPlace(place))
    }
}

/// The server is ending; what is said to those who wait.
pub(super) fn shutting_down() -> Status {
    refuse(Reason::ShuttingDown, "the coordinator is ending", "connect again; nothing is lost")
}

/// The moment at which the caller goes away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

type Handler = Arc<dyn Fn(Request<Body>) -> BoxFuture<Response<Body>, Infallible> + Send + Sync>;

struct Route {
    path: &'static str,
    access: Access,
    lasts: bool,
    handler: Handler,
    seconds: Histogram,
    ok: Counter,
}

struct Inner {
    routes: HashMap<&'static str, Route>,
    authority: Authority,
    requests: Arc<Semaphore>,
    in_flight: Gauge,
}

/// The one service of the server; cheap to clone.
#[derive(Clone)]
pub(super) struct Door(Arc<Inner>);

/// Collects the services behind a door.
pub(super) struct DoorBuilder(HashMap<&'static str, Route>);

impl DoorBuilder {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// All methods of one service that stand in the table.
    pub(super) fn add<S>(mut self, name: &str, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(service.clone().call(request)));
        for (path, access) in METHODS {
            if path.strip_prefix('/').and_then(|p| p.split_once('/')).is_some_and(|(service, _)| service == name) {
                let route = Route {
                    path,
                    access: *access,
                    lasts: LASTING.contains(path),
                    handler: Arc::clone(&handler),
                    seconds: histogram!(API_SECONDS, "method" => *path),
                    ok: counter!(API_REQUESTS, "method" => *path, "code" => "OK"),
                };
                self.0.insert(path, route);
            }
        }
        self
    }

    /// Give one method another handler than its service has.
    pub(super) fn instead<F>(mut self, path: &str, handler: impl Fn(Request<Body>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        if let Some(route) = self.0.get_mut(path) {
            route.handler = Arc::new(move |request| {
                let answer = handler(request);
                Box::pin(async { Ok(answer.await) })
            });
        }
        self
    }

    pub(super) fn build(self, authority: Authority, limits: &Limits) -> Door {
        Door(Arc::new(Inner {
            routes: self.0,
            authority,
            requests: Arc::new(Semaphore::new(limits.requests)),
            in_flight: gauge!(API_IN_FLIGHT),
        }))
    }
}

impl Inner {
    /// The request with its principal, a place for it, and for how long its caller is let in.
    fn admit(
        &self,
        route: &Route,
        request: &mut Request<Body>,
    ) -> Result<(OwnedSemaphorePermit, Option<Lease>), Status> {
        let admitted = self.authority.admit(route.path, route.access, request.headers());
        let mut lease = None;
        if let Some(admitted) = admitted.inspect_err(|_| counter!(API_DENIED, "method" => route.path).increment(1))? {
            request.extensions_mut().insert(admitted.principal);
            lease = admitted.lease.filter(|_| route.lasts);
        }
        let place = Arc::clone(&self.requests).try_acquire_owned().map_err(|_| {
            refuse(Reason::TooManyRequests, "too many requests are under way", "try again later, and more slowly")
        })?;
        Ok((place, lease))
    }

    async fn handle(self: Arc<Self>, mut request: Request<Body>) -> Response<Body> {
        let Some(route) = self.routes.get(request.uri().path()) else {
            let path: String = request.uri().path().chars().take(200).collect();
            return refuse(
                Reason::MethodUnknown,
                format!("there is no method {path}"),
                "list the methods by reflection",
            )
            .into_http();
        };
        let start = Instant::now();
        let response = match self.admit(route, &mut request) {
            Err(status) => status.into_http(),
            Ok((_place, lease)) => {
                self.in_flight.increment(1.0);
                let call = call(route, request, start);
                let response = match lease {
                    None => call.await,
                    Some(lease) => lease::within(lease, call).await,
                };
                self.in_flight.decrement(1.0);
                response
            }
        };
        route.seconds.record(start.elapsed().as_secs_f64());
        let response = finish(response);
        match Status::from_header_map(response.headers()) {
            None => route.ok.increment(1),
            Some(status) => {
                counter!(API_REQUESTS, "method" => route.path, "code" => code_word(status.code())).increment(1);
            }
        }
        response
    }
}

/// Call the service, within the caller's deadline.
async fn call(route: &Route, mut request: Request<Body>, start: Instant) -> Response<Body> {
    let deadline = timeout_of(request.headers()).map(|t| start + t);
    let Some(deadline) = deadline else {
        let Ok(response) = (route.handler)(request).await;
        return response;
    };
    request.extensions_mut().insert(Deadline(deadline));
    match tokio::time::timeout_at(deadline, (route.handler)(request)).await {
        Ok(Ok(response)) => response,
        Err(_) => refuse(
            Reason::DeadlineExceeded,
            "the caller's deadline came before the answer",
            "what was asked may have been done: ask again with the same `request_id`",
        )
        .into_http(),
    }
}

/// Errors that arise in the transport (a message too large, bytes that are no message) get their `ErrorInfo` here.
fn finish(response: Response<Body>) -> Response<Body> {
    if !response.headers().contains_key(Status::GRPC_STATUS) {
        return response;
    }
    match Status::from_header_map(response.headers()).and_then(|s| complete(&s)) {
        Some(status) => status.into_http(),
        None => response,
    }
}

/// `grpc-timeout`: up to eight digits and a unit. None: no such header, or not of this form.
fn timeout_of(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3_600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

fn code_word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl Service<Request<Body>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { Ok(inner.handle(request).await) })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn parsed(text: &'static str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_static(text));
        timeout_of(&headers)
    }

    #[test]
    fn deadlines_are_read() {
        assert_eq!(parsed("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parsed("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for bad in ["", "5", "S", "-1S", "123456789S", "5s", "5 S"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
