//! Records of requests that are not only to read: what middleware notes of each before and after it is answered.
//!
//! Its body is taken before anything is done, so that what was asked for is in the trail before it happens.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use serde_json::Value;

use super::parts::{Answered, Refused};
use super::{Api, BODY_BYTES_MAX};
use crate::control::audit::Notes;
use crate::control::model::{ApiError, Asker, AuditOutcome, AuditRecord};
use crate::error::{Error, ErrorKind};

/// Characters that are kept of a path's names.
const SUBJECT_MAX: usize = 256;
/// Bytes of a request's body that are kept: names, numbers, paths.
const PARAMETERS_MAX: usize = 4096;

/// What the command line calls each route.
const VERBS: [(&str, &str, &str); 28] = [
    ("POST", "/v1/groups", "group create"),
    ("DELETE", "/v1/groups/{group}", "group remove"),
    ("PUT", "/v1/groups/{group}/policy", "policy set"),
    ("POST", "/v1/groups/{group}/policy/dry-run", "policy set --dry-run"),
    ("POST", "/v1/groups/{group}/resume", "group resume"),
    ("POST", "/v1/groups/{group}/pause", "group pause"),
    ("POST", "/v1/groups/{group}/disks", "disk create"),
    ("DELETE", "/v1/groups/{group}/disks/{disk}", "disk remove"),
    ("POST", "/v1/groups/{group}/disks/{disk}/resize", "disk resize"),
    ("POST", "/v1/groups/{group}/points", "point create"),
    ("POST", "/v1/groups/{group}/points/hold", "point hold"),
    ("POST", "/v1/groups/{group}/points/release", "point release"),
    ("POST", "/v1/groups/{group}/points/delete", "point delete"),
    ("POST", "/v1/groups/{group}/tests", "failover test"),
    ("DELETE", "/v1/groups/{group}/tests", "failover cleanup"),
    ("DELETE", "/v1/groups/{group}/tests/{number}", "failover cleanup"),
    ("POST", "/v1/groups/{group}/restore", "restore"),
    ("POST", "/v1/groups/{group}/verify", "verify"),
    ("POST", "/v1/groups/{group}/repair", "vault repair"),
    ("POST", "/v1/vault/verify", "vault verify"),
    ("POST", "/v1/vault/adopt", "vault adopt"),
    ("POST", "/v1/keys/rotate", "key rotate"),
    ("POST", "/v1/keys/export", "key export"),
    ("POST", "/v1/keys/import", "key import"),
    ("POST", "/v1/tokens", "token create"),
    ("DELETE", "/v1/tokens/{name}", "token revoke"),
    ("DELETE", "/v1/jobs/{id}", "job cancel"),
    ("POST", "/v1/hooks/{name}/test", "hooks test"),
];

