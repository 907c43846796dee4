//! Events, in the words of the API: what happened, and how it is asked for and followed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::name::Name;
use crate::units::{GroupId, WallNanos};

/// Something that happened, for people to look back at.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the catalogue: ids grow, also over restarts; null where the catalogue has not taken it.
    #[serde(default)]
    pub id: Option<u64>,
    /// When.
    pub time: WallNanos,
    /// To which group: what that was called then.
    pub group: Option<Name>,
    /// Its id.
    pub group_id: Option<GroupId>,
    /// How grave it is.
    pub severity: Severity,
    /// What kind of event, in one word for programs: docs/events.md has all of them.
    pub code: String,
    /// One line for people.
    pub message: String,
}

/// `GET /v1/events`: a list of [`Event`]s, newest first; an [`EventPage`] with `after` or `wait_ms`.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only this group's.
    pub group: Option<Name>,
    /// Only those that are at least so grave.
    pub severity: Option<Severity>,
    /// Only those that happened then or later.
    pub since: Option<WallNanos>,
    /// The newest so many; of a page, the oldest so many.
    pub limit: Option<u32>,
    /// Those that came after the event with this id; without it, those that come from now on.
    pub after: Option<u64>,
    /// Of which catalogue `after` is, as a page said: ids of another one mean nothing.
    pub catalogue: Option<String>,
    /// How long to wait for one, if there is none: 30 s at most.
    pub wait_ms: Option<u64>,
}

impl EventQuery {
    /// How many are given unless said.
    pub const LIMIT_DEFAULT: u32 = 100;
    /// Most that a page holds.
    pub const PAGE_MAX: u32 = 1000;

    /// Whether it follows what comes, rather than looks back.
    pub fn is_following(&self) -> bool {
        self.after.is_some() || self.wait_ms.is_some()
    }
}

/// What came after an event.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct EventPage {
    /// Which catalogue says so; another one, once it had to be begun anew.
    pub catalogue: String,
    /// Oldest first.
    pub events: Vec<Event>,
    /// What to ask for next as `after`.
    pub next: u64,
    /// What the catalogue does not have of what was asked for.
    pub gap: Option<EventGap>,
}

/// Why events are missing before those of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventGap {
    /// So many went because there were too many.
    Pruned(u64),
    /// The catalogue was begun anew, and does not know those before it; all that it has are given.
    BegunAnew,
    /// A power cut took the newest; ids go on before the one that was asked for.
    CutBack,
}

/// A hook, and how it stands since the gateway was started.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct HookStatus {
    /// Its name.
    pub name: Name,
    /// What it does, in one line.
    pub action: String,
    /// Events that it was told.
    pub told: u64,
    /// Events that it never is: it failed as often as it is tried, or too many waited.
    pub lost: u64,
    /// Events that wait for it now.
    pub waiting: u64,
    /// Why it failed last, if it did since it last worked.
    pub failure: Option<String>,
}

/// How grave an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// To be looked at.
    Warning,
    /// To be mended.
    Error,
}

impl Severity {
    /// Each, the least grave first, with its word.
    pub const WORDS: [(Severity, &str); 3] =
        [(Severity::Info, "info"), (Severity::Warning, "warning"), (Severity::Error, "error")];

    /// Its word.
    pub fn word(self) -> &'static str {
        Severity::WORDS.iter().find(|(severity, _)| *severity == self).expect("each has one").1
    }

    /// It and all that are graver.
    pub fn and_graver(self) -> impl Iterator<Item = Severity> {
        Severity::WORDS.into_iter().map(|(severity, _)| severity).filter(move |severity| *severity >= self)
    }
}
