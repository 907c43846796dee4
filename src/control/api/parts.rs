//! What requests are made of, taken in with errors that say so in the API's words; and those errors on their way out.

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::Api;
use crate::control::audit;
use crate::control::model::ApiError;
use crate::error::{Error, ErrorKind};

/// An error on its way to a client.
pub(super) struct Refused(pub(super) Error);

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let error = ApiError::from(&self.0);
        audit::note_error(&error);
        (status_of(error.kind), Json(error)).into_response()
    }
}

fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid | ErrorKind::Protocol => StatusCode::BAD_REQUEST,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists
        | ErrorKind::Fenced
        | ErrorKind::Latched
        | ErrorKind::Locked
        | ErrorKind::NoKey => StatusCode::CONFLICT,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Shutdown => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Io | ErrorKind::Corrupt => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub(super) type Answered<T> = Result<T, Refused>;

/// A JSON body; an empty one is an empty object.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &Api) -> Answered<Body<T>> {
        // All of it is there: requests with bodies are recorded.
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| Refused(Error::invalid(rejection.body_text())))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text)
            .map(Body)
            .map_err(|error| Refused(Error::invalid(format!("the request's body: {error}"))))
    }
}

/// Parts of the path.
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answered<Segments<T>> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Segments(segments))
            .map_err(|rejection| Refused(Error::invalid(rejection.body_text())))
    }
}

/// The query string.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answered<Parameters<T>> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|Query(parameters)| Parameters(parameters))
            .map_err(|rejection| Refused(Error::invalid(rejection.body_text())))
    }
}
