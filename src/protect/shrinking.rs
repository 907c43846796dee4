//! Shrinking history because of space: when deltas take more than they may, or their file system is nearly full, the
//! oldest points go, whatever the ladder says.
//!
//! Nobody is to find out afterwards: it is announced first, as an event and in `status`, and the first point goes [`SpaceLimits::grace`]
//! later. Held points, those that are read, and the newest stay; where one of them is the oldest, nothing goes, and
//! `status` says so. Where that keeps a new point from its place, the history of other groups on the same file system goes for it. What
//! shortage remains then is the full disk's: writes wait.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::byte_size::ByteSize;
use crate::error::{Error, ErrorKind, Result};
use crate::image::pace::Pace;
use crate::planted::{Bug, Planted};
use crate::protect::alarm::{Alarm, Told};
use crate::protect::events::GroupEvent;
use crate::protect::group::nanos;
use crate::protect::open::GroupPlan;
use crate::protect::retention::Shared;
use crate::runtime::Runtime;
use crate::space_gate::{Passage, SpaceGates, Want};
use crate::storage::Space;
use crate::units::MonotonicNanos;
use crate::vault::{Advance, Vault};

/// Where nothing is configured, so much of the file system stays free,
const FREE_PART: u64 = 20;
/// but not more than this.
const FREE_BYTES_ENOUGH: u64 = 1 << 30;

/// What a group's vault may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceLimits {
    /// Most bytes of all deltas.
    pub history_bytes_max: Option<u64>,
    /// Bytes that stay free in the vault's file system; the twentieth part of it, 1 GiB at most, unless said.
    pub free_bytes_min: Option<u64>,
    /// The same of the images' file system, of which only warnings are given.
    pub images_free_bytes_min: Option<u64>,
    /// Most bytes of the room that a vault keeps back for giving space back, 64 MiB unless said; half of what is to stay free, if
    /// that is less.
    pub reserve_bytes_max: u64,
    /// Between the announcement and the first point that goes, 10 s unless said; space is looked at ten times as often.
    pub grace: Duration,
}

impl Default for SpaceLimits {
    fn default() -> SpaceLimits {
        SpaceLimits {
            history_bytes_max: None,
            free_bytes_min: None,
            images_free_bytes_min: None,
            reserve_bytes_max: 64 << 20,
            grace: Duration::from_secs(10),
        }
    }
}

impl SpaceLimits {
    /// Bytes that are to stay free where the vault's file system is like that.
    fn free_min(self, space: Space) -> u64 {
        self.free_bytes_min.unwrap_or(free_min_of(space))
    }

    /// Bytes of the room that is kept in a file system like that.
    pub(super) fn room_bytes(self, space: Space) -> u64 {
        (self.free_min(space) / 2).min(self.reserve_bytes_max)
    }

    /// Bytes of one that was never there: none where too little is free.
    fn first_room_bytes(self, space: Space) -> u64 {
        let bytes = self.room_bytes(space);
        if space.free >= self.free_min(space) + bytes { bytes } else { 0 }
    }

    /// Fails with `NoSpace` where only that is left which advancing the base needs to give space back, if any can be: half of what is
    /// to stay free, the vault's reserve included. New deltas wait then. Until what is returned is dropped the room is not given up.
    pub(super) async fn check_room(self, runtime: &Runtime, vault: &Vault) -> Result<DeltaRoom> {
        let directory = vault.layout().root();
        let has_use = has_use_of_room(vault);
        let passage = match vault.reserve().gate().pass() {
            Ok(passage) => Some(passage),
            // It is closed for this point.
            Err(_) if !has_use && vault.reserve().holds_others() => None,
            Err(error) => return Err(error.at_path(directory)),
        };
        let space = runtime.space(directory).await?;
        if space.free + vault.reserve().room_bytes() >= self.free_min(space) / 2 || !has_use {
            return Ok(DeltaRoom { free_bytes: space.free, _passage: passage });
        }
        let free = ByteSize(space.free).approximate();
        let text = format!("{free} free: what is left is kept for giving space back");
        Err(Error::new(ErrorKind::NoSpace, text).at_path(directory))
    }
}

