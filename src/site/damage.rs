//! What verifications found and nobody has put right: why a group counts as degraded though everything is captured.
//!
//! A verification of a vault replaces what the one before it found there, a comparison of a group's disks what the one before found of
//! these, whoever asked for them; a sound one ends it, and so do the points that show the damage, and the disks, by going. It is kept
//! beside the group's journal, in a file that exists only while there is something to keep: `groups/GROUP_ID/damage`, JSON, replaced
//! as a whole. If that is lost, so is the memory, until the next verification finds it again.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::gateway::Inner;
use super::group_table::Entry;
use super::member::Member;
use crate::control::model::{Failure, Reason, ReasonCode, Severity};
use crate::control::name::Name;
use crate::counted::counted;
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::PointRecord;
use crate::protect::verify::GroupReport;
use crate::units::{DiskId, GroupId, Lsn, WallNanos};
use crate::vault::{self, State};

/// What is known to be damaged, by group; nothing where the file was not looked at yet.
#[derive(Default)]
pub(super) struct Damages(Mutex<HashMap<GroupId, Damage>>);

/// What is damaged of a group, and kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Damage {
    version: u32,
    vault: Option<VaultDamage>,
    disks: Option<DiskDamage>,
}

const VERSION: u32 = 1;

/// What a verification of the vault found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct VaultDamage {
    found: WallNanos,
    faults: usize,
    /// The first of them, without the points that it harms.
    first: String,
    /// Where the harmed points are: from a marker to another, ascending, with points in between that are sound.
    harmed: Vec<(Lsn, Lsn)>,
    /// Whether something is damaged that no point shows, so that it does not go with them.
    elsewhere: bool,
    /// Whether a base is, of which no earlier copy can be put back.
    in_base: bool,
}

/// What a comparison of the disks with the vault found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DiskDamage {
    found: WallNanos,
    faults: u64,
    first: String,
    disks: BTreeSet<DiskId>,
}

impl VaultDamage {
    fn of(report: &vault::VerifyReport, found: WallNanos) -> Option<VaultDamage> {
        let is_damage = |finding: &&vault::Finding| finding.severity >= vault::Severity::Damage;
        let damage: Vec<_> = report.findings.iter().filter(is_damage).collect();
        let mut harmed: Vec<_> = damage.iter().filter_map(|finding| finding.harmed.as_ref()).collect();
        harmed.sort_by_key(|harmed| harmed.first);
        let mut runs: Vec<(Lsn, Lsn)> = Vec::new();
        for harmed in harmed {
            match runs.last_mut() {
                Some((_, last)) if harmed.first <= *last => *last = harmed.last.max(*last),
                _ => runs.push((harmed.first, harmed.last)),
            }
        }
        Some(VaultDamage {
            found,
            faults: damage.len(),
            first: damage.first()?.alone().to_string(),
            harmed: runs,
            elsewhere: damage.iter().any(|finding| finding.harmed.is_none()),
            in_base: damage.iter().any(|finding| finding.is_of_base()),
        })
    }

    /// What people are told, as long as there is something to tell.
    fn reason(&self, name: &Name, points: &[PointRecord]) -> Option<Reason> {
        let is_harmed = |point: &&PointRecord| {
            self.harmed.iter().any(|(first, last)| (*first..=*last).contains(&point.marker))
        };
        let harmed: Vec<_> = points.iter().filter(is_harmed).cloned().collect();
        if harmed.is_empty() && !self.elsewhere {
            return None;
        }
        let mut detail = format!("verification found {} in the vault", counted(self.faults, "fault"));
        if !harmed.is_empty() {
            let points = counted(harmed.len(), "recovery point");
            detail += &format!(", which harm {points}: {}", vault::named_points(&harmed, harmed.len()));
        }
        detail += &format!("; the first: {}", self.first);
        let again = format!("`afterimage vault verify {name}`");
        let mut mend = match self.in_base {
            false => format!("put back an earlier copy of the file, then {again}"),
            true => format!("bring the disk back from a later point, or import it anew, then {again}"),
        };
        if !harmed.is_empty() {
            mend += &format!(
                "; or give these points up: `afterimage vault repair {name}` says what goes and what stays"
            );
        }
        Some(Reason { code: ReasonCode::VerifyFound, detail, mend })
    }
}

