//! Opening a group: manifest, images, journal; then the layers and intervals that the journal still holds.
//!
//! A record above what its disk's image and side files hold belongs to the read path again; a record above the newest point belongs to an
//! interval again. The two are rebuilt apart, since images and vault may be at different places.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use futures::channel::mpsc;

use crate::error::{Error, Result};
use crate::format::frame::{Record, RecordKind};
use crate::format::marker::Marker;
use crate::format::record::{DiskRecord, GroupRecord};
use crate::image::Image;
use crate::image::mend::{Mend, mend};
use crate::image::side::{self, SideNames};
use crate::journal::cache::FrameCache;
use crate::journal::open::{JournalPlan, OpenedJournal};
use crate::journal::reader::Reader;
use crate::journal::recover::Known;
use crate::journal::scan::{Owner, Scanned};
use crate::journal::segments::{SegmentIndex, Source};
use crate::journal::writer::{Entry, Identity, Writer};
use crate::journal::{self};
use crate::planted::Planted;
use crate::protect::disk::Disk;
use crate::protect::group::{Group, GroupSettings, Mailbox, Parts};
use crate::protect::interval::{ClosedInterval, OpenInterval};
use crate::protect::layers::Layers;
use crate::protect::publisher;
use crate::runtime::Runtime;
use crate::units::{DiskSlot, GroupId, GroupNanos, IncarnationId, Lsn, TimelineId};
use crate::vault::Vault;

/// Where a group's files are, and its limits.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    /// Directory of its journal, images and test overlays.
    pub directory: PathBuf,
    /// Directory of its vault.
    pub vault: PathBuf,
    /// Size of new journal segments.
    pub segment_bytes: u64,
    /// Most bytes of all segments.
    pub journal_bytes: u64,
    /// Memory for recently written frames.
    pub cache_bytes_max: usize,
    /// A bug to plant; none but in the simulator.
    pub planted: Planted,
}

impl GroupPlan {
    /// Directory of the journal's segments.
    pub fn journal(&self) -> PathBuf {
        self.directory.join("journal")
    }

    /// Directory of the images.
    pub fn images(&self) -> PathBuf {
        self.directory.join("images")
    }

    /// Directory of the test failovers' overlays.
    pub fn tests(&self) -> PathBuf {
        self.directory.join("tests")
    }
}

/// Creates a group without disks; durable when this returns. Drive it until it [serves](Group::is_serving).
pub async fn create(
    runtime: Rc<Runtime>,
    plan: GroupPlan,
    group: GroupId,
    record: GroupRecord,
) -> Result<Group> {
    let vault = create_vault(&runtime, &plan, group, record).await?;
    open_over(runtime, plan, vault).await
}

/// Creates the vault of a group without disks; durable when this returns.
pub async fn create_vault(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    group: GroupId,
    record: GroupRecord,
) -> Result<Rc<Vault>> {
    record.check()?;
    let timeline = TimelineId(runtime.random_u128());
    let vault = Vault::create(runtime, &plan.vault, group, timeline, record).await?;
    Ok(Rc::new(vault.with_planted(plan.planted)))
}

/// Opens a group. Drive it until it [serves](Group::is_serving).
pub async fn open(runtime: Rc<Runtime>, plan: GroupPlan) -> Result<Group> {
    let vault = open_vault(&runtime, &plan).await?;
    open_over(runtime, plan, vault).await
}

/// Opens a group's vault alone: it gives its points, and serves views of them, whatever became of journal and images.
pub async fn open_vault(runtime: &Rc<Runtime>, plan: &GroupPlan) -> Result<Rc<Vault>> {
    let vault = Vault::open(runtime, &plan.vault).await?;
    Ok(Rc::new(vault.with_planted(plan.planted)))
}

