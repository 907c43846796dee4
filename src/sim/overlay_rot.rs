//! A test failover that is written to, outlives a death, and has bits of its overlays and their sums flip. What is read of it is what was
//! written there or it is refused, and whoever is refused is told of the file; without a flipped bit only what a power cut tore is refused,
//! and never what was flushed. What is written anew is served again.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;

use super::answers::joined;
use super::history::Contents;
use super::process::GROUP;
use super::recovery::SESSION;
use super::sector::{Stamp, content, stamps};
use super::site::{Outcome, Site};
use crate::block::{Export, Refusal, Reply, Request, Response, TestId, Ticket};
use crate::error::Result;
use crate::extent::Ranges;
use crate::failover::{TestDisk, TestFailover, TestsReport};
use crate::format::record::TestUse;
use crate::protect::group::Group;
use crate::throttle::Pacing;
use crate::units::{DiskId, PointId, SECTOR_BYTES, SectorRange, to_usize};

/// Writes before the flush and behind it, at most.
const WRITES_MAX: u64 = 12;
/// Points that are tried, at most.
const POINTS_MAX: usize = 24;
/// Bits flipped, at most.
const ROTS_MAX: u64 = 4;
/// What is read at a time: a refusal says nothing about all of it.
const READ_SECTORS: usize = 4;

/// A disk of the test failover, and what each of its sectors may hold: what it held when it was flushed last, and since; the newest last.
struct Written {
    number: usize,
    id: DiskId,
    may: Vec<Vec<Stamp>>,
}

impl Written {
    fn sectors(&self) -> u64 {
        self.may.len() as u64
    }

    fn note(&mut self, range: SectorRange, stamp: Stamp) {
        self.may[to_usize(range.start)..to_usize(range.end)].iter_mut().for_each(|may| may.push(stamp));
    }

    fn settle(&mut self) {
        self.may.iter_mut().for_each(|may| drop(may.drain(..may.len() - 1)));
    }
}

/// What may be refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refused {
    Nothing,
    /// What was not flushed when the power was cut.
    Unflushed,
    /// Whatever rotted.
    Anything,
}

impl Site {
    /// Starts a test failover, has it die, and flips bits in its overlays. Afterwards everything is as it was.
    pub(super) fn damage_overlays(&mut self) -> Outcome {
        self.rest()?;
        let (sound, history) = (self.disk.image(), self.history.clone());
        // No point is taken up that will not have been.
        self.is_verified = false;
        let (test, mut disks) = self.start_rehearsal()?;
        self.play_overlays(test, &mut disks).map_err(|text| format!("{test:?}: {text}"))?;
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.disk.restore(&sound);
        self.history = history;
        self.start_process();
        Ok(())
    }

    /// Of the newest point that stays for long enough.
    fn start_rehearsal(&mut self) -> std::result::Result<(TestId, Vec<Written>), String> {
        for _ in 0..POINTS_MAX {
            let listed =
                |group: &mut Group| group.vault().manifest().state().points().last().map(|point| point.id);
            let point = self.process.group().and_then(listed).ok_or("there is no point")?;
            let held = match self.try_view(point)? {
                Err(error) if self.is_gone(point, &error) => continue,
                read => read.map_err(|error| format!("point {point} can't be read: {error}"))?,
            };
            match self.try_start(point)? {
                Err(error) if self.is_gone(point, &error) => {}
                started => {
                    let started = started.map_err(|error| format!("a test failover: {error}"))?;
                    return Ok((started.test, self.held_by(&started, &held)?));
                }
            }
        }
        Err("the newest point never stays".to_owned())
    }

    fn try_start(&mut self, point: PointId) -> std::result::Result<Result<TestFailover>, String> {
        let answer: Rc<RefCell<Option<Result<TestFailover>>>> = Rc::default();
        let slot = Rc::clone(&answer);
        let tests = self.process.tests().ok_or("no test failovers are open")?;
        tests.start(point, TestUse::Rehearsal, Box::new(move |result| drop(slot.replace(Some(result)))));
        self.drive("a test failover", |_| answer.borrow().is_some())?;
        Ok(answer.take().expect("answered"))
    }

    fn held_by(&self, started: &TestFailover, held: &Contents) -> std::result::Result<Vec<Written>, String> {
        let written = |disk: &TestDisk| -> std::result::Result<Written, String> {
            let number = self.number_of(disk.id)?;
            let held = held.get(&number).ok_or("a disk that its point does not have")?;
            Ok(Written { number, id: disk.id, may: held.iter().map(|stamp| vec![*stamp]).collect() })
        };
        started.disks.iter().map(written).collect()
    }

