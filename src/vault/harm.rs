//! Which recovery points a verification's findings harm: those that show what was lost. Reads tables of deltas only, and only where
//! something was found.
//!
//! ```text
//!  base ─▶ delta 1 ─▶ delta 2 ─▶ delta 3 ─▶ delta 4        a point shows base and deltas up to its own, newest bytes winning
//!             ✗ sectors 8..16       8..12      12..16      harmed: points 1, 2 and 3
//! ```
//!
//! What cannot be told counts as harmed: a blob whose tables cannot be read harms all points from its own on, and hides nothing of
//! what lies beneath it. Invariant: the points that one finding harms are neighbours.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use super::Vault;
use super::state::State;
use super::verify::Finding;
use crate::counted::counted;
use crate::error::{ErrorKind, Result};
use crate::extent::Ranges;
use crate::format::delta::{Content, DeltaRef, DiskTable, Tables};
use crate::format::record::PointRecord;
use crate::units::{BlobId, DiskId, DiskSlot, Lsn, SectorRange};

/// Points that a text names; more are counted.
pub const POINTS_TOLD: usize = 3;

/// What of a vault's contents a finding takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// Nothing that a point shows.
    Nothing,
    /// The manifest, or part of it.
    Manifest,
    /// A blob, or what says where its chunks belong.
    Blob(BlobId),
    /// One chunk of a blob.
    Chunk(BlobId, u32),
    /// Sectors of a disk's base.
    Base(DiskId, SectorRange),
}

/// The points that a finding harms: neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harmed {
    /// The marker of the oldest one,
    pub first: Lsn,
    /// and of the newest one.
    pub last: Lsn,
    /// How many they are.
    pub count: usize,
    /// The oldest few.
    pub oldest: Vec<PointRecord>,
}

impl Harmed {
    fn new(points: &[PointRecord]) -> Option<Harmed> {
        let (first, last) = (points.first()?.marker, points.last()?.marker);
        let oldest = points.iter().take(POINTS_TOLD).cloned().collect();
        Some(Harmed { first, last, count: points.len(), oldest })
    }
}

impl fmt::Display for Harmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.count == 1 { "needs" } else { "need" };
        write!(f, "{} {verb} it: {}", counted(self.count, "recovery point"), named(&self.oldest, self.count))
    }
}

/// `ID of TIME, ID of TIME (label), and 27 more`: the first few of `count` points.
pub fn named(points: &[PointRecord], count: usize) -> String {
    let name = |point: &PointRecord| {
        let label = if point.label.is_empty() { String::new() } else { format!(" ({})", point.label) };
        format!("{} of {}{label}", point.id, point.wall)
    };
    let mut names: Vec<String> = points.iter().take(POINTS_TOLD).map(name).collect();
    if count > names.len() {
        names.push(format!("and {} more", count - names.len()));
    }
    names.join(", ")
}

/// Says of each finding which points it harms, and gives all that are harmed, oldest first. `read` is told of bytes before they
/// are read; its error ends it.
pub(super) async fn find(
    vault: &Vault,
    findings: &mut [Finding],
    read: impl AsyncFn(u64) -> Result<()>,
) -> Result<Vec<PointRecord>> {
    let state = vault.manifest().state().clone();
    let mut trails = Trails::new(&state, findings);
    let retired = state.base_advance().map_or(&[][..], |(_, retired)| retired);
    let retired = retired.iter().map(|delta| (None, Some(*delta)));
    let points = state.points().iter().enumerate().map(|(index, point)| (Some(index), point.delta));
    for (index, delta) in retired.chain(points) {
        if trails.are_over() {
            break;
        }
        if let Some(delta) = delta.filter(|delta| trails.want(delta.blob)) {
            let marker = index.map_or(Lsn::ZERO, |index| state.points()[index].marker);
            read(delta.tables_bytes).await?;
            let tables = tables(vault, marker, delta).await?;
            trails.pass(delta.blob, tables.as_ref());
        }
        if let Some(index) = index {
            trails.show(index, &state.points()[index]);
        }
    }
    Ok(trails.finish(&state, findings))
}

/// The tables of a delta; none where they cannot be read, or were merged into another's meanwhile.
async fn tables(vault: &Vault, marker: Lsn, delta: DeltaRef) -> Result<Option<Tables>> {
    if !vault.manifest().state().names_blob(delta.blob) {
        return Ok(None);
    }
    let _lease = vault.leases().take(marker, vec![delta.blob]);
    match vault.open_delta(&delta).await {
        Ok(reader) => Ok(Some(reader.into_tables())),
        Err(error) if error.kind() == ErrorKind::Shutdown => Err(error),
        Err(_) => Ok(None),
    }
}

/// What of a finding later points still show.
enum Left {
    /// All there is, whatever is written later.
    All,
    Sectors(BTreeMap<DiskSlot, Ranges>),
}

/// A finding on its way through the points.
struct Trail {
    finding: usize,
    left: Left,
    /// The first and last of the points that show it, by their places.
    shown: Option<(usize, usize)>,
}

#[derive(Default)]
struct Trails {
    /// Those that begin with a blob, and of which chunk.
    pending: HashMap<BlobId, Vec<(usize, Option<u32>)>>,
    open: Vec<Trail>,
    ended: Vec<Trail>,
}

