//! The end of a run, and clean stops on the way: faults end, everything comes to its end, and all of it is compared.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::answers::joined;
use super::history::Contents;
use super::retention::read_whole;
use super::rot::is_segment;
use super::sector::stamps;
use super::site::{Outcome, Site};
use crate::error::{ErrorKind, Result};
use crate::image::image_path;
use crate::protect::group::Group;
use crate::units::{DiskId, PointId, SECTOR_BYTES};
use crate::vault::Layout;
use crate::view::View;

/// Points that are compared at the end, at most.
const POINTS_MAX: usize = 24;
/// After so many rests nothing is waited for any more, whatever it was.
const RESTS: u64 = 8;
const REST: Duration = Duration::from_millis(400);

impl Site {
    /// Ends the run.
    pub(super) fn finish(&mut self) -> Outcome {
        self.tracer.note(|| "the end begins: no more faults".to_owned());
        self.plan.loses_sums = false;
        self.clear_faults();
        self.repair()?;
        if self.is_faulted {
            self.die(false);
        }
        self.settle()?;
        self.settle_administration()?;
        self.have_sums()?;
        self.check_bounds()?;
        self.check_points(POINTS_MAX)?;
        self.damage()?;
        self.settle()?;
        self.check_full_disk()?;
        self.settle()?;
        self.check_space()?;
        self.check_points(POINTS_MAX)?;
        self.damage_raw()?;
        self.settle()?;
        self.read_beside_destage()?;
        self.damage_images()?;
        self.settle()?;
        self.damage_overlays()?;
        self.settle()?;
        if self.random.chance(1, 2) {
            self.damage_alive()?;
            self.settle()?;
        }
        if self.random.chance(1, 2) {
            self.withhold()?;
            self.settle()?;
        }
        if self.plan.seals {
            self.go_on_twice()?;
            self.settle()?;
        }
        self.damage_vault()?;
        self.settle()?;
        self.stop()?;
        self.settle()?;
        self.damage_tail()
    }

    /// Everything under way comes to its end; a point is made of it, and all is compared.
    pub(super) fn settle(&mut self) -> Outcome {
        self.drive("opening", |site| site.process.is_serving())?;
        if !self.is_verified {
            self.verify_recovery()?;
        }
        if self.clients.members.is_empty() {
            self.add_disk();
        }
        self.drive("what the clients asked for", |site| site.is_at_rest())?;
        self.have_sums()?;
        let found = self.read_disks()?;
        let all = self.history.issued();
        if self.history.find(all, all, &found).is_none() {
            return Err(format!("at rest: {}", self.history.explain(all, all, &found)));
        }
        self.check_bases()?;
        self.ask_point();
        self.drive("a point", |site| site.clients.asked == 0)?;
        // The newest point goes only once there is a newer one.
        for _ in 0..POINTS_MAX {
            let newest = self.points.id(self.points.len() - 1);
            if self.compare_point(newest)? {
                return Ok(());
            }
        }
        Err("the newest point never stays".to_owned())
    }

    /// Whether everything that the clients asked for was answered.
    pub(super) fn is_at_rest(&self) -> bool {
        let clients = &self.clients;
        clients.pending.is_empty()
            && clients.joining.is_empty()
            && clients.starting.is_empty()
            && (clients.resuming, clients.verifying) == (0, 0)
            && self.resizes_rest()
            && (self.retention.asked, self.retention.views) == (0, 0)
            && self.administration.is_idle()
    }

    /// A clean stop: afterwards the images alone hold everything, durably.
    pub(super) fn stop(&mut self) -> Outcome {
        self.tracer.note(|| "clean stop".to_owned());
        self.clients.is_stopping = true;
        let Some(group) = self.process.group() else { return Ok(()) };
        group.stop();
        if self.random.chance(1, 4) {
            for _ in 0..self.random.below(60) {
                self.step_process()?;
                self.disk.step();
            }
            self.die(false);
            return Ok(());
        }
        self.drive("a clean stop", |site| site.process.group().is_some_and(|group| group.is_stopped()))?;
        if self.process.group().is_some_and(|group| group.vault().reserve().holds_others()) {
            // What is left is kept for giving space back, also where the disk is full no longer: the next process goes on.
            self.die(false);
            return Ok(());
        }
        self.report.stops += 1;
        let issued = self.history.issued();
        if self.history.acknowledged() != issued {
            let acknowledged = self.history.acknowledged();
            return Err(format!("stopped after {acknowledged} of {issued} changes"));
        }
        self.history.make_durable(issued);
        let found = self.images()?;
        if self.history.find(issued, issued, &found).is_none() {
            return Err(format!("images after a stop: {}", self.history.explain(issued, issued, &found)));
        }
        self.check_sums().map_err(|text| format!("after a stop: {text}"))?;
        let power_cut = self.random.chance(1, 2);
        self.die(power_cut);
        Ok(())
    }

