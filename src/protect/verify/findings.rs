//! What a verification found: which sectors are not what they should be, and in which files that is.

use std::fmt;
use std::path::PathBuf;

use crate::units::{DiskId, Lsn, PointId, SectorRange};
use crate::view::Origin;

/// Findings that are kept of each disk; more are only counted.
const FINDINGS_MAX: usize = 1000;

/// Where the group has the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveSide {
    /// In an image.
    Image {
        /// The image.
        path: PathBuf,
        /// The first byte there.
        offset: u64,
        /// Whether what it holds there was compared with its sums. Of an image of before there were any, nobody knows.
        has_sums: bool,
    },
    /// In the journal, or zeros of it: what it gives was compared with its checksum.
    Journal,
    /// In a side file: the same.
    SideFile,
}

/// What is wrong with a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The two have different bytes, and nothing was written in between.
    Differs {
        /// Where the group has them.
        live: LiveSide,
        /// Where the vault has them.
        vault: Origin,
    },
    /// One of them cannot be read, or is not what was written; the text names file and offset.
    Unreadable {
        /// What was said of it.
        error: String,
    },
}

/// A range that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The disk.
    pub disk: DiskId,
    /// What people call it.
    pub name: String,
    /// Which of its sectors.
    pub range: SectorRange,
    /// What is wrong with them.
    pub what: What,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.range.byte_range();
        write!(f, "disk {}, sectors {}, bytes {}..{}: ", self.name, self.range, bytes.start, bytes.end)?;
        match &self.what {
            What::Unreadable { error } => f.write_str(error),
            What::Differs { live, vault } => {
                write!(f, "{live} and {} differ: ", describe(vault))?;
                f.write_str(match (live, vault) {
                    (LiveSide::Image { has_sums: false, .. }, Origin::Base { has_sums: false, .. }) => {
                        "neither has checksums that tell which"
                    }
                    (LiveSide::Image { has_sums: false, .. }, _) => {
                        "the image is wrong, for the vault's checksums fit"
                    }
                    (_, Origin::Base { has_sums: false, .. }) => {
                        "the base is wrong, for the group's checksums fit"
                    }
                    _ => "both fit their checksums",
                })
            }
        }
    }
}

impl fmt::Display for LiveSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LiveSide::Image { path, offset, .. } => write!(f, "image {} at byte {offset}", path.display()),
            LiveSide::Journal => f.write_str("the journal"),
            LiveSide::SideFile => f.write_str("a side file"),
        }
    }
}

/// As part of a sentence.
fn describe(origin: &Origin) -> String {
    match origin {
        Origin::Delta { path, offset } => format!("delta {}, chunk at byte {offset},", path.display()),
        Origin::Zeros => "zeros in the vault".to_owned(),
        Origin::Base { path, offset, .. } => format!("base {} at byte {offset}", path.display()),
    }
}

/// What a verification of a group saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupReport {
    /// The last point that was compared with; none if there is none yet.
    pub point: Option<(PointId, Lsn)>,
    /// Bytes of disks that were compared, holes included.
    pub compared_bytes: u64,
    /// Of these, how many differ because they were written since.
    pub newer_bytes: u64,
    /// Bytes read of image, journal and vault.
    pub read_bytes: u64,
    /// What is not as it should be, by disk and sector.
    pub findings: Vec<Difference>,
    /// Findings that were too many to be kept.
    pub more_findings: u64,
    /// What was not compared with a point, though nothing is wrong with it, and why.
    pub notes: Vec<String>,
}

impl GroupReport {
    /// Whether everything that was compared is as it should be.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// Findings that are kept of the disk that is gone through: they are the last ones.
    fn kept_of(&self, disk: DiskId) -> usize {
        self.findings.iter().rev().take_while(|kept| kept.disk == disk).count()
    }

    /// Adds a finding, or makes the last one longer.
    pub(super) fn find(&mut self, found: Difference) {
        if let Some(last) = self.findings.last_mut().filter(|last| continues(last, &found)) {
            last.range.end = found.range.end;
        } else if self.kept_of(found.disk) < FINDINGS_MAX {
            self.findings.push(found);
        } else {
            self.more_findings += 1;
        }
    }
}

/// Whether a finding is the same as the one before it, further on.
fn continues(last: &Difference, next: &Difference) -> bool {
    let gap = next.range.byte_offset().wrapping_sub(last.range.byte_offset());
    let is_same = match (&last.what, &next.what) {
        (What::Unreadable { error }, What::Unreadable { error: other }) => error == other,
        (What::Differs { live, vault }, What::Differs { live: next_live, vault: next_vault }) => {
            continues_live(live, next_live, gap) && continues_vault(vault, next_vault, gap)
        }
        _ => false,
    };
    last.disk == next.disk && last.range.end == next.range.start && is_same
}

fn continues_live(last: &LiveSide, next: &LiveSide, gap: u64) -> bool {
    match (last, next) {
        (
            LiveSide::Image { path, offset, .. },
            LiveSide::Image { path: next_path, offset: next_offset, .. },
        ) => path == next_path && offset + gap == *next_offset,
        _ => last == next,
    }
}

fn continues_vault(last: &Origin, next: &Origin, gap: u64) -> bool {
    match (last, next) {
        (Origin::Base { path, offset, .. }, Origin::Base { path: next_path, offset: next_offset, .. }) => {
            path == next_path && offset + gap == *next_offset
        }
        _ => last == next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disk_whose_findings_are_many_leaves_room_for_those_of_another() {
        let mut report = GroupReport::default();
        let mut find = |disk, sector| {
            let what = What::Unreadable { error: format!("byte {sector}") };
            let range = SectorRange::new(sector, sector + 1);
            report.find(Difference { disk: DiskId(disk), name: disk.to_string(), range, what });
        };
        (0..FINDINGS_MAX as u64 + 7).for_each(|sector| find(1, sector));
        find(2, 0);
        assert_eq!((report.findings.len(), report.more_findings), (FINDINGS_MAX + 1, 7));
        assert_eq!(report.findings.last().expect("some").disk, DiskId(2));
    }
}
