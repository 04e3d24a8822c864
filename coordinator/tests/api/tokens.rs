//! Tokens: made, shown once, revoked, found again after a restart; the first one.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use jiff::Timestamp;
use muster_coordinator::{
    api::{
        ADMIN_TOKEN_FILE, bootstrap_token,
        token::{Denied, Role, Tokens},
    },
    journal::{Journal, Position, memory::MemoryJournal},
};
use muster_proto::v1 as pb;
use tonic::Code;

use crate::harness::{NAMESPACE, details, reason, served};

fn create(principal: &str, role: pb::Role) -> pb::CreateTokenRequest {
    pb::CreateTokenRequest { principal: principal.to_owned(), role: role.into(), ttl: None }
}

#[tokio::test]
async fn a_token_is_made_used_listed_and_revoked() {
    let served = served().await;
    let mut client = served.token_service().await;
    let made = client.create_token(create("service/ci", pb::Role::Viewer)).await.unwrap().into_inner();
    let token = made.token.unwrap();
    assert_eq!((token.principal.as_str(), token.role()), ("service/ci", pb::Role::Viewer));
    assert_eq!(token.creator, "person/dba-1");

    let mut agents = pb::agent_service_client::AgentServiceClient::new(served.with_token(&made.secret));
    let list = pb::ListAgentsRequest { parent: NAMESPACE.to_owned(), ..Default::default() };
    agents.list_agents(list.clone()).await.unwrap();

    let listed = client.list_tokens(pb::ListTokensRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.tokens.len(), 2);
    assert!(!format!("{listed:?}").contains(&made.secret), "a list shows a secret");
    let page = pb::ListTokensRequest { page_size: 1, ..Default::default() };
    let first = client.list_tokens(page.clone()).await.unwrap().into_inner();
    let page = pb::ListTokensRequest { page_token: first.next_page_token, ..page };
    let second = client.list_tokens(page).await.unwrap().into_inner();
    assert_eq!([&first.tokens[0], &second.tokens[0]], [&listed.tokens[0], &listed.tokens[1]]);
    assert!(second.next_page_token.is_empty());

    let revoke = pb::RevokeTokenRequest { name: token.name.clone() };
    let revoked = client.revoke_token(revoke.clone()).await.unwrap().into_inner();
    assert!(revoked.revoke_time.is_some());
    assert_eq!(client.revoke_token(revoke).await.unwrap().into_inner(), revoked);
    assert_eq!(reason(&agents.list_agents(list).await.unwrap_err()), "TOKEN_REVOKED");
}

#[tokio::test]
async fn bad_tokens_are_not_made() {
    let served = served().await;
    let mut client = served.token_service().await;
    for principal in ["", "dba-1", "person/", "person/UPPER", "agent/x", "muster", "person/-x", "person/a b"] {
        let status = client.create_token(create(principal, pb::Role::Viewer)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "FIELD_INVALID"), "{principal}");
        assert_eq!(details(&status).bad_request().unwrap().field_violations[0].field, "principal");
    }
    let status = client.create_token(create("person/dba-1", pb::Role::Unspecified)).await.unwrap_err();
    assert_eq!(reason(&status), "FIELD_REQUIRED");
    let ttl = Some(prost_types::Duration { seconds: 0, nanos: 1 });
    let request = pb::CreateTokenRequest { ttl, ..create("person/dba-1", pb::Role::Viewer) };
    assert_eq!(reason(&client.create_token(request).await.unwrap_err()), "FIELD_INVALID");
    let revoke = pb::RevokeTokenRequest { name: "tokens/000000000000".to_owned() };
    let status = client.revoke_token(revoke).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "TOKEN_NOT_FOUND"));
}

#[tokio::test]
async fn the_first_token_is_written_once_and_survives() {
    let dir = tempfile::tempdir().unwrap();
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let tokens = Tokens::load(&journal).unwrap();
    let path = bootstrap_token(&tokens, dir.path()).await.unwrap().unwrap();
    assert_eq!(path, dir.path().join(ADMIN_TOKEN_FILE));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = std::fs::read_to_string(&path).unwrap().trim().to_owned();
    let principal = tokens.authenticate(&secret, Timestamp::now()).unwrap();
    assert_eq!((principal.actor.as_str(), principal.role), ("person/admin", Role::Admin));

    assert_eq!(bootstrap_token(&tokens, dir.path()).await.unwrap(), None);
    let again = Tokens::load(&journal).unwrap();
    assert!(again.authenticate(&secret, Timestamp::now()).is_ok(), "not found again after a restart");
    assert_eq!(bootstrap_token(&again, dir.path()).await.unwrap(), None);
    for record in journal.read(Position(0)) {
        let line = record.unwrap().1.event.get().to_owned();
        assert!(!line.contains(&secret[20..]), "the journal holds a secret: {line}");
    }
}

#[tokio::test]
async fn a_crash_between_file_and_journal_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let lost: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let path = bootstrap_token(&Tokens::load(&lost).unwrap(), dir.path()).await.unwrap().unwrap();
    let secret = std::fs::read_to_string(&path).unwrap().trim().to_owned();

    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let tokens = Tokens::load(&journal).unwrap();
    bootstrap_token(&tokens, dir.path()).await.unwrap().unwrap();
    assert!(tokens.authenticate(&secret, Timestamp::now()).is_ok(), "the file's token is not the one that counts");
}

#[tokio::test]
async fn a_file_that_others_could_read_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(ADMIN_TOKEN_FILE);
    let planted = format!("muster_{}_{}", "0".repeat(12), "0".repeat(64));
    std::fs::write(&path, &planted).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let tokens = Tokens::load(&journal).unwrap();
    bootstrap_token(&tokens, dir.path()).await.unwrap().unwrap();
    assert_eq!(tokens.authenticate(&planted, Timestamp::now()), Err(Denied::Invalid));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_revocation_whose_answer_was_lost_can_be_sent_again() {
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let by = muster_engine::ids::Actor::from("person/dba-1");
    let one = Tokens::load(&journal).unwrap();
    let new = muster_coordinator::api::token::NewToken { actor: by.clone(), role: Role::Viewer, ttl: None };
    let (info, _) = one.create(&by, new).await.unwrap();
    // A second table over the same journal stands for a process that did not get the answer.
    let other = Tokens::load(&journal).unwrap();
    let first = other.revoke(&by, &info.id).await.unwrap();
    let second = one.revoke(&by, &info.id).await.unwrap();
    assert_eq!(first, second);
}
