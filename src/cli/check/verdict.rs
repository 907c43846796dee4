//! How bad it is how the gateway stands: a table of conditions and reasons, and ages; docs/metrics.md has the same table for people.
//!
//! Decides only; asks and prints nothing. Invariant: the level is the worst of what is named, and a line has no `|` but the one that
//! begins the figures.

use std::fmt::Write;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::render::buffers_waiting;
use crate::config::one_line;
use crate::control::model::{Condition, GroupStatus, ReasonCode, Status};
use crate::control::name::Name;
use crate::counted::counted;

/// A guest whose write waits for as long may give up soon: Linux gives disks 30 s.
const WAITING_CRITICAL: Duration = Duration::from_secs(10);

/// Some clients have waited for buffers for as long that their guests may give up.
const BUFFERS_CRITICAL: Duration = Duration::from_secs(30);

/// How bad something is, as monitoring systems have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing is wrong.
    Ok,
    /// Somebody should look at it.
    Warning,
    /// Somebody must look at it.
    Critical,
    /// The question could not be answered.
    Unknown,
}

impl Level {
    pub fn exit_status(self) -> u8 {
        match self {
            Level::Ok => 0,
            Level::Warning => 1,
            Level::Critical => 2,
            Level::Unknown => 3,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Level::Ok => "OK",
            Level::Warning => "WARNING",
            Level::Critical => "CRITICAL",
            Level::Unknown => "UNKNOWN",
        }
    }

    /// How bad a condition is.
    fn of(condition: Condition, reason: Option<ReasonCode>) -> Level {
        match (condition, reason) {
            (Condition::Protected, _) => Level::Ok,
            (Condition::Paused | Condition::Opening | Condition::Stopping, _) => Level::Warning,
            (Condition::Latched | Condition::Failed, _) => Level::Critical,
            (Condition::Degraded, Some(reason)) => Level::of_reason(reason),
            (Condition::Degraded, None) => Level::Warning,
        }
    }

    /// What may pass by itself warns; what stays until somebody has mended it, or stops guests, is critical.
    fn of_reason(reason: ReasonCode) -> Level {
        match reason {
            ReasonCode::JournalFull
            | ReasonCode::MapsFull
            | ReasonCode::PointsLate
            | ReasonCode::SpaceShort
            | ReasonCode::RetentionStalled
            | ReasonCode::RequestsFail
            | ReasonCode::TestDamaged
            | ReasonCode::Io => Level::Warning,
            ReasonCode::NoSpace
            | ReasonCode::JournalFailed
            | ReasonCode::ImageFailed
            | ReasonCode::VaultFailed
            | ReasonCode::Corrupt
            | ReasonCode::VerifyFound
            | ReasonCode::Fenced
            | ReasonCode::Missing
            | ReasonCode::Unsupported
            | ReasonCode::NoKey
            | ReasonCode::Locked => Level::Critical,
        }
    }
}

/// How old the oldest write that no point holds may be.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    pub warning: Duration,
    pub critical: Duration,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize)]
pub struct Verdict {
    /// How bad it is, of the worst group.
    pub level: Level,
    /// That of the command: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    exit_status: u8,
    /// One line for people.
    text: String,
    /// Each group that was looked at.
    groups: Vec<GroupVerdict>,
    /// Numbers for graphs.
    figures: Vec<Figure>,
}

/// How bad one group is.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize)]
struct GroupVerdict {
    /// Its name.
    group: String,
    /// How bad it is.
    level: Level,
    /// What is wrong with it, one line each.
    problems: Vec<String>,
}

/// A number for graphs, with the values from which on it is a warning, or critical, and the most that it can be.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize)]
struct Figure {
    /// What it counts or measures.
    name: String,
    /// The number.
    value: f64,
    /// `s`, `B`, or nothing for a count.
    unit: &'static str,
    /// From where on it is a warning, if ever.
    warning: Option<f64>,
    /// From where on it is critical, if ever.
    critical: Option<f64>,
    /// The most that it can be, where that is known.
    max: Option<f64>,
}

impl Verdict {
    /// That nothing is known, and why.
    pub fn unknown(text: String) -> Verdict {
        Verdict::new(Level::Unknown, text, Vec::new(), Vec::new())
    }

    fn new(level: Level, text: String, groups: Vec<GroupVerdict>, figures: Vec<Figure>) -> Verdict {
        let text = one_line(&text).replace('|', "/");
        Verdict { level, exit_status: level.exit_status(), text, groups, figures }
    }

    /// How bad it is how a gateway, or one of its groups, stands.
    pub fn of(status: &Status, only: Option<&Name>, ages: Ages) -> Verdict {
        let is_meant = |group: &&GroupStatus| {
            only.is_none_or(|name| group.group.name == *name || group.group.id.to_string() == name.as_str())
        };
        let chosen: Vec<&GroupStatus> = status.groups.iter().filter(is_meant).collect();
        if let (Some(name), []) = (only, chosen.as_slice()) {
            return Verdict::unknown(format!("there is no group {name}: 'group list' shows them"));
        }
        let groups: Vec<GroupVerdict> = chosen.iter().map(|group| GroupVerdict::of(group, ages)).collect();
        let level = groups.iter().map(|group| group.level).max().unwrap_or(Level::Ok);
        let clients = clients(status);
        let level = clients.as_ref().map_or(level, |(worse, _)| level.max(*worse));
        let oldest = chosen.iter().filter_map(|group| group.unprotected_ms).max();
        let figures = figures(&chosen, ages);
        let text = text(&groups, oldest);
        let text = clients.map_or(text.clone(), |(_, problem)| format!("{problem}; {text}"));
        Verdict::new(level, text, groups, figures)
    }

