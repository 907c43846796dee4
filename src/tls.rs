//! What TLS is spoken with: certificates, keys and authorities, from files in PEM form.
//!
//! Files are read when they are asked for and never written. What is wrong with one is said with its mend, and never with what it holds.
//!
//! Invariant: a configuration for clients that present certificates takes those only that one of the authorities named has signed; the
//! system's authorities are for servers that we connect to, and never for who connects to us.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

use crate::units::WallNanos;

/// A chain is a few KiB, and a system's authorities some hundreds.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// So long before a certificate expires that is worth a word.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// Which of the files is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// The server's own certificate, and those between it and its authority.
    Certificate,
    /// Its private key.
    Key,
    /// Certificates of the authorities that sign the other side's.
    Authorities,
}

/// Why one of the files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Which one.
    pub file: TlsFile,
    /// What is wrong with it; never what it holds.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
}

/// What a server shows, and whom it lets in.
#[derive(Clone, Copy, Debug)]
pub struct ServerFiles<'a> {
    /// Its certificate, and those between it and its authority.
    pub certificate: &'a Path,
    /// Its private key.
    pub key: &'a Path,
    /// Authorities, one of which must have signed a client's certificate; everybody is let in where there are none.
    pub client_ca: Option<&'a Path>,
}

/// How long a server's certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// For longer than two weeks, or for how long cannot be told.
    Holds,
    /// It expires at that second since 1970, soon or already.
    ExpiresAt {
        /// When.
        second: u64,
        /// Whether it has.
        is_past: bool,
    },
    /// It begins to hold later.
    NotYet,
}

/// What a server speaks TLS with. Sessions are not resumed: who was let in once is looked at again.
pub fn server(files: &ServerFiles<'_>) -> Result<Arc<ServerConfig>, Unusable> {
    let chain = certificates(files.certificate, TlsFile::Certificate)?;
    let key = private_key(files.key)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the usual cipher suites");
    let builder = match files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| no_authority(&error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| mismatch(&error))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For how long the first certificate in a file holds.
pub fn validity(certificate: &Path, now: WallNanos) -> Result<Validity, Unusable> {
    let chain = certificates(certificate, TlsFile::Certificate)?;
    let Some((own, rest)) = chain.split_first() else { return Ok(Validity::Holds) };
    let mut roots = RootCertStore::empty();
    if roots.add(own.clone()).is_err() {
        return Ok(Validity::Holds);
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let Ok(verifier) = verifier else { return Ok(Validity::Holds) };
    let now = Duration::from_nanos(u64::try_from(now.0).unwrap_or(0));
    let name = ServerName::try_from("localhost").expect("a name");
    // Whether it holds is looked at first; who has signed it, and for which name, is the clients' affair.
    let looked_at = |at: Duration| match verifier.verify_server_cert(
        own,
        rest,
        &name,
        &[],
        UnixTime::since_unix_epoch(at),
    ) {
        Err(rustls::Error::InvalidCertificate(error)) => Some(error),
        _ => None,
    };
    Ok(match (looked_at(now), looked_at(now + EXPIRES_SOON)) {
        (Some(CertificateError::ExpiredContext { not_after, .. }), _) => {
            Validity::ExpiresAt { second: not_after.as_secs(), is_past: true }
        }
        (Some(CertificateError::NotValidYetContext { .. } | CertificateError::NotValidYet), _) => {
            Validity::NotYet
        }
        (_, Some(CertificateError::ExpiredContext { not_after, .. })) => {
            Validity::ExpiresAt { second: not_after.as_secs(), is_past: false }
        }
        _ => Validity::Holds,
    })
}

/// What a client speaks TLS with: a server's certificate must be signed by one of the authorities in a file, or of the system's.
pub fn client(authorities_file: Option<&Path>) -> Result<Arc<ClientConfig>, Unusable> {
    let roots = match authorities_file {
        Some(path) => authorities(path)?,
        None => system_authorities()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the usual cipher suites");
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn system_authorities() -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    // Some that a system has are not to be understood, and nobody needs all.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Unusable {
            file: TlsFile::Authorities,
            problem: "this system has no certificates of authorities".to_owned(),
            mend: "install them (`apt install ca-certificates`), or name a file of them".to_owned(),
        });
    }
    Ok(roots)
}

