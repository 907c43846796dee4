//! How far a verification is: what one that is cut off goes on from.
//!
//! A bookmark moves only over what was found sound, and stays before the first finding: so whoever goes on finds again whatever
//! was found before, and nothing of it has to be kept. Clones are one bookmark; it may be looked at from another thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::units::{DiskSlot, Lsn};

/// A place in the order in which a verification reads; everything before it was sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nothing was read.
    #[default]
    Beginning,
    /// The blobs of the vault's points up to this marker were.
    Blobs(Lsn),
    /// All blobs were, the bases of disks in lower slots, and so many bytes of this one's.
    Bases(DiskSlot, u64),
    /// The vault was, the disks in lower slots, and so many sectors of this one.
    Disks(DiskSlot, u64),
}

/// A place, and what it took to get there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Where.
    pub place: Place,
    /// Bytes that were read up to there.
    pub read_bytes: u64,
}

/// The bookmark of a verification.
#[derive(Clone, Debug, Default)]
pub struct Bookmark(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    mark: Mark,
    /// Bytes that were read before the part that is being read.
    earlier: u64,
    /// Something was found.
    is_stuck: bool,
}

impl Bookmark {
    /// Where one that was cut off had got to.
    pub fn at(mark: Mark) -> Bookmark {
        Bookmark(Arc::new(Mutex::new(State { mark, earlier: mark.read_bytes, is_stuck: false })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn mark(&self) -> Mark {
        self.state().mark
    }

    /// Moves it to `place`, after `read_bytes` of this part were read; unless something was found by now, or before.
    pub fn pass(&self, place: Place, read_bytes: u64, is_sound: bool) {
        let mut state = self.state();
        state.is_stuck |= !is_sound;
        if !state.is_stuck && place >= state.mark.place {
            state.mark = Mark { place, read_bytes: state.earlier + read_bytes };
        }
    }

    /// The next part begins, after one that read so many bytes, and found something or not.
    pub fn turn(&self, read_bytes: u64, is_sound: bool) {
        let mut state = self.state();
        state.earlier += read_bytes;
        state.is_stuck |= !is_sound;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_before_what_was_found() {
        let bookmark = Bookmark::at(Mark { place: Place::Blobs(Lsn(5)), read_bytes: 100 });
        bookmark.pass(Place::Blobs(Lsn(4)), 1, true);
        assert_eq!(bookmark.mark().place, Place::Blobs(Lsn(5)), "it never goes back");
        bookmark.pass(Place::Bases(DiskSlot(0), 0), 20, true);
        bookmark.turn(30, true);
        bookmark.pass(Place::Disks(DiskSlot(1), 8), 4, true);
        let mark = Mark { place: Place::Disks(DiskSlot(1), 8), read_bytes: 134 };
        assert_eq!(bookmark.mark(), mark);
        bookmark.pass(Place::Disks(DiskSlot(1), 16), 8, false);
        bookmark.pass(Place::Disks(DiskSlot(2), 0), 9, true);
        assert_eq!(bookmark.mark(), mark);
    }
}
