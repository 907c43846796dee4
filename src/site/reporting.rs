//! `report`: what the samples in the catalogue and the points in a group's vault say of a stretch of time.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::convert;
use super::gateway::Inner;
use crate::control::model::{
    DiskChurn, GroupReport, HourChurn, PointGap, ReportPoints, ReportQuery, ReportSpan, ReportTotals,
    per_byte,
};
use crate::control::name::Name;
use crate::control::samples::{Sample, Span, roll_up};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::PointRecord;
use crate::units::WallNanos;

/// A report that reaches farther back than spans of five minutes do is by the hour.
const FIVE_MINUTES_MAX: i64 = 48 * Span::Hour.nanos();

/// The points of a stretch of time.
#[derive(Default)]
struct PointsOf {
    spans: Vec<ReportPoints>,
    longest_gap: Option<PointGap>,
}

impl Inner {
    pub(super) async fn report(self: &Arc<Self>, name: Name, query: ReportQuery) -> Result<GroupReport> {
        let last_ms = last_ms_of(query)?;
        let (name, entry) = self.find(&name)?;
        let catalogue = self.catalogue.as_ref().ok_or_else(|| {
            let text = "the catalogue could not be opened, which keeps the samples that reports are made of: the log says why";
            Error::new(ErrorKind::Unsupported, text)
        })?;
        self.record_samples().await;
        let group = self.group_model(&name, &entry).await?;
        let to = self.environment.wall();
        let (from, span) = stretch(last_ms, group.created, to);
        let samples = catalogue.samples(entry.id, from).await?;
        let samples = samples.into_iter().filter(|(start, _)| *start <= to);
        let samples: Vec<(WallNanos, Sample)> = samples.collect();
        let points = match entry.is_hosted() {
            true => self.read(entry.id, move |member| points_of(&member.points(), from, to, span)).await?,
            false => PointsOf::default(),
        };
        Ok(GroupReport {
            group: name,
            group_id: entry.id,
            from,
            to,
            span_ms: span.seconds().unsigned_abs() * 1000,
            retain_ms: group.retain.as_ref().and_then(|retain| convert::reach(&retain.0)),
            retain: group.retain,
            interval_ms: group.policy.map(|policy| policy.interval_ms),
            totals: totals(&samples, points.longest_gap),
            spans: roll_up(samples, span).into_iter().map(report_span).collect(),
            points: points.spans,
        })
    }
}

fn last_ms_of(query: ReportQuery) -> Result<u64> {
    let last_ms = query.last_ms.unwrap_or(ReportQuery::LAST_MS_DEFAULT);
    if (ReportQuery::LAST_MS_MIN..=ReportQuery::LAST_MS_MAX).contains(&last_ms) {
        return Ok(last_ms);
    }
    let text = format!("last_ms = {last_ms}: out of range: write 60000 (a minute) to 31622400000 (366 days)");
    Err(Error::invalid(text))
}