/// Leave to write a new delta.
pub(super) struct DeltaRoom {
    /// Bytes that were free.
    pub(super) free_bytes: u64,
    _passage: Option<Passage>,
}

/// Whether there is anything that could give space back.
fn has_use_of_room(vault: &Vault) -> bool {
    let state = vault.manifest().state();
    state.points().len() > 1 || state.base_advance().is_some()
}

/// Bytes that are to stay free in a file system, unless said.
fn free_min_of(space: Space) -> u64 {
    (space.total / FREE_PART).min(FREE_BYTES_ENOUGH)
}

/// How much room a group's images have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagesSpace {
    /// Free bytes of their file system.
    pub free_bytes: u64,
    /// When fewer are free, that is told.
    pub free_bytes_min: u64,
    /// Whether the vault is in the same one, which is told of already.
    pub is_vaults: bool,
}

impl ImagesSpace {
    fn new(limits: SpaceLimits, images: Space, vault: Space) -> ImagesSpace {
        ImagesSpace {
            free_bytes: images.free,
            free_bytes_min: limits.images_free_bytes_min.unwrap_or(free_min_of(images)),
            is_vaults: images.device == vault.device,
        }
    }

    /// Whether it is to be told that little is left.
    fn is_low(self) -> bool {
        !self.is_vaults && self.free_bytes < self.free_bytes_min
    }
}

/// How much room a group's vault has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceStatus {
    /// Bytes of all deltas.
    pub history_bytes: u64,
    /// Most that they may take.
    pub history_bytes_max: Option<u64>,
    /// Free bytes of the file system,
    pub free_bytes: u64,
    /// and those that the vault keeps back, to be free when it takes them;
    pub reserve_bytes: u64,
    /// of both together so many are to stay.
    pub free_bytes_min: u64,
    /// Bytes of the file system in all.
    pub total_bytes: u64,
    /// If the next recovery point did not fit: so many bytes were free, and that was too little.
    pub point_exceeds: Option<u64>,
    /// The same of a point of another group on this file system, whose own history cannot shrink for it.
    pub others_exceed: Option<u64>,
}

impl SpaceStatus {
    fn new(limits: SpaceLimits, history_bytes: u64, space: Space, reserve_bytes: u64) -> SpaceStatus {
        SpaceStatus {
            history_bytes,
            history_bytes_max: limits.history_bytes_max,
            free_bytes: space.free,
            reserve_bytes,
            free_bytes_min: limits.free_min(space),
            total_bytes: space.total,
            point_exceeds: None,
            others_exceed: None,
        }
    }

    /// Bytes that are free, or would be if the vault took what it keeps back.
    pub fn left(&self) -> u64 {
        self.free_bytes + self.reserve_bytes
    }

    /// Bytes that have to go.
    pub fn shortage(&self) -> u64 {
        let lack =
            |exceeds: Option<u64>| exceeds.map_or(0, |bytes| (bytes + 1).saturating_sub(self.free_bytes));
        let points = lack(self.point_exceeds).max(lack(self.others_exceed));
        self.excess().max(self.free_bytes_min.saturating_sub(self.left())).max(points)
    }

    /// Whether what has to go has to for this group, too.
    fn is_own(&self) -> bool {
        SpaceStatus { others_exceed: None, ..*self }.shortage() > 0
    }

    /// Bytes that history is to take less.
    pub fn excess(&self) -> u64 {
        self.history_bytes_max.map_or(0, |max| self.history_bytes.saturating_sub(max))
    }

    /// Whether little is left until something has to go: a tenth of the history's limit, or as much again as has to stay free.
    pub fn is_low(&self) -> bool {
        let history = self.history_bytes_max.is_some_and(|max| self.history_bytes > max - max / 10);
        history || self.left() < self.free_bytes_min.saturating_mul(2)
    }
}

/// Where a group's shrinking stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrink {
    /// There is room.
    #[default]
    Rests,
    /// Points are about to go.
    Announced,
    /// Points go.
    Shrinks,
    /// Points should go, but none can.
    Stuck,
}

