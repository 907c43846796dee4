//! What of some maps can be read back from the journal, and what rotted there, or is not given by its device any more.
//!
//! Side files and deltas take what frozen maps say, newest record winning. Where that record is not what was written, or cannot be had, they
//! take what the maps have beneath it, as if it had never been: sifting reads everything once and gives such a map, with a
//! list of the records that it is without. Nothing else is done about a bad record; the journal stays as it is.
//!
//! Invariant: the map has nothing of the lost sectors that is newer than the lost record.

use std::rc::Rc;

use futures::stream::{self, StreamExt};

use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, FrozenMap, merge};
use crate::format::frame::RECORD_PAYLOAD_BYTES_MAX;
use crate::format::side::Stood;
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::runtime::Runtime;
use crate::units::{SECTOR_BYTES, SectorRange};

/// Extents that are read at once.
const READS_AHEAD: usize = 16;
/// A record that is read in vain so often is lost: what is wrong may have been on the way.
const ATTEMPTS: u32 = 2;

/// Sectors whose newest record is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Which; of one record, so 64 KiB at most.
    pub range: SectorRange,
    /// Where the record's payload stands.
    pub stood: Stood,
}

/// What maps came to.
pub struct Sifted {
    /// What can be read.
    pub map: FrozenMap<Source>,
    /// What cannot, ascending and disjoint; the map may have something older there.
    pub lost: Vec<Lost>,
    /// Whether some of that is there, for all that is known, but its device does not give it: it may come back.
    pub is_withheld: bool,
}

/// Reads all that `maps`, oldest first, say of one disk. No error ends it that is one of stored bytes.
pub async fn sift(runtime: &Rc<Runtime>, reader: &Reader, maps: &[Rc<FrozenMap<Source>>]) -> Result<Sifted> {
    let merged = merge(maps, || runtime.yield_now()).await;
    let mut checked = stream::iter(merged.iter().map(|extent| check(reader, extent))).buffered(READS_AHEAD);
    let (mut extents, mut lost) = (Vec::with_capacity(merged.len()), Vec::new());
    let mut is_withheld = false;
    while let Some(result) = checked.next().await {
        let (extent, stood) = result?;
        match stood {
            None => extents.push(extent),
            Some(Miss { stood, withheld }) => {
                is_withheld |= withheld;
                lost.push(Lost { range: extent.range, stood });
                beneath(reader, maps, extent, &mut extents).await?;
            }
        }
    }
    let map = FrozenMap::from_sorted(extents).expect("what lies beneath an extent lies within its range");
    Ok(Sifted { map, lost, is_withheld })
}

/// Adds what older maps can give of a lost extent.
async fn beneath(
    reader: &Reader,
    maps: &[Rc<FrozenMap<Source>>],
    lost: Extent<Source>,
    into: &mut Vec<Extent<Source>>,
) -> Result<()> {
    // What is looked for, the lowest sectors on top, and how many of the maps may have it.
    let has =
        |map: &Rc<FrozenMap<Source>>| map.lookup(lost.range).any(|(_, found)| found == Some(lost.location));
    let mut wanted =
        vec![(lost.range, maps.iter().rposition(has).expect("the extent is of one of the maps"))];
    while let Some((range, count)) = wanted.pop() {
        let Some(below) = count.checked_sub(1) else { continue };
        let found: Vec<_> = maps[below].lookup(range).collect();
        for &(part, location) in found.iter().rev() {
            match location {
                Some(location) if found.len() == 1 => {
                    let extent = Extent { range: part, location };
                    match check(reader, extent).await? {
                        (extent, None) => into.push(extent),
                        (_, Some(_)) => wanted.push((part, below)),
                    }
                }
                // Looked for alone, in its turn.
                Some(_) => wanted.push((part, count)),
                None => wanted.push((part, below)),
            }
        }
    }
    Ok(())
}

/// A record that is not to be had.
struct Miss {
    stood: Stood,
    /// Its device does not give it.
    withheld: bool,
}

/// The extent, and where the record stood that it is of, if that is not what was written or cannot be had.
async fn check(reader: &Reader, extent: Extent<Source>) -> Result<(Extent<Source>, Option<Miss>)> {
    let Source::Journal { segment, sector } = extent.location else { return Ok((extent, None)) };
    debug_assert!(extent.range.bytes() <= RECORD_PAYLOAD_BYTES_MAX as u64, "an extent lies within a record");
    for attempt in 1.. {
        match reader.read(segment, sector, extent.range.sectors()).await {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Corrupt && attempt < ATTEMPTS => {}
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let (stood, withheld) = (stood(segment.0, &error), error.io_kind().is_some());
                if reader.segment(segment).is_some_and(|segment| segment.is_news(stood.sector, withheld)) {
                    tracing::error!(%error, sectors = %extent.range, "a record in the journal is lost");
                }
                return Ok((extent, Some(Miss { stood, withheld })));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((extent, None))
}

/// Where the record stood that an error is about: the reader names the offset of its payload.
fn stood(segment: u32, error: &Error) -> Stood {
    let sector = error.offset().expect("a verified read names its offset") / SECTOR_BYTES;
    Stood { segment, sector: u32::try_from(sector).expect("a segment has fewer than 2^32 sectors") }
}
