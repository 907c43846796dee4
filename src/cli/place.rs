//! Where a gateway is asked: a unix socket, or an address with a token.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::failure::Failure;
use crate::error::Error;

/// Where the token of a gateway over TCP is, unless a file is named.
pub const TOKEN_VARIABLE: &str = "AFTERIMAGE_TOKEN";
const SCHEME: &str = "http://";
/// A token is a line.
const TOKEN_BYTES_MAX: usize = 4096;

/// Where a gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its API's socket.
    Socket(PathBuf),
    /// HOST:PORT, where it asks for a token.
    Address(String),
}

impl Place {
    /// What `--socket` or its variable says.
    pub fn parse(text: &OsStr) -> Result<Place, Failure> {
        let Some(url) = text.to_str().filter(|text| text.contains("://")) else {
            return Ok(Place::Socket(PathBuf::from(text)));
        };
        let wrong = |why: &str| {
            let text = format!("--socket `{url}`: {why}: write a path, or http://HOST:PORT");
            Failure::Usage(text)
        };
        if url.starts_with("https://") {
            return Err(wrong("a gateway speaks no TLS: tunnel it, as by ssh -L 9470:127.0.0.1:9470"));
        }
        let address = url.strip_prefix(SCHEME).ok_or_else(|| wrong("neither a path nor an address"))?;
        let address = address.strip_suffix('/').unwrap_or(address);
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        match port.and_then(|port| port.parse::<u16>().ok()) {
            Some(_) if !address.contains(['/', '@', '?', '#', ' ']) => Ok(Place::Address(address.to_owned())),
            _ => Err(wrong("not an address with a port")),
        }
    }

    /// As `--socket` takes it.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Place::Socket(path) => path.clone(),
            Place::Address(_) => PathBuf::from(self.to_string()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Socket(path) => write!(f, "{}", path.display()),
            Place::Address(address) => write!(f, "{SCHEME}{address}"),
        }
    }
}

/// The token that a gateway over TCP is to be shown: of the file, or else what the variable says.
pub fn token(file: Option<&Path>, variable: Option<OsString>) -> Result<Zeroizing<String>, Failure> {
    let (text, source) = match (file, variable.filter(|text| !text.is_empty())) {
        (Some(file), _) => {
            let text = fs::read_to_string(file)
                .map_err(|error| Failure::Failed(Error::io("reading the token", error).at_path(file)))?;
            (text, format!("--token-file {}", file.display()))
        }
        (None, Some(text)) => (text.to_string_lossy().into_owned(), TOKEN_VARIABLE.to_owned()),
        (None, None) => {
            let text = format!(
                "a gateway asks for a token over TCP: name a file that holds one with --token-file, or set {TOKEN_VARIABLE}; \
                 `afterimage token create` on its machine makes one"
            );
            return Err(Failure::Usage(text));
        }
    };
    let text = Zeroizing::new(text);
    let token = text.trim();
    let is_token = !token.is_empty()
        && token.len() <= TOKEN_BYTES_MAX
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    match is_token {
        true => Ok(Zeroizing::new(token.to_owned())),
        false => Err(Failure::Usage(format!(
            "{source} holds no token: it is one word, which `afterimage token create` prints"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_at_a_path_or_at_an_address() {
        let parse = |text: &str| Place::parse(OsStr::new(text));
        for path in ["/run/api.sock", "api.sock", "http:/x", "127.0.0.1:9470"] {
            assert_eq!(parse(path).unwrap(), Place::Socket(path.into()));
        }
        for (url, address) in [
            ("http://127.0.0.1:9470", "127.0.0.1:9470"),
            ("http://[::1]:9470/", "[::1]:9470"),
            ("http://gw:1", "gw:1"),
        ] {
            assert_eq!(parse(url).unwrap(), Place::Address(address.to_owned()));
        }
        for url in [
            "http://gw",
            "http://gw:x",
            "http://:1",
            "http://gw:1/v1",
            "http://me@gw:1",
            "ftp://gw:1",
            "http://",
        ] {
            let refusal = parse(url).unwrap_err().to_string();
            assert!(
                refusal.contains(url) && refusal.ends_with("write a path, or http://HOST:PORT"),
                "{refusal}"
            );
        }
        assert!(parse("https://gw:1").unwrap_err().to_string().contains("ssh -L"));
    }

    #[test]
    fn a_token_is_a_word_of_a_file_or_of_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        fs::write(&file, "abc\n").unwrap();
        assert_eq!(*token(Some(&file), Some("other".into())).unwrap(), "abc");
        assert_eq!(*token(None, Some("other".into())).unwrap(), "other");
        assert!(token(None, Some("".into())).unwrap_err().to_string().contains("AFTERIMAGE_TOKEN"));
        for wrong in ["", "a b", "a\nb", "ä"] {
            fs::write(&file, wrong).unwrap();
            assert!(matches!(token(Some(&file), None), Err(Failure::Usage(_))), "{wrong}");
        }
        assert!(matches!(token(Some(&directory.path().join("none")), None), Err(Failure::Failed(_))));
    }
}
