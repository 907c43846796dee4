//! Verifies a vault: reads every stored byte and says what is wrong, where. Repairs nothing.
//!
//! It reads the manifest from disk, not from memory, and blobs and bases from their device, not from the page cache, as far as
//! the operating system lets go of them. While the group goes on, points may appear beside it: it judges
//! what the manifest named when it began, and what this process has not published yet is no orphan.

mod manifest;

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};

pub use manifest::verify_manifest;

use super::Vault;
use super::harm::{self, Harmed, Lost};
use super::keyring;
use super::layout::{self, BaseName, parse_base_name, parse_blob_name};
use super::state::State;
use super::verify_base::{verify_base, whole};
use crate::bookmark::{Bookmark, Place};
use crate::error::{Error, ErrorKind, Result, is_of_the_file};
use crate::format::delta::{DeltaRef, Header, Tables};
use crate::format::manifest::DiskState;
use crate::format::record::PointRecord;
use crate::format::summary::Cover;
use crate::storage::{File, Op, OpenOptions};
use crate::throttle::{Pacing, Throttle};
use crate::units::{DiskId, DiskSlot, Lsn, SectorRange, to_usize};

/// Pages of a summary that are read at a time.
const SUMMARY_PAGES: usize = 32;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Takes space and harms nothing: left behind by a crash, or put there by somebody.
    Orphan,
    /// Part of a cache, or of what no point shows, is not what was written: answers stay right, and it is written anew.
    Cache,
    /// Stored bytes are lost or not what was stored.
    Damage,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub path: PathBuf,
    /// The byte in the file, where one is known.
    pub offset: Option<u64>,
    /// What is wrong.
    pub text: String,
    /// The recovery points that show what was lost, if any do.
    pub harmed: Option<Harmed>,
    pub(super) lost: Lost,
}

impl Finding {
    /// The finding alone, without the points that it harms.
    pub fn alone(&self) -> Finding {
        Finding { harmed: None, ..self.clone() }
    }

    /// Whether it is a base that is damaged.
    pub fn is_of_base(&self) -> bool {
        matches!(self.lost, Lost::Base(..))
    }

    /// Whether it is in the sums of a base.
    pub fn is_of_sums(&self) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str());
        matches!(name.and_then(parse_base_name), Some(BaseName::Sums(_)))
    }

    /// What of a disk's base it says is lost.
    pub fn lost_of_base(&self, disk: DiskId) -> Option<SectorRange> {
        match self.lost {
            Lost::Base(of, range) if of == disk => Some(range),
            _ => None,
        }
    }

    /// Whether no point that it harms can be opened: then nobody can tell sector by sector what is lost.
    pub fn hinders_opening(&self) -> bool {
        match self.lost {
            Lost::Manifest | Lost::Blob(_) => true,
            Lost::Base(_, range) => range == SectorRange::new(0, u64::MAX),
            Lost::Chunk(..) | Lost::Nothing => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.text)?;
        self.harmed.as_ref().map_or(Ok(()), |harmed| write!(f, "; {harmed}"))
    }
}

/// What a verification saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Everything that is not as it should be.
    pub findings: Vec<Finding>,
    /// The recovery points that one of them harms or several do, oldest first.
    pub harmed: Vec<PointRecord>,
    /// Manifest steps and snapshots read.
    pub manifest_files: u64,
    /// Delta blobs read.
    pub blobs: u64,
    /// Bytes of delta blobs read and compared with their checksums.
    pub blob_bytes: u64,
    /// Bases read and compared with their sums.
    pub bases: u64,
    /// Summaries read: every page.
    pub summaries: u64,
    /// Bytes of bases read: what is no hole.
    pub base_bytes: u64,
}

impl VerifyReport {
    /// Whether no stored byte is lost or wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Damage)
    }

    fn orphan(&mut self, path: PathBuf, text: &str) {
        let (severity, text, lost) = (Severity::Orphan, text.to_owned(), Lost::Nothing);
        self.findings.push(Finding { severity, path, offset: None, text, harmed: None, lost });
    }

    /// Records what an error says of a file; an error that says nothing of stored bytes stays one.
    pub(super) fn damage(&mut self, lost: Lost, error: Error, path: &Path) -> Result<()> {
        self.find(Severity::Damage, lost, error, path)
    }

    pub(super) fn find(&mut self, severity: Severity, lost: Lost, error: Error, path: &Path) -> Result<()> {
        if !is_of_the_file(error.kind()) {
            return Err(error);
        }
        let path = error.path().unwrap_or(path).to_owned();
        let (offset, text) = (error.offset(), error.without_place());
        self.findings.push(Finding { severity, path, offset, text, harmed: None, lost });
        Ok(())
    }
}

