//! What the clients make of the answers: each is compared with what the oracle allows.

use super::clients::ALLOCATION_RUNS_MAX;
use super::clients::{News, Pending};
use super::history::Contents;
use super::sector::{Stamp, stamps};
use super::site::{Outcome, Site};
use crate::allocation::AllocationRun;
use crate::block::{DataPiece, Refusal, Reply, Response, TestId, Ticket};
use crate::error::ErrorKind;
use crate::units::{PointId, SECTOR_BYTES, SectorRange, to_usize};

impl Site {
    /// Compares the answers that came with what is allowed.
    pub(super) fn take_replies(&mut self) -> Outcome {
        let replies = self.process.replies();
        self.take(replies)?;
        if std::mem::take(&mut self.was_closed) {
            let mut pending = self.clients.pending.iter().filter(|(_, pending)| !pending.is_for_test());
            if let Some((request, _)) = pending.next() {
                return Err(format!("request {request} was not answered by the group that was closed"));
            }
        }
        Ok(())
    }

    pub(super) fn take(&mut self, replies: Vec<(Ticket, Reply)>) -> Outcome {
        for (ticket, reply) in replies {
            let Some(pending) = self.clients.pending.remove(&ticket.request) else {
                return Err(format!("request {} was answered twice", ticket.request));
            };
            self.report.requests += 1;
            self.take_reply(pending, reply)?;
        }
        Ok(())
    }

    fn take_reply(&mut self, pending: Pending, reply: Reply) -> Outcome {
        match (pending, reply) {
            (pending, Err(refusal)) => self.refused(pending, refusal),
            (Pending::Read { disk, range, low, before }, Ok(Response::Data(pieces))) => {
                let found = stamps(disk, range.start, &joined(&pieces, range)?)?;
                self.history.explains_read(disk, range, (low, &before), &found)
            }
            (Pending::Allocation { disk, range, low, mut before }, Ok(Response::Allocation(runs))) => {
                let sectors = holes(&runs, range, &before)?;
                // An answer may end early.
                let told = SectorRange::new(range.start, range.start + sectors.len() as u64);
                before.truncate(sectors.len());
                self.history.explains_read(disk, told, (low, &before), &sectors)
            }
            (Pending::Change { end, durable, .. }, Ok(Response::Done)) => {
                self.tracer.note(|| format!("changes up to {end} are acknowledged"));
                self.history.acknowledge(end);
                if durable {
                    self.history.make_durable(end);
                }
                Ok(())
            }
            (Pending::Flush { acknowledged }, Ok(Response::Done)) => {
                self.tracer.note(|| format!("changes up to {acknowledged} are durable"));
                self.history.make_durable(acknowledged);
                Ok(())
            }
            (Pending::TestRead { test, disk, range }, Ok(Response::Data(pieces))) => {
                let found = stamps(disk, range.start, &joined(&pieces, range)?)?;
                self.take_test_read(test, disk, range, found)
            }
            (Pending::TestWrite { test, disk, range, stamp }, Ok(Response::Done)) => {
                let test = self.clients.tests.get_mut(&test).expect("a busy test failover is not cleaned up");
                test.busy -= 1;
                if test.purpose.is_read_only() {
                    return Err(format!("a read-only test failover took a write of {range}"));
                }
                if let Some(stamps) = test.contents.get_mut(&disk) {
                    stamps[to_usize(range.start)..to_usize(range.end)].fill(stamp);
                }
                Ok(())
            }
            (_, Ok(response)) => Err(format!("an answer of another kind: {response:?}")),
        }
    }

    fn refused(&mut self, pending: Pending, refusal: Refusal) -> Outcome {
        self.tracer.note(|| format!("refused: {refusal:?}"));
        let is_write = matches!(pending, Pending::TestWrite { .. });
        match pending {
            // Whether it was taken before it failed is not known.
            Pending::TestRead { test, .. } | Pending::TestWrite { test, .. } => {
                let test = self.clients.tests.get_mut(&test).expect("a busy test failover is not cleaned up");
                test.busy -= 1;
                if test.purpose.is_read_only() && is_write && refusal == Refusal::ReadOnly {
                    return Ok(());
                }
                test.in_doubt = true;
            }
            _ => {}
        }
        let is_expected = self.is_faulted || (self.clients.is_stopping && refusal == Refusal::Shutdown);
        if is_expected { Ok(()) } else { Err(format!("a request was refused without a fault: {refusal:?}")) }
    }

    fn take_test_read(&mut self, id: TestId, disk: usize, range: SectorRange, found: Vec<Stamp>) -> Outcome {
        let test = self.clients.tests.get_mut(&id).expect("a busy test failover is not cleaned up");
        test.busy -= 1;
        if test.compared {
            let expected = &test.contents[&disk][to_usize(range.start)..to_usize(range.end)];
            if expected != found {
                return Err(format!("{id:?} disk {disk} {range} holds {found:?}, not {expected:?}"));
            }
            return Ok(());
        }
        test.contents.insert(disk, found);
        if test.busy == 0 && test.contents.len() == test.disks.len() {
            test.compared = true;
            let (point, contents) = (test.point, test.contents.clone());
            return self.check_point(point, &contents);
        }
        Ok(())
    }

