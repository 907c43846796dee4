//! `[nbd.tls]`, and the files of TLS that other tables name. What lies in them is looked at by `check`.

use std::path::PathBuf;

use serde::Deserialize;

use super::error::{Fault, quoted, quoted_path};
use super::file::absolute;
use crate::listen::ListenAddress;
use crate::tls::{ServerFiles, TlsFile, Unusable};

const CERTIFICATE: &str = "nbd.tls.certificate";
const KEY: &str = "nbd.tls.key";
const CLIENT_CA: &str = "nbd.tls.client_ca";

/// A file, and how the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// As it is written.
    pub written: String,
    /// Where that is, absolute.
    pub path: PathBuf,
}

impl NamedFile {
    pub(super) fn parse(key: &str, written: String, example: &str) -> Result<NamedFile, Fault> {
        let path = absolute(key, &written, &written, example)?;
        Ok(NamedFile { written, path })
    }

    pub(super) fn shown(&self) -> String {
        quoted_path(&self.written, &self.path)
    }
}

/// `[nbd.tls]`: what TCP clients must begin TLS by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdTls {
    /// The gateway's certificate, and those between it and its authority.
    pub certificate: NamedFile,
    /// Its private key.
    pub key: NamedFile,
    /// Authorities, one of which must have signed a client's certificate; `None`: clients need none.
    pub client_ca: Option<NamedFile>,
}

impl NbdTls {
    /// The files, to be read.
    pub fn files(&self) -> ServerFiles<'_> {
        ServerFiles {
            certificate: &self.certificate.path,
            key: &self.key.path,
            client_ca: self.client_ca.as_ref().map(|file| file.path.as_path()),
        }
    }

    /// What is wrong with one of the files, by its key.
    pub(super) fn fault(&self, unusable: Unusable) -> Fault {
        let (key, file) = match (unusable.file, &self.client_ca) {
            (TlsFile::Authorities, Some(file)) => (CLIENT_CA, file),
            (TlsFile::Key, _) => (KEY, &self.key),
            _ => (CERTIFICATE, &self.certificate),
        };
        Fault::of(key, file.shown(), unusable.problem, unusable.mend)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    certificate: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
}

pub(super) fn parse(raw: Option<RawTls>) -> Result<Option<NbdTls>, Fault> {
    let Some(raw) = raw else { return Ok(None) };
    let required = |key: &str, text: Option<String>, example: &str| {
        let text = text.ok_or_else(|| Fault {
            place: key.to_owned(),
            problem: "missing".to_owned(),
            mend: format!(
                "add `{} = \"{example}\"` to the table [nbd.tls]",
                key.rsplit('.').next().unwrap_or(key)
            ),
        })?;
        NamedFile::parse(key, text, example)
    };
    let client_ca = raw.client_ca;
    Ok(Some(NbdTls {
        certificate: required(CERTIFICATE, raw.certificate, "/etc/afterimage/tls/server-cert.pem")?,
        key: required(KEY, raw.key, "/etc/afterimage/tls/server-key.pem")?,
        client_ca: client_ca
            .map(|text| NamedFile::parse(CLIENT_CA, text, "/etc/afterimage/tls/ca-cert.pem"))
            .transpose()?,
    }))
}

/// That nobody beyond this machine gets at disks without showing who he is, unless that is asked for.
pub(super) fn check_reach(
    key: &str,
    text: &str,
    address: &ListenAddress,
    tls: Option<&NbdTls>,
) -> Result<(), Fault> {
    if address.is_local() {
        return Ok(());
    }
    let (problem, mend) = match tls {
        None => (
            "not a loopback address, and without [nbd.tls] NBD is neither encrypted nor authenticated",
            "write the table [nbd.tls], listen on a unix socket or 127.0.0.1, or set allow_insecure = true beside it",
        ),
        Some(NbdTls { client_ca: None, .. }) => (
            "not a loopback address, and without nbd.tls.client_ca anybody who reaches it may read and write every disk",
            "write client_ca = \"/PATH\" in [nbd.tls], which clients' certificates must be signed by, listen on 127.0.0.1, or set \
             allow_insecure = true beside it",
        ),
        Some(_) => return Ok(()),
    };
    let shown = address.to_string();
    let which = if shown == text { String::new() } else { format!("it stands for {shown}, ") };
    Err(Fault::of(key, quoted(text), which + problem, mend))
}

/// That the files are there, and fit each other.
pub(super) fn check(tls: &NbdTls) -> Result<(), Fault> {
    crate::tls::server(&tls.files()).map(drop).map_err(|unusable| tls.fault(unusable))
}

/// That a webhook's server can be known.
pub(super) fn check_webhook(key: &str, url: &str, ca: Option<&NamedFile>) -> Result<(), Fault> {
    crate::tls::client(ca.map(|file| file.path.as_path())).map(drop).map_err(|unusable| match ca {
        Some(file) => Fault::of(&format!("{key}.ca"), file.shown(), unusable.problem, unusable.mend),
        None => Fault::of(&format!("{key}.webhook"), quoted(url), unusable.problem, unusable.mend),
    })
}

/// A file of authorities that a hook names.
pub(super) fn webhook_ca(key: &str, written: String, url: &str) -> Result<NamedFile, Fault> {
    let file = NamedFile::parse(key, written, "/etc/ssl/chat-ca.pem")?;
    if url.starts_with("https:") {
        return Ok(file);
    }
    let problem = "the webhook beside it is no https:// address, so nobody would look at it";
    Err(Fault::of(key, file.shown(), problem, "remove it, or write https://"))
}
