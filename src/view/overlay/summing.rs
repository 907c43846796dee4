//! Sums for an overlay of before there were any, made while it is served: whatever is there is believed, once.
//!
//! They are kept under another name until everything has one, so that a death before that begins again. What clients write meanwhile has its sums
//! at once.

use std::rc::{Rc, Weak};

use super::{Overlay, pieces};
use crate::error::{ErrorKind, Result};
use crate::planted::Planted;
use crate::runtime::Runtime;
use crate::storage::File;
use crate::units::{DiskId, SectorRange};
use crate::view::overlay_sums::OverlaySums;
use crate::view::presence::Presence;

/// Makes sums for an overlay without; none where they cannot be made: then it is served unchecked.
pub(super) async fn begin(
    runtime: &Rc<Runtime>,
    file: &File,
    what: (DiskId, u64),
    present: &Presence,
    planted: Planted,
) -> Option<OverlaySums> {
    let overlay = file.path().display();
    match OverlaySums::begin(runtime, file, what, present.clone(), planted).await {
        Ok(sums) => {
            tracing::warn!(
                %overlay,
                "an overlay of a test failover has no sums, being of before there were any: it gets them now, by what it holds"
            );
            Some(sums)
        }
        Err(error) => {
            tracing::warn!(
                %overlay, %error,
                "an overlay of a test failover has no sums, and none can be made: what is read of it is not checked"
            );
            None
        }
    }
}

impl Overlay {
    /// Gives it sums in the background, if it has none.
    pub fn give_sums(self: &Rc<Overlay>) {
        let whole = SectorRange::new(0, self.sectors);
        let parts = self.sums.as_ref().map(|sums| sums.unsummed(whole));
        let Some(parts) = parts.filter(|_| self.lacks_sums()) else { return };
        // Whoever ends the test failover does not wait for this.
        let overlay = Rc::downgrade(self);
        self.runtime().spawn(async move {
            match adopt_all(&overlay, parts).await {
                Ok(true) => {
                    let path = overlay.upgrade().map(|overlay| overlay.file.path().to_owned());
                    tracing::info!(overlay = ?path, "an overlay of before there were sums has them now");
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "an overlay could not be given sums: the next opening tries again");
                }
            }
        });
    }

    /// Whether its sums are not finished.
    fn lacks_sums(&self) -> bool {
        self.sums.as_ref().is_some_and(OverlaySums::is_unfinished)
    }

    async fn adopt(&self, sums: &OverlaySums, piece: SectorRange) -> Result<()> {
        let _turn = self.turns.take(self.units_around(piece)).await;
        // Some of it may have been written meanwhile, or given back.
        let mut left = sums.unsummed(piece);
        while let Some(part) = left.pop() {
            match sums.adopt(part).await {
                Err(error) if error.kind() == ErrorKind::Io && part.sectors() > 1 => {
                    let middle = part.start + part.sectors() / 2;
                    left.extend([SectorRange::new(part.start, middle), SectorRange::new(middle, part.end)]);
                }
                Err(error) if error.kind() == ErrorKind::Io => {
                    tracing::warn!(%error, "a sector of an overlay cannot be read, and gets no sum");
                    sums.give_up(part);
                }
                adopted => adopted?,
            }
        }
        if sums.wants_sync() { self.flush().await } else { Ok(()) }
    }
}

/// Whether it came to its end: not if the test failover was ended meanwhile.
async fn adopt_all(overlay: &Weak<Overlay>, parts: Vec<SectorRange>) -> Result<bool> {
    for piece in parts.into_iter().flat_map(pieces) {
        let Some(overlay) = overlay.upgrade() else { return Ok(false) };
        let Some(sums) = &overlay.sums else { return Ok(false) };
        overlay.adopt(sums, piece).await?;
    }
    let Some(overlay) = overlay.upgrade() else { return Ok(false) };
    overlay.flush().await?;
    if let Some(sums) = &overlay.sums {
        sums.finish().await?;
    }
    Ok(true)
}
