//! Plays a [script](super::script): its acts are carried out on the same site, and judged by the same checkers, as those
//! that a seed draws. Then faults end, everything comes to its end, and all is compared.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::clients::{DISKS_MAX, Manner, Member, Pending};
use super::plan::{Plan, RESERVE_BYTES_MAX};
use super::process::GROUP;
use super::retention::LADDERS;
use super::script::{Act, Place, Script, Setting, choice};
use super::site::{Death, Outcome, Site};
use super::{Options, Report};
use crate::block::{Export, Request};
use crate::protect::shrinking::SpaceLimits;
use crate::storage::sim::{FaultKind, Matcher, OpKind, Random, Severity};
use crate::units::SectorRange;

const SEGMENTS_MIN: u64 = 6;
const CACHE_BYTES: [usize; 4] = [128 << 10, 0, 16 << 10, 0];
const INDEX_BYTES: [u64; 4] = [64 << 10, 8 << 10, 0, 1 << 30];
const MAP_BYTES: [usize; 4] = [usize::MAX, usize::MAX, 8 << 10, 1 << 10];
const HISTORY_BYTES: [Option<u64>; 4] = [None, None, Some(512 << 10), Some(64 << 10)];
const INTERVAL_MS: [u64; 4] = [500, 100, 20, 5];
const GRACE: Duration = Duration::from_millis(10);
/// What a verification compares at a time: less than a disk.
const VERIFY_BYTES: u64 = 4 << 10;
/// Requests in flight at most.
const DEPTH: usize = 16;
/// Rounds that one act waits for answers at most: behind a fault they may never come.
const ROUNDS_MAX: u64 = 400;
/// Points that are compared at the end, at most: reading them is what takes long.
const POINTS_MAX: usize = 3;
/// A unit of the time that passes.
const MOMENT: Duration = Duration::from_micros(10);

/// What may fail.
const FAULTS: [(OpKind, &str, FaultKind); 18] = [
    (OpKind::Write, "/journal/", FaultKind::Io),
    (OpKind::Write, "/journal/", FaultKind::Short),
    (OpKind::Sync, "/journal/", FaultKind::Io),
    (OpKind::Read, "/journal/", FaultKind::Io),
    (OpKind::Publish, "/journal/", FaultKind::Io),
    (OpKind::Write, "/images/", FaultKind::Io),
    (OpKind::Write, "/images/", FaultKind::NoSpace),
    (OpKind::Sync, "/images/", FaultKind::Io),
    (OpKind::Read, "/images/", FaultKind::Io),
    (OpKind::Write, "/vault/", FaultKind::NoSpace),
    (OpKind::Write, "/vault/", FaultKind::Short),
    (OpKind::Sync, "/vault/", FaultKind::Io),
    (OpKind::Read, "/vault/", FaultKind::Io),
    (OpKind::Publish, "/manifest/", FaultKind::Io),
    (OpKind::Publish, "/blobs/", FaultKind::Io),
    (OpKind::SyncDirectory, "/manifest", FaultKind::Io),
    (OpKind::SyncDirectory, "/group", FaultKind::Io),
    (OpKind::Open, "/", FaultKind::Io),
];

/// What a setting makes of a plan.
fn plan(setting: Setting) -> Plan {
    let segment_bytes = if setting.has_large_segments { 128 << 10 } else { 32 << 10 };
    Plan {
        disks: 1 + u64::from(setting.two_disks),
        segment_bytes,
        segments: SEGMENTS_MIN + u64::from(setting.more_segments),
        cache_bytes: choice(&CACHE_BYTES, setting.cache),
        map_bytes: choice(&MAP_BYTES, setting.maps),
        space: SpaceLimits {
            history_bytes_max: choice(&HISTORY_BYTES, setting.space),
            free_bytes_min: None,
            images_free_bytes_min: None,
            reserve_bytes_max: RESERVE_BYTES_MAX,
            grace: GRACE,
        },
        seals: !setting.is_plain,
        index_bytes: choice(&INDEX_BYTES, setting.index),
        fan_out: 2,
        interval: Duration::from_millis(choice(&INTERVAL_MS, setting.interval)),
        ladder: usize::from(setting.ladder) % LADDERS.len(),
        depth: DEPTH,
        // The largest record and its header must fit in a segment.
        write_sectors_max: if setting.has_large_segments { 200 } else { segment_bytes / 1024 },
        break_every: 1,
        pace: 1,
        verify_bytes: VERIFY_BYTES,
        verify_rate: 0,
        // How often things happen, the script says.
        ..Plan::draw(&mut Random::new(0))
    }
}