/// What the retention task remembers of space.
#[derive(Debug)]
pub(super) struct Shrinking {
    limits: SpaceLimits,
    announced: Option<MonotonicNanos>,
    images: PathBuf,
    /// What the reserve's room is to have, as of the last look.
    room_bytes: Option<u64>,
    gates: Arc<SpaceGates>,
    /// Destage's, which is told which gate is that of the images.
    pace: Rc<Pace>,
    lent: Lent,
    /// That a point waits for which the history of other groups is to shrink.
    want: Option<Want>,
    low: Alarm,
    images_low: Alarm,
    planted: Planted,
}

/// Who may take the reserve's room, where nothing is left that it could help to give space back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    /// Nobody: it is kept.
    No,
    /// The point that did not fit, which had been tried so often by then.
    ToPoint { attempts: u64 },
}

/// What keeps the next recovery point from the vault.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PointWait {
    /// How often it was tried in vain.
    pub(super) attempts: u64,
    /// If it did not fit: how many bytes were free.
    pub(super) exceeds: Option<u64>,
}

/// Space is looked at so often within the grace.
const LOOKS_A_GRACE: u32 = 10;

impl Shrinking {
    pub(super) fn new(plan: &GroupPlan, pace: Rc<Pace>) -> Shrinking {
        Shrinking {
            limits: plan.space,
            announced: None,
            images: plan.images(),
            room_bytes: None,
            lent: Lent::No,
            want: None,
            gates: Arc::clone(&plan.gates),
            pace,
            low: Alarm::default(),
            images_low: Alarm::default(),
            planted: plan.planted,
        }
    }

    /// Looks at space, and lets the oldest points go if there is too little. How long to wait until the next look.
    pub(super) async fn pass(
        &mut self,
        runtime: &Runtime,
        vault: &Vault,
        shared: &Shared,
    ) -> Result<Duration> {
        loop {
            let space = self.measure(runtime, vault, shared).await?;
            if space.point_exceeds.is_none() {
                self.want = None;
            }
            if space.shortage() == 0 {
                // A point that did not fit may fit now: if it does not, what was announced goes on.
                if space.point_exceeds.or(space.others_exceed).is_none() {
                    self.lent = Lent::No;
                    self.rest(shared);
                }
                return Ok(self.look_period());
            }
            let step = vault.shrink_step(space.excess(), space.shortage(), space.left()).await?;
            let Some((step, forecast)) = step else {
                self.stick(runtime, vault, shared, &space).await;
                return Ok(self.look_period());
            };
            (self.lent, self.want) = (Lent::No, None);
            let now = runtime.now();
            let announced = *self.announced.get_or_insert_with(|| {
                let grace = self.limits.grace;
                shared.tell(runtime, GroupEvent::HistoryWillShrink { forecast, space, since: now, grace });
                now
            });
            let begins = MonotonicNanos(announced.0 + nanos(self.limits.grace));
            if now < begins && !self.planted.is(Bug::ShrinkUnannounced) {
                shared.status.borrow_mut().shrink = Shrink::Announced;
                return Ok(Duration::from_nanos(begins.0 - now.0).min(self.look_period()));
            }
            shared.status.borrow_mut().shrink = Shrink::Shrinks;
            // One that found no space comes first: points before it cannot be retired twice.
            if vault.finish_advance().await? == Advance::Waits {
                return Ok(self.look_period());
            }
            vault.take_step(step, None).await?;
            shared.tell(runtime, GroupEvent::HistoryShrinks { forecast });
            if vault.finish_advance().await? == Advance::Waits {
                return Ok(self.look_period());
            }
            vault.sweep().await?;
            runtime.yield_now().await;
            if shared.stopping.get() {
                return Ok(self.look_period());
            }
        }
    }

    /// No points have to go.
    fn rest(&mut self, shared: &Shared) {
        self.announced = None;
        shared.status.borrow_mut().shrink = Shrink::Rests;
    }

