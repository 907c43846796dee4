//! The bases: one sparse raw file per disk that holds the disk as it was before the oldest delta, with its sums beside it.
//!
//! A base is complete when it is published, and its sums are before it is; the manifest step that adds the disk comes after. Only a
//! base advance (`super::advance`) writes to one again. Invariant: whoever reads a base compares it with its sums.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use super::files::remove_partials;
use super::layout::{self, BaseName, Layout, parse_base_name};
use super::sums::{self, Met, Sums, SumsRot, SumsWriter};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::image::TOO_LONG;
use crate::image::length::{check_disk_length, set_disk_length};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{Access, Create, File, Lock, OpenOptions, Slice};
use crate::sums::builder::SumsBuilder;
use crate::sums::with_lost;
use crate::units::{DiskId, SECTOR_BYTES, SectorCount, SectorRange, to_usize};

/// Bytes of one copied piece.
const COPY_BYTES: u64 = 1 << 20;
/// Sectors of one.
const COPY_SECTORS: u64 = COPY_BYTES / SECTOR_BYTES;
/// To write to a base, once the writes of a dead owner have landed.
const TO_WRITE: OpenOptions =
    OpenOptions { access: Access::ReadWrite, create: Create::Existing, lock: Lock::Wait, direct: false };

/// The bases of one vault.
pub struct Bases {
    runtime: Rc<Runtime>,
    layout: Layout,
    /// Deleted by this process.
    deleted: RefCell<BTreeSet<DiskId>>,
    /// Made by this process, which may not have named their disks yet.
    created: RefCell<BTreeSet<DiskId>>,
    /// What flipped in their sums, as far as advances met it.
    met: Rc<Met>,
    planted: Planted,
}

/// An open base.
pub struct Base {
    runtime: Rc<Runtime>,
    file: File,
    /// None of a base of before there were sums, as long as it has none.
    sums: Option<Sums>,
    planted: Planted,
}

/// A base that is written to.
pub(super) struct BaseWriter {
    pub(super) file: File,
    pub(super) sums: Option<SumsWriter>,
}

impl Base {
    /// The raw file: nothing that is read from it is compared with its sum.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether what is read from it is compared with sums.
    pub fn has_sums(&self) -> bool {
        self.sums.is_some()
    }

    /// Its sums, if it has any.
    pub(super) fn sums(&self) -> Option<&Sums> {
        self.sums.as_ref()
    }

    /// Its length.
    pub async fn bytes(&self) -> Result<u64> {
        self.runtime.length(&self.file).await
    }

    /// A range within it. Fails with `Corrupt`, and gives nothing, if a sector is not what was stored.
    pub async fn read(&self, range: SectorRange) -> Result<Slice> {
        let bytes =
            self.runtime.read(&self.file, range.byte_offset(), to_usize(range.bytes())).await?.freeze();
        if let Some(sums) = self.sums.as_ref().filter(|_| !self.planted.is(Bug::BaseUnverified))
            && let Some(sectors) = sums.mismatches(range.start, &bytes).await?.first()
        {
            return Err(self.mismatch(*sectors).await?);
        }
        Ok(bytes)
    }

    /// The sectors of a range that do not match their sums. Fails where it cannot be read.
    pub(super) async fn mismatches(&self, range: SectorRange) -> Result<Vec<SectorRange>> {
        let bytes = self.runtime.read(&self.file, range.byte_offset(), to_usize(range.bytes())).await?;
        match &self.sums {
            Some(sums) => sums.mismatches(range.start, &bytes).await,
            None => Ok(Vec::new()),
        }
    }

    /// Fails with `Corrupt` if a range, which has no bytes in it, should have some.
    pub async fn check_zeros(&self, range: SectorRange) -> Result<()> {
        let Some(sums) = &self.sums else { return Ok(()) };
        match sums.nonzero(&[range]).await?.first() {
            Some(sectors) => Err(self.mismatch(*sectors).await?),
            None => Ok(()),
        }
    }

    /// What there is to say of the first of sectors that do not have their sums.
    async fn mismatch(&self, sectors: SectorRange) -> Result<Error> {
        let (_, error) = self.blame(sectors).await?.swap_remove(0);
        Ok(error)
    }

    /// What there is to say of sectors that do not have their sums: that the base is not what was stored, or, where its sums are damaged,
    /// that nobody can tell.
    pub(super) async fn blame(&self, sectors: SectorRange) -> Result<Vec<(SectorRange, Error)>> {
        let parts = match &self.sums {
            Some(sums) => sums.blame(sectors).await?,
            None => vec![(sectors, None)],
        };
        let tell = |(sectors, unknown): (SectorRange, Option<u64>)| {
            let error = match (unknown, &self.sums) {
                (Some(offset), Some(sums)) => {
                    let text = format!(
                        "the sums of the base's sectors {sectors} are damaged, and nobody can tell what these should hold"
                    );
                    Error::corrupt(text).at_path(sums.file().path()).at_offset(offset)
                }
                _ => {
                    let text = format!("sectors {sectors} of the base do not match their sums");
                    Error::corrupt(text).at_path(self.file.path()).at_offset(sectors.byte_offset())
                }
            };
            (sectors, error)
        };
        Ok(parts.into_iter().map(tell).collect())
    }

