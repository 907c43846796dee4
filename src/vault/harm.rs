//! Which recovery points a verification's findings harm: those that show what was lost. Reads tables of deltas only, and only where
//! something was found.
//!
//! ```text
//!  base ─▶ delta 1 ─▶ delta 2 ─▶ delta 3 ─▶ delta 4        a point shows base and deltas up to its own, newest bytes winning
//!             ✗ sectors 8..16       8..12      12..16      harmed: points 1, 2 and 3
//! ```
//!
//! What cannot be told counts as harmed: a blob whose tables cannot be read may have held any sector, and hides nothing of what lies
//! beneath it. It harms all points from its own on, for none of them can be opened while it is named; those after which every sector
//! was written anew need nothing of it. Likewise a base that cannot be opened harms all points with its disk. Invariant: the points that one finding harms are neighbours.

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

/// What findings mean for the points, by their places.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Harm {
    /// Those that show what was lost, or cannot be opened for it.
    pub(super) harmed: BTreeSet<usize>,
    /// Those that have to go, so that nothing needs what was lost: the harmed ones, but for those in which every sector was written
    /// anew after a blob whose tables are lost.
    pub(super) needing: BTreeSet<usize>,
    /// What of the lost sectors the newest point shows.
    pub(super) newest: BTreeMap<DiskSlot, Ranges>,
}

/// Says of each finding which points it harms, and gives all that are harmed, oldest first. `read` is told of bytes before they
/// are read; its error ends it.
pub(super) async fn find(
    vault: &Vault,
    findings: &mut [Finding],
    read: impl AsyncFn(u64) -> Result<()>,
) -> Result<Vec<PointRecord>> {
    let state = vault.manifest().state().clone();
    let harm = look(vault, &state, findings, read).await?;
    Ok(harm.harmed.iter().map(|&index| state.points()[index].clone()).collect())
}

/// The same as of `state`, with what there is to say besides.
pub(super) async fn look(
    vault: &Vault,
    state: &State,
    findings: &mut [Finding],
    read: impl AsyncFn(u64) -> Result<()>,
) -> Result<Harm> {
    let mut trails = Trails::new(state, findings);
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
            trails.pass(state, delta.blob, tables.as_ref());
        }
        if let Some(index) = index {
            trails.show(index, &state.points()[index]);
        }
    }
    Ok(trails.finish(state, findings))
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
    /// Those of a blob that nobody can open, nor any point from its own on.
    Unopened(BTreeMap<DiskSlot, Ranges>),
    /// Those of a base that nobody can open, nor any point with its disk.
    Baseless(DiskSlot, BTreeMap<DiskSlot, Ranges>),
    Sectors(BTreeMap<DiskSlot, Ranges>),
}

impl Left {
    fn sectors(&mut self) -> Option<&mut BTreeMap<DiskSlot, Ranges>> {
        match self {
            Left::All => None,
            Left::Unopened(left) | Left::Baseless(_, left) | Left::Sectors(left) => Some(left),
        }
    }
}

