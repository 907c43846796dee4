//! The overlays of open test failovers compared with their sums, beside their clients: nobody else has what is in them, and nobody else would read
//! what clients do not.

use std::rc::Rc;

use super::backing::Backing;
use super::test_failover::{TestFailovers, TestTrouble, named};
use crate::block::TestId;
use crate::error::Result;
use crate::protect::group::Callback;
use crate::throttle::{Pacing, Throttle};
use crate::units::{SECTOR_BYTES, SectorRange, WallNanos};
use crate::view::OverlayReport;

/// Faults that are kept of all; more are only counted.
const FAULTS_MAX: usize = 1000;

/// Something that a test failover holds is not what was written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestFault {
    /// The disk and the test failover, as `DISK@test-N`.
    pub export: String,
    /// Which of its sectors.
    pub range: SectorRange,
    /// What is wrong, with file and offset.
    pub error: String,
}

impl std::fmt::Display for TestFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TestFault { export, range, error } = self;
        let bytes = range.start * SECTOR_BYTES..range.end * SECTOR_BYTES;
        write!(f, "{export}, sectors {range}, bytes {}..{}: {error}", bytes.start, bytes.end)
    }
}

/// What a verification of a group's test failovers saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestsReport {
    /// Bytes read of overlays.
    pub read_bytes: u64,
    /// What is not as it was written.
    pub faults: Vec<TestFault>,
    /// Faults that were too many to be kept.
    pub more_faults: u64,
    /// What was damaged, counted no more, and is written anew: one line each.
    pub mended: Vec<String>,
}

/// An overlay that is to be read.
struct Wanted {
    test: TestId,
    disk: Rc<str>,
    backing: Backing,
}

impl TestFailovers {
    /// Reads all overlays; `callback` gets what was found. `wanted` is asked now and then, and its error ends it. Clients go on.
    pub fn verify(
        &mut self,
        pacing: &Pacing,
        wanted: impl Fn() -> Result<()> + 'static,
        callback: Callback<TestsReport>,
    ) {
        let (runtime, failures) = (Rc::clone(&self.runtime), Rc::clone(&self.failures));
        let throttle = pacing.on(&runtime);
        let overlays: Vec<_> =
            self.served().map(|(test, disk, backing)| Wanted { test, disk, backing }).collect();
        self.runtime.spawn(async move {
            let mut report = TestsReport::default();
            let mut rotten = Vec::new();
            for overlay in overlays {
                let looked = match overlay.look(&throttle, &wanted).await {
                    Ok(looked) => looked,
                    Err(error) => return callback(Err(error)),
                };
                failures.borrow_mut().tell_of_rot(
                    &runtime,
                    (overlay.test, &overlay.disk),
                    looked.mended.clone(),
                );
                rotten.extend(overlay.rotten(&looked, runtime.wall()));
                overlay.note(looked, &mut report);
            }
            failures.borrow_mut().rotten = rotten;
            callback(Ok(report));
        });
    }
}

impl Wanted {
    async fn look(&self, throttle: &Throttle, wanted: &impl Fn() -> Result<()>) -> Result<OverlayReport> {
        match &self.backing {
            Backing::Overlay(overlay) => overlay.verify(throttle, wanted).await,
            Backing::View(..) => Ok(OverlayReport::default()),
        }
    }

    /// What is told of it until the next verification.
    fn rotten(&self, looked: &OverlayReport, since: WallNanos) -> Option<(TestId, TestTrouble)> {
        let (_, error) = looked.faults.first()?;
        let error = match looked.faults.len() {
            1 => error.to_string(),
            faults => format!("verification found {faults} places; the first: {error}"),
        };
        let what = named(self.test, Some(&self.disk));
        Some((self.test, TestTrouble { what, is_served: true, error, since }))
    }

    fn note(&self, looked: OverlayReport, report: &mut TestsReport) {
        let export = named(self.test, Some(&self.disk));
        report.read_bytes += looked.read_bytes;
        for rot in looked.mended {
            let place = format!("{} at byte {}", rot.path.display(), rot.offset);
            report.mended.push(format!("{export}: {place} was damaged and is written anew: nothing is lost"));
        }
        for (range, error) in looked.faults {
            if report.faults.len() < FAULTS_MAX {
                report.faults.push(TestFault { export: export.clone(), range, error: error.to_string() });
            } else {
                report.more_faults += 1;
            }
        }
    }
}
