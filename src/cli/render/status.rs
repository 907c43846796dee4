//! How the gateway and its groups stand, as text.

use std::fmt::Write;

use super::super::output::table;
use super::verify::verify_lines;
use super::{UNKNOWN, disk_count, duration, interval, size, why};
use crate::control::model::{
    Condition, DiskChurn, GroupLimits, GroupStatus, History, HourChurn, JournalStatus, Status, TurnedAway,
};
use crate::units::WallNanos;

pub fn status(status: &Status) -> String {
    let direct = match (&status.storage.direct, &status.storage.direct_reason) {
        (true, _) => "O_DIRECT".to_owned(),
        (false, Some(reason)) => format!("through the page cache ({reason})"),
        (false, None) => "through the page cache".to_owned(),
    };
    let mut text = format!(
        "site {}, afterimage {}, serving since {}\nlisten   {}\nstorage  {} ({}), {direct}\nclients  {}{}\n\n",
        status.site,
        status.version,
        status.started,
        status.listen.join(" "),
        status.storage.backend,
        status.storage.backend_reason,
        status.connections,
        turned_away(status.turned_away)
    );
    if let Some(waited) = status.buffers_waiting_ms {
        text.truncate(text.len() - 1);
        let _ = writeln!(text, "buffers  {}\n", buffers_waiting(status, waited));
    }
    text += &group_table(&status.groups);
    for group in &status.groups {
        text += &group_details(group);
    }
    text
}

/// Why requests are left unread, and what to do.
pub fn buffers_waiting(status: &Status, waited_ms: u64) -> String {
    format!(
        "for {} requests have had to wait for room in [nbd] buffers_total ({} of {} are taken): end clients, have fewer requests in \
         flight, or write a larger value",
        duration(waited_ms),
        size(status.buffers_total_bytes),
        size(status.buffers_total_limit_bytes)
    )
}

fn turned_away(turned_away: TurnedAway) -> String {
    let newest =
        turned_away.newest.map(|newest| format!(", {} turned away, the last {newest}", turned_away.clients));
    newest.unwrap_or_default()
}

fn group_table(groups: &[GroupStatus]) -> String {
    let rows = groups.iter().map(|status| {
        let age = status.newest_point.map_or("none".to_owned(), |point| duration(point.age_ms));
        [
            status.group.name.to_string(),
            condition(status.state.condition).to_owned(),
            disk_count(&status.group),
            match (status.idle, status.late_since) {
                (true, _) => format!("{age}, idle"),
                (false, Some(_)) => format!("{age}, LATE"),
                (false, None) => age,
            },
            interval(status.group.policy),
            status.history.points.map_or(UNKNOWN.to_owned(), |points| points.to_string()),
            status.history.oldest.map_or(String::new(), |oldest: WallNanos| oldest.to_string()),
            status.journal.map_or(UNKNOWN.to_owned(), journal),
            format!("{:.0}", status.writes.writes_per_s),
            format!("{:.1}", status.writes.bytes_per_s / 1e6),
            status.connections.to_string(),
        ]
    });
    let header = [
        "GROUP",
        "STATE",
        "DISKS",
        "NEWEST POINT",
        "INTERVAL",
        "POINTS",
        "BACK TO",
        "JOURNAL",
        "WRITES/S",
        "MB/S",
        "CLIENTS",
    ];
    table(header, rows)
}

fn journal(journal: JournalStatus) -> String {
    format!("{} of {}", size(journal.used_bytes), size(journal.limit_bytes))
}

/// How far the records are, and why the state is what it is.
fn group_details(status: &GroupStatus) -> String {
    let mut text = format!("\n{}  since {}\n", status.group.name, status.state.since);
    if let Some(lsn) = status.lsn {
        let _ = writeln!(
            text,
            "  lsn  submitted {}, written {}, visible {}, durable {}, destaged {}, vaulted {}",
            lsn.submitted, lsn.written, lsn.visible, lsn.durable, lsn.destaged, lsn.vaulted
        );
    }
    if let Some(since) = status.late_since {
        let _ = writeln!(text, "  points  late since {since}");
    }
    if let Some(waited) = status.writes_waiting_ms {
        let _ = writeln!(text, "  writes  wait: the oldest for {}", duration(waited));
    }
    text += &churn_line(status);
    text += &history_line(&status.history);
    if let Some(limits) = status.limits {
        text += &limits_line(&limits);
    }
    if let Some(retention) = &status.history.retention {
        let _ = writeln!(text, "  retention  {retention}");
    }
    if let Some(verify) = &status.verify {
        text += &verify_lines(verify);
    }
    text += &status.state.reason.as_ref().map(why).unwrap_or_default();
    // What has a graver reason is damaged all the same, and its requests fail.
    for lesser in [&status.group.damage, &status.group.failing].into_iter().flatten() {
        if status.state.reason.as_ref() != Some(&lesser.reason) {
            text += &why(&lesser.reason);
        }
    }
    text
}

/// What guests wrote in the last 24 hours, where and when most of it, and what came of a byte; nothing where they wrote nothing.
fn churn_line(status: &GroupStatus) -> String {
    let Some(churn) = status.churn.as_ref().filter(|churn| churn.written_bytes > 0) else {
        return String::new();
    };
    let mut text = format!("  churn  {} in 24h", size(churn.written_bytes));
    if let Some(DiskChurn { disk, written_bytes }) = &churn.top_disk {
        let _ = write!(text, ", most to disk {disk}: {}", size(*written_bytes));
    }
    if let Some(HourChurn { start, written_bytes }) = churn.top_hour {
        let _ = write!(text, ", most in the hour from {start}: {}", size(written_bytes));
    }
    if let Some(factor) = status.written_per_byte {
        let _ = write!(text, "; {factor:.2} bytes written per byte");
    }
    text + "\n"
}

/// How far back one can go, and how far that is to be; nothing where there are no points.
fn history_line(history: &History) -> String {
    let Some(span_ms) = history.span_ms else { return String::new() };
    let asked = match history.retain_ms {
        Some(retain_ms) => format!("of {} that the ladder keeps", duration(retain_ms)),
        None => "and every point is kept".to_owned(),
    };
    format!("  history  {}, {asked}\n", duration(span_ms))
}

/// What the group takes, and may take.
fn limits_line(limits: &GroupLimits) -> String {
    let history = match limits.history_limit_bytes {
        Some(limit) => format!("{} of {}", size(limits.history_bytes), size(limit)),
        None => size(limits.history_bytes),
    };
    let free = limits.free_bytes.map_or_else(String::new, |free| format!(", free {}", size(free)));
    // Where it is the vault's file system, that is said already.
    let images = limits.images_free_bytes.filter(|_| limits.images_free_bytes != limits.free_bytes);
    let images = images.map_or_else(String::new, |free| format!(", free for images {}", size(free)));
    format!(
        "  takes  maps {} of {}, frames {} of {}, history {history}{free}{images}\n",
        size(limits.maps_bytes),
        size(limits.maps_limit_bytes),
        size(limits.frames_bytes),
        size(limits.frames_limit_bytes),
    )
}

fn condition(condition: Condition) -> &'static str {
    match condition {
        Condition::Paused => "paused",
        Condition::Opening => "opening",
        Condition::Protected => "protected",
        Condition::Degraded => "degraded",
        Condition::Latched => "LATCHED",
        Condition::Failed => "FAILED",
        Condition::Stopping => "stopping",
    }
}
