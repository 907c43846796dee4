//! The table `[metrics]`.

use serde::Deserialize;

use super::Metrics;
use super::error::{Fault, quoted};
use crate::listen::{AddressFault, ListenAddress};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMetrics {
    listen: Option<String>,
    #[serde(default)]
    allow_insecure: bool,
}

const KEY: &str = "metrics.listen";
const MEND: &str =
    "write HOST:PORT, for example \"127.0.0.1:9469\", or scrape the API's socket, which serves /metrics, too";

/// Unix sockets are for other addresses.
fn of_tcp(text: &str, fault: AddressFault) -> Fault {
    match text.contains(':') {
        true => Fault::of_address(KEY, quoted(text), fault),
        false => Fault::of(KEY, quoted(text), "not a TCP address", MEND),
    }
}

/// The table, and the address as it is written.
pub(super) fn metrics(raw: RawMetrics) -> Result<(Metrics, String), Fault> {
    let Some(text) = raw.listen else { return Ok((Metrics::default(), String::new())) };
    let mut listen = Vec::new();
    for address in ListenAddress::parse(&text).map_err(|fault| of_tcp(&text, fault))? {
        let is_local = address.is_local();
        let ListenAddress::Tcp(address) = address else {
            return Err(Fault::of(KEY, quoted(&text), "a unix socket", MEND));
        };
        if !is_local && !raw.allow_insecure {
            return Err(not_local(KEY, &text, &address.to_string()));
        }
        listen.push(address);
    }
    Ok((Metrics { listen }, text))
}

fn not_local(key: &str, text: &str, shown: &str) -> Fault {
    let which = if shown == text { String::new() } else { format!("it stands for {shown}, ") };
    let problem = format!(
        "{which}not a loopback address, and anybody who reaches it reads the names and sizes of groups and disks"
    );
    Fault::of(key, quoted(text), problem, "listen on 127.0.0.1, or set allow_insecure = true beside it")
}