    /// Compares what the disks of a point hold with the history.
    pub(super) fn check_point(&mut self, point: PointId, contents: &Contents) -> Outcome {
        let index = (0..self.points.len()).find(|&index| self.points.id(index) == point);
        let index = index.ok_or_else(|| format!("point {point} is unknown"))?;
        for (&number, stamps) in contents {
            let id = self.numbers.iter().find(|(other, _)| *other == number).map(|(_, id)| *id);
            let id = id.ok_or("a disk without an id")?;
            let (sectors, now) = (stamps.len() as u64, self.history.sectors(number));
            let marker = self.points.marker(index);
            if self.points.sectors(point, id) != Some(sectors)
                || !self.points.resizes.allow(id, marker, sectors, now)
            {
                return Err(format!("point {point} has {sectors} sectors of disk {number}"));
            }
        }
        self.report.points_checked += 1;
        self.points.check(index, contents, &self.history)
    }

    /// Takes the results of what was asked with a callback.
    pub(super) fn take_news(&mut self) -> Outcome {
        loop {
            let news = self.news.borrow_mut().pop_front();
            let Some(news) = news else { return Ok(()) };
            self.take_one(news)?;
        }
    }

    fn take_one(&mut self, news: News) -> Outcome {
        let failed = match news {
            News::Retain(..) | News::Held(..) | News::Released(..) | News::Deleted(..) | News::Viewed(..) => {
                return self.take_retention_news(news);
            }
            News::Verified(result) => return self.take_verified(result),
            News::Paused(..) | News::Rewrapped(..) => return self.take_administration_news(news),
            News::Point(label, result) => {
                self.clients.asked -= 1;
                match result {
                    Ok(record) => {
                        self.tracer.note(|| format!("{label} is granted"));
                        self.clients.grants.push_back(record);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            News::Resized(id, result) => return self.take_resized(id, result),
            News::Joined(Ok(record)) => {
                self.clients.joining.retain(|name| *name != record.name);
                self.adopt(&record);
                None
            }
            News::Left(id, Ok(())) => {
                self.clients.members.retain(|member| member.id != id);
                self.clients.departed.push(id);
                None
            }
            News::TestStarted(point, purpose, Ok(failover)) => {
                self.forget_starting(point);
                if failover.purpose != purpose {
                    return Err(format!("{:?} is not as it was asked for", failover.test));
                }
                self.adopt_test(&failover)?;
                None
            }
            News::TestCleaned(test, Ok(())) => {
                self.clients.tests.remove(&test);
                None
            }
            News::Interval(Ok(())) => None,
            News::Resumed(result) => {
                self.clients.resuming -= 1;
                match result {
                    Ok(report) => {
                        self.take_resumed(&report)?;
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            // The point went before it was pinned.
            News::TestStarted(point, _, Err(error)) if error.kind() == ErrorKind::NotFound => {
                self.forget_starting(point);
                None
            }
            // Whether it happened is seen at the next opening.
            News::Interval(Err(error))
            | News::Joined(Err(error))
            | News::Left(_, Err(error))
            | News::TestStarted(_, _, Err(error))
            | News::TestCleaned(_, Err(error)) => Some(error),
        };
        match failed {
            Some(error) if !self.is_faulted && !self.clients.is_stopping => {
                Err(format!("something failed without a fault: {error}"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn forget_starting(&mut self, point: PointId) {
        if let Some(index) = self.clients.starting.iter().position(|other| *other == point) {
            self.clients.starting.swap_remove(index);
        }
    }

    /// Points that were granted in this round, now that the list was read.
    pub(super) fn take_grants(&mut self) -> Outcome {
        while let Some(record) = self.clients.grants.pop_front() {
            self.points.granted(&record, &self.history)?;
        }
        Ok(())
    }
}

/// The bytes of a read, which must be as long as its range.
pub(super) fn joined(pieces: &[DataPiece], range: SectorRange) -> std::result::Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(to_usize(range.bytes()));
    for piece in pieces {
        match piece {
            DataPiece::Bytes(slice) => bytes.extend_from_slice(slice),
            DataPiece::Zeros(count) => bytes.resize(bytes.len() + to_usize(*count), 0),
        }
    }
    if bytes.len() as u64 == range.bytes() {
        return Ok(bytes);
    }
    Err(format!("a read of {} bytes gave {}", range.bytes(), bytes.len()))
}

/// The stamps of a range as far as its allocation tells: zeros in holes, what was there before elsewhere.
fn holes(
    runs: &[AllocationRun],
    range: SectorRange,
    before: &[Stamp],
) -> std::result::Result<Vec<Stamp>, String> {
    let mut stamps = Vec::with_capacity(before.len());
    for run in runs {
        for _ in 0..run.bytes / SECTOR_BYTES {
            let place = before.get(stamps.len()).copied().unwrap_or_default();
            stamps.push(if run.allocated { place } else { Stamp::ZEROS });
        }
    }
    let told = stamps.len() as u64;
    let is_ended = runs.len() == ALLOCATION_RUNS_MAX && told > 0;
    if runs.len() <= ALLOCATION_RUNS_MAX && (told == range.sectors() || (is_ended && told < range.sectors()))
    {
        return Ok(stamps);
    }
    Err(format!("the allocation of {range} covers {told} sectors in {} runs", runs.len()))
}
