//! One run: the machine, its process, the clients, the oracle, and the dice that decide what happens next.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use crate::env::Environment;
use crate::error::{Error, ErrorKind};
use crate::format::ladder::Ladder;
use crate::planted::Planted;
use crate::protect::open::GroupPlan;
use crate::protect::status::Condition;
use crate::seal::{SiteKey, SiteKeys, Witness};
use crate::storage::sim::{FaultKind, Matcher, OpKind, Random, Severity, SimDisk, SimEnvironment};
use crate::units::DiskId;

use super::administration::Administration;
use super::blocks::has_large_disks;
use super::clients::{Clients, News};
use super::history::History;
use super::loss::GivenUp;
use super::plan::Plan;
use super::points::Points;
use super::process::{Process, group_plan};
use super::retention::Retention;
use super::trace::Tracer;
use super::unsummed::loses_sums;
use super::{Options, Report};

/// Rounds after which what was to come to its end has failed to.
const ROUNDS_MAX: u64 = 40_000;
/// What passes while nothing is to be done.
const IDLE_TICK: Duration = Duration::from_micros(500);
const DAY_NANOS: u64 = 24 * 3600 * 1_000_000_000;
/// What a full disk has left.
const SPARE_BYTES_MAX: u64 = 256 << 10;

/// Whether the rules were kept; if not, which was broken, and how.
pub(super) type Outcome = Result<(), String>;

/// How a process dies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Death {
    /// kill -9.
    Kill,
    /// With the machine; how much survives of what was not synced, unless chance says so.
    PowerCut(Option<Severity>),
}

/// Everything that one seed makes.
pub(super) struct Site {
    pub(super) plan: Plan,
    /// What unwraps the group's keys.
    pub(super) site_keys: SiteKeys,
    /// Sees every (key, nonce) pair, of all processes and all copies of the data directory.
    pub(super) witness: Witness,
    pub(super) planted: Planted,
    pub(super) random: Random,
    pub(super) disk: SimDisk,
    pub(super) environment: Rc<SimEnvironment>,
    pub(super) process: Process,
    pub(super) history: History,
    pub(super) points: Points,
    pub(super) clients: Clients,
    pub(super) retention: Retention,
    pub(super) administration: Administration,
    /// The numbers of all disks that ever were.
    pub(super) numbers: Vec<(usize, DiskId)>,
    /// Results of what was asked with a callback.
    pub(super) news: Rc<RefCell<VecDeque<News>>>,
    pub(super) tracer: Tracer,
    pub(super) report: Report,
    /// Whether what the last opening recovered was compared with the history.
    pub(super) is_verified: bool,
    /// Whether this process met a fault, and may refuse or give up.
    pub(super) is_faulted: bool,
    /// The group was closed since replies were taken last: every request to it is answered by now.
    pub(super) was_closed: bool,
    /// Failed syncs of the journal that the history knows of: what they lost was acknowledged, but never durable.
    failed_syncs: usize,
    /// Side files at the last look.
    pub(super) side_files: usize,
    /// What was given up since it rotted.
    pub(super) given_up: GivenUp,
    /// Whether the next opening may go on without what was acknowledged and not durable.
    pub(super) accepts_loss: bool,
    pub(super) step: Rc<RefCell<u64>>,
}

/// The policy that the group begins with.
fn policy(plan: &Plan) -> (Duration, Ladder) {
    (plan.interval * plan.pace, plan.ladder_at(plan.ladder))
}

impl Site {
    pub(super) fn new(seed: u64, options: &Options, step: Rc<RefCell<u64>>) -> Site {
        let mut random = Random::new(seed);
        // Not drawn: that would change what all the others do.
        let plan = Plan {
            has_large_disks: has_large_disks(seed),
            loses_sums: loses_sums(seed),
            ..Plan::draw(&mut random)
        };
        let mut site = Site::with_plan(plan, random, options, step);
        site.tracer.note(|| format!("seed {seed}"));
        site
    }

