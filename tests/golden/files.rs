//! Where golden files lie, and how one that is missing is made. None is ever made anew.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the first set: of every format in its first version.
pub fn first(name: &str) -> PathBuf {
    root().join("1").join(name)
}

/// A file of the second one: sums of bases, and sites whose bases have them.
pub fn second(name: &str) -> PathBuf {
    root().join("2").join(name)
}

/// A file of the third one: sums of images, and the checkpoints of images that have them.
pub fn third(name: &str) -> PathBuf {
    root().join("3").join(name)
}

/// A file of the fourth one: sums of overlays.
pub fn fourth(name: &str) -> PathBuf {
    root().join("4").join(name)
}

/// A file of the fifth one: manifests of bases that go in pieces.
pub fn fifth(name: &str) -> PathBuf {
    root().join("5").join(name)
}

/// A file of the sixth one: a group without recovery points.
pub fn sixth(name: &str) -> PathBuf {
    root().join("6").join(name)
}

/// Where the sets are.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Whether missing files are to be made.
pub fn may_write() -> bool {
    std::env::var_os("AFTERIMAGE_WRITE_GOLDEN").is_some()
}

/// The bytes of a file of the first set, which this build writes as `encoded`.
#[track_caller]
pub fn golden(name: &str, encoded: &[u8]) -> Vec<u8> {
    golden_at(&first(name), encoded)
}

/// The same of any file.
#[track_caller]
pub fn golden_at(path: &Path, encoded: &[u8]) -> Vec<u8> {
    if may_write() && !path.exists() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("the work tree can be written");
        fs::write(path, encoded).expect("the work tree can be written");
    }
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes == encoded, "{}: this build writes other bytes for the same values", path.display());
    bytes
}

/// Every file of a format in every set, with its name.
pub fn of_format(format: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for set in entries(&root()).into_iter().filter(|set| set.join(format).is_dir()) {
        for path in entries(&set.join(format)) {
            let name = path.strip_prefix(root()).expect("below it").display().to_string();
            found.push((name, fs::read(&path).expect("readable")));
        }
    }
    assert!(!found.is_empty(), "no golden files of {format}");
    found
}

/// What a directory holds, sorted.
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}
