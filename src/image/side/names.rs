//! The names of side files: which there are of a disk, and how they go.
//!
//! A number has up to three names: the file, the file before it was published, and its receipt. Nothing here reads a file's table but
//! through [`SideFile`].
//!
//! Invariant: a receipt goes, durably, before the file that it misses; a file goes only once a checkpoint has reached it, or its
//! disk left.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{Expected, SideFile};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Runtime;
use crate::seal::GroupKeys;
use crate::units::{DiskId, Lsn};

/// Path of a disk's side file.
pub fn side_path(directory: &Path, disk: DiskId, number: u32) -> PathBuf {
    directory.join(format!("{disk}.side-{number}"))
}

/// What a name with `.side-` in it is that of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NameKind {
    /// A side file.
    File,
    /// One that was not published yet.
    Partial,
    /// An empty file that says: the side file of this number was counted on. Should that get lost, it is missed.
    Receipt,
}

impl NameKind {
    fn extension(self) -> Option<&'static str> {
        match self {
            NameKind::File => None,
            NameKind::Partial => Some("partial"),
            NameKind::Receipt => Some("receipt"),
        }
    }
}

/// A name that belongs to a disk's side file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SideName {
    pub(super) disk: DiskId,
    pub(super) number: u32,
    pub(super) kind: NameKind,
}

impl SideName {
    fn parse(name: &str) -> Option<SideName> {
        let (disk, rest) = name.split_once(".side-")?;
        let (number, extension) = match rest.split_once('.') {
            Some((number, extension)) => (number, Some(extension)),
            None => (rest, None),
        };
        let kinds = [NameKind::File, NameKind::Partial, NameKind::Receipt];
        let kind = kinds.into_iter().find(|kind| kind.extension() == extension)?;
        Some(SideName { disk: disk.parse().ok()?, number: number.parse().ok()?, kind })
    }

    pub(super) fn path(self, directory: &Path) -> PathBuf {
        let path = side_path(directory, self.disk, self.number);
        match self.kind.extension() {
            Some(extension) => path.with_added_extension(extension),
            None => path,
        }
    }
}

