//! What the newest recovery point of a vault shows and nobody can read: what an adoption stops for, or gives up by name
//! (`docs/adoption.md`).
//!
//! Which sectors that are is what a repair would write anew ([`Vault::plan_repair`]), and here nobody has them: the disks are gone. To
//! these come what the point itself says that it lacks, and what is lost of the base of a disk that joined after it. Invariant: a sector
//! that can be read is never given up with another, but for those of one chunk, or of one block of sums.

use std::path::Path;
use std::rc::Rc;

use crate::counted::counted;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::format::record::{DiskRecord, Membership, PointDisk, PointRecord};
use crate::units::{DiskId, SECTOR_BYTES, SectorRange};
use crate::vault::{self, Finding, Vault, VerifyReport, named_points};

/// Ranges of a disk that a text names; more are counted.
pub const RANGES_TOLD: usize = 8;
/// Findings that a text names.
const FINDINGS_TOLD: usize = 3;

/// What becomes of an adoption that meets a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// It ends, and says what is lost.
    RefuseLoss,
    /// What is lost becomes zeros.
    AcceptLoss,
}

/// What is lost of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLoss {
    /// The disk,
    pub disk: DiskId,
    /// and what people call it.
    pub name: String,
    /// Its sectors that are lost.
    pub ranges: Ranges,
}

/// What is lost.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    /// Of which disks, by their places.
    pub disks: Vec<DiskLoss>,
    /// What a verification of the vault found.
    pub report: VerifyReport,
    /// Findings for which the newest point, or a base, cannot be opened at all.
    hindrances: Vec<Finding>,
    newest: Option<PointRecord>,
    /// The newest point that shows nothing of any damage.
    sound: Option<PointRecord>,
}

impl DiskLoss {
    /// Bytes that are lost.
    pub fn bytes(&self) -> u64 {
        self.ranges.sectors() * SECTOR_BYTES
    }

    /// `disk db: 4096 bytes (8 sectors: 1000..1008)`, naming so many ranges at most.
    pub fn told(&self, ranges_max: usize) -> String {
        let ranges = self.ranges.as_slice();
        let mut named: Vec<_> = ranges.iter().take(ranges_max).map(ToString::to_string).collect();
        if ranges.len() > named.len() {
            named.push(format!("and {} more", counted(ranges.len() - named.len(), "range")));
        }
        let sectors = counted(self.ranges.sectors(), "sector");
        format!("disk {}: {} bytes ({sectors}: {})", self.name, self.bytes(), named.join(", "))
    }
}

impl Loss {
    /// Looks at all of a vault. `proceed` is told bytes read and to read; its error ends it.
    pub async fn find(vault: &Rc<Vault>, proceed: impl Fn(u64, u64) -> Result<()>) -> Result<Loss> {
        let report = vault::verify(vault, proceed).await?;
        let mut findings = vault::damage(&report.findings);
        let plan = vault.plan_repair(&mut findings).await;
        let plan =
            plan.map_err(|error| error.within("what the newest recovery point lacks cannot be told"))?;
        let state = vault.manifest().state();
        let newest = state.points().last().cloned();
        let lost = |disk: &DiskRecord| {
            let member = newest.as_ref().and_then(|point| member(point, disk.id));
            let ranges = match member {
                Some(member) => {
                    let shown = plan.renewed.get(&disk.slot).cloned().unwrap_or_default();
                    shown.union(member.lacking().iter().copied())
                }
                None => Ranges::of(findings.iter().filter_map(|finding| finding.lost_of_base(disk.id))),
            };
            let ranges = ranges.without([SectorRange::new(disk.sectors.0, u64::MAX)]);
            let lost = DiskLoss { disk: disk.id, name: disk.name.clone(), ranges };
            (!lost.ranges.is_empty()).then_some(lost)
        };
        let disks: Vec<_> = state.disks().filter_map(lost).collect();
        let is_newest = |finding: &Finding| {
            let harmed = finding.harmed.as_ref().map(|harmed| harmed.last);
            harmed.is_some() && harmed == newest.as_ref().map(|newest| newest.marker)
        };
        let is_needed = |finding: &Finding| state.disks().any(|disk| finding.lost_of_base(disk.id).is_some());
        let hindrances: Vec<_> = findings
            .iter()
            .filter(|finding| finding.hinders_opening() && (is_newest(finding) || is_needed(finding)))
            .cloned()
            .collect();
        let is_sound = |point: &&PointRecord| {
            let is_harmed = report.harmed.iter().any(|harmed| harmed.id == point.id);
            !is_harmed && point.disks.iter().all(|member| member.membership == Membership::Included)
        };
        let sound = state.points().iter().rev().find(is_sound).cloned();
        Ok(Loss { disks, hindrances, newest: newest.clone(), sound, report })
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.hindrances.is_empty()
    }