    pub(super) fn with_plan(
        plan: Plan,
        mut random: Random,
        options: &Options,
        step: Rc<RefCell<u64>>,
    ) -> Site {
        let disk = SimDisk::new(random.next());
        let environment = SimEnvironment::new(random.next());
        let mut tracer = Tracer::new(options.sink.clone(), &disk);
        tracer.note(|| format!("{plan:?}"));
        let witness = Witness::watching();
        let key = SiteKey::drawn([random.next(), random.next()].map(u128::from));
        let site_keys = SiteKeys::new(vec![key]).watched_by(witness.clone()).with_planted(options.planted);
        let first = group_plan(&plan, options.planted, site_keys.clone());
        let process = Process::start(&disk, &environment, first, policy(&plan));
        Site {
            retention: Retention::new(plan.ladder_at(plan.ladder)),
            plan,
            site_keys,
            witness,
            planted: options.planted,
            random,
            disk,
            environment,
            process,
            history: History::default(),
            points: Points::default(),
            clients: Clients::default(),
            administration: Administration::default(),
            numbers: Vec::new(),
            news: Rc::default(),
            tracer,
            report: Report::default(),
            is_verified: false,
            is_faulted: false,
            was_closed: false,
            failed_syncs: 0,
            side_files: 0,
            given_up: GivenUp::new(),
            accepts_loss: false,
            step,
        }
    }

    /// Plays the seed to its end.
    pub(super) fn run(mut self) -> Result<Report, String> {
        for _ in 0..self.plan.steps {
            self.turn()?;
        }
        self.finish()?;
        self.conclude()
    }

    /// What the run did, after what can be judged at its very end only.
    pub(super) fn conclude(mut self) -> Result<Report, String> {
        self.check_seals()?;
        self.report.steps = *self.step.borrow();
        self.report.days = self.environment.monotonic().0 / DAY_NANOS;
        self.report.late_writes = self.disk.late_writes();
        self.report.fingerprint = self.disk.fingerprint() ^ self.tracer.hash();
        self.process.bury();
        Ok(self.report)
    }

    /// Where the group's files are, and its limits.
    pub(super) fn group_plan(&self) -> GroupPlan {
        let plan = group_plan(&self.plan, self.planted, self.site_keys.clone());
        GroupPlan { accepts_loss: self.accepts_loss, ..plan }
    }

    /// No (key, nonce) pair sealed twice.
    fn check_seals(&mut self) -> Outcome {
        let (seals, repeated) = self.witness.testimony();
        self.report.seals = seals;
        match repeated {
            Some(nonce) => Err(format!("one key sealed {nonce:?} twice")),
            None => Ok(()),
        }
    }

    /// One step: something happens.
    fn turn(&mut self) -> Outcome {
        *self.step.borrow_mut() += 1;
        match self.random.below(64) {
            0..8 => self.burst(),
            8..16 => self.step_process()?,
            16..32 => self.work()?,
            32..58 => self.client_acts()?,
            58..63 => self.tick(),
            _ => self.pass_time(),
        }
        if self.process.is_serving() && !self.is_verified && !self.leaves_detached() {
            self.verify_recovery()?;
        }
        let (deaths, faults) = (self.plan.death_every, self.plan.fault_every);
        let deaths = if self.is_verified { deaths } else { deaths.min(self.plan.opening_death_every) };
        if self.random.chance(1, deaths) {
            self.end_process()?;
        }
        if faults > 0 && self.random.chance(1, faults) {
            self.inject_fault();
        }
        self.break_or_repair();
        Ok(())
    }

    /// Disk and process go on in turns for a while.
    fn work(&mut self) -> Outcome {
        for _ in 0..1 + self.random.below(12) {
            self.burst();
            self.step_process()?;
        }
        Ok(())
    }

    /// The disk completes a few operations, or one.
    fn burst(&mut self) {
        let steps = if self.random.chance(1, 2) { 1 } else { 1 + self.random.below(8) };
        for _ in 0..steps {
            self.disk.step();
        }
    }

