//! `muster token …`

use muster_proto::v1;

use super::App;
use crate::{
    args::{TokenCommand, TokenRole},
    config::duration,
    error::{CliError, Exit, Result},
    printer::{Block, Table, View, time},
    words,
};

pub(super) async fn run(app: &App, command: TokenCommand) -> Result<Exit> {
    match command {
        TokenCommand::Create { principal, role, expires_in } => {
            create(app, principal, role, expires_in.as_deref()).await
        }
        TokenCommand::Revoke { id } => revoke(app, &id).await,
        TokenCommand::List => list(app).await,
    }
}

async fn create(app: &App, principal: String, role: TokenRole, expires_in: Option<&str>) -> Result<Exit> {
    let ttl = expires_in.map(duration).transpose()?;
    let ttl = ttl.map(|ttl| prost_types::Duration::try_from(ttl).map_err(|_| too_long())).transpose()?;
    let role = match role {
        TokenRole::Viewer => v1::Role::Viewer,
        TokenRole::Operator => v1::Role::Operator,
        TokenRole::Agent => v1::Role::Agent,
        TokenRole::Admin => v1::Role::Admin,
    };
    let client = app.client().await?;
    let request = v1::CreateTokenRequest { principal, role: role.into(), ttl };
    let answer = client.tokens().create_token(client.soon(request)).await.map_err(|s| client.error(&s))?;
    app.printer.data(&answer.into_inner(), created)?;
    app.printer.note("the secret is shown once: keep it in a file of mode 0600, for --token-file");
    Ok(Exit::Succeeded)
}

fn too_long() -> CliError {
    CliError::usage("DURATION_INVALID", "--expires-in is too long")
}

fn created(answer: &v1::CreateTokenResponse) -> View {
    let token = answer.token.clone().unwrap_or_default();
    View::new(vec![Block::Fields(vec![
        ("Token", short(&token.name)),
        ("Principal", token.principal.clone()),
        ("Role", words::role(token.role())),
        ("Expires", time(token.expire_time.as_ref())),
        ("Secret", answer.secret.clone()),
    ])])
}

async fn revoke(app: &App, id: &str) -> Result<Exit> {
    let client = app.client().await?;
    let name = if id.starts_with("tokens/") { id.to_owned() } else { format!("tokens/{id}") };
    let request = v1::RevokeTokenRequest { name };
    let answer = client.tokens().revoke_token(client.soon(request)).await.map_err(|s| client.error(&s))?;
    app.printer.data(&answer.into_inner(), |token| tokens(std::slice::from_ref(token)).into())?;
    Ok(Exit::Succeeded)
}

async fn list(app: &App) -> Result<Exit> {
    let client = app.client().await?;
    let mut all = v1::ListTokensResponse::default();
    loop {
        let request = v1::ListTokensRequest { page_size: 1_000, page_token: all.next_page_token };
        let next = client.tokens().list_tokens(client.soon(request)).await.map_err(|s| client.error(&s))?.into_inner();
        all.tokens.extend(next.tokens);
        all.next_page_token = next.next_page_token;
        if all.next_page_token.is_empty() {
            break;
        }
    }
    app.printer.data(&all, |all| tokens(&all.tokens).into())?;
    Ok(Exit::Succeeded)
}

fn tokens(tokens: &[v1::Token]) -> Table {
    let head = ["TOKEN", "PRINCIPAL", "ROLE", "CREATED", "BY", "EXPIRES", "REVOKED"];
    Table::new(&head, "no tokens").rows(tokens.iter().map(|token| {
        vec![
            short(&token.name),
            token.principal.clone(),
            words::role(token.role()),
            time(token.create_time.as_ref()),
            token.creator.clone(),
            time(token.expire_time.as_ref()),
            time(token.revoke_time.as_ref()),
        ]
    }))
}

fn short(name: &str) -> String {
    name.strip_prefix("tokens/").unwrap_or(name).to_owned()
}