/// Answers a request, and records it unless it is only to read.
pub(super) async fn record(
    State(api): State<Api>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    // In a task of its own: a client that leaves leaves no gap in the trail.
    match tokio::spawn(answer(api, route, request, next)).await {
        Ok(response) => response,
        // The gateway ends.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn answer(api: Api, route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let (verb, subject) =
        verb(request.method(), route.as_ref().map(MatchedPath::as_str), request.uri().path());
    let is_of_keys = request.uri().path().starts_with("/v1/keys");
    let asked_by = match request.extensions().get::<Asker>().cloned() {
        Some(peer) => Some(named(peer).await),
        None => None,
    };
    let time = api.trail.now();
    let taken = whole(request, api.connections.limits().body).await;
    let parameters = taken.as_ref().map_or(Value::Null, |(_, body)| parameters(body, is_of_keys));
    let record = AuditRecord {
        id: 0,
        time,
        asked_by: asked_by.clone(),
        verb,
        subject: with_name(subject, &parameters),
        parameters,
        job: None,
        outcome: AuditOutcome::AtWork,
        duration_ms: None,
    };
    let entry = api.trail.begin(record).await;
    let notes = Notes::new(asked_by, is_of_keys);
    let answering = async {
        match taken {
            Ok((request, _)) => next.run(request).await,
            Err(refused) => refused.into_response(),
        }
    };
    let answer = AssertUnwindSafe(notes.during(answering)).catch_unwind().await;
    let panicked = answer.is_err();
    let response = answer.unwrap_or_else(|_| {
        let message = "the gateway failed at it: its log says how".to_owned();
        let error = ApiError { kind: ErrorKind::Io, message };
        (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response()
    });
    let (job, error) = notes.noted();
    let error = if panicked { None } else { error }.or_else(|| unspoken(&response));
    entry.end(job, error.map_or(AuditOutcome::Done, AuditOutcome::Failed)).await;
    response
}

/// A request with the whole of its body, bounded in size and time.
async fn whole(request: Request, within: Duration) -> Answered<(Request, Bytes)> {
    let (parts, body) = request.into_parts();
    let late = |_| {
        let text = format!("the request's body did not come within {} s", within.as_secs());
        Refused(Error::new(ErrorKind::Protocol, text))
    };
    let taken = tokio::time::timeout(within, to_bytes(body, BODY_BYTES_MAX)).await.map_err(late)?;
    let body = taken.map_err(|error| Refused(Error::invalid(format!("the request's body: {error}"))))?;
    Ok((Request::from_parts(parts, Body::from(body.clone())), body))
}

/// What is kept of a body. Of one about keys, yes and no.
fn parameters(body: &[u8], is_of_keys: bool) -> Value {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(body) else { return Value::Null };
    if is_of_keys {
        object.retain(|name, value| {
            value.is_boolean() && ["replace", "new_group_keys"].contains(&name.as_str())
        });
    } else if body.len() > PARAMETERS_MAX {
        return serde_json::json!({ "omitted_bytes": body.len() });
    }
    Value::Object(object)
}

/// The verb of a route, and what it is about: the names in its path.
fn verb(method: &Method, route: Option<&str>, path: &str) -> (String, Option<String>) {
    let Some(route) = route else { return (format!("{method} {}", cut(path)), None) };
    let known = VERBS.iter().find(|(of, known, _)| *of == method.as_str() && *known == route);
    let verb = known.map_or_else(|| format!("{method} {route}"), |(_, _, verb)| (*verb).to_owned());
    let names = route.split('/').zip(path.split('/')).filter(|(pattern, _)| pattern.starts_with('{'));
    let names: Vec<&str> = names.map(|(_, name)| name).collect();
    (verb, Some(cut(&names.join("/"))).filter(|subject| !subject.is_empty()))
}

fn cut(text: &str) -> String {
    text.chars().take(SUBJECT_MAX).collect()
}

/// What is made is called as its request says.
fn with_name(subject: Option<String>, parameters: &Value) -> Option<String> {
    let Some(name) = parameters.get("name").and_then(Value::as_str) else { return subject };
    Some(cut(&subject.map_or_else(|| name.to_owned(), |group| format!("{group}/{name}"))))
}

/// The error of a refusal that nobody noted.
fn unspoken(response: &Response) -> Option<ApiError> {
    let status = response.status();
    let is_refusal = status.is_client_error() || status.is_server_error();
    is_refusal.then(|| ApiError { kind: ErrorKind::Protocol, message: format!("status {status}") })
}

/// With the user's name, where /etc/passwd has one: other sources may make one wait.
async fn named(peer: Asker) -> Asker {
    let Some(uid) = peer.uid else { return peer };
    let users = tokio::task::spawn_blocking(|| std::fs::read_to_string("/etc/passwd")).await;
    let user = users.ok().and_then(|read| read.ok()).and_then(|users| user_name(&users, uid));
    Asker { user, ..peer }
}

/// The name of a user in the lines `name:password:uid:…`.
fn user_name(users: &str, uid: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_key_is_kept() {
        let body = br#"{"key": "SECRET", "replace": true, "SECRET": true}"#;
        assert_eq!(parameters(body, true), serde_json::json!({"replace": true}));
        for body in [&b"\"SECRET\""[..], b"SECRET", b"[\"SECRET\"]"] {
            assert_eq!(parameters(body, true), Value::Null);
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let long = format!(r#"{{"label": "{}"}}"#, "x".repeat(PARAMETERS_MAX));
        assert_eq!(parameters(long.as_bytes(), false), serde_json::json!({"omitted_bytes": long.len()}));
        let (verb, _) = verb(&Method::POST, None, &"x".repeat(10_000));
        assert!(verb.len() < 300, "{}", verb.len());
    }

    #[test]
    fn routes_are_said_in_the_words_of_the_command_line() {
        let resize = "/v1/groups/{group}/disks/{disk}/resize";
        let said = verb(&Method::POST, Some(resize), "/v1/groups/erp/disks/db/resize");
        assert_eq!(said, ("disk resize".to_owned(), Some("erp/db".to_owned())));
        let (_, subject) = verb(&Method::POST, Some("/v1/groups"), "/v1/groups");
        assert_eq!(with_name(subject, &serde_json::json!({"name": "erp"})), Some("erp".to_owned()));
        let named = with_name(Some("erp".to_owned()), &serde_json::json!({"name": "db"}));
        assert_eq!(named, Some("erp/db".to_owned()));
        assert_eq!(verb(&Method::PATCH, None, "/v1/x"), ("PATCH /v1/x".to_owned(), None));
    }

    #[test]
    fn every_route_that_changes_something_has_a_word() {
        let document = crate::control::api::openapi_document();
        let mut count = 0;
        for (route, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
                if method != "GET" {
                    let known = VERBS.iter().any(|(of, known, _)| *of == method && known == route);
                    assert!(known, "{method} {route} has no word");
                    count += 1;
                }
            }
        }
        assert_eq!(count, VERBS.len(), "and no other has one");
    }

    #[test]
    fn users_have_the_names_that_the_file_gives() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/:/bin/sh\n";
        assert_eq!(user_name(users, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(users, 7), None);
    }
}
