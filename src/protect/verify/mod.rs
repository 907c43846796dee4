//! Compares what a group serves (image, side files, journal) with what its vault has of the newest point, byte by byte, while guests
//! go on writing. Repairs nothing but the places of an image's sums ([`places`]). What it can and cannot find: `docs/verify.md`.
//!
//! ```text
//!  point P ─▶ view ─────────────▶ bytes ─┐
//!  group   ─▶ live read ─▶ bytes ────────┴▶ differ? ─▶ minus what was written after P ─▶ finding
//!                          t1 … t2                      asked for at t3 > t2
//! ```
//!
//! Invariant: no finding without damage. A live read that began when P was published shows, of each sector, P's bytes or those of
//! a record after P's marker that was visible when the read ended. All those are known to the group when it is asked
//! afterwards ([`since`]); where the bytes differ and none of them wrote, something changed them that was no guest.

mod bytes;
mod findings;
mod live;
mod places;
mod since;
mod task;

pub use findings::{Difference, GroupReport, LiveSide, What};
pub use live::LiveRead;
pub(super) use live::Question;

use std::rc::Rc;

use crate::bookmark::Bookmark;
use crate::error::Result;
use crate::protect::group::{Callback, Group};
use crate::throttle::Pacing;

/// Bytes that are compared at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Told the bytes compared and their sum; its error ends the verification.
pub type Report = Rc<dyn Fn(u64, u64) -> Result<()>>;

/// How to go about it.
#[derive(Clone)]
pub struct Verification {
    /// At which rate bytes are read.
    pub pacing: Pacing,
    /// Bytes that are compared at a time.
    pub piece_bytes: u64,
    /// Who is told how far it is.
    pub report: Report,
    /// Where it begins, and how far everything was the same. What is before that is not looked at.
    pub bookmark: Bookmark,
}

impl Verification {
    /// One at some rate.
    pub fn new(pacing: Pacing, report: Report) -> Verification {
        Verification { pacing, piece_bytes: PIECE_BYTES, report, bookmark: Bookmark::default() }
    }
}

impl Group {
    /// Compares all disks with the newest point; `callback` gets what was found. Guests go on.
    pub fn verify(&mut self, verification: Verification, callback: Callback<GroupReport>) {
        let asker = live::Asker::new(Rc::clone(&self.mailbox));
        let (runtime, vault) = (Rc::clone(&self.runtime), Rc::clone(&self.settings.vault));
        let planted = self.settings.plan.planted;
        self.tasks.spawn(async move {
            callback(task::run(runtime, vault, asker, verification, planted).await);
        });
    }

    /// Answers what a verification asks.
    pub(super) fn answer_question(&mut self, question: Question) {
        match question {
            // Whoever asked may have gone.
            Question::Live { disk, range, answer } => drop(answer.send(self.live_read(disk, range))),
            Question::Since { slot, range, marker, answer } => {
                drop(answer.send(since::written_since(self, slot, range, marker)));
            }
        }
    }
}
