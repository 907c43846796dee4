//! The length of an image, and how it changes.
//!
//! ```text
//!  growth:  checkpoint says "resizing to" ─▶ file is longer ─▶ (manifest step) ─▶ checkpoint says the new length
//!  shrink:  checkpoint says "resizing to" ─▶ (manifest step) ─▶ file is shorter ─▶ checkpoint says the new length
//! ```
//!
//! The manifest decides. Whatever a death leaves in between, checkpoint and file have one of two lengths that the
//! checkpoint names, and opening gives the file the one that the manifest says; any other is somebody else's doing, and
//! refused. What a file gains is zeros; what it loses is gone. Nothing else may work on the image meanwhile.

use std::rc::Rc;

use crate::error::{Error, Result};
use crate::format::checkpoint::Checkpoint;
use crate::image::Image;
use crate::runtime::Runtime;
use crate::units::SectorCount;

impl Image {
    /// Its length; what the journal holds beyond it is of a growth that did not come to pass, or from before a shrink.
    pub fn sectors(&self) -> SectorCount {
        self.checkpoint.sectors
    }

    /// Prepares a resize that the manifest has yet to decide. To be [settled](Image::settle_size) at the length that it
    /// decides on; also after an error.
    pub async fn begin_resize(&mut self, runtime: &Rc<Runtime>, to: SectorCount) -> Result<()> {
        self.confirm(runtime).await?;
        let sequence = self.checkpoint.sequence + 1;
        self.put(runtime, Checkpoint { sequence, resizing_to: Some(to), ..self.checkpoint }).await?;
        self.sums.begin();
        if to > self.checkpoint.sectors {
            // Before it is decided: a file system that takes no file so long has to say so now.
            runtime.set_length(&self.file, to.bytes()).await?;
            runtime.sync(&self.file).await?;
        }
        Ok(())
    }

    /// Ends a resize that was begun, if one was: the disk has that size.
    pub async fn settle_size(&mut self, runtime: &Rc<Runtime>, size: SectorCount) -> Result<()> {
        if self.checkpoint.resizing_to.is_none() {
            return Ok(());
        }
        self.confirm(runtime).await?;
        // What a shrink leaves there of sums is written anew with the zeros that a growth begins with.
        self.sums.lengthen(size).await?;
        self.sums.begin();
        // Also where it has that length: who extended it may have died before the sync.
        runtime.set_length(&self.file, size.bytes()).await?;
        runtime.sync(&self.file).await?;
        let sequence = self.checkpoint.sequence + 1;
        let settled = Checkpoint { sequence, sectors: size, resizing_to: None, ..self.checkpoint };
        self.put(runtime, settled).await
    }

    /// Whether checkpoint and file are those of a disk of `size`, or on their way to it.
    pub(super) async fn check_length(&self, runtime: &Rc<Runtime>, size: SectorCount) -> Result<()> {
        let Checkpoint { sectors, resizing_to, .. } = self.checkpoint;
        let is_possible =
            |bytes: u64| bytes == sectors.bytes() || resizing_to.is_some_and(|other| bytes == other.bytes());
        let length = runtime.length(&self.file).await?;
        if !is_possible(length) {
            let text = format!("the image has {length} bytes, the disk {}: put its file back", size.bytes());
            return Err(Error::corrupt(text).at_path(self.file.path()));
        }
        if !is_possible(size.bytes()) {
            let text = format!(
                "the checkpoint is of an image of {} bytes, the disk has {}: restore the file with its image",
                sectors.bytes(),
                size.bytes()
            );
            return Err(Error::corrupt(text).at_path(&self.checkpoint_path));
        }
        Ok(())
    }
}
