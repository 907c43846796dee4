//! What a disk of a test failover is served from: a view of the point, with a throwaway overlay unless it is read-only.
//!
//! Not the place where clients are refused: they are told `EPERM` by their session. It refuses all the same, since a view
//! cannot be written to.

use std::path::Path;
use std::rc::Rc;

use crate::allocation::AllocationRuns;
use crate::block::{Refusal, Reply, Request, Response};
use crate::error::{Error, ErrorKind, Result};
use crate::units::DiskId;
use crate::view::{Overlay, Rot, View};

/// What a disk is served from.
#[derive(Clone)]
pub(super) enum Backing {
    /// What was written since, over the point.
    Overlay(Rc<Overlay>),
    /// The point and nothing else: there is no file of ours.
    View(Rc<View>, DiskId),
}

/// Whose bytes an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// The point's: other test failovers, restores and clones meet it as well, and a verification says how much it is.
    Point,
    /// What clients of this test failover wrote to it: nobody else has any of it, and it goes with the test failover.
    Overlay,
}

impl Backing {
    /// With the overlay at `path`, which is created if it is missing.
    pub(super) async fn with_overlay(path: &Path, view: &Rc<View>, disk: DiskId) -> Result<Backing> {
        let overlay = match Overlay::open(path, view, disk).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Overlay::create(path, view, disk).await?,
            opened => opened?,
        };
        let overlay = Rc::new(overlay);
        overlay.give_sums();
        Ok(Backing::Overlay(overlay))
    }

    /// Where bits of its sums had flipped that were written anew, and nobody was told yet.
    pub(super) fn take_rot(&self) -> Vec<Rot> {
        match self {
            Backing::Overlay(overlay) => overlay.take_rot(),
            Backing::View(..) => Vec::new(),
        }
    }

    /// Bytes written to it so far.
    pub(super) fn written_bytes(&self) -> u64 {
        match self {
            Backing::Overlay(overlay) => overlay.present_bytes(),
            Backing::View(..) => 0,
        }
    }

    fn whose(&self, error: &Error) -> Of {
        match self {
            Backing::Overlay(overlay) if overlay.is_own(error) => Of::Overlay,
            Backing::Overlay(_) | Backing::View(..) => Of::Point,
        }
    }

    /// Does what a client asks; `note` is told why it cannot be done, and of whose bytes that is to be said.
    pub(super) async fn answer(&self, request: Request, note: impl FnOnce(&Error, Of)) -> Reply {
        let result = match self {
            Backing::Overlay(overlay) => ask_overlay(overlay, request).await,
            Backing::View(view, disk) => match request {
                Request::Read { range } => view.read(*disk, range).await.map(Response::Data),
                Request::Allocation { range, runs_max } => {
                    let mut runs = AllocationRuns::at_most(runs_max);
                    view.describe(*disk, range, &mut runs)
                        .await
                        .map(|()| Response::Allocation(runs.into_runs()))
                }
                // Nothing is ever written, so all that was written is durable.
                Request::Flush => Ok(Response::Done),
                Request::Write { .. } | Request::Zero { .. } => return Err(Refusal::ReadOnly),
            },
        };
        result.map_err(|error| {
            note(&error, self.whose(&error));
            refusal(&error)
        })
    }
}

async fn ask_overlay(overlay: &Overlay, request: Request) -> Result<Response> {
    match request {
        Request::Read { range } => overlay.read(range).await.map(Response::Data),
        Request::Write { range, payload, durable } => {
            overlay.write(range, &payload, durable).await.map(|()| Response::Done)
        }
        Request::Zero { range, durable, keep_allocated } => {
            overlay.zero(range, durable, keep_allocated).await.map(|()| Response::Done)
        }
        Request::Flush => overlay.flush().await.map(|()| Response::Done),
        Request::Allocation { range, runs_max } => {
            overlay.allocation(range, runs_max).await.map(Response::Allocation)
        }
    }
}

fn refusal(error: &Error) -> Refusal {
    match error.kind() {
        ErrorKind::NoSpace => Refusal::NoSpace,
        ErrorKind::Invalid => Refusal::Invalid,
        ErrorKind::Shutdown => Refusal::Shutdown,
        _ => Refusal::Io,
    }
}
