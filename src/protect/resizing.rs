//! Resizing a disk, one at a time in a group: docs/geometry.md has the order of its steps, and why.
//!
//! ```text
//!  growth: base       no batch runs          growth: zeros of the new sectors durable
//!  asked ─▶ waiting ─▶ preparing the image ─▶ zeroing ─▶ committing: manifest step, image settled ─▶ served
//!                                └─────── shrink ───────────┘
//! ```
//!
//! Invariants: the image is nobody else's from preparing on. No marker is made from then on until the step is decided: so
//! the zeros of a growth belong to the first point that lists the new size, and no point lists a size that was never
//! decided.

use std::rc::Rc;

use crate::byte_size::ByteSize;
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{Change, DiskRecord, check_sectors};
use crate::image::Image;
use crate::journal::writer::Entry;
use crate::planted::Bug;
use crate::protect::group::{Callback, Group};
use crate::protect::mailbox::Done;
use crate::protect::retry::RETRY_DELAY;
use crate::runtime::Runtime;
use crate::units::{DiskId, DiskSlot, Lsn, SectorCount, SectorRange};

/// What reminds of the last record of zeros.
pub(super) const ZEROED: u64 = u64::MAX;
/// Sectors that one record of zeros covers at most.
const RECORD_SECTORS_MAX: u64 = 1 << 31;
/// Sectors that a disk grows by at once, at most (512 TiB): its zeros are few records, which the journal's reserve takes.
const GROWTH_SECTORS_MAX: u64 = 512 * RECORD_SECTORS_MAX;

/// A resize that is under way.
pub(super) struct Resize {
    slot: DiskSlot,
    from: SectorCount,
    to: SectorCount,
    phase: Phase,
    callback: Callback<DiskRecord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The base is made longer; it may have to wait for an advance. Nothing waits for it.
    Lengthening,
    /// For destage to leave the image alone, for renewals to end, and for a journal that is not full.
    Waiting,
    Preparing,
    /// The last record of zeros, once it is visible.
    Zeroing(Option<Lsn>),
    Committing,
}

/// How the step went, and what became of the image then.
pub(super) struct Resized {
    image: Image,
    appended: Result<()>,
    settled: Result<()>,
    in_doubt: bool,
}

impl Group {
    /// Gives a disk another size; `callback` gets it when it is served. What a disk gains is zeros; what it loses is gone
    /// from it, though not from its points, so a shrink has to be allowed.
    pub fn resize_disk(
        &mut self,
        id: DiskId,
        to: SectorCount,
        may_lose_tail: bool,
        callback: Callback<DiskRecord>,
    ) {
        match self.check_resize(id, to, may_lose_tail) {
            Err(error) => callback(Err(error)),
            Ok(record) if record.sectors == to => callback(Ok(record)),
            Ok(DiskRecord { slot, sectors: from, .. }) => {
                let mut phase = Phase::Waiting;
                if to > from {
                    phase = Phase::Lengthening;
                    let (vault, mailbox) = (Rc::clone(&self.settings.vault), Rc::clone(&self.mailbox));
                    self.tasks.spawn(async move {
                        let result = vault.bases().lengthen(id, to).await;
                        mailbox.borrow_mut().push_back(Done::Lengthened(result));
                    });
                }
                self.resize = Some(Resize { slot, from, to, phase, callback });
            }
        }
    }

