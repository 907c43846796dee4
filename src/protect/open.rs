//! Opening a group: manifest, images, journal; then the layers and intervals that the journal still holds.
//!
//! A record above what its disk's image and side files hold belongs to the read path again; a record above the newest point belongs to an
//! interval again. The two are rebuilt apart, since images and vault may be at different places.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc;

use crate::error::{Error, Result};
use crate::format::frame::{Record, RecordKind};
use crate::format::marker::Marker;
use crate::format::record::{DiskRecord, GroupRecord};
use crate::image::attach::{Attached, attach};
use crate::image::mend::{Mend, mend};
use crate::image::pace::Pace;
use crate::image::pieces::SharedPieces;
use crate::image::side::{self, SideNames, Sides, lost, refusal};
use crate::journal::boot;
use crate::journal::cache::{FrameCache, SharedFrames};
use crate::journal::keys::{FrameKey, JournalKeys};
use crate::journal::open::{JournalPlan, OpenedJournal, Recovered};
use crate::journal::reader::Reader;
use crate::journal::recover::Known;
use crate::journal::runs::{self, CoveredFrame, IndexedLayer, LoadedRun, Needs};
use crate::journal::scan::{Owner, Scanned};
use crate::journal::segments::{SegmentIndex, Source};
use crate::journal::writer::{Entry, Identity, Writer};
use crate::journal::{self};
use crate::planted::{Bug, Planted};
use crate::protect::adopt;
use crate::protect::clock::GroupClock;
use crate::protect::disk::Disk;
use crate::protect::group::{Group, GroupSettings, Parts};
use crate::protect::indexing::Indexing;
use crate::protect::interval::{ClosedInterval, OpenInterval};
use crate::protect::layers::{Layer, Layers};
use crate::protect::mailbox::Mailbox;
use crate::protect::map_limit::layer_extents_max;
use crate::protect::publisher;
use crate::protect::retention::{self, Retention};
use crate::protect::shrinking::SpaceLimits;
use crate::protect::summing::Summing;
use crate::protect::tasks::Tasks;
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, SiteKeys};
use crate::space_gate::SpaceGates;
use crate::units::{DiskSlot, GroupId, Lsn, TimelineId};
use crate::vault::{Moment, Vault};

/// A layer is frozen when its records carry one part in this many of the journal, so that there are several to let go of.
const LAYERS_IN_JOURNAL: u64 = 8;

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
    /// What those of all groups may take together.
    pub shared_frames: Arc<SharedFrames>,
    /// The same of what destage keeps in memory.
    pub shared_pieces: Arc<SharedPieces>,
    /// Memory for extent maps and payload tables, beyond which writes wait. At least [`MAP_BYTES_MIN`] to be of use.
    pub map_bytes_max: usize,
    /// Journal bytes that an index run stands for, at least.
    pub index_bytes_min: u64,
    /// Neighbouring deltas, or summaries of them, that one summary is made of.
    pub fan_out: usize,
    /// Bytes that a base takes up at a time on its way to a point; as it fits, if nothing is said.
    pub piece_bytes: Option<u64>,
    /// What its vault may take.
    pub space: SpaceLimits,
    /// Who may take what is left of file systems, of all groups.
    pub gates: Arc<SpaceGates>,
    /// The keys that unwrap the group's.
    pub site_keys: SiteKeys,
    /// How images of before there were sums get theirs.
    pub summing: Summing,
    /// Whether the group is sealed when it is created.
    pub seals: bool,
    /// Whether it is accepted that the journal lacks records which were acknowledged, but not durable. For one opening.
    pub accepts_loss: bool,
    /// A bug to plant; none but in the simulator.
    pub planted: Planted,
}

/// Below this, maps are frozen and destaged so often that little is coalesced.
pub const MAP_BYTES_MIN: usize = 1 << 20;
/// Less is read from the journal as fast as from an index run.
pub const INDEX_BYTES_MIN: u64 = 64 << 20;
/// Small journals may be many: of one of them a run stands for one part in so many at least.
const INDEX_PART: u64 = 16;

/// Journal bytes that an index run stands for, at least, where all of the journal has so many.
pub fn index_bytes_min(journal_bytes: u64) -> u64 {
    INDEX_BYTES_MIN.min(journal_bytes / INDEX_PART)
}

