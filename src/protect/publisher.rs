//! The publisher: turns closed intervals into deltas, and deltas into recovery points, one after the other.
//!
//! A task of its own, so that the vault's pace is nobody else's. An interval is tried until it is in the vault, for
//! the journal keeps it until then; only an error that trying again cannot mend is given back. A record that rotted, or that
//! the journal's device does not give, is no such: the point goes without its disk.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use futures::StreamExt;
use futures::channel::mpsc;

use crate::byte_size::ByteSize;
use crate::delta::{DiskExtents, Source as DeltaSource, SourceContent};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{FrozenMap, Ranges, merge};
use crate::format::delta::{DeltaRef, Header};
use crate::format::marker::DiskEntry;
use crate::format::record::{LACKING_MAX, Membership, PointDisk, PointRecord};
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::journal::sift::{Sifted, sift};
use crate::protect::interval::ClosedInterval;
use crate::protect::mailbox::{Done, Mailbox};
use crate::protect::repetition::Repetition;
use crate::protect::retry::RETRY_DELAY;
use crate::protect::shrinking::{DeltaRoom, SpaceLimits};
use crate::runtime::Runtime;
use crate::storage::Slice;
use crate::units::{BlobId, DiskSlot, Lsn, SectorCount, SectorRange};
use crate::vault::{Vault, lacks_space};

/// What the publisher is asked.
pub enum Job {
    /// To make a recovery point of an interval.
    Publish(ClosedInterval),
}

/// A point that is restorable from now on.
#[derive(Clone, Debug)]
pub struct Published {
    /// The point.
    pub point: PointRecord,
    /// Bytes that its delta takes in the vault.
    pub stored_bytes: u64,
}

/// Carries jobs out until the sender is dropped or one fails for good. A point without the interval before it would lack
/// what that one holds: so none comes after a failure.
pub(super) async fn run(
    runtime: Rc<Runtime>,
    vault: Rc<Vault>,
    space: SpaceLimits,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    mailbox: Mailbox,
) {
    while let Some(Job::Publish(interval)) = jobs.next().await {
        let result = publish(&runtime, &vault, space, &interval, &mailbox).await;
        let is_over = result.is_err();
        mailbox.borrow_mut().push_back(Done::Published(result));
        if is_over {
            return;
        }
    }
}

async fn publish(
    runtime: &Rc<Runtime>,
    vault: &Vault,
    space: SpaceLimits,
    interval: &ClosedInterval,
    mailbox: &Mailbox,
) -> Result<Published> {
    let (mut progress, mut failures) = (Progress::default(), Repetition::default());
    loop {
        match attempt(runtime, vault, space, interval, &mut progress).await {
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Io) => {
                if let Some(times) = failures.failed(runtime.now(), error.kind()) {
                    tracing::warn!(%error, times, "the vault did not take a recovery point; it is tried again");
                }
                let (kind, did_not_fit) = (error.kind(), progress.did_not_fit);
                mailbox.borrow_mut().push_back(Done::PublishDelayed { kind, did_not_fit });
                runtime.sleep(RETRY_DELAY).await;
            }
            result => {
                if result.is_ok() && failures.succeeded() {
                    tracing::info!("the vault has taken the recovery point");
                }
                return result;
            }
        }
    }
}

/// What an interval came to: its delta, if it has one, and the disks of its point.
#[derive(Clone)]
struct Built {
    delta: Option<DeltaRef>,
    disks: Arc<[PointDisk]>,
}

/// What attempts came to so far.
#[derive(Default)]
struct Progress {
    built: Option<Built>,
    /// If the delta did not fit: how many bytes were free.
    did_not_fit: Option<u64>,
}

/// Puts the delta, unless an earlier attempt did, and publishes the point.
async fn attempt(
    runtime: &Rc<Runtime>,
    vault: &Vault,
    space: SpaceLimits,
    interval: &ClosedInterval,
    progress: &mut Progress,
) -> Result<Published> {
    let ready = match progress.built.clone() {
        Some(ready) => ready,
        None => {
            let room = space.check_room(runtime, vault).await?;
            if let Some(bytes) = progress.did_not_fit.filter(|&bytes| room.free_bytes <= bytes) {
                // Trying would fill the file system once more, and in vain.
                let text = format!("it takes more than the {} that were free", ByteSize(bytes).approximate());
                return Err(Error::new(ErrorKind::NoSpace, text));
            }
            build(runtime, vault, interval, &room, &mut progress.did_not_fit).await?
        }
    };
    let point = point_record(interval, progress.built.insert(ready));
    vault.publish(point.clone()).await?;
    let stored_bytes = point.delta.map_or(0, |reference| reference.total_bytes);
    Ok(Published { point, stored_bytes })
}

/// What is to become of an interval: what its maps say, per disk, and what of it is lost.
type Content = BTreeMap<DiskSlot, Sifted>;

/// Builds the delta of an interval. What rotted in the journal is left out of it, and its disk is lacking from then on.
async fn build(
    runtime: &Rc<Runtime>,
    vault: &Vault,
    interval: &ClosedInterval,
    room: &DeltaRoom,
    did_not_fit: &mut Option<u64>,
) -> Result<Built> {
    let mut content = merged(runtime, interval).await;
    let delta = loop {
        match put_delta(runtime, vault, interval, &content).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let sifted = sifted(runtime, interval).await?;
                if lost_ranges(&sifted).eq(lost_ranges(&content)) {
                    return Err(error);
                }
                content = sifted;
            }
            Err(error) if lacks_space(&error) && data_bytes(&content) > room.free_bytes / 2 => {
                *did_not_fit = Some(room.free_bytes);
                return Err(error);
            }
            result => break result?,
        }
    };
    let state = vault.manifest().state();
    let before = state.points().last().map_or([].as_slice(), |point| &point.disks);
    Ok(Built { delta, disks: point_disks(&interval.marker.disks, &content, before) })
}

