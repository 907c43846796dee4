//! Writes a side file: moves from the journal what an image cannot take, and notes what rotted there, or is not given any more.
//!
//! Invariant: what this returns is durable under its name and has a receipt; of an attempt that failed nothing is counted on. Each
//! attempt seals under a key of its own, so that none repeats a nonce.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::stream::{self, StreamExt};

use super::names::{NameKind, SideName};
use super::{SEAL_NONCE, SideFile, chunk_nonce};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, FrozenMap, Location, merge};
use crate::format::checksum;
use crate::format::side::{
    CHUNK_SECTORS_MAX, Content, Footer, Identity, Seal, SideExtent, ZERO_SECTORS_MAX, encode_table,
};
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::journal::sift::{Lost, Sifted, sift};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, Purpose, Sealing};
use crate::storage::{Buffer, File, OpenOptions, Slice};
use crate::units::{SectorCount, SectorRange};

/// Extents that are read at once while a file is written.
const READS_AHEAD: usize = 16;

/// Chunks are gathered into writes of about this size.
const WRITE_BYTES: usize = 1 << 20;

/// What is to be moved from the journal into a side file.
pub struct SideWork {
    /// Directory of the images.
    pub directory: PathBuf,
    /// What the file will be.
    pub identity: Identity,
    /// How long the disk is: what the maps hold beyond that is left out.
    pub sectors: SectorCount,
    /// The disk's maps, oldest first.
    pub maps: Vec<Rc<FrozenMap<Source>>>,
    /// Where payloads are read.
    pub reader: Reader,
    /// What seals it.
    pub keys: GroupKeys,
    /// Whether records that the journal's device does not give are given up, too: else the journal is to keep them all.
    pub gives_up: bool,
}

/// What came of it.
pub enum Written {
    /// The file.
    File(SideFile),
    /// None: the journal's device does not give these records, and they were not to be given up.
    Kept(Vec<Lost>),
}

/// Writes a side file; durable under its name when this returns, and from then on it is missed if it gets lost. No number
/// is given twice, whatever became of the attempt: a file that stays behind holds what it says, and does no harm.
pub async fn write(runtime: &Rc<Runtime>, work: SideWork, planted: Planted) -> Result<Written> {
    let Identity { disk, number, .. } = work.identity;
    let name = |kind| SideName { disk, number, kind }.path(&work.directory);
    let (path, partial) = (name(NameKind::File), name(NameKind::Partial));
    // Where no name can be made durable nothing is written that would only have to be removed again.
    runtime.sync_directory(&work.directory).await?;
    let mut sifted: Option<Sifted> = None;
    let side = loop {
        match publish(runtime, &work, sifted.as_ref(), &path, &partial, planted).await {
            Ok(side) => break side,
            Err(error) => {
                // What there is of it keeps space from others. The error that matters is the first.
                let _ = runtime.remove(&partial).await;
                let _ = runtime.remove(&path).await;
                let again = sift_again(runtime, &work, sifted, error).await?;
                if again.is_withheld && !work.gives_up {
                    return Ok(Written::Kept(again.lost));
                }
                sifted = Some(again);
            }
        }
    };
    let receipt = name(NameKind::Receipt);
    if let Err(error) = acknowledge(runtime, &work.directory, &receipt).await {
        let _ = runtime.remove(&receipt).await;
        // A receipt that came back in a power cut would miss the file.
        if runtime.sync_directory(&work.directory).await.is_ok() {
            let _ = runtime.remove(&path).await;
        }
        return Err(error);
    }
    Ok(Written::File(side))
}

/// After a failed attempt to write a file: what there is without the records that rotted. Where it is no such that kept the
/// file from being written, the error is given back.
async fn sift_again(
    runtime: &Rc<Runtime>,
    work: &SideWork,
    before: Option<Sifted>,
    error: Error,
) -> Result<Sifted> {
    if error.kind() != ErrorKind::Corrupt {
        return Err(error);
    }
    let sifted = sift(runtime, &work.reader, &work.maps).await?;
    if sifted.lost == before.map_or(Vec::new(), |before| before.lost) { Err(error) } else { Ok(sifted) }
}

/// Notes durably that a side file, which is durable, is counted on.
async fn acknowledge(runtime: &Rc<Runtime>, directory: &Path, receipt: &Path) -> Result<()> {
    runtime.open(receipt, OpenOptions::CREATE).await?;
    runtime.sync_directory(directory).await
}