    /// What the image files hold.
    pub(super) fn images(&self) -> std::result::Result<Contents, String> {
        let directory = self.group_plan().images();
        let staying = self.clients.members.iter().filter(|member| !member.leaving);
        let image = |number, id: DiskId| {
            let path = image_path(&directory, id);
            let bytes = self.disk.read_file(&path).ok_or_else(|| format!("{} is gone", path.display()))?;
            let sectors = self.history.sectors(number);
            if bytes.len() as u64 != sectors * SECTOR_BYTES {
                return Err(format!(
                    "the image of disk {number} has {} bytes, not {sectors} sectors",
                    bytes.len()
                ));
            }
            Ok((number, stamps(number, 0, &bytes)?))
        };
        staying.map(|member| image(member.number, member.id)).collect()
    }

    /// A base is as long as its disk, at least: a growth makes the base longer first.
    fn check_bases(&self) -> Outcome {
        let layout = Layout::new(&self.group_plan().vault);
        for member in self.clients.members.iter().filter(|member| !member.leaving) {
            let wanted = self.history.sectors(member.number) * SECTOR_BYTES;
            let found = self.disk.file_length(&layout.base(member.id));
            if found.is_none_or(|found| found < wanted) {
                return Err(format!("the base of disk {} has {found:?} bytes, not {wanted}", member.number));
            }
        }
        Ok(())
    }

    /// The journal keeps to its limit.
    pub(super) fn check_bounds(&self) -> Outcome {
        let journal = self.group_plan().journal();
        let is_there = |path: &std::path::PathBuf| path.starts_with(&journal) && is_segment(path);
        let segments = self.disk.files().into_iter().filter(is_there).count();
        // An opening that finds the journal full takes one more.
        let limit = self.plan.segments + 1;
        if segments as u64 <= limit + self.report.faults {
            return Ok(());
        }
        Err(format!("the journal has {segments} segments, its limit is {limit}"))
    }

    /// Compares points, old ones as well as new ones, but no more than so many.
    pub(super) fn check_points(&mut self, most: usize) -> Outcome {
        let mut points: Vec<PointId> = (0..self.points.len()).map(|index| self.points.id(index)).collect();
        self.random.shuffle(&mut points);
        for point in points.into_iter().take(most) {
            self.compare_point(point)?;
        }
        Ok(())
    }

    /// Compares what a point holds with the history; `false` if it is gone meanwhile.
    fn compare_point(&mut self, point: PointId) -> std::result::Result<bool, String> {
        let contents = match self.try_view(point)? {
            Ok(contents) => contents,
            Err(error) if self.is_gone(point, &error) => return Ok(false),
            Err(error) => return Err(format!("point {point} can't be read: {error}")),
        };
        if !self.points.is_known(point) {
            return Ok(false);
        }
        self.check_point(point, &contents).map(|()| true)
    }

    /// Whether a point can't be had because it went.
    pub(super) fn is_gone(&mut self, point: PointId, error: &crate::error::Error) -> bool {
        let is_listed = |group: &mut Group| group.vault().manifest().state().point(point).is_some();
        error.kind() == ErrorKind::NotFound && !self.process.group().is_some_and(is_listed)
    }

    /// What the disks of a point hold, or why that can't be read.
    pub(super) fn try_view(&mut self, point: PointId) -> std::result::Result<Result<Contents>, String> {
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        let vault = Rc::clone(group.vault());
        let slot = Rc::new(RefCell::new(None));
        let filled = Rc::clone(&slot);
        self.process.runtime().spawn(async move {
            let read = async {
                let view = View::open(&vault, point).await?;
                Ok((view.summaries() as u64, read_whole(&view).await?))
            };
            let read = read.await;
            filled.replace(Some(read));
        });
        self.drive("reading a point", |_| slot.borrow().is_some())?;
        let (summaries, disks) = match slot.take().expect("filled") {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        self.report.summaries += summaries;
        let mut contents = Contents::new();
        for (id, range, pieces) in disks {
            let number = self.number_of(id)?;
            contents.insert(number, stamps(number, 0, &joined(&pieces, range)?)?);
        }
        Ok(Ok(contents))
    }

    /// Time passes until nothing is left to do.
    pub(super) fn rest(&mut self) -> Outcome {
        for _ in 0..RESTS {
            self.environment.advance(REST);
            self.drive("rest", |site| site.disk.in_flight() == 0)?;
        }
        Ok(())
    }
}
