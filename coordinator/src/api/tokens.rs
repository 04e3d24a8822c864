//! `muster.v1.TokenService`.

use std::sync::Arc;

use muster_engine::ids::Actor;
use muster_proto::v1::{self as pb, token_service_server::TokenService};
use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};

use crate::api::{
    auth::principal,
    convert::{
        names,
        value::{from_duration, to_time},
    },
    error::{Reason, bad_field, refuse},
    token::{NewToken, Role, TokenError, TokenInfo, Tokens},
};

/// The service.
#[derive(Clone)]
pub(super) struct TokensApi {
    tokens: Arc<Tokens>,
}

impl TokensApi {
    /// Over the table.
    pub(super) fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens }
    }
}

#[tonic::async_trait]
impl TokenService for TokensApi {
    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenResponse>, Status> {
        let by = principal(&request)?.actor.clone();
        let request = request.into_inner();
        let role = role_of(request.role())?;
        let ttl = match request.ttl {
            None => None,
            Some(ttl) => Some(from_duration(ttl).ok_or_else(|| refused(&TokenError::BadTtl))?),
        };
        let new = NewToken { actor: Actor::from(request.principal), role, ttl };
        let (info, secret) = self.tokens.create(&by, new).await.map_err(|e| refused(&e))?;
        tracing::info!(token = info.id, principal = %info.actor, role = %info.role, by = %by, "a token was made");
        Ok(Response::new(pb::CreateTokenResponse {
            token: Some(token(&info)),
            secret: secret.expose_secret().to_owned(),
        }))
    }

    async fn revoke_token(&self, request: Request<pb::RevokeTokenRequest>) -> Result<Response<pb::Token>, Status> {
        let by = principal(&request)?.actor.clone();
        let id = names::token("name", &request.get_ref().name)?;
        let info = self.tokens.revoke(&by, id).await.map_err(|e| refused(&e))?;
        tracing::info!(token = info.id, principal = %info.actor, by = %by, "a token was revoked");
        Ok(Response::new(token(&info)))
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        let request = request.get_ref();
        let size = names::page(request.page_size, &request.page_token)?;
        let mut tokens = self.tokens.list(&request.page_token, size + 1);
        let more = tokens.len() > size;
        tokens.truncate(size);
        let next_page_token =
            if more { tokens.last().map(|t| t.id.clone()).unwrap_or_default() } else { String::new() };
        Ok(Response::new(pb::ListTokensResponse { tokens: tokens.iter().map(token).collect(), next_page_token }))
    }
}

fn role_of(role: pb::Role) -> Result<Role, Status> {
    match role {
        pb::Role::Viewer => Ok(Role::Viewer),
        pb::Role::Operator => Ok(Role::Operator),
        pb::Role::Admin => Ok(Role::Admin),
        pb::Role::Agent => Ok(Role::Agent),
        pb::Role::Unspecified => Err(bad_field(
            Reason::FieldRequired,
            "role",
            "no role is named",
            "one of viewer, operator, admin and agent",
        )),
    }
}

fn token(info: &TokenInfo) -> pb::Token {
    let role = match info.role {
        Role::Viewer => pb::Role::Viewer,
        Role::Operator => pb::Role::Operator,
        Role::Admin => pb::Role::Admin,
        Role::Agent => pb::Role::Agent,
    };
    pb::Token {
        name: format!("tokens/{}", info.id),
        principal: info.actor.to_string(),
        role: role.into(),
        create_time: Some(to_time(info.created_at)),
        creator: info.created_by.to_string(),
        expire_time: info.expires_at.map(to_time),
        revoke_time: info.revoked_at.map(to_time),
    }
}

fn refused(error: &TokenError) -> Status {
    let message = error.to_string();
    match error {
        TokenError::BadActor(_) => {
            bad_field(Reason::FieldInvalid, "principal", message, "such as `person/dba-1` or `service/ci`")
        }
        TokenError::BadTtl => bad_field(Reason::FieldInvalid, "ttl", message, "leave it out for a token that stays"),
        TokenError::NotFound(_) => refuse(Reason::TokenNotFound, message, "muster token list"),
        TokenError::NoRandomness
        | TokenError::Append(_)
        | TokenError::JournalStopped
        | TokenError::Read(_)
        | TokenError::BadRecord { .. }
        | TokenError::File { .. } => {
            tracing::error!(error = %error, "a token could not be journalled");
            refuse(Reason::JournalUnavailable, message, "try again; revoke what you got no answer for")
        }
    }
}