    fn check_resize(&self, id: DiskId, to: SectorCount, may_lose_tail: bool) -> Result<DiskRecord> {
        check_sectors(to)?;
        let missing = || Error::new(ErrorKind::NotFound, "the group has no such disk");
        let disk = self.slots.get(&id).and_then(|slot| self.disks.get(slot)).ok_or_else(missing)?;
        if let Some(error) = self.latched_error() {
            return Err(error);
        }
        if self.stopping {
            return Err(Error::new(ErrorKind::Shutdown, "the group is stopping"));
        }
        if disk.latched.is_some() {
            let text = "its image failed: mend it, and 'group resume' before it is resized";
            return Err(Error::new(ErrorKind::Latched, text));
        }
        if self.resize.is_some() {
            return Err(Error::invalid("a disk of the group is being resized: try again when that is done"));
        }
        let from = disk.record.sectors;
        if to < from && !may_lose_tail {
            let (from, to) = (ByteSize(from.bytes()).exact(), ByteSize(to.bytes()).exact());
            let text = format!(
                "from {from} to {to} the disk would become smaller, and lose what lies behind its new end; its \
                 recovery points keep it: if that is meant, say so (--yes-lose-tail, in the API lose_tail)"
            );
            return Err(Error::invalid(text));
        }
        if to < from && self.has_writes_under_way(disk.record.slot, disk.whole()) {
            return Err(Error::invalid(
                "writes of the disk are still under way: try again when they are done",
            ));
        }
        if to.0.saturating_sub(from.0) > GROWTH_SECTORS_MAX {
            return Err(Error::invalid("a disk grows by 512 TiB at once, at most: resize it in steps"));
        }
        Ok(disk.record.clone())
    }

    pub(super) fn finish_lengthening(&mut self, result: Result<()>) {
        match (result, &mut self.resize) {
            (Err(error), _) => self.end_resize(Err(error)),
            (Ok(()), Some(resize)) => resize.phase = Phase::Waiting,
            (Ok(()), None) => {}
        }
    }

    /// Whether no marker may be made.
    pub(super) fn is_resizing(&self) -> bool {
        let waits = |phase| matches!(phase, Phase::Lengthening | Phase::Waiting);
        self.resize.as_ref().is_some_and(|resize| !waits(resize.phase))
    }

    /// Whether a resize waits for destage to come to rest.
    pub(super) fn has_resize_waiting(&self) -> bool {
        self.resize.as_ref().is_some_and(|resize| resize.phase == Phase::Waiting)
    }

    /// Whether a growth waits for room in the journal.
    pub(super) fn is_resize_short(&self) -> bool {
        let grows = |resize: &Resize| resize.phase == Phase::Waiting && resize.to > resize.from;
        self.resize.as_ref().is_some_and(grows) && !self.segments.is_reserve_whole()
    }

    /// Whether this disk is being resized.
    pub(super) fn resizes(&self, slot: DiskSlot) -> bool {
        self.resize.as_ref().is_some_and(|resize| resize.slot == slot)
    }

    /// Goes on with a resize that waited.
    pub(super) fn advance_resize(&mut self) {
        let Some(resize) = &self.resize else { return };
        let is_renewed = self.disks.get(&resize.slot).is_some_and(|disk| disk.renewal.is_some());
        match resize.phase {
            // Zeros go into the journal's reserve, and must not find it used up.
            Phase::Waiting if !self.destaging && !self.is_resize_short() && !is_renewed => {
                self.begin_resize();
            }
            Phase::Zeroing(Some(lsn)) if lsn <= self.writer.durable() => self.commit_resize(),
            _ => {}
        }
    }

