//! Which parts of a disk are allocated: what layers and side files say, and below them the image's own holes.
//!
//! AllocationQuestions are answered one window at a time, and in turn: however fragmented a disk is, a turn of the group's looks at one window
//! only, and of each question no more is kept than what it will be told ([`crate::allocation`]).

use std::collections::VecDeque;
use std::rc::Rc;

use crate::allocation::{AllocationRun, AllocationRuns, Windows};
use crate::block::{Refusal, Reply, Request, Response, Ticket};
use crate::error::Result;
use crate::image::Image;
use crate::image::side::SidePiece;
use crate::journal::segments::Source;
use crate::protect::group::Group;
use crate::protect::mailbox::Done;
use crate::protect::place::Place;
use crate::runtime::Runtime;
use crate::units::{DiskSlot, SectorRange};

/// A client's question.
pub(super) struct AllocationQuestion {
    ticket: Ticket,
    slot: DiskSlot,
    windows: Windows,
    runs: AllocationRuns,
}

/// The questions that are not answered yet.
#[derive(Default)]
pub(super) struct AllocationQuestions {
    /// Whose next window is being looked at; the others wait.
    under_way: Option<Ticket>,
    waiting: VecDeque<AllocationQuestion>,
}

impl AllocationQuestions {
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_none() && self.waiting.is_empty()
    }

    /// Forgets all; tells whose they are.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = Ticket> {
        let AllocationQuestions { under_way, waiting } = std::mem::take(self);
        under_way.into_iter().chain(waiting.into_iter().map(|question| question.ticket))
    }
}

impl Group {
    pub(super) fn ask_allocation(
        &mut self,
        ticket: Ticket,
        slot: DiskSlot,
        range: SectorRange,
        runs_max: usize,
    ) {
        let (windows, runs) = (Windows::of(range, runs_max), AllocationRuns::at_most(runs_max));
        self.allocations.waiting.push_back(AllocationQuestion { ticket, slot, windows, runs });
        self.look_at_allocations();
    }

    /// Has the next window looked at.
    fn look_at_allocations(&mut self) {
        while self.allocations.under_way.is_none()
            && let Some(question) = self.allocations.waiting.pop_front()
        {
            let ticket = question.ticket;
            match self.begin_window(question) {
                Ok(()) => self.allocations.under_way = Some(ticket),
                Err(refusal) => self.replies.push((ticket, Err(refusal))),
            }
        }
    }

    /// The disk may have become another one since the last window.
    fn begin_window(&mut self, mut question: AllocationQuestion) -> std::result::Result<(), Refusal> {
        let window = question.windows.next_window().ok_or(Refusal::Invalid)?;
        let disk = self.disks.get(&question.slot).ok_or(Refusal::Shutdown)?;
        disk.check(&Request::Allocation { range: window, runs_max: 1 })?;
        let image = disk.attached().clone();
        let parts = self.places(question.slot, window);
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let runs_before = question.runs.len();
            let described = describe_into(&runtime, &image, &parts, &mut question.runs).await;
            question.windows.found(parts.len().max(question.runs.len() - runs_before));
            mailbox.borrow_mut().push_back(Done::Allocation(question, described));
        });
        Ok(())
    }

    /// A window was looked at: the next one, unless that was all.
    pub(super) fn take_window(&mut self, question: AllocationQuestion, described: Result<()>) {
        // Nobody waits for it any more: the group failed meanwhile.
        if self.allocations.under_way.take() != Some(question.ticket) {
            return self.look_at_allocations();
        }
        if described.is_ok() && !question.runs.is_full() && !question.windows.are_over() {
            self.allocations.waiting.push_back(question);
        } else {
            let reply: Reply = match described {
                Ok(()) => Ok(Response::Allocation(question.runs.into_runs())),
                Err(error) => {
                    self.note_failed_request(question.slot, &error);
                    Err(Refusal::Io)
                }
            };
            self.replies.push((question.ticket, reply));
        }
        self.look_at_allocations();
    }
}

/// The runs of `parts`, where `image` is the disk's; neighbours of one state are joined.
pub async fn describe(
    runtime: &Rc<Runtime>,
    image: &Image,
    parts: &[(SectorRange, Place)],
) -> Result<Vec<AllocationRun>> {
    let mut runs = AllocationRuns::at_most(usize::MAX);
    describe_into(runtime, image, parts, &mut runs).await?;
    Ok(runs.into_runs())
}

/// Adds the runs of `parts`, as far as they are wanted. The image is asked once, for all that lies between its first and its last part.
async fn describe_into(
    runtime: &Rc<Runtime>,
    image: &Image,
    parts: &[(SectorRange, Place)],
    runs: &mut AllocationRuns,
) -> Result<()> {
    let mut of_image =
        parts.iter().filter(|(_, place)| matches!(place, Place::Image)).map(|(range, _)| range);
    let first = of_image.next();
    let last = of_image.next_back().or(first);
    let data = match (first, last) {
        (Some(first), Some(last)) => {
            image.data_ranges(runtime, first.byte_offset()..last.byte_range().end).await?
        }
        _ => Vec::new(),
    };
    let mut next = 0;
    for (range, place) in parts {
        match *place {
            Place::Layer(Source::Journal { .. })
            | Place::Side(SidePiece::Data(_) | SidePiece::Unreadable) => runs.push(range.bytes(), true),
            Place::Layer(Source::Zero { allocated }) | Place::Side(SidePiece::Zero { allocated }) => {
                runs.push(range.bytes(), allocated);
            }
            Place::Image => {
                let bytes = range.byte_range();
                // One that ends in this part is behind the next one.
                let within = data[next..].iter().take_while(|data| data.start < bytes.end);
                runs.push_data(bytes.start, bytes.end, within.cloned());
                next += data[next..].iter().take_while(|data| data.end <= bytes.end).count();
            }
        }
        if runs.is_full() {
            break;
        }
    }
    Ok(())
}
