//! Whether the disks of a group, as found together, are what they may be.
//!
//! They must be a **prefix of issue-after-acknowledgement order over all disks**: if a write W is there, then so is
//! everything that had been acknowledged before W was issued. Besides, they must hold all that was acknowledged before
//! one stamp, and nothing that was issued after another ([`Bounds`]).
//!
//! All of it comes down to one number, the **cut**: the newest stamp that anything found, or the bound, vouches for.
//! What was acknowledged before the cut is *required*. A sector may then hold the newest required operation on it, or
//! one that could have come after that: one that was not settled before the other was issued. Zeros may stand for any
//! zeroing that fits; the oldest that fits is assumed, and where even that is newer than the cut, the cut rises and
//! all is looked at again: the least cut that explains everything is the fairest to what is judged.
//!
//! A write of at most [`ATOMIC_BYTES`] is one journal record: it is there in all of its sectors, or in none.

use std::fmt;

use super::history::{Effect, History, Operation, Stamp};
use super::image::{Found, Image};
use super::sector::{Foreign, SECTOR_BYTES};
use crate::units::to_usize;

/// Longest write that is all or nothing.
pub const ATOMIC_BYTES: u64 = 64 << 10;
/// Violations that a verdict spells out; it counts the rest.
const VIOLATIONS_TOLD: usize = 20;

/// What the images must hold, and must not, whatever else they hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Everything acknowledged before this is there.
    pub holds_before: Stamp,
    /// Nothing issued after this is there.
    pub nothing_after: Stamp,
}

impl Bounds {
    /// Any consistent past.
    pub const ANY: Bounds = Bounds { holds_before: Stamp::START, nothing_after: Stamp::END };
}

/// Why an operation had to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It was acknowledged before the bound.
    Acknowledged,
    /// It was acknowledged before this write was issued, and that one is there.
    Later(Operation),
    /// Others of its own sectors are there.
    Atomic,
}

/// What is wrong with a run of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Content that no write of this run put there.
    Foreign(Foreign),
    /// A record of a write that was never issued there.
    Invented(Stamp),
    /// A write that was issued after the bound.
    TooNew(Stamp),
    /// Something older than it had to be.
    Lost {
        /// What had to be there, or something newer.
        expected: Operation,
        /// Why.
        because: Because,
        /// What is there: a write's sequence, or zeros.
        found: Option<Stamp>,
    },
}

/// A run of sectors with one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The disk's index.
    pub disk: usize,
    /// The first sector.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// What the judge says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Sectors looked at.
    pub sectors: u64,
    /// Sectors that hold something else than zeros.
    pub written: u64,
    /// Operations that had to be there.
    pub required: u64,
    /// Everything acknowledged before this is there, if nothing is violated.
    pub cut: Stamp,
    /// The first violations, by disk and sector.
    pub violations: Vec<Violation>,
    /// How many there are.
    pub violations_count: u64,
}

impl Verdict {
    /// Whether all is as it may be.
    pub fn is_clean(&self) -> bool {
        self.violations_count == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return write!(f, "{} sectors are as they must be", self.sectors);
        }
        writeln!(f, "{} violations in {} sectors:", self.violations_count, self.sectors)?;
        for violation in &self.violations {
            writeln!(f, "  {violation}")?;
        }
        let more = self.violations_count - self.violations.len() as u64;
        if more > 0 { writeln!(f, "  and {more} more") } else { Ok(()) }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.sector * SECTOR_BYTES as u64;
        write!(f, "disk {} at byte {offset}, {} sectors: expected ", self.disk, self.sectors)?;
        match self.fault {
            Fault::Foreign(foreign) => write!(f, "a write of this run or zeros, found {foreign}"),
            Fault::Invented(found) => {
                write!(f, "a write that was issued there, found {found}, which was not")
            }
            Fault::TooNew(found) => {
                write!(f, "nothing issued after the point was made, found {found}, which was")
            }
            Fault::Lost { expected, because, found } => {
                let what = if expected.effect == Effect::Write { "write" } else { "zeros of" };
                write!(f, "{what} {} or newer ({}), found ", expected.issued, Why(expected, because))?;
                match found {
                    Some(found) => write!(f, "write {found}"),
                    None => f.write_str("zeros that nothing newer explains"),
                }
            }
        }
    }
}

