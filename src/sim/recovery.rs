//! After an opening: what is there, compared with what must be, may be, and can't be there.

use std::collections::BTreeMap;

use super::clients::Member;
use super::history::Contents;
use super::process::GROUP;
use super::sector::stamps;
use super::site::{Outcome, Site};
use crate::block::{Export, Reply, Request, Response, TestId, Ticket};
use crate::failover::TestFailover;
use crate::format::record::DiskRecord;
use crate::units::{DiskId, SectorRange};

use super::answers::joined;

/// The session that reads whole disks; the clients have another.
pub(super) const SESSION: u64 = 2;

impl Site {
    /// The process serves: whatever it shows from now on must stay, so the history is cut where the disks were.
    pub(super) fn verify_recovery(&mut self) -> Outcome {
        // What can't be read can't be compared.
        self.clear_faults();
        // One that was under way when the group was closed and opened again fails after that.
        self.note_failed_syncs(false);
        self.attach_disks()?;
        self.reconcile_disks()?;
        self.reconcile_sizes()?;
        let found = self.read_disks()?;
        let (low, high) = (self.history.acknowledged(), self.history.issued());
        let Some((_, count)) = self.history.find(low, high, &found) else {
            return Err(format!("recovered: {}", self.history.explain(low, high, &found)));
        };
        self.tracer.note(|| format!("{count} of {low}..={high} changes were recovered"));
        self.history.cut(count);
        self.points.cut(count)?;
        let Some(group) = self.process.group() else { return Ok(()) };
        self.report.runs_used += group.adopted_runs() as u64;
        self.points.compare(group.points())?;
        self.observe_points()?;
        self.verify_holds()?;
        self.verify_administration()?;
        self.reconcile_tests()?;
        self.is_verified = true;
        Ok(())
    }

    /// Disks that joined are there, those that left are not; what was under way may be either.
    fn reconcile_disks(&mut self) -> Outcome {
        let Some(group) = self.process.group() else { return Ok(()) };
        let listed: BTreeMap<DiskId, DiskRecord> =
            group.disks().map(|disk| (disk.record.id, disk.record.clone())).collect();
        for member in &mut self.clients.members {
            if !listed.contains_key(&member.id) && !member.leaving {
                return Err(format!("disk {} is gone", member.number));
            }
            // Whoever asked for it to leave died with the process.
            member.leaving = false;
        }
        self.clients.members.retain(|member| listed.contains_key(&member.id));
        for (id, record) in listed {
            if self.clients.departed.contains(&id) {
                return Err(format!("disk {id} left and is back"));
            }
            let is_known = self.clients.members.iter().any(|member| member.id == id);
            if !is_known && !self.clients.joining.contains(&record.name) {
                return Err(format!("disk {} came from nowhere", record.name));
            }
            if !is_known {
                self.adopt(&record);
            }
        }
        self.clients.joining.clear();
        Ok(())
    }

    /// Test failovers that were started are there; what was under way may be.
    fn reconcile_tests(&mut self) -> Outcome {
        let Some(tests) = self.process.tests() else { return Ok(()) };
        let listed: BTreeMap<TestId, TestFailover> =
            tests.list().map(|test| (test.test, test.clone())).collect();
        for (id, test) in &mut self.clients.tests {
            match listed.get(id) {
                None if !test.leaving => return Err(format!("{id:?} is gone")),
                Some(found) if found.purpose != test.purpose => {
                    return Err(format!("{id:?} is for {:?}", found.purpose));
                }
                _ => {}
            }
            test.leaving = false;
        }
        self.clients.tests.retain(|id, _| listed.contains_key(id));
        for (id, test) in listed {
            if self.clients.tests.contains_key(&id) {
                continue;
            }
            if !self.clients.starting.contains(&test.point.id) {
                return Err(format!("{id:?} came from nowhere"));
            }
            self.adopt_test(&test)?;
        }
        self.clients.starting.clear();
        Ok(())
    }

    /// Reads every disk whole.
    pub(super) fn read_disks(&mut self) -> Result<Contents, String> {
        let members: Vec<Member> =
            self.clients.members.iter().filter(|member| !member.leaving).cloned().collect();
        let mut contents = Contents::new();
        for member in members {
            let range = SectorRange::new(0, self.history.sectors(member.number));
            let pieces = match self.read_now(member.id, range)? {
                Ok(Response::Data(pieces)) => pieces,
                other => {
                    let told = self.told();
                    return Err(format!("disk {} can't be read: {other:?}; told: {told:?}", member.number));
                }
            };
            contents.insert(member.number, stamps(member.number, 0, &joined(&pieces, range)?)?);
        }
        Ok(contents)
    }

    /// Reads a range of a disk, while nothing new is asked.
    pub(super) fn read_now(&mut self, disk: DiskId, range: SectorRange) -> Result<Reply, String> {
        let ticket = Ticket { session: SESSION, request: 0 };
        self.process.submit(ticket, Export::Disk(GROUP, disk), Request::Read { range });
        self.answer_to(ticket)
    }

    /// Waits for the answer to a request.
    pub(super) fn answer_to(&mut self, ticket: Ticket) -> Result<Reply, String> {
        let mut answer = self.process.replies();
        let answered = |answer: &Vec<_>| answer.iter().any(|(other, _)| *other == ticket);
        // The clients' answers wait until this one is there.
        while !answered(&answer) {
            self.step_disk();
            self.process.step().map_err(|error| format!("an open group opened again: {error}"))?;
            answer.extend(self.process.replies());
        }
        let place = answer.iter().position(|(other, _)| *other == ticket).expect("answered");
        let (_, reply) = answer.remove(place);
        self.take(answer)?;
        Ok(reply)
    }
}
