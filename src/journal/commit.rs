//! Group commit: when the writer closes a frame. A pure function of what is queued and in flight.
//!
//! A frame costs a device round trip whatever its size, so waiting gathers more requests into one; but a request
//! alone must not wait for company that may never come. Hence: an idle device gets whatever there is, at once;
//! a busy one gets further frames only once they are worth their own round trip.

/// Most frames in flight.
pub const FRAMES_IN_FLIGHT_MAX: usize = 8;
/// Payload that is worth a frame of its own while others are in flight.
pub const WORTHWHILE_BYTES: usize = 128 << 10;

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
