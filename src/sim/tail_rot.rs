//! Rot of what was acknowledged and no flush has covered, while only the process dies: nothing has torn it, so whoever reads it is
//! told, or the opening refuses; nothing older is ever served. An opening that somebody has accept the loss serves what came before.

use super::answers::joined;
use super::clients::Member;
use super::history::Contents;
use super::rot::Stored;
use super::sector::stamps;
use super::site::{Outcome, Site};
use crate::block::{Refusal, Response};
use crate::journal::commit::FRAMES_IN_FLIGHT_MAX;
use crate::units::SectorRange;

/// Frames whose bits flip, each on a copy of its own.
const ROTS: u64 = 2;
/// Of a frame's header a bit flips in so many bytes: those that are there whatever it holds.
const HEADER_BYTES: u64 = 128;

impl Site {
    /// Acknowledged writes, the death of the process, and a bit flipped in one of their frames. Afterwards everything is as it was.
    pub(super) fn damage_tail(&mut self) -> Outcome {
        let vaulted = self.history.issued();
        self.write_backlog()?;
        self.write_backlog()?;
        self.disk.kill_process(self.process.id());
        self.disk.run();
        let (sound, history) = (self.disk.image(), self.history.clone());
        for _ in 0..ROTS {
            let Some(frame) = self.written_frame() else { break };
            self.report.tail_rots += 1;
            let in_header = self.random.chance(1, 2);
            let byte = match in_header {
                true => frame.frame + self.random.below(HEADER_BYTES),
                false => frame.payload + self.random.below(HEADER_BYTES),
            };
            let bit = u8::try_from(self.random.below(8)).expect("small");
            self.tracer.note(|| format!("bit {bit} of byte {byte} of {} flips", frame.path.display()));
            if !self.disk.rot(&frame.path, byte, bit) {
                continue;
            }
            let refused = self.report.rots_refused;
            self.start_process();
            self.judge_damage().map_err(|text| format!("after rot of the tail: {text}"))?;
            if !self.process.is_serving() {
                self.accept_loss_of_tail(vaulted).map_err(|text| format!("the loss was accepted: {text}"))?;
            }
            self.report.tail_rots_refused += self.report.rots_refused - refused;
            self.disk.kill_process(self.process.id());
            self.disk.run();
            self.disk.restore(&sound);
            self.history = history.clone();
        }
        self.start_process();
        Ok(())
    }

    /// A write whose frame was written before the newest one was submitted, whatever that holds.
    fn written_frame(&mut self) -> Option<Stored> {
        let writes = self.newest_writes();
        let newest = writes.last()?.number;
        let is_written = |stored: &&Stored| stored.number + FRAMES_IN_FLIGHT_MAX as u64 <= newest;
        let written: Vec<Stored> = writes.iter().filter(is_written).cloned().collect();
        (!written.is_empty()).then(|| self.random.choose(&written).clone())
    }

    /// The group opens where its journal ends soundly, unless something says that what is not there was durable: then it is refused all
    /// the same. What nothing says so of yet is given up, too; but not what a point has.
    fn accept_loss_of_tail(&mut self, vaulted: usize) -> Outcome {
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.accepts_loss = true;
        self.start_process();
        self.accepts_loss = false;
        if !self.opens()? {
            return Ok(());
        }
        let Some(found) = self.found_on_disks()? else { return Ok(()) };
        let issued = self.history.issued();
        if self.history.find(vaulted, issued, &found).is_none() {
            return Err(self.history.explain(vaulted, issued, &found));
        }
        self.report.tails_given_up += 1;
        Ok(())
    }

    /// What is served, unless some of it is refused.
    fn found_on_disks(&mut self) -> Result<Option<Contents>, String> {
        let staying = self.clients.members.iter().filter(|member| !member.leaving);
        let members: Vec<Member> = staying.cloned().collect();
        let mut found = Contents::new();
        for member in members {
            let range = SectorRange::new(0, self.history.sectors(member.number));
            match self.read_now(member.id, range)? {
                Ok(Response::Data(pieces)) => {
                    found.insert(member.number, stamps(member.number, 0, &joined(&pieces, range)?)?);
                }
                Err(Refusal::Io) => return Ok(None),
                other => return Err(format!("disk {} {range}: {other:?}", member.number)),
            }
        }
        Ok(Some(found))
    }
}