/// Opens a group over its open vault, which stays as it is if that fails. Drive it until it
/// [serves](Group::is_serving).
pub async fn open_over(runtime: Rc<Runtime>, plan: GroupPlan, vault: Rc<Vault>) -> Result<Group> {
    for directory in [plan.journal(), plan.images(), plan.tests()] {
        runtime.create_directory(directory).await?;
    }
    runtime.sync_directory(&plan.directory).await?;
    if let Some(parent) = plan.directory.parent() {
        runtime.sync_directory(parent).await?;
    }
    let disks = open_disks(&runtime, &plan, &vault).await?;
    let (group, timeline, vaulted) = {
        let state = vault.manifest().state();
        let vaulted = state.points().last().map_or(Lsn::ZERO, |point| point.marker);
        (state.group(), state.timeline(), vaulted)
    };
    let stored = disks.values().map(Disk::stored).max().unwrap_or_default();
    let known = Known { owner: Owner { group, timeline }, floor: vaulted.max(stored) };
    let journal_plan = JournalPlan {
        directory: plan.journal(),
        segment_bytes: plan.segment_bytes,
        journal_bytes: plan.journal_bytes,
    };
    let began = runtime.now();
    let journal = journal::open::open(Rc::clone(&runtime), &journal_plan, known, plan.planted).await?;
    tracing::info!(
        %group,
        scanned_mib = journal.scanned_bytes >> 20,
        frames = journal.accepted.len(),
        ms = (runtime.now().0 - began.0) / 1_000_000,
        last = %journal.position.accepted,
        "the journal was opened"
    );
    let identity = Identity { group, timeline, incarnation: IncarnationId(runtime.random_u128()) };
    assemble(runtime, plan, vault, disks, journal, identity, vaulted).await
}

async fn open_disks(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    vault: &Vault,
) -> Result<BTreeMap<DiskSlot, Disk>> {
    let records: Vec<_> = vault.manifest().state().disks().cloned().collect();
    let names = side::list(runtime, &plan.images()).await?;
    let mut disks = BTreeMap::new();
    for record in records {
        disks.insert(record.slot, open_disk(runtime, plan, &names, record).await?);
    }
    let is_known = |id| disks.values().any(|disk| disk.record.id == id);
    names.clean(runtime, &plan.images(), is_known).await;
    Ok(disks)
}

/// Opens a disk, and has its image take what side files hold. One whose image still fails is latched from the start:
/// the other disks live on.
async fn open_disk(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    names: &SideNames,
    record: DiskRecord,
) -> Result<Disk> {
    let images = plan.images();
    let mut image = Image::open(runtime, &images, record.id, record.sectors).await?;
    let confirmed = image.confirm(runtime).await;
    let sides = names.open(runtime, &images, (record.id, record.sectors.0), image.destaged()).await?;
    let mut disk = Disk::new(record, image);
    let settled = match confirmed {
        Ok(()) if !sides.is_empty() => {
            let work =
                Mend { directory: images, image: disk.image.clone(), sides: sides.clone(), rest: None };
            mend(runtime, work).await.map(|image| disk.image = image)
        }
        other => other,
    };
    if let Err(error) = settled {
        tracing::error!(disk = %disk.record.name, %error, "the disk's image fails: the disk is latched");
        disk.latched = Some(error.kind());
        disk.sides = sides;
    }
    Ok(disk)
}

async fn assemble(
    runtime: Rc<Runtime>,
    plan: GroupPlan,
    vault: Rc<Vault>,
    disks: BTreeMap<DiskSlot, Disk>,
    journal: OpenedJournal,
    identity: Identity,
    vaulted: Lsn,
) -> Result<Group> {
    let cache = Rc::new(RefCell::new(FrameCache::new(plan.cache_bytes_max)));
    let reader = Reader::new(Rc::clone(&runtime), Rc::clone(&cache), &journal.segments, plan.planted);
    let mut rebuilt = Rebuilt::new(&disks, vaulted, journal.position.accepted);
    for (segment, scanned) in &journal.accepted {
        rebuilt.take_frame(*segment, scanned, &reader).await?;
    }
    let (layers, interval, intervals_waiting) = rebuilt.finish();
    let owner = runtime.new_owner();
    let planted = plan.planted;
    let mut writer = Writer::new(Rc::clone(&runtime), owner, identity, journal.position, planted);
    writer.enqueue_control(Entry::Opening(journal.opening), None);
    let mailbox = Mailbox::default();
    let (publisher, jobs) = mpsc::unbounded();
    runtime.spawn(publisher::run(Rc::clone(&runtime), Rc::clone(&vault), jobs, Rc::clone(&mailbox)));
    let (name, interval_ms, points, group_time) = {
        let state = vault.manifest().state();
        let record = state.record();
        let published = state.points().last().map(|point| (point.group_time, point.wall));
        let waiting = intervals_waiting.back().map(|interval: &ClosedInterval| &interval.marker);
        let last = waiting.map(|marker| (marker.group_time, marker.wall)).or(published);
        let time = group_time_now(last, &runtime);
        (record.name.clone(), record.interval_ms, state.points().to_vec(), time)
    };
    Ok(Group::from_parts(Parts {
        runtime,
        owner,
        identity,
        settings: GroupSettings { plan, vault },
        name,
        writer,
        segments: journal.segments,
        cache,
        disks,
        layers,
        interval,
        intervals_waiting,
        points,
        point_interval: Duration::from_millis(u64::from(interval_ms)),
        publisher,
        vaulted,
        group_time,
        mailbox,
    }))
}

