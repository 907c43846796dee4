//! The file system that the data is on: its kind, its space, O_DIRECT, and how fast it is, synced, through the back end that would be used.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, TryStreamExt};
use rustix::fs::{StatFs, statfs, statvfs};

use super::Finding;
use crate::byte_size::ByteSize;
use crate::config::{Configuration, StorageChoice};
use crate::env::OsEnvironment;
use crate::error::{ErrorKind, Result};
use crate::random::Random;
use crate::runtime::Runtime;
use crate::storage::{
    Access, BackendOptions, Buffer, Create, File, Lock, OpenOptions, Preference, open_best,
};
use crate::units::{MonotonicNanos, SECTOR_BYTES, to_usize};

/// Bytes that are written to see how fast that goes; so much must be free beside what stays free.
const WRITTEN: u64 = 128 << 20;
const PIECE: u64 = 1 << 20;
const PIECES_IN_FLIGHT: usize = 4;
/// Small writes, each with a sync.
const SYNCS: usize = 64;
/// Beyond it, guests notice each flush.
const SYNC_GOOD: Duration = Duration::from_millis(10);
/// A guest's writes go through it twice or three times: journal, image, vault.
const RATE_GOOD: u64 = 200 << 20;
/// File systems by the number that statfs(2) knows them by, with what is to be known of them.
const KINDS: [(u64, &str, Option<&str>); 9] = [
    (0xef53, "ext4", None),
    (0x5846_5342, "xfs", None),
    (
        0x9123_683e,
        "btrfs",
        Some(
            "files are written in place here (chattr +C), but for what a snapshot holds, too: what is written after one takes space of its own",
        ),
    ),
    (0x2fc1_2fc1, "zfs", Some("O_DIRECT needs OpenZFS 2.3: a zvol with ext4 or xfs does better")),
    (0x0102_1994, "tmpfs", Some("all of it is gone after a power cut: put the data directory on a disk")),
    (0x8584_58f6, "ramfs", Some("all of it is gone after a power cut: put the data directory on a disk")),
    (0x6969, "nfs", Some("a file system of this machine: locks and syncs of a network's are its server's")),
    (
        0xff53_4d42,
        "cifs",
        Some("a file system of this machine: locks and syncs of a network's are its server's"),
    ),
    (0x794c_7630, "overlayfs", Some("a volume: what a container's own file system holds goes with it")),
];

pub(super) fn look(configuration: &Configuration, directory: &Path) -> Vec<Finding> {
    let mut findings = vec![kind(directory), space(configuration, directory)];
    findings.extend(match tried(configuration, directory) {
        Ok(findings) => findings,
        Err(error) => {
            let what = if error.kind() == ErrorKind::NoSpace { "free space" } else { "disk" };
            vec![Finding::refused(what, error.to_string(), "mend that first: nothing could be tried")]
        }
    });
    findings
}

fn kind(directory: &Path) -> Finding {
    const WHAT: &str = "file system";
    let shown = directory.display();
    let number = statfs(directory).map(|StatFs { f_type, .. }| u64::try_from(f_type).unwrap_or_default());
    let known =
        number.ok().and_then(|number| KINDS.iter().find(|(known, ..)| *known == number & 0xffff_ffff));
    match known {
        Some((_, name, None)) => Finding::ok(WHAT, format!("{shown} is on {name}")),
        Some((_, name, Some(mend))) => Finding::degraded(WHAT, format!("{shown} is on {name}"), *mend),
        None => Finding::degraded(
            WHAT,
            format!("{shown} is on one that is not known here"),
            "ext4 or xfs: these are tested",
        ),
    }
}

fn space(configuration: &Configuration, directory: &Path) -> Finding {
    const WHAT: &str = "free space";
    let stat = match statvfs(directory) {
        Ok(stat) => stat,
        Err(errno) => return Finding::refused(WHAT, errno.to_string(), "a directory that can be read"),
    };
    let (free, total) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
    let kept_free = configuration.vault.free_min.map_or_else(|| (total / 20).min(1 << 30), |size| size.0);
    let journal = configuration.journal.size.0;
    let (free_shown, kept_shown) = (ByteSize(free).approximate(), ByteSize(kept_free).approximate());
    if free <= kept_free {
        let found = format!(
            "{free_shown}, and {kept_shown} are to stay free ([vault] free_min): no point can be made"
        );
        return Finding::refused(WHAT, found, "free space, or a lower free_min");
    }
    if free < kept_free + journal {
        let found =
            format!("{free_shown}: less than a group's journal takes ({})", ByteSize(journal).approximate());
        return Finding::degraded(WHAT, found, "free space, or a smaller [journal] size");
    }
    if stat.f_files > 0 && stat.f_favail < 10_000 {
        let found = format!("{free_shown}, but only {} more files", stat.f_favail);
        return Finding::degraded(WHAT, found, "a file system with more inodes: each point is a file");
    }
    Finding::ok(WHAT, format!("{free_shown} of {}", ByteSize(total).approximate()))
}

