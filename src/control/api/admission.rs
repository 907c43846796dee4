//! Who may ask what. Every request passes here first: whoever comes by a socket is who its permissions let in, and whoever comes over TCP
//! is whose token he bears.
//!
//! | comes by | is asked for | role |
//! |---|---|---|
//! | `[api] socket` | nothing: its mode is 0600 | admin |
//! | `[api] read_only_socket` | nothing: its mode is 0660 | read |
//! | `[api] listen`, TCP | `Authorization: Bearer TEXT` | the token's |
//!
//! Invariant: nothing of a request is looked at, recorded or done before it is let in. What is refused is in the log, not in the audit trail:
//! whoever knocks could drive out what others did.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use crate::control::model::{ApiError, Asker, Role};
use crate::control::server::Entrance;
use crate::control::tokens::NoToken;
use crate::error::ErrorKind;

/// Lets a request in, or says what it needs.
pub(super) async fn admit(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let asker = extensions.get::<Asker>().cloned().unwrap_or_default();
    // What does not say by where it came is not trusted.
    let entrance = extensions.get::<Entrance>().copied().unwrap_or(Entrance::Tcp);
    let (asker, role) = match entrance.role() {
        Some(role) => (asker, role),
        None => match bearer(&api, request.headers()) {
            Ok((token, role)) => (Asker { token: Some(token), ..asker }, role),
            Err(why) => {
                refuse(&api, &asker, why);
                return unknown(why);
            }
        },
    };
    if role == Role::Read && !request.method().is_safe() {
        refuse(&api, &asker, "it may only read");
        return forbidden(&asker, entrance, &request);
    }
    request.extensions_mut().insert(asker);
    next.run(request).await
}

/// The token of a request, or why there is none.
fn bearer(api: &Api, headers: &HeaderMap) -> Result<(crate::control::name::Name, Role), &'static str> {
    let text = headers.get(AUTHORIZATION).ok_or("it bears no token")?.to_str().ok();
    let scheme = text.and_then(|text| text.split_once(' '));
    let text =
        scheme.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, text)| text.trim());
    api.tokens.find(text.ok_or("it bears no token")?).map_err(|wrong| match wrong {
        NoToken::Unknown => "its token is not known",
        NoToken::Expired(_) => "its token has expired",
    })
}

/// However many come, they are a few lines of the log.
fn refuse(api: &Api, asker: &Asker, why: &str) {
    let refused = api.refused.add(api.trail.now());
    if refused.is_power_of_two() {
        let address = asker.address.as_deref().unwrap_or("-");
        tracing::warn!(address, refused, asked_by = %asker, "a request to the API is refused: {why}");
    }
}

/// Nobody is told more than that it is not let in: not whether a token was ever there.
fn unknown(why: &str) -> Response {
    let what = match why {
        "it bears no token" => "no token is here",
        _ => "the token is not good: it is not known, has expired, or was revoked",
    };
    let message = format!(
        "{what}: send Authorization: Bearer TOKEN (the command line: --token-file or AFTERIMAGE_TOKEN); `afterimage token create` on the \
         gateway's machine makes one"
    );
    let error = ApiError { kind: ErrorKind::Denied, message };
    let challenge = [(WWW_AUTHENTICATE, "Bearer realm=\"afterimage\"")];
    (StatusCode::UNAUTHORIZED, challenge, Json(error)).into_response()
}

fn forbidden(asker: &Asker, entrance: Entrance, request: &Request) -> Response {
    let who = match (&asker.token, entrance) {
        (Some(token), _) => format!("token {token} has the role read"),
        _ => "whoever asks by [api] read_only_socket has the role read".to_owned(),
    };
    let message = format!(
        "{who}, which may only GET, and this is {} {}: ask with a token of the role admin, or by [api] socket",
        request.method(),
        request.uri().path()
    );
    (StatusCode::FORBIDDEN, Json(ApiError { kind: ErrorKind::Denied, message })).into_response()
}
