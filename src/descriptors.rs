//! File descriptors: this process takes as many as it may have, and divides them.
//!
//! ```text
//!  0 ─────────────────────────────────────────────────────────────── hard limit (ulimit -Hn, LimitNOFILE=)
//!  │ own │ what groups keep open │ room for more disks │ API: a sixteenth at most │ block clients: half at most │
//! ```
//!
//! A group keeps open, and locked, what it writes to: the segments of its journal and the images of its disks, besides what latched
//! disks and test failovers need. Were clients to take all of the rest, no segment could be opened and nobody could ask why.
//!
//! Invariant: what clients may take, and what was promised to groups, is below the limit: a gateway that starts can open all of its
//! groups, and a disk that cannot be kept open beside full sets of clients is refused when it is created.

use std::num::NonZeroUsize;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, ErrorKind, Result};
use crate::image::checkpoint_path;
use crate::journal::segments::{READY, parse_file_name};
use crate::protect::open::{IMAGES, JOURNAL, TESTS};
use crate::units::DiskId;

/// What the process needs for itself: standard streams, sockets that listen, catalogue, lock, control plane. Some 20, and what
/// SQLite and name look-ups open for a moment.
const OWN: usize = 40;
/// What a data thread needs: its ring, its poll and their wake-ups; and files that its groups open for a moment, to publish a point or
/// to state how far an image is.
const OF_DATA_THREAD: usize = 12;
/// Segments of a group that nobody writes to: one in use, and those that are ready.
pub const SEGMENTS_AT_REST: usize = 1 + READY;

/// What a disk keeps open: its image, and the sums of that.
pub const FILES_OF_DISK: usize = 2;

/// Raises the soft limit to the hard one, which is how many there may be then.
pub fn raise_limit() -> Result<usize> {
    let found = getrlimit(Resource::Nofile);
    if found.current != found.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: found.maximum, ..found })
            .map_err(|errno| Error::io("raising the limit on open files", errno.into()))?;
    }
    Ok(found.maximum.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)))
}

/// How many there may be, if that has a limit.
pub fn limit() -> Option<usize> {
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok())
}

/// How many are open now; none if that is not told here.
pub fn open() -> Option<usize> {
    // Looking takes one.
    std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1))
}

/// What the groups of a data directory keep open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The groups.
    pub groups: usize,
    /// Their disks.
    pub disks: usize,
    /// Segments, images with their sums, side files, and overlays and their bases with the sums of both.
    pub files: usize,
    /// Those of them that are segments.
    pub segments: usize,
}

impl Kept {
    /// Looks at a directory of groups. What cannot be read will not be opened either.
    pub fn look(groups: &Path) -> Kept {
        let mut kept = Kept::default();
        for group in names(groups) {
            let group = groups.join(group);
            // No fewer than it will have once it serves.
            let segments = names(&group.join(JOURNAL)).filter(|name| parse_file_name(name).is_some()).count();
            let segments = segments.max(SEGMENTS_AT_REST);
            let checkpoint = checkpoint_path(Path::new(""), DiskId(0));
            let is_checkpoint = |name: &str| Path::new(name).extension() == checkpoint.extension();
            let images = names(&group.join(IMAGES)).filter(|name| !is_checkpoint(name)).count();
            let disks = names(&group.join(IMAGES)).filter(|name| is_checkpoint(name)).count();
            let is_of_sums = |name: &str| Path::new(name).extension().is_some_and(|end| end == "sums");
            let sums = names(&group.join(IMAGES)).filter(|name| is_of_sums(name)).count();
            let unsummed = disks.saturating_sub(sums);
            let tests = group.join(TESTS);
            let is_overlay = |name: &String| Path::new(name).extension().is_some_and(|end| end == "overlay");
            let overlays = |test: String| names(&tests.join(test)).filter(is_overlay).count();
            let overlays: usize = names(&tests).map(overlays).sum();
            kept.groups += 1;
            kept.disks += disks;
            kept.segments += segments;
            // Of before there were sums, a disk has none until it is opened.
            kept.files += segments + (images + unsummed).max(FILES_OF_DISK * disks) + 4 * overlays;
        }
        kept
    }
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Who is to share the descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Sharers {
    /// `[site] data_threads`
    pub data_threads: usize,
    /// `[nbd] connections_max`
    pub connections_max: NonZeroUsize,
    /// `[api] connections_max`
    pub api_connections_max: NonZeroUsize,
    /// What the API's server takes beside its connections, and that of metrics, and hooks, in all.
    pub api_own: usize,
    /// What groups keep open.
    pub kept: Kept,
}

/// What clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Block clients at once.
    pub connections_max: NonZeroUsize,
    /// Clients of the API at once.
    pub api_connections_max: NonZeroUsize,
}

impl Sharers {
    /// Without clients.
    fn needed(&self) -> usize {
        OWN + OF_DATA_THREAD * self.data_threads + self.api_own + self.kept.files
    }

    /// With a client for each disk, and one of the API: below that there is no point in serving.
    pub fn least(&self) -> usize {
        self.needed() + self.kept.disks.max(1).min(self.connections_max.get()) + 1
    }

