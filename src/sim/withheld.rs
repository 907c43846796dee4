//! Pages of the journal that its device does not give, for a moment or for good, under a process that runs or before one starts.
//! What passes is noticed by nobody; what stays is refused, and comes back whole once the device gives it again, unless it was
//! given up before.

use std::cell::RefCell;
use std::rc::Rc;

use super::rot::is_segment;
use super::site::{Outcome, Site};
use crate::error::{Error, ErrorKind, Result};
use crate::protect::events::GroupEvent;
use crate::protect::resume::{Finding, ResumeReport};
use crate::units::PAGE_BYTES;

/// A refusal that lasts no longer passes unnoticed: reads are tried again for four seconds.
const PASSING_MAX: u64 = 2500;

/// After so many rests destage has looked at everything, and asked for it often enough.
const RESTS: u64 = 4;

impl Site {
    /// Spoils pages of one of the newest writes in the journal. Afterwards everything is as it was.
    pub(super) fn withhold(&mut self) -> Outcome {
        self.write_backlog()?;
        let (sound, history) = (self.disk.image(), self.history.clone());
        // From here on, what is refused is no failure; and no point is taken up that will not have been.
        (self.is_faulted, self.is_verified) = (true, false);
        if self.spoil_a_write() {
            let judged = match self.random.below(4) {
                0 => self.judge_passing(),
                1 => self.judge_alive().and_then(|()| self.end_withholding()),
                _ => self.judge_restart().and_then(|()| self.end_withholding()),
            };
            judged.map_err(|text| format!("withheld: {text}"))?;
        }
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.disk.mend();
        self.disk.restore(&sound);
        self.history = history;
        self.given_up.clear();
        self.start_process();
        Ok(())
    }

    /// The device refuses the payload of one of the newest writes, or at times the header of its frame.
    fn spoil_a_write(&mut self) -> bool {
        let writes = self.newest_writes();
        if writes.is_empty() {
            return false;
        }
        let write = self.random.choose(&writes).clone();
        let start = if self.random.chance(1, 8) { write.frame } else { write.payload };
        let pages = 1 + self.random.below(3);
        let range = start..start + (pages - 1) * PAGE_BYTES as u64 + 1;
        self.tracer.note(|| format!("bytes {range:?} of {} are withheld", write.path.display()));
        self.report.withheld += 1;
        self.disk.spoil(&write.path, range)
    }

    /// The device gives the pages again while they are still asked for.
    fn judge_passing(&mut self) -> Outcome {
        let due = self.process.runtime().now().0 + self.random.below(PASSING_MAX) * 1_000_000;
        self.drive("a refusal that passes", |site| site.process.runtime().now().0 >= due)?;
        self.disk.mend();
        let is_told = self.process.group().is_some_and(|group| {
            group.take_events().iter().any(|told| matches!(told.event, GroupEvent::Withheld { .. }))
        });
        if is_told {
            return Err("what passed was told".to_owned());
        }
        self.await_destaging()?;
        self.compare_unrefused()
    }

    /// The process dies, and the next one goes on, or says what it cannot read.
    fn judge_restart(&mut self) -> Outcome {
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.start_process();
        self.is_faulted = true;
        loop {
            match self.process.step() {
                Err(error) if is_refusal(&error) => break,
                Err(error) => return Err(format!("an opening was refused as something else: {error}")),
                Ok(()) if self.process.is_serving() => return self.compare_disks(),
                Ok(()) => self.step_disk(),
            }
        }
        self.report.withheld_openings += 1;
        self.disk.mend();
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.start_process();
        self.drive("opening", |site| site.process.is_serving())?;
        self.compare_unrefused()
    }

    /// The device gives everything again, and all is well after a resume; or it does not, and the way out is taken.
    fn end_withholding(&mut self) -> Outcome {
        self.await_destaging()?;
        if self.random.chance(1, 2) {
            return self.take_the_way_out();
        }
        self.disk.mend();
        // Where the journal needed the room, what was withheld is lost.
        let is_noted =
            self.process.group().is_some_and(|group| group.disks().any(|disk| !disk.sides.is_empty()));
        let was_latched = self.has_latched_disks();
        let report = self.ask_for_mends()?;
        for disk in &report.disks {
            match &disk.finding {
                Finding::Sound | Finding::Mended => {}
                Finding::Lost { .. } if is_noted => return Ok(()),
                other => {
                    return Err(format!("disk {} is given again, and stays latched: {other:?}", disk.name));
                }
            }
        }
        self.report.withheld_mended += u64::from(was_latched);
        self.compare_unrefused()?;
        self.compare_whole_point()
    }

    /// Until everything is destaged, or known not to be to be had.
    fn await_destaging(&mut self) -> Outcome {
        for _ in 0..RESTS {
            self.rest()?;
        }
        self.drive("what is withheld to be known", |site| {
            site.process.group().is_some_and(|group| {
                group
                    .disks()
                    .all(|disk| disk.latched.is_none() || !disk.withheld.is_empty() || !disk.sides.is_empty())
            })
        })
    }

    fn ask_for_mends(&mut self) -> std::result::Result<ResumeReport, String> {
        let answer: Rc<RefCell<Option<Result<ResumeReport>>>> = Rc::default();
        let slot = Rc::clone(&answer);
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        group.mend_disks(Box::new(move |result| drop(slot.replace(Some(result)))));
        self.drive("a resume", |_| answer.borrow().is_some())?;
        answer.take().expect("answered").map_err(|error| format!("a resume was refused: {error}"))
    }

    /// Compares all disks with what was issued; nothing may be refused.
    fn compare_unrefused(&mut self) -> Outcome {
        if self.has_latched_disks() {
            return Err("a disk is latched though nothing is withheld any more".to_owned());
        }
        let before = self.report.rots_met;
        self.compare_disks()?;
        if self.report.rots_met == before {
            return Ok(());
        }
        Err("a read is refused though nothing is withheld any more".to_owned())
    }
}

/// What cannot be read is named, with its place.
fn is_refusal(error: &Error) -> bool {
    error.kind() == ErrorKind::Io && error.path().is_some_and(is_segment) && error.offset().is_some()
}
