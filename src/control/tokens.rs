//! Tokens, which say over TCP who asks and what he may: made, kept, found and revoked. Not what each role may do: that is
//! `api/admission.rs`.
//!
//! ```text
//!   tokens.json           {"format": 1, "tokens": [{"name", "role", "created", "expires", "sha256"}, …]}, for its owner alone
//!   tokens.json.partial   being written; nothing reads it
//! ```
//!
//! A token's text is 256 random bits, so that its SHA-256 needs neither salt nor many rounds: nobody finds a text by trying. The file holds
//! only that sum. It is no part of the catalogue, which is a cache and may be deleted.
//!
//! Invariant: a token is good from when its file is durable until a file without it is, whatever happens between; where what lies there
//! cannot be read, no token is good, and nothing takes its place.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::model::{Role, Token, TokenCreated, TokenRequest};
use super::name::Name;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::key_file::sync_directory;
use crate::units::WallNanos;

const FORMAT: u64 = 1;
/// With which every text begins, so that those who search for lost secrets know one.
const PREFIX: &str = "afterimage-";
/// Each is compared with every request's.
const TOKENS_MAX: usize = 1000;
/// Ten years.
const EXPIRES_AFTER_MS_MAX: u64 = 3_653 * 24 * 3_600_000;

/// A token as its file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    name: Name,
    role: Role,
    created: WallNanos,
    expires: Option<WallNanos>,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    format: u64,
    tokens: Vec<Kept>,
}

/// Only what is read before anything else of a file.
#[derive(Deserialize)]
struct FileFormat {
    format: u64,
}

/// All tokens of a gateway.
pub struct Tokens {
    path: PathBuf,
    environment: Arc<dyn Environment + Send + Sync>,
    /// `None` where the file cannot be read.
    kept: RwLock<Option<Arc<Vec<Kept>>>>,
    /// One change at a time; who only asks does not wait for it.
    changing: Mutex<()>,
}

/// What is wrong with a text that should be a token's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoToken {
    /// No token has it.
    Unknown,
    /// This one had it.
    Expired(Name),
}

impl Tokens {
    /// Those in a file; none if it is not there. What cannot be read is told, and asked for again by whoever changes something.
    pub fn open(path: PathBuf, environment: Arc<dyn Environment + Send + Sync>) -> Tokens {
        let kept = match read(&path) {
            Ok(kept) => Some(Arc::new(kept)),
            Err(error) => {
                tracing::warn!(%error, "no token is good for anything over TCP");
                None
            }
        };
        Tokens { path, environment, kept: RwLock::new(kept), changing: Mutex::new(()) }
    }

    /// Whose text this is. How long that takes says nothing of any token.
    pub(super) fn find(&self, text: &str) -> std::result::Result<(Name, Role), NoToken> {
        let sum = sum(text);
        let kept = self.kept.read().clone();
        let mut found = None;
        for token in kept.iter().flat_map(|kept| kept.iter()) {
            if verify_slices_are_equal(token.sha256.as_bytes(), sum.as_bytes()).is_ok() {
                found = Some(token);
            }
        }
        match found {
            None => Err(NoToken::Unknown),
            Some(token) if token.is_expired(self.environment.wall()) => {
                Err(NoToken::Expired(token.name.clone()))
            }
            Some(token) => Ok((token.name.clone(), token.role)),
        }
    }

    /// All of them, by name.
    pub(super) fn list(&self) -> Result<Vec<Token>> {
        let now = self.environment.wall();
        let kept = self.kept.read().clone();
        let kept = kept.map_or_else(|| read(&self.path).map(Arc::new), Ok)?;
        Ok(kept.iter().map(|token| token.shown(now)).collect())
    }

