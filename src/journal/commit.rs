//! Group commit: when the writer closes a frame. A pure function of what is queued and in flight.
//!
//! A frame costs a device round trip whatever its size, so waiting gathers more requests into one; but a request
//! alone must not wait for company that may never come. Hence: an idle device gets whatever there is, at once;
//! a busy one gets further frames only once they are worth their own round trip.

use crate::format::frame::{Frame, RECORD_PAYLOAD_BYTES_MAX, Record, RecordKind, records_max};
use crate::units::{FrameNumber, PAGE_BYTES, to_usize};

/// Most frames in flight. No later version may have more: an opening goes by it ([`written_before`]).
pub const FRAMES_IN_FLIGHT_MAX: usize = 8;
/// Payload that is worth a frame of its own while others are in flight. No later version may be content with less ([`was_alone`]).
pub const WORTHWHILE_BYTES: usize = 128 << 10;

/// The next record fits behind a frame wherever there is that much room: its payload, a page more of the frame's header, one for its
/// place, and the one that is kept for a statement.
const ROOM_OF_ONE_MORE: usize = RECORD_PAYLOAD_BYTES_MAX + 4 * PAGE_BYTES;

/// What the writer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Records waiting.
    pub records: usize,
    /// Their payload.
    pub payload_bytes: usize,
    /// Frames submitted and not yet written.
    pub frames_in_flight: usize,
}

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Gather more; a completion or an arrival asks again.
    Wait,
    /// Close a frame and submit it.
    Submit,
}

/// Decides.
pub fn decide(state: QueueState) -> Decision {
    let worthwhile = state.payload_bytes >= WORTHWHILE_BYTES;
    match state {
        QueueState { records: 0, .. } => Decision::Wait,
        QueueState { frames_in_flight: 0, .. } => Decision::Submit,
        QueueState { frames_in_flight, .. } if frames_in_flight >= FRAMES_IN_FLIGHT_MAX => Decision::Wait,
        _ if worthwhile => Decision::Submit,
        _ => Decision::Wait,
    }
}

/// The last frame that was written, and told of, when frame `number` was submitted, at least.
pub fn written_before(number: FrameNumber, was_alone: bool) -> FrameNumber {
    let in_flight = if was_alone { 1 } else { FRAMES_IN_FLIGHT_MAX as u64 };
    FrameNumber(number.0.saturating_sub(in_flight))
}

/// Whether a frame shows that none was in flight when it was submitted, so that all before it were written and told of.
///
/// One that only states what is durable waits for all others. One of data that is not worth a round trip of its own does,
/// too: so it does not hold what there was of it, but all of it, unless the next record was for lack of room left to the next frame.
pub fn was_alone(frame: &Frame, room_behind: u64) -> bool {
    let payload_of = |record: &Record| match record.kind {
        RecordKind::Write { range, .. } => Some(to_usize(range.bytes())),
        RecordKind::Zero { .. } => Some(0),
        RecordKind::Marker | RecordKind::Opening | RecordKind::Seal => None,
    };
    let payload: Option<usize> = frame.records.iter().map(payload_of).sum();
    let holds_all =
        room_behind >= ROOM_OF_ONE_MORE as u64 && frame.records.len() < records_max(frame.seal.is_some());
    payload.is_some_and(|bytes| bytes < WORTHWHILE_BYTES) && (frame.records.is_empty() || holds_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_decision() {
        let full = FRAMES_IN_FLIGHT_MAX;
        let rows = [
            ((0, 0, 0), Decision::Wait),
            ((0, 0, full), Decision::Wait),
            ((1, 0, 0), Decision::Submit),
            ((1, 4096, 0), Decision::Submit),
            ((1, 4096, 1), Decision::Wait),
            ((32, WORTHWHILE_BYTES - 1, 1), Decision::Wait),
            ((32, WORTHWHILE_BYTES, 1), Decision::Submit),
            ((32, WORTHWHILE_BYTES, full - 1), Decision::Submit),
            ((32, WORTHWHILE_BYTES, full), Decision::Wait),
        ];
        for ((records, payload_bytes, frames_in_flight), expected) in rows {
            let state = QueueState { records, payload_bytes, frames_in_flight };
            assert_eq!(decide(state), expected, "{state:?}");
        }
    }

    #[test]
    fn what_is_queued_alone_never_waits() {
        for records in 1..200 {
            let state = QueueState { records, payload_bytes: records * 512, frames_in_flight: 0 };
            assert_eq!(decide(state), Decision::Submit);
        }
    }
}