fn lost_ranges(content: &Content) -> impl Iterator<Item = (DiskSlot, SectorRange)> + '_ {
    content.iter().flat_map(|(&slot, sifted)| sifted.lost.iter().map(move |lost| (slot, lost.range)))
}

/// Bytes of data that a delta of it holds, before they are compressed. Where twice as many are free it is something else that is
/// lacking, which shorter history does not mend.
fn data_bytes(content: &Content) -> u64 {
    let extents = content.values().flat_map(|sifted| sifted.map.iter());
    let data = extents.filter(|extent| matches!(extent.location, Source::Journal { .. }));
    data.map(|extent| extent.range.bytes()).sum()
}

/// What the maps of an interval say; that nothing of it is lost is taken for granted.
async fn merged(runtime: &Rc<Runtime>, interval: &ClosedInterval) -> Content {
    let mut merged = Content::new();
    for (slot, maps) in maps(interval) {
        let map = merge(&maps, || runtime.yield_now()).await;
        merged.insert(slot, Sifted { map, lost: Vec::new(), is_withheld: false });
    }
    merged
}

/// The same, with what is lost left out.
async fn sifted(runtime: &Rc<Runtime>, interval: &ClosedInterval) -> Result<Content> {
    let mut content = Content::new();
    for (slot, maps) in maps(interval) {
        content.insert(slot, sift(runtime, &interval.reader, &maps).await?);
    }
    Ok(content)
}

/// The maps of the marker's disks, oldest first.
fn maps(interval: &ClosedInterval) -> impl Iterator<Item = (DiskSlot, Vec<Rc<FrozenMap<Source>>>)> + '_ {
    let of_disk = |entry: &DiskEntry| {
        let maps = interval.layers.iter().filter_map(|layer| layer.maps.get(&entry.slot));
        (entry.slot, maps.cloned().collect::<Vec<_>>())
    };
    interval.marker.disks.iter().map(of_disk).filter(|(_, maps)| !maps.is_empty())
}

async fn put_delta(
    runtime: &Rc<Runtime>,
    vault: &Vault,
    interval: &ClosedInterval,
    content: &Content,
) -> Result<Option<DeltaRef>> {
    let (header, source) = {
        let state = vault.manifest().state();
        let after = state.points().last().map_or(Lsn::ZERO, |point| point.marker);
        let header = Header {
            blob: BlobId(runtime.random_u128()),
            group: state.group(),
            timeline: state.timeline(),
            after,
            through: interval.marker_lsn,
            marker: interval.marker_lsn,
            created: runtime.wall(),
            intervals: 1,
            chunk_bytes: 0,
        };
        (header, JournalSource(interval.reader.clone()))
    };
    let disks = interval.marker.disks.iter().filter_map(|entry| {
        let Sifted { map, .. } = content.get(&entry.slot)?;
        Some(DiskExtents {
            slot: entry.slot,
            disk: entry.disk,
            sectors: entry.sectors,
            extents: map.below(entry.sectors),
        })
    });
    let built = vault.put_delta(header, &source, disks.collect::<Vec<_>>()).await?;
    Ok(built.map(|built| built.reference))
}

/// The disks of a point: one lacks what it lacked `before` and this interval did not write, and what of this interval is lost.
fn point_disks(entries: &[DiskEntry], content: &Content, before: &[PointDisk]) -> Arc<[PointDisk]> {
    let ranges_max = LACKING_MAX / entries.len().max(1);
    let disk = |entry: &DiskEntry| {
        let lacked =
            before.iter().find(|disk| disk.slot == entry.slot).map_or([].as_slice(), PointDisk::lacking);
        let mut lacking = Ranges::of(lacked.iter().copied());
        if let Some(sifted) = content.get(&entry.slot) {
            lacking = lacking.without(sifted.map.iter().map(|extent| extent.range));
            lacking = lacking.union(sifted.lost.iter().map(|lost| lost.range));
        }
        // What a disk lacked behind its end it has lost.
        let lacking = lacking.without([SectorRange::new(entry.sectors.0, u64::MAX)]);
        let membership = match lacking.coarsened(ranges_max) {
            none if none.is_empty() => Membership::Included,
            some => Membership::Lacking(some.as_slice().into()),
        };
        PointDisk { slot: entry.slot, disk: entry.disk, sectors: entry.sectors, membership }
    };
    entries.iter().map(disk).collect()
}

fn point_record(interval: &ClosedInterval, built: &Built) -> PointRecord {
    let marker = &interval.marker;
    PointRecord {
        id: marker.point,
        marker: interval.marker_lsn,
        wall: marker.wall,
        group_time: marker.group_time,
        consistency: marker.consistency,
        label: marker.label.clone(),
        delta: built.delta,
        disks: Arc::clone(&built.disks),
    }
}

/// The journal, as a delta's source.
struct JournalSource(Reader);

impl DeltaSource for JournalSource {
    type Location = Source;

    fn content(&self, location: Source) -> SourceContent {
        match location {
            Source::Journal { .. } => SourceContent::Data,
            Source::Zero { allocated } => SourceContent::Zero { allocated },
        }
    }

    async fn read(&self, location: Source, sectors: SectorCount) -> Result<Slice> {
        match location {
            Source::Journal { segment, sector } => self.0.read(segment, sector, sectors.0).await,
            Source::Zero { .. } => unreachable!("zeros are not read"),
        }
    }
}
