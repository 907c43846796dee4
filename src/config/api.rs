//! The table `[api]`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Api;
use super::error::{Fault, quoted};
use super::file::absolute;
use super::number::{RawNumber, count_between};
use crate::listen::{self, AddressFault, ListenAddress};

/// A command line has one connection at a time.
const CONNECTIONS_MAX: usize = 256;
const CONNECTIONS_MOST: usize = 1 << 16;
const LISTEN: &str = "api.listen";
const MEND: &str =
    "write HOST:PORT, for example \"127.0.0.1:9470\"; sockets are [api] socket and [api] read_only_socket";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApi {
    socket: Option<String>,
    read_only_socket: Option<String>,
    listen: Option<Vec<String>>,
    #[serde(default)]
    allow_insecure: bool,
    connections_max: Option<RawNumber>,
}

/// What the table says where paths and addresses are made of it.
pub(super) struct WrittenApi {
    pub socket: String,
    pub read_only_socket: String,
    pub listen: Vec<String>,
}

/// The table, and its sockets and addresses as they are written.
pub(super) fn api(raw: RawApi, data_dir: &Path) -> Result<(Api, WrittenApi), Fault> {
    let written = raw.socket.unwrap_or_else(|| data_dir.join("api.sock").to_string_lossy().into_owned());
    let socket = socket("api.socket", &written)?;
    let read_only = raw.read_only_socket.unwrap_or_default();
    let read_only_socket = match read_only.is_empty() {
        true => None,
        false => Some(self::socket("api.read_only_socket", &read_only)?),
    };
    let connections_max = match raw.connections_max {
        Some(count) => count_between("api.connections_max", &count, CONNECTIONS_MOST)?,
        None => NonZeroUsize::new(CONNECTIONS_MAX).expect("not zero"),
    };
    let (listen, listen_written) = addresses(&raw.listen.unwrap_or_default(), raw.allow_insecure)?;
    let written = WrittenApi { socket: written, read_only_socket: read_only, listen: listen_written };
    Ok((Api { socket, read_only_socket, listen, connections_max }, written))
}

fn socket(key: &str, text: &str) -> Result<PathBuf, Fault> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    let path = absolute(key, text, path, "/run/afterimage/api.sock")?;
    listen::socket_path(&path).map_err(|fault| Fault::of_address(key, quoted(text), fault))
}

/// The addresses, and the text of each.
fn addresses(texts: &[String], allow_insecure: bool) -> Result<(Vec<SocketAddr>, Vec<String>), Fault> {
    let (mut listen, mut written) = (Vec::new(), Vec::new());
    for text in texts {
        for address in ListenAddress::parse(text).map_err(|fault| of_tcp(text, fault))? {
            let is_local = address.is_local();
            let ListenAddress::Tcp(address) = address else {
                return Err(Fault::of(LISTEN, quoted(text), "a unix socket", MEND));
            };
            // Where TLS is configured it is another thing: that check belongs here.
            if !is_local && !allow_insecure {
                return Err(not_local(text, &address.to_string()));
            }
            listen.push(address);
            written.push(text.clone());
        }
    }
    Ok((listen, written))
}

fn of_tcp(text: &str, fault: AddressFault) -> Fault {
    match text.contains(':') {
        true => Fault::of_address(LISTEN, quoted(text), fault),
        false => Fault::of(LISTEN, quoted(text), "not a TCP address", MEND),
    }
}

fn not_local(text: &str, shown: &str) -> Fault {
    let which = if shown == text { String::new() } else { format!("it stands for {shown}, ") };
    let problem = format!(
        "{which}not a loopback address, and nothing is encrypted: whoever listens on the way reads tokens and keys, and can use them"
    );
    let mend =
        "listen on 127.0.0.1 behind something that speaks TLS or SSH, or set allow_insecure = true beside it";
    Fault::of(LISTEN, quoted(text), problem, mend)
}
