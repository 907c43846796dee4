//! `token create|list|revoke`: who may ask the gateway over TCP.

use std::time::Duration;

use super::arguments::TokenCommand;
use super::client::Client;
use super::failure::Failure;
use super::output::{Output, complain, table};
use crate::control::model::{Token, TokenCreated, TokenRequest};
use crate::control::wire::rfc3339;

pub async fn run(command: TokenCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        TokenCommand::Create { name, role, expires } => {
            let expires_after_ms = expires.map(milliseconds);
            let request = TokenRequest { name, role: role.into(), expires_after_ms };
            let created: TokenCreated = client.post("/v1/tokens", &request).await?;
            complain(&format!(
                "whoever has what follows may {} as {}; it is told this once\n",
                match created.token.role {
                    crate::control::model::Role::Read => "look at everything",
                    crate::control::model::Role::Admin => "do everything",
                },
                created.token.name
            ));
            output.show(&created, |created| created.text.clone() + "\n")
        }
        TokenCommand::List => {
            let tokens: Vec<Token> = client.get("/v1/tokens").await?;
            output.show(&tokens, |tokens| list(tokens))
        }
        TokenCommand::Revoke { name } => {
            let token: Token = client.delete(&format!("/v1/tokens/{name}")).await?;
            output.show(&token, |token| format!("token {} is good for nothing any more\n", token.name))
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn list(tokens: &[Token]) -> String {
    if tokens.is_empty() {
        return "no token: 'token create' makes one\n".to_owned();
    }
    let rows = tokens.iter().map(|token| {
        let expires = token.expires.map_or_else(|| "never".to_owned(), rfc3339);
        let expired = if token.expired { " (expired)" } else { "" };
        [token.name.to_string(), token.role.word().to_owned(), rfc3339(token.created), expires + expired]
    });
    table(["TOKEN", "ROLE", "CREATED", "EXPIRES"], rows)
}