    /// A round of the process, and what came of it.
    pub(super) fn step_process(&mut self) -> Outcome {
        if let Err(error) = self.process.step() {
            return self.opening_failed(&error);
        }
        self.take_replies()?;
        self.take_news()?;
        self.watch_side_files();
        self.hear_events();
        let condition = self.process.group().map(|group| group.condition());
        self.report.map_waits += u64::from(condition == Some(Condition::MapsFull));
        if let Some(group) = self.process.group() {
            self.administration.excuse(group.forced_points());
        }
        self.note_time();
        if self.is_verified {
            self.observe_points()?;
        }
        self.take_grants()
    }

    fn opening_failed(&mut self, error: &Error) -> Outcome {
        // A dead process's write may take longer to land than an opening waits for; the gateway then tries again.
        let is_locked = error.kind() == ErrorKind::Locked;
        if !self.is_faulted && !is_locked {
            return Err(format!("the group can't be opened: {error}"));
        }
        self.tracer.note(|| format!("opening failed: {error}"));
        if !is_locked {
            self.clear_faults();
        }
        self.die(false);
        Ok(())
    }

    fn tick(&mut self) {
        let micros = 1 + self.random.below(self.plan.tick_micros);
        self.environment.advance(Duration::from_micros(micros) * self.plan.pace);
    }

    /// The next deadline comes, or a long time passes, or somebody sets the clock.
    fn pass_time(&mut self) {
        match self.random.below(8) {
            0 => {
                let rest = Duration::from_millis(1 + self.random.below(3000));
                self.environment.advance(rest * self.plan.pace);
            }
            1 => {
                let millis = i64::try_from(self.random.below(20_000)).expect("small") - 10_000;
                let millis = millis * i64::from(self.plan.pace);
                self.environment.step_wall(millis * 1_000_000);
                self.report.clock_steps += 1;
                self.tracer.note(|| format!("the wall clock steps by {millis} ms"));
            }
            _ => self.advance_to_deadline(),
        }
    }

    pub(super) fn advance_to_deadline(&mut self) {
        match self.process.next_deadline() {
            Some(due) => self.environment.advance_to(due),
            None => self.tick(),
        }
    }

    /// Steps everything, with neither deaths nor faults nor new requests, until `done`.
    pub(super) fn drive(&mut self, what: &str, mut done: impl FnMut(&mut Site) -> bool) -> Outcome {
        for _ in 0..ROUNDS_MAX {
            self.step_process()?;
            if done(self) {
                return Ok(());
            }
            self.step_disk();
        }
        let condition = self.process.group().map(|group| group.condition());
        Err(format!("{what} never comes to its end; the group is {condition:?}"))
    }

    /// The disk does something; if it has nothing to do, time passes.
    pub(super) fn step_disk(&mut self) {
        let steps = 1 + self.random.below(8);
        let stepped = (0..steps).take_while(|_| self.disk.step()).count();
        if stepped == 0 {
            self.advance_to_deadline();
            self.environment.advance(IDLE_TICK);
        }
    }

    /// The process ends: by a clean stop, by kill -9, or with the machine.
    fn end_process(&mut self) -> Outcome {
        if self.is_verified && !self.is_faulted && self.random.chance(1, 5) {
            return self.stop();
        }
        let power_cut = self.random.chance(self.plan.power_cuts, 8);
        if self.random.chance(1, 2) {
            self.clear_faults();
        }
        self.die(power_cut);
        Ok(())
    }

    /// The process dies, and another one starts.
    pub(super) fn die(&mut self, power_cut: bool) {
        self.die_by(if power_cut { Death::PowerCut(None) } else { Death::Kill });
    }

