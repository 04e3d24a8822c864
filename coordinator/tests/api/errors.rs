//! Every error says which, where, and what to do next.

use muster_proto::v1 as pb;
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::harness::{NAMESPACE, config, details, get, reason, served, served_with, start};

#[tokio::test]
async fn a_bad_playbook_names_line_and_column() {
    let served = served().await;
    let yaml = "playbook hello\nstep a\nstop b\nstap c".to_owned();
    let request = pb::SubmitPlaybookRequest { parent: NAMESPACE.to_owned(), yaml: yaml.clone(), ..Default::default() };
    let mut client = served.playbooks().await;
    let status = client.submit_playbook(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "PLAYBOOK_INVALID"));
    let details = details(&status);
    let violations = &details.bad_request().unwrap().field_violations;
    assert_eq!(violations.len(), 2);
    assert_eq!((violations[1].field.as_str(), violations[1].reason.as_str()), ("line[4]", "LINE_UNKNOWN"));
    assert!(violations[1].description.starts_with("line 4, column 1: error: "), "{}", violations[1].description);
    assert_eq!(reason(&served.runs().await.start_run(start(&yaml)).await.unwrap_err()), "PLAYBOOK_INVALID");

    let missing = pb::GetPlaybookRequest { name: format!("{NAMESPACE}/playbooks/hello") };
    assert_eq!(reason(&client.get_playbook(missing).await.unwrap_err()), "PLAYBOOK_NOT_FOUND");
}

#[tokio::test]
async fn findings_beyond_a_header_are_counted() {
    let served = served().await;
    let yaml = "nonsense that is rather long and therefore takes much room\n".repeat(500);
    let request = pb::SubmitPlaybookRequest { parent: NAMESPACE.to_owned(), yaml, ..Default::default() };
    let status = served.playbooks().await.submit_playbook(request).await.unwrap_err();
    let details = details(&status);
    let violations = &details.bad_request().unwrap().field_violations;
    let shown = violations.len() - 1;
    assert_eq!(violations[shown].description, format!("and {} more, which LintPlaybook lists", 500 - shown));
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((metadata["findings"].as_str(), &metadata["findings_shown"]), ("500", &shown.to_string()));
    assert!((10..500).contains(&shown));
}

#[tokio::test]
async fn forbidden_transitions_are_preconditions() {
    let served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let mut client = served.runs().await;
    let cancel = pb::CancelRunRequest { name: run.name.clone(), reason: "wrong".to_owned(), ..Default::default() };
    client.cancel_run(cancel).await.unwrap();
    let pause = pb::PauseRunRequest { name: run.name.clone(), reason: "lunch".to_owned(), ..Default::default() };
    let status = client.pause_run(pause).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "STATE_FORBIDS"));
    let details = details(&status);
    assert_eq!(details.precondition_failure().unwrap().violations[0].r#type, "STATE_FORBIDS");

    let digest = format!("sha256:{}", "0".repeat(64));
    let request = pb::StartRunRequest { plan_digest: digest, ..start("playbook hello\nstep a") };
    let status = client.start_run(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "PLAN_CHANGED"));
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let served = served().await;
    let mut client = served.runs().await;
    for name in ["namespaces/default/runs/nothing", "namespaces/other/runs/0199-0001"] {
        let status = client.get_run(get(name)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "RUN_NOT_FOUND"));
    }
    let parent = format!("{NAMESPACE}/runs/nothing");
    let mut milestones = served.milestones().await;
    let list = pb::ListMilestonesRequest { parent: parent.clone(), ..Default::default() };
    assert_eq!(reason(&milestones.list_milestones(list).await.unwrap_err()), "RUN_NOT_FOUND");
    let watch = pb::WatchMilestonesRequest { parent };
    assert_eq!(reason(&milestones.watch_milestones(watch).await.unwrap_err()), "RUN_NOT_FOUND");
    let name = format!("{NAMESPACE}/agents/nobody");
    let status = served.agents().await.get_agent(pb::GetAgentRequest { name }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "AGENT_NOT_FOUND"));
}

