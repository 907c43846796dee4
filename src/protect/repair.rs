//! A way out of damage in the vault: what the newest point shows of it is written anew with what the disks hold, a recovery point is
//! made that has that, and the points that need what is lost go ([`crate::vault`], `docs/verify.md`).
//!
//! ```text
//!  findings ─▶ plan ─▶ agreed? ─▶ renew ─▶ point "repaired" ─▶ plan again ─▶ harmed points merge into it, or retire
//! ```
//!
//! Nothing is remembered: whatever became of an earlier try, the plan says what is left to do. Invariants: no point goes before
//! there is a durable later one that needs nothing of what is lost; guests go on, and no write of theirs is hidden
//! ([`super::renewal`]).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures::channel::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::format::record::PointRecord;
use crate::protect::group::{Callback, Group};
use crate::protect::mailbox::{Done, Mailbox};
use crate::protect::verify::Report;
use crate::units::{DiskSlot, SECTOR_BYTES};
use crate::vault::{Finding, RepairPlan, Vault};

/// What a person calls the point that a repair makes.
pub const LABEL: &str = "repaired";
/// While one renewal is under way, a point may need another: a disk that joined, damage that came to light. After so many it is
/// somebody's turn to look.
const ROUNDS_MAX: usize = 3;

/// What a repair is to go by.
pub struct Repair {
    /// What a verification found.
    pub findings: Vec<Finding>,
    /// Whether points may go. Else it is only said which.
    pub is_agreed: bool,
    /// Told the bytes written anew and their sum; its error ends the repair.
    pub report: Report,
}

/// What a repair did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// The points that went, or would go, oldest first.
    pub going: Vec<PointRecord>,
    /// Bytes that were written anew, or would be.
    pub renewed_bytes: u64,
    /// The point that it made.
    pub point: Option<PointRecord>,
    /// What is damaged still.
    pub left: Vec<Finding>,
}

/// What a repair's task asks of its group, on whose thread it is done.
pub(super) enum Order {
    /// To write sectors anew; answered once they are durable.
    Renew { ranges: BTreeMap<DiskSlot, Ranges>, report: Report, answer: oneshot::Sender<Result<()>> },
    /// To make a recovery point.
    Point { answer: oneshot::Sender<Result<PointRecord>> },
    /// To look at the points, of which some have gone, and to go on with retention.
    Look,
}

/// Sectors that are being written anew for a repair.
pub(super) struct Repairing {
    /// Of disks whose turn has not come.
    waiting: BTreeMap<DiskSlot, Ranges>,
    under_way: BTreeSet<DiskSlot>,
    total: u64,
    failed: Option<Error>,
    report: Report,
    answer: oneshot::Sender<Result<()>>,
}

impl Repairing {
    /// Whether a disk's renewal is this one's.
    pub(super) fn renews(&self, slot: DiskSlot) -> bool {
        self.under_way.contains(&slot)
    }

    /// A disk's renewal came to its end.
    pub(super) fn ended(&mut self, slot: DiskSlot) {
        self.under_way.remove(&slot);
    }
}

impl Group {
    /// Repairs the vault as far as that can be, or says what would be done; guests go on.
    pub fn repair(&mut self, repair: Repair, callback: Callback<Repaired>) {
        let task = Task { vault: Rc::clone(&self.settings.vault), mailbox: Rc::clone(&self.mailbox) };
        self.tasks.spawn(async move { callback(task.run(repair).await) });
    }

    pub(super) fn take_order(&mut self, order: Order) {
        match order {
            // Whoever asked may have gone.
            Order::Renew { answer, .. } if self.repairing.is_some() => {
                let text = "another repair of the group is under way: wait for it";
                drop(answer.send(Err(Error::new(ErrorKind::Latched, text))));
            }
            Order::Renew { ranges, report, answer } => {
                let total = ranges.values().map(Ranges::sectors).sum();
                let under_way = BTreeSet::new();
                self.repairing =
                    Some(Repairing { waiting: ranges, under_way, total, failed: None, report, answer });
            }
            Order::Point { answer } => {
                self.create_point(LABEL.into(), Box::new(move |made| drop(answer.send(made))));
            }
            Order::Look => {
                self.finish_retained(true);
                self.look_at_ladder();
            }
        }
    }

    pub(super) fn fail_repair(&mut self, error: Error) {
        if let Some(repairing) = &mut self.repairing {
            repairing.failed.get_or_insert(error);
        }
    }

