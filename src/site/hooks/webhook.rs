//! A hook that is a web server: the event is posted to it as JSON. What it answers but for the status is of no interest; nothing is
//! followed.
//!
//! By https, its certificate must be signed by an authority of the system's, or by one that the hook names. They are read at each try, so
//! that new ones need no restart.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::WebhookAddress;

/// Posts an event; why it failed, if it did.
pub(super) async fn post(address: &WebhookAddress, message: Vec<u8>, within: Duration) -> Result<(), String> {
    let url = &address.url;
    match tokio::time::timeout(within, send(address, message)).await {
        Ok(sent) => sent.map_err(|why| format!("{url}: {why}")),
        Err(_) => Err(format!("{url} did not answer within {}", humantime::format_duration(within))),
    }
}

async fn send(address: &WebhookAddress, message: Vec<u8>) -> Result<(), String> {
    let socket =
        TcpStream::connect((address.host.as_str(), address.port)).await.map_err(|error| error.to_string())?;
    if !address.tls {
        return exchange(socket, address, message).await;
    }
    let connector = connector(address).await?;
    let name = ServerName::try_from(address.host.clone()).map_err(|error| error.to_string())?;
    let socket = connector.connect(name, socket).await.map_err(|error| {
        let mend =
            if address.ca.is_some() { "" } else { ": `ca` names the authority of a server of your own" };
        format!("TLS failed: {error}{mend}")
    })?;
    exchange(socket, address, message).await
}

async fn connector(address: &WebhookAddress) -> Result<TlsConnector, String> {
    let ca = address.ca.as_ref().map(|file| file.path.clone());
    let read = tokio::task::spawn_blocking(move || {
        crate::tls::client(ca.as_deref()).map_err(|unusable| {
            let place = ca.map(|path| format!("{}: ", path.display())).unwrap_or_default();
            format!("{place}{}: {}", unusable.problem, unusable.mend)
        })
    });
    let config = read.await.map_err(|error| error.to_string())??;
    Ok(TlsConnector::from(config))
}

async fn exchange<S>(socket: S, address: &WebhookAddress, message: Vec<u8>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::builder()
        .method(Method::POST)
        .uri(&address.path)
        .header(HOST, &address.authority)
        .header(USER_AGENT, concat!("afterimage/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(message)))
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(socket)).await.map_err(|error| error.to_string())?;
    // It ends with this attempt, however that ends.
    let mut connection = tokio::task::JoinSet::from_iter([connection]);
    let answer = sender.send_request(request).await.map_err(|error| error.to_string());
    connection.abort_all();
    let status = answer?.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
}