#[tokio::test]
async fn fields_are_checked() {
    let served = served().await;
    let mut client = served.runs().await;
    let start = start("playbook hello\nstep a");
    let long = "ä".repeat(1_001);
    let bad = [
        (pb::StartRunRequest { parent: "default".to_owned(), ..start.clone() }, "NAME_INVALID", "parent"),
        (pb::StartRunRequest { source: None, ..start.clone() }, "FIELD_REQUIRED", "source"),
        (pb::StartRunRequest { request_id: "1".to_owned(), ..start.clone() }, "REQUEST_ID_INVALID", "request_id"),
        (pb::StartRunRequest { plan_digest: "md5:0".to_owned(), ..start.clone() }, "FIELD_INVALID", "plan_digest"),
        (pb::StartRunRequest { note: long, ..start.clone() }, "FIELD_INVALID", "note"),
        (
            pb::StartRunRequest {
                source: Some(pb::start_run_request::Source::Playbook("namespaces/other/playbooks/hello".to_owned())),
                ..start
            },
            "FIELD_INVALID",
            "playbook",
        ),
    ];
    for (request, why, field) in bad {
        let status = client.start_run(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, why), "{field}");
        assert_eq!(details(&status).bad_request().unwrap().field_violations[0].field, field);
    }
    let list = pb::ListRunsRequest { parent: NAMESPACE.to_owned(), ..Default::default() };
    let bad = [
        (pb::ListRunsRequest { page_size: -1, ..list.clone() }, "FIELD_INVALID"),
        (pb::ListRunsRequest { filter: "state ~ x".to_owned(), ..list.clone() }, "FILTER_INVALID"),
        (pb::ListRunsRequest { page_token: "x".repeat(1_000), ..list }, "FIELD_INVALID"),
    ];
    for (request, why) in bad {
        assert_eq!(reason(&client.list_runs(request).await.unwrap_err()), why);
    }
    let run = served.started("playbook hello\nstep a").await;
    let token = "yesterday".to_owned();
    let request = pb::ListRunEventsRequest { parent: run.name.clone(), page_token: token, ..Default::default() };
    assert_eq!(reason(&client.list_run_events(request).await.unwrap_err()), "FIELD_INVALID");
    let timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let request = pb::WaitRunRequest { name: run.name, timeout, only_end: false };
    assert_eq!(reason(&client.wait_run(request).await.unwrap_err()), "FIELD_INVALID");
}

#[tokio::test]
async fn unknown_methods_and_broken_messages_are_explained() {
    let served = served().await;
    let mut client = Grpc::new(served.bearer(muster_coordinator::api::token::Role::Viewer).await);
    for path in ["/muster.v1.RunService/Explode", "/x.Y/Z", "/"] {
        let codec: ProstCodec<(), ()> = ProstCodec::default();
        client.ready().await.unwrap();
        let status = client.unary(Request::new(()), PathAndQuery::from_static(path), codec).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "METHOD_UNKNOWN"));
    }
    // Field 1 of GetRun is text; here it is a number.
    let codec: ProstCodec<pb::ListPlaybooksRequest, ()> = ProstCodec::default();
    let wrong = pb::ListPlaybooksRequest { page_size: 5, ..Default::default() };
    let path = PathAndQuery::from_static("/muster.v1.RunService/CancelRun");
    client = Grpc::new(served.bearer(muster_coordinator::api::token::Role::Operator).await);
    client.ready().await.unwrap();
    let status = client.unary(Request::new(wrong), path, codec).await.unwrap_err();
    assert_eq!(reason(&status), "MESSAGE_INVALID", "{status:?}");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let mut config = config();
    config.limits.message_bytes = 10_000;
    let served = served_with(config).await;
    let request = pb::LintPlaybookRequest { parent: NAMESPACE.to_owned(), yaml: "step a\n".repeat(10_000) };
    let status = served.playbooks().await.lint_playbook(request).await.unwrap_err();
    assert_eq!(reason(&status), "MESSAGE_TOO_LARGE", "{status:?}");
}
