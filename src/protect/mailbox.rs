//! What tasks leave behind for their group, and who takes it up.
//!
//! A task owns its inputs and never touches the group: it leaves its result here, and the owner hands it, in the order in which results
//! came, to the part of the group that began the task.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use futures::channel::oneshot;

use crate::error::{ErrorKind, Result};
use crate::format::record::DiskRecord;
use crate::image::Image;
use crate::image::attach::Reattached;
use crate::image::destage::DiskResult;
use crate::image::side::Written;
use crate::journal::segments::Segment;
use crate::protect::allocation::AllocationQuestion;
use crate::protect::group::{Callback, Group};
use crate::protect::indexing::StoredRun;
use crate::protect::membership::Joined;
use crate::protect::publisher::Published;
use crate::protect::renewal::Held;
use crate::protect::repair::Order;
use crate::protect::resizing::Resized;
use crate::protect::shrinking::PointWait;
use crate::protect::summing::Unsummed;
use crate::protect::verify::Question;
use crate::units::{DiskId, DiskSlot, Lsn, SectorRange};

/// What a task left behind.
pub(super) enum Done {
    /// A window of a question for the allocation of a range was looked at, or not.
    Allocation(AllocationQuestion, Result<()>),
    /// A destage batch ended.
    Destaged { through: Lsn, disks: Vec<DiskResult> },
    /// A side file of a latched disk was written, or not.
    SideFile(DiskSlot, DiskId, Result<Written>),
    /// The image of a latched disk has taken what it lacked, or not.
    Mended(DiskSlot, Result<Image>),
    /// The image of a disk has taken all but what is lost, whose loss is accepted, or not.
    Taken(DiskSlot, Result<Image>),
    /// Sectors were read that are to be written anew, or not.
    Renewed(DiskSlot, SectorRange, Result<Held>),
    /// The files of a detached disk were attached, or not.
    Reattached(DiskSlot, Result<Reattached>),
    /// A segment was created, or not.
    Segment(Result<Segment>),
    /// An index run was written, or not.
    Indexed(Result<StoredRun>),
    /// The publisher finished a job on an interval.
    Published(Result<Published>),
    /// The vault did not take an interval; the publisher tries again. If it did not fit, so many bytes were free.
    PublishDelayed { kind: ErrorKind, did_not_fit: Option<u64> },
    /// A disk joined, or not.
    Joined(Result<Joined>, Callback<DiskRecord>),
    /// A disk left, or not.
    Left(DiskId, DiskSlot, Result<()>, Callback<()>),
    /// A base is as long as its disk is about to be, or not.
    Lengthened(Result<()>),
    /// The image of a disk was prepared for another size, or not; then whether it was set back.
    ResizePrepared(Image, Result<()>, Result<()>),
    /// A resize was decided, or not.
    Resized(Resized),
    /// The policy was changed, or not; with the interval between points, if that was to change.
    Policy(Option<Duration>, Result<()>, Callback<()>),
    /// The group was paused, or goes on, or not.
    Paused(bool, Result<()>, Callback<()>),
    /// Retention took a step, or came to rest.
    Retained { changed: bool },
    /// A verification asks something.
    Asked(Question),
    /// Whoever gives images sums asks which lacks some; the disk after which to look.
    AskedForUnsummed(Option<DiskSlot>, oneshot::Sender<Unsummed>),
    /// None does any more.
    Summed,
    /// A repair wants something done.
    Ordered(Order),
}

/// The group's mailbox.
pub(super) type Mailbox = Rc<RefCell<VecDeque<Done>>>;

impl Group {
    pub(super) fn apply_done(&mut self) {
        loop {
            let done = self.mailbox.borrow_mut().pop_front();
            match done {
                None => return,
                Some(Done::Allocation(question, described)) => self.take_window(question, described),
                Some(Done::Destaged { through, disks }) => self.finish_destage(through, disks),
                Some(Done::SideFile(slot, id, result)) => self.finish_side_file(slot, id, result),
                Some(Done::Mended(slot, result)) => self.finish_mend(slot, result),
                Some(Done::Taken(slot, result)) => self.finish_taking(slot, result),
                Some(Done::Renewed(slot, piece, result)) => self.finish_piece(slot, piece, result),
                Some(Done::Reattached(slot, result)) => self.finish_reattach(slot, result),
                Some(Done::Segment(Ok(segment))) => self.segment_created(segment),
                Some(Done::Segment(Err(error))) => self.segment_failed(&error),
                Some(Done::Indexed(result)) => self.finish_indexing(result),
                Some(Done::Published(result)) => self.finish_publish(result),
                Some(Done::PublishDelayed { kind, did_not_fit }) => {
                    self.publish_retry.failed(self.runtime.now(), kind);
                    let attempts = self.retention.point_wait.get().attempts + 1;
                    self.retention.point_wait.set(PointWait { attempts, exceeds: did_not_fit });
                }
                Some(Done::Joined(result, callback)) => self.finish_join(result, callback),
                Some(Done::Left(id, slot, result, callback)) => self.finish_leave(id, slot, result, callback),
                Some(Done::Lengthened(result)) => self.finish_lengthening(result),
                Some(Done::ResizePrepared(image, result, settled)) => {
                    self.finish_preparing(image, result, settled)
                }
                Some(Done::Resized(resized)) => self.finish_resize(resized),
                Some(Done::Policy(interval, result, callback)) => {
                    self.finish_policy(interval, result, callback)
                }
                Some(Done::Paused(paused, result, callback)) => self.finish_pause(paused, result, callback),
                Some(Done::Retained { changed }) => self.finish_retained(changed),
                Some(Done::Asked(question)) => self.answer_question(question),
                // Whoever asked may have gone.
                Some(Done::AskedForUnsummed(after, answer)) => drop(answer.send(self.unsummed(after))),
                Some(Done::Summed) => self.is_summing = false,
                Some(Done::Ordered(order)) => self.take_order(order),
            }
        }
    }
}