    /// No point can go. Where nothing could give space back, and the reserve's room is what the next point may lack, it gets that, once.
    /// Then others are asked.
    async fn stick(&mut self, runtime: &Runtime, vault: &Vault, shared: &Shared, space: &SpaceStatus) {
        if !space.is_own() {
            return self.rest(shared);
        }
        let PointWait { attempts, exceeds } = shared.point_wait.get();
        let lent = Lent::ToPoint { attempts };
        if self.lent == lent {
            return;
        }
        if !has_use_of_room(vault) && exceeds.is_some_and(|bytes| space.left() > bytes) {
            vault.reserve().give_room().await;
            if vault.reserve().room_bytes() == 0 {
                self.lent = lent;
            }
            return;
        }
        self.want = exceeds.map(|bytes| vault.reserve().gate().want(bytes));
        let before = std::mem::replace(&mut shared.status.borrow_mut().shrink, Shrink::Stuck);
        if before != Shrink::Stuck {
            shared.tell(runtime, GroupEvent::HistoryCannotShrink);
        }
    }

    /// Has the vault keep back again what it gave up, where there is room for it.
    pub(super) async fn mind_reserve(
        &mut self,
        runtime: &Runtime,
        vault: &Vault,
        shared: &Shared,
        proceed: &impl Fn() -> Result<()>,
    ) -> Result<()> {
        let reserve = vault.reserve();
        if self.lent == (Lent::ToPoint { attempts: shared.point_wait.get().attempts }) {
            return Ok(());
        }
        self.lent = Lent::No;
        let room_bytes = match reserve.room_bytes() {
            0 => {
                let space = runtime.space(vault.layout().root()).await?;
                let limits = self.limits;
                if reserve.had_room() { limits.room_bytes(space) } else { limits.first_room_bytes(space) }
            }
            bytes => self.room_bytes.unwrap_or(bytes),
        };
        let refilled = reserve.refill(room_bytes, proceed).await;
        // A base that is on its way needs it until it arrives.
        reserve.settle(room_bytes, vault.manifest().state().base_advance().is_some());
        refilled
    }

    /// How often space is looked at.
    pub(super) fn look_period(&self) -> Duration {
        self.limits.grace / LOOKS_A_GRACE
    }

    /// Looks at space, and tells if it has become low.
    pub(super) async fn measure(
        &mut self,
        runtime: &Runtime,
        vault: &Vault,
        shared: &Shared,
    ) -> Result<SpaceStatus> {
        let root: &Path = vault.layout().root();
        let found = runtime.space(root).await?;
        vault.reserve().note_device(found.device);
        self.room_bytes = Some(self.limits.room_bytes(found));
        let room_bytes = vault.reserve().room_bytes();
        let space = SpaceStatus {
            point_exceeds: shared.point_wait.get().exceeds,
            others_exceed: vault.reserve().gate().wanted_by_others(self.want.as_ref()),
            ..SpaceStatus::new(self.limits, vault.history_bytes(), found, room_bytes)
        };
        if self.low.look(space.is_low(), runtime.now()) == Some(Told::Raised) {
            shared.tell(runtime, GroupEvent::SpaceLow(space));
        }
        shared.status.borrow_mut().space = Some(space);
        self.measure_images(runtime, shared, found).await;
        Ok(space)
    }

