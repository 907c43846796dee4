//! Index runs beside the journal's segments: written while a group runs, believed or not at its next opening.
//!
//! A run says in a few bytes a record what a stretch of the chain says, so that opening can *jump* over it: the chain is
//! followed up to the frame before the run, and goes on behind the run's last frame, which must stand where the run says,
//! with the sum that the run says. Through the chain that sum binds everything before it.
//!
//! ```text
//!  segment   5           6           7           8           9
//!          ──┬─ frames ──────────────────────────────────┬────────▶
//!          begin ╰──────── run ────────╯╰───── run ──────╯ end        6 and 7: first pages only
//! ```
//!
//! Runs are a cache. One that is missing, damaged, foreign, or names segments that are used otherwise by now is not used,
//! and the frames are read instead. A run may name segments that were recycled since: what it says of them is needed by
//! nobody, for no segment is used again before a durable frame says that the journal begins after it, and whatever
//! lies before that is cut off here. So runs can be removed late, and in any order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::extent::{Extent, FrozenMap};
use crate::format::frame::{Frame, Payload, RecordKind};
use crate::format::marker::Marker;
use crate::format::run::{
    FrameLink, PartSeal, Run, RunExtent, RunFault, RunLayer, RunPart, RunSource, RunTables,
};
use crate::journal::payloads::{ListedPayloads, StoredPayload};
use crate::journal::scan::Owner;
use crate::journal::segments::{SegmentIndex, Source};
use crate::runtime::Runtime;
use crate::storage::{Buffer, Create, Lock, OpenOptions};
use crate::units::{DiskSlot, FrameNumber, IncarnationId, Lsn, SECTOR_BYTES, SegmentSequence, to_usize};

/// A frame that a run covers.
#[derive(Clone, Debug)]
pub struct CoveredFrame {
    /// Which frame.
    pub link: FrameLink,
    /// The segment's file that it stands in,
    pub index: SegmentIndex,
    /// and its sectors there.
    pub sectors: std::ops::Range<u32>,
    /// Whether a record of it says something of a disk.
    pub carries_data: bool,
    /// Which key sealed it, where the group is sealed.
    pub seal: Option<PartSeal>,
}

impl CoveredFrame {
    /// A frame in segment file `index`, with its `header_sum`.
    pub fn new(index: SegmentIndex, frame: &Frame, sum: u64) -> CoveredFrame {
        let end = frame.segment_offset() + frame.total_bytes() as u64;
        let sector = |bytes: u64| u32::try_from(bytes / SECTOR_BYTES).expect("checked with the header");
        let is_data = |kind| matches!(kind, RecordKind::Write { .. } | RecordKind::Zero { .. });
        CoveredFrame {
            link: link_of(frame, sum),
            index,
            sectors: sector(frame.segment_offset())..sector(end),
            carries_data: frame.records.iter().any(|record| is_data(record.kind)),
            seal: frame
                .seal
                .as_ref()
                .map(|seal| PartSeal { incarnation: frame.incarnation, generation: seal.generation }),
        }
    }
}

/// What tells a frame from any other.
pub fn link_of(frame: &Frame, sum: u64) -> FrameLink {
    FrameLink {
        incarnation: frame.incarnation,
        number: frame.number,
        sum,
        segment: frame.segment,
        last_lsn: frame.last_lsn(),
    }
}

/// What precedes a journal's first frame.
pub const NOTHING: FrameLink = FrameLink {
    incarnation: IncarnationId(0),
    number: FrameNumber(0),
    sum: 0,
    segment: SegmentSequence(0),
    last_lsn: Lsn::ZERO,
};

/// As much as a frame says of the one before it: enough where a journal begins with it.
pub fn before(frame: &Frame) -> FrameLink {
    let number = FrameNumber(frame.number.0.saturating_sub(1));
    FrameLink { number, sum: frame.chain, last_lsn: Lsn(frame.first_lsn.0 - 1), ..NOTHING }
}