    fn play_overlays(&mut self, test: TestId, disks: &mut [Written]) -> Outcome {
        self.change_overlays(test, disks)?;
        for disk in disks.iter_mut() {
            self.expect_done(test, disk.id, Request::Flush)?;
            disk.settle();
        }
        self.change_overlays(test, disks)?;
        let power = self.random.chance(1, 2);
        if power {
            self.disk.power_cut();
            self.environment.reboot();
        } else {
            self.disk.kill_process(self.process.id());
            self.disk.run();
            // What outlives the process is what was written last.
            disks.iter_mut().for_each(Written::settle);
        }
        self.start_process();
        self.drive("opening", |site| site.process.is_serving())?;
        let refused = if power { Refused::Unflushed } else { Refused::Nothing };
        self.compare_overlays(test, disks, refused).map_err(|text| format!("power: {power}: {text}"))?;
        self.change_overlays(test, disks)?;
        if !power {
            disks.iter_mut().for_each(Written::settle);
        }
        self.compare_overlays(test, disks, refused).map_err(|text| format!("written to: {text}"))?;
        self.rot_overlays(test, disks)?;
        self.overwrite_overlays(test, disks)?;
        self.compare_overlays(test, disks, Refused::Nothing).map_err(|text| format!("anew: {text}"))?;
        match self.verify_overlays(test)? {
            seen if seen.faults.is_empty() => Ok(()),
            seen => Err(format!("all was written anew, and a verification says {seen:?}")),
        }
    }

    fn rot_overlays(&mut self, test: TestId, disks: &[Written]) -> Outcome {
        self.is_faulted = true;
        let directory = self.group_plan().tests().join(test.0.to_string());
        let mut rotten: Vec<PathBuf> = Vec::new();
        for _ in 0..1 + self.random.below(ROTS_MAX) {
            let seed = self.random.next();
            let is_of_test = |path: &Path| path.parent() == Some(directory.as_path());
            let Some(rot) = self.disk.rot_somewhere(seed, is_of_test) else { break };
            self.tracer.note(|| format!("under way: {rot:?}"));
            self.report.overlay_rots += 1;
            rotten.push(rot.path);
        }
        let told_before = self.told_of_tests().len();
        let refused = self.compare_overlays(test, disks, Refused::Anything)?;
        self.report.overlay_rots_refused += u64::from(refused > 0);
        let told = self.told_of_tests();
        let is_named = |error: &String| rotten.iter().any(|path| error.contains(&path.display().to_string()));
        // What is told may be older: a power cut may have had something refused before.
        let is_told = !told.is_empty() && (told_before > 0 || told.iter().all(is_named));
        if refused > 0 && !is_told {
            return Err(format!("{rotten:?} rotted, and told: {told:?}"));
        }
        if self.process.tests().is_some_and(|tests| tests.take_met_damage()) {
            return Err("the vault is suspected for what an overlay holds".to_owned());
        }
        let seen = self.verify_overlays(test)?;
        let says = |path: &PathBuf| {
            let path = path.display().to_string();
            seen.faults.iter().any(|fault| fault.error.contains(&path))
                || seen.mended.iter().any(|line| line.contains(&path))
        };
        // Of the overlay itself a bit may have flipped in a hole, or in what was given back.
        match rotten.iter().find(|path| path.extension().is_some_and(|end| end == "sums") && !says(path)) {
            Some(path) => Err(format!("{} rotted, and a verification says {seen:?}", path.display())),
            None if refused > 0 && seen.faults.is_empty() => {
                Err(format!("{refused} reads were refused, and a verification says {seen:?}"))
            }
            None => Ok(()),
        }
    }

    /// What a verification finds of a test failover; of others a power cut may have torn something.
    fn verify_overlays(&mut self, test: TestId) -> std::result::Result<TestsReport, String> {
        let answer: Rc<RefCell<Option<Result<TestsReport>>>> = Rc::default();
        let slot = Rc::clone(&answer);
        let tests = self.process.tests().ok_or("no test failovers are open")?;
        let done = Box::new(move |result| drop(slot.replace(Some(result))));
        tests.verify(&Pacing::default(), || Ok(()), done);
        self.drive("a verification of overlays", |_| answer.borrow().is_some())?;
        let answer = answer.take().expect("answered");
        let mut seen = answer.map_err(|error| format!("a verification of overlays: {error}"))?;
        let of_test = format!("@test-{}", test.0);
        seen.faults.retain(|fault| fault.export.ends_with(&of_test));
        Ok(seen)
    }

