//! Bases on real files: what an import copies and what it leaves alone, and what becomes of bases afterwards.

use std::cell::RefCell;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::env::OsEnvironment;
use crate::storage::blocking::Blocking;

const DISK: DiskId = DiskId(0xd15c);
const MIB: u64 = 1 << 20;

struct Place {
    directory: TempDir,
    runtime: Rc<Runtime>,
    bases: Rc<Bases>,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let runtime =
            Runtime::new(Box::new(Blocking::new(2).expect("threads")), Rc::new(OsEnvironment::new()));
        let layout = Layout::new(directory.path());
        fs::create_dir(layout.bases()).expect("new");
        let bases = Rc::new(Bases::new(&runtime, &layout));
        Place { directory, runtime, bases }
    }

    fn layout(&self) -> Layout {
        Layout::new(self.directory.path())
    }

    fn base(&self) -> PathBuf {
        self.layout().base(DISK)
    }

    /// A sparse file with these pieces of data, and what it reads as.
    fn source(&self, length: u64, pieces: impl IntoIterator<Item = Range<u64>>) -> (PathBuf, Vec<u8>) {
        let path = self.directory.path().join("source");
        let mut file = fs::File::create(&path).expect("new");
        file.set_len(length).expect("room");
        let mut content = vec![0; to_usize(length)];
        for piece in pieces {
            let bytes = &mut content[to_usize(piece.start)..to_usize(piece.end)];
            bytes.iter_mut().zip((1..=251).cycle()).for_each(|(byte, filler)| *byte = filler);
            file.seek(SeekFrom::Start(piece.start)).expect("within it");
            file.write_all(bytes).expect("room");
        }
        (path, content)
    }

    /// Imports a file; the bytes that were told meanwhile, and the result. The copy is ended after `bytes_max`.
    fn import(&self, source: &Path, bytes: u64, bytes_max: u64) -> (Vec<u64>, Result<()>) {
        let (runtime, bases, source) = (Rc::clone(&self.runtime), Rc::clone(&self.bases), source.to_owned());
        let told = Rc::new(RefCell::new(Vec::new()));
        let telling = Rc::clone(&told);
        let result = self.runtime.block_on(async move {
            let source = runtime.open(source, OpenOptions::READ).await?;
            let progress = |copied| {
                telling.borrow_mut().push(copied);
                if copied > bytes_max { Err(Error::invalid("enough")) } else { Ok(()) }
            };
            bases.import(DISK, SectorCount(bytes / 512), &source, progress).await
        });
        let told = told.take();
        (told, result)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.layout().bases()).expect("there");
        entries.map(|entry| entry.expect("readable").file_name().into_string().expect("ours")).collect()
    }
}

#[test]
fn an_import_copies_data_piece_by_piece_and_leaves_holes() {
    let place = Place::new();
    let pieces = [0..3 * MIB / 2, 4 * MIB..4 * MIB + 8192];
    let (source, mut content) = place.source(5 * MIB, pieces);
    let (told, result) = place.import(&source, 8 * MIB, u64::MAX);
    result.expect("room");
    assert_eq!(told, [MIB, 3 * MIB / 2, 3 * MIB / 2 + 8192]);
    content.resize(to_usize(8 * MIB), 0);
    assert!(fs::read(place.base()).expect("published") == content);
    let allocated = fs::metadata(place.base()).expect("published").blocks() * 512;
    assert!(allocated < 2 * MIB, "{allocated} bytes for {} of data", 3 * MIB / 2 + 8192);
    assert_eq!(place.names().len(), 2, "it and its sums");
    let sums = fs::metadata(place.layout().sums(DISK)).expect("published").blocks() * 512;
    assert!(sums < 16 * 4096, "{sums} bytes");
}

