//! Who may call what: every method with every role, and with bad tokens.

use muster_coordinator::api::{
    auth::{Access, METHODS},
    token::{NewToken, Role},
};
use muster_engine::ids::Actor;
use muster_proto::v1 as pb;
use secrecy::ExposeSecret as _;
use std::time::Duration;
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::harness::{Authed, NAMESPACE, details, reason, served, soon};

/// Call a method with an empty message, and stop at the first word of the answer.
async fn call(channel: Authed, path: &'static str) -> Result<(), tonic::Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let codec: ProstCodec<(), ()> = ProstCodec::default();
    let path = PathAndQuery::from_static(path);
    soon(path.as_str(), client.server_streaming(Request::new(()), path.clone(), codec)).await.map(|_| ())
}

fn refused(result: &Result<(), tonic::Status>) -> Option<(Code, String)> {
    let status =
        result.as_ref().err().filter(|s| matches!(s.code(), Code::Unauthenticated | Code::PermissionDenied))?;
    Some((status.code(), reason(status)))
}

fn may(role: Role, access: Access) -> bool {
    match (access, role) {
        (Access::Public, _) | (Access::RoleOrAgent(_), Role::Agent) => true,
        (Access::Role(_), Role::Agent) => false,
        (Access::Role(least) | Access::RoleOrAgent(least), role) => role >= least,
    }
}

#[tokio::test]
async fn every_method_lets_in_its_roles_and_no_other() {
    let served = served().await;
    for role in [Role::Viewer, Role::Operator, Role::Admin, Role::Agent] {
        let channel = served.bearer(role).await;
        for (path, access) in METHODS {
            let answer = call(channel.clone(), path).await;
            if let Err(status) = &answer {
                // An empty message is never understood in silence: the error of the method itself is explained too.
                if !path.starts_with("/grpc.") {
                    details(status);
                }
            }
            let expected = (!may(role, *access)).then(|| (Code::PermissionDenied, "ROLE_TOO_LOW".to_owned()));
            assert_eq!(refused(&answer), expected, "{role} at {path}");
        }
    }
}

#[tokio::test]
async fn without_a_good_token_only_health_answers() {
    let served = served().await;
    let good = served.token(Role::Admin).await;
    let mut wrong_secret = good.clone();
    let last = if wrong_secret.pop() == Some('0') { '1' } else { '0' };
    wrong_secret.push(last);
    let unknown = format!("muster_{}_{}", "0".repeat(12), "0".repeat(64));
    let cases = [
        (served.without_token(), "TOKEN_MISSING"),
        (served.with_token(""), "TOKEN_MISSING"),
        (served.with_token(&wrong_secret), "TOKEN_INVALID"),
        (served.with_token(&unknown), "TOKEN_INVALID"),
        (served.with_token("nonsense"), "TOKEN_INVALID"),
    ];
    for (channel, why) in cases {
        for (path, access) in METHODS {
            let answer = call(channel.clone(), path).await;
            let expected = (*access != Access::Public).then(|| (Code::Unauthenticated, why.to_owned()));
            assert_eq!(refused(&answer), expected, "{why} at {path}");
            if let Err(status) = answer {
                let said = format!("{status:?}");
                assert!(!said.contains(&wrong_secret[20..]), "a token was printed: {said}");
            }
        }
    }
}

#[tokio::test]
async fn revoked_and_expired_tokens_are_refused() {
    let served = served().await;
    let muster = Actor::from("muster");
    let new = |ttl| NewToken { actor: Actor::from("person/dba-1"), role: Role::Admin, ttl };
    let (info, secret) = served.tokens.create(&muster, new(None)).await.unwrap();
    let path = "/muster.v1.AgentService/ListAgents";
    let channel = served.with_token(secret.expose_secret());
    assert_eq!(refused(&call(channel.clone(), path).await), None);
    served.tokens.revoke(&muster, &info.id).await.unwrap();
    assert_eq!(refused(&call(channel, path).await), Some((Code::Unauthenticated, "TOKEN_REVOKED".to_owned())));

    let (info, secret) = served.tokens.create(&muster, new(Some(Duration::from_secs(1)))).await.unwrap();
    let after = info.expires_at.unwrap();
    let before = after - jiff::SignedDuration::from_millis(1);
    assert!(served.tokens.authenticate(secret.expose_secret(), before).is_ok());
    let denied = served.tokens.authenticate(secret.expose_secret(), after).unwrap_err();
    assert_eq!(denied.to_string(), "the token has expired");
}

#[tokio::test]
async fn an_agent_drains_itself_alone() {
    let served = served().await;
    let mut client = pb::agent_service_client::AgentServiceClient::new(served.bearer(Role::Agent).await);
    let drain =
        |agent: &str| pb::DrainAgentRequest { name: format!("{NAMESPACE}/agents/{agent}"), ..Default::default() };
    let other = client.drain_agent(drain("infra-2")).await.unwrap_err();
    assert_eq!((other.code(), reason(&other).as_str()), (Code::PermissionDenied, "ROLE_TOO_LOW"));
    assert_eq!(client.drain_agent(drain("infra-1")).await.unwrap().into_inner().agent_id, "infra-1");
}
