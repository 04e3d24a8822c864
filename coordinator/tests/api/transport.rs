//! Health, reflection, TLS, metrics, addresses, and the end of a server.

use std::{collections::BTreeSet, net::SocketAddr};

use muster_coordinator::api::{ServeError, ServerConfig, TlsFiles, auth::METHODS, listen, token::Role};
use muster_proto::v1::{self as pb, run_service_client::RunServiceClient};
use tokio_stream::once;
use tonic::{
    Code,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{config, get, reason, served, served_with, soon};

fn services() -> BTreeSet<String> {
    METHODS.iter().map(|(path, _)| path.split('/').nth(1).unwrap().to_owned()).collect()
}

#[tokio::test]
async fn both_reflections_list_every_service_and_describe_methods() {
    let served = served().await;
    let channel = served.bearer(Role::Viewer).await;

    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let ask = |what| v1::ServerReflectionRequest { host: String::new(), message_request: Some(what) };
    let list = ask(v1::server_reflection_request::MessageRequest::ListServices(String::new()));
    let answer = client.server_reflection_info(once(list)).await.unwrap().into_inner().message().await.unwrap();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(found)) =
        answer.unwrap().message_response
    else {
        panic!("no list")
    };
    assert_eq!(found.service.into_iter().map(|s| s.name).collect::<BTreeSet<_>>(), services());
    for symbol in ["muster.v1.RunService.StartRun", "muster.v1.Run", "google.rpc.ErrorInfo", "google.protobuf.Struct"] {
        let what = ask(v1::server_reflection_request::MessageRequest::FileContainingSymbol(symbol.to_owned()));
        let answer = client.server_reflection_info(once(what)).await.unwrap().into_inner().message().await.unwrap();
        let Some(v1::server_reflection_response::MessageResponse::FileDescriptorResponse(_)) =
            answer.unwrap().message_response
        else {
            panic!("{symbol} is not described")
        };
    }

    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let list = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let answer = client.server_reflection_info(once(list)).await.unwrap().into_inner().message().await.unwrap();
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(found)) =
        answer.unwrap().message_response
    else {
        panic!("no list")
    };
    assert_eq!(found.service.into_iter().map(|s| s.name).collect::<BTreeSet<_>>(), services());
}

#[tokio::test]
async fn health_needs_no_token_and_tells_the_end() {
    let served = served().await;
    let mut client = HealthClient::new(served.without_token());
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "muster.v1.RunService"] {
        let answer = client.check(check(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let mut watch = client.watch(check("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    served.shutdown.cancel();
    let last = soon("the word that it ends", watch.message()).await.unwrap().unwrap();
    assert_eq!(last.status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn the_end_lets_watchers_go_and_is_clean() {
    let mut served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let request = pb::WatchRunRequest { name: run.name, after_sequence: run.sequence, include_run: false };
    let mut stream = served.runs().await.watch_run(request).await.unwrap().into_inner();
    served.shutdown.cancel();
    let status = soon("the end of the watch", stream.message()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    drop(stream);
    assert!(soon("the end of the server", &mut served.task).await.unwrap().is_ok());
}

#[tokio::test]
async fn insecure_lets_everybody_in_as_anonymous() {
    let served = served_with(ServerConfig { insecure: true, ..config() }).await;
    let mut client = RunServiceClient::new(served.without_token());
    let run = client.start_run(crate::harness::start("playbook hello\nstep a")).await.unwrap().into_inner();
    let request = pb::ListRunEventsRequest { parent: run.name, ..Default::default() };
    let events = client.list_run_events(request).await.unwrap().into_inner().events;
    assert_eq!(events[0].actor, "person/anonymous");
}

#[tokio::test]
async fn clear_text_stays_at_home() {
    let outside: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let refused = listen(ServerConfig::new(outside)).await.unwrap_err();
    assert!(matches!(refused, ServeError::ClearText(_)), "{refused}");
    listen(ServerConfig { allow_clear_text: true, ..ServerConfig::new(outside) }).await.unwrap();
}

#[tokio::test]
async fn tls_is_spoken_with_the_configured_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let mut served = served_with(ServerConfig { tls: Some(files.clone()), ..config() }).await;

    let trust = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(made.cert.pem())).domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{}", served.address)).unwrap();
    served.channel = endpoint.clone().tls_config(trust).unwrap().connect().await.unwrap();
    let run = served.started("playbook hello\nstep a").await;
    assert_eq!(served.runs().await.get_run(get(&run.name)).await.unwrap().into_inner(), run);

    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let distrust =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(other.cert.pem())).domain_name("localhost");
    assert!(endpoint.tls_config(distrust).unwrap().connect().await.is_err());
    let plain = Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    served.channel = plain.connect_lazy();
    assert!(served.runs().await.get_run(get(&run.name)).await.is_err(), "clear text was answered");

    std::fs::write(&files.key, "nonsense").unwrap();
    let bad = listen(ServerConfig { tls: Some(files.clone()), ..config() }).await.unwrap_err();
    assert!(matches!(bad, ServeError::Tls { .. }), "{bad}");
    std::fs::remove_file(&files.cert).unwrap();
    let bad = listen(ServerConfig { tls: Some(files), ..config() }).await.unwrap_err();
    assert!(matches!(bad, ServeError::TlsFile { .. }), "{bad}");
}

#[tokio::test]
async fn the_side_listener_answers_probes() {
    let side = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let served = served_with(ServerConfig { metrics_listen: side, ..config() }).await;
    let address = served.metrics.unwrap();
    assert_eq!(fetch(address, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(fetch(address, "/metrics").await.0, 404, "no recorder was given");
}

#[tokio::test]
async fn metrics_count_calls_by_method_and_code() {
    let handle = muster_coordinator::metrics::install().unwrap();
    let side = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let served = crate::harness::served_measured(ServerConfig { metrics_listen: side, ..config() }, handle).await;
    served.runs().await.get_run(get("namespaces/default/runs/nothing")).await.unwrap_err();
    let run = served.started("playbook hello\nstep a").await;
    served.runs().await.get_run(get(&run.name)).await.unwrap();
    let (status, text) = fetch(served.metrics.unwrap(), "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        r#"muster_api_requests_total{method="/muster.v1.RunService/GetRun",code="OK"}"#,
        r#"muster_api_requests_total{method="/muster.v1.RunService/GetRun",code="NOT_FOUND"}"#,
        r#"muster_api_request_seconds_bucket{method="/muster.v1.RunService/StartRun",le="0.001"}"#,
        "# HELP muster_api_requests_total Calls of the API that have ended",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

async fn fetch(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