async fn remove_if_there(runtime: &Rc<Runtime>, path: &Path) -> Result<()> {
    match runtime.remove(path).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The names of side files in a directory of images, as an opening found them.
#[derive(Debug, Default)]
pub struct SideNames(Vec<SideName>);

/// Lists the side files in `directory`, and makes their names durable: a dead owner may have published one without
/// living to sync its name, and nobody may count on it before.
pub async fn list(runtime: &Rc<Runtime>, directory: &Path) -> Result<SideNames> {
    let names = runtime.list(directory).await?;
    let mut found: Vec<_> = names.iter().filter_map(|name| SideName::parse(name)).collect();
    found.sort_unstable();
    if !found.is_empty() {
        runtime.sync_directory(directory).await?;
    }
    Ok(SideNames(found))
}

/// The side files of a disk.
#[derive(Debug)]
pub struct Sides {
    /// Those that can be read, oldest first.
    pub files: Vec<Rc<SideFile>>,
    /// The highest number that was ever seen; 0 if none was.
    pub last: u32,
    disk: DiskId,
    numbers: Vec<u32>,
    /// What is wrong with one that was counted on.
    damage: Option<Error>,
}

impl Sides {
    /// The disk's records up to here are in its image or in its side files, whatever became of those that cannot be read.
    pub fn through(&self) -> Lsn {
        self.files.iter().map(|file| file.through()).max().unwrap_or_default()
    }

    /// Keeps the files that an image lacks which has all records up to `destaged`; removes all if it lacks none.
    ///
    /// # Errors
    /// One that it lacks is missing, damaged, or cannot be read.
    pub async fn keep_lacked(
        &mut self,
        runtime: &Rc<Runtime>,
        directory: &Path,
        destaged: Lsn,
    ) -> Result<()> {
        let newest = self.files.last().filter(|newest| newest.number() == self.last);
        let is_needless = newest.is_some_and(|newest| newest.through() <= destaged);
        if is_needless {
            remove_numbers(runtime, directory, self.disk, &self.numbers).await;
            self.files.clear();
            return Ok(());
        }
        self.files.retain(|file| file.through() > destaged);
        self.damage.take().map_or(Ok(()), Err)
    }
}

impl SideNames {
    /// Opens the side files of a disk.
    pub async fn open(
        &self,
        runtime: &Rc<Runtime>,
        directory: &Path,
        disk: DiskId,
        keys: &GroupKeys,
    ) -> Sides {
        let of_disk = self.0.iter().filter(|name| name.disk == disk && name.kind != NameKind::Partial);
        let mut numbers: Vec<u32> = of_disk.map(|name| name.number).collect();
        numbers.dedup();
        let last = numbers.last().copied().unwrap_or(0);
        let (mut files, mut damage) = (Vec::new(), None);
        for &number in &numbers {
            let path = side_path(directory, disk, number);
            match SideFile::open(runtime, &path, Expected { disk, number, keys }).await {
                Ok(file) => files.push(Rc::new(file)),
                Err(error) => drop(damage.get_or_insert(error)),
            }
        }
        Sides { files, last, disk, numbers, damage }
    }

    /// Removes what belongs to no disk of the group, and what was never published.
    pub async fn clean(&self, runtime: &Rc<Runtime>, directory: &Path, is_known: impl Fn(DiskId) -> bool) {
        for name in self.0.iter().filter(|name| name.kind == NameKind::Partial || !is_known(name.disk)) {
            discard(runtime, &name.path(directory)).await;
        }
    }
}

/// Removes a file that nobody needs; one that cannot be removed now is found again by the next opening.
async fn discard(runtime: &Rc<Runtime>, path: &Path) {
    if let Err(error) = remove_if_there(runtime, path).await {
        tracing::warn!(%error, "a side file that is no longer needed could not be removed");
    }
}

/// Removes side files that a durable checkpoint has reached.
pub async fn remove(runtime: &Rc<Runtime>, directory: &Path, files: &[Rc<SideFile>]) {
    if files.is_empty() {
        return;
    }
    let numbers: Vec<u32> = files.iter().map(|file| file.number()).collect();
    remove_numbers(runtime, directory, files[0].identity.disk, &numbers).await;
}

/// Removes the side files of these numbers that a durable checkpoint has reached. Their receipts go first, so that none
/// misses a file.
async fn remove_numbers(runtime: &Rc<Runtime>, directory: &Path, disk: DiskId, numbers: &[u32]) {
    for kind in [NameKind::Receipt, NameKind::File] {
        let removed = async {
            for &number in numbers {
                remove_if_there(runtime, &SideName { disk, number, kind }.path(directory)).await?;
            }
            // Should a file's name come back in a power cut, the checkpoint says that it is not needed.
            runtime.sync_directory(directory).await
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, "side files that are no longer needed could not be removed");
            return;
        }
    }
}

/// Removes all side files of a disk that left.
pub async fn remove_all(runtime: &Rc<Runtime>, directory: &Path, disk: DiskId) -> Result<()> {
    for name in runtime.list(directory).await? {
        if SideName::parse(&name).is_some_and(|name| name.disk == disk) {
            remove_if_there(runtime, &directory.join(name)).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_files_name_says_whose_it_is() {
        for kind in [NameKind::File, NameKind::Partial, NameKind::Receipt] {
            let name = SideName { disk: DiskId(0xab), number: 12, kind };
            let path = name.path(Path::new("/images"));
            let text = path.file_name().and_then(|name| name.to_str()).expect("text");
            assert_eq!(SideName::parse(text), Some(name));
        }
        for other in ["ab.raw", "ab.checkpoint", "side-1", "ab.side-", "zz.side-1", "ab.side-1.old"] {
            assert_eq!(SideName::parse(other), None, "{other}");
        }
    }
}
