//! Logs of runs over the API: pages, filters, streams, and what is refused.

use futures_util::StreamExt as _;
use muster_coordinator::logs::Lost;
use muster_proto::v1::{self as pb, run_log_entry::Lost as Wire};
use tonic::Code;

use crate::harness::{Served, reason, served};

async fn logged(served: &Served) -> pb::Run {
    let run = served.started("playbook hello\nstep a\nstep b").await;
    for (step, text) in [("a", "one"), ("b", "two"), ("a", "three")] {
        served.fake.log(&run.run_id, step, text, None);
    }
    served.fake.log(&run.run_id, "a", "", Some((7, Lost::OverLimit)));
    run
}

fn list(run: &pb::Run) -> pb::ListRunLogsRequest {
    pb::ListRunLogsRequest { parent: run.name.clone(), ..Default::default() }
}

fn watch(run: &pb::Run) -> pb::WatchRunLogsRequest {
    pb::WatchRunLogsRequest { name: run.name.clone(), ..Default::default() }
}

#[tokio::test]
async fn pages_have_lines_and_what_is_missing() {
    let served = served().await;
    let run = logged(&served).await;
    let mut client = served.runs().await;
    let request = pb::ListRunLogsRequest { page_size: 3, ..list(&run) };
    let page = client.list_run_logs(request).await.unwrap().into_inner();
    let said: Vec<_> = page.entries.iter().map(|e| (e.step.as_str(), e.line, e.text.as_str(), e.lost_lines)).collect();
    assert_eq!(said, [("a", 1, "one", 0), ("b", 2, "two", 0), ("a", 3, "three", 0)]);
    assert_eq!(page.next_page_token, page.entries[2].position.to_string());
    let request = pb::ListRunLogsRequest { page_token: page.next_page_token, ..list(&run) };
    let page = client.list_run_logs(request).await.unwrap().into_inner();
    assert_eq!((page.entries[0].lost_lines, page.entries[0].lost(), page.entries[0].line), (7, Wire::OverLimit, 0));
    assert_eq!((page.entries.len(), page.next_page_token.as_str()), (1, ""));
    let request = pb::ListRunLogsRequest { filter: "step = b".to_owned(), ..list(&run) };
    let page = client.list_run_logs(request).await.unwrap().into_inner();
    assert_eq!((page.entries.len(), page.entries[0].text.as_str()), (1, "two"));
}

#[tokio::test]
async fn a_stream_goes_on_from_a_position() {
    let served = served().await;
    let run = logged(&served).await;
    let request = pb::WatchRunLogsRequest { after_position: 2, ..watch(&run) };
    let stream = served.runs().await.watch_run_logs(request).await.unwrap().into_inner();
    let seen: Vec<u64> = stream.map(|seen| seen.unwrap().entry.unwrap().position).take(2).collect().await;
    assert_eq!(seen, [3, 4]);
}

#[tokio::test]
async fn what_is_nowhere_is_refused() {
    let served = served().await;
    let run = logged(&served).await;
    let mut client = served.runs().await;
    let beyond =
        client.watch_run_logs(pb::WatchRunLogsRequest { after_position: 99, ..watch(&run) }).await.unwrap_err();
    assert_eq!((beyond.code(), reason(&beyond).as_str()), (Code::OutOfRange, "LOG_POSITION_OUT_OF_RANGE"));
    let token = pb::ListRunLogsRequest { page_token: "next".to_owned(), ..list(&run) };
    assert_eq!(reason(&client.list_run_logs(token).await.unwrap_err()), "FIELD_INVALID");
    let filter = pb::ListRunLogsRequest { filter: "agent = infra-1".to_owned(), ..list(&run) };
    assert_eq!(reason(&client.list_run_logs(filter).await.unwrap_err()), "FILTER_INVALID");
    let filter = pb::WatchRunLogsRequest { filter: "step".to_owned(), ..watch(&run) };
    assert_eq!(reason(&client.watch_run_logs(filter).await.unwrap_err()), "FILTER_INVALID");
    let name = format!("{}/../0199-0002", run.name);
    let elsewhere = client.list_run_logs(pb::ListRunLogsRequest { parent: name, ..Default::default() }).await;
    assert_eq!(reason(&elsewhere.unwrap_err()), "NAME_INVALID");
    let name = "namespaces/other/runs/0199-0001".to_owned();
    let other = client.list_run_logs(pb::ListRunLogsRequest { parent: name, ..Default::default() }).await.unwrap_err();
    assert_eq!((other.code(), reason(&other).as_str()), (Code::NotFound, "RUN_NOT_FOUND"));
}