impl Site {
    pub(super) fn of_script(script: &Script, options: &Options, step: Rc<RefCell<u64>>) -> Site {
        Site::with_plan(plan(script.setting), Random::new(0), options, step)
    }

    /// Plays the script to its end.
    pub(super) fn play(mut self, script: &Script) -> Result<Report, String> {
        if !script.setting.starts_cold {
            self.furnish()?;
        }
        for act in &script.acts {
            *self.step.borrow_mut() += 1;
            self.tracer.note(|| format!("{act:?}"));
            let dice = u64::from(act.dice());
            (self.random, _) = (Random::new(dice), self.disk.reseed(dice));
            self.carry_out(*act)?;
            self.look()?;
        }
        self.finish_play()?;
        self.conclude()
    }

    /// The group is there, and its disks.
    fn furnish(&mut self) -> Outcome {
        self.drive("opening", |site| site.process.is_serving())?;
        self.verify_recovery()?;
        for _ in 0..self.plan.disks {
            self.add_disk();
        }
        self.drive("the first disks", |site| site.clients.joining.is_empty())
    }

    /// Compares what an opening recovered, as soon as it serves all of it.
    fn look(&mut self) -> Outcome {
        if self.process.is_serving() && !self.is_verified && self.detached_disks() == 0 {
            return self.verify_recovery();
        }
        Ok(())
    }

    fn carry_out(&mut self, act: Act) -> Outcome {
        match act {
            Act::Work { more, .. } => self.work_on(u64::from(more)),
            Act::Land { more, .. } => {
                (0..=more).take_while(|_| self.disk.step()).for_each(drop);
                Ok(())
            }
            Act::Heed { more } => (0..=more % 16).try_for_each(|_| self.step_process()),
            Act::Await { .. } => self.await_answers(),
            Act::Pass { time } => {
                self.environment.advance(MOMENT * u32::from(time));
                Ok(())
            }
            Act::Deadline => {
                self.advance_to_deadline();
                Ok(())
            }
            Act::SetClock { step } => {
                self.environment.step_wall(i64::from(step) * 1_000_000);
                self.report.clock_steps += 1;
                Ok(())
            }
            Act::Kill { .. } => {
                self.die_by(Death::Kill);
                Ok(())
            }
            Act::PowerCut { severity, .. } => {
                self.die_by(Death::PowerCut(Some(Severity::numbered(severity))));
                Ok(())
            }
            Act::Stop { .. } if self.is_verified && !self.is_faulted => self.stop(),
            Act::Fail { .. } | Act::Break { .. } | Act::FillDisk { .. } | Act::Mend | Act::Resume => {
                self.meet(act);
                Ok(())
            }
            _ if self.is_verified => self.ask(act),
            _ => Ok(()),
        }
    }

    /// The disk completes an operation and the process goes on, in turns.
    fn work_on(&mut self, more: u64) -> Outcome {
        for _ in 0..=more {
            self.disk.step();
            self.step_process()?;
            self.look()?;
        }
        Ok(())
    }

    fn await_answers(&mut self) -> Outcome {
        for _ in 0..ROUNDS_MAX {
            self.step_process()?;
            self.look()?;
            let is_done = self.is_verified && self.is_at_rest() && self.clients.asked == 0;
            if is_done || self.detached_disks() > 0 {
                break;
            }
            self.step_disk();
        }
        Ok(())
    }