    /// The parts of a range of bytes that are allocated, or should be by their sums: others are zeros.
    pub async fn data_ranges(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let data = self.runtime.data_ranges(&self.file, range.clone()).await?;
        let Some(sums) = &self.sums else { return Ok(data) };
        with_lost(data, range, async |holes| sums.nonzero(&holes).await).await
    }

    /// Copies what the base holds of its first `bytes` to `target`, compared with its sums; holes are left alone. An error of
    /// `copied`, which is told each piece, ends it.
    pub async fn copy_to(
        &self,
        target: &File,
        bytes: u64,
        copied: impl AsyncFnMut(SectorRange, &Slice) -> Result<()>,
    ) -> Result<()> {
        let bytes = self.bytes().await?.min(bytes);
        let all = Ranges::of([SectorRange::new(0, bytes.div_ceil(SECTOR_BYTES))]);
        self.copy_parts(target, &all, copied).await
    }

    /// The same of some ranges, beyond its end too: where bytes should be and are none, it fails.
    pub async fn copy_parts(
        &self,
        target: &File,
        ranges: &Ranges,
        mut copied: impl AsyncFnMut(SectorRange, &Slice) -> Result<()>,
    ) -> Result<()> {
        for piece in self.stored_parts(ranges).await?.pieces(COPY_SECTORS) {
            let data = self.read(piece).await?;
            self.runtime.write(target, piece.byte_offset(), data.clone()).await?;
            copied(piece, &data).await?;
        }
        Ok(())
    }

    /// The sectors of some ranges that are allocated, or should be by their sums.
    pub async fn stored_parts(&self, ranges: &Ranges) -> Result<Ranges> {
        let mut parts = Vec::new();
        for range in ranges.as_slice() {
            for data in self.data_ranges(range.byte_range()).await? {
                let part = SectorRange::new(data.start / SECTOR_BYTES, data.end.div_ceil(SECTOR_BYTES));
                parts.extend(part.intersection(*range));
            }
        }
        Ok(Ranges::of(parts))
    }
}

impl Bases {
    pub(super) fn new(runtime: &Rc<Runtime>, layout: &Layout) -> Bases {
        let (runtime, layout) = (Rc::clone(runtime), layout.clone());
        Bases {
            runtime,
            layout,
            deleted: RefCell::default(),
            created: RefCell::default(),
            met: Rc::default(),
            planted: Planted::NONE,
        }
    }