/// How far a verification is, and how fast it goes.
pub(super) struct Pace<P> {
    throttle: Throttle,
    bookmark: Bookmark,
    /// Where it began.
    pub(super) from: Place,
    progress: P,
    done: Cell<u64>,
    total: u64,
}

impl<P: Fn(u64, u64) -> Result<()>> Pace<P> {
    /// Notes that `bytes` need not be read: one that was cut off did.
    pub(super) fn skip(&self, bytes: u64) {
        self.done.update(|done| done + bytes);
    }

    /// Notes that everything before `place` was read.
    pub(super) fn pass(&self, place: Place, report: &VerifyReport) {
        self.bookmark.pass(place, report.blob_bytes + report.base_bytes, report.is_sound());
    }

    /// Notes that `bytes` more were read; comes back when more may be.
    pub(super) async fn read(&self, bytes: u64) -> Result<()> {
        self.done.update(|done| done + bytes);
        self.read_besides(bytes).await
    }

    /// The same of bytes that are not among those to do.
    pub(super) async fn read_besides(&self, bytes: u64) -> Result<()> {
        self.throttle.take(bytes, || (self.progress)(self.done.get(), self.total)).await
    }
}

/// Reads everything in a vault, as fast as it can. `progress` is told the bytes of blobs and bases read and their sum; its error
/// ends the verification.
pub async fn verify(vault: &Vault, progress: impl Fn(u64, u64) -> Result<()>) -> Result<VerifyReport> {
    verify_at(vault, &Pacing::default(), &Bookmark::default(), progress).await
}

/// The same, at a pace, and from a bookmark on, which moves with it. The manifest is read in any case; what retention made anew before
/// the bookmark is left for the next time.
pub async fn verify_at(
    vault: &Vault,
    pacing: &Pacing,
    bookmark: &Bookmark,
    progress: impl Fn(u64, u64) -> Result<()>,
) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    // Appends wait meanwhile: a snapshot would take steps away that are about to be read.
    let pause = vault.manifest().pause().await;
    let state = vault.manifest().state().clone();
    if let Err(error) = keyring::check(vault.runtime(), vault.layout()).await {
        report.damage(Lost::Nothing, error, &vault.layout().keys())?;
    }
    manifest::verify(vault, &state, &mut report).await?;
    drop(pause);
    let total = blob_bytes(&state) + base_bytes(vault, &state).await;
    let (throttle, bookmark, done) = (pacing.on(vault.runtime()), bookmark.clone(), Cell::new(0));
    let from = bookmark.mark().place;
    let pace = Pace { throttle, bookmark, from, progress, done, total };
    verify_blobs(vault, &state, &mut report, &pace).await?;
    if from < Place::Bases(DiskSlot(0), 0) {
        verify_summaries(vault, &mut report).await?;
        pace.pass(Place::Bases(DiskSlot(0), 0), &report);
    }
    verify_bases(vault, &state, &mut report, &pace).await?;
    report.harmed =
        harm::find(vault, &mut report.findings, async |bytes| pace.read_besides(bytes).await).await?;
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(report)
}

/// The deltas that a state names, with their points: retired ones have none.
fn named_deltas(state: &State) -> impl Iterator<Item = (Option<&PointRecord>, DeltaRef)> {
    let retired = state.base_advance().map_or(&[][..], |(_, retired)| retired);
    let retired = retired.iter().map(|delta| (None, *delta));
    retired.chain(state.points().iter().filter_map(|point| point.delta.map(|delta| (Some(point), delta))))
}

fn blob_bytes(state: &State) -> u64 {
    named_deltas(state).map(|(_, delta)| delta.total_bytes).sum()
}

/// Has a file read from its device, and keeps the page cache for others. Best effort: else memory is read.
pub(super) async fn evict(vault: &Vault, file: Result<File>) {
    if let Ok(file) = file {
        let _ = vault.runtime().call(Op::Evict { file }).await;
    }
}

