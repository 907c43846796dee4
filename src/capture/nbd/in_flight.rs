//! The requests of a connection that were handed out and are not answered: a slab, so that both ends are O(1).
//!
//! A ticket's number is slot and generation, so that an answer given twice, or to another request, is caught.

use super::request::ReplyShape;

/// What is owed to the client for a request in flight.
#[derive(Debug)]
pub(super) struct PendingReply {
    pub(super) cookie: u64,
    /// Bytes that it counts towards the limit of payloads.
    pub(super) charge: usize,
    pub(super) shape: ReplyShape,
}

#[derive(Default)]
pub(super) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Bytes that the requests in flight, and the write being received, are charged for.
    pub(super) payload_bytes: usize,
}

struct Slot {
    generation: u32,
    pending: Option<PendingReply>,
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remembers what is owed, and numbers it.
    pub(super) fn insert(&mut self, pending: PendingReply) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, pending: None });
            u32::try_from(self.slots.len() - 1).expect("requests in flight are limited")
        });
        let slot = &mut self.slots[index as usize];
        slot.pending = Some(pending);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// What is owed for the request of that number.
    ///
    /// # Panics
    /// If it was answered already or never made: only our own bug does that.
    pub(super) fn remove(&mut self, request: u64) -> PendingReply {
        let index = u32::try_from(request & 0xffff_ffff).expect("masked to 32 bits");
        let slot =
            self.slots.get_mut(index as usize).filter(|slot| u64::from(slot.generation) == request >> 32);
        let pending = slot.and_then(|slot| {
            slot.generation = slot.generation.wrapping_add(1);
            slot.pending.take()
        });
        let pending = pending.unwrap_or_else(|| panic!("request {request:#x} is answered once"));
        self.free.push(index);
        self.payload_bytes -= pending.charge;
        pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(cookie: u64) -> PendingReply {
        PendingReply { cookie, charge: 0, shape: ReplyShape::Done }
    }

    #[test]
    fn slots_are_reused_and_numbers_are_not() {
        let mut in_flight = InFlight::default();
        let first = in_flight.insert(pending(1));
        let second = in_flight.insert(pending(2));
        assert_eq!(in_flight.remove(first).cookie, 1);
        let third = in_flight.insert(pending(3));
        assert_ne!(first, third);
        assert_eq!(in_flight.slots.len(), 2);
        assert_eq!(in_flight.remove(third).cookie, 3);
        assert_eq!(in_flight.remove(second).cookie, 2);
        assert!(in_flight.is_empty());
    }

    #[test]
    #[should_panic(expected = "answered once")]
    fn a_second_answer_is_our_own_bug() {
        let mut in_flight = InFlight::default();
        let request = in_flight.insert(pending(1));
        in_flight.insert(pending(2));
        in_flight.remove(request);
        in_flight.remove(request);
    }
}