fn authorities(path: &Path) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, TlsFile::Authorities)? {
        roots.add(certificate).map_err(|error| no_authority(&error))?;
    }
    Ok(roots)
}

fn no_authority(error: &dyn std::fmt::Display) -> Unusable {
    Unusable {
        file: TlsFile::Authorities,
        problem: format!("it holds what is no authority's certificate ({error})"),
        mend: "put certificates of authorities there, and nothing else".to_owned(),
    }
}

fn mismatch(error: &rustls::Error) -> Unusable {
    match error {
        rustls::Error::InconsistentKeys(_) => Unusable {
            file: TlsFile::Key,
            problem: "it is not the key of the certificate beside it".to_owned(),
            mend: "name the key that the certificate was made for; the server's own certificate stands first in its file"
                .to_owned(),
        },
        rustls::Error::InvalidCertificate(error) => Unusable {
            file: TlsFile::Certificate,
            problem: format!("its first certificate cannot be used ({error})"),
            mend: "put the server's own certificate there, and those between it and its authority behind".to_owned(),
        },
        error => Unusable {
            file: TlsFile::Key,
            problem: format!("it cannot be used ({error})"),
            mend: "make one by `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`".to_owned(),
        },
    }
}

fn certificates(path: &Path, file: TlsFile) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let (bytes, _) = read(path, file)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    let problem = match found {
        Ok(found) if !found.is_empty() => return Ok(found),
        Ok(_) => "it holds no certificate in PEM form".to_owned(),
        Err(error) => format!("it holds no certificate in PEM form ({error})"),
    };
    let mend = "name a file that begins with -----BEGIN CERTIFICATE-----".to_owned();
    Err(Unusable { file, problem, mend })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Unusable> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    let unusable = |problem: String, mend: String| Unusable { file: TlsFile::Key, problem, mend };
    let (bytes, mode) = read(path, TlsFile::Key)?;
    if mode & 0o007 != 0 {
        let problem = format!("others may read the key (mode {mode:04o})");
        return Err(unusable(problem, format!("chmod 600 {}", path.display())));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        if bytes.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
            let mend =
                format!("write it without a passphrase: `openssl pkey -in {} -out NEW`", path.display());
            return unusable("the key is encrypted by a passphrase".to_owned(), mend);
        }
        // What the file holds is no part of it.
        let problem = match error {
            pem::Error::Io(error) => format!("it cannot be read ({error})"),
            _ => "it holds no private key in PEM form".to_owned(),
        };
        unusable(problem, "name a file that begins with -----BEGIN PRIVATE KEY-----".to_owned())
    })
}

/// What a file holds, and its mode.
fn read(path: &Path, file: TlsFile) -> Result<(zeroize::Zeroizing<Vec<u8>>, u32), Unusable> {
    let unusable = |problem: String, mend: &str| Unusable { file, problem, mend: mend.to_owned() };
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unusable("there is no such file".to_owned(), "name one that is there"),
        _ => unusable(format!("it cannot be read ({error})"), "let this user read it"),
    })?;
    if metadata.is_dir() {
        return Err(unusable("it is a directory".to_owned(), "name a file in it"));
    }
    if !metadata.is_file() {
        return Err(unusable("it is no regular file".to_owned(), "name one"));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(unusable(format!("it has {} bytes", metadata.len()), "name a file in PEM form"));
    }
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| unusable(format!("it cannot be read ({error})"), "let this user read it"))?;
    Ok((bytes, metadata.permissions().mode() & 0o7777))
}

#[cfg(test)]
mod tests;
