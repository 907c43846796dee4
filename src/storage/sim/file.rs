//! One simulated file: what survives a power cut for sure, what processes see, and the changes between the two.
//!
//! ```text
//! durable ── change ── change ── change ──▶ visible        (changes in the order in which they completed)
//!         ╰─ covered by a sync ─╯
//! ```
//!
//! A sync moves the changes that had completed when it was submitted into `durable`. A power cut decides the fate of
//! every sector of every other change by itself: kept, dropped or scrambled. A dropped sector shows what was there
//! before; where there was nothing, because the write itself had lengthened the file, it shows garbage and never
//! zeros, for a disk doesn't clear what nobody wrote.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use super::content::Content;
use crate::random::Random;
use crate::storage::Slice;
use crate::units::{PAGE_BYTES, SECTOR_BYTES, to_usize};

/// A point in the order of all submissions and completions of one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) u64);

/// What an operation does to a file.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write {
        offset: u64,
        data: Slice,
    },
    Zero {
        range: Range<u64>,
        keep_allocated: bool,
    },
    Length(u64),
    /// Bit rot in a sector that an earlier change has yet to bring to the disk.
    Rot {
        offset: u64,
        bit: u8,
    },
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Change::Write { offset, data } => content.write(*offset, data),
            Change::Zero { range, keep_allocated } => content.zero(range.clone(), *keep_allocated),
            Change::Length(length) => content.set_length(*length),
            Change::Rot { offset, bit } => drop(content.flip(*offset, *bit)),
        }
    }

    fn touches(&self, byte: u64) -> bool {
        match self {
            Change::Write { offset, data } => (*offset..*offset + data.len() as u64).contains(&byte),
            Change::Zero { range, .. } => range.contains(&byte),
            Change::Length(length) => byte >= *length,
            Change::Rot { .. } => false,
        }
    }
}

/// How hard one power cut hits; drawn anew for each, so that all kept, all dropped and every mixture happen.
#[derive(Clone, Copy, Debug)]
pub struct Severity {
    /// Chance in 16 that something unsynced is kept.
    keep: u64,
    /// Chance in 64 that a sector is scrambled.
    scramble: u64,
    /// Whether sectors of one change share their fate.
    whole_changes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
    Scrambled,
}

impl Severity {
    const KEEP: [u64; 7] = [0, 4, 8, 8, 12, 15, 16];
    const SCRAMBLE: [u64; 3] = [0, 1, 8];

    pub(super) fn draw(random: &mut Random) -> Severity {
        Severity {
            keep: *random.choose(&Severity::KEEP),
            scramble: *random.choose(&Severity::SCRAMBLE),
            whole_changes: random.chance(1, 3),
        }
    }

    /// One of those that are drawn, by its number: 0 to 6 keep from nothing to everything, and scramble nothing.
    pub fn numbered(number: u8) -> Severity {
        let number = usize::from(number);
        let (keep, scramble) = (Severity::KEEP.len(), Severity::SCRAMBLE.len());
        Severity {
            keep: Severity::KEEP[number % keep],
            scramble: Severity::SCRAMBLE[number / keep % scramble],
            whole_changes: number / (keep * scramble) % 2 == 1,
        }
    }

    /// What a failed sync leaves: some sectors were brought to the disk, some not, none is torn.
    pub(super) const FAILED_SYNC: Severity = Severity { keep: 8, scramble: 0, whole_changes: false };

    pub(super) fn keeps(self, random: &mut Random) -> bool {
        random.chance(self.keep, 16)
    }

    fn fate(self, random: &mut Random) -> Fate {
        if random.chance(self.scramble, 64) {
            Fate::Scrambled
        } else if self.keeps(random) {
            Fate::Kept
        } else {
            Fate::Dropped
        }
    }
}

/// One file's bytes at rest and in sight.
#[derive(Clone, Debug, Default)]
pub(super) struct SimFile {
    durable: Content,
    visible: Content,
    unsynced: VecDeque<(Moment, Change)>,
    /// Pages that the disk does not give, until they are written anew.
    bad_pages: BTreeSet<u64>,
}

impl SimFile {
    /// A file whose bytes have been synced.
    pub(super) fn at_rest(content: Content) -> SimFile {
        SimFile { durable: content.clone(), visible: content, ..SimFile::default() }
    }

    pub(super) fn visible(&self) -> &Content {
        &self.visible
    }

    pub(super) fn durable(&self) -> &Content {
        &self.durable
    }

    /// A change completes, or a part of one lands.
    pub(super) fn apply(&mut self, at: Moment, change: Change) {
        change.apply(&mut self.visible);
        self.bad_pages.retain(|page| !change.touches(page * PAGE_BYTES as u64));
        self.unsynced.push_back((at, change));
    }

    /// The disk does not give these bytes any more, by whole pages.
    pub(super) fn spoil(&mut self, range: Range<u64>) {
        let page = PAGE_BYTES as u64;
        self.bad_pages.extend(range.start / page..range.end.div_ceil(page));
    }

    /// It gives all of them again.
    pub(super) fn heal(&mut self) {
        self.bad_pages.clear();
    }

