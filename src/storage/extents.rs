//! Short extents, where a file system gives back whole ones only.
//!
//! btrfs makes one extent, of 128 MiB at most, of what it writes out together, and keeps all of it while any part is in use: a hole that is
//! punched into it gives nothing back. So what goes through the page cache there is sent out a little at a time. What bypasses the page
//! cache has an extent for each write.
//!
//! Nothing is durable for that, and what goes wrong is told by the next sync.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// What statfs(2) calls btrfs.
const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;
/// About what an extent has, and so what may not come back at the edge of a hole.
const EXTENT_BYTES: u64 = 1 << 20;

/// Bytes that were written to a file since it was last sent out.
#[derive(Debug, Default)]
pub(super) struct Unsent(AtomicU64);

impl Unsent {
    /// Notes so many bytes, and sends all out where an extent is full.
    pub(super) fn note(&self, file: BorrowedFd<'_>, bytes: u64) {
        let unsent = self.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unsent < EXTENT_BYTES {
            return;
        }
        self.0.store(0, Ordering::Relaxed);
        // No bytes stand for all to the end. Without a flag that waits no error is taken from the next sync.
        // SAFETY: a descriptor and three numbers.
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

/// Whether the file system of an open file is one of these.
pub(super) fn are_kept_whole(file: impl AsFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == BTRFS_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_sent_out_is_counted_anew() {
        let file = tempfile::tempfile().expect("a temporary file");
        let unsent = Unsent::default();
        for (bytes, left) in [(EXTENT_BYTES - 1, EXTENT_BYTES - 1), (1, 0), (4096, 4096), (EXTENT_BYTES, 0)] {
            file.write_all_at(&vec![7; 4096], 0).expect("written");
            unsent.note(file.as_fd(), bytes);
            assert_eq!(unsent.0.load(Ordering::Relaxed), left);
        }
    }

    #[test]
    fn most_file_systems_give_back_single_blocks() {
        let proc = fs::File::open("/proc/self/status").expect("Linux");
        assert!(!are_kept_whole(proc));
    }
}
