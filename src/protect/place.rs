//! Where the bytes of a disk are: in a layer, in a side file, or in the image.

use std::rc::Rc;

use crate::image::side::{SideFile, SidePiece};
use crate::journal::segments::Source;
use crate::units::SectorRange;

/// Where the newest bytes of a range are.
#[derive(Clone, Debug)]
pub enum Place {
    /// Where a layer says.
    Layer(Source),
    /// In a side file, of a latched disk only.
    Side(SidePiece),
    /// In the image.
    Image,
}

/// Looks what no layer holds up in the side files, which are given oldest first; what they lack is in the image.
pub fn places(
    resolved: Vec<(SectorRange, Option<Source>)>,
    sides: &[Rc<SideFile>],
) -> Vec<(SectorRange, Place)> {
    let mut places = Vec::with_capacity(resolved.len());
    for (range, source) in resolved {
        match source {
            Some(source) => places.push((range, Place::Layer(source))),
            None => look_up(range, sides, &mut places),
        }
    }
    places
}

fn look_up(range: SectorRange, sides: &[Rc<SideFile>], places: &mut Vec<(SectorRange, Place)>) {
    let Some((newest, older)) = sides.split_last() else { return places.push((range, Place::Image)) };
    for (part, location) in newest.lookup(range) {
        match location {
            Some(location) => places.push((part, Place::Side(newest.piece(location, part.sectors())))),
            None => look_up(part, older, places),
        }
    }
}