#[test]
fn an_import_that_does_not_fit_or_is_ended_leaves_nothing() {
    let place = Place::new();
    let (source, _) = place.source(2 * MIB, once(0..2 * MIB));
    let (told, result) = place.import(&source, 2 * MIB - 512, u64::MAX);
    assert_eq!(result.expect_err("too long").kind(), ErrorKind::Invalid);
    assert!(told.is_empty() && place.names().is_empty());
    let (told, result) = place.import(&source, 2 * MIB, MIB - 1);
    assert!(result.expect_err("ended").to_string().contains("enough"));
    assert_eq!(told, [MIB]);
    assert!(place.names().is_empty());
    place.import(&source, 2 * MIB, u64::MAX).1.expect("it fits to the byte");
}

#[test]
fn a_base_is_copied_as_far_as_is_asked_for() {
    let place = Place::new();
    let (source, content) = place.source(3 * MIB, once(MIB..3 * MIB));
    place.import(&source, 3 * MIB, u64::MAX).1.expect("room");
    let target = place.directory.path().join("target");
    let (runtime, bases, path) = (Rc::clone(&place.runtime), Rc::clone(&place.bases), target.clone());
    let copied = place.runtime.block_on(async move {
        let target = runtime.open(path, OpenOptions::CREATE).await?;
        bases.open(DISK).await?.copy_to(&target, 2 * MIB + 512, async |_, _| Ok(())).await
    });
    copied.expect("room");
    assert!(fs::read(target).expect("there") == content[..to_usize(2 * MIB + 512)]);
}

fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).expect("there");
    bytes[to_usize(offset)] ^= 4;
    fs::write(path, bytes).expect("room");
}

impl Place {
    fn read(&self, sectors: Range<u64>) -> Result<Vec<u8>> {
        let bases = Rc::clone(&self.bases);
        self.runtime.block_on(async move {
            let base = bases.open(DISK).await?;
            base.read(SectorRange::new(sectors.start, sectors.end)).await.map(|bytes| bytes.to_vec())
        })
    }

    fn imported() -> (Place, Vec<u8>) {
        let place = Place::new();
        let (source, content) = place.source(2 * MIB, [0..8192, MIB..MIB + 4096]);
        place.import(&source, 2 * MIB, u64::MAX).1.expect("room");
        (place, content)
    }
}

#[test]
fn what_flipped_is_not_read_and_the_rest_is() {
    let (place, content) = Place::imported();
    assert_eq!(place.read(0..4096).expect("sound"), content);
    flip(&place.base(), 5 * 512 + 77);
    let error = place.read(0..16).expect_err("rotten");
    assert_eq!(
        (error.kind(), error.path(), error.offset()),
        (ErrorKind::Corrupt, Some(&*place.base()), Some(5 * 512))
    );
    assert_eq!(place.read(6..4096).expect("sound"), content[6 * 512..]);
    assert_eq!(place.read(0..5).expect("sound"), content[..5 * 512]);
}

#[test]
fn what_became_a_hole_is_not_read_as_zeros() {
    let (place, content) = Place::imported();
    let file = fs::OpenOptions::new().write(true).open(place.base()).expect("there");
    file.set_len(MIB).expect("cut");
    file.set_len(2 * MIB).expect("room");
    assert_eq!(place.read(2056..4096).expect("zeros as ever"), content[2056 * 512..]);
    place.read(2048..2049).expect_err("it held something");
    let bases = Rc::clone(&place.bases);
    let data = place.runtime.block_on(async move { bases.open(DISK).await?.data_ranges(0..2 * MIB).await });
    assert_eq!(data.expect("no errors"), [0..8192, MIB..MIB + 4096], "allocated by its sums");
}

#[test]
fn one_damaged_copy_of_the_sums_harms_nothing_and_two_are_not_served() {
    use crate::format::sums::{Copy, Of};
    let (place, content) = Place::imported();
    let sums = place.layout().sums(DISK);
    flip(&sums, Of::Base.header_offset(Copy::First) + 9);
    flip(&sums, Of::Base.block_offset(0, Copy::First) + 4000);
    assert_eq!(place.read(0..4096).expect("by the other copy"), content);
    flip(&sums, Of::Base.block_offset(0, Copy::Second) + 16);
    place.read(0..1).expect_err("nobody knows");
    place.read(1015..1016).expect_err("nobody knows, zeros or not");
    assert_eq!(place.read(1016..4096).expect("another block"), content[1016 * 512..]);
    flip(&sums, Of::Base.header_offset(Copy::Second) + 9);
    assert_eq!(place.read(1016..4096).expect_err("no header").path(), Some(&*sums));
    fs::remove_file(&sums).expect("there");
    assert_eq!(place.read(1016..4096).expect_err("no sums").kind(), ErrorKind::Corrupt);
}

