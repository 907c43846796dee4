//! How one pass of retention goes round what is damaged: a step that meets it is left out, and the others are taken.
//!
//! Nothing is remembered beyond the pass: the next one tries again, for a file may have been put back, and what is damaged may be
//! hidden by then. Invariant: a run that is merged, and what the base takes up, names no blob that the pass found damaged.

use std::collections::BTreeSet;

use super::layout::parse_blob_name;
use super::thinning::batch;
use super::{Advance, RetentionStep, State, Vault};
use crate::error::{Error, ErrorKind, Result};
use crate::format::ladder::Ladder;
use crate::format::record::PointRecord;
use crate::units::{BlobId, PointId};

/// What a pass of retention met.
#[derive(Debug, Default)]
pub struct Detour {
    blobs: BTreeSet<BlobId>,
    /// The base does not get where it is on its way to.
    is_advance_stuck: bool,
    met: Option<Error>,
}

impl Detour {
    /// [`Vault::finish_advance`], once more only if it did not meet damage.
    pub async fn finish_advance(&mut self, vault: &Vault) -> Result<Advance> {
        if self.is_advance_stuck {
            return Ok(Advance::None);
        }
        let advanced = vault.finish_advance().await;
        match advanced.map_err(as_damage) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.is_advance_stuck = true;
                self.met.get_or_insert(error);
                Ok(Advance::None)
            }
            advanced => advanced,
        }
    }

    /// [`Vault::take_step`]; one that meets damage is done with for this pass.
    pub async fn take_step(&mut self, vault: &Vault, step: RetentionStep, ladder: &Ladder) -> Result<()> {
        let blobs = blobs_of(&vault.manifest().state(), step);
        match vault.take_step(step, Some(ladder)).await.map_err(as_damage) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let named = error.path().and_then(|path| path.file_name()?.to_str());
                match named.and_then(parse_blob_name) {
                    Some(blob) if blobs.contains(&blob) => self.blobs.extend([blob]),
                    _ => self.blobs.extend(blobs),
                }
                self.met.get_or_insert(error);
                Ok(())
            }
            taken => taken,
        }
    }

    /// The first damage that it met.
    ///
    /// # Errors
    /// `Corrupt` if it met some.
    pub fn end(self) -> Result<()> {
        self.met.map_or(Ok(()), Err)
    }

    fn is_damaged(&self, point: &PointRecord) -> bool {
        point.delta.is_some_and(|delta| self.blobs.contains(&delta.blob))
    }

    /// How far the base may go, of where it should go, by their places.
    pub(super) fn base(&self, points: &[PointRecord], target: usize) -> Option<usize> {
        let damaged = points[..=target].iter().position(|point| self.is_damaged(point));
        damaged.map_or(Some(target), |damaged| damaged.checked_sub(1)).filter(|&target| target > 0)
    }

    /// What may be merged, of what should be, by their places: the first run of sound neighbours, and the last of these.
    pub(super) fn merge(&self, points: &[PointRecord], start: usize, end: usize) -> Option<(usize, usize)> {
        let mut first = start;
        for (place, point) in points.iter().enumerate().take(end + 1).skip(start) {
            if self.is_damaged(point) {
                if first + 1 < place {
                    return Some((first, place - 1));
                }
                first = place + 1;
            }
        }
        (first < end).then_some((first, end))
    }
}

/// A file of the vault that is gone is damage, too; a point that is gone is not.
fn as_damage(error: Error) -> Error {
    match (error.kind(), error.path()) {
        (ErrorKind::NotFound, Some(_)) => error.as_kind(ErrorKind::Corrupt),
        _ => error,
    }
}

/// The blobs that a step reads.
fn blobs_of(state: &State, step: RetentionStep) -> BTreeSet<BlobId> {
    let RetentionStep::Merge(first, into) = step else { return BTreeSet::new() };
    let place = |point: PointId| state.index_of(point);
    let Some(run) = place(first).zip(place(into)).and_then(|(first, into)| state.points().get(first..=into))
    else {
        return BTreeSet::new();
    };
    run[..batch(run)].iter().filter_map(|point| point.delta).map(|delta| delta.blob).collect()
}
