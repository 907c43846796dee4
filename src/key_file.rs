//! The file that a site key is kept in: read, and replaced, in one piece or not at all; for its owner's eyes only.
//!
//! ```text
//!   site.key               the key that wraps
//!   site.key.next          the one that is about to take its place, while group keys are wrapped anew
//!   site.key.replaced-…    what another key took the place of; nothing reads it, and nothing removes it
//!   site.key.partial       being written; never the only copy of a key
//! ```
//!
//! Looking creates nothing. No function here destroys a key that is in no other file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::seal::{SiteKey, SiteKeyId};

/// Who may read a key: its owner.
const MODE: u32 = 0o600;
/// A key is a few lines.
const BYTES_MAX: u64 = 4096;

/// Why what lies in a key's place cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// What is wrong with it; never what it holds.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
    /// The key that it holds all the same, as far as that can be told.
    pub id: Option<SiteKeyId>,
}

impl Unusable {
    fn new(problem: impl Into<String>, mend: impl Into<String>) -> Unusable {
        Unusable { problem: problem.into(), mend: mend.into(), id: None }
    }
}

/// The key in a file; nothing if nothing has that name.
pub fn look(path: &Path) -> std::result::Result<Option<SiteKey>, Unusable> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return look_at_missing(path),
        metadata => metadata.map_err(|error| unreadable(&error))?,
    };
    if metadata.is_dir() {
        let mend = format!("name a file, for example {}", path.join("site.key").display());
        return Err(Unusable::new("it is a directory", mend));
    }
    if !metadata.is_file() {
        return Err(Unusable::new("it is no regular file", "name one"));
    }
    let text = read_text(path).map_err(|error| unreadable(&error))?;
    let key = SiteKey::from_text(&text).map_err(|error| no_key(error.to_string()))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let problem = format!("others may read the site key (mode {mode:04o})");
        let unusable = Unusable::new(problem, format!("chmod 600 {}", path.display()));
        return Err(Unusable { id: Some(key.id()), ..unusable });
    }
    Ok(Some(key))
}

/// What has no file behind it may still have that name.
fn look_at_missing(path: &Path) -> std::result::Result<Option<SiteKey>, Unusable> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(None),
        Ok(_) => {
            let problem = "it is a symbolic link to a file that is not there";
            Err(Unusable::new(problem, "bring that file, or remove the link"))
        }
    }
}

fn unreadable(error: &io::Error) -> Unusable {
    match error.kind() {
        io::ErrorKind::InvalidData => no_key("this is no site key: it is not text"),
        _ => Unusable::new(format!("it cannot be read ({error})"), "let this user read it"),
    }
}

fn no_key(problem: impl Into<String>) -> Unusable {
    Unusable::new(problem, "put the site key there that 'key export' wrote, or move the file away")
}

fn read_text(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)?.take(BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The key in a file; nothing if there is no such file.
///
/// # Errors
/// `Invalid`, with the mend, where what lies there cannot be used.
pub fn read(path: &Path) -> Result<Option<SiteKey>> {
    look(path).map_err(|Unusable { problem, mend, .. }| {
        Error::invalid(format!("the site key's file: {problem}: {mend}")).at_path(path)
    })
}

/// Puts a key into a file that is not there yet; durable when this returns.
pub fn create(path: &Path, key: &SiteKey) -> Result<()> {
    // A link, not a renaming: it never takes another file's place.
    put(path, key, |partial| fs::hard_link(partial, path))
}

/// Puts a key into a file, whatever is there; durable when this returns. What was there is another file's too.
pub fn replace(path: &Path, key: &SiteKey) -> Result<()> {
    put(path, key, |partial| fs::rename(partial, path))
}

fn put(path: &Path, key: &SiteKey, publish: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let partial = partial(path);
    let written = remove_partial(path).and_then(|()| write(&partial, key)).and_then(|()| publish(&partial));
    // Linked or not, there must be nothing left that somebody takes for a key.
    let removed = remove_partial(path);
    let put = written.and(removed).and_then(|()| sync_directory(parent(path)));
    put.map_err(|error| Error::io("writing a site key", error).at_path(path))
}

fn write(partial: &Path, key: &SiteKey) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(partial)?;
    file.write_all(key.to_text().as_bytes())?;
    file.sync_all()
}