/// A finding on its way through the points.
struct Trail {
    finding: usize,
    left: Left,
    /// The first and last of the points that it harms, by their places,
    shown: Option<(usize, usize)>,
    /// and of those that need what is lost.
    needed: Option<(usize, usize)>,
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
                    let known = state.all_disks().iter().find(|known| known.record.id == disk);
                    let Some(slot) = known.map(|known| known.record.slot) else { continue };
                    let left = BTreeMap::from([(slot, Ranges::of([range]))]);
                    let is_whole = range == SectorRange::new(0, u64::MAX);
                    let left = if is_whole { Left::Baseless(slot, left) } else { Left::Sectors(left) };
                    trails.begin(finding, left);
                }
            }
        }
        trails
    }

    fn begin(&mut self, finding: usize, left: Left) {
        self.open.push(Trail { finding, left, shown: None, needed: None });
    }

    fn are_over(&self) -> bool {
        self.pending.is_empty() && self.open.is_empty()
    }

    /// Whether a blob's tables say anything of what is looked for.
    fn want(&self, blob: BlobId) -> bool {
        let is_open = |trail: &Trail| !matches!(trail.left, Left::All);
        self.pending.contains_key(&blob) || self.open.iter().any(is_open)
    }

    /// The next delta: it hides what lies beneath it, and what is lost of it begins here.
    fn pass(&mut self, state: &State, blob: BlobId, tables: Option<&Tables>) {
        for (trail, table) in
            self.open.iter_mut().flat_map(|trail| tables.map(|tables| (trail, &tables.disks)))
        {
            trail.hide(table);
        }
        let begun = self.pending.remove(&blob).unwrap_or_default();
        let chunks: BTreeSet<u32> = begun.iter().filter_map(|(_, chunk)| *chunk).collect();
        let mut sectors = tables.map(|tables| sectors_of(tables, &chunks)).unwrap_or_default();
        for (finding, chunk) in begun {
            let known = chunk.and_then(|chunk| sectors.remove(&chunk));
            self.begin(finding, known.map_or_else(|| Left::Unopened(all_sectors(state)), Left::Sectors));
        }
    }

    /// The next point: it shows what was not hidden.
    fn show(&mut self, index: usize, point: &PointRecord) {
        for trail in &mut self.open {
            trail.cut(point);
            let until =
                |begun: Option<(usize, usize)>| Some((begun.map_or(index, |(first, _)| first), index));
            if trail.is_shown(point) {
                trail.shown = until(trail.shown);
            }
            if trail.is_needed(point) {
                trail.needed = until(trail.needed);
            }
        }
        let is_hidden = |trail: &mut Trail| matches!(&trail.left, Left::Sectors(left) if left.is_empty());
        self.ended.extend(self.open.extract_if(.., is_hidden));
    }

    fn finish(self, state: &State, findings: &mut [Finding]) -> Harm {
        let mut harm = Harm::default();
        for trail in self.open.iter().chain(&self.ended) {
            harm.needing.extend(trail.needed.iter().flat_map(|&(first, last)| first..=last));
            let Some((first, last)) = trail.shown else { continue };
            findings[trail.finding].harmed = Harmed::new(&state.points()[first..=last]);
            harm.harmed.extend(first..=last);
        }
        let disks = state.points().last().map_or(&[][..], |newest| &newest.disks);
        for mut trail in self.open {
            for (slot, ranges) in trail.left.sectors().map(std::mem::take).unwrap_or_default() {
                if disks.iter().any(|disk| disk.slot == slot) {
                    let shown = harm.newest.entry(slot).or_default();
                    *shown = std::mem::take(shown).union(ranges.as_slice().iter().copied());
                }
            }
        }
        harm
    }
}

impl Trail {
    fn hide(&mut self, tables: &[DiskTable]) {
        let Some(left) = self.left.sectors() else { return };
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
        let Some(left) = self.left.sectors() else { return };
        for member in point.disks.iter() {
            if let Some(ranges) = left.get_mut(&member.slot) {
                *ranges = ranges.without([SectorRange::new(member.sectors.0, u64::MAX)]);
            }
        }
        left.retain(|_, ranges| !ranges.is_empty());
    }

    fn is_shown(&self, point: &PointRecord) -> bool {
        match &self.left {
            Left::All | Left::Unopened(_) => true,
            Left::Baseless(slot, _) => point.disks.iter().any(|member| member.slot == *slot),
            Left::Sectors(_) => self.is_needed(point),
        }
    }

    fn is_needed(&self, point: &PointRecord) -> bool {
        match &self.left {
            Left::All => true,
            Left::Unopened(left) | Left::Baseless(_, left) | Left::Sectors(left) => {
                point.disks.iter().any(|member| left.contains_key(&member.slot))
            }
        }
    }
}

/// What a blob may have held of which nothing can be read.
fn all_sectors(state: &State) -> BTreeMap<DiskSlot, Ranges> {
    let all = || Ranges::of([SectorRange::new(0, u64::MAX)]);
    state.all_disks().iter().map(|disk| (disk.record.slot, all())).collect()
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
