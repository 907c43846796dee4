//! Payloads of which parts are read one after another: fetched and verified once, not once for each part.
//!
//! A payload is verified as a whole, and later writes may have left a hundred small parts of it. Destage and deltas read these in the
//! order of their places on the disk, so that parts of one payload come close together.

use std::cell::RefCell;
use std::collections::VecDeque;

use futures::future::{FutureExt, LocalBoxFuture, Shared};

use crate::storage::Slice;

/// Payloads that are kept: 64 KiB each at most.
const KEPT_MAX: usize = 64;

/// A payload that is being read, or was; `None` if that failed.
type Payload = Shared<LocalBoxFuture<'static, Option<Slice>>>;

/// The payloads of which parts were wanted last, by file and place.
#[derive(Default)]
pub(super) struct RecentPayloads {
    payloads: RefCell<VecDeque<((usize, u64), Payload)>>,
}

impl RecentPayloads {
    /// The payload at `place`, which `read` brings if nobody wanted it lately.
    pub(super) fn get(
        &self,
        place: (usize, u64),
        read: impl FnOnce() -> LocalBoxFuture<'static, Option<Slice>>,
    ) -> Payload {
        let mut payloads = self.payloads.borrow_mut();
        if let Some((_, payload)) = payloads.iter().rev().find(|(at, _)| *at == place) {
            return payload.clone();
        }
        let payload = read().shared();
        if payloads.len() == KEPT_MAX {
            payloads.pop_front();
        }
        payloads.push_back((place, payload.clone()));
        payload
    }

    /// Forgets the payload at `place`: what was read of it is not to be used again.
    pub(super) fn forget(&self, place: (usize, u64)) {
        self.payloads.borrow_mut().retain(|(at, _)| *at != place);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::storage::Buffer;

    #[test]
    fn a_payload_is_read_once_while_others_are_few() {
        let recent = RecentPayloads::default();
        let reads = Rc::new(Cell::new(0));
        let get = |place| {
            let reads = Rc::clone(&reads);
            let payload = recent.get((1, place), || {
                async move {
                    reads.set(reads.get() + 1);
                    Some(Buffer::copy_of(&place.to_le_bytes()).freeze())
                }
                .boxed_local()
            });
            let bytes = payload.now_or_never().expect("nothing to wait for").expect("it is there");
            assert_eq!(*bytes, place.to_le_bytes());
        };
        for place in [0, 1, 0, 1, 1, 0] {
            get(place);
        }
        assert_eq!(reads.get(), 2);
        (2..).take(KEPT_MAX).for_each(get);
        get(0);
        assert_eq!(reads.get(), 2 + KEPT_MAX + 1);
        get(0);
        recent.forget((1, 0));
        get(0);
        assert_eq!(reads.get(), 2 + KEPT_MAX + 2);
    }
}
