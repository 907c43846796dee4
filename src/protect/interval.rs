//! Intervals: what a group recorded between two markers, on its way to a recovery point.
//!
//! The interval keeps the layers that were frozen since the last marker, whether or not they still serve reads. A
//! marker closes it; an interval in which nothing was recorded makes no delta.

use std::rc::Rc;
use std::time::Duration;

use crate::format::marker::Marker;
use crate::journal::reader::Reader;
use crate::protect::layers::Layer;
use crate::units::{Lsn, MonotonicNanos};
use crate::vault::Moment;

/// The records since the last marker; of a group without recovery points nothing.
#[derive(Debug)]
pub struct OpenInterval {
    layers: Vec<Rc<Layer>>,
    dirty: bool,
    is_kept: bool,
}

/// An interval that a marker ended.
pub struct ClosedInterval {
    /// Its layers, oldest first.
    pub layers: Vec<Rc<Layer>>,
    /// The marker's number: everything up to it belongs to the point.
    pub marker_lsn: Lsn,
    /// The marker.
    pub marker: Marker,
    /// Where payloads are read; it pins their segments.
    pub reader: Reader,
}

impl ClosedInterval {
    /// When its point was made.
    pub fn moment(&self) -> Moment {
        Moment { group: self.marker.group_time, wall: self.marker.wall, lsn: self.marker_lsn }
    }
}

impl Default for OpenInterval {
    fn default() -> OpenInterval {
        OpenInterval { layers: Vec::new(), dirty: false, is_kept: true }
    }
}

impl OpenInterval {
    /// Of a group without recovery points.
    pub fn never() -> OpenInterval {
        OpenInterval { is_kept: false, ..OpenInterval::default() }
    }

    /// Whether recovery points are made.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Notes that data was recorded.
    pub fn touch(&mut self) {
        self.dirty = self.is_kept;
    }

    /// Whether data was recorded since the last marker.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Adds a layer that was frozen.
    pub fn add(&mut self, layer: Rc<Layer>) {
        if self.is_kept {
            self.layers.push(layer);
        }
    }

    /// Its layers, oldest first.
    pub fn layers(&self) -> &[Rc<Layer>] {
        &self.layers
    }

    /// Ends the interval.
    pub fn close(&mut self, marker_lsn: Lsn, marker: Marker, reader: Reader) -> ClosedInterval {
        self.dirty = false;
        ClosedInterval { layers: std::mem::take(&mut self.layers), marker_lsn, marker, reader }
    }
}

/// When the next marker is due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    interval: Duration,
    last: MonotonicNanos,
}

impl Schedule {
    /// Markers every `interval`, the last one at `now`.
    pub fn new(interval: Duration, now: MonotonicNanos) -> Schedule {
        Schedule { interval, last: now }
    }

    /// The time between markers.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Changes the time between markers.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Notes that a marker was made.
    pub fn made(&mut self, now: MonotonicNanos) {
        self.last = now;
    }

    /// When the next one is due.
    pub fn due(&self) -> MonotonicNanos {
        let nanos = u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX);
        MonotonicNanos(self.last.0.saturating_add(nanos))
    }
}
