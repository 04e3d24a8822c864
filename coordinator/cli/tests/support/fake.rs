//! A coordinator that says what a test tells it to, for what a real one does only in bad moments.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
};

use muster_proto::v1::{self, playbook_service_server as playbooks, run_service_server as runs};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

type Answer<T> = Result<Response<T>, Status>;
type Logged = Result<v1::WatchRunLogsResponse, Status>;
type Watched = Result<v1::WatchRunResponse, Status>;

/// What it says, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    /// Answer of `GetRun`.
    pub(crate) run: v1::Run,
    /// One for each `WatchRun`.
    pub(crate) watches: VecDeque<Vec<Watched>>,
    /// Answer of `ExplainRun`.
    pub(crate) waiting: Vec<v1::Waiting>,
    /// Answer of `ListRunLogs`.
    pub(crate) log: Vec<v1::RunLogEntry>,
    /// One for each `WatchRunLogs`.
    pub(crate) log_watches: VecDeque<Vec<Logged>>,
    /// The `filter` and `after_position` of each `WatchRunLogs`.
    pub(crate) logs_after: Vec<(String, u64)>,
    /// The `after_sequence` of each `WatchRun`.
    pub(crate) watched_after: Vec<u64>,
    /// The `authorization` of each call.
    pub(crate) authorizations: Vec<Option<String>>,
}

/// A server on a free port; ends with the test.
pub(crate) struct Fake {
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) url: String,
    _runtime: Runtime,
}

#[derive(Clone)]
struct Services(Arc<Mutex<Script>>);

impl Fake {
    pub(crate) fn start(script: Script) -> Self {
        let runtime = Runtime::new().unwrap();
        let script = Arc::new(Mutex::new(script));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let services = Services(Arc::clone(&script));
        let server = Server::builder()
            .add_service(runs::RunServiceServer::new(services.clone()))
            .add_service(playbooks::PlaybookServiceServer::new(services));
        runtime.spawn(async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });
        Self { script, url, _runtime: runtime }
    }
}

/// A refusal as the API gives it.
pub(crate) fn refusal(status: &Status, reason: &str, hint: &str, findings: Vec<FieldViolation>) -> Status {
    let mut metadata = std::collections::HashMap::from([("hint".to_owned(), hint.to_owned())]);
    if !findings.is_empty() {
        metadata.insert("findings".to_owned(), findings.len().to_string());
    }
    let mut details = ErrorDetails::with_error_info(reason, "muster.dev", metadata);
    if !findings.is_empty() {
        details.set_bad_request(findings);
    }
    Status::with_error_details(status.code(), status.message(), details)
}

impl Services {
    fn script<T>(&self, request: &Request<T>) -> std::sync::MutexGuard<'_, Script> {
        let mut script = self.0.lock().unwrap();
        let token = request.metadata().get("authorization").map(|t| t.to_str().unwrap().to_owned());
        script.authorizations.push(token);
        script
    }
}

/// What no test asks. Written as `async_trait` would: that one does not look into macros.
macro_rules! not_asked {
    ($($method:ident($request:ident) -> $answer:ident;)+) => {$(
        fn $method<'a, 'b>(&'a self, _: Request<v1::$request>) -> Pin<Box<dyn Future<Output = Answer<v1::$answer>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($method))) })
        }
    )+};
}

#[tonic::async_trait]
impl runs::RunService for Services {
    type WatchRunStream = tokio_stream::Iter<std::vec::IntoIter<Watched>>;

    async fn get_run(&self, request: Request<v1::GetRunRequest>) -> Answer<v1::Run> {
        let run = self.script(&request).run.clone();
        if run.name == request.get_ref().name {
            return Ok(Response::new(run));
        }
        let status = Status::not_found(format!("there is no {}", request.get_ref().name));
        Err(refusal(&status, "RUN_NOT_FOUND", "list them: muster run list", Vec::new()))
    }

