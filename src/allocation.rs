//! Which parts of a disk hold data: an answer of bounded length, found a window at a time.
//!
//! ```text
//!  range      ├──────────────────────────────────────────────────────────────┤
//!  windows    ├──┤──┤────────┤────────────┤                                       longer where there is little to tell
//!  runs       ████░░░░█░░░░░░░░░░░░░░░░░░██                                       as many as were asked for, then it ends
//! ```
//!
//! A range of a disk may be in a million pieces, and the protocol lets an answer end early. So nobody ever holds, or looks at, much
//! more than the runs that are told; who wants to know the rest asks again from where the answer ended.

use crate::units::SectorRange;

/// The first window of a range where many runs are asked for, and the shortest of those that follow: in sectors.
const WINDOW_SECTORS_MIN: u64 = 4096;
/// The first window where few are asked for, for each of them: some clients ask for one at a time.
const WINDOW_SECTORS_RUN: u64 = 64;
/// The next window is so many times as long,
const WINDOW_GROWTH: u64 = 8;
/// where fewer parts than this were found;
const PARTS_FEW: usize = 256;
/// or as short again where there were more than this.
const PARTS_MANY: usize = 2048;

/// A run of sectors of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationRun {
    /// Length in bytes.
    pub bytes: u64,
    /// Whether it holds data; a hole reads as zeros.
    pub allocated: bool,
}

/// Runs in order, neighbours of one state joined, and no more of them than were asked for.
#[derive(Debug)]
pub struct AllocationRuns {
    runs: Vec<AllocationRun>,
    max: usize,
    is_full: bool,
}

impl AllocationRuns {
    /// None yet; no more than `max` will be told.
    pub fn at_most(max: usize) -> AllocationRuns {
        AllocationRuns { runs: Vec::new(), max, is_full: false }
    }

    /// Adds what follows. Once another run would be one too many, nothing does.
    pub fn push(&mut self, bytes: u64, allocated: bool) {
        let is_last_one = self.runs.len() == self.max;
        match self.runs.last_mut() {
            _ if bytes == 0 || self.is_full => {}
            Some(last) if last.allocated == allocated => last.bytes += bytes,
            _ if is_last_one => self.is_full = true,
            _ => self.runs.push(AllocationRun { bytes, allocated }),
        }
    }

    /// Adds the bytes from `start` to `end`, of which `data` are data and the rest is a hole. What of `data` lies outside is left out.
    pub fn push_data(&mut self, start: u64, end: u64, data: impl IntoIterator<Item = std::ops::Range<u64>>) {
        let mut position = start;
        for range in data {
            let (from, to) = (range.start.clamp(position, end), range.end.clamp(position, end));
            self.push(from - position, false);
            self.push(to - from, true);
            position = to;
        }
        self.push(end - position, false);
    }

    /// Whether there is nothing more to be told.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs.
    pub fn into_runs(self) -> Vec<AllocationRun> {
        self.runs
    }
}

/// Cuts a range into windows that have few parts each, however many the range has.
#[derive(Debug)]
pub struct Windows {
    rest: SectorRange,
    sectors: u64,
}

impl Windows {
    /// Those of `range`, where `runs_max` runs are wanted.
    pub fn of(range: SectorRange, runs_max: usize) -> Windows {
        let few = WINDOW_SECTORS_RUN.saturating_mul(runs_max as u64);
        Windows { rest: range, sectors: few.clamp(WINDOW_SECTORS_RUN, WINDOW_SECTORS_MIN) }
    }

    /// The next one; none at the end of the range.
    pub fn next_window(&mut self) -> Option<SectorRange> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.end.min(self.rest.start + self.sectors);
        let window = SectorRange::new(self.rest.start, end);
        self.rest.start = end;
        Some(window)
    }

    /// Whether there is no next one.
    pub fn are_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// Notes how many parts the last one had, by which the next one's length goes.
    pub fn found(&mut self, parts: usize) {
        if parts < PARTS_FEW {
            self.sectors *= WINDOW_GROWTH;
        } else if parts > PARTS_MANY {
            self.sectors = (self.sectors / WINDOW_GROWTH).max(WINDOW_SECTORS_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bytes: u64, allocated: bool) -> AllocationRun {
        AllocationRun { bytes, allocated }
    }

    #[test]
    fn an_answer_ends_before_the_run_that_is_one_too_many() {
        let mut runs = AllocationRuns::at_most(2);
        runs.push(0, true);
        assert!(runs.is_empty());
        for (bytes, allocated) in [(5, false), (3, false), (1, true)] {
            runs.push(bytes, allocated);
            assert!(!runs.is_full());
        }
        runs.push(2, true);
        runs.push(4, false);
        assert!(runs.is_full());
        // It would not follow what is told.
        runs.push(9, true);
        assert_eq!((runs.len(), runs.into_runs()), (2, vec![run(8, false), run(3, true)]));
    }

    #[test]
    fn data_outside_of_a_range_is_left_out() {
        let mut runs = AllocationRuns::at_most(usize::MAX);
        runs.push_data(10, 50, [0..5, 8..12, 20..30, 45..60, 70..80]);
        let expected = [run(2, true), run(8, false), run(10, true), run(15, false), run(5, true)];
        assert_eq!(runs.into_runs(), expected);
    }

    #[test]
    fn who_asks_for_one_run_has_a_short_window_looked_at() {
        let all = SectorRange::new(0, 1 << 30);
        let mut windows = Windows::of(all, 1);
        assert_eq!(windows.next_window(), Some(SectorRange::new(0, WINDOW_SECTORS_RUN)));
        windows.found(1);
        let next = windows.next_window().expect("there is more");
        assert_eq!(next.sectors(), WINDOW_SECTORS_RUN * WINDOW_GROWTH);
        let mut windows = Windows::of(all, 1000);
        assert_eq!(windows.next_window().expect("there is one").sectors(), WINDOW_SECTORS_MIN);
    }

    #[test]
    fn windows_cover_a_range_and_are_longer_where_it_has_few_parts() {
        let all = SectorRange::new(7, 7 + (4 << 30) / 512);
        for (parts, few, many) in [(1, 1, 10), (1000, 2000, 2100), (5000, 2000, 2100)] {
            let (mut windows, mut count, mut next) = (Windows::of(all, usize::MAX), 0, all.start);
            while let Some(window) = windows.next_window() {
                assert_eq!(window.start, next);
                assert!(window.sectors() > 0);
                (next, count) = (window.end, count + 1);
                assert_eq!(windows.are_over(), next == all.end);
                windows.found(parts);
            }
            assert_eq!(next, all.end);
            assert!((few..many).contains(&count), "{count} windows of {parts} parts");
        }
    }
}
