//! The file that a site key is kept in: read, and replaced, in one piece or not at all; for its owner's eyes only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::seal::{SiteKey, SiteKeyId};

/// Who may read a key: its owner.
const MODE: u32 = 0o600;

/// The key in a file; nothing if there is no such file.
///
/// # Errors
/// `Invalid` where the file holds no key, or others may read it too.
pub(super) fn read(path: &Path) -> Result<Option<SiteKey>> {
    let failed = |error| Error::io("reading the site key", error).at_path(path);
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(failed)?,
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let text = format!("others may read the site key (mode {mode:04o}): chmod 600 it");
        return Err(Error::invalid(text).at_path(path));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
    SiteKey::from_text(&text).map(Some).map_err(|error| error.at_path(path))
}

/// Puts a key into a file that is not there yet; durable when this returns.
pub(super) fn create(path: &Path, key: &SiteKey) -> Result<()> {
    write(path, key).map_err(|error| Error::io("writing a site key", error).at_path(path))
}

fn write(path: &Path, key: &SiteKey) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        if let Some(above) = directory.parent() {
            sync_directory(above)?;
        }
    }
    let partial = path.with_added_extension("partial");
    // What an earlier try left was never the key.
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&partial)?;
    file.write_all(key.to_text().as_bytes())?;
    file.sync_all()?;
    // A link, not a renaming: it never takes another key's place.
    fs::hard_link(&partial, path)?;
    fs::remove_file(&partial)?;
    sync_directory(directory)
}

/// Gives a key's file another name, which nothing has or whose file goes; durable when this returns.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    let renamed = fs::rename(from, to).and_then(|()| sync_directory(to.parent().unwrap_or(Path::new("/"))));
    renamed.map_err(|error| Error::io("renaming a site key", error).at_path(from))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Where the key that is about to take the place of `path` waits while group keys are wrapped anew.
pub(super) fn next(path: &Path) -> PathBuf {
    path.with_added_extension("next")
}

/// Where a key that another one took the place of stays.
pub(super) fn replaced(path: &Path, id: SiteKeyId) -> PathBuf {
    path.with_added_extension(format!("replaced-{id}"))
}

/// What a file of that name would be refused for.
pub(super) fn already_there(path: &Path, id: SiteKeyId) -> Error {
    let text = format!("there is a site key already, {id}; groups that it seals cannot be opened without it");
    Error::new(ErrorKind::AlreadyExists, text).at_path(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_only_if_nobody_else_can() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys/site.key");
        assert!(read(&path).unwrap().is_none());
        let key = SiteKey::drawn([3, 4]);
        create(&path, &key).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().id(), key.id());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(create(&path, &SiteKey::drawn([5, 6])).is_err(), "it never takes another key's place");
        assert_eq!(read(&path).unwrap().unwrap().id(), key.id());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site.key");
        fs::write(&path, "hunter2").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("site.key") && !error.contains("hunter2"), "{error}");
    }
}