    async fn watch_run(&self, request: Request<v1::WatchRunRequest>) -> Answer<Self::WatchRunStream> {
        let mut script = self.script(&request);
        script.watched_after.push(request.get_ref().after_sequence);
        let answers = script.watches.pop_front().ok_or_else(|| Status::internal("watched once too often"))?;
        Ok(Response::new(tokio_stream::iter(answers)))
    }

    async fn list_run_logs(&self, request: Request<v1::ListRunLogsRequest>) -> Answer<v1::ListRunLogsResponse> {
        let entries = self.script(&request).log.clone();
        Ok(Response::new(v1::ListRunLogsResponse { entries, next_page_token: String::new() }))
    }

    type WatchRunLogsStream = tokio_stream::Iter<std::vec::IntoIter<Logged>>;

    async fn watch_run_logs(&self, request: Request<v1::WatchRunLogsRequest>) -> Answer<Self::WatchRunLogsStream> {
        let mut script = self.script(&request);
        let request = request.into_inner();
        script.logs_after.push((request.filter, request.after_position));
        let answers = script.log_watches.pop_front().ok_or_else(|| Status::internal("watched once too often"))?;
        Ok(Response::new(tokio_stream::iter(answers)))
    }

    async fn wait_run(&self, request: Request<v1::WaitRunRequest>) -> Answer<v1::WaitRunResponse> {
        let run = self.script(&request).run.clone();
        let outcome = v1::wait_run_response::Outcome::TimedOut.into();
        Ok(Response::new(v1::WaitRunResponse { outcome, run: Some(run) }))
    }

    async fn explain_run(&self, request: Request<v1::ExplainRunRequest>) -> Answer<v1::ExplainRunResponse> {
        let waiting = self.script(&request).waiting.clone();
        Ok(Response::new(v1::ExplainRunResponse { waiting }))
    }

    not_asked! {
        start_run(StartRunRequest) -> Run;
        list_runs(ListRunsRequest) -> ListRunsResponse;
        cancel_run(CancelRunRequest) -> Run;
        pause_run(PauseRunRequest) -> Run;
        resume_run(ResumeRunRequest) -> Run;
        signal_run(SignalRunRequest) -> Run;
        list_run_events(ListRunEventsRequest) -> ListRunEventsResponse;
        retry_step(RetryStepRequest) -> Run;
        resolve_step(ResolveStepRequest) -> Run;
    }
}

#[tonic::async_trait]
impl playbooks::PlaybookService for Services {
    /// Refused, with what fits into a header: one of two findings.
    async fn submit_playbook(&self, request: Request<v1::SubmitPlaybookRequest>) -> Answer<v1::Playbook> {
        drop(self.script(&request));
        let status = Status::invalid_argument("the playbook has 2 errors");
        let finding = FieldViolation::new("spec.phases[0].stepz", "line 7, column 5: error: no such key");
        Err(refusal(&status, "PLAYBOOK_INVALID", "mend what is found", vec![finding]))
    }

    async fn lint_playbook(&self, request: Request<v1::LintPlaybookRequest>) -> Answer<v1::LintPlaybookResponse> {
        drop(self.script(&request));
        let finding = |line, code: &str, message: &str| v1::Finding {
            level: v1::finding::Level::Error.into(),
            code: code.to_owned(),
            message: message.to_owned(),
            path: format!("spec.phases[{line}]"),
            line,
            column: 5,
            hint: "read the schema".to_owned(),
        };
        let findings = vec![finding(7, "KEY_UNKNOWN", "no such key"), finding(9, "DURATION_INVALID", "no duration")];
        Ok(Response::new(v1::LintPlaybookResponse { findings }))
    }

    not_asked! {
        get_playbook(GetPlaybookRequest) -> Playbook;
        list_playbooks(ListPlaybooksRequest) -> ListPlaybooksResponse;
        plan_playbook(PlanPlaybookRequest) -> Plan;
    }
}
