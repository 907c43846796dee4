//! How a group fared over time, as text: what the plot shows, in a few lines.

use std::fmt::Write;

use super::super::output::table;
use super::{UNKNOWN, duration, size};
use crate::control::model::{GroupReport, HourChurn, PointGap, ReportSpan};

pub fn report(report: &GroupReport) -> String {
    let mut text = format!("{}  from {} to {}\n", report.group, report.from, report.to);
    text += &churn(report);
    text += &points(report);
    if let Some(last) = report.spans.last() {
        text += &history(report, last);
        text += &space(last);
    }
    let disks = &report.totals.disks;
    if !disks.is_empty() {
        let rows = disks.iter().map(|disk| [disk.disk.clone(), size(disk.written_bytes)]);
        let _ = write!(text, "\n{}", table(["DISK", "WRITTEN"], rows));
    }
    text
}

fn churn(report: &GroupReport) -> String {
    let totals = &report.totals;
    let mut text = format!("  churn    {} written", size(totals.written_bytes));
    if let Some(HourChurn { start, written_bytes }) = totals.top_hour {
        let _ = write!(text, ", most in the hour from {start}: {}", size(written_bytes));
    }
    if let Some(factor) = totals.written_per_byte {
        let _ = write!(text, "; {factor:.2} bytes to journal, images and vault per byte");
    }
    text + "\n"
}

fn points(report: &GroupReport) -> String {
    let now = report.spans.last().map_or(UNKNOWN.to_owned(), |span| span.points.to_string());
    let mut text = format!("  points   {now} now, {} made", report.totals.points_made);
    if let Some(PointGap { from, to }) = report.totals.longest_gap {
        let ms = u64::try_from(to.0.saturating_sub(from.0) / 1_000_000).unwrap_or(0);
        let _ = write!(text, ", the longest time without one {}, up to {to}", duration(ms));
    }
    text + "\n"
}

/// How far back one can go, from the newest point.
fn history(report: &GroupReport, last: &ReportSpan) -> String {
    let Some((oldest, newest)) = last.oldest.zip(last.newest) else { return String::new() };
    let span = u64::try_from(newest.0.saturating_sub(oldest.0) / 1_000_000).unwrap_or(0);
    let asked = match report.retain_ms {
        Some(retain_ms) => format!("of {} that the ladder keeps", duration(retain_ms)),
        None => "and every point is kept".to_owned(),
    };
    format!("  history  {}, {asked}\n", duration(span))
}

fn space(last: &ReportSpan) -> String {
    let mut text = format!(
        "  space    journal {} of {}, deltas {}",
        size(last.journal_used_bytes),
        size(last.journal_limit_bytes),
        size(last.history_bytes)
    );
    if let Some(free) = last.vault_free_bytes {
        let _ = write!(text, ", free {}", size(free));
    }
    if let Some(free) = last.images_free_bytes.filter(|_| last.images_free_bytes != last.vault_free_bytes) {
        let _ = write!(text, ", free for images {}", size(free));
    }
    text + "\n"
}
