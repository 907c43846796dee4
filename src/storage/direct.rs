//! Whether a file can bypass the page cache, and if not, why.
//!
//! NBD clients write sectors of 512 bytes, so direct I/O is of use only where the device below takes these. One with logical sectors of
//! 4 KiB (4Kn disks, dm-crypt with such sectors) answers them with EINVAL, and answers a read of a hole or of an empty file as if nothing
//! were the matter: so it is asked what it wants, and tried only where nobody tells.
//!
//! Nothing is lost by the page cache: whoever writes syncs in any case ([`Op::Sync`](super::Op::Sync)), and evicts after a sync that failed.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

use super::Buffer;
use super::syscalls::failed;
use crate::error::Result;
use crate::units::{SECTOR_BYTES, to_usize};

/// Why a file goes through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffered {
    /// It was opened so.
    Wanted,
    /// The file system refuses O_DIRECT.
    Refused,
    /// It takes O_DIRECT, but no sectors of 512 bytes.
    Coarse {
        /// What it wants multiples of, if it says so.
        bytes: Option<u64>,
    },
}

impl fmt::Display for Buffered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Buffered::Wanted => f.write_str("it was opened so"),
            Buffered::Refused => f.write_str("the file system refuses O_DIRECT"),
            Buffered::Coarse { bytes: Some(bytes) } => {
                write!(f, "O_DIRECT needs multiples of {bytes} bytes here, and guests write {SECTOR_BYTES}")
            }
            Buffered::Coarse { bytes: None } => {
                write!(f, "O_DIRECT needs multiples of more than {SECTOR_BYTES} bytes here")
            }
        }
    }
}

/// Has an open file bypass the page cache, if sectors of 512 bytes can do so; says why not else. Asked of the open descriptor, because an
/// open with O_CREAT and O_DIRECT that a file system refuses has created the file all the same.
pub(super) fn bypass(descriptor: BorrowedFd<'_>) -> Result<Option<Buffered>> {
    let told = alignment(descriptor);
    if let Some(buffered) = told.and_then(too_coarse) {
        return Ok(Some(buffered));
    }
    let flags = rustix::fs::fcntl_getfl(descriptor).map_err(|errno| failed("reading flags", errno))?;
    match rustix::fs::fcntl_setfl(descriptor, flags | OFlags::DIRECT) {
        Ok(()) if told.is_some() || takes_a_sector(descriptor) => Ok(None),
        Ok(()) => {
            rustix::fs::fcntl_setfl(descriptor, flags)
                .map_err(|errno| failed("taking O_DIRECT back", errno))?;
            Ok(Some(Buffered::Coarse { bytes: None }))
        }
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(Buffered::Refused)),
        Err(errno) => Err(failed("setting O_DIRECT", errno)),
    }
}

/// Says in the log that a file is not opened as it was to be: once for each file system and process, since there may be thousands of files.
pub(super) fn tell(descriptor: BorrowedFd<'_>, path: &Path, buffered: Buffered) {
    static TOLD: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    let Ok(status) = rustix::fs::fstat(descriptor) else { return };
    let is_new = TOLD.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(status.st_dev);
    if is_new {
        tracing::warn!(path = %path.display(), reason = %buffered, "files go through the page cache: `afterimage doctor` says what is missing");
    }
}

/// What an alignment keeps sectors from; none, which is how a kernel says that a file takes no direct I/O, is no alignment.
fn too_coarse(alignment: u64) -> Option<Buffered> {
    match alignment {
        0 => Some(Buffered::Refused),
        1..=SECTOR_BYTES => None,
        bytes => Some(Buffered::Coarse { bytes: Some(bytes) }),
    }
}

/// What direct I/O of a file wants its offsets, lengths and memory to be multiples of, if anybody tells; 0 if it takes none.
fn alignment(descriptor: BorrowedFd<'_>) -> Option<u64> {
    alignment_of_file(descriptor).or_else(|| sector_of_device(descriptor))
}

/// As the file system says it, on Linux 6.1 and later.
pub fn alignment_of_file(file: impl AsFd) -> Option<u64> {
    let status = rustix::fs::statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let is_told = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::DIOALIGN);
    is_told.then(|| match status.stx_dio_offset_align {
        0 => 0,
        offset => u64::from(offset.max(status.stx_dio_mem_align)),
    })
}

/// As the block device below the file system says it; nothing where the file system is on none, or on several (btrfs, zfs, a network's).
pub fn sector_of_device(file: impl AsFd) -> Option<u64> {
    let status = rustix::fs::fstat(file).ok()?;
    let device = match FileType::from_raw_mode(status.st_mode) {
        FileType::BlockDevice => status.st_rdev,
        _ => status.st_dev,
    };
    let device = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // A partition's is that of the disk which it lies on.
    ["queue", "../queue"].iter().find_map(|queue| {
        std::fs::read_to_string(format!("{device}/{queue}/logical_block_size")).ok()?.trim().parse().ok()
    })
}

/// Whether a file that was made direct gives a sector. Only what tells of the alignment counts: what else is wrong is found by who needs it.
fn takes_a_sector(descriptor: BorrowedFd<'_>) -> bool {
    let mut sector = Buffer::zeroed(to_usize(SECTOR_BYTES));
    retry_on_intr(|| rustix::io::pread(descriptor, &mut sector[..], 0)) != Err(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_are_what_an_alignment_is_held_against() {
        for (alignment, expected) in [
            (0, Some(Buffered::Refused)),
            (1, None),
            (4, None),
            (512, None),
            (513, Some(Buffered::Coarse { bytes: Some(513) })),
            (4096, Some(Buffered::Coarse { bytes: Some(4096) })),
        ] {
            assert_eq!(too_coarse(alignment), expected, "{alignment}");
        }
    }

    #[test]
    fn what_cannot_be_had_directly_is_told_in_words() {
        let coarse = Buffered::Coarse { bytes: Some(4096) };
        assert_eq!(coarse.to_string(), "O_DIRECT needs multiples of 4096 bytes here, and guests write 512");
        assert_eq!(Buffered::Refused.to_string(), "the file system refuses O_DIRECT");
    }
}
