//! The clients: what they ask of the group and of test failovers, and what they make of the answers.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;

use super::history::{Change, Contents};
use super::process::GROUP;
use super::resizes::Resizing;
use super::retention::{Readings, Unread};
use super::sector::{Stamp, content};
use super::site::{Outcome, Site};
use crate::block::{Export, Request, TestId, Ticket};
use crate::error::Result;
use crate::failover::TestFailover;
use crate::format::frame::RECORD_PAYLOAD_BYTES_MAX;
use crate::format::ladder::Ladder;
use crate::format::record::{DiskRecord, PointRecord, TestUse};
use crate::protect::membership::Content;
use crate::protect::resume::ResumeReport;
use crate::protect::verify::GroupReport;
use crate::units::{DiskId, PointId, SECTOR_BYTES, SectorCount, SectorRange};

/// Disks that the clients keep at most.
pub(super) const DISKS_MAX: usize = 4;
/// Test failovers that they keep at most.
const TESTS_MAX: usize = 3;
/// Runs that a question for an allocation wants: few, so that answers end early.
pub(super) const ALLOCATION_RUNS_MAX: usize = 4;
const RECORD_SECTORS_MAX: u64 = RECORD_PAYLOAD_BYTES_MAX as u64 / SECTOR_BYTES;

/// What became of something that was asked with a callback.
pub(super) enum News {
    Point(String, Result<PointRecord>),
    Joined(Result<DiskRecord>),
    Left(DiskId, Result<()>),
    Resized(DiskId, Result<DiskRecord>),
    Interval(Result<()>),
    TestStarted(PointId, TestUse, Result<TestFailover>),
    TestCleaned(TestId, Result<()>),
    Resumed(Result<ResumeReport>),
    Retain(Ladder, Result<()>),
    Held(PointId, Result<()>),
    Released(PointId, Result<()>),
    Deleted(PointId, Result<()>),
    Viewed(PointId, std::result::Result<Readings, Unread>),
    Verified(Result<GroupReport>),
    Paused(bool, Result<()>),
    Rewrapped(Result<()>),
}

/// A request without its answer.
pub(super) enum Pending {
    Read { disk: usize, range: SectorRange, low: usize, before: Vec<Stamp> },
    Allocation { disk: usize, range: SectorRange, low: usize, before: Vec<Stamp> },
    Change { first: usize, end: usize, durable: bool },
    Flush { acknowledged: usize },
    TestRead { test: TestId, disk: usize, range: SectorRange },
    TestWrite { test: TestId, disk: usize, range: SectorRange, stamp: Stamp },
}

impl Pending {
    pub(super) fn is_for_test(&self) -> bool {
        matches!(self, Pending::TestRead { .. } | Pending::TestWrite { .. })
    }
}

/// How a change is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) durable: bool,
    /// Of zeroing.
    pub(super) keep_allocated: bool,
}

/// A disk that the clients know.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) number: usize,
    pub(super) id: DiskId,
    /// Somebody asked for it to leave: it may be gone.
    pub(super) leaving: bool,
}

/// A test failover that the clients know.
#[derive(Clone, Debug)]
pub(super) struct Test {
    pub(super) point: PointId,
    pub(super) disks: BTreeMap<usize, (DiskId, u64)>,
    /// What for.
    pub(super) purpose: TestUse,
    /// What its disks hold, as far as that was read or written.
    pub(super) contents: Contents,
    /// Whether its contents were compared with its point.
    pub(super) compared: bool,
    /// Somebody wrote to it.
    pub(super) written: bool,
    /// Nobody knows what it holds: a write failed, or it was written to and then the process died.
    pub(super) in_doubt: bool,
    /// Requests without answers.
    pub(super) busy: usize,
    /// Somebody asked for it to go.
    pub(super) leaving: bool,
}

/// What the clients know and wait for.
#[derive(Default)]
pub(super) struct Clients {
    pub(super) members: Vec<Member>,
    pub(super) joining: Vec<String>,
    pub(super) departed: Vec<DiskId>,
    pub(super) resizing: Option<Resizing>,
    pub(super) tests: BTreeMap<TestId, Test>,
    /// Points of which a test failover was asked for.
    pub(super) starting: Vec<PointId>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) asked: usize,
    /// Resumes without an answer.
    pub(super) resuming: usize,
    /// Verifications without an answer.
    pub(super) verifying: usize,
    /// One of them began amid faults that are gone since.
    pub(super) verifies_amid_faults: bool,
    pub(super) grants: VecDeque<PointRecord>,
    pub(super) is_disk_full: bool,
    /// Disks whose image is broken until somebody mends it, and whether their side files are as well.
    pub(super) broken: Vec<(DiskId, bool)>,
    pub(super) is_stopping: bool,
    next_request: u64,
    next_stamp: u32,
    next_name: u32,
}

