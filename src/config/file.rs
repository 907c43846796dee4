//! The configuration file's text: TOML with these tables and keys, and no others.
//!
//! Serde finds unknown keys and wrong types; everything else (names, sizes, addresses) is parsed here, key by key, so
//! that a message can name the key, its value and the mend. Only host names are looked up outside the text.

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::api::{RawApi, WrittenApi, api};
use super::error::{Fault, quoted};
use super::hooks::{self, RawHook};
use super::metrics::{RawMetrics, metrics};
use super::number::{RawNumber, count_between};
use super::tls::{self, RawTls};
use super::{
    Configuration, Images, Journal, Keys, Log, LogFormat, LogLevel, Memory, Nbd, Site, Storage,
    StorageChoice, Vault, Verify, Written,
};
use crate::byte_size::{ByteSize, SizeFault};
use crate::data_directory;
use crate::listen::{ListenAddress, SocketMode};
use crate::protect::open::MAP_BYTES_MIN;
use crate::throttle::ByteRate;

const JOURNAL_SIZE: ByteSize = ByteSize(4 << 30);
const SEGMENT_SIZE: ByteSize = ByteSize(64 << 20);
/// Below this, segment headers and switches cost more than they save.
const SEGMENT_SIZE_MIN: ByteSize = ByteSize(1 << 20);
/// Room for the segments reserved for opening, markers and closing, and for one that is being recycled.
const SEGMENTS_MIN: u64 = 4;
/// Extents and payload tables of some four million writes of a sealed group: 64 bytes each.
const MAPS: ByteSize = ByteSize(256 << 20);
const MAPS_MIN: ByteSize = ByteSize(MAP_BYTES_MIN as u64);
const FRAMES: ByteSize = ByteSize(64 << 20);
const FRAMES_TOTAL: ByteSize = ByteSize(512 << 20);
/// Two of the largest requests.
const BUFFERS: ByteSize = ByteSize(64 << 20);
/// The largest request must fit.
const BUFFERS_MIN: ByteSize = ByteSize(32 << 20);
/// Sixteen clients that fill their buffers.
const BUFFERS_TOTAL: ByteSize = ByteSize(1 << 30);
/// Below this, a single point may be all the history that there is.
const HISTORY_MIN: ByteSize = ByteSize(16 << 20);
/// What administrators of ZFS and md are used to, within a factor.
const VERIFY_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
const VERIFY_EVERY_MIN: Duration = Duration::from_secs(1);
/// A tenth of what a slow disk reads.
const VERIFY_RATE: ByteSize = ByteSize(20 << 20);
const VERIFY_RATE_MIN: ByteSize = ByteSize(64 << 10);
const CONNECTIONS_MAX: usize = 1024;
const DATA_THREADS_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    site: Option<RawSite>,
    #[serde(default)]
    nbd: RawNbd,
    #[serde(default)]
    api: RawApi,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    storage: RawStorage,
    #[serde(default)]
    journal: RawJournal,
    #[serde(default)]
    memory: RawMemory,
    #[serde(default)]
    vault: RawVault,
    #[serde(default)]
    images: RawImages,
    #[serde(default)]
    keys: RawKeys,
    #[serde(default)]
    verify: RawVerify,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    hooks: Vec<RawHook>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSite {
    name: Option<String>,
    data_dir: Option<String>,
    data_threads: Option<RawNumber>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNbd {
    listen: Option<Vec<String>>,
    socket_mode: Option<String>,
    #[serde(default)]
    allow_insecure: bool,
    connections_max: Option<RawNumber>,
    buffers: Option<RawSize>,
    buffers_total: Option<RawSize>,
    tls: Option<RawTls>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: Option<String>,
    level: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStorage {
    backend: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJournal {
    size: Option<RawSize>,
    segment_size: Option<RawSize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMemory {
    maps: Option<RawSize>,
    frames: Option<RawSize>,
    frames_total: Option<RawSize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVault {
    history_max: Option<RawSize>,
    free_min: Option<RawSize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawImages {
    free_min: Option<RawSize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKeys {
    site_key: Option<String>,
    seal_groups: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVerify {
    every: Option<String>,
    rate: Option<RawSize>,
}

/// A size: text with a suffix, or a number of bytes.
struct RawSize {
    text: String,
    shown: String,
}

impl<'de> Deserialize<'de> for RawSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawSize, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = RawSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"4GiB\"")
            }

            fn visit_str<E>(self, text: &str) -> Result<RawSize, E> {
                Ok(RawSize { text: text.to_owned(), shown: quoted(text) })
            }

            fn visit_i64<E>(self, bytes: i64) -> Result<RawSize, E> {
                Ok(RawSize { text: bytes.to_string(), shown: bytes.to_string() })
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

pub(super) fn parse(file: &Path, text: &str) -> Result<Configuration, Fault> {
    let raw: RawFile = toml::from_str(text).map_err(|error| toml_fault(text, &error))?;
    let (site, data_dir) = site(raw.site)?;
    let (api, WrittenApi { socket: api_socket, read_only_socket: api_read_only_socket, listen: api_listen }) =
        api(raw.api, &site.data_dir)?;
    let (nbd, listen) = nbd(raw.nbd, &site.data_dir)?;
    let (keys, site_key) = keys(raw.keys, &site.data_dir)?;
    let (metrics, metrics_listen) = metrics(raw.metrics)?;
    Ok(Configuration {
        file: file.to_owned(),
        written: Written {
            data_dir,
            listen,
            api_socket,
            api_read_only_socket,
            api_listen,
            site_key,
            metrics_listen,
        },
        keys,
        site,
        nbd,
        api,
        log: log(&raw.log)?,
        storage: storage(&raw.storage)?,
        journal: journal(raw.journal)?,
        memory: Memory {
            maps: size_of_at_least("memory.maps", raw.memory.maps, MAPS, MAPS_MIN)?,
            frames: size_of_at_least("memory.frames", raw.memory.frames, FRAMES, ByteSize(0))?,
            frames_total: size_of_at_least(
                "memory.frames_total",
                raw.memory.frames_total,
                FRAMES_TOTAL,
                ByteSize(0),
            )?,
        },
        vault: Vault {
            history_max: optional_size("vault.history_max", raw.vault.history_max, HISTORY_MIN)?,
            free_min: optional_size("vault.free_min", raw.vault.free_min, ByteSize(0))?,
        },
        images: Images { free_min: optional_size("images.free_min", raw.images.free_min, ByteSize(0))? },
        verify: verify(raw.verify)?,
        metrics,
        hooks: hooks::parse(raw.hooks)?,
    })
}

/// What the TOML parser or serde refused, with the line that it stands on instead of a drawing of it.
fn toml_fault(text: &str, error: &toml::de::Error) -> Fault {
    const MENDS: [(&str, &str); 4] = [
        ("expected a string", "write it in quotes, as in key = \"value\""),
        ("expected a boolean", "write true or false, without quotes"),
        ("expected a sequence", "write a list, as in [\"unix:/PATH\"]"),
        ("expected a size", "write a whole number of bytes, or a size in quotes, for example \"4GiB\""),
    ];
    let message = error.message();
    // Serde names the type of ours that a table becomes.
    let is_table = message.contains("expected struct");
    let place = error.span().map(|span| place_in(text, &span)).unwrap_or_default();
    let mend = if message.contains("expected a sequence") && place.contains("[hooks]") {
        "write [[hooks]], with two brackets: there may be several"
    } else if message.starts_with("unknown field") {
        "remove or rename it"
    } else if is_table {
        "write its name as [NAME] on a line of its own, and its keys below"
    } else {
        MENDS.iter().find(|(said, _)| message.contains(said)).map_or("correct this line", |(_, mend)| mend)
    };
    Fault {
        place,
        problem: if is_table { "not a table".to_owned() } else { message.to_owned() },
        mend: mend.to_owned(),
    }
}

/// The absolute form of `path`, which a key has as `text`.
pub(super) fn absolute(key: &str, text: &str, path: &str, example: &str) -> Result<PathBuf, Fault> {
    let mend = || format!("write a path, for example \"{example}\"");
    if path.is_empty() {
        return Err(Fault::of(key, quoted(text), "no path", mend()));
    }
    std::path::absolute(path).map_err(|error| Fault::of(key, quoted(text), error.to_string(), mend()))
}

/// `line N: [table] the line itself`.
fn place_in(text: &str, span: &Range<usize>) -> String {
    let before = &text[..span.start.min(text.len())];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default().trim();
    let number = before.matches('\n').count() + 1;
    let table = before[..line_start].lines().rev().map(str::trim).find(|line| line.starts_with('['));
    match table {
        Some(table) if !line.starts_with('[') => format!("line {number}: {table} {line}"),
        _ => format!("line {number}: {line}"),
    }
}

/// The table, and the data directory as it is written.
fn site(raw: Option<RawSite>) -> Result<(Site, String), Fault> {
    let missing = |key: &str, example: &str| Fault {
        place: key.to_owned(),
        problem: "missing".to_owned(),
        mend: format!("add `{example}` to the table [site]"),
    };
    let raw = raw.unwrap_or(RawSite { name: None, data_dir: None, data_threads: None });
    let name = raw.name.ok_or_else(|| missing("site.name", "name = \"site-a\""))?;
    let data_dir =
        raw.data_dir.ok_or_else(|| missing("site.data_dir", "data_dir = \"/var/lib/afterimage\""))?;
    let absolute = absolute("site.data_dir", &data_dir, &data_dir, "/var/lib/afterimage")?;
    let site = Site {
        name: name.parse().map_err(|error: crate::control::name::NameError| {
            Fault::of("site.name", quoted(&name), error.problem(), error.mend())
        })?,
        data_dir: absolute,
        data_threads: match raw.data_threads {
            Some(count) => count_between("site.data_threads", &count, DATA_THREADS_MAX)?,
            None => default_data_threads(),
        },
    };
    Ok((site, data_dir))
}

/// Half of the cores: the other half is for the guests, or the control plane and the kernel's I/O workers.
fn default_data_threads() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new((cores / 2).clamp(1, DATA_THREADS_MAX)).expect("clamped to at least one")
}

/// The table, and the text of each of its addresses.
fn nbd(raw: RawNbd, data_dir: &Path) -> Result<(Nbd, Vec<String>), Fault> {
    const KEY: &str = "nbd.listen";
    let texts = raw.listen.unwrap_or_else(|| vec![format!("unix:{}", data_dir.join("nbd.sock").display())]);
    if texts.is_empty() {
        return Err(Fault::of(KEY, "[]", "nobody could connect", "name an address, or leave the key out"));
    }
    let tls = tls::parse(raw.tls)?;
    let (mut listen, mut written) = (Vec::new(), Vec::new());
    for text in &texts {
        let addresses =
            ListenAddress::parse(text).map_err(|fault| Fault::of_address(KEY, quoted(text), fault))?;
        for address in addresses {
            if !raw.allow_insecure {
                tls::check_reach(KEY, text, &address, tls.as_ref())?;
            }
            listen.push(address);
            written.push(text.clone());
        }
    }
    let connections_max = match raw.connections_max {
        Some(count) => count_between("nbd.connections_max", &count, 1 << 20)?,
        None => NonZeroUsize::new(CONNECTIONS_MAX).expect("not zero"),
    };
    let modes = [("0600", SocketMode::Owner), ("0660", SocketMode::Group)];
    let socket_mode = one_of("nbd.socket_mode", raw.socket_mode.as_deref(), &modes)?;
    let buffers = size_of_at_least("nbd.buffers", raw.buffers, BUFFERS, BUFFERS_MIN)?;
    let buffers_total = buffers_total(raw.buffers_total, buffers)?;
    Ok((Nbd { listen, socket_mode, connections_max, buffers, buffers_total, tls }, written))
}

/// Where it is left out, it is never what is wrong: it follows larger buffers of each client.
fn buffers_total(raw: Option<RawSize>, buffers: ByteSize) -> Result<ByteSize, Fault> {
    const KEY: &str = "nbd.buffers_total";
    let (total, shown) = size(KEY, raw, BUFFERS_TOTAL.max(buffers))?;
    if total < buffers {
        let problem = format!("less than nbd.buffers = \"{buffers}\", which each client may fill");
        return Err(Fault::of(
            KEY,
            shown,
            problem,
            format!("write at least \"{buffers}\", or make nbd.buffers smaller"),
        ));
    }
    Ok(total)
}

/// The table, and the site key's path as it is written.
fn keys(raw: RawKeys, data_dir: &Path) -> Result<(Keys, String), Fault> {
    let default = || data_directory::keys(data_dir).join("site.key").to_string_lossy().into_owned();
    let text = raw.site_key.unwrap_or_else(default);
    let site_key = absolute("keys.site_key", &text, &text, "/etc/afterimage/site.key")?;
    Ok((Keys { site_key, seals_groups: raw.seal_groups.unwrap_or(true) }, text))
}

fn verify(raw: RawVerify) -> Result<Verify, Fault> {
    const KEY: &str = "verify.every";
    let every = match raw.every.as_deref() {
        None => Some(VERIFY_EVERY),
        Some("never") => None,
        Some(text) => {
            let mend = "write for example \"7d\", or \"never\"";
            let parsed = humantime::parse_duration(text)
                .map_err(|error| Fault::of(KEY, quoted(text), error.to_string(), mend))?;
            if parsed < VERIFY_EVERY_MIN {
                return Err(Fault::of(KEY, quoted(text), "too often", "write at least \"1s\", or \"never\""));
            }
            Some(parsed)
        }
    };
    let rate = size_of_at_least("verify.rate", raw.rate, VERIFY_RATE, VERIFY_RATE_MIN)?;
    let rate = NonZeroU64::new(rate.0).expect("at least the least");
    Ok(Verify { every, rate: ByteRate(rate) })
}

fn log(raw: &RawLog) -> Result<Log, Fault> {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let levels = [
        ("info", LogLevel::Info),
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    Ok(Log {
        format: one_of("log.format", raw.format.as_deref(), &formats)?,
        level: one_of("log.level", raw.level.as_deref(), &levels)?,
    })
}

fn storage(raw: &RawStorage) -> Result<Storage, Fault> {
    let choices = [
        ("auto", StorageChoice::Auto),
        ("io_uring", StorageChoice::Uring),
        ("blocking", StorageChoice::Blocking),
    ];
    Ok(Storage { backend: one_of("storage.backend", raw.backend.as_deref(), &choices)? })
}

fn journal(raw: RawJournal) -> Result<Journal, Fault> {
    let (segment_size, segment_shown) = size("journal.segment_size", raw.segment_size, SEGMENT_SIZE)?;
    let (journal_size, size_shown) = size("journal.size", raw.size, JOURNAL_SIZE)?;
    if segment_size < SEGMENT_SIZE_MIN || !segment_size.0.is_multiple_of(1 << 20) {
        return Err(Fault::of(
            "journal.segment_size",
            segment_shown,
            format!("a segment is a multiple of {SEGMENT_SIZE_MIN}"),
            format!("write for example \"{SEGMENT_SIZE}\""),
        ));
    }
    if journal_size.0 / segment_size.0 < SEGMENTS_MIN {
        let least = ByteSize(segment_size.0.saturating_mul(SEGMENTS_MIN));
        return Err(Fault::of(
            "journal.size",
            size_shown,
            format!(
                "a journal holds at least {SEGMENTS_MIN} segments of journal.segment_size = {segment_size}"
            ),
            format!("write at least \"{least}\", or make segments smaller"),
        ));
    }
    Ok(Journal { size: journal_size, segment_size })
}

fn size_of_at_least(
    key: &str,
    raw: Option<RawSize>,
    default: ByteSize,
    least: ByteSize,
) -> Result<ByteSize, Fault> {
    let (size, shown) = size(key, raw, default)?;
    if size < least {
        return Err(Fault::of(key, shown, "too little", format!("write at least \"{least}\"")));
    }
    Ok(size)
}

fn optional_size(key: &str, raw: Option<RawSize>, least: ByteSize) -> Result<Option<ByteSize>, Fault> {
    raw.map(|raw| size_of_at_least(key, Some(raw), least, least)).transpose()
}

fn size(key: &str, raw: Option<RawSize>, default: ByteSize) -> Result<(ByteSize, String), Fault> {
    let Some(raw) = raw else { return Ok((default, quoted(&default.to_string()))) };
    ByteSize::parse(&raw.text).map(|size| (size, raw.shown.clone())).map_err(|fault| {
        let (problem, mend) = match fault {
            SizeFault::NotASize => {
                ("not a size", "write bytes with K, M, G, T or P (powers of 1024), for example \"4GiB\"")
            }
            SizeFault::TooLarge => ("too large", "write less than \"16384PiB\", for example \"4GiB\""),
        };
        Fault::of(key, raw.shown, problem, mend)
    })
}

/// The value that a word names; the first of `choices` where the key is left out.
fn one_of<T: Copy>(key: &str, word: Option<&str>, choices: &[(&str, T)]) -> Result<T, Fault> {
    let Some(word) = word else { return Ok(choices[0].1) };
    choices.iter().find(|(name, _)| *name == word).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<String> = choices.iter().map(|(name, _)| quoted(name)).collect();
        Fault::of(key, quoted(word), "not a known choice", format!("write one of {}", names.join(", ")))
    })
}
