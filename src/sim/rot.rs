//! Bit rot: a bit of what is stored flips while nobody looks, at rest or under a process that runs. It is refused, or
//! harmless; never served, and never carried on to an image or a point.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::answers::joined;
use super::clients::Member;
use super::history::Contents;
use super::sector::{Stamp, stamps};
use super::site::{Outcome, Site};
use crate::block::{Refusal, Response};
use crate::error::{Error, ErrorKind};
use crate::format::frame::RecordKind;
use crate::format::record::PointRecord;
use crate::journal::scan::{Checks, scan_segment};
use crate::journal::segments::parse_file_name;
use crate::protect::group::Group;
use crate::units::{PointId, SECTOR_BYTES, SectorRange};
use crate::vault::{BaseName, parse_base_name};

/// Bits flipped at rest in one run, each on a copy of its own.
const ROTS: u64 = 2;
/// Bits flipped in the journal of a process that runs.
const ROTS_ALIVE: u64 = 3;
/// Writes that the journal still holds when that happens, at most.
const BACKLOG_MAX: u64 = 24;
/// Of how many of the newest writes one is hit.
const WRITES_MAX: usize = 16;
/// What is read at a time: a refusal says nothing about all of it.
const READ_SECTORS: u64 = 16;

/// A write as it stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stored {
    lsn: u64,
    /// The number of its frame.
    pub number: u64,
    /// Its segment.
    pub path: PathBuf,
    /// Where its frame begins.
    pub frame: u64,
    /// Where its payload begins.
    pub payload: u64,
}

impl Site {
    /// Flips bits and opens the group each time; afterwards everything is as it was.
    pub(super) fn damage(&mut self) -> Outcome {
        self.rest()?;
        // At rest, everything is durable, and stated to be.
        let issued = self.history.issued();
        self.history.make_durable(issued);
        self.disk.kill_process(self.process.id());
        self.disk.run();
        let sound = self.disk.image();
        for _ in 0..ROTS {
            let seed = self.random.next();
            let Some(rot) = self.disk.rot_somewhere(seed, has_checksums) else { break };
            self.report.rots += 1;
            self.tracer.note(|| format!("{rot:?}"));
            self.start_process();
            let judged = if is_summary(&rot.path) { self.judge_harmless() } else { self.judge_damage() };
            judged.map_err(|text| format!("after {rot:?}: {text}"))?;
            self.disk.kill_process(self.process.id());
            self.disk.run();
            self.disk.restore(&sound);
        }
        self.start_process();
        Ok(())
    }

    /// Flips bits in the journal under the running process, which then reads, destages and makes a point; and opens
    /// the group again. Afterwards everything is as it was.
    pub(super) fn damage_alive(&mut self) -> Outcome {
        self.write_backlog()?;
        let (sound, history) = (self.disk.image(), self.history.clone());
        // From here on, what is refused is no failure; and no point is taken up that will not have been.
        (self.is_faulted, self.is_verified) = (true, false);
        for _ in 0..ROTS_ALIVE {
            let seed = self.random.next();
            let Some(rot) = self.disk.rot_somewhere(seed, is_segment) else { break };
            self.report.rots += 1;
            self.tracer.note(|| format!("under way: {rot:?}"));
        }
        self.rot_a_write();
        self.judge_alive().map_err(|text| format!("after rot under way: {text}"))?;
        self.take_the_way_out().map_err(|text| format!("on the way out of rot: {text}"))?;
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.start_process();
        self.judge_damage().map_err(|text| format!("reopened after rot under way: {text}"))?;
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.disk.restore(&sound);
        self.history = history;
        self.given_up.clear();
        self.start_process();
        Ok(())
    }

    /// Flips a bit of one of the newest writes that the journal holds: few of its bits are of such.
    fn rot_a_write(&mut self) {
        let writes = self.newest_writes();
        if writes.is_empty() {
            return;
        }
        let write = self.random.choose(&writes).clone();
        if self.disk.rot(&write.path, write.payload + self.random.below(SECTOR_BYTES), 5) {
            self.report.rots += 1;
        }
    }

