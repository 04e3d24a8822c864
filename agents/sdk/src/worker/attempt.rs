//! Tasks as they come, and the attempts that they start.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use muster_bus::{
    Delivery, Subscription,
    bus::ReplyTo,
    message::{Outcome, Report, ReportBody, Task, TaskReply},
};
use serde_json::Value;

use super::{
    Shared, WorkerError,
    book::{Fingerprint, Verdict},
    outcome::{self, Broken},
    reporting::{self, Taken},
    voice::Live,
};
use crate::{
    action::{ActionError, Context},
    guard::Children,
};

/// An action that is told to stop gets this long; then it is dropped, and its children are ended.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// What has ended by then is reported, and not accepted before.
const ACCEPT_WITHIN: Duration = Duration::from_millis(5);
const ACCEPTED: &[u8] = br#"{"answer":"accepted"}"#;

/// Take tasks as long as the bus gives them; at the end of the process, those that it has given already.
pub(super) async fn serve(shared: Arc<Shared>, mut tasks: Subscription) -> Result<(), WorkerError> {
    // A task can come before the answer to the registration, which says whose tasks count.
    let mut registered = shared.registered.subscribe();
    tokio::select! {
        is_registered = registered.wait_for(|count| *count > 0) => if is_registered.is_err() {
            return Err(WorkerError::Closed);
        },
        () = shared.ended.cancelled() => return Ok(()),
    }
    loop {
        tokio::select! {
            biased;
            next = tasks.next() => match next {
                Some(delivery) => take(&shared, delivery),
                None => return Err(WorkerError::Closed),
            },
            () = shared.ended.cancelled() => return Ok(()),
        }
    }
}

fn take(shared: &Arc<Shared>, delivery: Delivery) {
    let Some(reply) = delivery.reply else {
        tracing::debug!(subject = delivery.subject, "a task that can't be answered is not taken");
        return;
    };
    match serde_json::from_slice(&delivery.payload) {
        Ok(task) => match begin(shared, task) {
            Begun::Started(live) => drop(shared.attempts.spawn(attempt(shared.clone(), live, Some(reply)))),
            Begun::Answered(answer, _) => {
                reply.send(bytes_of(&answer));
                shared.quiet.notify_waiters();
            }
            Begun::Ignored => {}
        },
        Err(error) => {
            let why = format!("this is not a task that this agent can read: {error}");
            reply.send(bytes_of(&TaskReply::Refused { why }));
        }
    }
}

/// A task in the answer to a report. Why it is not started, its next copy is told, and this process does not end before that.
pub(super) fn take_from_answer(shared: &Arc<Shared>, task: Task) {
    match begin(shared, task) {
        Begun::Started(live) => drop(shared.attempts.spawn(attempt(shared.clone(), live, None))),
        Begun::Answered(TaskReply::Accepted, _) | Begun::Ignored => {}
        Begun::Answered(_, fingerprint) => shared.book().owe(fingerprint),
    }
}

/// What has become of a task.
enum Begun {
    Started(Arc<Live>),
    Answered(TaskReply, Fingerprint),
    Ignored,
}

fn begin(shared: &Shared, task: Task) -> Begun {
    let entry = shared.catalogue.find(&task.action, &task.version);
    let age_ms = shared.clock.age_ms(task.sent_at_ms);
    let mut book = shared.book();
    let verdict = book.judge(&task, age_ms, entry.as_ref().map(drop));
    match (verdict, entry) {
        (Verdict::Start(fingerprint), Ok(entry)) => {
            let live = Arc::new(Live::new(fingerprint, task, entry, shared.mouth.clone()));
            book.hold(&live);
            Begun::Started(live)
        }
        (Verdict::Start(fingerprint), Err(why)) => Begun::Answered(TaskReply::Refused { why }, fingerprint),
        (Verdict::Answer(answer), _) => Begun::Answered(answer, book.fingerprint(&task.key)),
        (Verdict::Silence(why), _) => {
            tracing::debug!(why, run = task.key.run, step = task.key.step, "a task is not answered");
            Begun::Ignored
        }
    }
}

fn bytes_of(answer: &TaskReply) -> Bytes {
    // Strings alone: always writable.
    Bytes::from(serde_json::to_vec(answer).unwrap_or_default())
}

/// From the start until the report is taken.
async fn attempt(shared: Arc<Shared>, live: Arc<Live>, task: Option<ReplyTo>) {
    let outcome = match task {
        Some(task) => accepting(task, work(&shared, &live)).await,
        None => work(&shared, &live).await,
    };
    live.work_ended();
    if shared.book().work_ended(&live) {
        shared.quiet.notify_waiters();
    }
    if let Some(outcome) = outcome {
        let report = fitting(&shared, report_of(&live, &shared.instance, ReportBody::Finished { outcome }));
        reporting::deliver(&shared, &live.task.report_subject, &report).await;
    }
    shared.book().forget(live.fingerprint);
}

/// Answer `accepted` unless the work has ended by then: its report says as much, and its next copy is answered in any case.
async fn accepting<T>(task: ReplyTo, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        ended = &mut work => return ended,
        () = tokio::time::sleep(ACCEPT_WITHIN) => task.send(Bytes::from_static(ACCEPTED)),
    }
    work.await
}

