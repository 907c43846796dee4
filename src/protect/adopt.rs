//! Making a group of a vault alone: its images from the newest point, its journal anew, under a timeline of its own.
//! `docs/adoption.md` says why.
//!
//! Invariant: until it is done, `copying` or `adopting` lies in the group's directory, and the group is not opened; nothing
//! of the vault goes but pins of files that are lost already. What the newest point shows is in the images, byte by byte, but for
//! what somebody gave up by name ([`super::loss`]).

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::format::record::{Change, DiskRecord, ForkRecord, PinKind, PointDisk};
use crate::image::{Filling, Image};
use crate::protect::loss::{Loss, Terms};
use crate::protect::open::GroupPlan;
use crate::runtime::Runtime;
use crate::storage::{Access, Buffer, OpenOptions};
use crate::units::{Lsn, SECTOR_BYTES, SectorRange, TimelineId, to_usize};
use crate::vault::{self, Base, Vault};
use crate::view::{View, ViewDisk, allocated_pieces, copy_pieces};

/// The file that says that a vault is not copied yet,
const COPYING: &str = "copying";
/// and the one that says that it is there, but images and timeline are not.
const ADOPTING: &str = "adopting";
/// Bytes of the reason in it, at most: it is read by people, in one line.
const REASON_BYTES_MAX: usize = 4096;

/// Fails where a group is one whose vault was not copied to the end.
pub async fn refuse_uncopied(runtime: &Runtime, plan: &GroupPlan) -> Result<()> {
    if has(runtime, plan, COPYING).await? {
        let text = "the copy of its vault was cut off: 'vault adopt' the vault that it is a copy of again";
        return Err(Error::new(ErrorKind::Latched, text).at_path(&plan.vault));
    }
    Ok(())
}

/// Fails where a group is one whose adoption was cut off, or came to no end: with why, as far as that was noted.
pub async fn refuse_undone(runtime: &Runtime, plan: &GroupPlan) -> Result<()> {
    if has(runtime, plan, ADOPTING).await? {
        let why = noted_reason(runtime, plan).await.unwrap_or_default();
        let why = if why.is_empty() { why } else { format!(": {why}") };
        let text = format!("its adoption did not finish{why}: 'vault adopt {}' again", plan.vault.display());
        return Err(Error::new(ErrorKind::Latched, text).at_path(&plan.directory));
    }
    Ok(())
}

/// Puts into the note why an adoption came to no end, for people to read.
async fn note_reason(runtime: &Rc<Runtime>, plan: &GroupPlan, why: &Error) -> Result<()> {
    let text = why.to_string();
    let end = text.floor_char_boundary(REASON_BYTES_MAX);
    let path = plan.directory.join(ADOPTING);
    let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::READ };
    let file = runtime.open(&path, options).await?;
    runtime.set_length(&file, 0).await?;
    runtime.write(&file, 0, Buffer::copy_of(&text.as_bytes()[..end]).freeze()).await?;
    runtime.sync(&file).await
}