async fn publish(
    runtime: &Rc<Runtime>,
    work: &SideWork,
    sifted: Option<&Sifted>,
    path: &Path,
    partial: &Path,
    planted: Planted,
) -> Result<SideFile> {
    let file = runtime.open(partial, OpenOptions::CREATE).await?;
    // Each attempt seals under a key of its own.
    let id = runtime.random_u128();
    let sealing = work.keys.sealing(Purpose::Side, id);
    let (map, lost) = match sifted {
        Some(sifted) => (sifted.map.clone(), sifted.lost.as_slice()),
        None => (merge(&work.maps, || runtime.yield_now()).await, [].as_slice()),
    };
    let lost = if planted.is(Bug::UnreadableForgotten) { &[] } else { lost };
    let mut out = Out { runtime, file: &file, offset: 0, gathered: Vec::new() };
    let table = fill(&mut out, (&work.reader, work.sectors), &map, lost, sealing.as_ref()).await?;
    end(&mut out, work.identity, &table, id, sealing.as_ref()).await?;
    if !planted.is(Bug::SideFileNotSynced) {
        runtime.sync(&file).await?;
    }
    runtime.publish(partial, path).await?;
    runtime.sync_directory(&work.directory).await?;
    Ok(SideFile::new(file, work.identity, table, sealing.map(|sealing| Rc::new(sealing.sealer))))
}

/// Writes the chunks of what `map` says; returns the table of it, and of the notes.
async fn fill(
    out: &mut Out<'_>,
    (reader, sectors): (&Reader, SectorCount),
    map: &FrozenMap<Source>,
    lost: &[Lost],
    sealing: Option<&Sealing>,
) -> Result<Vec<SideExtent>> {
    let extents = map.below(sectors).flat_map(pieces_of_entries);
    let mut reads = stream::iter(extents.map(|extent| read(reader, extent))).buffered(READS_AHEAD);
    let mut table = Vec::with_capacity(map.len() + lost.len());
    while let Some(read) = reads.next().await {
        let (range, piece) = read?;
        let content = match piece {
            Read::Zero { allocated } => Content::Zero { allocated },
            Read::Data(bytes) => {
                let start = out.gathered.len();
                out.gathered.extend_from_slice(&bytes);
                let stored = &mut out.gathered[start..];
                let checksum = match sealing {
                    Some(sealing) => {
                        let nonce = chunk_nonce(table.len() as u64);
                        u128::from_le_bytes(sealing.sealer.seal(nonce, &[], stored))
                    }
                    None => checksum(stored),
                };
                out.append(&[]).await?;
                Content::Data { checksum }
            }
        };
        table.push(SideExtent { range, content });
    }
    let disk = SectorRange::new(0, sectors.0);
    table.extend(lost.iter().filter_map(|lost| {
        let range = lost.range.intersection(disk)?;
        Some(SideExtent { range, content: Content::Unreadable(lost.stood) })
    }));
    Ok(table)
}

/// Writes table, seal and footer.
async fn end(
    out: &mut Out<'_>,
    identity: Identity,
    table: &[SideExtent],
    id: u128,
    sealing: Option<&Sealing>,
) -> Result<()> {
    let encoded = encode_table(table);
    let footer = Footer::new(identity, table, &encoded);
    for part in encoded.chunks(WRITE_BYTES) {
        out.append(part).await?;
    }
    let footer = match sealing {
        Some(Sealing { generation, sealer }) => {
            let footer = footer.sealed();
            let tag = sealer.seal(SEAL_NONCE, &footer.bound(&encoded), &mut []);
            out.append(&Seal { id, generation: *generation, tag }.encode()).await?;
            footer
        }
        None => footer,
    };
    out.append(&footer.encode()).await?;
    out.flush().await
}

/// Cuts an extent into what an entry of the table can say.
fn pieces_of_entries(extent: Extent<Source>) -> impl Iterator<Item = Extent<Source>> {
    let sectors_max = match extent.location {
        Source::Journal { .. } => CHUNK_SECTORS_MAX,
        Source::Zero { .. } => ZERO_SECTORS_MAX,
    };
    let Extent { range, location } = extent;
    (0..range.sectors().div_ceil(sectors_max)).map(move |index| {
        let start = range.start + index * sectors_max;
        let piece = SectorRange::new(start, range.end.min(start + sectors_max));
        Extent { range: piece, location: location.advance(start - range.start) }
    })
}

enum Read {
    Zero { allocated: bool },
    Data(Slice),
}

async fn read(reader: &Reader, extent: Extent<Source>) -> Result<(SectorRange, Read)> {
    let range = extent.range;
    let content = match extent.location {
        Source::Journal { segment, sector } => {
            Read::Data(reader.read(segment, sector, range.sectors()).await?)
        }
        Source::Zero { allocated } => Read::Zero { allocated },
    };
    Ok((range, content))
}

/// Gathers what is appended to a file into large writes.
struct Out<'a> {
    runtime: &'a Rc<Runtime>,
    file: &'a File,
    offset: u64,
    gathered: Vec<u8>,
}

impl Out<'_> {
    async fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() < WRITE_BYTES { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<()> {
        let data = Buffer::copy_of(&self.gathered).freeze();
        self.runtime.write(self.file, self.offset, data).await?;
        self.offset += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_to_what_an_entry_can_say() {
        let zeros = Extent {
            range: SectorRange::new(5, 5 + 2 * ZERO_SECTORS_MAX + 1),
            location: Source::Zero { allocated: true },
        };
        let ends: Vec<u64> = pieces_of_entries(zeros).map(|piece| piece.range.sectors()).collect();
        assert_eq!(ends, [ZERO_SECTORS_MAX, ZERO_SECTORS_MAX, 1]);
    }
}
