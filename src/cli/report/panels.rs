//! What a plot shows: four panels, as marks on axes of time and value. Pure; drawing them is `plot`'s.
//!
//! Values hold for their whole span, so lines are steps; where the gateway took no samples there is a gap. Spans of a long report are put
//! together into columns, so that a plot has no more of them than can be told apart.

use std::collections::BTreeMap;

use super::axes::{Axis, duration, float, logarithm};
use super::theme::Role;
use crate::byte_size::ByteSize;
use crate::control::model::{DiskChurn, GroupReport, PointGap, ReportSpan};
use crate::units::WallNanos;

/// Most columns that are drawn.
const COLUMNS_MAX: u64 = 440;
/// Most characters of a disk's name in a legend.
const NAME_MAX: usize = 24;
/// The part of the height below zero in which it is marked where points are.
const STRIP: f64 = 0.12;

/// One panel.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows,
    pub title: String,
    /// in which unit,
    pub unit: String,
    /// and what of it is worth a word.
    pub note: String,
    /// What its values are measured by.
    pub axis: Axis,
    /// What is drawn, in that order.
    pub marks: Vec<Mark>,
    /// What its colours mean.
    pub legend: Vec<(Role, String)>,
}

/// What is drawn; times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A filled rectangle.
    Area {
        /// From when to when,
        time: (i64, i64),
        /// and from which value to which.
        value: (f64, f64),
        /// Its colour.
        role: Role,
    },
    /// A line through points.
    Line {
        /// Times and values.
        points: Vec<(i64, f64)>,
        /// Its colour.
        role: Role,
        /// Whether it is what is asked for, or may be, rather than what is.
        dashed: bool,
    },
}

/// The panels of a report, from top to bottom.
pub fn panels(report: &GroupReport) -> [Panel; 4] {
    [churn(report), points(report), history(report), space(report)]
}

/// When the report begins and ends.
pub fn range(report: &GroupReport) -> (i64, i64) {
    let (from, to) = (ms(report.from), ms(report.to));
    (from, to.max(from + 1))
}

fn ms(time: WallNanos) -> i64 {
    time.0.div_euclid(1_000_000)
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).approximate().to_string()
}