    /// The same of the images, whose file system may be another one. If it cannot be asked, nothing is known of it.
    async fn measure_images(&mut self, runtime: &Runtime, shared: &Shared, vault: Space) {
        let found = runtime.space(self.images.clone()).await.ok();
        found.iter().for_each(|found| self.pace.guard(self.gates.of(Some(found.device))));
        let space = found.map(|found| ImagesSpace::new(self.limits, found, vault));
        let low = space.filter(|space| space.is_low());
        if self.images_low.look(low.is_some(), runtime.now()) == Some(Told::Raised)
            && let Some(space) = low
        {
            shared.tell(runtime, GroupEvent::ImagesSpaceLow(space));
        }
        shared.status.borrow_mut().images = space;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Space = Space { free: 100 << 30, total: 200 << 30, device: 0 };

    #[test]
    fn the_larger_shortage_counts() {
        let limits =
            SpaceLimits { history_bytes_max: Some(1000), free_bytes_min: Some(50), ..SpaceLimits::default() };
        let shortage = |history, free| {
            SpaceStatus::new(limits, history, Space { free, total: 10_000, device: 0 }, 0).shortage()
        };
        assert_eq!(shortage(1000, 50), 0);
        assert_eq!(shortage(1001, 50), 1);
        assert_eq!(shortage(1001, 0), 50);
        assert_eq!(shortage(2000, 0), 1000);
    }

    #[test]
    fn a_point_that_did_not_fit_wants_more_than_was_free() {
        let limits = SpaceLimits { free_bytes_min: Some(50), ..SpaceLimits::default() };
        let shortage = |free, room| {
            let space = SpaceStatus::new(limits, 0, Space { free, total: 10_000, device: 0 }, room);
            SpaceStatus { point_exceeds: Some(100), ..space }.shortage()
        };
        assert_eq!((shortage(101, 0), shortage(100, 0), shortage(60, 0)), (0, 1, 41));
        assert_eq!(shortage(60, 100), 41, "the room is not for points");
        assert_eq!(shortage(0, 0), 101);
    }

    #[test]
    fn a_point_of_another_group_wants_the_same_and_is_told_from_the_groups_own() {
        let limits = SpaceLimits { free_bytes_min: Some(50), ..SpaceLimits::default() };
        let space = |free| {
            let space = SpaceStatus::new(limits, 0, Space { free, total: 10_000, device: 0 }, 0);
            SpaceStatus { others_exceed: Some(100), ..space }
        };
        assert_eq!((space(101).shortage(), space(60).shortage(), space(0).shortage()), (0, 41, 101));
        assert_eq!((space(60).is_own(), space(49).is_own()), (false, true));
    }

    #[test]
    fn a_warning_comes_before_the_shortage() {
        let limits =
            SpaceLimits { history_bytes_max: Some(1000), free_bytes_min: Some(50), ..SpaceLimits::default() };
        let is_low = |history, free| {
            SpaceStatus::new(limits, history, Space { free, total: 10_000, device: 0 }, 0).is_low()
        };
        assert!(!is_low(900, 100) && is_low(901, 100) && is_low(0, 99));
    }

    #[test]
    fn what_stays_free_unless_said_fits_the_file_system() {
        let minimum =
            |total| SpaceStatus::new(SpaceLimits::default(), 0, Space { total, ..FREE }, 0).free_bytes_min;
        assert_eq!(minimum(200 << 20), 10 << 20);
        assert_eq!(minimum(200 << 30), 1 << 30);
        assert_eq!(SpaceStatus::new(SpaceLimits::default(), 1 << 60, FREE, 0).shortage(), 0);
    }

    #[test]
    fn little_room_for_images_is_told_of_where_it_is_another_file_system_than_the_vaults() {
        let space = |free, device| Space { free, total: 200 << 20, device };
        let is_low =
            |limits, free, device| ImagesSpace::new(limits, space(free, device), space(0, 1)).is_low();
        let limits = SpaceLimits { images_free_bytes_min: Some(50), ..SpaceLimits::default() };
        assert!(is_low(limits, 49, 2) && !is_low(limits, 50, 2) && !is_low(limits, 0, 1));
        let unsaid = SpaceLimits::default();
        assert!(is_low(unsaid, (10 << 20) - 1, 2) && !is_low(unsaid, 10 << 20, 2), "a twentieth");
    }

    #[test]
    fn what_is_kept_back_counts_as_free() {
        let limits = SpaceLimits { free_bytes_min: Some(50), ..SpaceLimits::default() };
        let space =
            |free, reserve| SpaceStatus::new(limits, 0, Space { free, total: 10_000, device: 0 }, reserve);
        assert_eq!((space(40, 0).shortage(), space(30, 25).shortage(), space(0, 25).shortage()), (10, 0, 25));
        assert_eq!((space(80, 0).is_low(), space(80, 25).is_low()), (true, false));
    }

    #[test]
    fn the_reserve_is_half_of_what_stays_free_and_is_first_made_only_beside_it() {
        let reserve = |free, free_bytes_min| {
            let limits = SpaceLimits { free_bytes_min, ..SpaceLimits::default() };
            limits.first_room_bytes(Space { free, ..FREE })
        };
        assert_eq!(reserve(100 << 30, None), 64 << 20);
        assert_eq!(reserve(60, Some(40)), 20);
        assert_eq!(reserve(59, Some(40)), 0, "it would cause the shortage that it is for");
        assert_eq!(reserve(100 << 30, Some(0)), 0);
    }
}
