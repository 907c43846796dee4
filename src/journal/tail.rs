//! Where the chain ends: what stands in the place of the next frame, and what behind it.
//!
//! A power cut may tear what was not flushed, and the death of a process what was in flight. Neither tells itself from a bit that
//! flipped; what stands behind does. A frame shows by its number that all but so many before it were written when it was submitted,
//! and told of ([`written_before`]). If the host has not been started anew since, these were not torn: they rotted.
//!
//! ```text
//!  … accepted │ damaged │ sound │ sound │ … │ sound │        9 on from the end, or 2 and submitted alone:
//!             ▲ the break                   ▲ newest         what is damaged had been written
//! ```
//!
//! Looks only; [`recover`](super::recover) decides.

use crate::counted::counted;
use crate::env::BootId;
use crate::format::frame::{Frame, FrameFault, HeaderTraces};
use crate::journal::boot;
use crate::journal::commit::{was_alone, written_before};
use crate::journal::recover::Accepted;
use crate::journal::scan::{End, Owner, Scanned, SegmentScan};
use crate::journal::segments::{SegmentIndex, file_name};
use crate::units::{FrameNumber, IncarnationId, Lsn};

/// A sound header behind a segment's sound frames.
#[derive(Clone, Debug)]
pub struct Stray {
    owner: Owner,
    incarnation: IncarnationId,
    number: FrameNumber,
    first_lsn: Lsn,
    last_lsn: Lsn,
    offset: u64,
    /// Whether its payloads are what was written.
    is_whole: bool,
    was_alone: bool,
}

impl Stray {
    /// Of a frame that stands where it says, in a segment of so many bytes.
    pub fn of(frame: &Frame, is_whole: bool, segment_bytes: u64) -> Stray {
        let end = frame.segment_offset() + frame.total_bytes() as u64;
        Stray {
            owner: frame.owner(),
            incarnation: frame.incarnation,
            number: frame.number,
            first_lsn: frame.first_lsn,
            last_lsn: frame.last_lsn(),
            offset: frame.segment_offset(),
            is_whole,
            was_alone: was_alone(frame, segment_bytes.saturating_sub(end)),
        }
    }
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Its header.
    Header,
    /// Its header is sound, and a payload is not.
    Payload,
    /// Nothing of it is there, and frames behind it are.
    Missing,
}

/// A chain's end where a frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Break {
    /// The segment,
    pub segment: SegmentIndex,
    /// and the byte in it at which the frame begins.
    pub offset: u64,
    /// What is wrong with it.
    pub damage: Damage,
    /// Sound frames of its incarnation behind it.
    pub behind: usize,
    /// The newest record that any of their headers names.
    pub newest: Lsn,
    /// Records up to here were written when the newest of these was submitted; at least the end of the chain.
    pub written: Lsn,
    incarnation: IncarnationId,
}

impl Break {
    /// Whether a process alone has died since it was written.
    pub fn is_of(&self, boot: Option<BootId>) -> bool {
        boot.is_some_and(|boot| boot::ran_in(self.incarnation, boot))
    }

    /// `segment-00000000 at byte 4096: the header of a frame is damaged, and 3 sound frames stand behind it`.
    pub fn told(&self) -> String {
        let what = match self.damage {
            Damage::Header => "the header of a frame is not what was written",
            Damage::Payload => "a payload of a frame is not what was written",
            Damage::Missing => "a frame is missing",
        };
        let behind = match self.behind {
            0 => "nothing sound stands behind it".to_owned(),
            1 => "1 sound frame stands behind it".to_owned(),
            frames => format!("{} stand behind it", counted(frames, "sound frame")),
        };
        format!("{} at byte {}: {what}, and {behind}", file_name(self.segment), self.offset)
    }
}

/// What is there of frames behind the chain.
struct Found {
    number: FrameNumber,
    first_lsn: Lsn,
    last_lsn: Lsn,
    is_whole: bool,
    was_alone: bool,
    scan: usize,
    offset: u64,
}