    /// The sectors of a disk that are not lost.
    pub fn kept_of(&self, disk: &DiskRecord) -> Ranges {
        let lost = self.disks.iter().find(|lost| lost.disk == disk.id);
        let lost = lost.map_or([].as_slice(), |lost| lost.ranges.as_slice());
        Ranges::of([SectorRange::new(0, disk.sectors.0)]).without(lost.iter().copied())
    }

    /// Fails where a point lacks sectors by its own account, of which this does not say that they are lost.
    pub fn check_lacking(&self, point: &PointRecord) -> Result<()> {
        let is_known = |member: &PointDisk| {
            let lost = self.disks.iter().find(|lost| lost.disk == member.disk);
            let lost = lost.map_or([].as_slice(), |lost| lost.ranges.as_slice());
            Ranges::of(member.lacking().iter().copied()).without(lost.iter().copied()).is_empty()
        };
        match point.disks.iter().all(is_known) {
            true => Ok(()),
            false => Err(Error::corrupt(format!("the recovery point {} lacks sectors", point.id))),
        }
    }

    /// Refuses a loss that nobody accepts, or that cannot be given up sector by sector.
    pub fn check(&self, vault: &Path, terms: Terms) -> Result<()> {
        let again = format!("'vault adopt {}", vault.display());
        let newest = match &self.newest {
            Some(newest) => {
                format!("the newest recovery point ({})", named_points(std::slice::from_ref(newest), 1))
            }
            None => "the vault".to_owned(),
        };
        let meanwhile = match &self.sound {
            Some(point) => format!(
                "the newest recovery point that shows nothing of it is {}: 'failover test' and 'restore' give it",
                named_points(std::slice::from_ref(point), 1)
            ),
            None => "no recovery point is without it".to_owned(),
        };
        let text = if !self.hindrances.is_empty() {
            format!(
                "{newest} cannot be opened: {}; what it held there nobody can tell sector by sector, so that it cannot be given up: put an \
                 undamaged copy of the file in its place, then {again}' again; {meanwhile}",
                damaged(&self.hindrances)
            )
        } else if terms == Terms::RefuseLoss {
            let lost: Vec<_> = self.disks.iter().map(|disk| disk.told(RANGES_TOLD)).collect();
            format!(
                "of what {newest} shows, this is lost: {}; damaged: {}; put an undamaged copy of the file in its place, then {again}' again; or \
                 give up what is lost, which becomes zeros: {again} --accept-loss --yes'; {meanwhile}",
                lost.join("; "),
                self.damaged()
            )
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Corrupt, text))
    }

    /// What of the vault is damaged, or what else the newest point lacks.
    fn damaged(&self) -> String {
        let damage = vault::damage(&self.report.findings);
        match damage.is_empty() {
            true => "nothing that is stored, but writes that rotted in the journal before the point was made"
                .to_owned(),
            false => damaged(&damage),
        }
    }
}

/// `FILE at byte N: what; FILE …; and 2 faults more`
fn damaged(findings: &[Finding]) -> String {
    let mut named: Vec<_> =
        findings.iter().take(FINDINGS_TOLD).map(|finding| finding.alone().to_string()).collect();
    if findings.len() > named.len() {
        named.push(format!("and {} more", counted(findings.len() - named.len(), "fault")));
    }
    named.join("; ")
}

fn member(point: &PointRecord, disk: DiskId) -> Option<&PointDisk> {
    point.disks.iter().find(|member| member.disk == disk)
}
