//! What is kept of verifications beside a group's journal. Of the last one, in `groups/GROUP_ID/verified`: how it ended. Of one under
//! way, in `groups/GROUP_ID/verifying`: how far it is, so that the next process goes on with one that a restart cut off. Both are
//! JSON objects that are replaced as a whole.
//!
//! The latter is replaced about once a second and goes when the verification has ended. It is only a hint: where it is lost, damaged
//! or too old, everything is read again.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bookmark::{Bookmark, Mark, Place};
use crate::control::model::VerifyLast;
use crate::error::{Error, Result};
use crate::units::{DiskSlot, Lsn, WallNanos};

const VERSION: u32 = 1;
/// How often it is looked whether the bookmark moved.
const SAVE_PERIOD: Duration = Duration::from_secs(1);

/// A verification that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CutOff {
    /// When it began.
    pub started: WallNanos,
    /// What was to be read.
    pub scope: Scope,
    /// How far it was.
    pub mark: Mark,
}

/// What of a group is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scope {
    /// In the background: the vault, then the disks.
    Both,
    /// Its vault, as somebody asked.
    Vault,
    /// Its disks, as somebody asked.
    Disks,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    started: WallNanos,
    scope: Scope,
    place: Stored,
    read_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stored {
    Beginning,
    Blobs { through: u64 },
    Bases { slot: u32, bytes: u64 },
    Disks { slot: u32, sectors: u64 },
}

impl From<Place> for Stored {
    fn from(place: Place) -> Stored {
        match place {
            Place::Beginning => Stored::Beginning,
            Place::Blobs(Lsn(through)) => Stored::Blobs { through },
            Place::Bases(DiskSlot(slot), bytes) => Stored::Bases { slot, bytes },
            Place::Disks(DiskSlot(slot), sectors) => Stored::Disks { slot, sectors },
        }
    }
}

impl From<Stored> for Place {
    fn from(stored: Stored) -> Place {
        match stored {
            Stored::Beginning => Place::Beginning,
            Stored::Blobs { through } => Place::Blobs(Lsn(through)),
            Stored::Bases { slot, bytes } => Place::Bases(DiskSlot(slot), bytes),
            Stored::Disks { slot, sectors } => Place::Disks(DiskSlot(slot), sectors),
        }
    }
}

/// What an earlier process left, if it can be gone on with.
pub(super) fn read(path: &Path) -> Option<CutOff> {
    let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let mark = Mark { place: record.place.into(), read_bytes: record.read_bytes };
    (record.version == VERSION).then_some(CutOff { started: record.started, scope: record.scope, mark })
}

fn write(path: &Path, cut_off: CutOff) -> std::io::Result<()> {
    let CutOff { started, scope, mark } = cut_off;
    let record =
        Record { version: VERSION, started, scope, place: mark.place.into(), read_bytes: mark.read_bytes };
    let partial = path.with_extension("partial");
    // Not synced: what a power cut leaves may be the one before, or nothing.
    let options = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
    options.open(&partial)?.write_all(&serde_json::to_vec(&record)?)?;
    std::fs::rename(&partial, path)
}

/// Keeps the bookmark of a verification while `work` goes on, in one that whoever comes next finds. It goes with its end.
pub(super) struct Keeper {
    pub path: PathBuf,
    pub begun: CutOff,
    pub bookmark: Bookmark,
}

impl Keeper {
    /// Carries out `work`. Dropped at any await it leaves the file, and so it does where `stays` says so of the result.
    pub(super) async fn beside<T>(&self, work: impl Future<Output = T>, stays: impl FnOnce(&T) -> bool) -> T {
        let save = async {
            let mut kept = None;
            loop {
                let mark = self.bookmark.mark();
                if kept != Some(mark) {
                    self.save(mark).await;
                    kept = Some(mark);
                }
                tokio::time::sleep(SAVE_PERIOD).await;
            }
        };
        let result = tokio::select! {
            result = work => result,
            () = save => unreachable!("it never ends"),
        };
        if !stays(&result) {
            remove(self.path.clone()).await;
        }
        result
    }

    /// Keeps that it is so far.
    pub(super) async fn save(&self, mark: Mark) {
        let (path, cut_off) = (self.path.clone(), CutOff { mark, ..self.begun });
        let written = tokio::task::spawn_blocking(move || write(&path, cut_off)).await;
        if let Ok(Err(error)) = written {
            tracing::debug!(path = %self.path.display(), %error, "how far a verification is cannot be kept");
        }
    }
}

/// Removes a bookmark: there is nothing to go on with.
pub(super) async fn remove(path: PathBuf) {
    // It may never have been there.
    let _ = tokio::task::spawn_blocking(move || std::fs::remove_file(path)).await;
}

/// What is kept of the last verification: `groups/GROUP_ID/verified`. Whatever is wrong with it, it counts as never.
#[derive(Serialize, Deserialize)]
struct LastRecord {
    version: u32,
    #[serde(flatten)]
    last: VerifyLast,
}

const LAST_VERSION: u32 = 1;

/// How the last one ended; nothing where that is not known.
pub(super) fn read_last(path: &Path) -> Option<VerifyLast> {
    let record: LastRecord = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (record.version == LAST_VERSION).then_some(record.last)
}

/// Puts the record in the place of the one before, durably.
pub(super) fn write_last(path: &Path, last: VerifyLast) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let text = serde_json::to_vec(&LastRecord { version: LAST_VERSION, last })?;
        let options =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
        let mut file = options.open(&partial)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        path.parent().map_or(Ok(()), |parent| std::fs::File::open(parent)?.sync_all())
    };
    write().map_err(|error| Error::io("writing that it was verified", error).at_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_damaged_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("verifying");
        assert_eq!(read(&path), None);
        for place in [
            Place::Beginning,
            Place::Blobs(Lsn(7)),
            Place::Bases(DiskSlot(1), 8),
            Place::Disks(DiskSlot(2), 9),
        ] {
            let mark = Mark { place, read_bytes: 10 };
            let cut_off = CutOff { started: WallNanos(5), scope: Scope::Both, mark };
            write(&path, cut_off).expect("written");
            assert_eq!(read(&path), Some(cut_off));
        }
        let bytes = std::fs::read(&path).expect("there");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
        assert_eq!(read(&path), None);
    }
}