/// Where a group's journal, images and overlays are in its directory.
pub const JOURNAL: &str = "journal";
/// See [`JOURNAL`].
pub const IMAGES: &str = "images";
/// See [`JOURNAL`].
pub const TESTS: &str = "tests";

impl GroupPlan {
    /// Directory of the journal's segments.
    pub fn journal(&self) -> PathBuf {
        self.directory.join(JOURNAL)
    }

    /// Directory of the images.
    pub fn images(&self) -> PathBuf {
        self.directory.join(IMAGES)
    }

    /// Directory of the test failovers' overlays.
    pub fn tests(&self) -> PathBuf {
        self.directory.join(TESTS)
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
    let seal_with = plan.seals.then_some(&plan.site_keys);
    let vault = Vault::create(runtime, &plan.vault, group, timeline, record, seal_with).await?;
    Ok(set_up(vault, plan))
}

fn set_up(vault: Vault, plan: &GroupPlan) -> Rc<Vault> {
    let vault = vault.with_planted(plan.planted).with_fan_out(plan.fan_out);
    vault.reserve().guard(Arc::clone(&plan.gates));
    Rc::new(match plan.piece_bytes {
        Some(bytes) => vault.with_pieces(bytes),
        None => vault,
    })
}

/// Opens a group. Drive it until it [serves](Group::is_serving).
pub async fn open(runtime: Rc<Runtime>, plan: GroupPlan) -> Result<Group> {
    let vault = open_vault(&runtime, &plan).await?;
    open_over(runtime, plan, vault).await
}

/// Opens a group's vault alone: it gives its points, and serves views of them, whatever became of journal and images.
pub async fn open_vault(runtime: &Rc<Runtime>, plan: &GroupPlan) -> Result<Rc<Vault>> {
    adopt::refuse_uncopied(runtime, plan).await?;
    let vault = Vault::open(runtime, &plan.vault, &plan.site_keys).await?;
    Ok(set_up(vault, plan))
}

/// Opens a group again over the vault that it had. What the group before was about to append may be there or not, so the
/// manifest is read again; one that was in doubt no longer is.
pub async fn reopen_over(runtime: Rc<Runtime>, plan: GroupPlan, vault: Rc<Vault>) -> Result<Group> {
    vault.manifest().reload().await?;
    open_over(runtime, plan, vault).await
}

/// Opens a group over its open vault, which stays as it is if that fails. Drive it until it
/// [serves](Group::is_serving).
pub async fn open_over(runtime: Rc<Runtime>, plan: GroupPlan, vault: Rc<Vault>) -> Result<Group> {
    adopt::refuse_undone(&runtime, &plan).await?;
    for directory in [plan.journal(), plan.images(), plan.tests()] {
        runtime.create_directory(directory).await?;
    }
    runtime.sync_directory(&plan.directory).await?;
    if let Some(parent) = plan.directory.parent() {
        runtime.sync_directory(parent).await?;
    }
    let disks = open_disks(&runtime, &plan, &vault).await?;
    let (owner, begin, vaulted, keeps_points) = {
        let state = vault.manifest().state();
        let vaulted = state.points().last().map_or(Lsn::ZERO, |point| point.marker);
        let owner = Owner { group: state.group(), timeline: state.timeline() };
        (owner, state.begin(), vaulted, state.record().keeps_points())
    };
    let Owner { group, timeline } = owner;
    let mut disks = disks;
    let stored: BTreeMap<_, _> = disks.iter().map(|(&slot, disk)| (slot, disk.stored())).collect();
    let floor = vaulted.max(stored.values().copied().max().unwrap_or_default());
    // What was there when the timeline began says nothing of this journal.
    let floor = if floor > begin { floor } else { Lsn::ZERO };
    let boot = runtime.boot();
    let known = Known { owner, floor, begin, vaulted, boot, accepts_loss: plan.accepts_loss };
    // No point needs anything of a journal whose group has none.
    let needs = Needs { vaulted: if keeps_points { vaulted } else { Lsn(u64::MAX) }, stored };
    let journal_plan = JournalPlan {
        directory: plan.journal(),
        segment_bytes: plan.segment_bytes,
        journal_bytes: plan.journal_bytes,
    };
    let keys = JournalKeys::new(vault.keys().clone());
    let began = runtime.now();
    let journal =
        journal::open::open(Rc::clone(&runtime), &journal_plan, known, &needs, &keys, plan.planted).await?;
    tracing::info!(
        %group,
        scanned_mib = journal.scanned_bytes >> 20,
        pieces = journal.accepted.len(),
        ms = (runtime.now().0 - began.0) / 1_000_000,
        last = %journal.position.accepted,
        "the journal was opened"
    );
    // What the journal let go of is in images and side files, whether or not these can be had.
    let begin = journal.accepted.first().map_or(begin, Recovered::after);
    for disk in disks.values_mut().filter(|disk| disk.image.is_none()) {
        disk.stored_before = disk.stored_before.max(begin);
    }
    let identity = Identity { group, timeline, incarnation: boot::begin(runtime.random_u128(), boot) };
    assemble(runtime, plan, vault, disks, journal, identity, &needs).await
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
        disks.insert(record.slot, open_disk(runtime, plan, &names, record, vault.keys()).await);
    }
    let is_known = |id| disks.values().any(|disk| disk.record.id == id);
    names.clean(runtime, &plan.images(), is_known).await;
    Ok(disks)
}

