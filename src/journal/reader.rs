//! Reads record payloads back for destage and deltas: from the frame cache, or from the segment.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::error::Result;
use crate::journal::cache::FrameCache;
use crate::journal::segments::{Segment, SegmentIndex, Segments, byte_range};
use crate::runtime::Runtime;
use crate::storage::Slice;
use crate::units::{SECTOR_BYTES, to_usize};

/// Holds the segments that were in use when it was made: none of them is recycled while it lives.
#[derive(Clone)]
pub struct Reader {
    runtime: Rc<Runtime>,
    cache: Rc<RefCell<FrameCache>>,
    segments: Rc<HashMap<SegmentIndex, Rc<Segment>>>,
}

impl Reader {
    /// A reader of all that is in use now.
    pub fn new(runtime: Rc<Runtime>, cache: Rc<RefCell<FrameCache>>, segments: &Segments) -> Reader {
        let pinned = segments.live().map(|segment| (segment.index, Rc::clone(segment))).collect();
        Reader { runtime, cache, segments: Rc::new(pinned) }
    }

    /// The bytes of `sectors` sectors at `sector` of `segment`.
    pub async fn read(&self, segment: SegmentIndex, sector: u32, sectors: u64) -> Result<Slice> {
        let cached = self.cache.borrow().get(segment, sector, sectors);
        if let Some(slice) = cached {
            return Ok(slice);
        }
        let segment = self.segments.get(&segment).expect("a map names only segments that are in use");
        let start = byte_range(sector, sectors).start;
        let buffer = self.runtime.read(&segment.file, start, to_usize(sectors * SECTOR_BYTES)).await?;
        Ok(buffer.freeze())
    }
}
