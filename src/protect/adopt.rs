//! Making a group of a vault alone: its images from the newest point, its journal anew, under a timeline of its own.
//! `docs/adoption.md` says why.
//!
//! Invariant: until it is done, `copying` or `adopting` lies in the group's directory, and the group is not opened; nothing
//! of the vault goes but pins of files that are lost already.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{Change, DiskRecord, ForkRecord, PinKind, PointDisk};
use crate::image::Image;
use crate::protect::open::GroupPlan;
use crate::runtime::Runtime;
use crate::storage::{File, OpenOptions};
use crate::units::{Lsn, SECTOR_BYTES, SectorCount, SectorRange, TimelineId};
use crate::vault::{self, Base, Vault};
use crate::view::{View, ViewDisk, allocated_pieces, copy_pieces};

/// The file that says that a vault is not copied yet,
const COPYING: &str = "copying";
/// and the one that says that it is there, but images and timeline are not.
const ADOPTING: &str = "adopting";

/// Fails where a group is one whose vault was not copied to the end.
pub async fn refuse_uncopied(runtime: &Runtime, plan: &GroupPlan) -> Result<()> {
    if has(runtime, plan, COPYING).await? {
        let text = "the copy of its vault was cut off: 'vault adopt' the vault that it is a copy of again";
        return Err(Error::new(ErrorKind::Latched, text).at_path(&plan.vault));
    }
    Ok(())
}

/// Fails where a group is one whose adoption was cut off.
pub async fn refuse_undone(runtime: &Runtime, plan: &GroupPlan) -> Result<()> {
    if has(runtime, plan, ADOPTING).await? {
        let text = format!("its adoption did not finish: 'vault adopt {}' again", plan.vault.display());
        return Err(Error::new(ErrorKind::Latched, text).at_path(&plan.directory));
    }
    Ok(())
}

async fn has(runtime: &Runtime, plan: &GroupPlan, note: &str) -> Result<bool> {
    Ok(names(runtime, &plan.directory).await?.iter().any(|name| name == note))
}

/// Puts a note into the group's directory, durably.
async fn note(runtime: &Rc<Runtime>, plan: &GroupPlan, note: &str) -> Result<()> {
    runtime.create_directory(&plan.directory).await?;
    if !has(runtime, plan, note).await? {
        let file = runtime.open(plan.directory.join(note), OpenOptions::CREATE).await?;
        runtime.sync(&file).await?;
    }
    runtime.sync_directory(&plan.directory).await?;
    match plan.directory.parent() {
        Some(parent) => runtime.sync_directory(parent).await,
        None => Ok(()),
    }
}

async fn forget(runtime: &Rc<Runtime>, plan: &GroupPlan, note: &str) -> Result<()> {
    if has(runtime, plan, note).await? {
        runtime.remove(plan.directory.join(note)).await?;
        runtime.sync_directory(&plan.directory).await?;
    }
    Ok(())
}

/// Fails where a vault of this group is here already, but for one that was not copied to the end.
pub async fn refuse_second_vault(runtime: &Runtime, plan: &GroupPlan) -> Result<()> {
    if names(runtime, &plan.vault).await?.is_empty() || has(runtime, plan, COPYING).await? {
        return Ok(());
    }
    let text = "a vault of this group is here: adopt that one, or move it away first";
    Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&plan.vault))
}

/// Copies a vault to where it belongs here; durable when this returns, and done again from its start after a death.
/// `proceed` is told bytes copied and to copy; its error ends it.
pub async fn fetch(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    from: &Path,
    proceed: impl Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    refuse_second_vault(runtime, plan).await?;
    refuse_protected(runtime, plan).await?;
    note(runtime, plan, COPYING).await?;
    vault::copy(runtime, from, &plan.vault, proceed).await?;
    note(runtime, plan, ADOPTING).await?;
    forget(runtime, plan, COPYING).await
}

/// Fails where a group has files that its vault may know less than.
pub async fn refuse_protected(runtime: &Runtime, plan: &GroupPlan) -> Result<()> {
    if has(runtime, plan, ADOPTING).await? {
        return Ok(());
    }
    for directory in [plan.journal(), plan.images()] {
        if !names(runtime, &directory).await?.is_empty() {
            let text = "the group has files here, which may know more than its vault: move this directory away first";
            return Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&plan.directory));
        }
    }
    Ok(())
}

async fn names(runtime: &Runtime, directory: &Path) -> Result<Vec<String>> {
    match runtime.list(directory).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        names => names,
    }
}