#[test]
fn a_base_of_before_there_were_sums_gets_them() {
    let (place, content) = Place::imported();
    fs::rename(place.base(), place.layout().unsummed_base(DISK)).expect("there");
    fs::write(place.layout().sums(DISK), "left by a try that was cut off").expect("room");
    flip(&place.layout().unsummed_base(DISK), 0);
    let mut content = content;
    content[0] ^= 4;
    assert_eq!(place.read(0..4096).expect("as it is"), content);
    let bases = Rc::clone(&place.bases);
    let summed = place.runtime.block_on(async move {
        let before = bases.unsummed(&[DISK]).await?;
        bases.sum(DISK, |_| Ok(())).await?;
        Ok::<_, Error>((before, bases.unsummed(&[DISK]).await?))
    });
    assert_eq!(summed.expect("room"), (vec![DISK], vec![]));
    assert_eq!(place.read(0..4096).expect("sound"), content);
    fs::write(place.layout().unsummed_base(DISK), "somebody's copy").expect("room");
    let bases = Rc::clone(&place.bases);
    let unsummed = place.runtime.block_on(async move { bases.unsummed(&[DISK]).await });
    assert_eq!(unsummed.expect("a list"), [], "it has sums");
    flip(&place.base(), 1);
    place.read(0..1).expect_err("rotten");
}

#[test]
fn a_base_gets_longer_and_never_shorter() {
    let place = Place::new();
    let bases = Rc::clone(&place.bases);
    let lengths = |sectors: u64| {
        let bases = Rc::clone(&place.bases);
        place
            .runtime
            .block_on(async move { bases.lengthen(DISK, SectorCount(sectors)).await })
            .expect("room");
        fs::metadata(place.base()).expect("there").len()
    };
    place.runtime.block_on(async move { bases.create_empty(DISK, SectorCount(100)).await }).expect("room");
    assert_eq!([100, 300, 200].map(lengths), [100 * 512, 300 * 512, 300 * 512]);
    assert_eq!(place.names().len(), 2, "what the length was tried on is gone");
}

#[test]
fn a_base_can_be_deleted_twice_and_what_nobody_published_goes() {
    let place = Place::new();
    let other = DiskId(0x07);
    let bases = Rc::clone(&place.bases);
    let done = place.runtime.block_on(async move {
        bases.create_empty(DISK, SectorCount(8)).await?;
        bases.create_empty(other, SectorCount(8)).await?;
        bases.clean(|disk| disk == other).await?;
        let deleted = (bases.is_deleted(DISK), bases.is_deleted(other));
        bases.delete(DISK).await?;
        Ok::<_, Error>(deleted)
    });
    assert_eq!(done.expect("no errors"), (true, false));
    let kept = [place.layout().sums(other), place.layout().base(other)];
    let kept = kept.map(|path| path.file_name().and_then(|name| name.to_str()).expect("ours").to_owned());
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(place.names()), sorted(kept.to_vec()));
    fs::write(layout::partial(&place.base(), 1), [1]).expect("room");
    let bases = Rc::clone(&place.bases);
    place.runtime.block_on(async move { bases.clean(|_| true).await }).expect("no errors");
    assert_eq!(sorted(place.names()), sorted(kept.to_vec()));
}

#[test]
fn a_base_that_cannot_be_deleted_is_not_taken_for_deleted() {
    let place = Place::new();
    // A directory stands in its place.
    fs::create_dir(place.base()).expect("new");
    let bases = Rc::clone(&place.bases);
    place.runtime.block_on(async move { bases.delete(DISK).await }).expect_err("it is no file");
    assert!(!place.bases.is_deleted(DISK));
}
