//! `muster.v1.RunService`.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use muster_engine::{
    ids::{Namespace, RunId},
    run::{Command, Resolution, Run, state::RunState},
};
use muster_proto::v1::{
    self as pb, run_service_server::RunService, start_run_request::Source, wait_run_response::Outcome,
};
use prost::Message as _;
use serde_json::json;
use tokio::time::Instant;
use tonic::{Request, Response, Status, codegen::BoxStream};

use crate::{
    api::{
        auth::caller,
        convert::{
            event, log, names, run,
            value::{from_duration, from_value, to_time},
        },
        door::{Deadline, Gate, shutting_down},
        error::{Reason, bad_field, from_control},
        filter,
        playbooks::inputs,
        watch::respond,
    },
    control::{Caller, Control, ControlError, ControlErrorKind, Explanation, MAX_SIGNAL_BYTES, run_state},
};

/// Longest wait of one `WaitRun`.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Kept of the caller's deadline, so that the answer comes before it.
const WAIT_MARGIN: Duration = Duration::from_millis(50);
/// Before a wait looks at its run again, when the stream of it has ended too early.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The service.
#[derive(Clone)]
pub(super) struct Runs {
    control: Arc<dyn Control>,
    gate: Gate,
}

impl Runs {
    /// Over what does the work.
    pub(super) fn new(control: Arc<dyn Control>, gate: Gate) -> Self {
        Self { control, gate }
    }

    async fn command(
        &self,
        caller: &Caller,
        (namespace, id): (Namespace, RunId),
        command: Command,
    ) -> Result<Response<pb::Run>, Status> {
        let run = self.control.command_run(&namespace, &id, command, caller).await.map_err(from_control)?;
        Ok(Response::new(run::run(&run)))
    }

