//! The publisher: turns closed intervals into deltas, and deltas into recovery points, one after the other.
//!
//! A task of its own, so that the vault's pace is nobody else's. An interval is tried until it is in the vault, for
//! the journal keeps it until then; only an error that trying again cannot mend is given back.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use futures::StreamExt;
use futures::channel::mpsc;

use crate::delta::{DiskExtents, Source as DeltaSource, SourceContent};
use crate::error::{ErrorKind, Result};
use crate::extent::{Extent, FrozenMap, merge};
use crate::format::delta::{DeltaRef, Header};
use crate::format::record::{Membership, PointDisk, PointRecord};
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::protect::group::{Done, Mailbox};
use crate::protect::interval::ClosedInterval;
use crate::protect::retry::RETRY_DELAY;
use crate::protect::shrinking::SpaceLimits;
use crate::runtime::Runtime;
use crate::storage::Slice;
use crate::units::{BlobId, DiskSlot, Lsn, SectorCount};
use crate::vault::Vault;

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
    let mut delta = None;
    loop {
        match attempt(runtime, vault, space, interval, &mut delta).await {
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Io) => {
                tracing::warn!(%error, "the vault did not take a recovery point; it is tried again");
                mailbox.borrow_mut().push_back(Done::PublishDelayed(error.kind()));
                runtime.sleep(RETRY_DELAY).await;
            }
            result => return result,
        }
    }
}

/// Puts the delta, unless an earlier attempt did, and publishes the point.
async fn attempt(
    runtime: &Rc<Runtime>,
    vault: &Vault,
    space: SpaceLimits,
    interval: &ClosedInterval,
    delta: &mut Option<Option<DeltaRef>>,
) -> Result<Published> {
    let reference = match *delta {
        Some(reference) => reference,
        None => {
            space.check_room(runtime, vault.layout().root()).await?;
            put_delta(runtime, vault, interval).await?
        }
    };
    *delta = Some(reference);
    let point = point_record(interval, reference);
    vault.publish(point.clone()).await?;
    Ok(Published { point, stored_bytes: reference.map_or(0, |reference| reference.total_bytes) })
}

async fn put_delta(
    runtime: &Rc<Runtime>,
    vault: &Vault,
    interval: &ClosedInterval,
) -> Result<Option<DeltaRef>> {
    let mut merged: BTreeMap<DiskSlot, FrozenMap<Source>> = BTreeMap::new();
    for entry in &interval.marker.disks {
        let maps = interval.layers.iter().filter_map(|layer| layer.maps.get(&entry.slot));
        let maps: Vec<_> = maps.cloned().collect();
        if !maps.is_empty() {
            merged.insert(entry.slot, merge(&maps, || runtime.yield_now()).await);
        }
    }
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
        let map = merged.get(&entry.slot)?;
        Some(DiskExtents {
            slot: entry.slot,
            disk: entry.disk,
            sectors: entry.sectors,
            extents: within(map, entry.sectors),
        })
    });
    let built = vault.put_delta(header, &source, disks.collect::<Vec<_>>()).await?;
    Ok(built.map(|built| built.reference))
}

/// The extents of a disk that has `sectors` sectors.
fn within(map: &FrozenMap<Source>, sectors: SectorCount) -> impl Iterator<Item = Extent<Source>> + '_ {
    map.iter().take_while(move |extent| extent.range.end <= sectors.0)
}

fn point_record(interval: &ClosedInterval, delta: Option<DeltaRef>) -> PointRecord {
    let marker = &interval.marker;
    let disks = marker.disks.iter().map(|entry| PointDisk {
        slot: entry.slot,
        disk: entry.disk,
        sectors: entry.sectors,
        membership: Membership::Included,
    });
    PointRecord {
        id: marker.point,
        marker: interval.marker_lsn,
        wall: marker.wall,
        group_time: marker.group_time,
        consistency: marker.consistency,
        label: marker.label.clone(),
        delta,
        disks: disks.collect::<Arc<[_]>>(),
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