/// Reads every blob that a point names, whole, and looks for blobs that none names.
async fn verify_blobs<P: Fn(u64, u64) -> Result<()>>(
    vault: &Vault,
    state: &State,
    report: &mut VerifyReport,
    pace: &Pace<P>,
) -> Result<()> {
    find_orphan_blobs(vault, report).await?;
    for (point, delta) in named_deltas(state) {
        let place = Place::Blobs(point.map_or(Lsn::ZERO, |point| point.marker));
        if place <= pace.from {
            pace.skip(delta.total_bytes);
            continue;
        }
        let lease = {
            // Retention goes on: what it has merged since is judged next time.
            let is_named = vault.manifest().state().names_blob(delta.blob);
            is_named
                .then(|| vault.leases().take(point.map_or(Lsn::ZERO, |point| point.marker), vec![delta.blob]))
        };
        if lease.is_none() {
            continue;
        }
        evict(vault, vault.blobs().open(delta.blob).await).await;
        let (before, verified) = (pace.done.get(), verify_blob(vault, point, delta, report, pace).await);
        if let Err(error) = verified {
            report.damage(Lost::Blob(delta.blob), error, &vault.layout().blob(delta.blob))?;
        }
        evict(vault, vault.blobs().open(delta.blob).await).await;
        // Its tables, and whatever could not be read.
        pace.read((before + delta.total_bytes).saturating_sub(pace.done.get())).await?;
        if point.is_some() {
            pace.pass(place, report);
        }
    }
    Ok(())
}

/// Listed first and judged after: what is published in between is named by then.
async fn find_orphan_blobs(vault: &Vault, report: &mut VerifyReport) -> Result<()> {
    let directory = vault.layout().blobs();
    let names = vault.runtime().list(&directory).await?;
    let state = vault.manifest().state();
    let named =
        |blob| state.names_blob(blob) || vault.blobs().is_unsettled(blob) || vault.leases().is_doomed(blob);
    for name in names.iter().filter(|name| !layout::is_partial(name)) {
        if parse_blob_name(name).is_none_or(|blob| !named(blob)) {
            report.orphan(directory.join(name), "no recovery point names this blob");
        }
    }
    Ok(())
}

async fn verify_blob<P: Fn(u64, u64) -> Result<()>>(
    vault: &Vault,
    point: Option<&PointRecord>,
    reference: DeltaRef,
    report: &mut VerifyReport,
    pace: &Pace<P>,
) -> Result<()> {
    let reader = vault.open_delta(&reference).await?;
    let path = vault.layout().blob(reference.blob);
    let (header, tables) = (reader.header(), reader.tables());
    if let Some(point) = point {
        check_is_of(point, header, tables, &reference).map_err(|error| error.at_path(&path))?;
    }
    report.blobs += 1;
    report.blob_bytes += reference.total_bytes;
    // Each bad chunk is a finding of its own: the others may still be worth having.
    for index in reader.chunks() {
        if let Err(error) = reader.chunk(index).await {
            report.damage(Lost::Chunk(reference.blob, index), error, &path)?;
        }
        pace.read(tables.chunks[index as usize].stored_bytes.into()).await?;
    }
    Ok(())
}

/// A blob's marker and disks are those of its point.
fn check_is_of(point: &PointRecord, header: &Header, tables: &Tables, reference: &DeltaRef) -> Result<()> {
    if header.marker != point.marker {
        let text = format!("its marker is {}, its point's is {}", header.marker, point.marker);
        return Err(Error::corrupt(text).at_offset(80));
    }
    for table in &tables.disks {
        let member = point.disks.iter().find(|member| member.slot == table.slot);
        if member.is_none_or(|member| member.disk != table.disk || member.sectors != table.sectors) {
            let text = format!("its disk in slot {} is not the one of its point", table.slot.0);
            return Err(Error::corrupt(text).at_offset(reference.tables_offset()));
        }
    }
    Ok(())
}

/// Reads every summary that holds. Damage there is none of the vault's: a view that meets it uses the deltas.
async fn verify_summaries(vault: &Vault, report: &mut VerifyReport) -> Result<()> {
    let deltas = vault.manifest().state().all_deltas();
    for cover in vault.summaries().holding(&deltas) {
        let _lease = vault.leases().take_summary(cover);
        if !vault.summaries().is_known(&cover) {
            // It went while others were read.
            continue;
        }
        report.summaries += 1;
        if let Err(error) = verify_summary(vault, &cover).await {
            report.find(Severity::Cache, Lost::Nothing, error, &vault.layout().summary(&cover))?;
        }
    }
    Ok(())
}