    /// The first byte of a range that the disk does not give.
    pub(super) fn first_bad(&self, range: Range<u64>) -> Option<u64> {
        let page = PAGE_BYTES as u64;
        let first = self.bad_pages.range(range.start / page..range.end.div_ceil(page)).next()?;
        Some(range.start.max(first * page))
    }

    /// A random part of a write lands, sector by sector; the file grows only when a write completes.
    pub(super) fn land_part(&mut self, at: Moment, offset: u64, data: &Slice, random: &mut Random) {
        for piece in sectors(offset, data.len()) {
            let end = offset + piece.end as u64;
            if end <= self.visible.length() && random.chance(1, 2) {
                let data = data.slice(piece.clone());
                self.apply(at, Change::Write { offset: offset + piece.start as u64, data });
            }
        }
    }

    /// A sync that was submitted at `submitted` succeeds.
    pub(super) fn sync(&mut self, submitted: Moment) {
        while let Some((_, change)) = self.unsynced.pop_front_if(|(at, _)| *at < submitted) {
            change.apply(&mut self.durable);
        }
    }

    /// A sync that was submitted at `submitted` fails: some of what it covers reached the disk, and no later sync
    /// brings the rest there, although it stays in sight. (That is what Linux does.)
    pub(super) fn fail_sync(&mut self, submitted: Moment, random: &mut Random) {
        while let Some((_, change)) = self.unsynced.pop_front_if(|(at, _)| *at < submitted) {
            settle(&mut self.durable, &change, Severity::FAILED_SYNC, random);
        }
    }

    /// The page cache gives up what it does not still have to write: what a failed sync lost is out of sight.
    pub(super) fn evict(&mut self) {
        self.visible = self.durable.clone();
        for (_, change) in &self.unsynced {
            change.apply(&mut self.visible);
        }
    }

    /// The power goes; `in_flight` had not completed, and comes in any order.
    pub(super) fn power_cut(&mut self, in_flight: &[Change], severity: Severity, random: &mut Random) {
        for (_, change) in std::mem::take(&mut self.unsynced) {
            settle(&mut self.durable, &change, severity, random);
        }
        for change in in_flight {
            settle(&mut self.durable, change, severity, random);
        }
        self.visible = self.durable.clone();
    }

    /// Flips a bit of a stored byte; `false` in a hole.
    pub(super) fn rot(&mut self, at: Moment, offset: u64, bit: u8) -> bool {
        if self.unsynced.iter().any(|(_, change)| change.touches(offset)) {
            self.unsynced.push_back((at, Change::Rot { offset, bit }));
        } else {
            self.durable.flip(offset, bit);
        }
        self.visible.flip(offset, bit)
    }
}

/// Splits a transfer at sectors; ranges are within the transfer.
fn sectors(offset: u64, len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let left = to_usize(SECTOR_BYTES - (offset + done as u64) % SECTOR_BYTES).min(len - done);
        done += left;
        Some(done - left..done)
    })
}

/// Brings to `content` what a failure lets through of a change.
fn settle(content: &mut Content, change: &Change, severity: Severity, random: &mut Random) {
    match change {
        Change::Write { offset, data } => settle_write(content, *offset, data, severity, random),
        Change::Zero { range, keep_allocated } => {
            settle_zero(content, range.clone(), *keep_allocated, severity, random);
        }
        Change::Length(_) if !severity.keeps(random) => {}
        Change::Length(_) | Change::Rot { .. } => change.apply(content),
    }
}

fn settle_write(content: &mut Content, offset: u64, data: &[u8], severity: Severity, random: &mut Random) {
    let old_length = content.length();
    let end = offset + data.len() as u64;
    if end > old_length && severity.keeps(random) {
        content.set_length(end);
    }
    let common = severity.fate(random);
    for piece in sectors(offset, data.len()) {
        let at = offset + piece.start as u64;
        let new = &data[piece];
        if at + new.len() as u64 > content.length() {
            return;
        }
        let fate = if severity.whole_changes { common } else { severity.fate(random) };
        match fate {
            Fate::Kept => content.write(at, new),
            Fate::Scrambled => scramble(content, at, new, old_length, random),
            // Nobody ever wrote here, so nobody ever cleared it.
            Fate::Dropped if at + new.len() as u64 > old_length => {
                content.write(at, &random.garbage(new.len()));
            }
            Fate::Dropped => {}
        }
    }
}

/// A sector torn in the middle of being written: garbage, or partly new and partly old.
fn scramble(content: &mut Content, at: u64, new: &[u8], old_length: u64, random: &mut Random) {
    let has_old = at + new.len() as u64 <= old_length;
    if has_old && random.chance(1, 2) {
        content.write(at, &new[..random.index(new.len())]);
    } else {
        content.write(at, &random.garbage(new.len()));
    }
}

fn settle_zero(
    content: &mut Content,
    range: Range<u64>,
    keep_allocated: bool,
    severity: Severity,
    random: &mut Random,
) {
    if severity.whole_changes {
        if severity.keeps(random) {
            content.zero(range, keep_allocated);
        }
        return;
    }
    // File systems zero by block, and what is a hole already needs nothing.
    for page in content.allocated_pages(range.clone()) {
        let start = page * PAGE_BYTES as u64;
        let part = start.max(range.start)..(start + PAGE_BYTES as u64).min(range.end);
        if severity.keeps(random) {
            content.zero(part, keep_allocated);
        }
    }
}
