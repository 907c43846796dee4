//! Bits that flip in deltas, in bases and in the sums of these. Each is found, and none is served: every point is what it was, or
//! cannot be read, and is said to be harmed. Then the way out: a repair, which dies on the way at times. Afterwards nothing is damaged,
//! what the disks hold is what was written, and every point that is left is what it was; only those went that needed what was lost.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;

use super::site::{Outcome, Site};
use crate::error::{ErrorKind, Result};
use crate::protect::group::Group;
use crate::protect::repair::{Repair, Repaired};
use crate::units::PointId;
use crate::vault::{self, Finding, Vault, VerifyReport};

/// Bits flipped, at most.
const ROTS_MAX: u64 = 3;
/// Steps after which a repair dies, at most.
const STEPS_MAX: u64 = 400;

impl Site {
    /// Flips bits in deltas and bases under the running process, and has the vault repaired. Afterwards everything is as it was.
    pub(super) fn damage_vault(&mut self) -> Outcome {
        self.rest()?;
        self.write_somewhere()?;
        let (sound, history) = (self.disk.image(), self.history.clone());
        // No point is taken up that will not have been.
        self.is_verified = false;
        let mut rotten = Vec::new();
        // Where a base is in the midst of an advance, what flips may be shown by no point, and be written anew.
        let is_still =
            self.on_vault("a look", async |vault| vault.manifest().state().base_advance().is_none())?;
        for _ in 0..1 + self.random.below(ROTS_MAX) {
            let seed = self.random.next();
            let named = self.named_files()?;
            let Some(rot) = self.disk.rot_somewhere(seed, |path| named.contains(path)) else { break };
            self.tracer.note(|| format!("{rot:?}"));
            rotten.push(rot.path);
        }
        if !rotten.is_empty() {
            let rots = rotten.len();
            self.judge_rot(is_still, &rotten).map_err(|text| format!("{rots} flipped bits: {text}"))?;
            self.judge_repair().map_err(|text| format!("repairing {rots} flipped bits: {text}"))?;
        }
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.disk.restore(&sound);
        self.history = history;
        self.start_process();
        Ok(())
    }

    /// What flipped is found, and no point shows it. A thinning that had read it before may have done away with it meanwhile.
    fn judge_rot(&mut self, is_still: bool, rotten: &[PathBuf]) -> Outcome {
        let report = self.verify_vault()?;
        let named = self.named_files()?;
        let is_needed = rotten.iter().any(|path| named.contains(path));
        if is_still && is_needed && report.findings.is_empty() {
            return Err("nothing is found".to_owned());
        }
        for index in 0..self.points.len() {
            let point = self.points.id(index);
            match self.try_view(point)? {
                Ok(contents) => self.check_point(point, &contents)?,
                Err(error) if self.is_gone(point, &error) => {}
                Err(_) if report.harmed.iter().any(|harmed| harmed.id == point) => {
                    self.report.rots_unserved += 1;
                }
                Err(error) => {
                    return Err(format!("point {point} is said to be sound, and cannot be read: {error}"));
                }
            }
        }
        Ok(())
    }

    fn judge_repair(&mut self) -> Outcome {
        let mut findings = self.look_at_vault()?;
        let mut judged = findings.clone();
        let plan =
            self.on_vault("a plan", move |vault| async move { vault.plan_repair(&mut judged).await })?;
        let plan = plan.map_err(|error| format!("no plan: {error}"))?;
        let going: BTreeSet<PointId> = plan.going.iter().map(|point| point.id).collect();
        // A test failover of a point that is damaged would not open again.
        if !self.keeps_points() && self.random.chance(1, 2) {
            let steps = self.random.below(STEPS_MAX);
            self.die_repairing(&findings, steps)?;
            findings = self.look_at_vault()?;
        }
        let repaired = match self.repair_vault(&findings)? {
            Ok(repaired) => repaired,
            // Somebody keeps a point that would have to go.
            Err(error) if error.kind() == ErrorKind::Invalid && self.keeps_points() => {
                self.report.repairs_refused += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("it fails: {error}")),
        };
        self.report.repairs += 1;
        self.report.renewals += u64::from(repaired.point.is_some());
        let left = self.look_at_vault()?;
        // What of a base no point shows may stay damaged until retention brings the base on: of a disk that joined later, say.
        let mut damaging = left.iter().chain(&repaired.left).filter(|finding| is_shown(finding));
        if let Some(finding) = damaging.next() {
            return Err(format!("damaged still: {finding}"));
        }
        self.compare_disks()?;
        for index in 0..self.points.len() {
            let point = self.points.id(index);
            match self.try_view(point)? {
                Ok(contents) => self.check_point(point, &contents)?,
                // The ladder goes on, too, where there is one.
                Err(error)
                    if self.is_gone(point, &error) && (going.contains(&point) || self.drops_points()) => {}
                Err(error) => return Err(format!("point {point} stays, and cannot be read: {error}")),
            }
        }
        self.judge_newest()
    }