async fn noted_reason(runtime: &Runtime, plan: &GroupPlan) -> Result<String> {
    let file = runtime.open(plan.directory.join(ADOPTING), OpenOptions::READ).await?;
    let length = runtime.length(&file).await?.min(REASON_BYTES_MAX as u64);
    let bytes = runtime.read(&file, 0, to_usize(length)).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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
/// [`finish`] comes next, once somebody has kept what was given up. `proceed` is told bytes done and to do; its error ends it.
///
/// # Errors
/// With `Corrupt`, what the newest point shows and cannot be read, unless that is [given up](Terms::AcceptLoss).
pub async fn rebuild(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    vault: &Rc<Vault>,
    terms: Terms,
    proceed: impl Fn(u64, u64) -> Result<()>,
) -> Result<Loss> {
    refuse_uncopied(runtime, plan).await?;
    refuse_protected(runtime, plan).await?;
    note(runtime, plan, ADOPTING).await?;
    let rebuilt = rebuild_noted(runtime, plan, vault, terms, proceed).await;
    if let Err(error) = &rebuilt
        && error.kind() != ErrorKind::Shutdown
    {
        // Best effort: without it the group is listed without the reason.
        let _ = note_reason(runtime, plan, error).await;
    }
    rebuilt
}

async fn rebuild_noted(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    vault: &Rc<Vault>,
    terms: Terms,
    proceed: impl Fn(u64, u64) -> Result<()>,
) -> Result<Loss> {
    runtime.create_directory(plan.images()).await?;
    runtime.sync_directory(&plan.directory).await?;
    resize_to_newest(vault).await?;
    let timeline = TimelineId(runtime.random_u128());
    let maker = Maker { runtime, plan, vault, timeline };
    let (marker, loss) = match maker.make_images(&Loss::default(), &proceed).await {
        Err(error) if is_of_contents(&error, plan) => {
            let loss = Loss::find(vault, &proceed).await?;
            if loss.is_empty() {
                // The device did not give it once.
                return Err(error);
            }
            loss.check(&plan.vault, terms)?;
            (maker.make_images(&loss, &proceed).await?, loss)
        }
        made => (made?, Loss::default()),
    };
    let fork = ForkRecord { left: vault.manifest().state().timeline(), marker, wall: runtime.wall() };
    vault.manifest().append(Change::TimelineForked { timeline, fork }).await?;
    end_lost_views(vault).await?;
    Ok(loss)
}

/// The group is one like any other from here on.
pub async fn finish(runtime: &Rc<Runtime>, plan: &GroupPlan) -> Result<()> {
    forget(runtime, plan, ADOPTING).await
}

/// Whether an error says something of what the vault holds, not of the images or of who reads.
fn is_of_contents(error: &Error, plan: &GroupPlan) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io | ErrorKind::NotFound)
        && error.path().is_none_or(|path| path.starts_with(&plan.vault))
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
    Based(Base, Ranges),
}

/// Makes images as of the newest point of a vault.
struct Maker<'a> {
    runtime: &'a Rc<Runtime>,
    plan: &'a GroupPlan,
    vault: &'a Rc<Vault>,
    timeline: TimelineId,
}

impl Maker<'_> {
    /// Makes all of them, with zeros for what is lost, and gives the point's marker.
    async fn make_images(&self, loss: &Loss, proceed: impl Fn(u64, u64) -> Result<()>) -> Result<Lsn> {
        let (newest, disks) = {
            let state = self.vault.manifest().state();
            (state.points().last().cloned(), state.disks().cloned().collect::<Vec<_>>())
        };
        if let Some(newest) = &newest {
            loss.check_lacking(newest)?;
        }
        let view = match &newest {
            Some(point) => Some(View::open_with_lacking(self.vault, point.id).await?),
            None => None,
        };
        let marker = newest.as_ref().map_or(Lsn::ZERO, |point| point.marker);
        let (mut contents, mut total) = (Vec::with_capacity(disks.len()), 0);
        for disk in disks {
            let joined_later =
                newest.as_ref().is_none_or(|point| point.disks.iter().all(|member| member.disk != disk.id));
            let kept = loss.kept_of(&disk);
            let content = match &view {
                Some(view) if !joined_later => {
                    let viewed = view.disk(disk.id)?;
                    let pieces = allocated_pieces(view, viewed, &kept).await?;
                    total += pieces.iter().map(|piece| piece.bytes()).sum::<u64>();
                    Content::Viewed(viewed, pieces)
                }
                _ => {
                    let base = self.vault.bases().open(disk.id).await?;
                    let parts = base.stored_parts(&kept).await?;
                    total += parts.sectors() * SECTOR_BYTES;
                    Content::Based(base, parts)
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
            self.make_image(&disk, marker, view.as_deref(), content, &advance).await?;
        }
        Ok(marker)
    }

    async fn make_image(
        &self,
        disk: &DiskRecord,
        marker: Lsn,
        view: Option<&View>,
        content: Content<'_>,
        advance: &impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        let images = self.plan.images();
        let fill = async |image: &mut Filling| match (content, view) {
            (Content::Viewed(viewed, pieces), Some(view)) => {
                let file = image.file.clone();
                copy_pieces(view, viewed, pieces, &file, async |piece, data| {
                    for (range, data) in data {
                        image.wrote(*range, data).await?;
                    }
                    advance(piece.bytes())
                })
                .await
            }
            (Content::Viewed(..), None) => unreachable!("a disk of a view has its view"),
            (Content::Based(base, parts), _) => {
                let file = image.file.clone();
                base.copy_parts(&file, &parts, async |piece, data| image.wrote(piece, data).await).await?;
                advance(parts.sectors() * SECTOR_BYTES)
            }
        };
        let named = (disk.id, self.timeline);
        Image::create_filled(self.runtime, &images, named, disk.sectors, marker, fill).await.map(drop)
    }
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