    /// Something breaks, or is mended.
    fn meet(&mut self, act: Act) {
        match act {
            Act::Fail { fault, after } => {
                let (kind, path, fault) = choice(&FAULTS, fault);
                self.disk.fail_next(Matcher::kind(kind).path(path).after(u64::from(after)), fault);
                self.note_fault();
            }
            Act::Break { .. } => self.break_image(),
            Act::FillDisk { .. } => self.fill_disk(),
            Act::Mend => {
                self.clear_faults();
                self.mend_images();
            }
            Act::Resume if self.can_reopen() => self.reopen(),
            // Also while a disk is detached, so that nothing could be compared yet.
            Act::Resume if self.process.is_serving() && self.clients.resuming == 0 => self.resume(),
            _ => {}
        }
    }

    /// A client asks for something.
    fn ask(&mut self, act: Act) -> Outcome {
        match act {
            Act::Point => self.ask_point(),
            Act::AddDisk { .. } if self.staying() + self.clients.joining.len() < DISKS_MAX => self.add_disk(),
            Act::RemoveDisk { .. } if self.staying() > 1 => self.remove_disk(),
            Act::Verify => self.verify(),
            Act::Retention { .. } => self.change_retention(),
            Act::TestFailover { .. } => self.change_tests(),
            Act::AskTest { .. } if !self.clients.tests.is_empty() => self.request_of_test(),
            Act::Write { .. } | Act::Zero { .. } | Act::Read { .. } | Act::Flush => {
                return self.ask_disk(act);
            }
            _ => {}
        }
        Ok(())
    }

    fn ask_disk(&mut self, act: Act) -> Outcome {
        if self.clients.pending.len() >= self.plan.depth {
            return Ok(());
        }
        match act {
            Act::Write { place, durable } => {
                let Some((member, range)) = self.find(place) else { return Ok(()) };
                let stamp = Some(self.clients.next_stamp());
                self.change_as(&member, range, stamp, Manner { durable, keep_allocated: false })
            }
            Act::Zero { place, durable, keeps } => {
                let Some((member, range)) = self.find(place) else { return Ok(()) };
                self.change_as(&member, range, None, Manner { durable, keep_allocated: keeps })
            }
            Act::Read { place } => {
                let Some((member, range)) = self.find(place) else { return Ok(()) };
                self.read(&member, range, false)
            }
            _ => {
                let Some((member, _)) = self.find(Place::default()) else { return Ok(()) };
                let pending = Pending::Flush { acknowledged: self.history.acknowledged() };
                self.submit(Export::Disk(GROUP, member.id), Request::Flush, pending)
            }
        }
    }

    fn staying(&self) -> usize {
        self.clients.members.iter().filter(|member| !member.leaving).count()
    }

    /// The disk and the sectors that a place means.
    fn find(&self, place: Place) -> Option<(Member, SectorRange)> {
        let staying: Vec<&Member> = self.clients.members.iter().filter(|member| !member.leaving).collect();
        let member = *staying.get(usize::from(place.disk) % staying.len().max(1))?;
        let sectors = self.history.sectors(member.number);
        let length = (1 + u64::from(place.more)).min(self.plan.write_sectors_max).min(sectors);
        let start = u64::from(place.start).min(sectors - length);
        Some((member.clone(), SectorRange::new(start, start + length)))
    }

    /// Ends the run: as a seed's, but without another stop, and without what that does with copies of everything.
    fn finish_play(&mut self) -> Outcome {
        self.tracer.note(|| "the end begins: no more faults".to_owned());
        self.clear_faults();
        self.mend_images();
        if self.is_faulted {
            self.die(false);
        }
        self.settle()?;
        self.check_bounds()?;
        self.check_points(POINTS_MAX)
    }
}