    /// Until the run has ended or needs a person. Cancel-safe: nothing is changed.
    async fn settled(&self, namespace: &Namespace, id: &RunId, only_end: bool) -> Result<(Outcome, Arc<Run>), Status> {
        loop {
            let mut run = self.control.run(namespace, id).await.map_err(from_control)?;
            if let Some(outcome) = outcome(&run, only_end) {
                return Ok((outcome, run));
            }
            let mut watch = match self.control.watch_run(namespace, id, run.seq).await {
                Ok(watch) => watch,
                Err(error) if falls_behind(&error) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                Err(error) => return Err(from_control(error)),
            };
            while let Some(item) = watch.next().await {
                match item {
                    Ok(event) => run = event.run,
                    Err(error) if falls_behind(&error) => break,
                    Err(error) => return Err(from_control(error)),
                }
                if let Some(outcome) = outcome(&run, only_end) {
                    return Ok((outcome, run));
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[tonic::async_trait]
impl RunService for Runs {
    async fn start_run(&self, request: Request<pb::StartRunRequest>) -> Result<Response<pb::Run>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let namespace = names::namespace("parent", &request.parent)?;
        let source = match request.source {
            Some(Source::Playbook(name)) => names::source(&namespace, Some(&name), None)?,
            Some(Source::Yaml(yaml)) => names::source(&namespace, None, Some(yaml))?,
            None => names::source(&namespace, None, None)?,
        };
        let digest = match request.plan_digest.as_str() {
            "" => None,
            text => Some(names::digest("plan_digest", text)?),
        };
        let note = names::short_text("note", request.note)?;
        let inputs = inputs(request.inputs);
        let run = self
            .control
            .start_run(&namespace, &source, inputs, &note, digest.as_ref(), request.validate_only, &caller)
            .await
            .map_err(from_control)?;
        Ok(Response::new(run::run(&run)))
    }

    // The server answers this method from encoded bytes instead: see `get_run`.
    async fn get_run(&self, request: Request<pb::GetRunRequest>) -> Result<Response<pb::Run>, Status> {
        let (namespace, id) = names::run("name", &request.get_ref().name)?;
        let run = self.control.run(&namespace, &id).await.map_err(from_control)?;
        Ok(Response::new(run::run(&run)))
    }

    async fn list_runs(&self, request: Request<pb::ListRunsRequest>) -> Result<Response<pb::ListRunsResponse>, Status> {
        let request = request.get_ref();
        let namespace = names::namespace("parent", &request.parent)?;
        let size = names::page(request.page_size, &request.page_token)?;
        let filter = filter::runs(&request.filter)?;
        let page =
            self.control.list_runs(&namespace, &filter, size, &request.page_token).await.map_err(from_control)?;
        Ok(Response::new(pb::ListRunsResponse {
            runs: page.items.iter().map(run::summary).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    type WatchRunStream = BoxStream<pb::WatchRunResponse>;

    async fn watch_run(&self, request: Request<pb::WatchRunRequest>) -> Result<Response<Self::WatchRunStream>, Status> {
        let request = request.get_ref();
        let (namespace, id) = names::run("name", &request.name)?;
        let watch = self.control.watch_run(&namespace, &id, request.after_sequence).await.map_err(from_control)?;
        let include_run = request.include_run;
        let stream = respond(&self.gate, watch, move |seen| event::watched(&seen, include_run))?;
        Ok(Response::new(stream))
    }

    async fn wait_run(&self, request: Request<pb::WaitRunRequest>) -> Result<Response<pb::WaitRunResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().map(|d| d.0);
        let request = request.into_inner();
        let (namespace, id) = names::run("name", &request.name)?;
        let until = wait_until(request.timeout, deadline)?;
        let _place = self.gate.enter()?;
        let (outcome, seen) = tokio::select! {
            settled = self.settled(&namespace, &id, request.only_end) => settled?,
            () = tokio::time::sleep_until(until) => {
                (Outcome::TimedOut, self.control.run(&namespace, &id).await.map_err(from_control)?)
            }
            () = self.gate.shutdown.cancelled() => return Err(shutting_down()),
        };
        Ok(Response::new(pb::WaitRunResponse { outcome: outcome.into(), run: Some(run::run(&seen)) }))
    }

    async fn cancel_run(&self, request: Request<pb::CancelRunRequest>) -> Result<Response<pb::Run>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let id = names::run("name", &request.name)?;
        let command = Command::Cancel { reason: names::reason(request.reason)?, force: request.force };
        self.command(&caller, id, command).await
    }

    async fn pause_run(&self, request: Request<pb::PauseRunRequest>) -> Result<Response<pb::Run>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let id = names::run("name", &request.name)?;
        let command = Command::Pause { reason: names::reason(request.reason)? };
        self.command(&caller, id, command).await
    }

    async fn resume_run(&self, request: Request<pb::ResumeRunRequest>) -> Result<Response<pb::Run>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let id = names::run("name", &request.name)?;
        let command = Command::Resume { reason: names::reason(request.reason)? };
        self.command(&caller, id, command).await
    }

    async fn signal_run(&self, request: Request<pb::SignalRunRequest>) -> Result<Response<pb::Run>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let id = names::run("name", &request.name)?;
        if request.payload.as_ref().is_some_and(|p| p.encoded_len() > MAX_SIGNAL_BYTES) {
            let message = format!("`payload` has more than {MAX_SIGNAL_BYTES} bytes");
            let hint = "put it where the steps can fetch it, and send its address";
            return Err(bad_field(Reason::FieldInvalid, "payload", message, hint));
        }
        let payload = request.payload.map_or_else(|| json!({}), from_value);
        let reason = names::short_text("reason", request.reason)?;
        let command = Command::Signal { signal: request.signal, payload: Arc::new(payload), reason };
        self.command(&caller, id, command).await
    }

    async fn explain_run(
        &self,
        request: Request<pb::ExplainRunRequest>,
    ) -> Result<Response<pb::ExplainRunResponse>, Status> {
        let (namespace, id) = names::run("name", &request.get_ref().name)?;
        let waiting = self.control.explain_run(&namespace, &id).await.map_err(from_control)?;
        Ok(Response::new(pb::ExplainRunResponse { waiting: waiting.into_iter().map(explanation).collect() }))
    }

    async fn list_run_events(
        &self,
        request: Request<pb::ListRunEventsRequest>,
    ) -> Result<Response<pb::ListRunEventsResponse>, Status> {
        let request = request.get_ref();
        let (namespace, id) = names::run("parent", &request.parent)?;
        let size = names::page(request.page_size, &request.page_token)?;
        let after = number_of(&request.page_token)?;
        // One more than asked for tells whether there is another page, unless that is more than is ever given.
        let wanted = (size + 1).min(names::MAX_PAGE_SIZE);
        let found = self.control.run_events(&namespace, &id, after, wanted).await.map_err(from_control)?;
        let events = names::fitting(found.iter().take(size).map(event::event));
        let rest = events.len() < found.len() || found.len() == names::MAX_PAGE_SIZE;
        let last = events.last().filter(|_| rest).map(|last| last.sequence.to_string());
        let response = pb::ListRunEventsResponse { next_page_token: last.unwrap_or_default(), events };
        Ok(Response::new(response))
    }

    async fn list_run_logs(
        &self,
        request: Request<pb::ListRunLogsRequest>,
    ) -> Result<Response<pb::ListRunLogsResponse>, Status> {
        let request = request.get_ref();
        let (namespace, id) = names::run("parent", &request.parent)?;
        let size = names::page(request.page_size, &request.page_token)?;
        let after = number_of(&request.page_token)?;
        let filter = filter::logs(&request.filter)?;
        let page = self.control.run_logs(&namespace, &id, &filter, after, size).await.map_err(from_control)?;
        let next_page_token = if page.at_end { String::new() } else { page.position.to_string() };
        let entries = page.entries.into_iter().map(log::entry).collect();
        Ok(Response::new(pb::ListRunLogsResponse { entries, next_page_token }))
    }

    type WatchRunLogsStream = BoxStream<pb::WatchRunLogsResponse>;

    async fn watch_run_logs(
        &self,
        request: Request<pb::WatchRunLogsRequest>,
    ) -> Result<Response<Self::WatchRunLogsStream>, Status> {
        let request = request.get_ref();
        let (namespace, id) = names::run("name", &request.name)?;
        let filter = filter::logs(&request.filter)?;
        let watch = self.control.watch_run_logs(&namespace, &id, &filter, request.after_position).await;
        let stream = respond(&self.gate, watch.map_err(from_control)?, log::watched)?;
        Ok(Response::new(stream))
    }

    async fn retry_step(&self, request: Request<pb::RetryStepRequest>) -> Result<Response<pb::Run>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let (namespace, id, step) = names::step("name", &request.name)?;
        let command = Command::RetryStep { step, reason: names::reason(request.reason)? };
        self.command(&caller, (namespace, id), command).await
    }

    async fn resolve_step(&self, request: Request<pb::ResolveStepRequest>) -> Result<Response<pb::Run>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let (namespace, id, step) = names::step("name", &request.name)?;
        let resolution = resolution(request.resolution())?;
        if request.output.is_some() && resolution != Resolution::Succeeded {
            return Err(bad_field(
                Reason::FieldInvalid,
                "output",
                "only a step that is resolved as succeeded has an output",
                "leave `output` out",
            ));
        }
        let output = request.output.map(|o| Arc::new(from_value(o)));
        let reason = names::reason(request.reason)?;
        self.command(&caller, (namespace, id), Command::ResolveStep { step, resolution, reason, output }).await
    }
}

/// A page token that is the number of the last item.
fn number_of(page_token: &str) -> Result<u64, Status> {
    if page_token.is_empty() {
        return Ok(0);
    }
    page_token.parse().map_err(|_| {
        let hint = "give `next_page_token` back as it came";
        bad_field(Reason::FieldInvalid, "page_token", "that is no page token", hint)
    })
}

/// The stream can't go on from where it was: the run itself says where it is.
fn falls_behind(error: &ControlError) -> bool {
    matches!(error.kind, ControlErrorKind::OutOfRange | ControlErrorKind::ResourceExhausted)
}

/// Why a wait for this run is over, if it is.
fn outcome(run: &Run, only_end: bool) -> Option<Outcome> {
    if matches!(run.state, RunState::Ended { .. }) {
        return Some(Outcome::Ended);
    }
    (!only_end && matches!(run_state(run), "WAITING" | "PAUSED")).then_some(Outcome::NeedsPerson)
}

/// When `WaitRun` answers at the latest.
fn wait_until(timeout: Option<prost_types::Duration>, deadline: Option<Instant>) -> Result<Instant, Status> {
    let timeout = match timeout {
        None => MAX_WAIT,
        Some(timeout) => from_duration(timeout)
            .ok_or_else(|| {
                let hint = "leave it out, or say how long to wait at most";
                bad_field(Reason::FieldInvalid, "timeout", "`timeout` is no length of time", hint)
            })?
            .min(MAX_WAIT),
    };
    let until = Instant::now() + timeout;
    Ok(match deadline.and_then(|d| d.checked_sub(WAIT_MARGIN)) {
        Some(deadline) => until.min(deadline),
        None => until,
    })
}

fn resolution(resolution: pb::resolve_step_request::Resolution) -> Result<Resolution, Status> {
    use pb::resolve_step_request::Resolution as Wire;
    match resolution {
        Wire::Succeeded => Ok(Resolution::Succeeded),
        Wire::Failed => Ok(Resolution::Failed),
        Wire::Retry => Ok(Resolution::Retry),
        Wire::Skip => Ok(Resolution::Skip),
        Wire::Unspecified => Err(bad_field(
            Reason::FieldRequired,
            "resolution",
            "no resolution is named",
            "one of succeeded, failed, retry and skip",
        )),
    }
}

fn explanation(e: Explanation) -> pb::Waiting {
    pb::Waiting {
        subject: e.subject,
        waits_for: e.waits_for,
        on_whom: e.on_whom,
        since: Some(to_time(e.since)),
        next_action: e.next_action,
        next_time: e.next_at.map(to_time),
        hint: e.hint,
        waits_on: run::waits_on(e.on).into(),
    }
}