/// Do the work; nothing of it is left at return. None when nobody wants to know.
async fn work(shared: &Arc<Shared>, live: &Arc<Live>) -> Option<Outcome> {
    let records = shared.lock.as_ref().map(|lock| (lock.guards().clone(), shared.instance.clone()));
    let children = Children::new(shared.guard.clone(), records, live.stop.clone());
    let ctx = Context { cancelled: live.stop.clone(), voice: live.clone(), children: children.clone() };
    let changing = AtomicBool::new(false);
    let ended = until_stopped(shared, live, &ctx, &changing).await;
    drop(ctx);
    children.ended().await;
    let mut outcome = match ended {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(Broken::Unwanted)) => return None,
        Ok(Err(Broken::Failed(_))) | Err(Stopped) if live.is_cancelled() => {
            Outcome::Cancelled { may_have_changed: changing.load(Ordering::Acquire) }
        }
        Ok(Err(Broken::Failed(error))) if live.stop.is_cancelled() => outcome::failed(out_of_time(live, Some(&error))),
        Ok(Err(Broken::Failed(error))) => outcome::failed(error),
        Err(Stopped) => outcome::failed(out_of_time(live, None)),
    };
    outcome::observed(&mut outcome, live.take_observations());
    redact(shared, &mut outcome);
    Some(outcome)
}

/// The action did not end in time after it was told to.
struct Stopped;

async fn until_stopped(
    shared: &Arc<Shared>,
    live: &Arc<Live>,
    ctx: &Context,
    changing: &AtomicBool,
) -> Result<Result<Outcome, Broken>, Stopped> {
    let prepared = |undo: Value| prepare(shared.clone(), live.clone(), undo).boxed();
    let work = AssertUnwindSafe(outcome::perform(&live.task, &live.entry, ctx, changing, &prepared)).catch_unwind();
    tokio::pin!(work);
    let time_limit = Duration::from_millis(live.task.timeout_ms);
    let ended = tokio::select! {
        biased;
        ended = &mut work => ended,
        () = stop_order(live, time_limit) => {
            live.stop.cancel();
            tokio::time::timeout(STOP_WITHIN, &mut work).await.map_err(|_| Stopped)?
        }
    };
    Ok(ended.unwrap_or_else(|panic| Err(panicked(shared, live, panic.as_ref()).into())))
}

async fn stop_order(live: &Live, time_limit: Duration) {
    // An order is no failure, and neither is the end of time: both are only why to stop.
    let _ = tokio::time::timeout(time_limit, live.stop.cancelled()).await;
}

fn out_of_time(live: &Live, error: Option<&ActionError>) -> ActionError {
    let limit = Duration::from_millis(live.task.timeout_ms);
    ActionError::retry(match error {
        Some(error) => format!("{} took longer than its limit of {limit:?} and was stopped: {error}", live.task.action),
        None => format!("{} took longer than its limit of {limit:?}, did not stop, and was dropped", live.task.action),
    })
}

fn panicked(shared: &Shared, live: &Live, panic: &(dyn Any + Send)) -> ActionError {
    let said = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    let said = shared.mouth.redactor().text(&said);
    tracing::error!(
        action = live.task.action,
        run = live.task.key.run,
        step = live.task.key.step,
        said,
        "an action panicked"
    );
    ActionError::permanent(format!("panicked: {} has a fault in its code: {said}", live.task.action))
}

/// Report `prepared` until it is recorded; on any other final answer, or when the attempt is stopped, nothing is changed.
async fn prepare(shared: Arc<Shared>, live: Arc<Live>, undo: Value) -> Result<(), Broken> {
    let mut clean = undo.clone();
    shared.mouth.redactor().value(&mut clean);
    if clean != undo {
        return Err(ActionError::permanent("what undo would need holds a secret; keep its name, not its value").into());
    }
    let report = report_of(&live, &shared.instance, ReportBody::Prepared { undo });
    let limit = shared.bus.max_payload();
    let payload = Bytes::from(serde_json::to_vec(&report).map_err(|e| ActionError::permanent(e.to_string()))?);
    if payload.len() > limit {
        let size = payload.len();
        return Err(
            ActionError::permanent(format!("what undo would need is {size} bytes; the limit is {limit}")).into()
        );
    }
    tokio::select! {
        taken = reporting::insist(&shared, &live.task.report_subject, &payload, live.fingerprint.0) => match taken {
            Taken::Recorded => Ok(()),
            Taken::Unwanted(answer) => {
                tracing::info!(answer, run = live.task.key.run, step = live.task.key.step, "an attempt is over; nothing was changed");
                Err(Broken::Unwanted)
            }
        },
        () = live.stop.cancelled() => {
            Err(ActionError::retry("what undo would need could not be recorded, so nothing was changed").into())
        }
    }
}

fn report_of(live: &Live, instance: &str, report: ReportBody) -> Report {
    Report { cluster: live.task.cluster.clone(), instance: instance.to_owned(), key: live.task.key.clone(), report }
}

fn redact(shared: &Shared, outcome: &mut Outcome) {
    let redactor = shared.mouth.redactor();
    match outcome {
        Outcome::Succeeded { output, observations, .. } => {
            redactor.value(output);
            for observation in observations {
                redactor.observation(observation);
            }
        }
        Outcome::Failed { message, output, .. } => {
            *message = redactor.text(message);
            if let Some(output) = output {
                redactor.value(output);
            }
        }
        Outcome::NotSatisfied { diff } => *diff = redactor.text(diff),
        Outcome::Cancelled { .. } => {}
    }
}

/// Cut the report until it fits onto the bus.
fn fitting(shared: &Shared, mut report: Report) -> (Report, Bytes) {
    let mut limit = 16 * 1024;
    loop {
        // A value that came out of JSON or `json!` goes back into it.
        let payload = Bytes::from(serde_json::to_vec(&report).unwrap_or_default());
        let ReportBody::Finished { outcome } = &mut report.report else { return (report, payload) };
        if payload.len() <= shared.bus.max_payload() || limit == 0 {
            return (report, payload);
        }
        outcome::cut(outcome, limit);
        limit /= 4;
        if limit < 16 {
            limit = 0;
            outcome::cut(outcome, limit);
        }
    }
}
