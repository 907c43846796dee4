//! Reading a segment at an opening: its head, or all of it as far as its device gives that.
//!
//! A read of a whole segment that is refused is tried again in halves, down to a page, for some seconds: what then is missing is
//! named page by page, and reads as zeros. What that means is for the opening to say: of a payload whose frame's header is there
//! it is known what is missing, of anything else it is not.

use std::cell::RefCell;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::frame::{FrameFault, UntrustedHeader, VERSION};
use crate::journal::patience::{READ_ATTEMPTS, READ_DELAY, is_refusal};
use crate::journal::segments::Segment;
use crate::runtime::Runtime;
use crate::storage::Buffer;
use crate::units::{PAGE_BYTES, to_usize};

const PAGE: u64 = PAGE_BYTES as u64;
/// A device that gives less than all but so many pages of a segment has another trouble than a bad spot.
const UNREAD_PAGES_MAX: usize = 256;

/// Pages of a segment that its device does not give, and what it says.
#[derive(Debug)]
pub(super) struct Unread {
    pages: Vec<u64>,
    error: Error,
}

impl Unread {
    /// Byte offsets of the pages.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.iter().copied()
    }

    /// Why the journal cannot be opened without them.
    pub(super) fn into_error(self) -> Error {
        let text = "a part of the journal cannot be read of which nothing says what it holds: mend the device, then `group resume`";
        self.error.within(text)
    }
}

/// The header at a segment's start, whatever follows it.
pub(super) async fn read_head(runtime: &Runtime, segment: &Segment) -> Result<Buffer> {
    let page = PAGE_BYTES.min(to_usize(segment.bytes));
    let head = runtime.read(&segment.file, 0, page).await?;
    refuse_newer_version(&head, segment)?;
    match rest_of_head(&head, segment.bytes) {
        Some(bytes) => runtime.read(&segment.file, 0, bytes).await,
        None => Ok(head),
    }
}

/// How long the header is that begins with `page`, if the page is not all of it and the segment takes it.
fn rest_of_head(page: &[u8], segment_bytes: u64) -> Option<usize> {
    let bytes = UntrustedHeader::read(page).ok()?.header_bytes();
    (bytes > page.len() && bytes as u64 <= segment_bytes).then_some(bytes)
}

/// Reads all of a segment, into a buffer of one that was scanned if there is one of its length; and what of it cannot be read,
/// if some of it cannot.
pub(super) async fn read_segment(
    runtime: &Runtime,
    segment: &Segment,
    scanned: &RefCell<Vec<Buffer>>,
) -> Result<(Buffer, Option<Unread>)> {
    let len = to_usize(segment.bytes);
    let spare = scanned.borrow_mut().pop().filter(|buffer: &Buffer| buffer.len() == len);
    let buffer = spare.unwrap_or_else(|| Buffer::recycled(len));
    match runtime.read_into(&segment.file, 0, buffer).await {
        Err(error) if is_refusal(&error) => read_in_parts(runtime, segment, error).await,
        result => result.map(|buffer| (buffer, None)),
    }
}

/// Reads what can be read of a segment that cannot be read in one go.
async fn read_in_parts(
    runtime: &Runtime,
    segment: &Segment,
    mut error: Error,
) -> Result<(Buffer, Option<Unread>)> {
    let mut bytes = Buffer::zeroed(to_usize(segment.bytes));
    let mut pages = Vec::new();
    let mut wanted = halves(&(0..segment.bytes));
    for attempt in 1..=READ_ATTEMPTS {
        while let Some(range) = wanted.pop() {
            let part = to_usize(range.start)..to_usize(range.end);
            match runtime.read(&segment.file, range.start, part.len()).await {
                Ok(read) => bytes[part].copy_from_slice(&read),
                Err(refused) if !is_refusal(&refused) => return Err(refused),
                Err(refused) if range.end - range.start > PAGE => {
                    wanted.extend(halves(&range));
                    error = refused;
                }
                Err(refused) => {
                    pages.push(range.start);
                    error = refused;
                }
            }
            if pages.len() > UNREAD_PAGES_MAX {
                return Err(error);
            }
        }
        if pages.is_empty() {
            return Ok((bytes, None));
        }
        if attempt < READ_ATTEMPTS {
            runtime.sleep(READ_DELAY).await;
            wanted.extend(pages.drain(..).map(|page| page..segment.bytes.min(page + PAGE)));
        }
    }
    tracing::error!(%error, pages = pages.len(), "a part of the journal cannot be read");
    Ok((bytes, Some(Unread { pages, error })))
}

/// Two parts of a range of more than a page, cut between two pages; the later one first.
fn halves(range: &Range<u64>) -> Vec<Range<u64>> {
    let pages = (range.end - range.start).div_ceil(PAGE);
    let middle = range.start + pages.div_ceil(2) * PAGE;
    [middle.min(range.end)..range.end, range.start..middle.min(range.end)]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect()
}

fn refuse_newer_version(page: &[u8], segment: &Segment) -> Result<()> {
    match UntrustedHeader::read(page) {
        Err(FrameFault::Version(version)) => {
            Err(Error::unknown_version("the journal", version, VERSION).at_path(segment.file.path()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::scan::tests::{frame, put};

    #[test]
    fn of_a_head_that_is_longer_than_its_page_all_is_read() {
        let page = |records| {
            let mut bytes = vec![0; 4 * PAGE_BYTES];
            put(&mut bytes, &frame(1, 0, 0, records));
            bytes.truncate(PAGE_BYTES);
            bytes
        };
        assert_eq!(rest_of_head(&page(300), 1 << 20), Some(3 * PAGE_BYTES));
        assert_eq!(rest_of_head(&page(300), 3 * PAGE_BYTES as u64), Some(3 * PAGE_BYTES));
        assert_eq!(rest_of_head(&page(300), 3 * PAGE_BYTES as u64 - 512), None, "cut off");
        assert_eq!(rest_of_head(&page(1), 1 << 20), None);
        assert_eq!(rest_of_head(&[0; PAGE_BYTES], 1 << 20), None);
    }

    #[test]
    fn halves_meet_between_two_pages() {
        let page = PAGE;
        for (range, expected) in [
            (0..8 * page, vec![4 * page..8 * page, 0..4 * page]),
            (page..4 * page, vec![3 * page..4 * page, page..3 * page]),
            (0..page + 512, vec![page..page + 512, 0..page]),
        ] {
            assert_eq!(halves(&range), expected);
        }
    }
}
