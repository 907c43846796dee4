//! What one connection does to one disk, decided by a seed: mostly 4 KiB writes, some of a sector, some up to a
//! mebibyte, zeroing and trims, FUA and flushes; three in four in a sixteenth of the disk, so that much is overwritten.

use crate::random::Random;
use crate::units::{Sector, SectorCount, SectorRange};

const BLOCK_SECTORS: u64 = 8;
const LARGE_SECTORS_MAX: u64 = 2048;
const HOT_FRACTION: u64 = 16;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sectors that name their write.
    Write {
        /// Which.
        range: SectorRange,
        /// FUA.
        durable: bool,
    },
    /// Zeros.
    Zero {
        /// Which.
        range: SectorRange,
        /// FUA.
        durable: bool,
        /// TRIM; else WRITE_ZEROES.
        trim: bool,
        /// NO_HOLE, of WRITE_ZEROES.
        keep_allocated: bool,
    },
    /// FLUSH.
    Flush,
}

/// An endless stream of requests to one disk.
#[derive(Clone, Debug)]
pub struct Workload {
    random: Random,
    sectors: u64,
}

impl Workload {
    /// The requests that `random` decides, to a disk of so many sectors.
    ///
    /// # Panics
    /// If the disk is smaller than a mebibyte.
    pub fn new(random: Random, sectors: u64) -> Workload {
        assert!(sectors >= LARGE_SECTORS_MAX, "a workload's disk has at least {LARGE_SECTORS_MAX} sectors");
        Workload { random, sectors }
    }

    /// The next request.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Step {
        let durable = self.random.chance(1, 50);
        match self.random.below(1000) {
            0..10 => Step::Flush,
            10..20 => {
                let (trim, keep_allocated) = (self.random.chance(1, 2), self.random.chance(1, 3));
                Step::Zero { range: self.range(256, 1), durable, trim, keep_allocated }
            }
            20..120 => Step::Write { range: self.range(1, 1), durable },
            120..150 => Step::Write { range: self.range(256, BLOCK_SECTORS), durable },
            150..153 => Step::Write { range: self.range(LARGE_SECTORS_MAX, 1), durable },
            _ => {
                let sector = self.sector(BLOCK_SECTORS) / BLOCK_SECTORS * BLOCK_SECTORS;
                let range = SectorRange::with_count(Sector(sector), SectorCount(BLOCK_SECTORS));
                Step::Write { range: range.expect("inside of the disk"), durable }
            }
        }
    }

    /// One to `sectors_max` sectors, in multiples of `step`.
    fn range(&mut self, sectors_max: u64, step: u64) -> SectorRange {
        let sectors = (1 + self.random.below(sectors_max / step)) * step;
        let start = self.sector(sectors);
        SectorRange::new(start, start + sectors)
    }

    /// Where so many sectors fit.
    fn sector(&mut self, sectors: u64) -> u64 {
        let room = self.sectors - sectors + 1;
        let hot = (self.sectors / HOT_FRACTION).min(room);
        if self.random.chance(3, 4) { self.random.below(hot) } else { self.random.below(room) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_request_comes_and_fits_the_disk() {
        let mut workload = Workload::new(Random::new(1), 4096);
        let mut kinds = [0; 6];
        for _ in 0..20_000 {
            let (kind, range) = match workload.next() {
                Step::Flush => (0, None),
                Step::Zero { range, trim: true, .. } => (1, Some(range)),
                Step::Zero { range, .. } => (2, Some(range)),
                Step::Write { range, .. } if range.sectors() == 1 => (3, Some(range)),
                Step::Write { range, .. } if range.bytes() > super::super::ATOMIC_BYTES => (4, Some(range)),
                Step::Write { range, .. } => (5, Some(range)),
            };
            kinds[kind] += 1;
            assert!(range.is_none_or(|range| !range.is_empty() && range.end <= 4096), "{range:?}");
        }
        assert!(kinds.iter().all(|count| *count > 30), "{kinds:?}");
        assert!(kinds[5] > 15_000, "mostly 4 KiB: {kinds:?}");
    }

    #[test]
    fn a_seed_decides_all() {
        let steps = |seed| {
            let mut workload = Workload::new(Random::new(seed), 1 << 16);
            (0..100).map(|_| workload.next()).collect::<Vec<_>>()
        };
        assert_eq!(steps(3), steps(3));
        assert_ne!(steps(3), steps(4));
    }
}
