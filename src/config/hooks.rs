//! `[[hooks]]`: whom events are told to, parsed. Whether a program is there is looked at by `check`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::error::{Fault, quoted};
use super::tls::{self, NamedFile};
use crate::control::event_codes::EVENT_CODES;
use crate::control::model::Severity;
use crate::control::name::Name;

const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
const RETRIES: u32 = 3;
const RETRIES_MAX: u32 = 100;
/// Each has a task, and a program at a time.
const HOOKS_MAX: usize = 64;

/// A table `[[hooks]]`: which events are told, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What it is called.
    pub name: Name,
    /// Codes of events; empty: all.
    pub on: Vec<String>,
    /// The least grave that is told.
    pub severity: Severity,
    /// How they are told.
    pub action: HookAction,
    /// How long one try may take.
    pub timeout: Duration,
    /// How often it is tried again.
    pub retries: u32,
}

/// What is done with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookAction {
    /// A program is run, with these arguments; its path is absolute.
    Exec(PathBuf, Vec<String>),
    /// It is posted there.
    Webhook(WebhookAddress),
}

/// `http://HOST[:PORT][/PATH]`, or the same by `https`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookAddress {
    /// As it is written.
    pub url: String,
    /// The host's name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What the header `Host` says.
    pub authority: String,
    /// What is asked for there.
    pub path: String,
    /// Whether it is spoken to by TLS.
    pub tls: bool,
    /// Authorities that its certificate may be signed by; `None`: those of the system.
    pub ca: Option<NamedFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    name: Option<String>,
    on: Option<Vec<String>>,
    severity: Option<String>,
    exec: Option<Vec<String>>,
    webhook: Option<String>,
    ca: Option<String>,
    timeout: Option<String>,
    retries: Option<toml::Value>,
}

pub(super) fn parse(raw: Vec<RawHook>) -> Result<Vec<Hook>, Fault> {
    if raw.len() > HOOKS_MAX {
        let problem = format!("more than {HOOKS_MAX} tables");
        return Err(Fault::of("hooks", raw.len(), problem, "let one hook serve several events"));
    }
    let mut hooks: Vec<Hook> = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let hook = hook(index, raw)?;
        if hooks.iter().any(|other| other.name == hook.name) {
            let value = quoted(hook.name.as_str());
            return Err(Fault::of("hooks.name", value, "two hooks have this name", "give each its own"));
        }
        hooks.push(hook);
    }
    Ok(hooks)
}

fn hook(index: usize, mut raw: RawHook) -> Result<Hook, Fault> {
    let missing = |key: String, problem: &str, mend: &str| Fault {
        place: key,
        problem: problem.to_owned(),
        mend: mend.to_owned(),
    };
    let Some(name) = raw.name else {
        return Err(missing(
            format!("hooks[{index}].name"),
            "missing",
            "add `name = \"page\"` to this table [[hooks]]",
        ));
    };
    let name: Name = name.parse().map_err(|error: crate::control::name::NameError| {
        Fault::of("hooks.name", quoted(&name), error.problem(), error.mend())
    })?;
    let key = |key: &str| format!("hooks.{name}.{key}");
    if raw.on.is_none() && raw.severity.is_none() {
        let mend = "add `severity = \"warning\"`, or `on = [\"verify_found\"]`";
        return Err(missing(key("on"), "it is not said which events are told", mend));
    }
    let action = match (raw.exec, raw.webhook) {
        (Some(words), None) => exec(&key("exec"), words)?,
        (None, Some(url)) => {
            let mut address = webhook(&key("webhook"), &url)?;
            address.ca = raw.ca.take().map(|ca| tls::webhook_ca(&key("ca"), ca, &url)).transpose()?;
            HookAction::Webhook(address)
        }
        (None, None) => {
            let mend = "add `exec = [\"/PATH\"]` or `webhook = \"http://HOST/PATH\"`";
            return Err(missing(key("exec"), "it is not said what is done", mend));
        }
        (Some(_), Some(url)) => {
            let problem = "there is hooks.exec beside it";
            return Err(Fault::of(&key("webhook"), quoted(&url), problem, "write two hooks"));
        }
    };
    if let Some(ca) = raw.ca {
        let problem = "there is no webhook beside it, whose certificate it would be for";
        return Err(Fault::of(&key("ca"), quoted(&ca), problem, "remove it"));
    }
    Ok(Hook {
        on: codes(&key("on"), raw.on)?,
        severity: severity(&key("severity"), raw.severity.as_deref())?,
        action,
        timeout: timeout(&key("timeout"), raw.timeout.as_deref())?,
        retries: retries(&key("retries"), raw.retries.as_ref())?,
        name,
    })
}

