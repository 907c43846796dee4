//! `vault repair`: what a person decides about damage in a vault. What is done is the group's and its vault's ([`crate::protect::repair`]).
//!
//! The vault is looked through first, in any case: what a repair goes by is what is damaged now. Nothing of a repair outlives its
//! process; doing it again goes on where it was.

use std::cell::Cell;
use std::rc::Rc;

use super::convert;
use super::gateway::{Answering, Inner};
use super::member::Member;
use crate::bookmark::Bookmark;
use crate::control::jobs::Progress;
use crate::control::model::{RepairReport, RepairRequest, Severity};
use crate::control::name::Name;
use crate::counted::counted;
use crate::error::Result;
use crate::protect::repair::{Repair, Repaired};
use crate::throttle::{ByteRate, Hold, Pacing};
use crate::units::GroupId;
use crate::vault::{self, Finding};

impl Inner {
    pub(super) async fn vault_repair(
        &self,
        group: Name,
        request: RepairRequest,
        progress: Progress,
    ) -> Result<RepairReport> {
        let (name, id) = self.find_open(&group)?;
        let (_, entry) = self.find(&group)?;
        let begun = self.environment.wall();
        let pacing = Pacing { rate: request.rate_bytes_per_s.map(ByteRate), hold: Hold::default() };
        let looked = self.verify_vault(&entry, begun, pacing, Bookmark::default(), progress.clone()).await?;
        let findings = vault::damage(&looked.findings);
        let agreed = request.lose_points && !findings.is_empty();
        let repaired = self.repair(id, findings.clone(), agreed, progress).await?;
        let staying = self.read(id, |member| member.vault().manifest().state().points().len()).await?;
        let report = RepairReport {
            faults: findings.iter().map(ToString::to_string).collect(),
            points: repaired.going.iter().map(|point| convert::harmed_point(&name, point)).collect(),
            renewed_bytes: repaired.renewed_bytes,
            staying: (if agreed { staying } else { staying.saturating_sub(repaired.going.len()) }) as u64,
            done: agreed,
            point: repaired.point.as_ref().map(|point| point.id),
            left: repaired.left.iter().map(ToString::to_string).collect(),
            group: name,
        };
        if agreed {
            self.tell_repaired(id, &report);
            // What is left is all that is known to be damaged from here on.
            let left = vault::VerifyReport { findings: repaired.left, ..vault::VerifyReport::default() };
            self.note_vault(id, &left, self.environment.wall()).await;
        }
        Ok(report)
    }

    async fn repair(
        &self,
        id: GroupId,
        findings: Vec<Finding>,
        is_agreed: bool,
        progress: Progress,
    ) -> Result<Repaired> {
        self.ask(id, move |member: &mut Member, answer: Answering<Repaired>| match member.group() {
            Ok(group) => {
                let report = Rc::new(behind(progress));
                group.repair(Repair { findings, is_agreed, report }, answer.callback());
            }
            Err(error) => answer.send(Err(error)),
        })
        .await
    }

    fn tell_repaired(&self, id: GroupId, report: &RepairReport) {
        let text = format!(
            "the vault was repaired: {} went, {} bytes were written anew, {} left",
            counted(report.points.len(), "recovery point"),
            report.renewed_bytes,
            counted(report.left.len(), "fault"),
        );
        tracing::warn!(group = %report.group, "{text}");
        self.tell_now(id, &report.group, (Severity::Warning, "vault_repaired"), text);
    }
}

/// Tells a job how far work is that comes after what it did before. Work that begins anew comes after what it did itself.
pub(super) fn behind(progress: Progress) -> impl Fn(u64, u64) -> Result<()> {
    let (before, told) = (Cell::new(progress.bytes_done()), Cell::new(0));
    move |done, total| {
        if done < told.get() {
            before.set(progress.bytes_done());
            told.set(0);
        }
        progress.set_total(before.get() + total);
        progress.advance(done - told.replace(done));
        progress.go_on()
    }
}