async fn verify_summary(vault: &Vault, cover: &Cover) -> Result<()> {
    let (reader, file) = vault.open_summary(cover).await?;
    for disk in &reader.root().disks {
        for first in (0..disk.fences.len()).step_by(SUMMARY_PAGES) {
            let count = SUMMARY_PAGES.min(disk.fences.len() - first);
            reader.extents(vault.runtime(), &file, disk, first, count).await?;
        }
    }
    let pages = to_usize(reader.footer().chunk_pages());
    for first in (0..pages).step_by(SUMMARY_PAGES) {
        reader.chunks(vault.runtime(), &file, first as u64, SUMMARY_PAGES.min(pages - first)).await?;
    }
    Ok(())
}

/// Bytes that the bases of a state hold, as far as that can be told.
async fn base_bytes(vault: &Vault, state: &State) -> u64 {
    let mut bytes = 0;
    for disk in state.all_disks().iter().filter(|disk| state.needs_base(disk)) {
        let Ok((file, _)) = vault.bases().open_file(disk.record.id, OpenOptions::READ).await else {
            continue;
        };
        let ranges = vault.runtime().data_ranges(&file, 0..disk.record.sectors.bytes()).await;
        bytes += ranges.iter().flatten().map(|range| range.end - range.start).sum::<u64>();
    }
    bytes
}

/// Looks for files among the bases that no disk needs.
async fn find_orphan_bases(vault: &Vault, report: &mut VerifyReport) -> Result<()> {
    let directory = vault.layout().bases();
    let names = vault.runtime().list(&directory).await?;
    let parsed: Vec<_> = names.iter().map(|name| parse_base_name(name)).collect();
    for (name, parsed_name) in names.iter().zip(&parsed) {
        let known = parsed_name.is_some_and(|name| {
            vault.manifest().state().names_disk(name.disk()) || vault.bases().is_created(name.disk())
        });
        if !known && !layout::is_partial(name) {
            report.orphan(directory.join(name), "no disk of the group has this base");
        } else if let Some(BaseName::Unsummed(disk)) = *parsed_name
            && parsed.contains(&Some(BaseName::Base(disk)))
        {
            report
                .orphan(directory.join(name), "a copy: the disk's base is the file with .summed in its name");
        }
    }
    Ok(())
}

/// Reads every base that is needed: it must be there, as long as its disk is or was at any point, at least, and readable.
async fn verify_bases<P: Fn(u64, u64) -> Result<()>>(
    vault: &Vault,
    state: &State,
    report: &mut VerifyReport,
    pace: &Pace<P>,
) -> Result<()> {
    find_orphan_bases(vault, report).await?;
    let mut disks: Vec<_> = state.all_disks().iter().filter(|disk| state.needs_base(disk)).collect();
    disks.sort_by_key(|disk| disk.record.slot);
    for disk in disks {
        let path = vault.layout().base(disk.record.id);
        report.bases += 1;
        match verify_base(vault, disk, length_min(state, disk), report, pace).await {
            Err(error) if error.kind() == ErrorKind::Shutdown => return Err(error),
            // Retention goes on: it deletes the base of a disk that left once no point holds it.
            Err(_) if !is_needed(vault, disk.record.id) => {}
            Err(error) => report.damage(whole(disk), error, &path)?,
            Ok(()) => {}
        }
    }
    Ok(())
}

/// A base grows before its disk does, and never gets shorter.
pub(super) fn length_min(state: &State, disk: &DiskState) -> u64 {
    let members = state.points().iter().flat_map(|point| point.disks.iter());
    let sizes = members.filter(|member| member.slot == disk.record.slot).map(|member| member.sectors);
    let now = (!disk.removed).then_some(disk.record.sectors);
    sizes.chain(now).max().unwrap_or_default().bytes()
}

fn is_needed(vault: &Vault, disk: DiskId) -> bool {
    let state = vault.manifest().state();
    state.all_disks().iter().any(|known| known.record.id == disk && state.needs_base(known))
}
