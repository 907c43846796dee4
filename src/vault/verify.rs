//! Verifies a vault: reads every stored byte and says what is wrong, where. Repairs nothing.
//!
//! It reads the manifest from disk, not from memory. While the group goes on, points may appear beside it: it judges
//! what the manifest named when it began, and what this process has not published yet is no orphan.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Vault;
use super::keyring;
use super::layout::{self, parse_base_name, parse_blob_name};
use super::manifest::{Listing, advance, read_snapshot, read_step};
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::format::delta::{DeltaRef, Header, Tables};
use crate::format::manifest::StepNumber;
use crate::format::record::PointRecord;
use crate::format::summary::Cover;
use crate::units::{Lsn, to_usize};

/// Pages of a summary that are read at a time.
const SUMMARY_PAGES: usize = 32;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Takes space and harms nothing: left behind by a crash, or put there by somebody.
    Orphan,
    /// Part of a cache is not what was written: answers stay right, and it is built anew.
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
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// What a verification saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Everything that is not as it should be.
    pub findings: Vec<Finding>,
    /// Manifest steps and snapshots read.
    pub manifest_files: u64,
    /// Delta blobs read.
    pub blobs: u64,
    /// Bytes of delta blobs read and compared with their checksums.
    pub blob_bytes: u64,
    /// Bases looked at; they carry no checksums.
    pub bases: u64,
    /// Summaries read: every page.
    pub summaries: u64,
}