struct Why(Operation, Because);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let acknowledged = self.0.acknowledged.unwrap_or(Stamp::END);
        match self.1 {
            Because::Acknowledged => write!(f, "acknowledged at {acknowledged}"),
            Because::Later(later) => write!(
                f,
                "acknowledged at {acknowledged}, before {} was issued, which is there on disk {} at byte {}",
                later.issued,
                later.disk,
                later.range.byte_offset()
            ),
            Because::Atomic => f.write_str("other sectors of it are there"),
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Foreign::Unknown(bytes) => write!(f, "bytes that nobody wrote ({bytes:02x?} ..)"),
            Foreign::Torn { sequence } => write!(f, "a torn or altered sector of write {sequence}"),
            Foreign::Misplaced { disk, sector, sequence } => {
                write!(f, "a sector of write {sequence} that belongs to disk {disk}, sector {sector}")
            }
            Foreign::OtherRun(run) => write!(f, "a sector of another run ({run:016x})"),
        }
    }
}

/// Judges `images`, one for each disk of the group, read of the same state.
pub fn judge(history: &History, images: &[Image], bounds: Bounds) -> Verdict {
    let mut case = Case::open(history, images, bounds);
    while case.raise_cut() {}
    case.verdict()
}

/// One question to the judge.
struct Case<'a> {
    history: &'a History,
    images: &'a [Image],
    bounds: Bounds,
    /// By operation: whether a sector of it was found.
    present: Vec<bool>,
    /// The newest operation that is surely there, if the bound does not say it.
    newest: Option<usize>,
    cut: Stamp,
    /// By disk, by sector: 1 + index of the newest operation that had to be there; 0 for none.
    required: Vec<Vec<u32>>,
    /// By disk: its zeroing operations, by issue stamp.
    zeros: Vec<Vec<usize>>,
}

