//! The API's client: one HTTP request a connection over the gateway's unix socket.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::failure::Failure;
use crate::control::model::ApiError;
use crate::error::{Error, ErrorKind};

/// Where the gateway is.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the gateway on `socket`.
    pub fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    /// Where it is asked.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// `DELETE path`
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.request(Method::DELETE, path, Bytes::new()).await
    }

    /// `POST path` with a body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        self.request(Method::POST, path, json(body)).await
    }

    /// `PUT path` with a body.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        self.request(Method::PUT, path, json(body)).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Failure::Unreachable { socket: self.socket.clone(), source })?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "afterimage")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("paths are made of names and numbers");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends when the sender is dropped; how it ended shows in the response.
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken)?;
        let answer = read(response).await;
        connection.abort();
        answer
    }
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("our values have string keys").into()
}

async fn read<T: DeserializeOwned>(response: Response<hyper::body::Incoming>) -> Result<T, Failure> {
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(broken)?.to_bytes();
    if status.is_success() {
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        return serde_json::from_slice(text).map_err(|error| foreign(&error.to_string()));
    }
    match serde_json::from_slice::<ApiError>(&bytes) {
        Ok(error) => Err(Failure::Failed(error.into())),
        Err(_) => Err(foreign(&format!("status {status}"))),
    }
}

fn broken(error: hyper::Error) -> Failure {
    Failure::Failed(Error::new(
        ErrorKind::Protocol,
        format!("the gateway hung up before it answered ({error})"),
    ))
}

fn foreign(what: &str) -> Failure {
    Failure::Failed(Error::new(
        ErrorKind::Protocol,
        format!(
            "the answer is not one of this version's API ({what}): does the gateway have the same version?"
        ),
    ))
}
