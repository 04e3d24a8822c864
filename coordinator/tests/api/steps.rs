//! Questions of steps, and the answers of people.

use muster_engine::run::event::{FailureKind, Outcome};
use muster_proto::v1::{self as pb, resolve_step_request::Resolution, run::State};
use prost_types::{Value, value::Kind};
use tonic::Code;
use uuid::Uuid;

use crate::harness::{Served, reason, served, start};

fn failed() -> Outcome {
    Outcome::Failed { kind: FailureKind::Permanent, message: "disk full on db-1".to_owned(), output: None }
}

async fn asking(served: &Served) -> pb::Run {
    let run = served.started("playbook hello\nask a\nstep b").await;
    served.fake.work(&run.run_id, "a", failed());
    served.runs().await.get_run(crate::harness::get(&run.name)).await.unwrap().into_inner()
}

fn resolve(run: &pb::Run, resolution: Resolution) -> pb::ResolveStepRequest {
    pb::ResolveStepRequest {
        name: format!("{}/steps/a", run.name),
        resolution: resolution.into(),
        reason: "looked at it".to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_question_is_shown_and_retried() {
    let served = served().await;
    let run = asking(&served).await;
    let step = &run.steps[0];
    assert_eq!((run.state(), step.state()), (State::Waiting, pb::step::State::Asking));
    assert_eq!(step.question(), pb::step::Question::Failed);
    assert!(run.state_reason.starts_with("step a asks: "), "{}", run.state_reason);
    let attempt = &step.attempts[0];
    assert_eq!((attempt.state(), attempt.failure()), (pb::attempt::State::Failed, pb::attempt::Failure::Permanent));
    assert_eq!(attempt.message, "disk full on db-1");

    let retry = pb::RetryStepRequest { name: step.name.clone(), reason: "freed".to_owned(), ..Default::default() };
    let run = served.runs().await.retry_step(retry).await.unwrap().into_inner();
    assert_eq!((run.state(), run.steps[0].state()), (State::Running, pb::step::State::Queued));
}

#[tokio::test]
async fn a_step_is_resolved_with_an_output() {
    let served = served().await;
    let run = asking(&served).await;
    let output = Value { kind: Some(Kind::NumberValue(7.0)) };
    let request = pb::ResolveStepRequest { output: Some(output.clone()), ..resolve(&run, Resolution::Succeeded) };
    let run = served.runs().await.resolve_step(request).await.unwrap().into_inner();
    assert_eq!(run.steps[0].state(), pb::step::State::Succeeded);
    assert_eq!(run.steps[0].output, Some(output));
}

#[tokio::test]
async fn bad_answers_are_refused() {
    let served = served().await;
    let run = asking(&served).await;
    let mut client = served.runs().await;
    let unspecified = client.resolve_step(resolve(&run, Resolution::Unspecified)).await.unwrap_err();
    assert_eq!((unspecified.code(), reason(&unspecified).as_str()), (Code::InvalidArgument, "FIELD_REQUIRED"));
    let output = Some(Value { kind: Some(Kind::BoolValue(true)) });
    let request = pb::ResolveStepRequest { output, ..resolve(&run, Resolution::Failed) };
    assert_eq!(reason(&client.resolve_step(request).await.unwrap_err()), "FIELD_INVALID");
    let request = pb::ResolveStepRequest { reason: " ".to_owned(), ..resolve(&run, Resolution::Retry) };
    assert_eq!(reason(&client.resolve_step(request).await.unwrap_err()), "FIELD_REQUIRED");
    let mut request = resolve(&run, Resolution::Retry);
    request.name = format!("{}/steps/nothing", run.name);
    let missing = client.resolve_step(request).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "STEP_NOT_FOUND"));
    let mut request = resolve(&run, Resolution::Retry);
    request.name = format!("{}/steps/b", run.name);
    let forbidden = client.resolve_step(request).await.unwrap_err();
    assert_eq!((forbidden.code(), reason(&forbidden).as_str()), (Code::FailedPrecondition, "STATE_FORBIDS"));
}

#[tokio::test]
async fn the_same_request_gives_the_same_answer() {
    let served = served().await;
    let mut client = served.runs().await;
    let request_id = Uuid::new_v4().to_string();
    let request = pb::StartRunRequest { request_id: request_id.clone(), ..start("playbook hello\nask a\nstep b") };
    let first = client.start_run(request.clone()).await.unwrap().into_inner();
    let again = pb::StartRunRequest { request_id: request_id.to_uppercase(), ..request.clone() };
    assert_eq!(client.start_run(again).await.unwrap().into_inner(), first);
    let other = pb::StartRunRequest { note: "another".to_owned(), ..request };
    let reused = client.start_run(other).await.unwrap_err();
    assert_eq!((reused.code(), reason(&reused).as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));

    served.fake.work(&first.run_id, "a", failed());
    let request = pb::RetryStepRequest {
        name: format!("{}/steps/a", first.name),
        reason: "freed".to_owned(),
        request_id: Uuid::new_v4().to_string(),
    };
    let first_answer = client.retry_step(request.clone()).await.unwrap().into_inner();
    let events = served.fake.events_of(&first.run_id);
    served.fake.work(&first.run_id, "a", failed());
    assert_eq!(client.retry_step(request).await.unwrap().into_inner(), first_answer);
    assert_eq!(served.fake.events_of(&first.run_id), events + 2, "the second request did something");
}