impl Trails {
    fn new(state: &State, findings: &[Finding]) -> Trails {
        let mut trails = Trails::default();
        for (finding, found) in findings.iter().enumerate() {
            match found.lost {
                Lost::Nothing => {}
                Lost::Manifest => trails.begin(finding, Left::All),
                Lost::Blob(blob) => trails.pending.entry(blob).or_default().push((finding, None)),
                Lost::Chunk(blob, chunk) => {
                    trails.pending.entry(blob).or_default().push((finding, Some(chunk)));
                }
                Lost::Base(disk, range) => {
                    let slot = state.all_disks().iter().find(|known| known.record.id == disk);
                    let left = slot.map(|known| (known.record.slot, Ranges::of([range])));
                    trails.begin(finding, Left::Sectors(left.into_iter().collect()));
                }
            }
        }
        trails
    }

    fn begin(&mut self, finding: usize, left: Left) {
        self.open.push(Trail { finding, left, shown: None });
    }

    fn are_over(&self) -> bool {
        self.pending.is_empty() && self.open.is_empty()
    }

    /// Whether a blob's tables say anything of what is looked for.
    fn want(&self, blob: BlobId) -> bool {
        let is_open = |trail: &Trail| matches!(trail.left, Left::Sectors(_));
        self.pending.contains_key(&blob) || self.open.iter().any(is_open)
    }

    /// The next delta: it hides what lies beneath it, and what is lost of it begins here.
    fn pass(&mut self, blob: BlobId, tables: Option<&Tables>) {
        for (trail, table) in
            self.open.iter_mut().flat_map(|trail| tables.map(|tables| (trail, &tables.disks)))
        {
            trail.hide(table);
        }
        let begun = self.pending.remove(&blob).unwrap_or_default();
        let chunks: BTreeSet<u32> = begun.iter().filter_map(|(_, chunk)| *chunk).collect();
        let mut sectors = tables.map(|tables| sectors_of(tables, &chunks)).unwrap_or_default();
        for (finding, chunk) in begun {
            let left = chunk.and_then(|chunk| sectors.remove(&chunk)).map_or(Left::All, Left::Sectors);
            self.begin(finding, left);
        }
    }

    /// The next point: it shows what was not hidden.
    fn show(&mut self, index: usize, point: &PointRecord) {
        for trail in &mut self.open {
            trail.cut(point);
            if trail.is_shown(point) {
                let first = trail.shown.map_or(index, |(first, _)| first);
                trail.shown = Some((first, index));
            }
        }
        let is_hidden = |trail: &mut Trail| match &trail.left {
            Left::All => false,
            Left::Sectors(left) => left.is_empty(),
        };
        self.ended.extend(self.open.extract_if(.., is_hidden));
    }

    fn finish(self, state: &State, findings: &mut [Finding]) -> Vec<PointRecord> {
        let mut harmed = BTreeSet::new();
        for trail in self.open.iter().chain(&self.ended) {
            let Some((first, last)) = trail.shown else { continue };
            findings[trail.finding].harmed = Harmed::new(&state.points()[first..=last]);
            harmed.extend(first..=last);
        }
        harmed.into_iter().map(|index| state.points()[index].clone()).collect()
    }
}

impl Trail {
    fn hide(&mut self, tables: &[DiskTable]) {
        let Left::Sectors(left) = &mut self.left else { return };
        for table in tables {
            if let Some(ranges) = left.get_mut(&table.slot) {
                let end = ranges.as_slice().last().map_or(0, |range| range.end);
                let start = ranges.as_slice().first().map_or(0, |range| range.start);
                let from = table.extents.partition_point(|extent| extent.range.end <= start);
                let extents = table.extents[from..].iter().map(|extent| extent.range);
                *ranges = ranges.without(extents.take_while(|range| range.start < end));
            }
        }
        left.retain(|_, ranges| !ranges.is_empty());
    }

    /// What lies beyond a disk's end is gone for good: a disk that grows again shows zeros there.
    fn cut(&mut self, point: &PointRecord) {
        let Left::Sectors(left) = &mut self.left else { return };
        for member in point.disks.iter() {
            if let Some(ranges) = left.get_mut(&member.slot) {
                *ranges = ranges.without([SectorRange::new(member.sectors.0, u64::MAX)]);
            }
        }
        left.retain(|_, ranges| !ranges.is_empty());
    }

    fn is_shown(&self, point: &PointRecord) -> bool {
        match &self.left {
            Left::All => true,
            Left::Sectors(left) => point.disks.iter().any(|member| left.contains_key(&member.slot)),
        }
    }
}

/// The sectors that each of some chunks holds.
fn sectors_of(tables: &Tables, chunks: &BTreeSet<u32>) -> HashMap<u32, BTreeMap<DiskSlot, Ranges>> {
    let mut ranges: HashMap<u32, BTreeMap<DiskSlot, Vec<SectorRange>>> = HashMap::new();
    for table in tables.disks.iter().filter(|_| !chunks.is_empty()) {
        for extent in &table.extents {
            if let Content::Data { chunk, .. } = extent.content
                && chunks.contains(&chunk)
            {
                let disks = ranges.entry(chunk).or_default();
                disks.entry(table.slot).or_default().push(extent.range);
            }
        }
    }
    let sets = |disks: BTreeMap<DiskSlot, Vec<SectorRange>>| {
        disks.into_iter().map(|(slot, ranges)| (slot, Ranges::of(ranges))).collect()
    };
    ranges.into_iter().map(|(chunk, disks)| (chunk, sets(disks))).collect()
}