    fn told_of_tests(&mut self) -> Vec<String> {
        let failing = self.process.tests().map(|tests| tests.failing()).unwrap_or_default();
        failing.into_iter().map(|failing| failing.error).collect()
    }

    fn change_overlays(&mut self, test: TestId, disks: &mut [Written]) -> Outcome {
        for _ in 0..1 + self.random.below(WRITES_MAX) {
            let chosen = self.random.index(disks.len());
            let disk = &mut disks[chosen];
            // Whole blocks: of a part of one that the power tore the rest would have to be read.
            let drawn = self.draw_range(disk.sectors());
            let end = drawn.end.next_multiple_of(8).min(disk.sectors());
            let range = SectorRange::new(drawn.start / 8 * 8, end);
            let keep_allocated = self.random.chance(1, 2);
            let (stamp, request) = if self.random.chance(1, 4) {
                (Stamp::ZEROS, Request::Zero { range, durable: false, keep_allocated })
            } else {
                let stamp = self.clients.next_stamp();
                (stamp, write(disk.number, range, stamp))
            };
            self.expect_done(test, disk.id, request)?;
            disk.note(range, stamp);
        }
        Ok(())
    }

    fn overwrite_overlays(&mut self, test: TestId, disks: &mut [Written]) -> Outcome {
        for disk in disks {
            let whole = Ranges::of([SectorRange::new(0, disk.sectors())]);
            for piece in whole.pieces(self.plan.write_sectors_max / 8 * 8) {
                let stamp = self.clients.next_stamp();
                self.expect_done(test, disk.id, write(disk.number, piece, stamp))?;
                disk.note(piece, stamp);
            }
            disk.settle();
        }
        Ok(())
    }

    /// Reads all disks; how many reads were refused.
    fn compare_overlays(
        &mut self,
        test: TestId,
        disks: &[Written],
        refused: Refused,
    ) -> std::result::Result<u64, String> {
        let mut count = 0;
        for disk in disks {
            for (start, may) in (0..).step_by(READ_SECTORS).zip(disk.may.chunks(READ_SECTORS)) {
                let range = SectorRange::new(start, start + may.len() as u64);
                match self.ask_overlay(test, disk.id, Request::Read { range })? {
                    Ok(Response::Data(pieces)) => {
                        let found = stamps(disk.number, start, &joined(&pieces, range)?)?;
                        if let Some(index) = (0..may.len()).find(|&index| !may[index].contains(&found[index]))
                        {
                            let (sector, found, may) = (start + index as u64, found[index], &may[index]);
                            return Err(format!(
                                "disk {} sector {sector}: {found:?}, not of {may:?}",
                                disk.number
                            ));
                        }
                    }
                    Err(Refusal::Io) if is_excused(refused, may) => count += 1,
                    other => return Err(format!("disk {} {range}: {other:?}", disk.number)),
                }
            }
        }
        Ok(count)
    }

    fn expect_done(&mut self, test: TestId, disk: DiskId, request: Request) -> Outcome {
        match self.ask_overlay(test, disk, request)? {
            Ok(Response::Done) => Ok(()),
            other => Err(format!("not done: {other:?}")),
        }
    }

    fn ask_overlay(
        &mut self,
        test: TestId,
        disk: DiskId,
        request: Request,
    ) -> std::result::Result<Reply, String> {
        let ticket = Ticket { session: SESSION, request: 0 };
        self.process.submit(ticket, Export::Test(GROUP, disk, test), request);
        self.answer_to(ticket)
    }
}

fn is_excused(refused: Refused, may: &[Vec<Stamp>]) -> bool {
    match refused {
        Refused::Nothing => false,
        Refused::Unflushed => may.iter().any(|may| may.len() > 1),
        Refused::Anything => true,
    }
}

fn write(number: usize, range: SectorRange, stamp: Stamp) -> Request {
    let payload = Bytes::from(content(number, range.start, range.sectors(), stamp));
    assert_eq!(payload.len() as u64, range.sectors() * SECTOR_BYTES, "whole sectors");
    Request::Write { range, payload, durable: false }
}
