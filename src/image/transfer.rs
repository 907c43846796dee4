//! Brings what a merged map says into an image: the journal is read in its own order, the image written in that of the disk, and what
//! lies side by side is one operation, on either side.
//!
//! ```text
//!  map, by LBA ─▶ by segment ─▶ pieces ─▶ read, joined ─▶ by LBA ─▶ written, joined
//! ```
//!
//! A piece is written while the next one is read. It is what bounds the memory: two pieces at a time ([`SharedPieces`]). What was written at random is
//! all over the map but side by side in the journal, so that reading it there costs a few large operations instead of one for each
//! extent; what was written in order is side by side in both.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future::join;

use crate::error::Result;
use crate::extent::{Extent, FrozenMap};
use crate::image::Image;
use crate::image::pace::Pace;
#[cfg(doc)]
use crate::image::pieces::SharedPieces;
use crate::image::sums::Put;
use crate::journal::joined::{Part, cost};
use crate::journal::reader::Reader;
use crate::journal::segments::{SegmentIndex, Source};
use crate::planted::Planted;
use crate::pour::pour;
use crate::runtime::Runtime;
use crate::storage::{Buffer, Slice};
use crate::units::{Lsn, SectorCount, SectorRange, to_usize};

/// Most bytes of one write.
const WRITE_BYTES_MAX: u64 = 1 << 20;
/// Extents after which whoever shares the thread gets a turn.
const SLICE: usize = 512;
/// The same for sectors that are summed,
const SLICE_SECTORS: usize = 1024;
/// and their bytes.
const SLICE_BYTES: usize = SLICE_SECTORS * 512;
/// Operations under way at once.
const CONCURRENCY: usize = 64;

/// From where to where.
pub(super) struct Transfer<'a> {
    pub(super) runtime: &'a Rc<Runtime>,
    pub(super) reader: &'a Reader,
    pub(super) image: &'a Image,
    /// The newest record of what is brought.
    pub(super) through: Lsn,
    /// Whether sums that their device does not give are done without: [`Put::gives_up`].
    pub(super) gives_up: bool,
    /// The gate that each operation passes.
    pub(super) pace: &'a Pace,
    /// A bug to plant.
    pub(super) planted: Planted,
}

/// Sectors of the disk, and where a segment holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    sector: u32,
    range: SectorRange,
    /// Where the sums of its sectors go among those of all that the map says.
    sums: u32,
}

impl Held {
    fn part(self) -> Part {
        Part { sector: self.sector, sectors: self.range.sectors() }
    }
}

/// Parts of one segment that are read, and then written, together.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    segment: SegmentIndex,
    /// In the segment's order.
    held: Vec<Held>,
}

impl Transfer<'_> {
    /// Brings all that `map` says of a disk of `sectors`; adds the bytes of data and of sums to `written`, also those
    /// before an error.
    pub(super) async fn bring(
        &self,
        map: &FrozenMap<Source>,
        sectors: SectorCount,
        written: &mut u64,
    ) -> Result<()> {
        self.image.sums.begin();
        let (zeros, segments, count) = self.sort(map, sectors).await;
        let mut sums = vec![0; count as usize];
        let zeros = zeros.into_iter().map(|(range, allocated)| self.zero(range, allocated));
        pour(zeros, CONCURRENCY, |()| ()).await?;
        let under_way = self.pace.pieces().begin();
        let mut pieces = segments
            .into_iter()
            .flat_map(|(segment, held)| pieces_of(segment, held, under_way.piece_bytes()));
        let mut read = self.read_next(&mut pieces).await?;
        while let Some(data) = read {
            self.note_sums(&data, &mut sums).await;
            let (poured, next) = join(self.write(data, written), self.read_next(&mut pieces)).await;
            poured?;
            read = next?;
        }
        let mut end = 0;
        let news = map.below(sectors).map(|Extent { range, location }| {
            let start = end;
            end += data_sectors(range, location) as usize;
            (range, (end > start).then(|| &sums[start..end]))
        });
        let Transfer { through, gives_up, pace, planted, .. } = *self;
        self.image.sums.put(news, &Put { through, gives_up, pace, planted }, written).await
    }

    async fn note_sums(&self, data: &[(Held, Slice)], sums: &mut [u32]) {
        let mut summed = 0;
        for (held, bytes) in data {
            let news = &mut sums[held.sums as usize..][..to_usize(held.range.sectors())];
            let starts = (held.range.start..).step_by(SLICE_SECTORS);
            let slices = bytes.chunks(SLICE_BYTES).zip(news.chunks_mut(SLICE_SECTORS));
            for (start, (bytes, news)) in starts.zip(slices) {
                news.iter_mut().zip(self.image.sums.of(start, bytes)).for_each(|(old, new)| *old = new);
                summed += bytes.len();
                if summed >= SLICE_BYTES {
                    summed = 0;
                    self.runtime.yield_now().await;
                }
            }
        }
    }

    /// What is zeros, and what is data, by the segment that holds it; and how many sectors of data.
    async fn sort(
        &self,
        map: &FrozenMap<Source>,
        sectors: SectorCount,
    ) -> (Vec<(SectorRange, bool)>, BTreeMap<SegmentIndex, Vec<Held>>, u32) {
        let mut sums = 0;
        let mut zeros = Vec::new();
        let mut segments: BTreeMap<SegmentIndex, Vec<Held>> = BTreeMap::new();
        for (count, Extent { range, location }) in map.below(sectors).enumerate() {
            match location {
                Source::Journal { segment, sector } => {
                    segments.entry(segment).or_default().push(Held { sector, range, sums });
                    sums += data_sectors(range, location);
                }
                Source::Zero { allocated } => zeros.push((range, allocated)),
            }
            if count % SLICE == SLICE - 1 {
                self.runtime.yield_now().await;
            }
        }
        (zeros, segments, sums)
    }

    async fn zero(&self, range: SectorRange, allocated: bool) -> Result<()> {
        // A hole gives space back.
        let _passage = match allocated {
            true => Some(self.pace.pass().await?),
            false => {
                self.pace.turn().await;
                None
            }
        };
        self.runtime.zero(&self.image.file, range.byte_range(), allocated).await
    }

    async fn read_next(
        &self,
        pieces: &mut impl Iterator<Item = Piece>,
    ) -> Result<Option<Vec<(Held, Slice)>>> {
        let Some(Piece { segment, held }) = pieces.next() else { return Ok(None) };
        let parts: Vec<Part> = held.iter().map(|held| held.part()).collect();
        let slices = self.reader.read_all(segment, &parts, || self.pace.turn()).await?;
        Ok(Some(held.into_iter().zip(slices).collect()))
    }

    async fn write(&self, data: Vec<(Held, Slice)>, written: &mut u64) -> Result<()> {
        let mut data: Vec<_> = data.into_iter().map(|(held, bytes)| (held.range, bytes)).collect();
        data.sort_unstable_by_key(|(range, _)| range.start);
        let neighbours = data.chunk_by(|(before, _), (after, _)| {
            // A boundary that writes do not cross keeps each of them short.
            before.end == after.start && !after.byte_offset().is_multiple_of(WRITE_BYTES_MAX)
        });
        let writes = neighbours.map(|joined| self.write_joined(joined));
        pour(writes, CONCURRENCY, |bytes| *written += bytes).await
    }

    /// Writes extents that lie side by side.
    async fn write_joined(&self, extents: &[(SectorRange, Slice)]) -> Result<u64> {
        let [(first, data), others @ ..] = extents else { return Ok(0) };
        let data = if others.is_empty() { data.clone() } else { joined(extents) };
        let _passage = self.pace.pass().await?;
        let bytes = data.len() as u64;
        self.runtime.write(&self.image.file, first.byte_offset(), data).await?;
        Ok(bytes)
    }
}

