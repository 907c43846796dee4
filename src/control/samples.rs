//! What groups did and how they stood, span by span: what the catalogue keeps of it, and how spans become longer ones.
//!
//! Plain values and pure functions: who takes samples is `site::sampling`, who keeps them `catalogue::samples`. Counts are of what
//! happened within the span; a standing is how it was at its last sample. docs/reports.md.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::WallNanos;

const SECOND: i64 = 1_000_000_000;

/// How long a sample's span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Of what is recent.
    FiveMinutes,
    /// Of what is older.
    Hour,
}

impl Span {
    /// Its length in seconds.
    pub const fn seconds(self) -> i64 {
        match self {
            Span::FiveMinutes => 300,
            Span::Hour => 3600,
        }
    }

    /// Its length.
    pub const fn nanos(self) -> i64 {
        self.seconds() * SECOND
    }

    /// The start of the span that a time is in: spans begin at whole multiples of their length since 1970, in UTC.
    pub const fn start_of(self, time: WallNanos) -> WallNanos {
        WallNanos(time.0.saturating_sub(time.0.rem_euclid(self.nanos())))
    }
}

/// A group in one span.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Bytes of write requests acknowledged, by the name of the disk; none of a disk that nothing was written to.
    pub disks: BTreeMap<String, u64>,
    /// The same of all disks, also of those that were removed before a sample was taken.
    pub written_bytes: u64,
    /// Bytes written to the journal,
    pub journal_bytes: u64,
    /// to images,
    pub images_bytes: u64,
    /// and to the vault as deltas.
    pub vault_bytes: u64,
    /// Points published.
    pub points_made: u64,
    /// How it stood.
    pub standing: Standing,
}

/// How a group stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// How many points there were,
    pub points: u64,
    /// the oldest one's time,
    pub oldest: Option<WallNanos>,
    /// and the newest one's.
    pub newest: Option<WallNanos>,
    /// The most that any sample of the span saw in use of the journal.
    pub journal_used_bytes: u64,
    /// `[journal] size`
    pub journal_limit_bytes: u64,
    /// Bytes of all deltas in the vault.
    pub history_bytes: u64,
    /// Free bytes in the vault's file system, once looked at,
    pub vault_free_bytes: Option<u64>,
    /// and in the images'.
    pub images_free_bytes: Option<u64>,
}

impl Sample {
    /// Takes what came later into the same span.
    pub fn absorb(&mut self, later: &Sample) {
        for (disk, bytes) in &later.disks {
            add(self.disks.entry(disk.clone()).or_default(), *bytes);
        }
        add(&mut self.written_bytes, later.written_bytes);
        add(&mut self.journal_bytes, later.journal_bytes);
        add(&mut self.images_bytes, later.images_bytes);
        add(&mut self.vault_bytes, later.vault_bytes);
        add(&mut self.points_made, later.points_made);
        let journal_used_bytes = self.standing.journal_used_bytes.max(later.standing.journal_used_bytes);
        self.standing = Standing { journal_used_bytes, ..later.standing };
    }
}

/// What an earlier file holds is not ours to trust: no sum of it ends the process.
fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// The same in spans of that length, which must not be shorter than theirs; oldest first.
pub fn roll_up(
    samples: impl IntoIterator<Item = (WallNanos, Sample)>,
    span: Span,
) -> BTreeMap<WallNanos, Sample> {
    let in_order: BTreeMap<WallNanos, Vec<Sample>> =
        samples.into_iter().fold(BTreeMap::new(), |mut all, (start, sample)| {
            all.entry(start).or_insert_with(Vec::new).push(sample);
            all
        });
    let mut longer: BTreeMap<WallNanos, Sample> = BTreeMap::new();
    for (start, samples) in in_order {
        let into = longer.entry(span.start_of(start)).or_default();
        samples.iter().for_each(|sample| into.absorb(sample));
    }
    longer
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = Span::Hour.nanos();
    const FIVE: i64 = Span::FiveMinutes.nanos();

    fn sample(disk: &str, bytes: u64, points: u64, journal_used_bytes: u64) -> Sample {
        Sample {
            disks: BTreeMap::from([(disk.to_owned(), bytes)]),
            written_bytes: bytes,
            journal_bytes: bytes.saturating_mul(2),
            points_made: 1,
            standing: Standing { points, journal_used_bytes, ..Standing::default() },
            ..Sample::default()
        }
    }

    #[test]
    fn spans_begin_at_whole_hours_also_before_1970() {
        assert_eq!(Span::Hour.start_of(WallNanos(HOUR + 1)), WallNanos(HOUR));
        assert_eq!(Span::Hour.start_of(WallNanos(HOUR)), WallNanos(HOUR));
        assert_eq!(Span::FiveMinutes.start_of(WallNanos(-1)), WallNanos(-FIVE));
        assert_eq!(Span::Hour.start_of(WallNanos(i64::MIN)), WallNanos(i64::MIN));
    }

    #[test]
    fn an_hour_adds_what_was_counted_and_stands_as_its_end_did() {
        let five = [(HOUR + FIVE, sample("log", 5, 8, 1)), (HOUR, sample("db", 10, 7, 9))];
        let later = (2 * HOUR, sample("db", 1, 9, 2));
        let all = five.into_iter().chain([later.clone()]).map(|(start, sample)| (WallNanos(start), sample));
        let hours = roll_up(all, Span::Hour);
        assert_eq!(hours.len(), 2);
        let first = &hours[&WallNanos(HOUR)];
        assert_eq!((first.disks["db"], first.disks["log"], first.written_bytes), (10, 5, 15));
        assert_eq!((first.journal_bytes, first.points_made), (30, 2));
        assert_eq!(
            (first.standing.points, first.standing.journal_used_bytes),
            (8, 9),
            "its end, and its peak"
        );
        assert_eq!(hours[&WallNanos(2 * HOUR)], later.1);
    }

    #[test]
    fn sums_of_what_a_file_holds_do_not_overflow() {
        let mut sum = sample("db", u64::MAX, 1, 1);
        sum.absorb(&sample("db", 1, 1, 1));
        assert_eq!((sum.disks["db"], sum.written_bytes), (u64::MAX, u64::MAX));
    }
}
