//! Recovery points that somebody keeps, in words: who, and how they are let go.
//!
//! What may go is decided by the manifest's state and by whoever retires points; this only names what stands in the way.

use super::{State, Vault};
use crate::error::{Error, Result};
use crate::format::record::{PinKind, PinRecord, PointRecord};

/// `ID of TIME (LABEL)`
fn named(point: &PointRecord) -> String {
    match &point.label[..] {
        "" => format!("{} of {}", point.id, point.wall),
        label => format!("{} of {} ({label})", point.id, point.wall),
    }
}

fn kept_by(point: &PointRecord, pin: &PinRecord) -> String {
    let name = named(point);
    match pin.kind {
        PinKind::Hold => format!("{name} is held: 'point release' it"),
        PinKind::Test { test, .. } => format!("{name} is used by test-{}: 'failover cleanup' it", test.0),
    }
}

/// Who keeps points of a group, for what `counts` names; one line each, by point.
fn pinned(state: &State, counts: impl Fn(PinKind) -> bool) -> Vec<String> {
    let pins_of = |point: &PointRecord| {
        let id = point.id;
        state.pins().iter().filter(move |pin| pin.point == id)
    };
    let points = state.points().iter();
    let pinned = points.flat_map(|point| pins_of(point).map(move |pin| (point, pin)));
    pinned.filter(|(_, pin)| counts(pin.kind)).map(|(point, pin)| kept_by(point, pin)).collect()
}

impl Vault {
    /// Refused while somebody keeps one of `points`, all of which are named.
    pub fn check_unkept(&self, points: &[PointRecord]) -> Result<()> {
        let state = self.manifest.state();
        let mut kept = Vec::new();
        for point in points {
            let before = kept.len();
            kept.extend(
                state.pins().iter().filter(|pin| pin.point == point.id).map(|pin| kept_by(point, pin)),
            );
            if self.leases.holds_point(point.marker) && kept.len() == before {
                kept.push(format!("{} is being read: wait for that", named(point)));
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
        let text = format!(
            "these recovery points are damaged and cannot go yet: {}; then repair again",
            kept.join("; ")
        );
        Err(Error::invalid(text))
    }

    /// Refused while the group cannot be removed since somebody keeps points of it, for what `counts` names; all are named.
    pub fn check_removable(&self, counts: impl Fn(PinKind) -> bool) -> Result<()> {
        let kept = pinned(&self.manifest.state(), counts);
        if kept.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the group cannot be removed, since recovery points of it are kept: {}; then remove it again",
            kept.join("; ")
        )))
    }
}
