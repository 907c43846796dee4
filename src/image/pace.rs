//! Lets destage work while nobody else needs the device, and holds it while somebody does; and has it write only where a vault does not
//! need what is left of the file system.
//!
//! The owner opens and closes the gate; work waits at it before each piece, so that guests get the device back within
//! one piece's time.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use futures::channel::oneshot;

use crate::error::Result;
use crate::image::pieces::SharedPieces;
use crate::space_gate::{Passage, SpaceGate};

/// A gate that work passes piece by piece.
#[derive(Debug, Default)]
pub struct Pace {
    is_held: Cell<bool>,
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
    /// That of the images' file system.
    space: RefCell<Arc<SpaceGate>>,
    /// What destage keeps in memory.
    pieces: Arc<SharedPieces>,
}

impl Pace {
    /// An open gate, for writes to a file system that `space` guards, of pieces of what all groups share.
    pub fn new(space: Arc<SpaceGate>, pieces: Arc<SharedPieces>) -> Pace {
        Pace { space: RefCell::new(space), pieces, ..Pace::default() }
    }

    /// What the work may keep in memory.
    pub(super) fn pieces(&self) -> &Arc<SharedPieces> {
        &self.pieces
    }

    /// Has `space` guard the file system from now on.
    pub fn guard(&self, space: Arc<SpaceGate>) {
        self.space.replace(space);
    }

    /// Opens or closes the gate.
    pub fn hold(&self, held: bool) {
        self.is_held.set(held);
        if !held {
            for waiting in self.waiting.take() {
                // Whoever waited may have been dropped.
                let _ = waiting.send(());
            }
        }
    }

    /// Whether the gate is closed.
    pub fn is_held(&self) -> bool {
        self.is_held.get()
    }

    /// Waits until the gate is open.
    pub async fn turn(&self) {
        while self.is_held() {
            let (open, opened) = oneshot::channel();
            self.waiting.borrow_mut().push(open);
            // Cancelled only when the gate is gone, and with it the reason to wait.
            let _ = opened.await;
        }
    }

    /// The same for an operation that may take space, which is done when what is returned is dropped. Fails with `NoSpace` while a vault
    /// needs it.
    pub async fn pass(&self) -> Result<Passage> {
        self.turn().await;
        self.space.borrow().pass()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn work_passes_only_while_the_gate_is_open() {
        let pace = Pace::default();
        assert!(pace.turn().now_or_never().is_some());
        pace.hold(true);
        let mut waiting = Box::pin(pace.turn());
        assert!(waiting.as_mut().now_or_never().is_none());
        pace.hold(false);
        assert!(waiting.as_mut().now_or_never().is_some());
    }
}