    /// `AFTERIMAGE OK - what holds | figures`
    pub fn line(&self) -> String {
        let mut line = format!("AFTERIMAGE {} - {}", self.level.word(), self.text);
        let shown = |limit: Option<f64>| limit.map(|limit| limit.to_string()).unwrap_or_default();
        for (index, figure) in self.figures.iter().enumerate() {
            let Figure { name, value, unit, warning, critical, max } = figure;
            let before = if index == 0 { " | " } else { " " };
            let (warning, critical, max) = (shown(*warning), shown(*critical), shown(*max));
            let ranges = format!(";{warning};{critical};0;{max}");
            let _ = write!(line, "{before}{name}={value}{unit}{}", ranges.trim_end_matches(';'));
        }
        line
    }
}

impl GroupVerdict {
    fn of(group: &GroupStatus, ages: Ages) -> GroupVerdict {
        let mut found: Vec<(Level, String)> = Vec::new();
        let state = &group.state;
        let level = Level::of(state.condition, state.reason.as_ref().map(|reason| reason.code));
        if level > Level::Ok {
            let condition = condition_word(state.condition);
            let text = match &state.reason {
                Some(reason) => format!("{condition}: {}", reason.detail),
                None => condition.to_owned(),
            };
            found.push((level, text));
        }
        if let Some(age) = group.unprotected_ms.map(Duration::from_millis) {
            let text = || format!("a write of {} ago is in no point", seconds(age));
            match age {
                age if age >= ages.critical => found.push((Level::Critical, text())),
                age if age >= ages.warning => found.push((Level::Warning, text())),
                _ => {}
            }
        }
        if let Some(waited) = group.writes_waiting_ms.map(Duration::from_millis) {
            let level = if waited >= WAITING_CRITICAL { Level::Critical } else { Level::Warning };
            found.push((level, format!("a write has waited for {}", seconds(waited))));
        }
        GroupVerdict {
            group: group.group.name.to_string(),
            level: found.iter().map(|(level, _)| *level).max().unwrap_or(Level::Ok),
            problems: found.into_iter().map(|(_, text)| text).collect(),
        }
    }
}

/// What clients of all groups lack.
fn clients(status: &Status) -> Option<(Level, String)> {
    let waited = status.buffers_waiting_ms?;
    let is_long = Duration::from_millis(waited) >= BUFFERS_CRITICAL;
    let level = if is_long { Level::Critical } else { Level::Warning };
    Some((level, buffers_waiting(status, waited)))
}

fn text(groups: &[GroupVerdict], oldest_unprotected_ms: Option<u64>) -> String {
    let mut bad: Vec<&GroupVerdict> = groups.iter().filter(|group| group.level > Level::Ok).collect();
    if bad.is_empty() {
        let count = counted(groups.len() as u64, "group");
        return match oldest_unprotected_ms {
            _ if groups.is_empty() => "no groups".to_owned(),
            None => format!("{count} protected, points hold every write"),
            Some(ms) => {
                let age = seconds(Duration::from_millis(ms));
                format!("{count} protected, points hold all but the writes of the last {age}")
            }
        };
    }
    // The worst first: lines are cut off by those who show them.
    bad.sort_by_key(|group| std::cmp::Reverse(group.level));
    let each = bad.iter().map(|group| format!("{} {}", group.group, group.problems.join(", ")));
    let each: Vec<String> = each.collect();
    format!("{} ({} of {})", each.join("; "), bad.len(), counted(groups.len() as u64, "group"))
}

fn figures(groups: &[&GroupStatus], ages: Ages) -> Vec<Figure> {
    let count = |value| Figure {
        name: "groups".to_owned(),
        value,
        unit: "",
        warning: None,
        critical: None,
        max: None,
    };
    let mut figures = vec![count(number(groups.len() as u64))];
    for group in groups.iter().filter(|group| group.totals.is_some()) {
        let name = &group.group.name;
        figures.push(Figure {
            name: format!("{name}_unprotected"),
            value: number(group.unprotected_ms.unwrap_or(0)) / 1e3,
            unit: "s",
            warning: Some(ages.warning.as_secs_f64()),
            critical: Some(ages.critical.as_secs_f64()),
            max: None,
        });
        figures.extend(group.journal.as_ref().map(|journal| Figure {
            name: format!("{name}_journal"),
            value: number(journal.used_bytes),
            unit: "B",
            warning: None,
            critical: None,
            max: Some(number(journal.limit_bytes)),
        }));
    }
    figures
}

fn condition_word(condition: Condition) -> &'static str {
    match condition {
        Condition::Paused => "paused",
        Condition::Opening => "opening",
        Condition::Protected => "protected",
        Condition::Degraded => "degraded",
        Condition::Latched => "latched",
        Condition::Failed => "failed",
        Condition::Stopping => "stopping",
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