    /// The newest writes that the journal holds.
    pub(super) fn newest_writes(&self) -> Vec<Stored> {
        let mut writes = Vec::new();
        for path in self.disk.files() {
            let Some(index) = path.file_name().and_then(|name| parse_file_name(name.to_str()?)) else {
                continue;
            };
            let Some(bytes) = self.disk.read_file(&path) else { continue };
            for scanned in scan_segment(index, &bytes, Checks::ALL).frames {
                let (frame, number) = (&scanned.frame, scanned.frame.number.0);
                for (record, lsn) in frame.records.iter().zip(frame.first_lsn.0..) {
                    if matches!(record.kind, RecordKind::Write { .. }) {
                        let payload = frame.payload_range(record.payload);
                        let frame = frame.segment_offset();
                        let payload = frame + payload.start as u64;
                        writes.push(Stored { lsn, number, path: path.clone(), frame, payload });
                    }
                }
            }
        }
        writes.sort_unstable();
        let older = writes.len().saturating_sub(WRITES_MAX);
        writes.split_off(older)
    }

    /// Acknowledged writes that are in the journal only.
    pub(super) fn write_backlog(&mut self) -> Outcome {
        for _ in 0..1 + self.random.below(BACKLOG_MAX) {
            let staying: Vec<Member> =
                self.clients.members.iter().filter(|member| !member.leaving).cloned().collect();
            let member = self.random.choose(&staying).clone();
            let range = self.draw_range(self.history.sectors(member.number));
            let stamp = self.clients.next_stamp();
            self.change(&member, range, Some(stamp))?;
            self.drive("a write", |site| site.clients.pending.is_empty())?;
        }
        Ok(())
    }

    /// Reads are right or refused; so are the images in the end, and a point of all of it.
    pub(super) fn judge_alive(&mut self) -> Outcome {
        self.compare_disks()?;
        if let Some(point) = self.ask_unheard_point()? {
            let issued = self.history.issued();
            match self.try_view(point)? {
                Ok(contents) if self.history.find(issued, issued, &contents).is_none() => {
                    return Err(format!("a point: {}", self.history.explain(issued, issued, &contents)));
                }
                Ok(contents) => self.report.rots_met += u64::from(!self.holds_all(&contents)),
                // The only disk is lacking.
                Err(error) if error.kind() == ErrorKind::NotFound => self.report.rots_met += 1,
                Err(error) => return Err(format!("a new point can't be read: {error}")),
            }
        }
        self.rest()?;
        // Behind what is not destaged an image may be; but no sector of it holds what nobody wrote there.
        self.images().map_err(|text| format!("an image: {text}"))?;
        self.compare_disks()
    }

    /// Asks for a point that the oracle is not told of; its id, unless it was refused.
    pub(super) fn ask_unheard_point(&mut self) -> Result<Option<PointId>, String> {
        let answer: Rc<RefCell<Option<crate::error::Result<PointRecord>>>> = Rc::default();
        let slot = Rc::clone(&answer);
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        group.create_point("unheard".to_owned(), Box::new(move |result| drop(slot.replace(Some(result)))));
        self.drive("a point that nobody hears of", |_| answer.borrow().is_some())?;
        match answer.take().expect("answered") {
            Ok(record) => Ok(Some(record.id)),
            Err(error) if matches!(error.kind(), ErrorKind::Latched | ErrorKind::Corrupt) => {
                self.report.rots_met += 1;
                Ok(None)
            }
            Err(error) => Err(format!("a point was refused as something else: {error}")),
        }
    }