    /// The process dies in a certain way, and another one starts.
    pub(super) fn die_by(&mut self, death: Death) {
        let power_cut = matches!(death, Death::PowerCut(_));
        if !self.is_verified {
            self.report.opening_deaths += 1;
        }
        self.tracer.note(|| format!("{death:?}"));
        match death {
            Death::Kill => {
                self.report.kills += 1;
                self.disk.kill_process(self.process.id());
            }
            Death::PowerCut(severity) => {
                self.report.power_cuts += 1;
                match severity {
                    Some(severity) => self.disk.power_cut_as(severity),
                    None => self.disk.power_cut(),
                }
                self.lose_sums();
            }
        }
        // A device that fails may have lost what was written, and the opening then refuses. Here the machine is started anew after that.
        if power_cut || self.is_faulted {
            self.environment.reboot();
        }
        self.note_failed_syncs(power_cut);
        self.start_process();
    }

    /// What a power cut or a failed sync lost was acknowledged, but never durable.
    pub(super) fn note_failed_syncs(&mut self, power_cut: bool) {
        let failed_syncs = self.disk.failed_syncs("/journal/");
        if power_cut || failed_syncs > self.failed_syncs {
            self.history.lose_unsynced();
        }
        self.failed_syncs = failed_syncs;
    }

    /// Starts a process in the place of one that died.
    pub(super) fn start_process(&mut self) {
        let next = Process::start(&self.disk, &self.environment, self.group_plan(), policy(&self.plan));
        std::mem::replace(&mut self.process, next).bury();
        self.clients.forget_pending();
        self.retention.forget_pending();
        self.administration.forget_pending();
        self.news.borrow_mut().clear();
        self.is_verified = false;
        self.is_faulted =
            self.disk.planned_faults() + self.disk.lasting_faults() > 0 || self.clients.is_disk_full;
    }

    pub(super) fn clear_faults(&mut self) {
        self.disk.clear_faults();
        self.disk.set_capacity(None);
        self.clients.is_disk_full = false;
    }

    fn inject_fault(&mut self) {
        if self.fails_sums() {
            return;
        }
        let (kind, path, fault) = match self.random.below(12) {
            0 if self.clients.is_disk_full => return self.clear_faults(),
            0 => return self.fill_disk(),
            1 => (OpKind::Write, "/images/", FaultKind::Io),
            2 => (OpKind::Sync, "/images/", FaultKind::Io),
            3 => (OpKind::Write, "/journal/", *self.random.choose(&[FaultKind::Io, FaultKind::Short])),
            4 => (OpKind::Sync, "/journal/", FaultKind::Io),
            5 => (OpKind::Read, *self.random.choose(&["/journal/", "/images/", "/vault/"]), FaultKind::Io),
            6 => {
                (OpKind::Publish, *self.random.choose(&["/manifest/", "/blobs/", "/journal/"]), FaultKind::Io)
            }
            7 => (
                OpKind::SyncDirectory,
                *self.random.choose(&["/manifest", "/blobs", "/group"]),
                FaultKind::Io,
            ),
            8 => (OpKind::Write, "/vault/", *self.random.choose(&[FaultKind::NoSpace, FaultKind::Short])),
            9 => (OpKind::Sync, "/vault/", FaultKind::Io),
            10 => (OpKind::Write, "/images/", FaultKind::NoSpace),
            _ => (OpKind::Open, "/", FaultKind::Io),
        };
        self.tracer.note(|| format!("the next {kind:?} of {path} fails: {fault:?}"));
        self.disk.fail_next(Matcher::kind(kind).path(path).after(self.random.below(4)), fault);
        self.note_fault();
    }

    pub(super) fn fill_disk(&mut self) {
        let left = self.random.below(SPARE_BYTES_MAX);
        self.tracer.note(|| format!("the disk has {left} bytes left"));
        self.disk.set_capacity(Some(self.disk.allocated_bytes() + left));
        self.clients.is_disk_full = true;
        self.note_fault();
    }

    pub(super) fn note_fault(&mut self) {
        self.report.faults += 1;
        self.is_faulted = true;
    }
}