    /// Goes on with what a repair has written anew.
    pub(super) fn care_for_repair(&mut self) {
        let Some(mut repairing) = self.repairing.take() else { return };
        match self.go_on_repairing(&mut repairing) {
            Ok(false) => self.repairing = Some(repairing),
            Ok(true) => drop(repairing.answer.send(Ok(()))),
            Err(error) => {
                for slot in &repairing.under_way {
                    // What is queued already does no harm.
                    if let Some(disk) = self.disks.get_mut(slot).filter(|disk| disk.latched.is_none()) {
                        disk.renewal = None;
                    }
                }
                drop(repairing.answer.send(Err(error)));
            }
        }
    }

    /// Whether all is done.
    fn go_on_repairing(&mut self, repairing: &mut Repairing) -> Result<bool> {
        if let Some(error) = repairing.failed.take() {
            return Err(error.within("what the newest recovery point lacks cannot be read from its disk"));
        }
        if self.stopping {
            return Err(Error::new(ErrorKind::Shutdown, "the group is stopping"));
        }
        // No point could be made of it.
        self.latched_error().map_or(Ok(()), Err)?;
        if !self.serving {
            return Ok(false);
        }
        let slots: Vec<_> = repairing.waiting.keys().chain(&repairing.under_way).copied().collect();
        for slot in slots {
            // A disk that leaves is in no later point.
            let Some(disk) = self.disks.get(&slot) else {
                repairing.waiting.remove(&slot);
                repairing.under_way.remove(&slot);
                continue;
            };
            let is_given_up = repairing.renews(slot) && disk.renewal.is_none();
            if disk.latched.is_some() || is_given_up {
                let name = &disk.record.name;
                let text = format!(
                    "disk {name} is latched, and cannot be written to: 'group resume' first, then repair again"
                );
                return Err(Error::new(ErrorKind::Latched, text));
            }
            if disk.renewal.is_none()
                && !self.resizes(slot)
                && let Some(ranges) = repairing.waiting.remove(&slot)
            {
                repairing.under_way.insert(slot);
                self.renew(slot, ranges, true);
            }
        }
        let renewals = repairing.under_way.iter().filter_map(|slot| self.disks[slot].renewal.as_ref());
        let unread = renewals.map(|renewal| renewal.unread()).sum::<u64>()
            + repairing.waiting.values().map(Ranges::sectors).sum::<u64>();
        // A disk may have got smaller.
        let done = repairing.total.saturating_sub(unread);
        (repairing.report)(done * SECTOR_BYTES, repairing.total * SECTOR_BYTES)?;
        Ok(repairing.waiting.is_empty() && repairing.under_way.is_empty())
    }
}

/// A repair under way.
struct Task {
    vault: Rc<Vault>,
    mailbox: Mailbox,
}

impl Task {
    async fn run(&self, repair: Repair) -> Result<Repaired> {
        let Repair { mut findings, is_agreed, report } = repair;
        let mut plan = self.vault.plan_repair(&mut findings).await?;
        let mut repaired = Repaired {
            going: plan.going.clone(),
            renewed_bytes: plan.renewed_bytes(),
            point: None,
            left: Vec::new(),
        };
        if !is_agreed || findings.is_empty() {
            return Ok(repaired);
        }
        self.vault.check_unkept(&plan.going)?;
        for _ in 0..ROUNDS_MAX {
            if plan.renewed.is_empty() {
                break;
            }
            repaired.point = Some(self.renew(&plan, &report).await?);
            // Retention goes on: the base may have taken up what hides the damage, and be sound.
            findings = self.vault.still_damaged(&findings).await?;
            plan = self.vault.plan_repair(&mut findings).await?;
        }
        repaired.going = plan.going;
        let proceed = || report(repaired.renewed_bytes, repaired.renewed_bytes);
        let retired = self.vault.retire_harmed(&findings, proceed).await;
        // Whatever came of it, some of them may have gone.
        self.mailbox.borrow_mut().push_back(Done::Ordered(Order::Look));
        retired?;
        // While nobody writes to a base.
        let _turn = self.vault.retention_turn().await;
        repaired.left = self.vault.still_damaged(&findings).await?;
        Ok(repaired)
    }

    /// Has what the newest point shows of the damage written anew, and a point made that has it.
    async fn renew(&self, plan: &RepairPlan, report: &Report) -> Result<PointRecord> {
        let (ranges, report) = (plan.renewed.clone(), Rc::clone(report));
        self.order(|answer| Order::Renew { ranges, report, answer }).await?;
        self.order(|answer| Order::Point { answer }).await
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<Result<T>>) -> Order) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.borrow_mut().push_back(Done::Ordered(order(answer)));
        answered.await.map_err(|_| Error::new(ErrorKind::Shutdown, "the group was closed meanwhile"))?
    }
}
