//! What of a disk is lost: the sectors whose records rotted in the journal and that nothing newer hides.
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
    let stood = |lost: &Lost| file_name(SegmentIndex(lost.stood.segment));
    let name = |lost: &Lost| format!("{} ({} at byte {})", lost.range, stood(lost), lost.stood.byte_offset());
    let first = lost.first()?;
    let more = match lost.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let named = lost.iter().take(NAMED_MAX).map(name).collect::<Vec<_>>().join(", ");
    let text = format!(
        "disk {disk} lost writes to sectors {named}{more}: their records rotted in the journal; accept it by \
         `group resume --accept-loss`, or remove the disk, whose points stay"
    );
    let path = journal.join(stood(first));
    Some(Error::corrupt(text).at_path(&path).at_offset(first.stood.byte_offset()))
}