    pub(super) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
    }

    /// Creates the base of a new disk: nothing but zeros, without space.
    pub async fn create_empty(&self, disk: DiskId, sectors: SectorCount) -> Result<()> {
        self.create(disk, sectors, None, &|_| Ok(())).await
    }

    /// Creates the base of a disk that is imported: a sparse copy of `source`, zeros past its end. `progress` is told
    /// the bytes copied so far; its error ends the copy.
    pub async fn import(
        &self,
        disk: DiskId,
        sectors: SectorCount,
        source: &File,
        progress: impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        self.create(disk, sectors, Some(source), &progress).await
    }

    async fn create(
        &self,
        disk: DiskId,
        sectors: SectorCount,
        source: Option<&File>,
        progress: &impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        self.created.borrow_mut().insert(disk);
        let created = self.put(disk, sectors, source, progress).await;
        if created.is_err() {
            self.created.borrow_mut().remove(&disk);
        }
        created
    }

    async fn put(
        &self,
        disk: DiskId,
        sectors: SectorCount,
        source: Option<&File>,
        progress: &impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        let runtime = &self.runtime;
        let (path, unique) = (self.layout.base(disk), runtime.random_u128());
        let partial = layout::partial(&path, unique);
        let file = runtime.open(&partial, OpenOptions::CREATE).await?;
        let filled = async {
            set_disk_length(runtime, &file, sectors, TOO_LONG).await?;
            if let Some(source) = source {
                check_fits(runtime, source, sectors.bytes()).await?;
            }
            self.put_sums((disk, unique), source, Some(&file), progress).await?;
            runtime.sync(&file).await
        };
        if let Err(error) = filled.await {
            // Best effort: what stays is removed when the vault is opened next.
            let _ = runtime.remove(&partial).await;
            return Err(if error.path().is_some() { error } else { error.at_path(&partial) });
        }
        runtime.publish(&partial, &path).await?;
        self.deleted.borrow_mut().remove(&disk);
        runtime.sync_directory(self.layout.bases()).await
    }

    /// Publishes the sums of what `source` holds, and copies that to `target` on the way, if there is one. The base must not have its
    /// name yet: sums that are there are nobody's.
    async fn put_sums(
        &self,
        (disk, unique): (DiskId, u128),
        source: Option<&File>,
        target: Option<&File>,
        progress: &impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        let (runtime, path) = (&self.runtime, self.layout.sums(disk));
        let partial = layout::partial(&path, unique);
        let filled = async {
            let mut sums = sums::build(runtime, &partial, disk).await?;
            if let Some(source) = source {
                sum_data(runtime, source, target, &mut sums, progress).await?;
            }
            sums.finish().await
        };
        if let Err(error) = filled.await {
            // Best effort, as above.
            let _ = runtime.remove(&partial).await;
            return Err(error);
        }
        if self.has(&self.layout.base(disk)).await? {
            let _ = runtime.remove(&partial).await;
            let text = "the disk has a base already";
            return Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&self.layout.base(disk)));
        }
        self.remove(&path).await?;
        runtime.publish(&partial, &path).await?;
        runtime.sync_directory(self.layout.bases()).await
    }

    async fn has(&self, path: &Path) -> Result<bool> {
        let names = self.runtime.list(self.layout.bases()).await?;
        Ok(names.iter().any(|name| Some(name.as_ref()) == path.file_name()))
    }

    /// The bases of `disks` that have no sums yet.
    pub async fn unsummed(&self, disks: &[DiskId]) -> Result<Vec<DiskId>> {
        let names = self.runtime.list(self.layout.bases()).await?;
        let names: Vec<_> = names.iter().filter_map(|name| parse_base_name(name)).collect();
        // Beside the base itself it is a copy that somebody put there.
        let lacks_sums = |disk: &&DiskId| {
            names.contains(&BaseName::Unsummed(**disk)) && !names.contains(&BaseName::Base(**disk))
        };
        Ok(disks.iter().filter(lacks_sums).copied().collect())
    }

    /// Gives a base of before there were sums its sums: those of what it holds now, for there is nothing to compare it with. Nobody
    /// may write to it meanwhile. An error of `progress`, which is told the bytes read so far, ends it.
    pub async fn sum(&self, disk: DiskId, progress: impl Fn(u64) -> Result<()>) -> Result<()> {
        let path = self.layout.unsummed_base(disk);
        let file = self.runtime.open(&path, OpenOptions::READ).await?;
        // What is summed is what stays.
        self.runtime.sync(&file).await?;
        self.put_sums((disk, self.runtime.random_u128()), Some(&file), None, &progress).await?;
        self.runtime.publish(&path, self.layout.base(disk)).await?;
        self.runtime.sync_directory(self.layout.bases()).await
    }

    /// Makes a disk's base as long as the disk is about to be, durably; it stays so, whatever becomes of the growth. An
    /// advance that writes to it is waited for.
    pub async fn lengthen(&self, disk: DiskId, sectors: SectorCount) -> Result<()> {
        // Not tried on the base itself: the search for how long a file may be makes it shorter.
        let trial = layout::partial(&self.layout.bases().join("trial"), self.runtime.random_u128());
        check_disk_length(&self.runtime, &trial, sectors, TOO_LONG).await?;
        let (file, _) = self.open_file(disk, TO_WRITE).await?;
        if self.runtime.length(&file).await? < sectors.bytes() {
            self.runtime.set_length(&file, sectors.bytes()).await?;
        }
        self.runtime.sync(&file).await
    }

    /// Opens a disk's base for reading.
    pub async fn open(&self, disk: DiskId) -> Result<Base> {
        let (file, is_summed) = self.open_file(disk, OpenOptions::READ).await?;
        let sums = match is_summed {
            true => Some(Sums::open(&self.runtime, &self.layout.sums(disk), disk, OpenOptions::READ).await?),
            false => None,
        };
        Ok(Base { runtime: Rc::clone(&self.runtime), file, sums, planted: self.planted })
    }

    /// Opens the raw file, and says whether it has sums.
    pub(super) async fn open_file(&self, disk: DiskId, options: OpenOptions) -> Result<(File, bool)> {
        let summed = self.layout.base(disk);
        let lacking = match self.runtime.open(&summed, options).await {
            Err(error) if error.kind() == ErrorKind::NotFound => error,
            opened => return opened.map(|file| (file, true)),
        };
        match self.runtime.open(self.layout.unsummed_base(disk), options).await {
            Ok(file) => Ok((file, false)),
            // It may have got its sums, and with them its name, in between.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let opened = self.runtime.open(&summed, options).await;
                opened.map(|file| (file, true)).map_err(|_| lacking)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a disk's base to write to it, once the writes of a dead owner have landed.
    pub(super) async fn open_to_write(&self, disk: DiskId) -> Result<BaseWriter> {
        let (file, is_summed) = self.open_file(disk, TO_WRITE).await?;
        let sums = match is_summed {
            true => {
                let sums = Sums::open(&self.runtime, &self.layout.sums(disk), disk, TO_WRITE).await?;
                let sectors = self.runtime.length(&file).await? / SECTOR_BYTES;
                Some(SumsWriter::begin(sums, sectors, &self.met, self.planted).await?)
            }
            false => None,
        };
        Ok(BaseWriter { file, sums })
    }

    /// Whether what is damaged in the sums of a base that is opened to be written to has flipped: no advance left it. Returns what
    /// was said before.
    pub(super) fn tell_rot(&self, tells: bool) -> bool {
        self.met.tells.replace(tells)
    }

    /// What advances have met that flipped in sums of bases.
    pub fn take_rots(&self) -> Vec<SumsRot> {
        self.met.rots.take()
    }

    /// Whether this process made the disk's base, whose disk the manifest may not name yet.
    pub(super) fn is_created(&self, disk: DiskId) -> bool {
        self.created.borrow().contains(&disk)
    }

    /// Whether this process deleted the disk's base.
    pub(super) fn is_deleted(&self, disk: DiskId) -> bool {
        self.deleted.borrow().contains(&disk)
    }

    /// Deletes a disk's base; one that is not there is deleted already.
    pub async fn delete(&self, disk: DiskId) -> Result<()> {
        let layout = &self.layout;
        for path in [layout.base(disk), layout.unsummed_base(disk), layout.sums(disk)] {
            self.remove(&path).await?;
        }
        self.created.borrow_mut().remove(&disk);
        self.deleted.borrow_mut().insert(disk);
        Ok(())
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        match self.runtime.remove(path).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what an owner before this one did not publish.
    pub(super) async fn clean(&self, is_published: impl Fn(DiskId) -> bool) -> Result<()> {
        remove_partials(&self.runtime, &self.layout.bases(), |_| false).await?;
        let mut removed = BTreeSet::new();
        for name in self.runtime.list(self.layout.bases()).await? {
            let disk = parse_base_name(&name).map(BaseName::disk).filter(|&disk| !is_published(disk));
            if let Some(disk) = disk.filter(|&disk| removed.insert(disk)) {
                tracing::info!(%disk, "removing the base of a disk that never joined");
                self.delete(disk).await?;
            }
        }
        Ok(())
    }
}

/// Sums the data of `source`, and copies it to `target`, if there is one.
async fn sum_data(
    runtime: &Rc<Runtime>,
    source: &File,
    target: Option<&File>,
    sums: &mut SumsBuilder,
    progress: &impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let length = runtime.length(source).await?;
    let mut done = 0;
    for range in runtime.data_ranges(source, 0..length).await? {
        let mut offset = range.start / SECTOR_BYTES * SECTOR_BYTES;
        let end = range.end.next_multiple_of(SECTOR_BYTES).min(length);
        while offset < end {
            let piece = COPY_BYTES.min(end - offset);
            let data = runtime.read(source, offset, to_usize(piece)).await?.freeze();
            sums.add(offset / SECTOR_BYTES, &data).await?;
            if let Some(target) = target {
                runtime.write(target, offset, data).await?;
            }
            offset += piece;
            done += piece;
            progress(done)?;
        }
    }
    Ok(())
}

/// Copies the data of the first `bytes` of `source`, leaving its holes alone: the target reads as zeros there. An error of
/// `progress` ends it.
pub async fn copy_sparse(
    runtime: &Rc<Runtime>,
    source: &File,
    target: &File,
    bytes: u64,
    progress: &impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let length = check_fits(runtime, source, bytes).await?;
    let mut copied = 0;
    for range in runtime.data_ranges(source, 0..length).await? {
        let mut offset = range.start;
        while offset < range.end {
            let piece = COPY_BYTES.min(range.end - offset);
            let data = runtime.read(source, offset, to_usize(piece)).await?.freeze();
            runtime.write(target, offset, data).await?;
            offset += piece;
            copied += piece;
            progress(copied)?;
        }
    }
    Ok(())
}

/// Fails where a source is longer than what it is copied to; its length.
async fn check_fits(runtime: &Rc<Runtime>, source: &File, bytes: u64) -> Result<u64> {
    let length = runtime.length(source).await?;
    if length > bytes {
        let text =
            format!("the image has {length} bytes, the disk {bytes}: give the disk at least that size");
        return Err(Error::invalid(text).at_path(source.path()));
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