impl Clients {
    /// The process died: nothing is answered any more.
    pub(super) fn forget_pending(&mut self) {
        self.pending.clear();
        self.grants.clear();
        self.asked = 0;
        self.resuming = 0;
        (self.verifying, self.verifies_amid_faults) = (0, false);
        self.is_stopping = false;
        // A restore does not outlive the process, nor may what it reads through: were it there, it came from nowhere.
        self.tests.retain(|_, test| test.purpose != TestUse::Restore);
        for test in self.tests.values_mut() {
            test.busy = 0;
            test.in_doubt |= test.written;
            test.compared = false;
            test.contents.clear();
        }
    }

    pub(super) fn next_stamp(&mut self) -> Stamp {
        self.next_stamp += 1;
        Stamp(self.next_stamp)
    }

    fn next_name(&mut self) -> u32 {
        self.next_name += 1;
        self.next_name
    }
}

impl Site {
    /// A client does something.
    pub(super) fn client_acts(&mut self) -> Outcome {
        if !self.is_verified || self.clients.is_stopping {
            return Ok(());
        }
        let disks = self.clients.members.iter().filter(|member| !member.leaving).count();
        let few = (disks as u64) < self.plan.disks && self.clients.joining.is_empty();
        if (few && self.random.chance(1, 8)) || self.random.chance(1, self.plan.membership_every) {
            self.change_membership(disks);
        } else if self.random.chance(1, self.plan.test_every) {
            self.change_tests();
        } else if self.random.chance(1, self.plan.retention_every) {
            self.change_retention();
        } else if self.random.chance(1, self.plan.verify_every) {
            self.verify();
        } else if self.random.chance(1, self.plan.administration_every) {
            self.administrate();
        } else if self.random.chance(1, 48) {
            self.ask_point();
        } else if self.clients.pending.len() < self.plan.depth {
            return self.request();
        }
        Ok(())
    }

    fn change_membership(&mut self, disks: usize) {
        let leaves = disks as u64 > self.plan.disks || (disks > 1 && self.random.chance(1, 4));
        match self.random.below(6) {
            0 => self.set_interval(),
            1 | 2 => self.resize_disk(),
            _ if leaves => self.remove_disk(),
            _ if disks < DISKS_MAX => self.add_disk(),
            _ => {}
        }
    }

    pub(super) fn add_disk(&mut self) {
        let name = format!("disk-{}", self.clients.next_name());
        let sectors = self.draw_size();
        self.tracer.note(|| format!("add {name} of {sectors} sectors"));
        self.clients.joining.push(name.clone());
        let callback = self.callback(News::Joined);
        let Some(group) = self.process.group() else { return };
        group.add_disk(name, SectorCount(sectors), Content::Empty, callback);
    }