/// Opens a disk, and has its image take what side files hold. One whose image still fails is latched from the start, and
/// one whose files cannot be had is detached: the other disks live on.
async fn open_disk(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    names: &SideNames,
    record: DiskRecord,
    keys: &GroupKeys,
) -> Disk {
    let images = plan.images();
    let what = (record.id, record.sectors);
    let sides = names.open(runtime, &images, record.id, keys).await;
    let (mut image, Sides { files: sides, last, .. }) = match attach(runtime, &images, what, sides).await {
        Attached::Whole(image, sides) => (*image, sides),
        Attached::Broken { error, stored, last_side } => {
            tracing::error!(disk = %record.name, %error, "the disk's files cannot be had: the disk is latched");
            return Disk::detached(record, stored, last_side, &error);
        }
    };
    let lost = refusal(&lost(&sides), &record.name, &plan.journal());
    let settled = match image.confirm(runtime).await {
        Ok(()) if lost.is_some() => lost.map_or(Ok(()), Err),
        Ok(()) if !sides.is_empty() => {
            let (taking, sectors) = (image.clone(), record.sectors);
            let work = Mend { directory: images, image: taking, sectors, sides: sides.clone(), rest: None };
            mend(runtime, work).await.map(|mended| image = mended)
        }
        other => other,
    };
    let mut disk = Disk::new(record, image);
    disk.last_side = last;
    if let Err(error) = settled {
        tracing::error!(disk = %disk.record.name, %error, "the disk's image cannot be mended: the disk is latched");
        disk.latch(&error);
        disk.sides = sides;
    }
    disk
}

