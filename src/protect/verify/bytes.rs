//! The bytes of both sides: which are to be read, and in which sectors they differ.

use crate::allocation::AllocationRun;
use crate::block::DataPiece;
use crate::error::Result;
use crate::units::{SECTOR_BYTES, SectorRange, to_usize};

/// Bytes of a piece that were read from somewhere.
pub(super) fn stored_bytes(piece: &DataPiece) -> u64 {
    match piece {
        DataPiece::Bytes(bytes) => bytes.len() as u64,
        DataPiece::Zeros(_) => 0,
    }
}

/// Sectors of all of them.
pub(super) fn sectors(ranges: &[SectorRange]) -> u64 {
    ranges.iter().map(|range| range.sectors()).sum()
}

/// What one of the two has allocated; all of it where that cannot be told.
pub(super) fn allocated(
    range: SectorRange,
    live: Result<Vec<AllocationRun>>,
    vault: Result<Vec<AllocationRun>>,
) -> Vec<SectorRange> {
    let (Ok(live), Ok(vault)) = (live, vault) else { return vec![range] };
    let mut found: Vec<SectorRange> = Vec::new();
    for runs in [live, vault] {
        let mut offset = range.byte_offset();
        for run in runs {
            let end = offset + run.bytes;
            if run.allocated {
                // Holes begin and end where file systems like: whole sectors are compared.
                found
                    .push(SectorRange::new(offset / SECTOR_BYTES, end.div_ceil(SECTOR_BYTES).min(range.end)));
            }
            offset = end;
        }
    }
    found.sort_unstable();
    let mut union: Vec<SectorRange> = Vec::with_capacity(found.len());
    for range in found {
        match union.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => union.push(range),
        }
    }
    union
}

/// A range in pieces of so many sectors.
pub(super) fn pieces(range: SectorRange, sectors: u64) -> impl Iterator<Item = SectorRange> {
    let starts = (range.start..range.end).step_by(to_usize(sectors));
    starts.map(move |start| SectorRange::new(start, range.end.min(start + sectors)))
}

/// What was read of a range, in one piece.
pub(super) fn joined(pieces: &[DataPiece], range: SectorRange) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(to_usize(range.bytes()));
    for piece in pieces {
        match piece {
            DataPiece::Bytes(slice) => bytes.extend_from_slice(slice),
            DataPiece::Zeros(count) => bytes.resize(bytes.len() + to_usize(*count), 0),
        }
    }
    assert_eq!(bytes.len() as u64, range.bytes(), "a read gives what was asked for");
    bytes
}

/// Runs of sectors in which two buffers differ.
pub(super) fn differences(range: SectorRange, here: &[u8], there: &[u8]) -> Vec<SectorRange> {
    let mut runs: Vec<SectorRange> = Vec::new();
    if here == there {
        return runs;
    }
    let sector = to_usize(SECTOR_BYTES);
    let both = here.chunks(sector).zip(there.chunks(sector));
    for (number, _) in (range.start..).zip(both).filter(|(_, (here, there))| here != there) {
        match runs.last_mut().filter(|last| last.end == number) {
            Some(last) => last.end += 1,
            None => runs.push(SectorRange::new(number, number + 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn run(bytes: u64, allocated: bool) -> AllocationRun {
        AllocationRun { bytes, allocated }
    }

    #[test]
    fn only_what_neither_side_has_is_not_read() {
        let range = SectorRange::new(8, 40);
        let live = vec![run(8 * 512, false), run(8 * 512, true), run(16 * 512, false)];
        let vault = vec![run(12 * 512, false), run(8 * 512, true), run(12 * 512, false)];
        assert_eq!(allocated(range, Ok(live), Ok(vault)), [SectorRange::new(16, 28)]);
        assert_eq!(allocated(range, Ok(vec![run(32 * 512, false)]), Ok(vec![])), []);
        assert_eq!(allocated(range, Err(Error::corrupt("x")), Ok(vec![])), [range]);
    }

    #[test]
    fn differing_sectors_are_named_in_runs() {
        let range = SectorRange::new(100, 104);
        let here = vec![0; 4 * 512];
        let mut there = here.clone();
        assert_eq!(differences(range, &here, &there), []);
        (there[511], there[512], there[2047]) = (1, 1, 1);
        assert_eq!(
            differences(range, &here, &there),
            [SectorRange::new(100, 102), SectorRange::new(103, 104)]
        );
    }
}