/// Removes what an interrupted [`create`] or [`replace`] left: a copy, or never the key.
pub fn remove_partial(path: &Path) -> io::Result<()> {
    match fs::remove_file(partial(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn partial(path: &Path) -> PathBuf {
    path.with_added_extension("partial")
}

/// Gives a key's file another name, which nothing has or whose file goes; durable when this returns.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let renamed = fs::rename(from, to).and_then(|()| sync_directory(parent(to)));
    renamed.map_err(|error| Error::io("renaming a site key", error).at_path(from))
}

/// Keeps what lies at `path` under a name of its own, so that a key can take its place; durable when this returns.
pub fn keep_aside(path: &Path, id: Option<SiteKeyId>) -> Result<()> {
    let aside = name_aside(path, id);
    // What is no file has no second name: then there is none at `path` until the key is.
    let kept = fs::hard_link(path, &aside).or_else(|_| fs::rename(path, &aside));
    let kept = kept.and_then(|()| sync_directory(parent(path)));
    kept.map_err(|error| Error::io("keeping what lies in the site key's place", error).at_path(path))
}

/// Keeps a key in a file of its own beside `path`, unless it is in one; durable when this returns.
pub fn keep(path: &Path, key: &SiteKey) -> Result<()> {
    if is_kept(path, key.id()) { Ok(()) } else { create(&name_aside(path, Some(key.id())), key) }
}

/// Whether a key is among those that others took the place of.
pub fn is_kept(path: &Path, id: SiteKeyId) -> bool {
    look(&replaced(path, Some(id))).is_ok_and(|found| found.is_some_and(|key| key.id() == id))
}

/// Where the key that is about to take the place of `path` waits while group keys are wrapped anew.
pub fn next(path: &Path) -> PathBuf {
    path.with_added_extension("next")
}

/// An empty file beside a key that waits to take another's place: with it, each group gets a new key of its own, too.
pub fn new_group_keys(path: &Path) -> PathBuf {
    path.with_added_extension("new-group-keys")
}

/// Makes that file, or removes it; durable when this returns.
pub fn note_new_group_keys(path: &Path, wanted: bool) -> Result<()> {
    let note = new_group_keys(path);
    let noted = match (wanted, note.exists()) {
        (true, _) => {
            OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&note).map(drop)
        }
        (false, true) => fs::remove_file(&note),
        (false, false) => return Ok(()),
    };
    let noted = noted.and_then(|()| sync_directory(parent(path)));
    noted.map_err(|error| Error::io("noting what a rotation is to do", error).at_path(&note))
}

/// Where a key that another one took the place of stays; what is no key has none but a number.
fn replaced(path: &Path, id: Option<SiteKeyId>) -> PathBuf {
    path.with_added_extension(id.map_or("replaced".to_owned(), |id| format!("replaced-{id}")))
}

/// The name under which something is kept that another key takes the place of: its own if it is kept already, else the
/// first that nothing has.
pub fn name_aside(path: &Path, id: Option<SiteKeyId>) -> PathBuf {
    let name = replaced(path, id);
    if id.is_some_and(|id| is_kept(path, id)) {
        return name;
    }
    let numbered = (1..).map(|number| {
        let mut numbered = name.clone().into_os_string();
        numbered.push(format!("-{number}"));
        PathBuf::from(numbered)
    });
    let named = id.map(|_| name.clone()).into_iter().chain(numbered);
    named.into_iter().find(|name| fs::symlink_metadata(name).is_err()).expect("numbers do not end")
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes what a directory holds survive a power cut.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site.key");
        (directory, path)
    }

    fn key(number: u128) -> SiteKey {
        SiteKey::drawn([number, number])
    }

    fn put_text(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_key_is_read_as_it_was_written_and_only_if_nobody_else_can() {
        let (_directory, path) = place();
        assert!(read(&path).unwrap().is_none());
        create(&path, &key(3)).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().id(), key(3).id());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("chmod 600"), "{error}");
        assert_eq!(look(&path).unwrap_err().id, Some(key(3).id()), "it has a name all the same");
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_own_mend_and_never_shown() {
        let (directory, path) = place();
        put_text(&path, "hunter2", 0o600);
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("site.key") && error.contains("no site key"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        fs::write(&path, [0xff; 9]).unwrap();
        assert!(look(&path).unwrap_err().problem.contains("not text"));
        let told = look(directory.path()).unwrap_err();
        assert!(told.problem.contains("directory") && told.mend.starts_with("name a file"), "{told:?}");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/none/site.key", &path).unwrap();
        assert!(look(&path).unwrap_err().problem.contains("symbolic link"));
    }

    #[test]
    fn a_new_file_takes_nobodys_place_and_leaves_nothing_half_written() {
        let (directory, path) = place();
        put_text(&partial(&path), "left by a crash", 0o644);
        create(&path, &key(1)).unwrap();
        assert_eq!(create(&path, &key(2)).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap().unwrap().id(), key(1).id());
        assert_eq!(names(directory.path()), ["site.key"]);
        replace(&path, &key(2)).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().id(), key(2).id());
        assert_eq!(names(directory.path()), ["site.key"]);
    }

    #[test]
    fn what_is_kept_keeps_its_name_and_is_kept_once() {
        let (directory, path) = place();
        create(&path, &key(1)).unwrap();
        keep_aside(&path, Some(key(1).id())).unwrap();
        assert!(is_kept(&path, key(1).id()) && !is_kept(&path, key(2).id()));
        keep(&path, &key(1)).unwrap();
        keep(&path, &key(2)).unwrap();
        let [one, two] = [1, 2].map(|number| format!("site.key.replaced-{}", key(number).id()));
        let mut expected = ["site.key".to_owned(), one.clone(), two];
        expected.sort();
        assert_eq!(names(directory.path()), expected);
        // Somebody else's file under that name is no reason to lose a key.
        put_text(&directory.path().join(&one), "something else", 0o600);
        keep(&path, &key(1)).unwrap();
        assert_eq!(read(&directory.path().join(format!("{one}-1"))).unwrap().unwrap().id(), key(1).id());
    }

    #[test]
    fn what_is_no_key_is_kept_under_a_number() {
        let (directory, path) = place();
        put_text(&path, "something", 0o600);
        keep_aside(&path, None).unwrap();
        replace(&path, &key(1)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        keep_aside(&path, None).unwrap();
        replace(&path, &key(2)).unwrap();
        assert_eq!(names(directory.path()), ["site.key", "site.key.replaced-1", "site.key.replaced-2"]);
        assert_eq!(fs::read_to_string(directory.path().join("site.key.replaced-1")).unwrap(), "something");
    }
}