impl<'a> Case<'a> {
    fn open(history: &'a History, images: &'a [Image], bounds: Bounds) -> Case<'a> {
        let operations = history.operations();
        let mut zeros = vec![Vec::new(); history.disks().len()];
        for (index, operation) in operations.iter().enumerate() {
            if operation.effect == Effect::Zero {
                zeros[operation.disk].push(index);
            }
        }
        let present = vec![false; operations.len()];
        let cut = bounds.holds_before;
        let mut case =
            Case { history, images, bounds, present, newest: None, cut, required: Vec::new(), zeros };
        case.note_present();
        case.paint();
        case
    }

    /// Takes every write that is found where it was issued as a witness.
    fn note_present(&mut self) {
        let (history, images) = (self.history, self.images);
        for image in images {
            let mut last = None;
            for (sector, found) in (0_u64..).zip(&image.sectors) {
                let Found::Write(sequence) = *found else { continue };
                if last == Some(sequence) {
                    continue;
                }
                last = Some(sequence);
                if let Some(index) = self.issued_at(image.disk, sector, sequence)
                    && history.operations()[index].issued < self.bounds.nothing_after
                {
                    self.present[index] = true;
                    self.vouch(index);
                }
            }
        }
    }

    fn vouch(&mut self, index: usize) {
        let issued = self.history.operations()[index].issued;
        if issued > self.cut {
            self.cut = issued;
            self.newest = Some(index);
        }
    }

    fn issued_at(&self, disk: usize, sector: u64, sequence: Stamp) -> Option<usize> {
        let index = self.history.find(sequence)?;
        let operation = &self.history.operations()[index];
        let covers = operation.disk == disk && (operation.range.start..operation.range.end).contains(&sector);
        (covers && operation.effect == Effect::Write).then_some(index)
    }

    /// Writes down what had to be where, as of the cut.
    fn paint(&mut self) {
        self.required = self.history.disks().iter().map(|sectors| vec![0; to_usize(*sectors)]).collect();
        for (index, operation) in self.history.operations().iter().enumerate() {
            let atomic = self.present[index] && operation.range.bytes() <= ATOMIC_BYTES;
            if operation.acknowledged_before(self.cut) || atomic {
                let number = u32::try_from(index + 1).expect("a run has fewer than 2^32 operations");
                let range = to_usize(operation.range.start)..to_usize(operation.range.end);
                self.required[operation.disk][range].fill(number);
            }
        }
    }

    fn required_at(&self, disk: usize, sector: u64) -> Option<&'a Operation> {
        let number = self.required[disk][to_usize(sector)];
        number.checked_sub(1).map(|index| &self.history.operations()[to_usize(u64::from(index))])
    }

    /// The oldest zeroing that explains zeros where `required` had to be.
    fn zeroing(&self, disk: usize, sector: u64, required: &Operation) -> Option<usize> {
        let operations = self.history.operations();
        self.zeros[disk].iter().copied().find(|&index| {
            let zero = &operations[index];
            (zero.range.start..zero.range.end).contains(&sector)
                && zero.issued < self.bounds.nothing_after
                && self.history.settled(zero) > required.issued
        })
    }

    /// Lets zeros vouch for the zeroing that they must come from; whether that raised the cut.
    fn raise_cut(&mut self) -> bool {
        let images = self.images;
        let before = self.cut;
        for image in images {
            for (sector, _) in (0_u64..).zip(&image.sectors).filter(|(_, found)| **found == Found::Zero) {
                let Some(required) = self.required_at(image.disk, sector) else { continue };
                if required.effect == Effect::Write
                    && let Some(index) = self.zeroing(image.disk, sector, required)
                {
                    self.vouch(index);
                }
            }
        }
        let raised = self.cut > before;
        if raised {
            self.paint();
        }
        raised
    }

    fn fault(&self, disk: usize, sector: u64, found: Found) -> Option<Fault> {
        let required = self.required_at(disk, sector);
        let lost = |required: &Operation, found| Fault::Lost {
            expected: *required,
            because: self.because(required),
            found,
        };
        match found {
            Found::Foreign(foreign) => Some(Fault::Foreign(foreign)),
            Found::Zero => {
                let required = required.filter(|required| required.effect == Effect::Write)?;
                self.zeroing(disk, sector, required).is_none().then(|| lost(required, None))
            }
            Found::Write(sequence) => {
                let Some(index) = self.issued_at(disk, sector, sequence) else {
                    return Some(Fault::Invented(sequence));
                };
                let operation = &self.history.operations()[index];
                if operation.issued > self.bounds.nothing_after {
                    return Some(Fault::TooNew(sequence));
                }
                let required = required?;
                let older = self.history.settled(operation) < required.issued;
                older.then(|| lost(required, Some(sequence)))
            }
        }
    }

    fn because(&self, required: &Operation) -> Because {
        match self.newest {
            _ if required.acknowledged_before(self.bounds.holds_before) => Because::Acknowledged,
            Some(newest) if required.acknowledged_before(self.cut) => {
                Because::Later(self.history.operations()[newest])
            }
            _ => Because::Atomic,
        }
    }

    fn verdict(&self) -> Verdict {
        let mut verdict = Verdict {
            sectors: 0,
            written: 0,
            required: 0,
            cut: self.cut,
            violations: Vec::new(),
            violations_count: 0,
        };
        let operations = self.history.operations();
        verdict.required =
            operations.iter().filter(|operation| operation.acknowledged_before(self.cut)).count() as u64;
        for image in self.images {
            verdict.sectors += image.sectors.len() as u64;
            let mut last: Option<Violation> = None;
            for (sector, found) in (0_u64..).zip(&image.sectors) {
                verdict.written += u64::from(*found != Found::Zero);
                let fault = self.fault(image.disk, sector, *found);
                let joins = last.filter(|last| fault.is_some_and(|fault| fault.joins(&last.fault)));
                if let Some(joined) = joins {
                    last = Some(Violation { sectors: joined.sectors + 1, ..joined });
                    continue;
                }
                verdict.tell(last.take());
                last = fault.map(|fault| Violation { disk: image.disk, sector, sectors: 1, fault });
            }
            verdict.tell(last);
        }
        verdict
    }
}

impl Fault {
    /// Whether it is the same fault as that of the sector before.
    fn joins(&self, before: &Fault) -> bool {
        match (self, before) {
            (Fault::Foreign(Foreign::Misplaced { .. }), _) => false,
            _ => self == before,
        }
    }
}

impl Verdict {
    fn tell(&mut self, violation: Option<Violation>) {
        let Some(violation) = violation else { return };
        self.violations_count += 1;
        if self.violations.len() < VIOLATIONS_TOLD {
            self.violations.push(violation);
        }
    }
}

#[cfg(test)]
mod tests;
