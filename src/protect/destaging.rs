//! When a group destages, and what: batches of frozen layers, oldest first, while guests leave room.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::error::ErrorKind;
use crate::image::Image;
use crate::image::destage::{BATCH_LAYERS_MAX, Batch, DiskResult, DiskWork, destage};
use crate::planted::Bug;
use crate::protect::disk::Disk;
use crate::protect::group::{Group, nanos};
use crate::protect::layers::Layer;
use crate::protect::mailbox::Done;
use crate::units::{DiskSlot, Lsn, MonotonicNanos};

/// An idle group destages what it has after this long.
const IDLE_DELAY: Duration = Duration::from_secs(1);
/// A disk is latched when destaging to it failed this often in a row.
const FAILURES_MAX: u32 = 2;
/// Destage goes on beside the guests once less than one part in this many of the journal is free.
const FREE_PART_PRESSED: u64 = 2;
/// It begins a batch only once guests have written one part in this many of the journal,
const BATCH_PART_MIN: u64 = 32;
/// or so many bytes: what a batch costs besides its data, syncs, a checkpoint and blocks of sums, is shared by all of it.
const BATCH_BYTES_MIN: u64 = 256 << 20;
/// It takes up one part in this many of the journal: what a batch gives back comes all at its end, and guests wait for that,
const BATCH_PART_MAX: u64 = 8;
/// and of a small journal, where that is less than is worth its syncs, one part in this many.
const BATCH_PART_MAX_SMALL: u64 = 4;

impl Group {
    pub(super) fn has_undestaged(&self) -> bool {
        let resting = !self.destaging || self.pace.is_held();
        resting && !self.layers.is_destaged()
    }

    pub(super) fn idle_at(&self) -> MonotonicNanos {
        MonotonicNanos(self.last_activity.0 + nanos(IDLE_DELAY))
    }

    /// Starts a batch when the journal fills, or when there is nothing better to do.
    pub(super) fn start_destage(&mut self) {
        let now = self.runtime.now();
        let pressed = self.segments.room_bytes() < self.segments.limit_bytes() / FREE_PART_PRESSED;
        let is_waited_for = self.stopping
            || self.is_acceptance_waiting()
            || self.has_resize_waiting()
            || self.is_look_waited_for();
        // With the journal half full but held by an interval, nothing comes of going after each few writes.
        let is_urgent =
            self.are_maps_full() || is_waited_for || now >= self.idle_at() || self.writer.is_stalled();
        let wanted = pressed || is_urgent;
        self.pace.hold(!wanted);
        if !self.destage_retry.take_turn(now) || self.destaging || !wanted {
            return;
        }
        if self.layers.frozen().is_empty() {
            if !is_urgent && !self.is_worth_a_batch() {
                return;
            }
            self.freeze(self.writer.visible(), None);
        }
        if self.layers.frozen().is_empty() {
            // What failed before may have left with its disk.
            return self.destage_retry.succeeded();
        }
        if let Some(batch) = self.next_batch() {
            self.destaging = true;
            self.throttle.begins(now);
            self.written_before_batch = self.counters.written_bytes;
            let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
            let planted = self.settings.plan.planted;
            self.tasks.spawn(async move {
                let through = batch.through;
                let disks = destage(runtime, batch, planted).await;
                mailbox.borrow_mut().push_back(Done::Destaged { through, disks });
            });
        }
    }

    fn is_worth_a_batch(&self) -> bool {
        let gathered = self.counters.written_bytes - self.written_before_batch;
        gathered >= BATCH_BYTES_MIN.min(self.segments.limit_bytes() / BATCH_PART_MIN)
    }

    /// The oldest layers, as many as one batch takes.
    fn batch_layers(&self) -> impl Iterator<Item = &Rc<Layer>> {
        let limit = self.segments.limit_bytes();
        let bytes_max = (limit / BATCH_PART_MAX).max(BATCH_BYTES_MIN.min(limit / BATCH_PART_MAX_SMALL));
        let mut bytes = 0;
        let layers = self.layers.frozen().iter().take(BATCH_LAYERS_MAX).enumerate();
        let fits = move |(index, layer): &(usize, &Rc<Layer>)| {
            bytes += layer.bytes;
            *index == 0 || bytes <= bytes_max
        };
        layers.take_while(fits).map(|(_, layer)| layer)
    }

    /// The oldest layers whose records are durable; asks for durability where that is what is missing.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        let frozen: Vec<_> = self.batch_layers().collect();
        let newest_wanted = frozen.last()?.last;
        let durable = if self.settings.plan.planted.is(Bug::DestageAheadOfDurable) {
            newest_wanted
        } else {
            self.writer.durable()
        };
        let ready: Vec<_> = frozen.into_iter().take_while(|layer| layer.last <= durable).cloned().collect();
        self.writer.want_durable(newest_wanted);
        let through = ready.last()?.last;
        let mut disks: BTreeMap<DiskSlot, DiskWork> = BTreeMap::new();
        for layer in &ready {
            for (&slot, map) in &layer.maps {
                let takes = |disk: &&Disk| disk.latched.is_none();
                let Some(disk) = self.disks.get(&slot).filter(takes) else { continue };
                let lacks = |image: &&Image| image.destaged() < layer.last;
                let Some(image) = disk.image.as_ref().filter(lacks) else { continue };
                let work = disks.entry(slot).or_insert_with(|| DiskWork {
                    slot,
                    image: image.clone(),
                    maps: vec![],
                });
                // Another disk of the batch, or the checkpoint, failed: there is nothing left to write here.
                if image.synced() < layer.last {
                    work.maps.push(Rc::clone(map));
                }
            }
        }
        let pace = Rc::clone(&self.pace);
        Some(Batch { disks: disks.into_values().collect(), through, reader: self.reader(), pace })
    }

    pub(super) fn finish_destage(&mut self, through: Lsn, results: Vec<DiskResult>) {
        self.destaging = false;
        let mut again = None;
        for DiskResult { slot, result, written_bytes } in results {
            self.counters.destaged_bytes += written_bytes;
            let Some(disk) = self.disks.get_mut(&slot) else { continue };
            match result {
                Ok(image) => {
                    disk.image = Some(image);
                    disk.failures = 0;
                    disk.last_failure = None;
                    if disk.space_failures.succeeded() {
                        tracing::info!(group = %self.name, disk = %disk.record.name, "there is space for the image again");
                    }
                }
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    if let Some(times) = disk.space_failures.failed(self.runtime.now(), error.kind()) {
                        tracing::warn!(group = %self.name, disk = %disk.record.name, %error, times, "no space for the image");
                    }
                    again = Some(ErrorKind::NoSpace);
                }
                Err(error) => {
                    disk.failures += 1;
                    disk.last_failure = Some(error.to_string());
                    tracing::error!(group = %self.name, disk = %disk.record.name, %error, "destaging failed");
                    if disk.failures >= FAILURES_MAX {
                        disk.latched = Some(error.kind());
                        tracing::error!(
                            group = %self.name,
                            disk = %disk.record.name,
                            "the disk is latched: its writes fail until `group resume` or a restart finds its image mended"
                        );
                    }
                    if disk.latched.is_none() {
                        again.get_or_insert(error.kind());
                    }
                }
            }
        }
        if let Some(kind) = again {
            return self.destage_retry.failed(self.runtime.now(), kind);
        }
        self.destage_retry.succeeded();
        let latched = |slot: &DiskSlot| self.disks.get(slot).is_some_and(|disk| disk.latched.is_some());
        self.layers.retire(through, latched);
        self.measure_maps();
        self.destaged = self.destaged.max(through);
    }
}