    /// Compares all disks with what was issued; what is refused is passed over.
    pub(super) fn compare_disks(&mut self) -> Outcome {
        let members: Vec<Member> =
            self.clients.members.iter().filter(|member| !member.leaving).cloned().collect();
        let mut found = Contents::new();
        for member in members {
            let mut sectors = Vec::new();
            let end = self.history.sectors(member.number);
            for start in (0..end).step_by(READ_SECTORS.try_into().expect("small")) {
                let range = SectorRange::new(start, end.min(start + READ_SECTORS));
                match self.read_now(member.id, range)? {
                    Ok(Response::Data(pieces)) => {
                        let found = stamps(member.number, start, &joined(&pieces, range)?)?;
                        sectors.extend(self.with_given_up(member.number, range, found));
                    }
                    Err(Refusal::Io) => {
                        self.report.rots_met += 1;
                        sectors.extend(self.history.current(member.number, range));
                    }
                    other => return Err(format!("disk {} {range}: {other:?}", member.number)),
                }
            }
            found.insert(member.number, sectors);
        }
        let issued = self.history.issued();
        if self.history.find(issued, issued, &found).is_none() {
            return Err(format!("served: {}", self.history.explain(issued, issued, &found)));
        }
        Ok(())
    }

    /// A summary is a cache: nothing is refused, and everything that is served is right.
    fn judge_harmless(&mut self) -> Outcome {
        self.report.rots_in_summaries += 1;
        let refused = self.report.rots_refused;
        self.judge_damage()?;
        if self.report.rots_refused > refused {
            return Err("something was refused for what a cache holds".to_owned());
        }
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        self.report.summaries_refused += group.vault().summaries().refusals();
        Ok(())
    }

    /// What was found of a disk; of sectors that were given up what was written last, where they hold anything older.
    fn with_given_up(&self, disk: usize, range: SectorRange, mut found: Vec<Stamp>) -> Vec<Stamp> {
        let Some(given_up) = self.given_up.get(&disk) else { return found };
        let current = self.history.current(disk, range);
        for ((sector, found), current) in (range.start..).zip(&mut found).zip(current) {
            let is_given_up = given_up.meets(SectorRange::new(sector, sector + 1));
            if is_given_up && self.history.was_ever(disk, sector, *found) {
                *found = *current;
            }
        }
        found
    }

    /// Whether the group opens; it may refuse to.
    pub(super) fn opens(&mut self) -> Result<bool, String> {
        loop {
            match self.process.step() {
                Err(error) if is_refusal(&error) => {
                    self.tracer.note(|| format!("refused: {error}"));
                    return Ok(false);
                }
                Err(error) => return Err(format!("refused as something else: {error}")),
                Ok(()) if self.process.is_serving() => return Ok(true),
                Ok(()) => {}
            }
            self.step_disk();
        }
    }

    /// The group refuses to open, or a point refuses to be read, or everything that is served is right.
    pub(super) fn judge_damage(&mut self) -> Outcome {
        if !self.opens()? {
            self.report.rots_refused += 1;
            return Ok(());
        }
        self.compare_disks()?;
        let detached = |group: &mut Group| group.disks().any(|disk| disk.image.is_none());
        let mut refused = self.process.group().is_some_and(detached);
        for index in 0..self.points.len() {
            let point = self.points.id(index);
            match self.try_view(point)? {
                Ok(contents) => self.check_point(point, &contents)?,
                Err(error) if is_refusal(&error) => refused = true,
                Err(error) if self.is_gone(point, &error) => {}
                Err(error) => return Err(format!("point {point} refused as something else: {error}")),
            }
        }
        self.report.rots_refused += u64::from(refused);
        Ok(())
    }
}

/// Images and bases are raw and have sums beside them. So have overlays, of which only their test failovers read anything
/// ([`Site::damage_overlays`]).
fn has_checksums(path: &Path) -> bool {
    if path.parent().is_some_and(|directory| directory.ends_with("images")) {
        return true;
    }
    let name = path.file_name().and_then(|name| name.to_str());
    if name.is_some_and(|name| name.contains(".overlay")) {
        return false;
    }
    let is_raw = path.extension().is_some_and(|extension| extension == "raw");
    !is_raw || matches!(name.and_then(parse_base_name), Some(BaseName::Base(_)))
}

/// A flipped bit of a version number reads as a version that is yet to come.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported)
}

fn is_summary(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "summary")
}

pub(super) fn is_segment(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).and_then(parse_file_name).is_some()
}