    /// Once every journal has all of its segments.
    pub fn most(&self, shares: &Shares, segments_max: usize) -> usize {
        let grown = (segments_max * self.kept.groups).saturating_sub(self.kept.segments);
        self.needed() + grown + shares.connections_max.get() + shares.api_connections_max.get()
    }

    /// What each may have where there are `limit`; `None` if that is too little to serve what is there.
    pub fn share(&self, limit: usize) -> Option<Shares> {
        if limit < self.least() {
            return None;
        }
        let at_most = |configured: NonZeroUsize, share: usize| {
            NonZeroUsize::new(share).map_or(NonZeroUsize::MIN, |share| share.min(configured))
        };
        // A client for each disk comes before a second one of the API.
        let beyond_least = limit - self.least() + 1;
        let api_connections_max = at_most(self.api_connections_max, (limit / 16).min(beyond_least));
        let left = limit - self.needed() - api_connections_max.get();
        let connections_max = at_most(self.connections_max, left.min((limit / 2).max(self.kept.disks)));
        Some(Shares { connections_max, api_connections_max })
    }
}

/// Whether `more` files can be kept open beside what is open now, where clients may still open `reserved` connections.
///
/// # Errors
/// `NoSpace`, with what to do.
pub fn check_room(more: usize, reserved: usize) -> Result<()> {
    let (Some(limit), Some(open)) = (limit(), open()) else { return Ok(()) };
    if open + reserved + more <= limit {
        return Ok(());
    }
    let text = format!(
        "{open} files are open, and clients may take {reserved} more: the limit on open files, {limit}, has no room for what this \
         needs: raise it (LimitNOFILE=, ulimit -Hn), or write a smaller [nbd] connections_max, and start the gateway anew"
    );
    Err(Error::new(ErrorKind::NoSpace, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sharers(groups: usize, disks: usize) -> Sharers {
        let many = |count| NonZeroUsize::new(count).expect("positive");
        let (disks, segments) = (groups * disks, groups * SEGMENTS_AT_REST);
        Sharers {
            data_threads: 2,
            connections_max: many(1024),
            api_connections_max: many(256),
            api_own: 17,
            kept: Kept { groups, disks, files: segments + disks, segments },
        }
    }

    fn share(sharers: Sharers, limit: usize) -> Option<(usize, usize)> {
        let shares = sharers.share(limit)?;
        Some((shares.connections_max.get(), shares.api_connections_max.get()))
    }

    #[test]
    fn clients_have_what_is_configured_where_there_is_plenty_and_half_where_there_is_not() {
        assert_eq!(share(sharers(100, 10), 1 << 19), Some((1024, 256)));
        assert_eq!(share(sharers(100, 10), 4096), Some((1024, 256)));
        assert_eq!(share(sharers(1, 2), 1024), Some((512, 64)));
        assert_eq!(share(sharers(0, 0), 256), Some((128, 16)));
    }

    #[test]
    fn groups_come_before_clients_and_a_client_for_each_disk_before_the_apis() {
        let (many, least) = (sharers(10, 20), sharers(10, 20).least());
        assert_eq!(share(many, least), Some((200, 1)));
        assert_eq!(share(many, least - 1), None, "less than what is there needs");
        assert_eq!(share(sharers(0, 0), 64), None);
        for limit in least..least + 2000 {
            let shares = many.share(limit).expect("enough");
            assert!(many.most(&shares, SEGMENTS_AT_REST) <= limit, "{limit}: {shares:?}");
            assert!(shares.connections_max.get() >= 200);
        }
    }

    #[test]
    fn journals_that_fill_up_take_more() {
        let sharers = sharers(100, 10);
        let shares = sharers.share(4096).expect("enough");
        assert!(sharers.most(&shares, 64) > 4096);
        assert!(sharers.most(&shares, 64) < 10_000);
    }

    #[test]
    fn what_groups_keep_is_seen_in_their_directories() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Kept::look(&directory.path().join("none")), Kept::default());
        let group = directory.path().join("g");
        for (place, count, name) in [(JOURNAL, 7, "segment-0000000"), (IMAGES, 2, "disk.raw")] {
            std::fs::create_dir_all(group.join(place)).unwrap();
            for number in 0..count {
                let name =
                    if place == JOURNAL { format!("{name}{number}") } else { format!("{number}{name}") };
                std::fs::write(group.join(place).join(name), "").unwrap();
            }
        }
        for name in ["0.checkpoint", "1.checkpoint", "1.side-3"] {
            std::fs::write(group.join(IMAGES).join(name), "").unwrap();
        }
        std::fs::write(group.join(JOURNAL).join("run-0000000000000000"), "").unwrap();
        let kept = Kept::look(directory.path());
        assert_eq!(kept, Kept { groups: 1, disks: 2, files: 7 + 5, segments: 7 });
        for name in ["0.sums", "1.sums"] {
            std::fs::write(group.join(IMAGES).join(name), "").unwrap();
        }
        assert_eq!(Kept::look(directory.path()), kept);
        std::fs::create_dir_all(group.join(TESTS).join("1")).unwrap();
        for name in ["0.overlay", "0.overlay.sums"] {
            std::fs::write(group.join(TESTS).join("1").join(name), "").unwrap();
            assert_eq!(
                Kept::look(directory.path()).files,
                7 + 5 + 4,
                "also of one of before there were sums"
            );
        }
    }
}