    /// The newest point, which nobody was told of, holds what the disks do.
    fn judge_newest(&mut self) -> Outcome {
        let Some(point) = self.ask_unheard_point()? else { return Err("no point is made".to_owned()) };
        let contents =
            self.try_view(point)?.map_err(|error| format!("a new point cannot be read: {error}"))?;
        let issued = self.history.issued();
        match self.history.find(issued, issued, &contents) {
            Some(_) => Ok(()),
            None => Err(format!("a new point: {}", self.history.explain(issued, issued, &contents))),
        }
    }

    fn die_repairing(&mut self, findings: &[Finding], steps: u64) -> Outcome {
        self.begin_repair(findings)?;
        for _ in 0..steps {
            self.step_process()?;
            self.step_disk();
        }
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.start_process();
        self.drive("opening", |site| site.process.is_serving())
    }

    fn begin_repair(
        &mut self,
        findings: &[Finding],
    ) -> std::result::Result<Rc<RefCell<Option<Result<Repaired>>>>, String> {
        let answer: Rc<RefCell<Option<Result<Repaired>>>> = Rc::default();
        let slot = Rc::clone(&answer);
        let repair = Repair { findings: findings.to_vec(), is_agreed: true, report: Rc::new(|_, _| Ok(())) };
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        group.repair(repair, Box::new(move |result| drop(slot.replace(Some(result)))));
        Ok(answer)
    }

    fn repair_vault(&mut self, findings: &[Finding]) -> std::result::Result<Result<Repaired>, String> {
        let answer = self.begin_repair(findings)?;
        self.drive("a repair", |_| answer.borrow().is_some())?;
        Ok(answer.take().expect("answered"))
    }

    fn keeps_points(&mut self) -> bool {
        self.process.group().is_some_and(|group| !group.vault().manifest().state().pins().is_empty())
    }

    /// Whether points go of themselves.
    fn drops_points(&mut self) -> bool {
        let drops = |group: &mut Group| !group.vault().manifest().state().record().retain.rungs().is_empty();
        self.plan.space.history_bytes_max.is_some() || self.process.group().is_some_and(drops)
    }

    /// The deltas and bases that the manifest names: one that it does not yet is looked for by no verification.
    fn named_files(&mut self) -> std::result::Result<BTreeSet<PathBuf>, String> {
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        let (vault, layout) = (group.vault(), group.vault().layout());
        let state = vault.manifest().state();
        let retired = state.base_advance().map_or(&[][..], |(_, retired)| retired);
        let deltas = state.points().iter().filter_map(|point| point.delta).chain(retired.iter().copied());
        let deltas = deltas.map(|delta| layout.blob(delta.blob));
        let bases = state.all_disks().iter().filter(|disk| state.needs_base(disk)).map(|disk| disk.record.id);
        let bases = bases.flat_map(|disk| [layout.base(disk), layout.sums(disk)]);
        Ok(deltas.chain(bases).collect())
    }

    fn look_at_vault(&mut self) -> std::result::Result<Vec<Finding>, String> {
        Ok(vault::damage(&self.verify_vault()?.findings))
    }

    fn verify_vault(&mut self) -> std::result::Result<VerifyReport, String> {
        let looked = self.on_vault("a look at the vault", |vault| async move {
            vault::verify(&vault, |_, _| Ok(())).await
        })?;
        looked.map_err(|error| format!("the vault cannot be looked at: {error}"))
    }

    fn on_vault<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        what: &str,
        work: impl FnOnce(Rc<Vault>) -> F,
    ) -> std::result::Result<T, String> {
        let answer: Rc<RefCell<Option<T>>> = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&answer);
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        let done = work(Rc::clone(group.vault()));
        self.process.runtime().spawn(async move { drop(slot.replace(Some(done.await))) });
        self.drive(what, |_| answer.borrow().is_some())?;
        Ok(answer.take().expect("answered"))
    }
}

/// Whether a recovery point needs what was lost, or may need it.
fn is_shown(finding: &Finding) -> bool {
    !finding.is_of_base() || finding.harmed.is_some()
}