/// Makes all that a group needs besides its vault; durable when this returns, and done again from its start after a death.
/// `proceed` is told bytes written and to write; its error ends it.
pub async fn rebuild(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    vault: &Rc<Vault>,
    proceed: impl Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    refuse_uncopied(runtime, plan).await?;
    refuse_protected(runtime, plan).await?;
    note(runtime, plan, ADOPTING).await?;
    runtime.create_directory(plan.images()).await?;
    runtime.sync_directory(&plan.directory).await?;
    resize_to_newest(vault).await?;
    let timeline = TimelineId(runtime.random_u128());
    let marker = make_images(runtime, plan, vault, timeline, proceed).await?;
    let fork = ForkRecord { left: vault.manifest().state().timeline(), marker, wall: runtime.wall() };
    vault.manifest().append(Change::TimelineForked { timeline, fork }).await?;
    end_lost_views(vault).await?;
    forget(runtime, plan, ADOPTING).await
}

/// Gives disks the sizes that the newest point has them with. What was recorded of a growth after it, that it is zeros, was
/// lost with the journal, and older points may hold something else there.
async fn resize_to_newest(vault: &Vault) -> Result<()> {
    let changes: Vec<Change> = {
        let state = vault.manifest().state();
        let listed: &[PointDisk] = state.points().last().map_or(&[], |point| &point.disks);
        let resized = state.disks().filter_map(|disk| {
            let member = listed.iter().find(|member| member.slot == disk.slot)?;
            (member.sectors != disk.sectors).then_some(Change::DiskResized(disk.slot, member.sectors))
        });
        resized.collect()
    };
    for change in changes {
        vault.manifest().append(change).await?;
    }
    Ok(())
}

/// What becomes of a disk's image.
enum Content<'a> {
    /// What the newest point holds of it.
    Viewed(&'a ViewDisk, Vec<SectorRange>),
    /// What its base holds: it joined after the newest point.
    Based(Base, u64),
}

/// Makes the images as of the newest point, and gives its marker.
async fn make_images(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    vault: &Rc<Vault>,
    timeline: TimelineId,
    proceed: impl Fn(u64, u64) -> Result<()>,
) -> Result<Lsn> {
    let (newest, disks) = {
        let state = vault.manifest().state();
        (state.points().last().cloned(), state.disks().cloned().collect::<Vec<_>>())
    };
    let view = match &newest {
        Some(point) => Some(View::open(vault, point.id).await?),
        None => None,
    };
    let marker = newest.map_or(Lsn::ZERO, |point| point.marker);
    let (mut contents, mut total) = (Vec::with_capacity(disks.len()), 0);
    for disk in disks {
        let viewed = view.as_ref().and_then(|view| Some((view, view.disk(disk.id).ok()?)));
        let content = match viewed {
            Some((view, viewed)) => {
                let pieces = allocated_pieces(view, viewed).await?;
                let pieces: Vec<_> =
                    pieces.into_iter().filter_map(|piece| within(piece, disk.sectors)).collect();
                total += pieces.iter().map(|piece| piece.bytes()).sum::<u64>();
                Content::Viewed(viewed, pieces)
            }
            None => {
                let base = vault.bases().open(disk.id).await?;
                let data = base.data_ranges(0..base.bytes().await?).await?;
                let bytes = data.iter().map(|range| range.end - range.start).sum();
                total += bytes;
                Content::Based(base, bytes)
            }
        };
        contents.push((disk, content));
    }
    let done = Cell::new(0);
    let advance = |bytes: u64| {
        done.set(done.get() + bytes);
        proceed(done.get(), total)
    };
    for (disk, content) in contents {
        make_image(runtime, plan, (&disk, timeline, marker), view.as_deref(), content, &advance).await?;
    }
    Ok(marker)
}

fn within(piece: SectorRange, size: SectorCount) -> Option<SectorRange> {
    piece.intersection(SectorRange::new(0, size.0))
}

async fn make_image(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    (disk, timeline, marker): (&DiskRecord, TimelineId, Lsn),
    view: Option<&View>,
    content: Content<'_>,
    advance: &impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let images = plan.images();
    let fill = async |image: &File| match (content, view) {
        (Content::Viewed(viewed, pieces), Some(view)) => {
            copy_pieces(view, viewed, pieces, image, advance).await
        }
        (Content::Viewed(..), None) => unreachable!("a disk of a view has its view"),
        (Content::Based(base, bytes), _) => {
            base.copy_to(image, disk.sectors.0 * SECTOR_BYTES, &|_| Ok(())).await?;
            advance(bytes)
        }
    };
    Image::create_filled(runtime, &images, (disk.id, timeline), disk.sectors, marker, fill).await
}

/// Test failovers and restores were of the process that is gone, and so are their files.
async fn end_lost_views(vault: &Vault) -> Result<()> {
    let lost: Vec<_> = {
        let state = vault.manifest().state();
        let lost = state.pins().iter().filter(|pin| pin.kind != PinKind::Hold);
        lost.map(|pin| pin.id).collect()
    };
    for pin in lost {
        vault.manifest().append(Change::PinRemoved(pin)).await?;
    }
    Ok(())
}