    /// Makes one; durable when this returns.
    pub(super) fn create(&self, request: &TokenRequest) -> Result<TokenCreated> {
        let now = self.environment.wall();
        let expires = request.expires_after_ms.map(|after_ms| expiry(now, after_ms)).transpose()?;
        let random = [self.environment.random_u128(), self.environment.random_u128()];
        let text = format!("{PREFIX}{:032x}{:032x}", random[0], random[1]);
        let token = Kept {
            name: request.name.clone(),
            role: request.role,
            created: now,
            expires,
            sha256: sum(&text),
        };
        let shown = token.shown(now);
        self.change(|kept| {
            if kept.iter().any(|other| other.name == token.name) {
                let text = format!(
                    "a token {} is there: 'token revoke' it first, or choose another name",
                    token.name
                );
                return Err(Error::new(ErrorKind::AlreadyExists, text));
            }
            if kept.len() >= TOKENS_MAX {
                let text = format!("there are {TOKENS_MAX} tokens, and no more may be: 'token revoke' some");
                return Err(Error::invalid(text));
            }
            kept.push(token);
            kept.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(())
        })?;
        Ok(TokenCreated { token: shown, text })
    }

    /// Has one be good for nothing any more; durable when this returns.
    pub(super) fn revoke(&self, name: &Name) -> Result<Token> {
        let now = self.environment.wall();
        self.change(|kept| {
            let place = kept.iter().position(|token| token.name == *name);
            let missing =
                || Error::new(ErrorKind::NotFound, format!("no token {name}: 'token list' shows them"));
            Ok(kept.remove(place.ok_or_else(missing)?).shown(now))
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Kept>) -> Result<T>) -> Result<T> {
        let _one_at_a_time = self.changing.lock();
        // Of the file: somebody may have put it right meanwhile, or taken it away.
        let mut kept = read(&self.path)?;
        let changed = change(&mut kept)?;
        write(&self.path, &kept)
            .map_err(|error| Error::io("writing the tokens", error).at_path(&self.path))?;
        *self.kept.write() = Some(Arc::new(kept));
        Ok(changed)
    }
}

impl Kept {
    fn is_expired(&self, now: WallNanos) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    fn shown(&self, now: WallNanos) -> Token {
        Token {
            name: self.name.clone(),
            role: self.role,
            created: self.created,
            expires: self.expires,
            expired: self.is_expired(now),
        }
    }
}

fn expiry(now: WallNanos, after_ms: u64) -> Result<WallNanos> {
    let fits = (1..=EXPIRES_AFTER_MS_MAX).contains(&after_ms);
    let nanos = i64::try_from(after_ms).ok().filter(|_| fits).and_then(|ms| ms.checked_mul(1_000_000));
    let expires = nanos.and_then(|nanos| now.0.checked_add(nanos)).map(WallNanos);
    expires.ok_or_else(|| {
        let text = format!(
            "expires_after_ms = {after_ms}: out of range: write 1 to {EXPIRES_AFTER_MS_MAX}, or leave it out"
        );
        Error::invalid(text)
    })
}

fn sum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<Vec<Kept>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|error| Error::io("reading the tokens", error).at_path(path))?,
    };
    let damaged = |error: serde_json::Error| {
        let text = format!(
            "this is no file of tokens ({error}): put an earlier copy there, or move it away and make new tokens"
        );
        Error::corrupt(text).at_path(path)
    };
    let FileFormat { format } = serde_json::from_slice(&text).map_err(damaged)?;
    if format != FORMAT {
        return Err(Error::unknown_version("the file of tokens", format, FORMAT).at_path(path));
    }
    let file: TokenFile = serde_json::from_slice(&text).map_err(damaged)?;
    Ok(file.tokens)
}