/// The name of the run whose last frame has this number.
pub fn file_name(end: FrameNumber) -> String {
    format!("run-{:016x}", end.0)
}

/// Whether a name is a run's.
pub fn is_file_name(name: &str) -> bool {
    let digits = name.strip_prefix("run-").filter(|digits| digits.len() == 16);
    digits.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Whether a name is that of a run that was not finished.
pub fn is_partial_name(name: &str) -> bool {
    name.strip_suffix(".partial").is_some_and(is_file_name)
}

/// What a run says of consecutive records, ready to be a layer again.
#[derive(Clone, Debug)]
pub struct IndexedLayer {
    /// The last record.
    pub last: Lsn,
    /// The oldest segment that holds data of it.
    pub oldest: SegmentSequence,
    /// Bytes of data that its records carried.
    pub data_bytes: u64,
    /// What they say, per disk.
    pub maps: BTreeMap<DiskSlot, Rc<FrozenMap<Source>>>,
    /// The marker that ends it.
    pub marker: Option<Marker>,
}

/// A run that was read back whole; nothing says yet that it belongs to what stands in the segments.
#[derive(Clone, Debug)]
pub struct LoadedRun {
    /// Its file.
    pub path: PathBuf,
    /// Whose journal it says that it is beside.
    pub owner: Owner,
    /// The frame before the first one covered.
    pub begin: FrameLink,
    /// The last frame covered.
    pub end: FrameLink,
    /// Its segments, and the payloads of its frames in each.
    pub parts: Vec<(RunPart, ListedPayloads)>,
    /// Its layers, oldest first.
    pub layers: Vec<IndexedLayer>,
}

impl LoadedRun {
    /// The last record that it is about.
    pub fn through(&self) -> Lsn {
        self.end.last_lsn
    }

    /// Takes a whole file, which it needs to change in passing, apart.
    pub fn decode(path: &Path, bytes: &mut [u8]) -> std::result::Result<LoadedRun, RunFault> {
        let (run, tables) = Run::decode(bytes)?;
        LoadedRun::new(path.to_owned(), run, &tables)
    }

    fn new(path: PathBuf, run: Run, tables: &RunTables<'_>) -> std::result::Result<LoadedRun, RunFault> {
        let mut extents = tables.extents();
        let layers = run.layers.into_iter().map(|layer| indexed(layer, &mut extents));
        let layers = layers.collect::<std::result::Result<_, _>>()?;
        let (mut payloads, mut tags) = (tables.payloads(), tables.tags());
        let mut parts = Vec::with_capacity(run.parts.len());
        for part in run.parts {
            let listed = payloads.by_ref().take(part.payloads as usize);
            let listed = listed.map(|payload| payload.map(StoredPayload::from));
            let listed = listed.collect::<Option<Vec<_>>>().ok_or(RunFault("payload"))?;
            if listed.windows(2).any(|pair| pair[0].end() > pair[1].sector) {
                return Err(RunFault("payloads overlap"));
            }
            let own;
            (own, tags) = tags.split_at(tags.len().min(listed.len()));
            parts.push((part, ListedPayloads { payloads: listed, tags: own.to_vec() }));
        }
        let owner = Owner { group: run.group, timeline: run.timeline };
        Ok(LoadedRun { path, owner, begin: run.begin, end: run.end, parts, layers })
    }
}

fn indexed(
    layer: RunLayer,
    extents: &mut impl Iterator<Item = Option<RunExtent>>,
) -> std::result::Result<IndexedLayer, RunFault> {
    let mut maps = BTreeMap::new();
    for (slot, count) in layer.disks {
        let listed = extents.by_ref().take(count as usize);
        let listed = listed.map(|extent| {
            let RunExtent { range, source } = extent?;
            let location = match source {
                RunSource::Journal { segment, sector } => {
                    Source::Journal { segment: SegmentIndex(segment), sector }
                }
                RunSource::Zero { allocated } => Source::Zero { allocated },
            };
            Some(Extent { range, location })
        });
        let listed = listed.collect::<Option<Vec<_>>>().ok_or(RunFault("extent"))?;
        let map = FrozenMap::from_sorted(listed).ok_or(RunFault("extents overlap"))?;
        maps.insert(slot, Rc::new(map));
    }
    let RunLayer { last, oldest, data_bytes, marker, .. } = layer;
    Ok(IndexedLayer { last, oldest, data_bytes, maps, marker })
}

/// The extents of a map as a run writes them.
pub fn extents_of(map: &FrozenMap<Source>) -> impl Iterator<Item = RunExtent> + '_ {
    map.iter().map(|Extent { range, location }| {
        let source = match location {
            Source::Journal { segment, sector } => RunSource::Journal { segment: segment.0, sector },
            Source::Zero { allocated } => RunSource::Zero { allocated },
        };
        RunExtent { range, source }
    })
}

