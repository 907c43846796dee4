//! The API's client: one HTTP request a connection, over the gateway's unix socket, or over TCP with a token.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::place::Place;
use crate::control::model::ApiError;
use crate::error::{Error, ErrorKind};

/// Where the gateway is.
pub struct Client {
    place: Place,
    /// What it asks for over TCP.
    token: Option<Zeroizing<String>>,
}

impl Client {
    /// A client of the gateway at `place`.
    pub fn new(place: Place, token: Option<Zeroizing<String>>) -> Client {
        Client { place, token }
    }

    /// Where it is asked.
    pub fn place(&self) -> &Place {
        &self.place
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
        let unreachable = |source| Failure::Unreachable { place: self.place.clone(), source };
        let host = match &self.place {
            Place::Socket(_) => "afterimage",
            Place::Address(address) => address,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.as_str()));
        }
        let request = request.body(Full::new(body)).expect("paths, hosts and tokens are visible ASCII");
        match &self.place {
            Place::Socket(path) => ask(UnixStream::connect(path).await.map_err(unreachable)?, request).await,
            Place::Address(address) => {
                ask(TcpStream::connect(address).await.map_err(unreachable)?, request).await
            }
        }
    }
}

async fn ask<T: DeserializeOwned>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<T, Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Ends when the sender is dropped; how it ended shows in the response.
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let answer = read(response).await;
    connection.abort();
    answer
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