/// Writes to a file that nobody sees.
fn tried(configuration: &Configuration, directory: &Path) -> Result<Vec<Finding>> {
    let preference = match configuration.storage.backend {
        StorageChoice::Blocking => Preference::Blocking,
        StorageChoice::Auto | StorageChoice::Uring => Preference::Best,
    };
    let storage = open_best(&BackendOptions { preference, ..BackendOptions::default() })?.storage;
    let runtime = Runtime::new(storage, Rc::new(OsEnvironment::new()));
    let path = directory.join(format!(".afterimage-doctor-{:032x}", runtime.random_u128()));
    let trial = Trial { runtime: Rc::clone(&runtime) };
    runtime.block_on(async move { trial.run(path).await })
}

struct Trial {
    runtime: Rc<Runtime>,
}

impl Trial {
    async fn run(&self, path: PathBuf) -> Result<Vec<Finding>> {
        let options =
            OpenOptions { access: Access::ReadWrite, create: Create::New, lock: Lock::None, direct: true };
        let file = self.runtime.open(&path, options).await?;
        // Whatever ends this, nothing stays.
        self.runtime.remove(&path).await?;
        let mut findings = vec![self.direct(&file).await?];
        if self.runtime.space(path.parent().expect("it is in a directory")).await?.free < 2 * WRITTEN {
            let mend = format!("free {} to have it measured", ByteSize(2 * WRITTEN));
            findings.push(Finding::degraded("disk speed", "not measured: too little is free", mend));
            return Ok(findings);
        }
        findings.push(self.rate(&file).await?);
        findings.push(self.syncs(&file).await?);
        Ok(findings)
    }

    /// Sectors are what NBD clients write. Whether they can be written directly is known from the opening; here it is seen.
    async fn direct(&self, file: &File) -> Result<Finding> {
        const WHAT: &str = "O_DIRECT";
        if let Some(buffered) = file.buffered() {
            let mend = "ext4 or xfs on a disk whose logical sectors have 512 bytes (`lsblk -o NAME,LOG-SEC`): without it the page cache \
                        holds what the gateway holds already, and each sync writes what the cache took";
            return Ok(Finding::degraded(WHAT, format!("{buffered}: the page cache is used"), mend));
        }
        let sector = Buffer::zeroed(to_usize(SECTOR_BYTES)).freeze();
        Ok(match self.runtime.write(file, SECTOR_BYTES, sector).await {
            Ok(()) => Finding::ok(WHAT, format!("it works, for sectors of {SECTOR_BYTES} bytes too")),
            Err(error) if error.kind() == ErrorKind::NoSpace => return Err(error),
            Err(error) => {
                let found =
                    format!("a write of {SECTOR_BYTES} bytes fails, though nothing tells why ({error})");
                Finding::refused(
                    WHAT,
                    found,
                    "ext4 or xfs on a disk whose logical sectors have 512 bytes (`lsblk -o NAME,LOG-SEC`)",
                )
            }
        })
    }

    async fn rate(&self, file: &File) -> Result<Finding> {
        const WHAT: &str = "disk speed";
        // Not zeros: some disks store none.
        let mut piece = Buffer::zeroed(to_usize(PIECE));
        let mut random = Random::new(1);
        piece.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
        let piece = piece.freeze();
        let begun = self.runtime.now();
        let offsets = (0..WRITTEN / PIECE).map(|index| index * PIECE);
        let writes = stream::iter(offsets).map(|offset| self.runtime.write(file, offset, piece.clone()));
        writes.buffer_unordered(PIECES_IN_FLIGHT).try_collect::<()>().await?;
        self.runtime.sync(file).await?;
        let took = since(begun, self.runtime.now());
        let rate =
            u64::try_from(u128::from(WRITTEN) * 1_000_000_000 / took.as_nanos().max(1)).unwrap_or(u64::MAX);
        let found = format!("{}/s are written, and synced", ByteSize(rate).approximate());
        Ok(if rate < RATE_GOOD {
            let mend = "a faster disk: what guests write is written to journal, image and vault; sustained, a third of this is theirs";
            Finding::degraded(WHAT, found, mend)
        } else {
            Finding::ok(WHAT, found)
        })
    }

    async fn syncs(&self, file: &File) -> Result<Finding> {
        const WHAT: &str = "disk syncs";
        let block = Buffer::zeroed(4096).freeze();
        let mut times = Vec::with_capacity(SYNCS);
        for index in 0..SYNCS as u64 {
            let begun = self.runtime.now();
            self.runtime.write(file, index * 4096, block.clone()).await?;
            self.runtime.sync(file).await?;
            times.push(since(begun, self.runtime.now()));
        }
        times.sort_unstable();
        let (median, longest) = (times[SYNCS / 2], times[SYNCS - 1]);
        let found = format!(
            "4 KiB are durable after {median:.1?}, at the median of {SYNCS}; {longest:.1?} at the longest"
        );
        Ok(if median > SYNC_GOOD {
            let mend = "a disk with a cache that survives power cuts: each flush of a guest takes as long";
            Finding::degraded(WHAT, found, mend)
        } else {
            Finding::ok(WHAT, found)
        })
    }
}

fn since(begun: MonotonicNanos, now: MonotonicNanos) -> Duration {
    Duration::from_nanos(now.0 - begun.0)
}