impl From<Payload> for StoredPayload {
    fn from(payload: Payload) -> StoredPayload {
        StoredPayload { sector: payload.sector, sectors: payload.sectors, sum: payload.sum }
    }
}

/// Reads the runs with these names; what cannot be read, or is no run, is left out.
pub async fn load(runtime: &Rc<Runtime>, directory: &Path, names: &[String]) -> Vec<LoadedRun> {
    let mut runs = Vec::with_capacity(names.len());
    for name in names {
        let path = directory.join(name);
        match read(runtime, &path).await {
            Ok(run) => runs.push(run),
            Err(error) => tracing::warn!(%error, "an index run is not used; the journal is read instead"),
        }
    }
    runs
}

async fn read(runtime: &Rc<Runtime>, path: &Path) -> Result<LoadedRun> {
    let options = OpenOptions { direct: true, ..OpenOptions::READ };
    let file = runtime.open(path, options).await?;
    let length = runtime.length(&file).await?;
    if length == 0 || !length.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::corrupt("an index run is cut off").at_path(path));
    }
    let mut bytes = runtime.read(&file, 0, to_usize(length)).await?;
    LoadedRun::decode(path, &mut bytes).map_err(|RunFault(what)| {
        Error::corrupt(format!("an index run is damaged: its {what}")).at_path(path)
    })
}

/// Writes a run's file: durable under its name when this returns.
pub async fn write(runtime: &Rc<Runtime>, path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let written = write_partial(runtime, &partial, bytes).await;
    if written.is_err() {
        // What there is of it takes space from the images. The error that matters is the first.
        let _ = runtime.remove(&partial).await;
    }
    written?;
    runtime.publish(&partial, path).await?;
    runtime.sync_directory(path.parent().expect("a run lies in its journal's directory")).await
}

async fn write_partial(runtime: &Rc<Runtime>, partial: &Path, bytes: &[u8]) -> Result<()> {
    let options = OpenOptions { create: Create::IfMissing, lock: Lock::None, ..OpenOptions::OWNED };
    let file = runtime.open(partial, options).await?;
    runtime.write(&file, 0, Buffer::copy_of(bytes).freeze()).await?;
    runtime.sync(&file).await
}

/// What images and vault still need of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Records up to here are in points.
    pub vaulted: Lsn,
    /// Records of a disk up to here are in its image or its side files; a disk that is not named needs nothing.
    pub stored: BTreeMap<DiskSlot, Lsn>,
}

impl Needs {
    /// Whether a layer of the records `after < lsn <= last` is needed as a whole or not at all, by each.
    fn takes_whole(&self, after: Lsn, layer: &IndexedLayer) -> bool {
        let outside = |boundary: Lsn| boundary <= after || boundary >= layer.last;
        let stored = layer.maps.keys().filter_map(|slot| self.stored.get(slot));
        outside(self.vaulted) && stored.copied().all(outside)
    }

