//! What a seed decides before anything happens: sizes, limits, and how rough the run is.

use std::time::Duration;

use super::retention::LADDERS;
use crate::format::ladder::{Ladder, Rung};
use crate::protect::shrinking::SpaceLimits;
use crate::storage::sim::Random;

/// The pace at which a run lasts months: milliseconds become a quarter of an hour.
pub const MONTHS: u32 = 1_000_000;

/// What a vault keeps back, besides its spares: little, for runs are many.
pub const RESERVE_BYTES_MAX: u64 = 64 << 10;
/// Pieces of a base, where it goes in pieces.
const PIECE_BYTES: u64 = 16 << 10;

/// The parameters of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Disks at the start.
    pub disks: u64,
    /// Whether some of them have more than one block of sums.
    pub has_large_disks: bool,
    /// Whether images are of a version without sums now and then.
    pub loses_sums: bool,
    /// Size of a journal segment.
    pub segment_bytes: u64,
    /// Journal segments at most.
    pub segments: u64,
    /// Frame cache.
    pub cache_bytes: usize,
    /// Memory for maps: so little that writes wait for it, or as much as there is.
    pub map_bytes: usize,
    /// What the vault may take.
    pub space: SpaceLimits,
    /// Whether the group is sealed.
    pub seals: bool,
    /// Journal bytes that an index run stands for, at least.
    pub index_bytes: u64,
    /// Deltas that one summary is made of: few, so that there are some levels of them.
    pub fan_out: usize,
    /// Time between points.
    pub interval: Duration,
    /// Which points are kept at first: one of `retention::LADDERS`.
    pub ladder: usize,
    /// Requests in flight at most.
    pub depth: usize,
    /// Sectors of a write at most.
    pub write_sectors_max: u64,
    /// Steps before the end begins.
    pub steps: u64,
    /// One death in so many steps, about.
    pub death_every: u64,
    /// The same while it opens, which is short, so that many of its moments must be met on purpose: in some runs many openings die
    /// one after the other.
    pub opening_death_every: u64,
    /// Power cuts among deaths, in 8.
    pub power_cuts: u64,
    /// One fault in so many steps, about; never, if zero.
    pub fault_every: u64,
    /// One image in so many steps breaks until it is mended, about; never, if zero.
    pub break_every: u64,
    /// One test failover in so many steps, about.
    pub test_every: u64,
    /// One change of disks or policy in so many steps, about.
    pub membership_every: u64,
    /// Microseconds that a tick of the clock lasts at most.
    pub tick_micros: u64,
    /// Flushes in 64 requests.
    pub flushes: u64,
    /// Durable (FUA) writes in 64 writes.
    pub durables: u64,
    /// One change, or slow reader, of what is kept in so many steps, about.
    pub retention_every: u64,
    /// One pause, or rotation of keys, in so many steps, about.
    pub administration_every: u64,
    /// How many times as long as usual everything takes that waits for a clock: 1, or [`MONTHS`].
    pub pace: u32,
    /// One verification of the group in so many steps, about.
    pub verify_every: u64,
    /// Bytes that it compares at a time.
    pub verify_bytes: u64,
    /// Bytes that it reads in a second at most; as many as there are, if zero.
    pub verify_rate: u64,
}

impl Plan {
    /// Draws a plan.
    pub fn draw(random: &mut Random) -> Plan {
        let segment_bytes = *random.choose(&[32 << 10, 64 << 10, 128 << 10, 128 << 10]);
        Plan {
            disks: 1 + random.below(3),
            has_large_disks: false,
            loses_sums: false,
            segment_bytes,
            segments: 6 + random.below(11),
            cache_bytes: *random.choose(&[0, 16 << 10, 128 << 10]),
            map_bytes: *random.choose(&[usize::MAX, usize::MAX, 8 << 10, 1 << 10]),
            space: SpaceLimits {
                history_bytes_max: *random.choose(&[None, None, None, Some(64 << 10), Some(512 << 10)]),
                free_bytes_min: None,
                images_free_bytes_min: None,
                reserve_bytes_max: RESERVE_BYTES_MAX,
                grace: Duration::from_millis(*random.choose(&[10, 100, 1000])),
            },
            seals: random.chance(3, 4),
            index_bytes: *random.choose(&[0, 8 << 10, 64 << 10, 1 << 30]),
            interval: Duration::from_millis(*random.choose(&[5, 20, 100, 500])),
            depth: *random.choose(&[1, 2, 4, 8, 16]),
            // The largest record and its header must fit in a segment.
            write_sectors_max: if segment_bytes < 128 << 10 { segment_bytes / 1024 } else { 200 },
            steps: *random.choose(&[500, 1000, 2000, 4000]),
            death_every: *random.choose(&[150, 300, 600, 2000]),
            power_cuts: *random.choose(&[0, 2, 5, 8]),
            fault_every: *random.choose(&[0, 0, 150, 400]),
            break_every: *random.choose(&[0, 0, 300, 1000]),
            test_every: *random.choose(&[100, 400]),
            membership_every: *random.choose(&[100, 400, 2000]),
            tick_micros: *random.choose(&[50, 500, 5000]),
            flushes: *random.choose(&[1, 8, 24]),
            durables: *random.choose(&[0, 4, 32]),
            ladder: random.index(LADDERS.len()),
            retention_every: *random.choose(&[20, 60, 400]),
            fan_out: *random.choose(&[2, 2, 3, 4]),
            administration_every: *random.choose(&[100, 400, 2000]),
            pace: *random.choose(&[1, 1, 1, 1, 1, 1, 1, MONTHS]),
            verify_every: *random.choose(&[50, 200, 1000]),
            verify_bytes: *random.choose(&[4 << 10, 32 << 10, 1 << 20]),
            verify_rate: *random.choose(&[0, 0, 1 << 20]),
            opening_death_every: *random.choose(&[200, 200, 200, 60]),
        }
    }

    /// What a base takes up at a time: in half of the runs little, so that it goes in pieces. Of what was drawn: one more draw
    /// would change what every seed does.
    pub fn piece_bytes(&self) -> Option<u64> {
        (self.fan_out > 2).then_some(PIECE_BYTES)
    }

    /// One of [`LADDERS`], at the run's pace.
    pub fn ladder_at(&self, index: usize) -> Ladder {
        let pace = u64::from(self.pace);
        let rungs = LADDERS[index].iter();
        let rungs =
            rungs.map(|&(until, spacing)| Rung { until_ms: until * pace, spacing_ms: spacing * pace });
        Ladder::new(rungs.collect()).expect("legal")
    }

    /// An interval between points, at the run's pace.
    pub fn interval_of(&self, millis: u64) -> Duration {
        Duration::from_millis(millis) * self.pace
    }
}
