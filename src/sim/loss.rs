//! Records that rotted in the journal are given up: what an administrator does about them, and what must follow. Just the
//! sectors that were refused before are lost, they hold something older, and disks and points say the same from then on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::answers::joined;
use super::clients::Member;
use super::history::Contents;
use super::sector::stamps;
use super::site::{Outcome, Site};
use crate::block::{Refusal, Response};
use crate::error::{ErrorKind, Result};
use crate::extent::Ranges;
use crate::protect::resume::{Finding, ResumeReport};
use crate::units::{SECTOR_BYTES, SectorRange};

/// Sectors of disks that hold something older than what was written last.
pub(super) type GivenUp = BTreeMap<usize, Ranges>;

/// Points after which one of them holds every disk again, at most.
const POINTS_MAX: usize = 6;

impl Site {
    /// Turns the journal over beside what is latched, at times, so that it forgets what rotted; accepts the losses; and compares.
    pub(super) fn take_the_way_out(&mut self) -> Outcome {
        if self.random.chance(1, 2) {
            self.turn_over_beside_latched()?;
        }
        self.give_up()?;
        self.compare_whole_point()
    }

    /// Accepts the losses of latched disks: just what was refused before is lost.
    fn give_up(&mut self) -> Outcome {
        if !self.has_latched_disks() {
            return Ok(());
        }
        let refused = self.refused_sectors()?;
        let report = self.accept_losses()?;
        let given_up = given_up(self, &report)?;
        if given_up != refused {
            return Err(format!("{refused:?} were refused, and {given_up:?} are given up"));
        }
        for (disk, ranges) in given_up {
            let known = self.given_up.remove(&disk).unwrap_or_default();
            self.given_up.insert(disk, known.union(ranges.as_slice().iter().copied()));
        }
        let before = self.report.rots_met;
        self.compare_disks()?;
        if self.report.rots_met != before {
            return Err("a read is refused though the loss was accepted".to_owned());
        }
        Ok(())
    }

    /// A sound disk takes so many writes that the journal is turned over: the record that rotted holds nobody up.
    fn turn_over_beside_latched(&mut self) -> Outcome {
        let latched: Vec<_> = {
            let Some(group) = self.process.group() else { return Ok(()) };
            group.disks().filter(|disk| disk.latched.is_some()).map(|disk| disk.record.id).collect()
        };
        let is_sound = |member: &&Member| !member.leaving && !latched.contains(&member.id);
        let Some(member) = self.clients.members.iter().find(is_sound).cloned() else { return Ok(()) };
        let sectors = self.plan.write_sectors_max.min(self.history.sectors(member.number));
        let total = 2 * self.plan.segment_bytes * self.plan.segments / SECTOR_BYTES;
        for _ in 0..total / sectors {
            let stamp = self.clients.next_stamp();
            self.change(&member, SectorRange::new(0, sectors), Some(stamp))?;
            let depth = self.plan.depth;
            self.drive("a write beside rot", |site| site.clients.pending.len() < depth)?;
        }
        self.drive("writes beside rot", |site| site.clients.pending.is_empty())?;
        self.rest()
    }

    /// The sectors of latched disks that are not served, once side files note them.
    fn refused_sectors(&mut self) -> std::result::Result<GivenUp, String> {
        self.drive("side files of latched disks", |site| {
            let group = site.process.group();
            group.is_some_and(|group| {
                group
                    .disks()
                    .all(|disk| disk.latched.is_none() || !disk.sides.is_empty() || !disk.withheld.is_empty())
            })
        })?;
        let mut refused = GivenUp::new();
        for member in self.clients.members.clone().into_iter().filter(|member| !member.leaving) {
            let sectors = 0..self.history.sectors(member.number);
            let mut ranges = Vec::new();
            for range in sectors.map(|sector| SectorRange::new(sector, sector + 1)) {
                match self.read_now(member.id, range)? {
                    Ok(_) => {}
                    Err(Refusal::Io) => ranges.push(range),
                    Err(other) => return Err(format!("a read was refused as something else: {other:?}")),
                }
            }
            if !ranges.is_empty() {
                refused.insert(member.number, Ranges::of(ranges));
            }
        }
        Ok(refused)
    }

    fn accept_losses(&mut self) -> std::result::Result<ResumeReport, String> {
        let answer: Rc<RefCell<Option<Result<ResumeReport>>>> = Rc::default();
        let slot = Rc::clone(&answer);
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        group.mend_disks_accepting_loss(Box::new(move |result| drop(slot.replace(Some(result)))));
        self.drive("giving up what rotted", |_| answer.borrow().is_some())?;
        answer.take().expect("answered").map_err(|error| format!("what rotted cannot be given up: {error}"))
    }

    /// After a few points at most there is one that holds every disk, and is as the disks are.
    pub(super) fn compare_whole_point(&mut self) -> Outcome {
        for _ in 0..POINTS_MAX {
            // A record that destage came to only now latches its disk, which no point has until somebody gives the record up.
            self.give_up()?;
            let Some(point) = self.ask_unheard_point()? else { return Err("a point was refused".to_owned()) };
            match self.try_view(point)? {
                Ok(contents) if self.holds_all(&contents) => {
                    let served = self.read_all()?;
                    let differs = contents
                        .iter()
                        .any(|(disk, stamps)| served.get(disk).is_some_and(|other| other != stamps));
                    return if differs {
                        Err("a point is not as the disks that it holds".to_owned())
                    } else {
                        Ok(())
                    };
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(format!("a point can't be read: {error}")),
            }
            self.rest()?;
        }
        Err("points stay without a disk".to_owned())
    }

    pub(super) fn holds_all(&self, contents: &Contents) -> bool {
        self.clients
            .members
            .iter()
            .filter(|member| !member.leaving)
            .all(|member| contents.contains_key(&member.number))
    }

    fn read_all(&mut self) -> std::result::Result<Contents, String> {
        let mut found = Contents::new();
        for member in self.clients.members.clone().into_iter().filter(|member| !member.leaving) {
            let range = SectorRange::new(0, self.history.sectors(member.number));
            match self.read_now(member.id, range)? {
                Ok(Response::Data(pieces)) => {
                    found.insert(member.number, stamps(member.number, 0, &joined(&pieces, range)?)?);
                }
                other => {
                    return Err(format!("disk {} after its loss was accepted: {other:?}", member.number));
                }
            }
        }
        Ok(found)
    }
}

fn given_up(site: &mut Site, report: &ResumeReport) -> std::result::Result<GivenUp, String> {
    let mut given_up = GivenUp::new();
    for disk in &report.disks {
        match &disk.finding {
            Finding::Sound | Finding::Mended => {}
            Finding::Accepted { lost } => {
                site.report.losses += 1;
                given_up.insert(site.number_of(disk.disk)?, lost.clone());
            }
            Finding::Lost { reason } | Finding::Latched { reason, .. } => {
                return Err(format!("{} stays latched though its loss was accepted: {reason}", disk.name));
            }
        }
    }
    Ok(given_up)
}
