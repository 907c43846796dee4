//! Reads a manifest whole: every step and snapshot, and what they add up to.
//!
//! One that is damaged hides nothing behind it: those that follow are read by themselves and compared with the one before them, until a
//! snapshot says again what all of them add up to.

use std::path::Path;
use std::rc::Rc;

use super::VerifyReport;
use crate::error::{Error, Result};
use crate::format::manifest::{Step, StepNumber};
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, SiteKeys};
use crate::vault::Vault;
use crate::vault::harm::Lost;
use crate::vault::keyring;
use crate::vault::layout::{self, Layout};
use crate::vault::manifest::{Listing, advance, read_snapshot, read_step};
use crate::vault::state::State;

/// What is known of the steps read so far. There is one at a time.
#[allow(clippy::large_enum_variant)]
enum Reached {
    /// What they add up to; nothing before the first.
    State(Option<State>),
    /// One was damaged: the checksum of the newest, if that was readable.
    Behind(Option<u128>),
}

impl Reached {
    /// Takes the next step, which was read whole.
    fn take(&mut self, step: Step, checksum: u128) -> Result<()> {
        let (number, previous) = (step.header.number, step.header.previous);
        match std::mem::replace(self, Reached::Behind(Some(checksum))) {
            Reached::State(state) => *self = Reached::State(Some(advance(state, step, checksum)?)),
            Reached::Behind(Some(before)) if before != previous => {
                return Err(Error::corrupt(format!("step {number} does not follow the step before it")));
            }
            Reached::Behind(_) => {}
        }
        Ok(())
    }

    /// Takes a snapshot of the steps so far, which was read whole.
    fn compare(&mut self, found: State) -> Result<()> {
        match self {
            Reached::State(Some(state)) if *state != found => {
                Err(Error::corrupt("the snapshot is not what the steps add up to"))
            }
            Reached::Behind(Some(before)) if *before != found.checksum() => {
                Err(Error::corrupt("the snapshot is of another step than the one before it"))
            }
            reached => {
                *reached = Reached::State(Some(found));
                Ok(())
            }
        }
    }
}

/// A manifest that is being read.
struct Reading<'a> {
    runtime: &'a Rc<Runtime>,
    layout: &'a Layout,
    keys: &'a GroupKeys,
    listing: Listing,
    reached: Reached,
}

impl Reading<'_> {
    /// Reads all up to step `newest` that has not been replaced.
    async fn read(&mut self, newest: StepNumber, report: &mut VerifyReport) -> Result<()> {
        let first = self.listing.kept_from();
        if first > StepNumber(0) {
            self.reached = Reached::Behind(None);
            self.snapshot(first, report).await?;
        }
        let mut number = first.next();
        while number <= newest {
            self.step(number, report).await?;
            if self.listing.snapshots.contains(&number) {
                self.snapshot(number, report).await?;
            }
            number = number.next();
        }
        Ok(())
    }

    async fn step(&mut self, number: StepNumber, report: &mut VerifyReport) -> Result<()> {
        let taken = match read_step(self.runtime, self.layout, number, self.keys).await {
            Ok((step, checksum)) => {
                report.manifest_files += 1;
                self.reached.take(step, checksum)
            }
            Err(error) => {
                self.reached = Reached::Behind(None);
                Err(error)
            }
        };
        note(taken, &self.layout.step(number), report)
    }

    async fn snapshot(&mut self, number: StepNumber, report: &mut VerifyReport) -> Result<()> {
        let compared = match read_snapshot(self.runtime, self.layout, number, self.keys).await {
            Ok(snapshot) => {
                report.manifest_files += 1;
                self.reached.compare(State::from_snapshot(snapshot))
            }
            Err(error) => Err(error),
        };
        note(compared, &self.layout.snapshot(number), report)
    }
}

fn note(read: Result<()>, path: &Path, report: &mut VerifyReport) -> Result<()> {
    read.or_else(|error| report.damage(Lost::Manifest, error, path))
}

/// Reads every step and snapshot, and compares what they add up to with the state that the process has.
pub(super) async fn verify(vault: &Vault, known: &State, report: &mut VerifyReport) -> Result<()> {
    let layout = vault.layout();
    let listing = Listing::read(vault.runtime(), layout).await?;
    for name in &listing.strangers {
        if !layout::is_partial(name) {
            report.orphan(layout.manifest().join(name), "no name that a manifest has");
        }
    }
    let reached = Reached::State(None);
    let mut reading = Reading { runtime: vault.runtime(), layout, keys: vault.keys(), listing, reached };
    reading.read(known.newest(), report).await?;
    let Reached::State(mut state) = reading.reached else { return Ok(()) };
    // A bug of the simulator's is none of the manifest's.
    state.iter_mut().for_each(|state| state.plant(vault.planted));
    if state.as_ref() != Some(known) {
        let text = "the manifest on disk is not the one that the process has";
        report.damage(Lost::Manifest, Error::corrupt(text), &layout.manifest())?;
    }
    Ok(())
}

/// Reads the manifest of a vault that cannot be opened, for all that is wrong with it and not only for what stopped the opening.
pub async fn verify_manifest(
    runtime: &Rc<Runtime>,
    directory: &Path,
    site: &SiteKeys,
) -> Result<VerifyReport> {
    let layout = Layout::new(directory);
    let keys = keyring::open(runtime, &layout, site).await?;
    let listing = Listing::read(runtime, &layout).await?;
    let newest = listing.steps.iter().chain(&listing.snapshots).max().copied().unwrap_or_default();
    let mut report = VerifyReport::default();
    let reached = Reached::State(None);
    Reading { runtime, layout: &layout, keys: &keys, listing, reached }.read(newest, &mut report).await?;
    Ok(report)
}
