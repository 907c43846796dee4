//! What destage keeps in memory, of all groups together: the more disks are at it, the smaller the pieces of each.
//!
//! Nobody waits for another's memory, so that a device which hangs holds up its own disks only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of all pieces together, about: a disk goes on with the pieces that it had when another one begins.
const BYTES_MAX: u64 = 256 << 20;
/// One is written while the next one is read.
const PIECES_A_DISK: u64 = 2;
/// Bytes of a piece at most,
const PIECE_BYTES_MAX: u64 = 16 << 20;
/// and at least.
const PIECE_BYTES_MIN: u64 = 1 << 20;

/// How many disks are destaged in this process.
#[derive(Debug, Default)]
pub struct SharedPieces {
    under_way: AtomicU64,
}

impl SharedPieces {
    /// A disk is destaged until what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }
}

/// A disk that is destaged.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<SharedPieces>);

impl UnderWay {
    /// What a piece may cost now, in bytes read.
    pub(super) fn piece_bytes(&self) -> u64 {
        let disks = self.0.under_way.load(Ordering::Relaxed).max(1);
        (BYTES_MAX / PIECES_A_DISK / disks).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_disks_share_the_memory_of_a_few() {
        let pieces = Arc::<SharedPieces>::default();
        let disks: Vec<_> = (0..100).map(|_| pieces.begin()).collect();
        assert_eq!(disks[0].piece_bytes(), BYTES_MAX / PIECES_A_DISK / 100);
        drop(disks);
        assert_eq!(pieces.begin().piece_bytes(), PIECE_BYTES_MAX, "who is done counts no more");
        let crowd: Vec<_> = (0..1000).map(|_| pieces.begin()).collect();
        assert_eq!(crowd[0].piece_bytes(), PIECE_BYTES_MIN);
    }
}