    fn begin_resize(&mut self) {
        let Some(resize) = &mut self.resize else { return };
        let (from, to) = (resize.from, resize.to);
        resize.phase = Phase::Preparing;
        let disk = self.disks.get_mut(&resize.slot).expect("a disk that is being resized stays");
        // The batch that was waited for may have found its image broken.
        let Some(mut image) = disk.image.clone().filter(|_| disk.latched.is_none()) else {
            return self.end_resize(Err(Error::new(ErrorKind::Latched, "its image failed meanwhile")));
        };
        self.destaging = true;
        // Nobody may write what is about to go.
        disk.record.sectors = from.min(to);
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let result = image.begin_resize(&runtime, to).await;
            let settled = match &result {
                Ok(()) => Ok(()),
                Err(_) => settle(&runtime, &mut image, from).await,
            };
            mailbox.borrow_mut().push_back(Done::ResizePrepared(image, result, settled));
        });
    }

    pub(super) fn finish_preparing(&mut self, image: Image, result: Result<()>, settled: Result<()>) {
        self.destaging = false;
        let Some(resize) = &mut self.resize else { return };
        let (from, to) = (resize.from, resize.to);
        let disk = self.disks.get_mut(&resize.slot).expect("a disk that is being resized stays");
        disk.image = Some(image);
        if let Err(error) = result {
            disk.record.sectors = from;
            if let Err(error) = settled {
                disk.latch(&error);
            }
            return self.end_resize(Err(error));
        }
        self.destaging = true;
        if to < from || self.settings.plan.planted.is(Bug::GrownTailShowsOld) {
            return self.commit_resize();
        }
        resize.phase = Phase::Zeroing(None);
        let disk = resize.slot;
        let mut start = from.0;
        while start < to.0 {
            let end = to.0.min(start + RECORD_SECTORS_MAX);
            let range = SectorRange::new(start, end);
            // As a control record: it is below every marker that is made from now on.
            let entry = Entry::Zero { disk, range, allocated: false };
            self.writer.enqueue_control(entry, (end == to.0).then_some(ZEROED));
            start = end;
        }
    }

    /// The zeros of a growth are visible.
    pub(super) fn zeroed(&mut self, lsn: Lsn) {
        self.writer.want_durable(lsn);
        if let Some(resize) = &mut self.resize {
            resize.phase = Phase::Zeroing(Some(lsn));
        }
    }

    fn commit_resize(&mut self) {
        let Some(resize) = &mut self.resize else { return };
        resize.phase = Phase::Committing;
        let (slot, from, to) = (resize.slot, resize.from, resize.to);
        let mut image = self.disks[&slot].attached().clone();
        let vault = Rc::clone(&self.settings.vault);
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let appended = vault.manifest().append(Change::DiskResized(slot, to)).await.map(drop);
            let in_doubt = appended.is_err() && vault.manifest().is_in_doubt();
            let decided = if appended.is_ok() { to } else { from };
            // In doubt it is the next opening that knows.
            let settled = if in_doubt { Ok(()) } else { settle(&runtime, &mut image, decided).await };
            let resized = Resized { image, appended, settled, in_doubt };
            mailbox.borrow_mut().push_back(Done::Resized(resized));
        });
    }

    pub(super) fn finish_resize(&mut self, resized: Resized) {
        self.destaging = false;
        let Some(resize) = &self.resize else { return };
        let Resized { image, appended, settled, in_doubt } = resized;
        let disk = self.disks.get_mut(&resize.slot).expect("a disk that is being resized stays");
        disk.image = Some(image);
        if !in_doubt {
            disk.record.sectors = if appended.is_ok() { resize.to } else { resize.from };
        }
        if let Err(error) = settled {
            tracing::error!(group = %self.name, disk = %disk.record.name, %error, "the disk was resized, its image was not");
            disk.latch(&error);
        }
        let record = disk.record.clone();
        if let (true, Err(error)) = (in_doubt, &appended) {
            // No point may be made of a size that nobody knows.
            self.vault_failed = Some(error.kind());
            self.vault_failed_because = Some(error.to_string());
            self.fail_waiting_points();
        }
        self.end_resize(appended.map(|()| record));
    }

    /// A resize that has not begun yet does not come to pass.
    pub(super) fn refuse_waiting_resize(&mut self, refusal: impl Fn() -> Error) {
        if self.has_resize_waiting() {
            self.end_resize(Err(refusal()));
        }
    }

    fn end_resize(&mut self, result: Result<DiskRecord>) {
        if let Some(resize) = self.resize.take() {
            (resize.callback)(result);
        }
        self.make_delayed_points();
    }

    /// The journal failed: a growth whose zeros it lacks does not come to pass.
    pub(super) fn abandon_resize(&mut self) {
        let waits = |phase| matches!(phase, Phase::Waiting | Phase::Zeroing(_));
        if self.resize.as_ref().is_some_and(|resize| waits(resize.phase)) {
            let text = "the journal failed: the group has to be closed and opened again";
            self.end_resize(Err(Error::new(ErrorKind::Latched, text)));
        }
    }
}

/// Settles the image at the size that was decided, as soon as there is space for it.
async fn settle(runtime: &Rc<Runtime>, image: &mut Image, size: SectorCount) -> Result<()> {
    loop {
        match image.settle_size(runtime, size).await {
            Err(error) if error.kind() == ErrorKind::NoSpace => runtime.sleep(RETRY_DELAY).await,
            settled => return settled,
        }
    }
}