impl DiskDamage {
    fn of(report: &GroupReport, found: WallNanos) -> Option<DiskDamage> {
        Some(DiskDamage {
            found,
            faults: report.findings.len() as u64 + report.more_findings,
            first: report.findings.first()?.to_string(),
            disks: report.findings.iter().map(|finding| finding.disk).collect(),
        })
    }

    fn reason(&self, name: &Name, state: &State) -> Option<Reason> {
        if !state.disks().any(|disk| self.disks.contains(&disk.id)) {
            return None;
        }
        let faults = counted(self.faults, "place");
        Some(Reason {
            code: ReasonCode::VerifyFound,
            detail: format!(
                "verification found {faults} where disks and vault are not the same; the first: {}",
                self.first
            ),
            mend: format!(
                "restore the newest point beside the disk, compare, and write what is wrong anew through the guest \
                 (docs/verify.md); then `afterimage verify {name}`"
            ),
        })
    }
}

impl Damage {
    fn is_none(&self) -> bool {
        self.vault.is_none() && self.disks.is_none()
    }

    /// What people are told of it as the group's manifest is now.
    fn told(&self, name: &Name, state: &State) -> Option<Failure> {
        let vault = self.vault.as_ref();
        let vault = vault.and_then(|damage| Some((damage.reason(name, state.points())?, damage.found)));
        let disks = self.disks.as_ref();
        let disks = disks.and_then(|damage| Some((damage.reason(name, state)?, damage.found)));
        let (reason, since) = match (vault, disks) {
            (Some((vault, found)), Some((disks, then))) => {
                let detail = format!("{}; and {}", vault.detail, disks.detail);
                (
                    Reason { detail, mend: format!("{}; and {}", vault.mend, disks.mend), ..vault },
                    found.min(then),
                )
            }
            (vault, disks) => vault.or(disks)?,
        };
        Some(Failure { reason, since })
    }
}

impl Inner {
    /// Notes what a verification of a vault came to that began at `begun`: what was found since then it cannot have seen mended.
    pub(super) async fn note_vault(&self, id: GroupId, report: &vault::VerifyReport, begun: WallNanos) {
        let found = VaultDamage::of(report, self.environment.wall());
        self.note_damage(id, "vault", |damage| {
            let is_newer = damage.vault.as_ref().is_some_and(|known| known.found >= begun);
            replace(&mut damage.vault, found, is_newer)
        })
        .await;
    }

    /// Keeps what a verification found of a vault that is about to become a group's: durably, and before it is one.
    pub(super) async fn keep_damage(&self, id: GroupId, report: &vault::VerifyReport) -> Result<()> {
        let Some(found) = VaultDamage::of(report, self.environment.wall()) else { return Ok(()) };
        let (mut damages, path) = (self.damages.0.lock().await, self.damage_path(id));
        let before = known(&mut damages, id, &path).await;
        let damage = Damage { version: VERSION, vault: Some(found), ..before };
        let kept = damage.clone();
        let written = tokio::task::spawn_blocking(move || write(&path, &kept)).await;
        written.map_err(|_| {
            Error::new(ErrorKind::Shutdown, "the gateway stopped while a vault was adopted")
        })??;
        damages.insert(id, damage);
        Ok(())
    }

    /// Notes what a comparison of a group's disks with its vault came to, likewise.
    pub(super) async fn note_disks(&self, id: GroupId, report: &GroupReport, begun: WallNanos) {
        let found = DiskDamage::of(report, self.environment.wall());
        self.note_damage(id, "disks", |damage| {
            let is_newer = damage.disks.as_ref().is_some_and(|known| known.found >= begun);
            replace(&mut damage.disks, found, is_newer)
        })
        .await;
    }