async fn assemble(
    runtime: Rc<Runtime>,
    plan: GroupPlan,
    vault: Rc<Vault>,
    disks: BTreeMap<DiskSlot, Disk>,
    journal: OpenedJournal,
    identity: Identity,
    needs: &Needs,
) -> Result<Group> {
    let cache = Rc::new(RefCell::new(FrameCache::new(plan.cache_bytes_max, Arc::clone(&plan.shared_frames))));
    let reader = Reader::new(Rc::clone(&runtime), Rc::clone(&cache), &journal.segments, plan.planted);
    let is_forgotten = plan.planted.is(Bug::DetachedForgotten);
    let detached = disks.values().filter(|disk| disk.image.is_none()).map(|disk| disk.record.slot);
    let mut rebuilt = Rebuilt::new(
        needs,
        (detached.collect(), is_forgotten),
        &reader,
        Indexing::new(plan.index_bytes_min),
        layers(&plan),
    );
    for piece in journal.accepted {
        match piece {
            Recovered::Frame(segment, scanned) => rebuilt.take_frame(segment, &scanned).await?,
            Recovered::Run(run) => rebuilt.take_run(run),
        }
    }
    let (layers, indexing, interval, intervals_waiting) = rebuilt.finish();
    let owner = runtime.new_owner();
    let planted = plan.planted;
    let accepted = journal.position.accepted;
    let key = FrameKey::begin(vault.keys(), identity.incarnation);
    let mut writer = Writer::new(Rc::clone(&runtime), owner, identity, journal.position, key, planted);
    writer.enqueue_control(Entry::Opening(journal.opening), None);
    let mailbox = Mailbox::default();
    let (publisher, jobs) = mpsc::unbounded();
    let tasks = Tasks::new(&runtime);
    let (space, results) = (plan.space, Rc::clone(&mailbox));
    tasks.spawn(publisher::run(Rc::clone(&runtime), Rc::clone(&vault), space, jobs, results));
    let (record, points, clock) = {
        let state = vault.manifest().state();
        let record = state.record();
        let published = || state.points().last().map(Moment::of);
        let newest = intervals_waiting.back().map(ClosedInterval::moment).or_else(published);
        let known = state.points().iter().map(Moment::of);
        let clock = GroupClock::take_up(newest, known, writer.first(), &runtime, planted);
        (record.clone(), state.points().to_vec(), clock)
    };
    let vaulted = points.last().map_or(Lsn::ZERO, |point| point.marker);
    let interval = if record.keeps_points() { interval } else { OpenInterval::never() };
    let pace = Rc::new(Pace::new(plan.gates.of(None), Arc::clone(&plan.shared_pieces)));
    let (retention, retention_jobs) =
        start_retention(&tasks, &runtime, &vault, &mailbox, clock, &plan, &pace);
    vault.reserve().take_up().await;
    let images = disks.iter().filter_map(|(&slot, disk)| Some((slot, disk.image.clone()?)));
    let images: Vec<_> = images.collect();
    let journal_directory = plan.journal();
    let mut group = Group::from_parts(Parts {
        runtime,
        tasks,
        owner,
        identity,
        settings: GroupSettings { plan, vault },
        pace,
        name: record.name,
        writer,
        accepted,
        segments: journal.segments,
        cache,
        disks,
        layers,
        indexing,
        interval,
        intervals_waiting,
        points,
        point_interval: Duration::from_millis(u64::from(record.interval_ms)),
        publisher,
        retention,
        retention_jobs,
        vaulted,
        clock,
        mailbox,
    });
    images.iter().for_each(|(slot, image)| group.tell_of_rot(*slot, image));
    if let Some(broken) = journal.broken {
        group.tell_of_break(broken, (&journal_directory, accepted));
    }
    Ok(group)
}

/// Starts the group's retention; gives what it shares with the group, and the way to ask it.
fn start_retention(
    tasks: &Tasks,
    runtime: &Rc<Runtime>,
    vault: &Rc<Vault>,
    mailbox: &Mailbox,
    clock: GroupClock,
    plan: &GroupPlan,
    pace: &Rc<Pace>,
) -> (Rc<retention::Shared>, mpsc::UnboundedSender<retention::Job>) {
    let (sender, jobs) = mpsc::unbounded();
    let shared = Rc::new(retention::Shared::default());
    let (runtime, vault, mailbox) = (Rc::clone(runtime), Rc::clone(vault), Rc::clone(mailbox));
    let task = Retention::new(Rc::clone(&runtime), vault, Rc::clone(&shared), mailbox, clock, plan, pace);
    tasks.spawn(task.run(jobs));
    (shared, sender)
}

/// No layers yet, of such a length that journal and maps hold several.
fn layers(plan: &GroupPlan) -> Layers {
    let none = Layers::new(Lsn::ZERO);
    none.with_extents_max(layer_extents_max(plan.map_bytes_max))
        .with_bytes_max(plan.journal_bytes / LAYERS_IN_JOURNAL)
}

/// Layers and intervals, as the accepted records make them again.
///
/// One set of maps is made for both: a layer ends wherever image or vault say that they have everything up to there, so
/// that it belongs to the read path of a disk, and to an interval, as a whole or not at all.
struct Rebuilt<'a> {
    needs: &'a Needs,
    detached: BTreeSet<DiskSlot>,
    /// A bug to plant.
    forgets: bool,
    reader: &'a Reader,
    /// Where layers must end, the next one first.
    boundaries: VecDeque<Lsn>,
    open: Layers,
    /// The last record that was taken.
    last: Lsn,
    layers: Layers,
    indexing: Indexing,
    interval: OpenInterval,
    waiting: VecDeque<ClosedInterval>,
}