/// Sectors of an extent of which the journal has data: those of one batch are few enough for their sums to be in memory.
fn data_sectors(range: SectorRange, source: Source) -> u32 {
    match source {
        Source::Journal { .. } => {
            u32::try_from(range.sectors()).expect("what a batch has of data is bounded")
        }
        Source::Zero { .. } => 0,
    }
}

fn joined(extents: &[(SectorRange, Slice)]) -> Slice {
    let mut buffer = Buffer::recycled(extents.iter().map(|(_, data)| data.len()).sum());
    let mut end = 0;
    for (_, data) in extents {
        buffer[end..end + data.len()].copy_from_slice(data);
        end += data.len();
    }
    buffer.freeze()
}

/// Cuts what one segment holds into pieces that cost about so many bytes.
fn pieces_of(segment: SegmentIndex, mut held: Vec<Held>, piece_bytes: u64) -> impl Iterator<Item = Piece> {
    held.sort_unstable_by_key(|held| held.sector);
    let mut pieces = Vec::new();
    let (mut piece, mut bytes, mut end) = (Vec::new(), 0, 0);
    for held in held {
        let more = cost(end, held.part());
        if !piece.is_empty() && bytes + more > piece_bytes {
            pieces.push(Piece { segment, held: std::mem::take(&mut piece) });
            bytes = 0;
        }
        bytes += more;
        end = u64::from(held.sector) + held.range.sectors();
        piece.push(held);
    }
    pieces.extend((!piece.is_empty()).then_some(Piece { segment, held: piece }));
    pieces.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(sector: u32, start: u64, sectors: u64) -> Held {
        Held { sector, range: SectorRange::new(start, start + sectors), sums: 0 }
    }

    #[test]
    fn a_piece_is_in_the_segments_order_and_bounded_gaps_included() {
        const MIB: u32 = 2048;
        const PIECE_BYTES: u64 = 16 << 20;
        let segment = SegmentIndex(3);
        let all = [held(9 * MIB, 0, u64::from(MIB)), held(8, 5000, 8), held(24 * MIB, 9000, 8)];
        let pieces: Vec<_> = pieces_of(segment, all.to_vec(), PIECE_BYTES).collect();
        let expected = Piece { segment, held: vec![all[1], all[0], all[2]] };
        assert_eq!(pieces, [expected], "gaps that are not read cost nothing");

        // Of each 32 KiB one sector is wanted: the gaps are read, and count.
        let sparse: Vec<_> = (0..1024).map(|index| held(index * 64, u64::from(index) * 8, 1)).collect();
        let pieces: Vec<_> = pieces_of(segment, sparse.clone(), PIECE_BYTES).collect();
        assert_eq!(pieces.len(), 2);
        let again: Vec<_> = pieces.iter().flat_map(|piece| piece.held.iter().copied()).collect();
        assert_eq!(again, sparse);
        assert_eq!(pieces_of(segment, Vec::new(), PIECE_BYTES).count(), 0);
    }

    #[test]
    fn what_is_joined_is_in_the_order_of_the_disk() {
        let slice = |byte: u8| Buffer::copy_of(&[byte; 512]).freeze();
        let extents = [(SectorRange::new(4, 5), slice(1)), (SectorRange::new(5, 6), slice(2))];
        let data = joined(&extents);
        assert_eq!((&data[..512], &data[512..]), (&[1; 512][..], &[2; 512][..]));
    }
}
