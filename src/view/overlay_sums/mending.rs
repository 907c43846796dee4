//! Both places of every unit, and both headers, looked at while clients go on: what counts no more is written anew, or one more bit that
//! flips would take what it stands for with it.

use std::path::PathBuf;

use super::{MEND, OverlaySums};
use crate::error::{Error, Result};
use crate::format::overlay_sums::{SECTORS_A_UNIT, UNIT_BYTES, UNITS_A_PAGE, unit_offset, units_of};
use crate::format::sums::Copy;
use crate::storage::Buffer;
use crate::units::{SectorRange, to_usize};

/// Where a bit of the sums had flipped that is written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// The sums,
    pub path: PathBuf,
    /// and where in them the copy of the header, or the place of the unit, begins.
    pub offset: u64,
}

/// What a piece of an overlay came to.
#[derive(Default)]
pub(in crate::view) struct Looked {
    /// Bytes that were read.
    pub(in crate::view) bytes: u64,
    /// What does not have its sums.
    pub(in crate::view) faults: Vec<(SectorRange, Error)>,
    /// Units of which one place is damaged.
    pub(in crate::view) damaged: Vec<(u64, Copy)>,
}

impl OverlaySums {
    /// What was found damaged and written anew, since this was asked last.
    pub(in crate::view) fn take_rot(&self) -> Vec<Rot> {
        let offsets = std::mem::take(&mut *self.rot.borrow_mut());
        offsets.into_iter().map(|offset| Rot { path: self.path().to_owned(), offset }).collect()
    }

    /// Looks at the headers again.
    pub(in crate::view) async fn look_at_headers(&self) -> Result<()> {
        let _turn = self.turns.take(SectorRange::new(0, u64::MAX)).await;
        self.check_headers(true).await
    }

    /// Looks at a piece, whose parts are present, and at what its units say. Nobody writes in them meanwhile.
    pub(in crate::view) async fn look(&self, piece: SectorRange, present: &[SectorRange]) -> Result<Looked> {
        let units = units_of(piece);
        let _turn = self.turns.take(SectorRange::new(units.start, units.end)).await;
        let found = self.load(units.clone()).await?;
        let mut looked = Looked::default();
        for (unit, found) in units.clone().zip(&found) {
            looked.damaged.extend(found.damaged.map(|copy| (unit, copy)));
        }
        for &part in present {
            let first = to_usize(part.start / SECTORS_A_UNIT - units.start);
            match self.runtime.read(&self.overlay, part.byte_offset(), to_usize(part.bytes())).await {
                Ok(bytes) => looked.faults.extend(self.misfits(part, &bytes, &found[first..])),
                Err(error) => looked.faults.push((part, error)),
            }
            looked.bytes += part.bytes();
        }
        Ok(looked)
    }

    /// What there is to say of the place of a unit that is damaged, and cannot be mended as long as the other one is not to be believed.
    pub(in crate::view) fn damaged_place(&self, unit: u64, copy: Copy) -> Error {
        let sectors = SectorRange::new(unit * SECTORS_A_UNIT, (unit + 1) * SECTORS_A_UNIT);
        let text = format!(
            "one of the two places of the sums of sectors {sectors} of the overlay is damaged, and something there beside it: {MEND}"
        );
        self.at_place(Error::corrupt(text), unit, copy)
    }

    /// Empties places behind the last unit of the disk, where nobody ever writes and bits have flipped.
    pub(in crate::view) async fn mend_behind(&self, sectors: u64) -> Result<()> {
        let end = units_of(SectorRange::new(0, sectors)).end;
        let units = end..end.next_multiple_of(UNITS_A_PAGE);
        if units.is_empty() {
            return Ok(());
        }
        let _turn = self.turns.take(SectorRange::new(units.start, units.end)).await;
        for (unit, found) in units.clone().zip(self.load(units).await?) {
            for copy in Copy::BOTH.into_iter().filter(|copy| found.is_lost || found.damaged == Some(*copy)) {
                let at = unit_offset(unit, copy);
                self.runtime.write(&self.file, at, Buffer::zeroed(UNIT_BYTES).freeze()).await?;
                self.rot.borrow_mut().push(at);
            }
        }
        Ok(())
    }

    /// Whether a place cannot be written before a sync: the other one was written since the last.
    pub(in crate::view) fn waits_for_sync(&self, unit: u64, copy: Copy) -> bool {
        self.unsynced.borrow().get(&unit).is_some_and(|written| *written != copy)
    }

    /// Writes the place of a unit anew that is damaged. Everything in the unit has the sums of the other one, and nobody writes there.
    pub(in crate::view) async fn mend(&self, unit: u64, copy: Copy) -> Result<()> {
        let units = unit..unit + 1;
        let _turn = self.turns.take(SectorRange::new(units.start, units.end)).await;
        let mut found = self.load(units.clone()).await?;
        if found[0].damaged != Some(copy) {
            return Ok(());
        }
        let certain = self.look_at_doubtful(&units, &mut found).await?;
        // Where neither place is sound, the one that is damaged is written.
        self.unsynced.borrow_mut().entry(unit).or_insert(copy);
        self.store(&units, found).await?;
        let mut doubtful = self.doubtful.borrow_mut();
        certain.into_iter().for_each(|part| doubtful.remove(part));
        self.rot.borrow_mut().push(unit_offset(unit, copy));
        Ok(())
    }
}