impl<'a> Rebuilt<'a> {
    fn new(
        needs: &'a Needs,
        (detached, forgets): (BTreeSet<DiskSlot>, bool),
        reader: &'a Reader,
        indexing: Indexing,
        layers: Layers,
    ) -> Rebuilt<'a> {
        Rebuilt {
            needs,
            detached,
            forgets,
            reader,
            boundaries: needs.boundaries().into(),
            open: layers.sibling(),
            last: Lsn::ZERO,
            layers,
            indexing,
            interval: OpenInterval::default(),
            waiting: VecDeque::new(),
        }
    }

    fn take_run(&mut self, run: LoadedRun) {
        self.freeze(self.last, None);
        self.indexing.adopt(&run);
        for IndexedLayer { last, data_bytes, maps, marker, .. } in run.layers {
            let first = std::mem::replace(&mut self.last, last).next();
            self.pass(self.layers.make((first, last), maps, data_bytes));
            if let Some(marker) = marker {
                self.end_interval(last, marker);
            }
        }
        self.last = run.end.last_lsn;
    }

    async fn take_frame(&mut self, segment: SegmentIndex, scanned: &Scanned) -> Result<()> {
        let frame = &scanned.frame;
        let base = frame.payload_base();
        self.indexing.begin(runs::before(frame));
        self.indexing.add(CoveredFrame::new(segment, frame, scanned.sum));
        for (index, record) in frame.records.iter().enumerate() {
            let lsn = frame.first_lsn.advance(index as u64);
            self.end_at_boundary(lsn);
            self.last = lsn;
            let sector = base + record.payload.sector;
            match record.kind {
                RecordKind::Write { disk, range } => {
                    self.open.insert(disk, range, Source::Journal { segment, sector });
                }
                RecordKind::Zero { disk, range, allocated } => {
                    self.open.insert(disk, range, Source::Zero { allocated });
                }
                RecordKind::Marker => {
                    let marker = read_marker(segment, sector, record, self.reader).await?;
                    self.freeze(lsn, Some(&marker));
                    self.end_interval(lsn, marker);
                }
                RecordKind::Opening | RecordKind::Seal => {}
            }
        }
        if self.open.is_full() {
            self.freeze(self.last, None);
        }
        Ok(())
    }

    /// Ends the layer before record `lsn` if image or vault have just what comes before.
    fn end_at_boundary(&mut self, lsn: Lsn) {
        while self.boundaries.pop_front_if(|boundary| *boundary < lsn).is_some() {
            self.freeze(self.last, None);
        }
    }

    fn freeze(&mut self, last: Lsn, marker: Option<&Marker>) {
        let layer = self.open.freeze(last);
        if let Some(layer) = &layer {
            self.pass(Rc::clone(layer));
        }
        self.indexing.freeze(last, layer, marker);
    }

    /// Hands a layer to who needs it. A disk that left has no image any more; but a point whose marker lies before that
    /// still holds it.
    fn pass(&mut self, layer: Rc<Layer>) {
        let lacks = |slot: &DiskSlot| self.needs.stored.get(slot).is_some_and(|&has| has < layer.last);
        let is_detached = |slot: &DiskSlot| self.detached.contains(slot);
        if let Some(held) = layer.of(|slot| lacks(slot) && is_detached(slot)).filter(|_| !self.forgets) {
            self.layers.hold(held);
        }
        if let Some(missing) = layer.of(|slot| lacks(slot) && !is_detached(slot)) {
            self.layers.adopt(missing);
        }
        if layer.last > self.needs.vaulted && !layer.maps.is_empty() {
            self.interval.touch();
            self.interval.add(layer);
        }
    }

    fn end_interval(&mut self, lsn: Lsn, marker: Marker) {
        if lsn > self.needs.vaulted {
            self.waiting.push_back(self.interval.close(lsn, marker, self.reader.clone()));
        }
    }

    fn finish(mut self) -> (Layers, Indexing, OpenInterval, VecDeque<ClosedInterval>) {
        self.freeze(self.last, None);
        self.indexing.begin(runs::NOTHING);
        self.layers.resume(self.last);
        (self.layers, self.indexing, self.interval, self.waiting)
    }
}

async fn read_marker(segment: SegmentIndex, sector: u32, record: &Record, reader: &Reader) -> Result<Marker> {
    let body = reader.read(segment, sector, u64::from(record.payload.sectors)).await?;
    Marker::decode(&body).ok_or_else(|| Error::corrupt("a marker's payload is not a marker"))
}
