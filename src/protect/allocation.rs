//! Which parts of a disk are allocated: what layers and side files say, and below them the image's own holes.

use std::rc::Rc;

use crate::block::AllocationRun;
use crate::error::Result;
use crate::image::side::SidePiece;
use crate::journal::segments::Source;
use crate::protect::place::Place;
use crate::runtime::Runtime;
use crate::storage::File;
use crate::units::SectorRange;

/// The runs of `parts`, where `image` is the disk's; neighbours of one state are joined.
pub async fn describe(
    runtime: &Rc<Runtime>,
    image: &File,
    parts: &[(SectorRange, Place)],
) -> Result<Vec<AllocationRun>> {
    let mut runs = Runs::default();
    for (range, place) in parts {
        match *place {
            Place::Layer(Source::Journal { .. })
            | Place::Side(SidePiece::Data(_) | SidePiece::Unreadable) => runs.push(range.bytes(), true),
            Place::Layer(Source::Zero { allocated }) | Place::Side(SidePiece::Zero { allocated }) => {
                runs.push(range.bytes(), allocated);
            }
            Place::Image => {
                let bytes = range.byte_range();
                let mut at = bytes.start;
                for data in runtime.data_ranges(image, bytes.clone()).await? {
                    runs.push(data.start - at, false);
                    runs.push(data.end - data.start, true);
                    at = data.end;
                }
                runs.push(bytes.end - at, false);
            }
        }
    }
    Ok(runs.0)
}

#[derive(Default)]
struct Runs(Vec<AllocationRun>);

impl Runs {
    fn push(&mut self, bytes: u64, allocated: bool) {
        match self.0.last_mut() {
            _ if bytes == 0 => {}
            Some(last) if last.allocated == allocated => last.bytes += bytes,
            _ => self.0.push(AllocationRun { bytes, allocated }),
        }
    }
}