/// The frame at which `chain` ends, if there was one in the place of the next one.
pub fn find(scans: &[SegmentScan], chain: &[Accepted], owner: Owner) -> Option<Break> {
    let part = chain.last()?;
    let last = scans[part.scan].frames.get(part.frames.checked_sub(1)?)?;
    let found = behind(scans, last, owner);
    let (scan, offset, damage) = place(scans, part.scan, last, owner, &found)?;
    let next = last.frame.number.next();
    let end = last.frame.last_lsn();
    Some(Break {
        segment: scans[scan].index,
        offset,
        damage,
        behind: found.iter().filter(|found| found.is_whole && found.number > next).count(),
        newest: found.iter().map(|found| found.last_lsn).max().unwrap_or(end).max(end),
        written: written(&found, last).max(end),
        incarnation: last.frame.incarnation,
    })
}

/// Sound headers of the incarnation of `last` that are newer than it. What an opening gave up is of another incarnation
/// than the frame before it, from then on.
fn behind(scans: &[SegmentScan], last: &Scanned, owner: Owner) -> Vec<Found> {
    let mut all = Vec::new();
    for (scan, segment) in scans.iter().enumerate() {
        let newer = segment.frames.iter().filter(|scanned| scanned.frame.number > last.frame.number);
        let sound = newer.map(|scanned| Stray::of(&scanned.frame, true, segment.bytes));
        let ours = sound.chain(segment.strays.iter().cloned()).filter(|stray| {
            (stray.owner, stray.incarnation) == (owner, last.frame.incarnation)
                && stray.number > last.frame.number
        });
        all.extend(ours.map(|stray| {
            let Stray { number, first_lsn, last_lsn, is_whole, was_alone, offset, .. } = stray;
            Found { number, first_lsn, last_lsn, is_whole, was_alone, scan, offset }
        }));
    }
    all.sort_by_key(|found| found.number);
    all
}

/// The scan, byte and damage of the frame behind `last`, if any of it is there, or anything behind it.
fn place(
    scans: &[SegmentScan],
    scan: usize,
    last: &Scanned,
    owner: Owner,
    found: &[Found],
) -> Option<(usize, u64, Damage)> {
    let next = last.frame.number.next();
    if let Some(found) = found.first().filter(|found| found.number == next) {
        return Some((found.scan, found.offset, Damage::Payload));
    }
    let is_next = |traces: &HeaderTraces| traces.names((owner.group, owner.timeline), next, last.sum);
    let has_traces = |scan: &SegmentScan| scan.traces.as_ref().is_some_and(is_next);
    if has_traces(&scans[scan]) {
        return Some((scan, last.end_offset(), Damage::Header));
    }
    let is_headless = |scan: &SegmentScan| scan.frames.is_empty() && has_traces(scan);
    if let Some(scan) = scans.iter().position(is_headless) {
        return Some((scan, 0, Damage::Header));
    }
    let first = found.first()?;
    let is_full = last.end_offset() >= scans[scan].bytes;
    if first.scan != scan && (is_full || scans[first.scan].frames.is_empty()) {
        return Some((first.scan, 0, damage_at(&scans[first.scan])));
    }
    Some((scan, last.end_offset(), damage_at(&scans[scan])))
}

/// What became of a frame of which nothing can be recognised.
fn damage_at(scan: &SegmentScan) -> Damage {
    match scan.end {
        End::Fault { fault: FrameFault::Blank, .. } | End::Unlinked { .. } | End::Full => Damage::Missing,
        End::Fault { .. } => Damage::Header,
    }
}

/// The last record that was written, and told of, when the newest of the frames found was submitted.
fn written(found: &[Found], last: &Scanned) -> Lsn {
    let proven = found.iter().map(|found| written_before(found.number, found.was_alone)).max();
    let Some(proven) = proven.filter(|proven| *proven > last.frame.number) else { return Lsn::ZERO };
    let through = |found: &Found| {
        let last = if found.number <= proven { found.last_lsn } else { Lsn(found.first_lsn.0 - 1) };
        (found.number <= proven.next()).then_some((found.number, last))
    };
    match found.iter().filter_map(through).next_back() {
        Some((number, last)) if number >= proven => last,
        // Of frames whose headers are gone it is known only that there were some.
        other => other.map_or(Lsn::ZERO, |(_, last)| last).max(last.frame.last_lsn().next()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