/// Group time goes on where the newest marker left it, published or not, by as much as the wall clock moved since, if it
/// moved forward.
fn group_time_now(last: Option<(GroupNanos, crate::units::WallNanos)>, runtime: &Runtime) -> GroupNanos {
    let Some((group_time, wall)) = last else { return GroupNanos(0) };
    let passed = runtime.wall().0.saturating_sub(wall.0);
    GroupNanos(group_time.0 + u64::try_from(passed).unwrap_or(0))
}

/// Layers and intervals, as the accepted records make them again.
struct Rebuilt<'a> {
    disks: &'a BTreeMap<DiskSlot, Disk>,
    vaulted: Lsn,
    end: Lsn,
    layers: Layers,
    since_point: Layers,
    interval: OpenInterval,
    waiting: VecDeque<ClosedInterval>,
}

impl<'a> Rebuilt<'a> {
    fn new(disks: &'a BTreeMap<DiskSlot, Disk>, vaulted: Lsn, end: Lsn) -> Rebuilt<'a> {
        Rebuilt {
            disks,
            vaulted,
            end,
            layers: Layers::new(Lsn::ZERO),
            since_point: Layers::new(Lsn::ZERO),
            interval: OpenInterval::default(),
            waiting: VecDeque::new(),
        }
    }

    async fn take_frame(&mut self, segment: SegmentIndex, scanned: &Scanned, reader: &Reader) -> Result<()> {
        let frame = &scanned.frame;
        let base = frame.payload_base();
        for (index, record) in frame.records.iter().enumerate() {
            let lsn = frame.first_lsn.advance(index as u64);
            let sector = base + record.payload.sector;
            match record.kind {
                RecordKind::Write { disk, range } => {
                    let source = Source::Journal { segment, sector };
                    self.take_data(lsn, disk, range, source);
                }
                RecordKind::Zero { disk, range, allocated } => {
                    self.take_data(lsn, disk, range, Source::Zero { allocated });
                }
                RecordKind::Marker if lsn > self.vaulted => {
                    let marker = read_marker(segment, sector, record, reader).await?;
                    self.end_interval(lsn, marker, reader);
                }
                RecordKind::Marker | RecordKind::Opening | RecordKind::Seal => {}
            }
        }
        Ok(())
    }

    /// A disk that left has no image any more; but a point whose marker lies before that still holds it.
    fn take_data(&mut self, lsn: Lsn, slot: DiskSlot, range: crate::units::SectorRange, source: Source) {
        if self.disks.get(&slot).is_some_and(|disk| lsn > disk.stored()) {
            self.layers.insert(slot, range, source);
            if self.layers.is_full() {
                self.layers.freeze(lsn);
            }
        }
        if lsn > self.vaulted {
            self.since_point.insert(slot, range, source);
            self.interval.touch();
            if self.since_point.is_full() {
                self.freeze_interval(lsn);
            }
        }
    }

    fn freeze_interval(&mut self, lsn: Lsn) {
        if let Some(layer) = self.since_point.freeze(lsn) {
            self.interval.add(layer);
        }
    }

    fn end_interval(&mut self, lsn: Lsn, marker: Marker, reader: &Reader) {
        self.freeze_interval(lsn);
        self.waiting.push_back(self.interval.close(lsn, marker, reader.clone()));
    }

    fn finish(mut self) -> (Layers, OpenInterval, VecDeque<ClosedInterval>) {
        self.freeze_interval(self.end);
        self.layers.freeze(self.end);
        (self.layers, self.interval, self.waiting)
    }
}

async fn read_marker(segment: SegmentIndex, sector: u32, record: &Record, reader: &Reader) -> Result<Marker> {
    let body = reader.read(segment, sector, u64::from(record.payload.sectors)).await?;
    Marker::decode(&body).ok_or_else(|| Error::corrupt("a marker's payload is not a marker"))
}