    /// Whether nobody needs a layer.
    fn are_met(&self, layer: &IndexedLayer) -> bool {
        let mut stored = layer.maps.keys().filter_map(|slot| self.stored.get(slot));
        layer.last <= self.vaulted && stored.all(|&stored| stored >= layer.last)
    }

    /// The records after which a layer must end, in order: none may be needed in part.
    pub fn boundaries(&self) -> Vec<Lsn> {
        let mut boundaries: Vec<Lsn> = self.stored.values().copied().chain([self.vaulted]).collect();
        boundaries.sort_unstable();
        boundaries.dedup();
        boundaries
    }
}

/// Runs that follow one another without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// The frame before.
    pub begin: FrameLink,
    /// The last frame.
    pub end: FrameLink,
    /// Positions of the runs.
    pub runs: Vec<usize>,
}

impl Jump {
    /// Whether a segment that is used as `sequence` need not be read for its frames.
    pub fn passes_over(&self, sequence: SegmentSequence) -> bool {
        self.begin.segment < sequence && sequence < self.end.segment
    }
}

/// What of the runs can be believed, where the journal begins at segment `tail`, and the files are used as `uses` says.
pub fn jumps(
    runs: &[LoadedRun],
    owner: Owner,
    uses: &BTreeMap<SegmentIndex, SegmentSequence>,
    tail: SegmentSequence,
    needs: &Needs,
) -> Vec<Jump> {
    let is_usable = |run: &LoadedRun| run.owner == owner && is_bound(run, uses, tail, needs);
    let mut usable: Vec<usize> = (0..runs.len()).filter(|&index| is_usable(&runs[index])).collect();
    usable.sort_by_key(|&index| (runs[index].begin.number, runs[index].end.number));
    let mut jumps: Vec<Jump> = Vec::new();
    for index in usable {
        let run = &runs[index];
        match jumps.last_mut() {
            Some(last) if last.end == run.begin => {
                last.end = run.end;
                last.runs.push(index);
            }
            Some(last) if last.end.number > run.begin.number => {}
            _ => jumps.push(Jump { begin: run.begin, end: run.end, runs: vec![index] }),
        }
    }
    jumps
}