/// In one piece or not at all; durable when this returns.
fn write(path: &Path, tokens: &[Kept]) -> io::Result<()> {
    let partial = path.with_added_extension("partial");
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = TokenFile { format: FORMAT, tokens: tokens.to_vec() };
    let text = serde_json::to_string_pretty(&file).expect("our values have string keys") + "\n";
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    target.write_all(text.as_bytes())?;
    target.sync_all()?;
    fs::rename(&partial, path)?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::units::MonotonicNanos;

    /// A clock that is set, and randomness that is not.
    #[derive(Default)]
    struct Set {
        wall: AtomicI64,
        drawn: AtomicI64,
    }

    impl Environment for Set {
        fn monotonic(&self) -> MonotonicNanos {
            MonotonicNanos(0)
        }

        fn wall(&self) -> WallNanos {
            WallNanos(self.wall.load(Ordering::Relaxed))
        }

        fn random_u128(&self) -> u128 {
            u128::try_from(self.drawn.fetch_add(1, Ordering::Relaxed)).unwrap()
        }
    }

    fn request(name: &str, role: Role, expires_after_ms: Option<u64>) -> TokenRequest {
        TokenRequest { name: name.parse().unwrap(), role, expires_after_ms }
    }

    #[test]
    fn a_token_is_good_until_it_is_revoked_also_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let environment = Arc::new(Set::default());
        let tokens = Tokens::open(path.clone(), environment.clone());
        assert_eq!(tokens.find(""), Err(NoToken::Unknown));
        let made = tokens.create(&request("ci", Role::Read, None)).unwrap();
        let other = tokens.create(&request("admin", Role::Admin, None)).unwrap();
        assert_eq!(made.text.len(), PREFIX.len() + 64);
        let names = tokens.list().unwrap().into_iter().map(|token| token.name.to_string());
        assert_eq!(names.collect::<Vec<_>>(), ["admin", "ci"]);
        let again = tokens.create(&request("ci", Role::Admin, None)).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let file = fs::read_to_string(&path).unwrap();
        assert!(
            !file.contains(&made.text) && !file.contains(&made.text[PREFIX.len()..]),
            "only its sum is kept"
        );
        let tokens = Tokens::open(path, environment);
        assert_eq!(tokens.find(&made.text), Ok(("ci".parse().unwrap(), Role::Read)));
        assert_eq!(tokens.find(&made.text[1..]), Err(NoToken::Unknown));
        assert_eq!(tokens.revoke(&"ci".parse().unwrap()).unwrap(), made.token);
        assert_eq!(tokens.find(&made.text), Err(NoToken::Unknown));
        assert_eq!(tokens.find(&other.text), Ok(("admin".parse().unwrap(), Role::Admin)));
        assert_eq!(tokens.revoke(&"ci".parse().unwrap()).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_token_is_good_for_as_long_as_was_said() {
        let directory = tempfile::tempdir().unwrap();
        let environment = Arc::new(Set::default());
        let tokens = Tokens::open(directory.path().join("tokens.json"), environment.clone());
        let made = tokens.create(&request("ci", Role::Admin, Some(1000))).unwrap();
        environment.wall.store(999_999_999, Ordering::Relaxed);
        assert!(tokens.find(&made.text).is_ok() && !tokens.list().unwrap()[0].expired);
        environment.wall.store(1_000_000_000, Ordering::Relaxed);
        assert_eq!(tokens.find(&made.text), Err(NoToken::Expired("ci".parse().unwrap())));
        assert!(tokens.list().unwrap()[0].expired);
        for after_ms in [0, u64::MAX] {
            let refused = tokens.create(&request("never", Role::Read, Some(after_ms))).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_lets_nobody_in_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let environment = Arc::new(Set::default());
        let made = Tokens::open(path.clone(), environment.clone()).create(&request("ci", Role::Admin, None));
        let whole = fs::read_to_string(&path).unwrap();
        for (text, kind) in [
            (whole[..whole.len() / 2].to_owned(), ErrorKind::Corrupt),
            (whole.replace("\"format\": 1", "\"format\": 2"), ErrorKind::Unsupported),
            (whole.replace("admin", "root"), ErrorKind::Corrupt),
        ] {
            fs::write(&path, &text).unwrap();
            let tokens = Tokens::open(path.clone(), environment.clone());
            assert_eq!(tokens.find(&made.as_ref().unwrap().text), Err(NoToken::Unknown));
            assert_eq!(tokens.list().unwrap_err().kind(), kind);
            assert_eq!(tokens.create(&request("new", Role::Admin, None)).unwrap_err().kind(), kind);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            fs::remove_file(&path).unwrap();
            tokens.create(&request("new", Role::Admin, None)).expect("it was moved away");
            fs::remove_file(&path).unwrap();
        }
    }
}
