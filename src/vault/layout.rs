//! The names of a vault's files: each spelled here, once, in both directions.

use std::path::{Path, PathBuf};

use crate::format::manifest::StepNumber;
use crate::format::summary::Cover;
use crate::units::{BlobId, DiskId};

const STEP_DIGITS: usize = 16;
const SNAPSHOT_SUFFIX: &str = ".snapshot";
const BLOB_SUFFIX: &str = ".delta";
const SUMMARY_SUFFIX: &str = ".summary";
const BASE_SUFFIX: &str = ".summed.raw";
const UNSUMMED_BASE_SUFFIX: &str = ".raw";
const SUMS_SUFFIX: &str = ".sums";
const PARTIAL_SUFFIX: &str = ".partial";
const SPARE_PREFIX: &str = "reserve-";

/// Spares that a vault has, at most.
pub const SPARES: u32 = 16;

/// Where the parts of one group's vault are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of the vault in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Layout {
        Layout { root: root.into() }
    }

    /// The vault's own directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Holds steps and snapshots.
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest")
    }

    /// Holds delta blobs.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Holds the raw images of the oldest kept state.
    pub fn bases(&self) -> PathBuf {
        self.root.join("base")
    }

    /// Holds summaries of deltas: a cache.
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// Holds keyrings.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The directories. The keys go first when a vault is deleted: without them the rest is noise.
    pub fn directories(&self) -> [PathBuf; 5] {
        [self.keys(), self.manifest(), self.blobs(), self.bases(), self.index()]
    }

    /// The directories whose content begins a group.
    pub fn content_directories(&self) -> [PathBuf; 3] {
        [self.manifest(), self.blobs(), self.bases()]
    }

    /// A keyring.
    pub fn keyring(&self, number: u64) -> PathBuf {
        self.keys().join(format!("{number:0STEP_DIGITS$}"))
    }

    /// Says that the group was removed, from before its first file goes until its last one went.
    pub fn tombstone(&self) -> PathBuf {
        self.root.join("removed")
    }

    /// A manifest step.
    pub fn step(&self, number: StepNumber) -> PathBuf {
        self.manifest().join(format!("{number:0STEP_DIGITS$}"))
    }

    /// The state after a manifest step.
    pub fn snapshot(&self, number: StepNumber) -> PathBuf {
        self.manifest().join(format!("{number:0STEP_DIGITS$}{SNAPSHOT_SUFFIX}"))
    }

    /// A file that a step can be made of. Called a partial one, as [`Layout::room`] is: whoever does not know them removes
    /// them.
    pub fn spare(&self, number: u32) -> PathBuf {
        self.manifest().join(format!("{SPARE_PREFIX}{number}{PARTIAL_SUFFIX}"))
    }

    /// Holds room for what has to be written before space comes back.
    pub fn room(&self) -> PathBuf {
        self.root.join(format!("reserve{PARTIAL_SUFFIX}"))
    }

    /// A delta blob.
    pub fn blob(&self, blob: BlobId) -> PathBuf {
        self.blobs().join(format!("{blob}{BLOB_SUFFIX}"))
    }

    /// A summary of deltas.
    pub fn summary(&self, cover: &Cover) -> PathBuf {
        let Cover { first, members, digest, level } = cover;
        self.index().join(format!("{level}-{first}-{members}-{digest:032x}{SUMMARY_SUFFIX}"))
    }

    /// A disk's base. Its name says that it has sums: one that lacks them lost them.
    pub fn base(&self, disk: DiskId) -> PathBuf {
        self.bases().join(format!("{disk}{BASE_SUFFIX}"))
    }

    /// A disk's base of before there were sums, until it has them.
    pub fn unsummed_base(&self, disk: DiskId) -> PathBuf {
        self.bases().join(format!("{disk}{UNSUMMED_BASE_SUFFIX}"))
    }

    /// The sums of a disk's base.
    pub fn sums(&self, disk: DiskId) -> PathBuf {
        self.bases().join(format!("{disk}{SUMS_SUFFIX}"))
    }
}

/// The name that a file has until it is published; `unique` keeps two attempts at the same name apart.
pub fn partial(path: &Path, unique: u128) -> PathBuf {
    let mut name = path.file_name().expect("a vault's files have names").to_owned();
    name.push(format!(".{unique:032x}{PARTIAL_SUFFIX}"));
    path.with_file_name(name)
}

/// Whether a name is that of a file that was never published.
pub fn is_partial(name: &str) -> bool {
    name.ends_with(PARTIAL_SUFFIX)
}

/// Reads the name of a spare.
pub fn parse_spare_name(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(SPARE_PREFIX)?.strip_suffix(PARTIAL_SUFFIX)?;
    // One spelling each.
    digits.parse().ok().filter(|number: &u32| *number < SPARES && number.to_string() == digits)
}

/// What a name in the manifest's directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestName {
    /// A step.
    Step(StepNumber),
    /// The state after a step.
    Snapshot(StepNumber),
}

