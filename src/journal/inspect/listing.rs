//! What a path names: a journal's directory with all that lies in it, or one segment. Only looks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::SegmentSurvey;
use super::verdict::Fault;
use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, offset_of};
use crate::journal::runs;
use crate::journal::segments::{SegmentIndex, parse_file_name};
use crate::storage::FILE_SYSTEMS_OWN;
use crate::storage::read_only::ReadOnlyFile;
use crate::units::{GroupId, Lsn};

/// The mend for what is no journal.
const NAME_A_JOURNAL: &str = "name a group's `journal` directory, or a segment's file";

/// The mend for what belongs to somebody else.
const MAY_READ: &str = "look at it as root, or as the gateway's user";

/// What a path names.
pub(super) struct Listing {
    pub(super) segments: Vec<(SegmentIndex, PathBuf)>,
    pub(super) unopened: Vec<Fault>,
    pub(super) strangers: Vec<PathBuf>,
    pub(super) unfinished: Vec<PathBuf>,
    pub(super) runs: Vec<PathBuf>,
    pub(super) whole: bool,
    /// Whether the path itself has the name of a segment.
    is_named_segment: bool,
    /// The group in whose directory the journal stands.
    pub(super) group: Option<GroupId>,
    /// How far the images beside it were brought.
    pub(super) destaged: Option<Lsn>,
    /// Flipped bits in the checkpoints of these.
    pub(super) rotten_checkpoints: Vec<Fault>,
}

impl Listing {
    pub(super) fn of(path: &Path) -> Result<Listing> {
        let found = fs::canonicalize(path).map_err(|error| unseen(path, error))?;
        let mut listing = Listing {
            segments: Vec::new(),
            unopened: Vec::new(),
            strangers: Vec::new(),
            unfinished: Vec::new(),
            runs: Vec::new(),
            whole: found.is_dir(),
            is_named_segment: false,
            group: None,
            destaged: None,
            rotten_checkpoints: Vec::new(),
        };
        if !listing.whole {
            let name = found.file_name().and_then(|name| name.to_str());
            let index = name.and_then(parse_file_name);
            listing.is_named_segment = index.is_some();
            listing.segments.push((index.unwrap_or(SegmentIndex(0)), path.to_owned()));
            return Ok(listing);
        }
        for name in names(path).map_err(|error| unseen(path, error))? {
            listing.add(path.join(&name), &name);
        }
        if let Some(directory) = found.parent() {
            let name = directory.file_name().and_then(|name| name.to_str());
            listing.group = name.and_then(|name| name.parse().ok());
            listing.look_at_checkpoints(&directory.join("images"));
        }
        listing.refuse_foreign(path)?;
        Ok(listing)
    }

    /// Takes the highest checkpoint among a group's images, and notes flipped bits. What cannot be read says nothing here;
    /// opening judges it.
    fn look_at_checkpoints(&mut self, images: &Path) {
        let names = names(images).unwrap_or_default();
        for name in names.iter().filter(|name| name.ends_with(".checkpoint")) {
            let path = images.join(name);
            let Ok(bytes) = ReadOnlyFile::open(&path).and_then(|file| file.contents()) else { continue };
            let destaged = Checkpoint::newest(&bytes).map(|checkpoint| checkpoint.destaged);
            self.destaged = self.destaged.max(destaged);
            if let Some(bad) = Checkpoint::bad_slot(&bytes).filter(|bad| bad.is_rotten) {
                let what = "a checkpoint in which a bit has flipped: the other slot is used".into();
                self.rotten_checkpoints.push(Fault { path, offset: Some(offset_of(bad.number)), what });
            }
        }
    }

    /// Opens the segments, and notes those that cannot be. An error if that is all of them: nothing can be said then.
    pub(super) fn open(&mut self) -> Result<Vec<(SegmentIndex, ReadOnlyFile)>> {
        let (mut files, mut first_error) = (Vec::with_capacity(self.segments.len()), None);
        for (index, path) in self.segments.drain(..) {
            match ReadOnlyFile::open(&path) {
                Ok(file) => files.push((index, file)),
                Err(error) => {
                    let what = format!("it cannot be opened: {}", error.without_place());
                    self.unopened.push(Fault { path, offset: None, what });
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) if files.is_empty() => Err(refused(error)),
            _ => Ok(files),
        }
    }

    /// A directory that holds nothing of a journal, and stands beside no images, is none: nothing can be said of it.
    fn refuse_foreign(&self, path: &Path) -> Result<()> {
        let is_empty = self.segments.is_empty() && self.unfinished.is_empty() && self.runs.is_empty();
        if !is_empty || self.destaged.is_some() {
            return Ok(());
        }
        let inner = path.join("journal");
        let mend = match inner.is_dir() {
            true => format!("look at {}", inner.display()),
            false => NAME_A_JOURNAL.into(),
        };
        Err(Error::invalid(format!("no journal: it holds no segment: {mend}")).at_path(path))
    }

    /// A file that is not called as segments are, and holds no frame, is none: nothing can be said of it. One that is called so
    /// may never have been used, or have lost what it held.
    pub(super) fn refuse_frameless(&self, path: &Path, segments: &[SegmentSurvey]) -> Result<()> {
        let is_known = self.whole || self.is_named_segment;
        let may_bear = |segment: &SegmentSurvey| segment.bears_frames() || !segment.unreadable.is_empty();
        if is_known || segments.iter().any(may_bear) {
            return Ok(());
        }
        let text = format!("no journal: no frame stands in the file: {NAME_A_JOURNAL}");
        Err(Error::invalid(text).at_path(path))
    }

    fn add(&mut self, path: PathBuf, name: &str) {
        match parse_file_name(name) {
            // What cannot be opened as a segment is none, whatever its name.
            Some(_) if fs::metadata(&path).is_ok_and(|found| !found.is_file()) => self.strangers.push(path),
            None if runs::is_file_name(name) => self.runs.push(path),
            Some(index) => self.segments.push((index, path)),
            None if name.ends_with(".new") || runs::is_partial_name(name) => self.unfinished.push(path),
            None => self.strangers.push(path),
        }
    }
}

/// Why nothing can be said of a path. Only a device that gives an error may stand for a journal that is not sound; all else is a path
/// of something else, or that may not be looked at.
fn unseen(path: &Path, error: io::Error) -> Error {
    let text = match error.kind() {
        _ if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
            return Error::io("looking", error).at_path(path);
        }
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            format!("no journal: nothing has that name: {NAME_A_JOURNAL}")
        }
        io::ErrorKind::PermissionDenied => format!("it may not be read: {error}: {MAY_READ}"),
        _ => format!("no journal: {error}: {NAME_A_JOURNAL}"),
    };
    Error::invalid(text).at_path(path)
}

/// The same of a segment that could not be opened.
fn refused(error: Error) -> Error {
    match error.io_kind() {
        Some(io::ErrorKind::PermissionDenied) => {
            let text = format!("it may not be read: {}: {MAY_READ}", error.without_place());
            match error.path() {
                Some(path) => Error::invalid(text).at_path(path),
                None => Error::invalid(text),
            }
        }
        _ => error,
    }
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if name != FILE_SYSTEMS_OWN {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
