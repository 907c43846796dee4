//! The second half of a verification: a group's disks are compared with its vault, and what its test failovers hold with their sums.

use std::rc::Rc;

use super::gateway::{Answering, Inner};
use super::member::Member;
use super::verification::teller;
use crate::bookmark::Bookmark;
use crate::control::jobs::Progress;
use crate::control::model::{GroupFault, GroupVerified};
use crate::control::name::Name;
use crate::error::Result;
use crate::failover::TestsReport;
use crate::protect::verify::{GroupReport, Verification};
use crate::throttle::Pacing;
use crate::units::{GroupId, WallNanos};

/// What was seen.
pub(super) struct DisksLooked {
    disks: GroupReport,
    tests: TestsReport,
}

impl DisksLooked {
    pub(super) fn read_bytes(&self) -> u64 {
        self.disks.read_bytes + self.tests.read_bytes
    }

    /// What is not as it should be, one line each,
    pub(super) fn faults(&self) -> Vec<String> {
        let disks = self.disks.findings.iter().map(ToString::to_string);
        disks.chain(self.tests.faults.iter().map(ToString::to_string)).collect()
    }

    /// and how much more there is.
    pub(super) fn more_faults(&self) -> u64 {
        self.disks.more_findings + self.tests.more_faults
    }

    pub(super) fn is_sound(&self) -> bool {
        self.disks.is_sound() && self.tests.faults.is_empty()
    }

    /// As people are told.
    pub(super) fn model(self, group: Name) -> GroupVerified {
        let more_faults = self.more_faults();
        let read_bytes = self.read_bytes();
        let DisksLooked { disks, tests } = self;
        let of_disks = disks.findings.iter().map(|finding| GroupFault {
            disk: finding.name.clone(),
            first_sector: finding.range.start,
            sectors: finding.range.sectors(),
            message: finding.to_string(),
        });
        let of_tests = tests.faults.iter().map(|fault| GroupFault {
            disk: fault.export.clone(),
            first_sector: fault.range.start,
            sectors: fault.range.sectors(),
            message: fault.to_string(),
        });
        GroupVerified {
            group,
            point: disks.point.map(|(point, _)| point),
            compared_bytes: disks.compared_bytes,
            newer_bytes: disks.newer_bytes,
            read_bytes,
            faults: of_disks.chain(of_tests).collect(),
            more_faults,
            notes: disks.notes.into_iter().chain(tests.mended).collect(),
        }
    }
}

impl Inner {
    /// `begun`: when, by this or an earlier process.
    pub(super) async fn verify_disks(
        &self,
        id: GroupId,
        begun: WallNanos,
        pacing: Pacing,
        bookmark: Bookmark,
        progress: Progress,
    ) -> Result<DisksLooked> {
        let disks = self.compare_disks(id, pacing.clone(), bookmark, progress.clone()).await?;
        self.note_disks(id, &disks, begun).await;
        let tests = self.read_overlays(id, pacing, progress).await?;
        Ok(DisksLooked { disks, tests })
    }

    async fn compare_disks(
        &self,
        id: GroupId,
        pacing: Pacing,
        bookmark: Bookmark,
        progress: Progress,
    ) -> Result<GroupReport> {
        self.ask(id, move |member: &mut Member, answer: Answering<GroupReport>| match member.group() {
            Ok(group) => {
                let report = Rc::new(teller(progress));
                let verification = Verification { bookmark, ..Verification::new(pacing, report) };
                group.verify(verification, answer.callback());
            }
            Err(error) => answer.send(Err(error)),
        })
        .await
    }

    async fn read_overlays(&self, id: GroupId, pacing: Pacing, progress: Progress) -> Result<TestsReport> {
        self.ask(id, move |member: &mut Member, answer: Answering<TestsReport>| match member.tests() {
            Ok(tests) => tests.verify(&pacing, move || progress.go_on(), answer.callback()),
            // None is served, which the log says.
            Err(_) => answer.send(Ok(TestsReport::default())),
        })
        .await
    }
}