/// Where a report begins, and its spans: not long before its group was created, for there is nothing to see.
fn stretch(last_ms: u64, created: Option<WallNanos>, to: WallNanos) -> (WallNanos, Span) {
    let back = i64::try_from(last_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let asked = WallNanos(to.0.saturating_sub(back));
    // A clock that was set back may say that it is yet to be created.
    let from = created.map_or(asked, |created| asked.max(created.min(to)));
    let is_short = to.0.saturating_sub(from.0) <= FIVE_MINUTES_MAX;
    let span = if is_short { Span::FiveMinutes } else { Span::Hour };
    (span.start_of(from), span)
}

/// The points from `from` to `to`, span by span, and the longest time between two neighbours of which the later one is among them.
fn points_of(points: &[PointRecord], from: WallNanos, to: WallNanos, span: Span) -> PointsOf {
    let mut found = PointsOf::default();
    let mut before: Option<WallNanos> = None;
    for point in points {
        let time = point.wall;
        if time < from || time > to {
            before = Some(time);
            continue;
        }
        let longest = found.longest_gap.map_or(0, |gap| gap.to.0 - gap.from.0);
        if let Some(from) = before.replace(time)
            && time.0.saturating_sub(from.0) > longest
        {
            found.longest_gap = Some(PointGap { from, to: time });
        }
        let (start, delta_bytes) = (span.start_of(time), point.delta.map_or(0, |delta| delta.total_bytes));
        match found.spans.last_mut().filter(|last| last.start == start) {
            Some(last) => {
                last.points += 1;
                last.delta_bytes = last.delta_bytes.saturating_add(delta_bytes);
            }
            None => found.spans.push(ReportPoints { start, points: 1, delta_bytes }),
        }
    }
    // A clock that was set back may have made points of one span apart from each other.
    let mut in_order: BTreeMap<WallNanos, ReportPoints> = BTreeMap::new();
    for span in found.spans {
        let sum = in_order.entry(span.start).or_insert(ReportPoints {
            start: span.start,
            points: 0,
            delta_bytes: 0,
        });
        sum.points += span.points;
        sum.delta_bytes = sum.delta_bytes.saturating_add(span.delta_bytes);
    }
    PointsOf { spans: in_order.into_values().collect(), ..found }
}

fn totals(samples: &[(WallNanos, Sample)], longest_gap: Option<PointGap>) -> ReportTotals {
    let mut sum = Sample::default();
    samples.iter().for_each(|(_, sample)| sum.absorb(sample));
    let mut hours: BTreeMap<WallNanos, u64> = BTreeMap::new();
    for (start, sample) in samples {
        let hour = hours.entry(Span::Hour.start_of(*start)).or_default();
        *hour = hour.saturating_add(sample.written_bytes);
    }
    let top_hour = hours.into_iter().filter(|(_, bytes)| *bytes > 0).max_by_key(|(_, bytes)| *bytes);
    let mut disks = disks(&sum);
    disks.sort_by_key(|disk| std::cmp::Reverse(disk.written_bytes));
    ReportTotals {
        written_bytes: sum.written_bytes,
        written_per_byte: per_byte(sum.written_bytes, [sum.journal_bytes, sum.images_bytes, sum.vault_bytes]),
        disks,
        top_hour: top_hour.map(|(start, written_bytes)| HourChurn { start, written_bytes }),
        points_made: sum.points_made,
        longest_gap,
    }
}

fn disks(sample: &Sample) -> Vec<DiskChurn> {
    let disk = |(disk, written_bytes): (&String, &u64)| DiskChurn {
        disk: disk.clone(),
        written_bytes: *written_bytes,
    };
    sample.disks.iter().map(disk).collect()
}

fn report_span((start, sample): (WallNanos, Sample)) -> ReportSpan {
    ReportSpan {
        start,
        disks: disks(&sample),
        written_bytes: sample.written_bytes,
        journal_bytes: sample.journal_bytes,
        images_bytes: sample.images_bytes,
        vault_bytes: sample.vault_bytes,
        points_made: sample.points_made,
        points: sample.standing.points,
        oldest: sample.standing.oldest,
        newest: sample.standing.newest,
        journal_used_bytes: sample.standing.journal_used_bytes,
        journal_limit_bytes: sample.standing.journal_limit_bytes,
        history_bytes: sample.standing.history_bytes,
        vault_free_bytes: sample.standing.vault_free_bytes,
        images_free_bytes: sample.standing.images_free_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::marker::Consistency;
    use crate::units::{GroupNanos, Lsn, PointId};

    const FIVE: i64 = Span::FiveMinutes.nanos();

    fn point(marker: u64, nanos: i64) -> PointRecord {
        PointRecord {
            id: PointId(marker.into()),
            marker: Lsn(marker),
            wall: WallNanos(nanos),
            group_time: GroupNanos(0),
            consistency: Consistency::Crash,
            label: String::new(),
            delta: None,
            disks: Arc::from([]),
        }
    }

    /// Spans, counted from 1970, with their points, and the longest gap.
    type Found = (Vec<(i64, u64)>, Option<(i64, i64)>);

    fn found(times: &[i64], from: i64, to: i64) -> Found {
        let points: Vec<PointRecord> = (1..).zip(times).map(|(marker, time)| point(marker, *time)).collect();
        let found = points_of(&points, WallNanos(from), WallNanos(to), Span::FiveMinutes);
        let spans = found.spans.iter().map(|span| (span.start.0 / FIVE, span.points)).collect();
        (spans, found.longest_gap.map(|gap| (gap.from.0, gap.to.0)))
    }

    #[test]
    fn a_gap_counts_from_the_point_before_it_also_if_that_is_older_than_the_report() {
        let times = [1, 2 * FIVE, 2 * FIVE + 7, 5 * FIVE, 9 * FIVE];
        assert_eq!(found(&times, 2 * FIVE, 6 * FIVE), (vec![(2, 2), (5, 1)], Some((2 * FIVE + 7, 5 * FIVE))));
        assert_eq!(found(&times, 2 * FIVE, 2 * FIVE), (vec![(2, 1)], Some((1, 2 * FIVE))));
        assert_eq!(found(&times, 0, 1), (vec![(0, 1)], None), "the first one follows none");
        assert_eq!(found(&times, 6 * FIVE, 7 * FIVE), (vec![], None));
    }

    #[test]
    fn points_of_a_clock_that_was_set_back_are_in_the_order_of_their_times() {
        let times = [3 * FIVE, 5 * FIVE, 3 * FIVE + 1, 4 * FIVE];
        let (spans, gap) = found(&times, 0, 9 * FIVE);
        assert_eq!(spans, [(3, 2), (4, 1), (5, 1)]);
        assert_eq!(gap, Some((3 * FIVE, 5 * FIVE)));
    }

    #[test]
    fn a_report_begins_with_its_group_and_is_by_the_hour_beyond_two_days() {
        let hour = Span::Hour.nanos();
        let (hours, to) = (|count: i64| WallNanos(count * hour), WallNanos(1000 * hour + 7));
        let last = |hours: u64| hours * 3_600_000;
        assert_eq!(stretch(last(48), None, to), (hours(952), Span::FiveMinutes));
        assert_eq!(stretch(last(49), Some(hours(0)), to), (hours(951), Span::Hour));
        assert_eq!(stretch(last(168), Some(hours(999)), to), (hours(999), Span::FiveMinutes));
        assert_eq!(stretch(last(168), Some(hours(2000)), to), (hours(1000), Span::FiveMinutes));
    }

    #[test]
    fn how_far_back_it_reaches_is_bounded() {
        let asked = |last_ms| last_ms_of(ReportQuery { last_ms });
        assert_eq!(asked(None).expect("a default"), 7 * 24 * 3_600_000);
        assert_eq!(asked(Some(60_000)).expect("the least"), 60_000);
        for bad in [0, 59_999, u64::MAX] {
            assert_eq!(asked(Some(bad)).expect_err("refused").kind(), ErrorKind::Invalid);
        }
    }
}