fn codes(key: &str, on: Option<Vec<String>>) -> Result<Vec<String>, Fault> {
    let Some(on) = on else { return Ok(Vec::new()) };
    if on.is_empty() {
        let mend = "name an event, or leave the key out";
        return Err(Fault::of(key, "[]", "no event would be told", mend));
    }
    match on.iter().find(|code| !EVENT_CODES.contains(&code.as_str())) {
        Some(code) => {
            let mend = "write codes of docs/events.md, for example [\"verify_found\"]";
            Err(Fault::of(key, quoted(code), "there is no such event", mend))
        }
        None => Ok(on),
    }
}

fn severity(key: &str, word: Option<&str>) -> Result<Severity, Fault> {
    let Some(word) = word else { return Ok(Severity::Info) };
    let known = Severity::WORDS.iter().find(|(_, known)| *known == word);
    known.map(|(severity, _)| *severity).ok_or_else(|| {
        let mend = "write one of \"info\", \"warning\", \"error\"";
        Fault::of(key, quoted(word), "not a known choice", mend)
    })
}

fn exec(key: &str, mut words: Vec<String>) -> Result<HookAction, Fault> {
    const MEND: &str = "write for example [\"/usr/local/bin/page\", \"storage\"]";
    if words.is_empty() {
        return Err(Fault::of(key, "[]", "no program", MEND));
    }
    if let Some(word) = words.iter().find(|word| word.contains('\0')) {
        return Err(Fault::of(key, quoted(word), "it has a NUL character", MEND));
    }
    let program = PathBuf::from(words.remove(0));
    if !program.is_absolute() {
        let value = quoted(&program.to_string_lossy());
        return Err(Fault::of(key, value, "the program's path is not absolute", MEND));
    }
    Ok(HookAction::Exec(program, words))
}

fn webhook(key: &str, url: &str) -> Result<WebhookAddress, Fault> {
    const MEND: &str = "write for example \"https://chat.example/afterimage\" or \"http://127.0.0.1:8080/\"";
    let fault = |problem: &str, mend: &str| Fault::of(key, quoted(url), problem, mend);
    let uri: hyper::Uri = url.parse().map_err(|_| fault("not an address", MEND))?;
    let tls = uri.scheme_str() == Some("https");
    let authority = uri.authority().filter(|_| tls || uri.scheme_str() == Some("http"));
    let authority = authority.ok_or_else(|| fault("not an http:// or https:// address with a host", MEND))?;
    if authority.as_str().contains('@') {
        return Err(fault("a user's name or password is part of it, which events would show", MEND));
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| fault("no host", MEND))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok(WebhookAddress {
        url: url.to_owned(),
        host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        authority: authority.to_string(),
        path: path.to_owned(),
        tls,
        ca: None,
    })
}

fn timeout(key: &str, text: Option<&str>) -> Result<Duration, Fault> {
    let Some(text) = text else { return Ok(TIMEOUT) };
    let mend = "write a duration from 100ms to 10m, for example \"30s\"";
    let timeout = humantime::parse_duration(text)
        .map_err(|error| Fault::of(key, quoted(text), error.to_string(), mend))?;
    if (TIMEOUT_MIN..=TIMEOUT_MAX).contains(&timeout) {
        return Ok(timeout);
    }
    Err(Fault::of(key, quoted(text), "out of range", mend))
}

fn retries(key: &str, value: Option<&toml::Value>) -> Result<u32, Fault> {
    let Some(value) = value else { return Ok(RETRIES) };
    let retries = value.as_integer().and_then(|retries| u32::try_from(retries).ok());
    retries.filter(|retries| *retries <= RETRIES_MAX).ok_or_else(|| {
        let mend = format!("write a number from 0 to {RETRIES_MAX}, without quotes");
        Fault::of(key, value, "not a whole number in range", mend)
    })
}