impl VerifyReport {
    /// Whether no stored byte is lost or wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Damage)
    }

    fn orphan(&mut self, path: PathBuf, text: &str) {
        let text = text.to_owned();
        self.findings.push(Finding { severity: Severity::Orphan, path, offset: None, text });
    }

    /// Records what an error says of a file; an error that says nothing of stored bytes stays one.
    fn damage(&mut self, error: Error, path: &Path) -> Result<()> {
        self.find(Severity::Damage, error, path)
    }

    fn find(&mut self, severity: Severity, error: Error, path: &Path) -> Result<()> {
        match error.kind() {
            ErrorKind::Corrupt
            | ErrorKind::NotFound
            | ErrorKind::Io
            | ErrorKind::NoKey
            | ErrorKind::Unsupported => {
                let path = error.path().unwrap_or(path).to_owned();
                let (offset, text) = (error.offset(), error.without_place());
                self.findings.push(Finding { severity, path, offset, text });
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// Reads everything in a vault. `progress` is told the blob bytes read and their sum; its error ends the verification.
pub async fn verify(vault: &Vault, progress: impl Fn(u64, u64) -> Result<()>) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    // Appends wait meanwhile: a snapshot would take steps away that are about to be read.
    let pause = vault.manifest().pause().await;
    let state = vault.manifest().state().clone();
    if let Err(error) = keyring::check(vault.runtime(), vault.layout()).await {
        report.damage(error, &vault.layout().keys())?;
    }
    verify_manifest(vault, &state, &mut report).await?;
    drop(pause);
    verify_blobs(vault, &state, &mut report, progress).await?;
    verify_summaries(vault, &mut report).await?;
    verify_bases(vault, &state, &mut report).await?;
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(report)
}

/// Reads every step and snapshot, and compares what they add up to with the state that the process has.
async fn verify_manifest(vault: &Vault, known: &State, report: &mut VerifyReport) -> Result<()> {
    let layout = vault.layout();
    let listing = Listing::read(vault.runtime(), layout).await?;
    for name in &listing.strangers {
        if !layout::is_partial(name) {
            report.orphan(layout.manifest().join(name), "no name that a manifest has");
        }
    }
    let first = listing.snapshots.first().copied().unwrap_or_default();
    let mut state = None;
    if first > StepNumber(0) {
        match read_snapshot(vault.runtime(), layout, first, vault.keys()).await {
            Ok(snapshot) => state = Some(State::from_snapshot(snapshot)),
            Err(error) => return report.damage(error, &layout.snapshot(first)),
        }
        report.manifest_files += 1;
    }
    let mut number = first.next();
    while number <= known.newest() {
        let path = layout.step(number);
        let step = read_step(vault.runtime(), layout, number, vault.keys()).await;
        match step.and_then(|(step, checksum)| advance(state.take(), step, checksum)) {
            Ok(advanced) => state = Some(advanced),
            Err(error) => return report.damage(error, &path),
        }
        report.manifest_files += 1;
        if listing.snapshots.contains(&number) {
            verify_snapshot(vault, number, state.as_ref(), report).await?;
        }
        number = number.next();
    }
    if state.as_ref() != Some(known) {
        let text = "the manifest on disk is not the one that the process has";
        report.damage(Error::corrupt(text), &layout.manifest())?;
    }
    Ok(())
}

async fn verify_snapshot(
    vault: &Vault,
    number: StepNumber,
    steps: Option<&State>,
    report: &mut VerifyReport,
) -> Result<()> {
    let path = vault.layout().snapshot(number);
    report.manifest_files += 1;
    match read_snapshot(vault.runtime(), vault.layout(), number, vault.keys()).await {
        Ok(snapshot) if steps == Some(&State::from_snapshot(snapshot.clone())) => Ok(()),
        Ok(_) => report.damage(Error::corrupt("the snapshot is not what the steps add up to"), &path),
        Err(error) => report.damage(error, &path),
    }
}

/// Reads every blob that a point names, whole, and looks for blobs that none names.
async fn verify_blobs(
    vault: &Vault,
    state: &State,
    report: &mut VerifyReport,
    progress: impl Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    let retired = state.base_advance().map_or(&[][..], |(_, retired)| retired);
    let retired = retired.iter().map(|delta| (None, *delta));
    let named = state.points().iter().filter_map(|point| point.delta.map(|delta| (Some(point), delta)));
    let named: Vec<_> = retired.chain(named).collect();
    let total: u64 = named.iter().map(|(_, delta)| delta.total_bytes).sum();
    find_orphan_blobs(vault, report).await?;
    for (point, delta) in named {
        let lease = {
            // Retention goes on: what it has merged since is judged next time.
            let is_named = vault.manifest().state().names_blob(delta.blob);
            is_named
                .then(|| vault.leases().take(point.map_or(Lsn::ZERO, |point| point.marker), vec![delta.blob]))
        };
        if lease.is_none() {
            continue;
        }
        if let Err(error) = verify_blob(vault, point, delta, report).await {
            report.damage(error, &vault.layout().blob(delta.blob))?;
        }
        progress(report.blob_bytes, total)?;
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

async fn verify_blob(
    vault: &Vault,
    point: Option<&PointRecord>,
    reference: DeltaRef,
    report: &mut VerifyReport,
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
    for index in 0..u32::try_from(tables.chunks.len()).expect("chunk numbers are u32") {
        if let Err(error) = reader.chunk(index).await {
            report.damage(error, &path)?;
        }
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
            report.find(Severity::Cache, error, &vault.layout().summary(&cover))?;
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

/// Looks at every base that is needed: it must be there, and as long as its disk.
async fn verify_bases(vault: &Vault, state: &State, report: &mut VerifyReport) -> Result<()> {
    let directory = vault.layout().bases();
    for name in vault.runtime().list(&directory).await? {
        let known = parse_base_name(&name).is_some_and(|disk| vault.manifest().state().names_disk(disk));
        if !known && !layout::is_partial(&name) {
            report.orphan(directory.join(&name), "no disk of the group has this base");
        }
    }
    for disk in state.all_disks().iter().filter(|disk| state.needs_base(disk)) {
        let path = vault.layout().base(disk.record.id);
        report.bases += 1;
        let length = match vault.bases().open(disk.record.id).await {
            Ok(file) => vault.runtime().length(&file).await,
            Err(error) => Err(error),
        };
        match length {
            Ok(length) if length == disk.record.sectors.bytes() => {}
            Ok(length) => {
                let text = format!("{length} bytes long; its disk has {}", disk.record.sectors.bytes());
                report.damage(Error::corrupt(text), &path)?;
            }
            Err(error) => report.damage(error, &path)?,
        }
    }
    Ok(())
}