    /// Changes what is kept of a group; `change` says whether the part is sound that was damaged.
    async fn note_damage(&self, id: GroupId, part: &str, change: impl FnOnce(&mut Damage) -> bool) {
        let mut damages = self.damages.0.lock().await;
        // Of a removed group's files some were gone while they were read.
        let Some((name, _)) = self.find_by_id(id) else {
            damages.remove(&id);
            return;
        };
        let path = self.damage_path(id);
        let before = known(&mut damages, id, &path).await;
        let mut damage = Damage { version: VERSION, ..before.clone() };
        let is_mended = change(&mut damage);
        if damage != before {
            let (kept, path) = (damage.clone(), path);
            let written = tokio::task::spawn_blocking(move || write(&path, &kept)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(group = %name, %error, "what a verification found is forgotten at the next start");
            }
            damages.insert(id, damage);
        }
        if is_mended {
            let text = format!("verified: the {part} that damage was found in before, and none now");
            tracing::info!(group = %name, "{text}");
            self.tell_now(id, &name, (Severity::Info, "verify_mended"), text);
        }
    }

    /// One that is gone leaves nothing behind.
    pub(super) async fn forget_damage(&self, id: GroupId) {
        self.damages.0.lock().await.remove(&id);
    }

    /// What verifications found of a group and is still so.
    pub(super) async fn damage_of(&self, name: &Name, entry: &Entry) -> Option<Failure> {
        let damage = known(&mut *self.damages.0.lock().await, entry.id, &self.damage_path(entry.id)).await;
        if damage.is_none() || !entry.is_hosted() {
            return None;
        }
        let name = name.clone();
        let told = move |member: &mut Member| damage.told(&name, &member.vault().manifest().state());
        self.read(entry.id, told).await.ok().flatten()
    }

    fn damage_path(&self, id: GroupId) -> PathBuf {
        self.directory.group(id).join("damage")
    }
}

/// Puts what a verification found in the place of what was known, unless it found nothing and that is newer than its beginning.
/// Whether what was damaged is sound now.
fn replace<T>(known: &mut Option<T>, found: Option<T>, is_newer: bool) -> bool {
    if found.is_none() && is_newer {
        return false;
    }
    std::mem::replace(known, found).is_some() && known.is_none()
}

/// What is known of a group; what its file says where that was not looked at yet.
async fn known(damages: &mut HashMap<GroupId, Damage>, id: GroupId, path: &Path) -> Damage {
    if let Some(damage) = damages.get(&id) {
        return damage.clone();
    }
    let path = path.to_owned();
    let damage = tokio::task::spawn_blocking(move || read(&path)).await.unwrap_or_default();
    damages.insert(id, damage.clone());
    damage
}

/// Whatever is wrong with the file, it counts as none.
fn read(path: &Path) -> Damage {
    let text = std::fs::read(path).unwrap_or_default();
    let damage: Option<Damage> = serde_json::from_slice(&text).ok();
    damage.filter(|damage| damage.version == VERSION).unwrap_or_default()
}

/// Puts the file in the place of the one before, durably; where there is nothing to keep, removes it.
fn write(path: &Path, damage: &Damage) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        if damage.is_none() {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else {
            let options =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
            let mut file = options.open(&partial)?;
            file.write_all(&serde_json::to_vec(damage)?)?;
            file.sync_all()?;
            std::fs::rename(&partial, path)?;
        }
        path.parent().map_or(Ok(()), |parent| std::fs::File::open(parent)?.sync_all())
    };
    write().map_err(|error| Error::io("writing what a verification found", error).at_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_verification_that_began_afterwards_finds_damage_mended() {
        let mut known = Some("damage");
        assert!(!replace(&mut known, None, true));
        assert_eq!(known, Some("damage"), "it may have read the place before");
        assert!(!replace(&mut known, Some("more"), true));
        assert_eq!(known, Some("more"));
        assert!(replace(&mut known, None, false));
        assert_eq!(known, None);
        assert!(!replace(&mut known, None, false), "there was nothing to mend");
    }
}