/// Whether a run speaks of what stands in the segments now, as far as that is needed.
fn is_bound(
    run: &LoadedRun,
    uses: &BTreeMap<SegmentIndex, SegmentSequence>,
    tail: SegmentSequence,
    needs: &Needs,
) -> bool {
    let live = run.parts.iter().filter(|(part, _)| part.sequence >= tail);
    let in_use = |part: &RunPart| uses.get(&SegmentIndex(part.index)) == Some(&part.sequence);
    let afters = std::iter::once(run.begin.last_lsn).chain(run.layers.iter().map(|layer| layer.last));
    let serves = |(after, layer): (Lsn, &IndexedLayer)| {
        let is_there = layer.oldest >= tail || needs.are_met(layer);
        is_there && needs.takes_whole(after, layer)
    };
    run.end.segment >= tail
        && live.clone().all(|(part, _)| in_use(part))
        && afters.zip(&run.layers).all(serves)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GroupId, SectorRange, TimelineId};

    const OWNER: Owner = Owner { group: GroupId(1), timeline: TimelineId(2) };

    fn link(number: u64, segment: u64) -> FrameLink {
        FrameLink {
            incarnation: IncarnationId(3),
            number: FrameNumber(number),
            sum: number * 31,
            segment: SegmentSequence(segment),
            last_lsn: Lsn(number * 10),
        }
    }

    /// A run of one layer over the frames `begin < number <= end`; segment file and sequence are the same number.
    fn run(begin: (u64, u64), end: (u64, u64)) -> LoadedRun {
        let location = Source::Zero { allocated: false };
        let map = FrozenMap::from_sorted(vec![Extent { range: SectorRange::new(0, 8), location }]);
        let layer = IndexedLayer {
            last: Lsn(end.0 * 10),
            oldest: SegmentSequence(begin.1),
            data_bytes: 0,
            maps: BTreeMap::from([(DiskSlot(0), Rc::new(map.expect("sorted")))]),
            marker: None,
        };
        let part = |sequence: u64| RunPart {
            index: u32::try_from(sequence).expect("small"),
            sequence: SegmentSequence(sequence),
            last_lsn: Lsn(end.0 * 10),
            payloads: 0,
            seal: None,
        };
        LoadedRun {
            path: PathBuf::new(),
            owner: OWNER,
            begin: link(begin.0, begin.1),
            end: link(end.0, end.1),
            parts: (begin.1..=end.1).map(|sequence| (part(sequence), ListedPayloads::default())).collect(),
            layers: vec![layer],
        }
    }

    fn uses() -> BTreeMap<SegmentIndex, SegmentSequence> {
        (1..10).map(|number| (SegmentIndex(number), SegmentSequence(number.into()))).collect()
    }

    fn needs(vaulted: u64, destaged: u64) -> Needs {
        Needs { vaulted: Lsn(vaulted), stored: BTreeMap::from([(DiskSlot(0), Lsn(destaged))]) }
    }

    fn found(runs: &[LoadedRun], tail: u64, needs: &Needs) -> Vec<Vec<usize>> {
        let jumps = jumps(runs, OWNER, &uses(), SegmentSequence(tail), needs);
        jumps.into_iter().map(|jump| jump.runs).collect()
    }

    #[test]
    fn runs_that_follow_one_another_are_one_jump_and_a_gap_makes_two() {
        let runs =
            [run((30, 4), (50, 6)), run((10, 2), (20, 3)), run((20, 3), (30, 4)), run((70, 7), (80, 8))];
        assert_eq!(found(&runs, 2, &needs(0, 0)), [vec![1, 2, 0], vec![3]]);
        assert_eq!(found(&runs[..2], 2, &needs(0, 0)), [vec![1], vec![0]]);
    }

    #[test]
    fn a_run_that_names_segments_used_otherwise_is_not_believed() {
        let mut stale = run((10, 2), (20, 3));
        stale.parts[1].0.index = 9;
        assert!(found(&[stale], 2, &needs(0, 0)).is_empty());
        let mut foreign = run((10, 2), (20, 3));
        foreign.owner.timeline = TimelineId(5);
        assert!(found(&[foreign], 2, &needs(0, 0)).is_empty());
    }

    #[test]
    fn what_lies_before_the_tail_must_be_needed_by_nobody() {
        let runs = [run((10, 2), (20, 3))];
        assert!(found(&runs, 3, &needs(0, 0)).is_empty());
        assert!(found(&runs, 3, &needs(200, 0)).is_empty());
        assert_eq!(found(&runs, 3, &needs(200, 200)), [vec![0]]);
        assert!(found(&runs, 4, &needs(200, 200)).is_empty(), "all of it lies before the tail");
    }

    #[test]
    fn a_layer_that_is_needed_in_part_is_read_from_its_frames() {
        let runs = [run((10, 2), (20, 3))];
        for (vaulted, destaged, usable) in
            [(100, 200, true), (200, 100, true), (150, 100, false), (100, 199, false), (300, 300, true)]
        {
            let found = found(&runs, 2, &needs(vaulted, destaged));
            assert_eq!(!found.is_empty(), usable, "vaulted {vaulted}, destaged {destaged}");
        }
    }

    #[test]
    fn names() {
        assert!(is_file_name(&file_name(FrameNumber(77))));
        assert!(is_partial_name("run-000000000000004d.partial"));
        for other in
            ["run-", "run-4d", "run-000000000000004g", "segment-00000000", "run-000000000000004d.new"]
        {
            assert!(!is_file_name(other) && !is_partial_name(other), "{other}");
        }
    }
}
