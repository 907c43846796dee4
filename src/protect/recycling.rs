//! How a group's journal gets segments: new ones while it may grow, used ones once nothing needs them.
//!
//! A segment is needed by the images until its records are destaged under a durable checkpoint, by a latched disk until
//! they are in a durable side file, by the vault until they are in a published point, and by whoever reads it.

use std::rc::Rc;

use crate::error::Error;
use crate::journal::segments::{Segment, create};
use crate::planted::Bug;
use crate::protect::group::Group;
use crate::protect::mailbox::Done;
use crate::units::Lsn;

impl Group {
    /// Whether data waits, and no new segment is on its way that it could go to.
    pub(super) fn is_journal_full(&self) -> bool {
        self.writer.is_stalled() && self.segments.is_at_limit()
    }

    /// Whether data waits for a segment that the file system has no room for.
    pub(super) fn is_journal_short(&self) -> bool {
        self.writer.is_stalled() && self.segment_retry.wants_space()
    }

    pub(super) fn supply_segments(&mut self) {
        if !self.segment_retry.take_turn(self.runtime.now()) || self.segments.is_creating() {
            return;
        }
        let Some((index, path, bytes)) = self.segments.begin_creation() else {
            // None is wanted any more: used ones came back.
            return self.segment_retry.succeeded();
        };
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        // Journals are where vaults are, unless somebody mounts them elsewhere: then they wait in vain, and not for long.
        let gate = self.settings.vault.reserve().gate();
        self.tasks.spawn(async move {
            let result = match gate.pass() {
                Ok(_passage) => create(runtime, index, path, bytes).await,
                Err(error) => Err(error.at_path(&path)),
            };
            mailbox.borrow_mut().push_back(Done::Segment(result));
        });
    }

    pub(super) fn segment_created(&mut self, segment: Segment) {
        self.segment_retry.succeeded();
        if self.segment_failures.succeeded() {
            tracing::info!(group = %self.name, "the journal grows again");
        }
        self.segments.created(segment);
    }

    pub(super) fn segment_failed(&mut self, error: &Error) {
        if let Some(times) = self.segment_failures.failed(self.runtime.now(), error.kind()) {
            tracing::warn!(group = %self.name, %error, times, "no new journal segment: writes wait for space");
        }
        self.segments.creation_failed();
        self.segment_retry.failed(self.runtime.now(), error.kind());
    }

    pub(super) fn recycle(&mut self) {
        let vaulted =
            if self.settings.plan.planted.is(Bug::EarlyRecycling) { Lsn(u64::MAX) } else { self.vaulted };
        let destaged = match self.layers.first_held() {
            Some(held) => self.destaged.min(Lsn(held.0 - 1)),
            None if self.layers.is_destaged() => self.writer.visible(),
            None => self.destaged,
        };
        let needless = self.vaulted_or_clean(vaulted).min(destaged);
        self.index(needless);
        let (durable, next) = (self.writer.durable_frame(), self.writer.next_frame());
        let mut cache = self.cache.borrow_mut();
        let recycled = self.segments.recycle(needless, durable, next);
        for &segment in &recycled {
            cache.forget(segment);
        }
        self.segments.release(durable);
        if let Some(frame) = self.segments.wanted_statement() {
            self.writer.want_durable_frame(frame);
        }
        if self.segments.live().count() <= 1 && self.layers.extents() == 0 && self.vaulted_all() {
            cache.clear();
        }
        drop(cache);
        if !recycled.is_empty() {
            let bytes = recycled.len() as u64 * self.settings.plan.segment_bytes;
            self.throttle.gave_back(self.runtime.now(), bytes);
            self.measure_maps();
        }
    }

    /// Everything up to here needs no delta any more: what the vault has, or all if nothing came since.
    pub(super) fn vaulted_or_clean(&self, vaulted: Lsn) -> Lsn {
        if self.vaulted_all() { self.writer.visible() } else { vaulted }
    }
}
