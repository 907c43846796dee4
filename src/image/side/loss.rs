//! What of a disk is lost: the sectors whose records rotted in the journal, or could not be read while it kept them, and that
//! nothing newer hides.
//!
//! Invariant: a note counts until a later file holds its sectors; nothing else but a person's word does away with it.

use std::path::Path;
use std::rc::Rc;

use super::SideFile;
use crate::error::Error;
use crate::extent::Ranges;
use crate::journal::segments::{SegmentIndex, file_name};
use crate::journal::sift::Lost;

/// What `files`, oldest first, note as lost and no later one of them hides.
pub fn lost(files: &[Rc<SideFile>]) -> Vec<Lost> {
    let mut lost = Vec::new();
    for (index, file) in files.iter().enumerate() {
        for note in file.notes() {
            let mut left = Ranges::of([note.range]);
            for later in &files[index + 1..] {
                let hides = later.lookup(note.range).filter(|(_, location)| location.is_some());
                left = left.without(hides.map(|(range, _)| range));
            }
            lost.extend(left.as_slice().iter().map(|&range| Lost { range, ..note }));
        }
    }
    lost
}

/// How many lost ranges an error names.
const NAMED_MAX: usize = 8;

/// Why a disk cannot be mended whose side files note losses, of which the first names the file.
pub fn refusal(lost: &[Lost], disk: &str, journal: &Path) -> Option<Error> {
    let named = named(lost);
    let text = format!(
        "disk {disk} lost writes to sectors {named}: their records rotted in the journal, or could not be read until it \
         needed the room; a recovery point may still hold the sectors (`point list` names the points, `failover test` and `restore` \
         show one); accept the loss by `group resume --accept-loss`, or remove the disk, whose points stay"
    );
    Some(placed(Error::corrupt(text), lost.first()?, journal))
}

/// Why a disk cannot be mended of which the journal keeps records that its device does not give, of which the first names the
/// file.
pub fn withheld(lost: &[Lost], disk: &str, journal: &Path) -> Error {
    let named = named(lost);
    let text = format!(
        "writes to sectors {named} of disk {disk} cannot be read from the journal, which keeps them while it has room: mend \
         its device and run `group resume`, or give them up by `group resume --accept-loss`"
    );
    lost.iter().take(1).fold(Error::corrupt(text), |error, first| placed(error, first, journal))
}

fn segment_of(lost: &Lost) -> String {
    file_name(SegmentIndex(lost.stood.segment))
}

/// Sectors, and where their records stood.
fn named(lost: &[Lost]) -> String {
    let name =
        |lost: &Lost| format!("{} ({} at byte {})", lost.range, segment_of(lost), lost.stood.byte_offset());
    let named = lost.iter().take(NAMED_MAX).map(name).collect::<Vec<_>>().join(", ");
    match lost.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named}, and {more} more"),
    }
}

/// Adds where the record stood.
fn placed(error: Error, lost: &Lost, journal: &Path) -> Error {
    error.at_path(&journal.join(segment_of(lost))).at_offset(lost.stood.byte_offset())
}