/// Reads a name in the manifest's directory; `None` for one that this module does not write.
pub fn parse_manifest_name(name: &str) -> Option<ManifestName> {
    match name.strip_suffix(SNAPSHOT_SUFFIX) {
        Some(digits) => parse_step(digits).map(ManifestName::Snapshot),
        None => parse_step(name).map(ManifestName::Step),
    }
}

fn parse_step(digits: &str) -> Option<StepNumber> {
    parse_number(digits).map(StepNumber)
}

/// Reads a name in the keys' directory.
pub fn parse_keyring_name(name: &str) -> Option<u64> {
    parse_number(name)
}

fn parse_number(digits: &str) -> Option<u64> {
    let plain = digits.len() == STEP_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&number| plain && number > 0)
}

/// Reads a name in the blobs' directory.
pub fn parse_blob_name(name: &str) -> Option<BlobId> {
    parse_id(name.strip_suffix(BLOB_SUFFIX)?).map(BlobId)
}

/// Reads a name in the index: it says what the summary covers.
pub fn parse_summary_name(name: &str) -> Option<Cover> {
    let mut parts = name.strip_suffix(SUMMARY_SUFFIX)?.split('-');
    let (level, first, members, digest) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let (level, members): (u8, u32) = (level.parse().ok()?, members.parse().ok()?);
    let cover = Cover { first: BlobId(parse_id(first)?), members, digest: parse_id(digest)?, level };
    // One spelling each: "+1" and "01" are numbers, too.
    let spelled = format!("{level}-{first}-{members}-{digest}{SUMMARY_SUFFIX}");
    (parts.next().is_none() && spelled == name && level > 0 && members > 0).then_some(cover)
}

/// What a name in the bases' directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseName {
    /// A base that has sums.
    Base(DiskId),
    /// One that never had.
    Unsummed(DiskId),
    /// The sums of one.
    Sums(DiskId),
}

impl BaseName {
    /// The disk.
    pub fn disk(self) -> DiskId {
        match self {
            BaseName::Base(disk) | BaseName::Unsummed(disk) | BaseName::Sums(disk) => disk,
        }
    }
}

/// Reads a name in the bases' directory.
pub fn parse_base_name(name: &str) -> Option<BaseName> {
    let id = |suffix| name.strip_suffix(suffix).and_then(parse_id).map(DiskId);
    let base = id(BASE_SUFFIX).map(BaseName::Base);
    base.or_else(|| id(UNSUMMED_BASE_SUFFIX).map(BaseName::Unsummed))
        .or_else(|| id(SUMS_SUFFIX).map(BaseName::Sums))
}

fn parse_id(text: &str) -> Option<u128> {
    let plain = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(text, 16).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &Path) -> &str {
        path.file_name().and_then(|name| name.to_str()).expect("names are text")
    }

    #[test]
    fn names_survive_their_text_and_nothing_else_is_taken_for_one() {
        let layout = Layout::new("/vault");
        let step = StepNumber(256);
        assert_eq!(name(&layout.step(step)), "0000000000000256");
        assert_eq!(parse_manifest_name(name(&layout.step(step))), Some(ManifestName::Step(step)));
        assert_eq!(parse_manifest_name(name(&layout.snapshot(step))), Some(ManifestName::Snapshot(step)));
        assert_eq!(parse_keyring_name(name(&layout.keyring(12))), Some(12));
        assert_eq!(parse_blob_name(name(&layout.blob(BlobId(7)))), Some(BlobId(7)));
        let disk = DiskId(9);
        assert_eq!(parse_base_name(name(&layout.base(disk))), Some(BaseName::Base(disk)));
        assert_eq!(parse_base_name(name(&layout.unsummed_base(disk))), Some(BaseName::Unsummed(disk)));
        assert_eq!(parse_base_name(name(&layout.sums(disk))), Some(BaseName::Sums(disk)));
        let cover = Cover { first: BlobId(7), members: 16, digest: u128::MAX - 3, level: 1 };
        assert_eq!(parse_summary_name(name(&layout.summary(&cover))), Some(cover));
        assert_eq!(parse_summary_name(&format!("0{}", name(&layout.summary(&cover)))), None);
        let spare = layout.spare(SPARES - 1);
        assert_eq!(parse_spare_name(name(&spare)), Some(SPARES - 1));
        for other in
            [name(&partial(&spare, 1)), name(&layout.spare(SPARES)), "reserve-01.partial", "reserve-.partial"]
        {
            assert_eq!(parse_spare_name(other), None, "{other}");
        }
        assert!(is_partial(name(&spare)) && is_partial(name(&layout.room())), "older versions remove them");
        let partial = partial(&layout.step(step), 1);
        assert!(is_partial(name(&partial)));
        for other in [name(&partial), "256", "+000000000000256", "0000000000000000", "x.snapshot", ""] {
            assert_eq!(parse_manifest_name(other), None, "{other}");
        }
    }
}