    pub(super) fn remove_disk(&mut self) {
        let resizing = self.clients.resizing.as_ref().map(|resizing| resizing.id);
        let staying: Vec<usize> = self
            .clients
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| !member.leaving && resizing != Some(member.id))
            .map(|(index, _)| index)
            .collect();
        if staying.is_empty() {
            return;
        }
        let member = &mut self.clients.members[*self.random.choose(&staying)];
        member.leaving = true;
        let (id, number) = (member.id, member.number);
        self.points.release(id);
        self.tracer.note(|| format!("remove disk {number}"));
        let callback = self.callback(move |result| News::Left(id, result));
        let Some(group) = self.process.group() else { return };
        group.remove_disk(id, callback);
    }

    fn set_interval(&mut self) {
        let interval = self.plan.interval_of(*self.random.choose(&[1, 5, 50, 1000]));
        let callback = self.callback(News::Interval);
        let Some(group) = self.process.group() else { return };
        group.set_policy(Some(interval), None, callback);
    }

    pub(super) fn ask_point(&mut self) {
        let label = format!("point-{}", self.clients.next_name());
        let members = self.clients.members.iter().filter(|member| !member.leaving).map(|member| member.id);
        self.points.ask(label.clone(), self.history.acknowledged(), members.collect());
        self.tracer.note(|| format!("ask for {label} after {}", self.history.acknowledged()));
        self.clients.asked += 1;
        let name = label.clone();
        let callback = self.callback(move |result| News::Point(name, result));
        let Some(group) = self.process.group() else { return };
        group.create_point(label, callback);
    }

    pub(super) fn change_tests(&mut self) {
        let starts = self.clients.tests.len() < TESTS_MAX && !self.points.is_empty();
        if starts && self.random.chance(2, 3) {
            let point = self.points.id(self.random.index(self.points.len()));
            let purposes = [
                TestUse::Rehearsal,
                TestUse::Rehearsal,
                TestUse::Rehearsal,
                TestUse::ReadOnly,
                TestUse::Restore,
            ];
            let purpose = purposes[self.random.index(purposes.len())];
            self.tracer.note(|| format!("test failover of point {point}: {purpose:?}"));
            self.clients.starting.push(point);
            let callback = self.callback(move |result| News::TestStarted(point, purpose, result));
            let Some(tests) = self.process.tests() else { return };
            tests.start(point, purpose, callback);
            return;
        }
        let idle: Vec<TestId> = self
            .clients
            .tests
            .iter()
            .filter(|(_, test)| test.busy == 0 && !test.leaving)
            .map(|(&id, _)| id)
            .collect();
        if !idle.is_empty() {
            let id = *self.random.choose(&idle);
            self.tracer.note(|| format!("clean up {id:?}"));
            self.clients.tests.get_mut(&id).expect("known").leaving = true;
            let callback = self.callback(move |result| News::TestCleaned(id, result));
            let Some(tests) = self.process.tests() else { return };
            tests.cleanup(id, callback);
        }
    }

    pub(super) fn callback<T: 'static>(
        &self,
        news: impl FnOnce(Result<T>) -> News + 'static,
    ) -> crate::protect::group::Callback<T> {
        let mailbox = Rc::clone(&self.news);
        Box::new(move |result| mailbox.borrow_mut().push_back(news(result)))
    }

    /// A client asks a disk for something.
    pub(super) fn request(&mut self) -> Outcome {
        if !self.clients.tests.is_empty() && self.random.chance(1, 16) {
            self.request_of_test();
            return Ok(());
        }
        let staying: Vec<&Member> =
            self.clients.members.iter().filter(|member| self.is_usable(member)).collect();
        if staying.is_empty() {
            return Ok(());
        }
        let member = (*self.random.choose(&staying)).clone();
        if let Some(outcome) = self.asks_for_blocks(&member) {
            return outcome;
        }
        let range = self.draw_range(self.history.sectors(member.number));
        match self.random.below(64) {
            below if below < self.plan.flushes => {
                let pending = Pending::Flush { acknowledged: self.history.acknowledged() };
                self.submit(Export::Disk(GROUP, member.id), Request::Flush, pending)
            }
            24..36 => self.read(&member, range, false),
            36 => self.read(&member, range, true),
            37..43 => self.change(&member, range, None),
            _ => {
                let stamp = self.clients.next_stamp();
                self.change(&member, range, Some(stamp))
            }
        }
    }

    /// Small and unaligned mostly, now and then large; some places are hot.
    pub(super) fn draw_range(&mut self, sectors: u64) -> SectorRange {
        let most = self.plan.write_sectors_max.min(sectors);
        let length = match self.random.below(16) {
            0..8 => 1 + self.random.below(8),
            8..12 => 8 * (1 + self.random.below(4)),
            12..15 => 1 + self.random.below(32),
            _ => 1 + self.random.below(most),
        };
        let length = length.min(most);
        let start = if self.random.chance(1, 2) {
            self.draw_hot_start(sectors).min(sectors - length)
        } else {
            self.random.below(sectors - length + 1)
        };
        SectorRange::new(start, start + length)
    }

    pub(super) fn read(&mut self, member: &Member, range: SectorRange, allocation: bool) -> Outcome {
        let (disk, low) = (member.number, self.history.acknowledged());
        let before = self.history.current(disk, range).to_vec();
        let export = Export::Disk(GROUP, member.id);
        if allocation {
            let pending = Pending::Allocation { disk, range, low, before };
            return self.submit(
                export,
                Request::Allocation { range, runs_max: ALLOCATION_RUNS_MAX },
                pending,
            );
        }
        self.submit(export, Request::Read { range }, Pending::Read { disk, range, low, before })
    }

    /// Writes, or zeroes where there is no stamp.
    pub(super) fn change(&mut self, member: &Member, range: SectorRange, stamp: Option<Stamp>) -> Outcome {
        let durable = self.random.chance(self.plan.durables, 64);
        let keep_allocated = stamp.is_none() && self.random.chance(1, 2);
        self.change_as(member, range, stamp, Manner { durable, keep_allocated })
    }

    /// Writes, or zeroes where there is no stamp, as `manner` says.
    pub(super) fn change_as(
        &mut self,
        member: &Member,
        range: SectorRange,
        stamp: Option<Stamp>,
        Manner { durable, keep_allocated }: Manner,
    ) -> Outcome {
        let (disk, first) = (member.number, self.history.issued());
        let request = match stamp {
            Some(stamp) => {
                let mut start = range.start;
                while start < range.end {
                    let end = range.end.min(start + RECORD_SECTORS_MAX);
                    self.history.issue(Change { disk, range: SectorRange::new(start, end), stamp });
                    start = end;
                }
                let payload = Bytes::from(content(disk, range.start, range.sectors(), stamp));
                Request::Write { range, payload, durable }
            }
            None => {
                self.history.issue(Change { disk, range, stamp: Stamp::ZEROS });
                Request::Zero { range, durable, keep_allocated }
            }
        };
        let end = self.history.issued();
        self.tracer
            .note(|| format!("change {first}..{end}: disk {disk} {range} {stamp:?} durable: {durable}"));
        self.submit(Export::Disk(GROUP, member.id), request, Pending::Change { first, end, durable })
    }

    pub(super) fn request_of_test(&mut self) {
        let usable: Vec<TestId> = self
            .clients
            .tests
            .iter()
            .filter(|(_, test)| test.busy == 0 && !test.leaving && !test.in_doubt && !test.disks.is_empty())
            .map(|(&id, _)| id)
            .collect();
        if usable.is_empty() {
            return;
        }
        let id = *self.random.choose(&usable);
        let test = &self.clients.tests[&id];
        if !test.compared {
            let disks = test.disks.clone();
            for (number, (disk, sectors)) in disks {
                let range = SectorRange::new(0, sectors);
                self.ask_test(id, (number, disk), range, None);
            }
            return;
        }
        let disks: Vec<_> = test.disks.iter().map(|(&number, &(disk, size))| (number, disk, size)).collect();
        let (number, disk, sectors) = *self.random.choose(&disks);
        let range = self.draw_range(sectors);
        let stamp = self.random.chance(1, 2).then(|| self.clients.next_stamp());
        self.ask_test(id, (number, disk), range, stamp);
    }

    /// Reads a test failover's disk, or writes to it where there is a stamp.
    fn ask_test(
        &mut self,
        test: TestId,
        (number, id): (usize, DiskId),
        range: SectorRange,
        stamp: Option<Stamp>,
    ) {
        let known = self.clients.tests.get_mut(&test).expect("known");
        known.busy += 1;
        known.written |= stamp.is_some() && !known.purpose.is_read_only();
        let (request, pending) = match stamp {
            None => (Request::Read { range }, Pending::TestRead { test, disk: number, range }),
            Some(stamp) => {
                let payload = Bytes::from(content(number, range.start, range.sectors(), stamp));
                let request = Request::Write { range, payload, durable: false };
                (request, Pending::TestWrite { test, disk: number, range, stamp })
            }
        };
        let ticket = self.next_ticket(pending);
        self.process.submit(ticket, Export::Test(GROUP, id, test), request);
    }

    fn next_ticket(&mut self, pending: Pending) -> Ticket {
        self.clients.next_request += 1;
        let request = self.clients.next_request;
        self.clients.pending.insert(request, pending);
        Ticket { session: 1, request }
    }

    pub(super) fn submit(&mut self, export: Export, request: Request, pending: Pending) -> Outcome {
        let first = if let Pending::Change { first, .. } = pending { Some(first) } else { None };
        let ticket = self.next_ticket(pending);
        self.process.submit(ticket, export, request);
        let replies = self.process.replies();
        let is_refused = replies.iter().any(|(other, reply)| *other == ticket && reply.is_err());
        if let Some(first) = first.filter(|_| is_refused) {
            // Refused before it was taken: it can't turn up anywhere.
            self.history.retract(first);
        }
        self.take(replies)
    }

    /// A disk is there.
    pub(super) fn adopt(&mut self, record: &DiskRecord) {
        let number = self.history.add_disk(record.sectors.0);
        self.tracer.note(|| format!("{} is disk {number}", record.name));
        self.clients.members.push(Member { number, id: record.id, leaving: false });
        self.numbers.push((number, record.id));
    }

    /// A test failover is there.
    pub(super) fn adopt_test(&mut self, failover: &TestFailover) -> Outcome {
        let mut disks = BTreeMap::new();
        for disk in &failover.disks {
            let number = self.number_of(disk.id)?;
            disks.insert(number, (disk.id, disk.sectors.0));
        }
        let test = Test {
            point: failover.point.id,
            disks,
            purpose: failover.purpose,
            contents: Contents::new(),
            compared: false,
            written: false,
            in_doubt: false,
            busy: 0,
            leaving: false,
        };
        self.clients.tests.insert(failover.test, test);
        Ok(())
    }

    /// The number of a disk that ever was.
    pub(super) fn number_of(&self, id: DiskId) -> std::result::Result<usize, String> {
        let found = self.numbers.iter().find(|(_, other)| *other == id);
        found.map(|(number, _)| *number).ok_or_else(|| format!("disk {id} came from nowhere"))
    }
}
