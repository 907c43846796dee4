//! Bit rot: a bit of what is stored flips while nobody looks, at rest or under a process that runs. It is refused, or
//! harmless; never served, and never carried on to an image or a point.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use super::answers::joined;
use super::clients::Member;
use super::history::Contents;
use super::sector::stamps;
use super::site::{Outcome, Site};
use crate::block::{Refusal, Response};
use crate::error::{Error, ErrorKind};
use crate::format::record::PointRecord;
use crate::journal::segments::parse_file_name;
use crate::protect::group::Group;
use crate::units::{PointId, SectorRange};

/// Bits flipped at rest in one run, each on a copy of its own.
const ROTS: u64 = 2;
/// Bits flipped in the journal of a process that runs.
const ROTS_ALIVE: u64 = 3;
/// Writes that the journal still holds when that happens, at most.
const BACKLOG_MAX: u64 = 24;
/// What is read at a time: a refusal says nothing about all of it.
const READ_SECTORS: u64 = 16;

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
        let sound = self.disk.image();
        // From here on, what is refused is no failure; and no point is taken up that will not have been.
        (self.is_faulted, self.is_verified) = (true, false);
        for _ in 0..ROTS_ALIVE {
            let seed = self.random.next();
            let Some(rot) = self.disk.rot_somewhere(seed, is_segment) else { break };
            self.report.rots += 1;
            self.tracer.note(|| format!("under way: {rot:?}"));
        }
        self.judge_alive().map_err(|text| format!("after rot under way: {text}"))?;
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.start_process();
        self.judge_damage().map_err(|text| format!("reopened after rot under way: {text}"))?;
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.disk.restore(&sound);
        self.start_process();
        Ok(())
    }

    /// Acknowledged writes that are in the journal only.
    fn write_backlog(&mut self) -> Outcome {
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
    fn judge_alive(&mut self) -> Outcome {
        self.compare_disks()?;
        if let Some(point) = self.ask_unheard_point()? {
            let issued = self.history.issued();
            match self.try_view(point)? {
                Ok(contents) if self.history.find(issued, issued, &contents).is_none() => {
                    return Err(format!("a point: {}", self.history.explain(issued, issued, &contents)));
                }
                Ok(_) => {}
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
    fn compare_disks(&mut self) -> Outcome {
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
                        sectors.extend(stamps(member.number, start, &joined(&pieces, range)?)?);
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

    /// The group refuses to open, or a point refuses to be read, or everything that is served is right.
    fn judge_damage(&mut self) -> Outcome {
        loop {
            match self.process.step() {
                Err(error) if is_refusal(&error) => {
                    self.tracer.note(|| format!("refused: {error}"));
                    self.report.rots_refused += 1;
                    return Ok(());
                }
                Err(error) => return Err(format!("refused as something else: {error}")),
                Ok(()) if self.process.is_serving() => break,
                Ok(()) => {}
            }
            self.step_disk();
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

/// Images and bases are raw, and what nobody sums nobody can tell.
fn has_checksums(path: &Path) -> bool {
    let is_raw = path.extension().is_some_and(|extension| extension == "raw" || extension == "overlay");
    !is_raw
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
