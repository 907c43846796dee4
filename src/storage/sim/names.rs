//! The directory tree: the names that survive a power cut for sure, those that processes see, and the changes between.
//!
//! A name is a whole path. Each change concerns one name in one directory, and a sync of that directory covers it. A
//! power cut keeps or undoes each of the others by itself; the one bond is that a publish never takes the old name
//! away before the new one is there, since every file system keeps that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::file::{Moment, Severity};
use crate::random::Random;

/// Names a file's bytes, whatever names lead to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId(pub(super) u64);

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    File(FileId),
}

type Tree = BTreeMap<PathBuf, Node>;

#[derive(Clone, Debug)]
struct Change {
    at: Moment,
    path: PathBuf,
    /// What the name leads to from now on; `None` where it is gone.
    node: Option<Node>,
    /// The new name without which this one is not taken away.
    only_with: Option<PathBuf>,
}

/// One disk's names.
#[derive(Clone, Debug)]
pub(super) struct Names {
    durable: Tree,
    visible: Tree,
    unsynced: Vec<Change>,
}

impl Names {
    /// An empty root.
    pub(super) fn new() -> Names {
        Names::at_rest(BTreeMap::from([(PathBuf::from("/"), Node::Directory)]))
    }

    /// A tree that has been synced.
    pub(super) fn at_rest(tree: Tree) -> Names {
        Names { durable: tree.clone(), visible: tree, unsynced: Vec::new() }
    }

    pub(super) fn visible(&self) -> &Tree {
        &self.visible
    }

    pub(super) fn durable(&self) -> &Tree {
        &self.durable
    }

    /// Every file that a name leads to, or may lead to after a power cut.
    pub(super) fn files(&self) -> impl Iterator<Item = FileId> {
        let unsynced = self.unsynced.iter().filter_map(|change| change.node.as_ref());
        self.visible.values().chain(self.durable.values()).chain(unsynced).filter_map(|node| match node {
            Node::File(file) => Some(*file),
            Node::Directory => None,
        })
    }

    pub(super) fn get(&self, path: &Path) -> Option<Node> {
        self.visible.get(path).copied()
    }

    /// The names in a directory, sorted.
    pub(super) fn list(&self, directory: &Path) -> Result<Vec<String>, Errno> {
        match self.get(directory) {
            None => Err(Errno::NOENT),
            Some(Node::File(_)) => Err(Errno::NOTDIR),
            Some(Node::Directory) => Ok(self.children(directory)),
        }
    }

    fn children(&self, directory: &Path) -> Vec<String> {
        let below = self.visible.range(directory.to_owned()..).skip(1);
        let below = below.map(|(path, _)| path).take_while(|path| path.starts_with(directory));
        let children = below.filter(|path| path.parent() == Some(directory));
        let mut names: Vec<String> =
            children.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect();
        names.sort_unstable();
        names
    }

    fn check_parent(&self, path: &Path) -> Result<(), Errno> {
        match path.parent().map(|parent| self.get(parent)) {
            Some(Some(Node::Directory)) => Ok(()),
            Some(Some(Node::File(_))) => Err(Errno::NOTDIR),
            Some(None) | None => Err(Errno::NOENT),
        }
    }

    pub(super) fn create_file(&mut self, at: Moment, path: &Path, file: FileId) -> Result<(), Errno> {
        self.check_parent(path)?;
        if self.get(path).is_some() {
            return Err(Errno::EXIST);
        }
        self.set(at, path, Some(Node::File(file)), None);
        Ok(())
    }

    pub(super) fn create_directory(&mut self, at: Moment, path: &Path) -> Result<(), Errno> {
        match self.get(path) {
            Some(Node::Directory) => return Ok(()),
            Some(Node::File(_)) => return Err(Errno::EXIST),
            None => {}
        }
        let parent = path.parent().ok_or(Errno::NOENT)?;
        self.create_directory(at, parent).map_err(|errno| match errno {
            Errno::EXIST => Errno::NOTDIR,
            other => other,
        })?;
        self.set(at, path, Some(Node::Directory), None);
        Ok(())
    }

    pub(super) fn publish(&mut self, at: Moment, from: &Path, to: &Path) -> Result<(), Errno> {
        let node = match self.get(from) {
            None => return Err(Errno::NOENT),
            Some(Node::Directory) => return Err(Errno::ISDIR),
            Some(node) => node,
        };
        self.check_parent(to)?;
        if self.get(to).is_some() {
            return Err(Errno::EXIST);
        }
        self.set(at, to, Some(node), None);
        self.set(at, from, None, Some(to.to_owned()));
        Ok(())
    }

    pub(super) fn remove(&mut self, at: Moment, path: &Path) -> Result<(), Errno> {
        match self.get(path) {
            None => Err(Errno::NOENT),
            Some(Node::Directory) => Err(Errno::ISDIR),
            Some(Node::File(_)) => {
                self.set(at, path, None, None);
                Ok(())
            }
        }
    }

    pub(super) fn remove_directory(&mut self, at: Moment, path: &Path) -> Result<(), Errno> {
        if !self.list(path)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.set(at, path, None, None);
        Ok(())
    }

    fn set(&mut self, at: Moment, path: &Path, node: Option<Node>, only_with: Option<PathBuf>) {
        put(&mut self.visible, path, node);
        self.unsynced.push(Change { at, path: path.to_owned(), node, only_with });
    }

    /// A sync of a directory that was submitted at `submitted` succeeds.
    pub(super) fn sync(&mut self, submitted: Moment, directory: &Path) -> Result<(), Errno> {
        self.list(directory)?;
        let covered = |change: &Change| change.at < submitted && change.path.parent() == Some(directory);
        let (now, later) = std::mem::take(&mut self.unsynced).into_iter().partition(covered);
        self.unsynced = later;
        let now: Vec<Change> = now;
        for change in now {
            if let Some(to) = &change.only_with {
                self.settle(to, change.at);
            }
            put(&mut self.durable, &change.path, change.node);
        }
        Ok(())
    }

    /// Makes durable what happened to one name up to a moment.
    fn settle(&mut self, path: &Path, until: Moment) {
        for change in self.unsynced.extract_if(.., |change| change.path == path && change.at <= until) {
            put(&mut self.durable, &change.path, change.node);
        }
    }

    /// The power goes.
    pub(super) fn power_cut(&mut self, severity: Severity, random: &mut Random) {
        let mut undone: Vec<PathBuf> = Vec::new();
        for change in std::mem::take(&mut self.unsynced) {
            let possible = change.only_with.as_ref().is_none_or(|to| !undone.contains(to));
            if possible && severity.keeps(random) {
                put(&mut self.durable, &change.path, change.node);
                undone.retain(|path| *path != change.path);
            } else if change.node.is_some() {
                undone.push(change.path);
            }
        }
        drop_orphans(&mut self.durable);
        self.visible = self.durable.clone();
    }
}

fn put(tree: &mut Tree, path: &Path, node: Option<Node>) {
    match node {
        Some(node) => drop(tree.insert(path.to_owned(), node)),
        None => drop(tree.remove(path)),
    }
}

/// Takes away names whose directory did not survive. Parents sort before their children.
fn drop_orphans(tree: &mut Tree) {
    let mut kept = Tree::new();
    for (path, node) in std::mem::take(tree) {
        let parent = path.parent().map(|parent| kept.get(parent));
        if matches!(parent, None | Some(Some(Node::Directory))) {
            kept.insert(path, node);
        }
    }
    *tree = kept;
}