/// How many milliseconds a column is wide: a whole number of spans.
fn column_ms(report: &GroupReport) -> i64 {
    let (from, to) = range(report);
    let spans = to.abs_diff(from).div_ceil(report.span_ms.max(1));
    signed(spans.div_ceil(COLUMNS_MAX).max(1) * report.span_ms.max(1))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A column, within the report.
fn column(report: &GroupReport, start: i64) -> (i64, i64) {
    let (from, to) = range(report);
    (start.max(from), (start + column_ms(report)).min(to))
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME_MAX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// A column's length, as it stands after `per` or `in each`.
fn each(ms: i64) -> String {
    let text = duration(ms.unsigned_abs());
    if text == "1 h" { "hour".to_owned() } else { text }
}

fn churn(report: &GroupReport) -> Panel {
    let wide = column_ms(report);
    let names: Vec<&str> = report.totals.disks.iter().map(|disk| disk.disk.as_str()).collect();
    // The last colour is shared by those that are left, unless there is only one.
    let own = if names.len() > Role::SERIES { Role::SERIES - 1 } else { names.len() };
    let role = |disk: &str| match names[..own].iter().position(|name| *name == disk) {
        Some(index) => (index, Role::Series(index)),
        None => (own, Role::Other),
    };
    let mut columns: BTreeMap<i64, BTreeMap<usize, (u64, Role)>> = BTreeMap::new();
    for span in &report.spans {
        let into = columns.entry(ms(span.start).div_euclid(wide) * wide).or_default();
        for DiskChurn { disk, written_bytes } in &span.disks {
            let (index, role) = role(disk);
            let sum = into.entry(index).or_insert((0, role));
            sum.0 = sum.0.saturating_add(*written_bytes);
        }
    }
    let mut marks = Vec::new();
    let mut most = 0;
    for (start, disks) in &columns {
        let mut below = 0_u64;
        for (bytes, role) in disks.values() {
            let above = below.saturating_add(*bytes);
            let value = (float(below), float(above));
            marks.push(Mark::Area { time: column(report, *start), value, role: *role });
            below = above;
        }
        most = most.max(below);
    }
    let mut deltas: BTreeMap<i64, u64> = BTreeMap::new();
    for span in &report.points {
        *deltas.entry(ms(span.start).div_euclid(wide) * wide).or_default() += span.delta_bytes;
    }
    most = most.max(deltas.values().copied().max().unwrap_or(0));
    let deltas = deltas.into_iter().map(|(start, bytes)| (start, Some(float(bytes))));
    marks.extend(steps(report, deltas, wide, Role::Ink, false));
    let mut legend: Vec<(Role, String)> =
        names[..own].iter().map(|name| (role(name).1, shortened(name))).collect();
    if own < names.len() {
        legend.push((Role::Other, format!("{} others", names.len() - own)));
    }
    legend.push((Role::Ink, "stored as deltas of points".to_owned()));
    let factor = report.totals.written_per_byte;
    let factor = factor.map_or(String::new(), |factor| format!(", {factor:.2} bytes to the disks per byte"));
    Panel {
        title: "Churn".to_owned(),
        unit: format!("bytes written per {}", each(wide)),
        note: format!("{} written{factor}", size(report.totals.written_bytes)),
        axis: Axis::bytes(most),
        marks,
        legend,
    }
}

fn points(report: &GroupReport) -> Panel {
    let wide = column_ms(report);
    let most = report.spans.iter().map(|span| span.points).max().unwrap_or(0);
    let mut axis = Axis::count(most);
    axis.low = -STRIP * axis.high;
    let value = (axis.low * 0.8, axis.low * 0.3);
    let mut starts: Vec<i64> =
        report.points.iter().map(|span| ms(span.start).div_euclid(wide) * wide).collect();
    starts.dedup();
    let strip = starts.into_iter();
    let mut marks: Vec<Mark> =
        strip.map(|start| Mark::Area { time: column(report, start), value, role: Role::Series(1) }).collect();
    marks.extend(sampled(report, |span| Some(float(span.points)), Role::Series(0)));
    let gap = report.totals.longest_gap.map_or(String::new(), |PointGap { from, to }| {
        let shown = jiff::Timestamp::from_millisecond(ms(to)).unwrap_or_default();
        let ms = to.0.saturating_sub(from.0).max(0).unsigned_abs() / 1_000_000;
        format!(", longest gap {} up to {}", rounded(ms), shown.strftime("%b %-d %H:%M"))
    });
    Panel {
        title: "Recovery points".to_owned(),
        unit: "points".to_owned(),
        note: format!("{} made{gap}", report.totals.points_made),
        axis,
        marks,
        legend: vec![
            (Role::Series(0), "how many there were".to_owned()),
            (Role::Series(1), format!("there is one now to go back to, per {}", each(wide))),
        ],
    }
}

/// A duration for a note: in its two largest units.
fn rounded(ms: u64) -> String {
    let exact = std::time::Duration::from_millis(ms);
    let shown = if ms < 60_000 { exact } else { std::time::Duration::from_secs(exact.as_secs()) };
    humantime::format_duration(shown).to_string().split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn history(report: &GroupReport) -> Panel {
    let reach = |span: &ReportSpan| {
        let (oldest, newest) = span.oldest.zip(span.newest)?;
        Some(newest.0.saturating_sub(oldest.0).max(0).unsigned_abs() / 1_000_000)
    };
    let most = report.spans.iter().filter_map(reach).max().unwrap_or(0);
    let mut marks = sampled(report, |span| reach(span).map(float), Role::Series(0));
    let mut legend = vec![(Role::Series(0), "from the oldest point to the newest".to_owned())];
    if let Some(asked) = report.retain_ms {
        let (from, to) = range(report);
        let points = vec![(from, float(asked)), (to, float(asked))];
        marks.push(Mark::Line { points, role: Role::Series(7), dashed: true });
        legend.push((Role::Series(7), "what the ladder keeps".to_owned()));
    }
    let now = report.spans.last().and_then(reach).map_or("no point".to_owned(), rounded);
    let asked =
        report.retain_ms.map_or(", every point is kept".to_owned(), |ms| format!(" of {}", rounded(ms)));
    Panel {
        title: "History".to_owned(),
        unit: "how far back one can go".to_owned(),
        note: format!("{now}{asked}"),
        axis: Axis::duration(most.max(report.retain_ms.unwrap_or(0))),
        marks,
        legend,
    }
}

type Value = fn(&ReportSpan) -> Option<u64>;

fn space(report: &GroupReport) -> Panel {
    let shares_file_system = report.spans.iter().all(|span| span.images_free_bytes == span.vault_free_bytes);
    let lines: [(Value, Role, &str, bool); 5] = [
        (|span| Some(span.journal_used_bytes), Role::Series(0), "journal, most in use", false),
        (|span| Some(span.journal_limit_bytes), Role::Series(0), "its limit", true),
        (|span| Some(span.history_bytes), Role::Series(1), "deltas in the vault", false),
        (|span| span.vault_free_bytes, Role::Series(2), "free", false),
        (|span| span.images_free_bytes, Role::Series(4), "free for images", false),
    ];
    let shown = if shares_file_system { &lines[..4] } else { &lines[..] };
    let all = shown.iter().flat_map(|(value, ..)| report.spans.iter().filter_map(value));
    let (least, most) = all.fold((u64::MAX, 1), |(least, most), bytes| (bytes.min(least), bytes.max(most)));
    // What is next to nothing is all the same.
    let least = least.clamp(1 << 10, 1 << 20).min(most);
    let mut marks = Vec::new();
    let mut legend = Vec::new();
    for (value, role, name, dashed) in shown {
        let of_span = |span: &ReportSpan| value(span).map(|bytes| logarithm(bytes.max(least)));
        let lines = sampled(report, of_span, *role);
        marks.extend(lines.into_iter().map(|line| match line {
            Mark::Line { points, role, .. } => Mark::Line { points, role, dashed: *dashed },
            area @ Mark::Area { .. } => area,
        }));
        // A dashed line has the colour of what it bounds.
        legend.push((*role, if *dashed { format!("{name} (dashed)") } else { (*name).to_owned() }));
    }
    let free = report.spans.last().and_then(|span| span.vault_free_bytes);
    Panel {
        title: "Space".to_owned(),
        unit: "bytes, by powers".to_owned(),
        note: free.map_or(String::new(), |free| format!("{} free", size(free))),
        axis: Axis::bytes_logarithmic(least, most),
        marks,
        legend,
    }
}

/// A value of each span, as lines that end where there were no samples.
fn sampled(report: &GroupReport, value: impl Fn(&ReportSpan) -> Option<f64>, role: Role) -> Vec<Mark> {
    let spans = report.spans.iter().map(|span| (ms(span.start), value(span)));
    steps(report, spans, signed(report.span_ms), role, false)
}

/// Values that hold `wide` long each.
fn steps(
    report: &GroupReport,
    values: impl Iterator<Item = (i64, Option<f64>)>,
    wide: i64,
    role: Role,
    dashed: bool,
) -> Vec<Mark> {
    let (from, to) = range(report);
    let mut lines: Vec<Vec<(i64, f64)>> = Vec::new();
    for (start, value) in values {
        let Some(value) = value else { continue };
        let (begins, ends) = (start.max(from), (start + wide).min(to));
        match lines.last_mut().filter(|line| line.last().is_some_and(|(end, _)| *end == begins)) {
            Some(line) => line.extend([(begins, value), (ends, value)]),
            None => lines.push(vec![(begins, value), (ends, value)]),
        }
    }
    lines.into_iter().map(|points| Mark::Line { points, role, dashed }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::model::{ReportPoints, ReportTotals};
    use crate::units::GroupId;

    const HOUR_MS: i64 = 3_600_000;
    /// A whole hour of November 2026.
    const NOON_MS: i64 = 1_795_219_200_000;

    fn wall(ms: i64) -> WallNanos {
        WallNanos(ms * 1_000_000)
    }

    fn span(hour: i64, disks: &[(&str, u64)]) -> ReportSpan {
        let disks: Vec<DiskChurn> = disks
            .iter()
            .map(|(disk, written_bytes)| DiskChurn {
                disk: (*disk).to_owned(),
                written_bytes: *written_bytes,
            })
            .collect();
        ReportSpan {
            start: wall(NOON_MS + hour * HOUR_MS),
            written_bytes: disks.iter().map(|disk| disk.written_bytes).sum(),
            disks,
            journal_bytes: 0,
            images_bytes: 0,
            vault_bytes: 0,
            points_made: 1,
            points: hour.unsigned_abs() + 1,
            oldest: Some(wall(NOON_MS)),
            newest: Some(wall(NOON_MS + hour * HOUR_MS)),
            journal_used_bytes: 48 << 20,
            journal_limit_bytes: 1 << 30,
            history_bytes: 5 << 20,
            vault_free_bytes: Some(700 << 30),
            images_free_bytes: Some(700 << 30),
        }
    }

    /// Four hours, of which one has no sample.
    pub fn sample() -> GroupReport {
        let spans =
            vec![span(0, &[("db", 5 << 20)]), span(1, &[("db", 2 << 20), ("log", 1 << 20)]), span(3, &[])];
        let point =
            |hour| ReportPoints { start: wall(NOON_MS + hour * HOUR_MS), points: 2, delta_bytes: 1 << 20 };
        let disk = |disk: &str, written_bytes| DiskChurn { disk: disk.to_owned(), written_bytes };
        GroupReport {
            group: "erp".parse().unwrap(),
            group_id: GroupId(1),
            from: wall(NOON_MS),
            to: wall(NOON_MS + 4 * HOUR_MS - 1),
            span_ms: HOUR_MS.unsigned_abs(),
            retain: None,
            retain_ms: Some(15 * 24 * HOUR_MS.unsigned_abs()),
            interval_ms: Some(1000),
            totals: ReportTotals {
                written_bytes: 8 << 20,
                disks: vec![disk("db", 7 << 20), disk("log", 1 << 20)],
                ..ReportTotals::default()
            },
            spans,
            points: vec![point(0), point(1), point(3)],
        }
    }

    fn areas(panel: &Panel) -> Vec<(i64, (f64, f64), Role)> {
        let area = |mark: &Mark| match mark {
            Mark::Area { time, value, role } => Some(((time.0 - NOON_MS) / HOUR_MS, *value, *role)),
            Mark::Line { .. } => None,
        };
        panel.marks.iter().filter_map(area).collect()
    }

    fn lines(panel: &Panel) -> usize {
        panel.marks.iter().filter(|mark| matches!(mark, Mark::Line { dashed: false, .. })).count()
    }

    #[test]
    fn churn_is_stacked_by_disk_the_busiest_below() {
        let [churn, ..] = panels(&sample());
        let mib = |count: u64| float(count << 20);
        let expected = [
            (0, (0.0, mib(5)), Role::Series(0)),
            (1, (0.0, mib(2)), Role::Series(0)),
            (1, (mib(2), mib(3)), Role::Series(1)),
        ];
        assert_eq!(areas(&churn), expected);
        assert_eq!(churn.unit, "bytes written per hour");
        assert!(churn.axis.high >= mib(5) && churn.note.starts_with("8.0 MiB written"), "{churn:?}");
    }

    #[test]
    fn where_there_is_no_sample_lines_end_and_where_there_is_no_point_the_strip_does() {
        let [_, points, history, _] = panels(&sample());
        assert_eq!((lines(&points), lines(&history)), (2, 2));
        let strip: Vec<i64> = areas(&points).into_iter().map(|(hour, ..)| hour).collect();
        assert_eq!(strip, [0, 1, 3]);
        assert!(points.axis.low < 0.0 && points.axis.ticks[0].0 == 0.0);
        assert_eq!(history.axis.high, float(15 * 24 * HOUR_MS.unsigned_abs()));
    }

    #[test]
    fn disks_beyond_the_colours_are_others_and_columns_are_bounded() {
        let names: Vec<String> = (0..12).map(|disk| format!("disk{disk}")).collect();
        let busy: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let mut report = sample();
        report.spans = (0..2000).map(|hour| span(hour, &busy)).collect();
        report.to = wall(NOON_MS + 2000 * HOUR_MS);
        report.totals.disks =
            names.iter().map(|disk| DiskChurn { disk: disk.clone(), written_bytes: 2000 }).collect();
        let [churn, ..] = panels(&report);
        assert_eq!(churn.unit, "bytes written per 5 h");
        // The first column and the last one are cut off.
        assert_eq!(areas(&churn).len(), 401 * Role::SERIES);
        let others = churn.legend.iter().find(|(role, _)| *role == Role::Other).unwrap();
        assert_eq!(others.1, "5 others");
    }

    #[test]
    fn space_of_one_file_system_is_told_once() {
        let [.., space] = panels(&sample());
        assert_eq!(space.legend.len(), 4);
        let mut report = sample();
        report.spans[0].images_free_bytes = Some(1);
        let [.., space] = panels(&report);
        assert_eq!(space.legend.len(), 5);
        let lowest = space.axis.low;
        let points = space.marks.iter().flat_map(|mark| match mark {
            Mark::Line { points, .. } => points.clone(),
            Mark::Area { .. } => Vec::new(),
        });
        assert!(
            points.into_iter().all(|(_, value)| (lowest..=space.axis.high).contains(&value)),
            "{space:?}"
        );
    }
}
