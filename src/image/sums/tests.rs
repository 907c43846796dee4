//! The sums of an image on a real file: what batches leave there, what a torn or rotten place does, and images of before there were any.

use std::fs;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use super::*;
use crate::env::OsEnvironment;
use crate::error::ErrorKind;
use crate::format::checkpoint::Checkpoint;
use crate::image::pace::Pace;
use crate::image::{Filling, Image, image_path};
use crate::planted::Planted;
use crate::storage::Slice;
use crate::storage::blocking::Blocking;
use crate::units::{Lsn, TimelineId};

const DISK: DiskId = DiskId(0xd15c);
const SIZE: SectorCount = SectorCount(5000);

struct Place {
    directory: TempDir,
    runtime: Rc<Runtime>,
    image: Image,
}

fn runtime() -> Rc<Runtime> {
    Runtime::new(Box::new(Blocking::new(2).expect("threads")), Rc::new(OsEnvironment::new()))
}

fn content(range: SectorRange, fill: u8) -> Slice {
    Buffer::copy_of(&vec![fill; to_usize(range.bytes())]).freeze()
}

fn sectors(start: u64, end: u64) -> SectorRange {
    SectorRange::new(start, end)
}

impl Place {
    fn new() -> Place {
        let (directory, runtime) = (tempfile::tempdir().expect("a temporary directory"), runtime());
        let (path, with) = (directory.path().to_owned(), Rc::clone(&runtime));
        let image = runtime.block_on(async move {
            Image::create(&with, &path, DISK, TimelineId(1), SIZE).await.expect("created")
        });
        Place { directory, runtime, image }
    }

    /// As the next process finds it.
    fn reopened(self) -> Place {
        let Place { directory, runtime: _, image } = self;
        drop(image);
        let (path, runtime) = (directory.path().to_owned(), runtime());
        let with = Rc::clone(&runtime);
        let opened = runtime.block_on(async move { Image::open(&with, &path, DISK, SIZE).await });
        Place { directory, runtime, image: opened.expect("opened") }
    }

    fn sums(&self) -> fs::File {
        fs::OpenOptions::new().read(true).write(true).open(sums_path(self.directory.path(), DISK)).unwrap()
    }

    fn flip(&self, at: u64) {
        let mut byte = [0];
        self.sums().read_exact_at(&mut byte, at).expect("within it");
        self.sums().write_all_at(&[byte[0] ^ 1], at).expect("within it");
    }

    /// A batch: each range gets bytes of that value, or zeros.
    fn batch(&self, news: &[(SectorRange, u8)], is_synced: bool) {
        self.bring(news, Lsn(1), is_synced);
    }

    /// The same, synced, of records up to `through`.
    fn batch_through(&self, news: &[(SectorRange, u8)], through: Lsn) {
        self.bring(news, through, true);
    }

    fn bring(&self, news: &[(SectorRange, u8)], through: Lsn, is_synced: bool) {
        let (news, image, runtime) = (news.to_vec(), self.image.clone(), Rc::clone(&self.runtime));
        self.runtime.block_on(async move {
            image.sums.begin();
            let mut sums = Vec::new();
            for (range, fill) in news {
                let data = content(range, fill);
                sums.push((range, (fill > 0).then(|| image.sums.of(range.start, &data).collect::<Vec<_>>())));
                match fill {
                    0 => runtime.zero(&image.file, range.byte_range(), false).await.expect("zeroed"),
                    _ => runtime.write(&image.file, range.byte_offset(), data).await.expect("written"),
                }
            }
            let news = sums.iter().map(|(range, sums)| (*range, sums.as_deref()));
            let (gives_up, pace, planted) = (false, &Pace::default(), Planted::NONE);
            let put = Put { through, gives_up, pace, planted };
            image.sums.put(news, &put, &mut 0).await.expect("put");
            if is_synced {
                image.sync(&runtime, through, Planted::NONE).await.expect("synced");
            }
        });
    }

    /// The sectors of a range that are refused; whether it is said that the sums are damaged.
    fn refused(&self, range: SectorRange) -> (Vec<SectorRange>, bool) {
        let (image, runtime) = (self.image.clone(), Rc::clone(&self.runtime));
        let verdict = self.runtime.block_on(async move {
            let epoch = image.sums.epoch();
            let bytes =
                runtime.read(&image.file, range.byte_offset(), to_usize(range.bytes())).await.expect("read");
            image.sums.check(epoch, range, &bytes).await.expect("checked")
        });
        match verdict {
            Verdict::Sound => (Vec::new(), false),
            Verdict::Overwritten => panic!("nobody writes"),
            Verdict::Damaged(damaged) => {
                let first = &damaged[0].1;
                assert_eq!(
                    (first.kind(), first.path()),
                    (ErrorKind::Corrupt, Some(&*image_path(self.directory.path(), DISK)))
                );
                let is_doubtful = first.to_string().contains("nobody can tell");
                (damaged.into_iter().map(|(range, _)| range).collect(), is_doubtful)
            }
        }
    }

    fn is_sound(&self) -> bool {
        self.refused(sectors(0, SIZE.0)) == (Vec::new(), false)
    }

    fn sequences(&self, block: u64) -> [Option<u64>; 2] {
        let of = Of::Image(Holes::Zeros);
        Copy::BOTH.map(|copy| {
            let mut bytes = [0; BLOCK_BYTES];
            self.sums().read_exact_at(&mut bytes, of.block_offset(block, copy)).expect("within it");
            Block::decode(&bytes, of, DISK, block).map(|block| block.sequence())
        })
    }
}

#[test]
fn batches_write_the_places_in_turn_and_every_sector_has_its_sum() {
    let place = Place::new();
    assert!(place.is_sound(), "zeros");
    place.batch(&[(sectors(0, 10), 1), (sectors(1010, 1020), 2), (sectors(4999, 5000), 3)], true);
    assert!(place.is_sound());
    assert_eq!((place.sequences(0), place.sequences(2)), ([None, Some(1)], [None, None]));
    place.batch(&[(sectors(5, 1015), 4)], true);
    assert_eq!((place.sequences(0), place.sequences(1)), ([Some(2), Some(1)], [None, Some(1)]));
    assert!(place.is_sound());
    // Whole blocks of zeros give their places back.
    place.batch(&[(sectors(0, 3000), 0)], true);
    assert_eq!((place.sequences(0), place.sequences(1)), ([None; 2], [None; 2]));
    assert!(place.is_sound() && place.reopened().is_sound());
}

#[test]
fn what_is_not_what_was_written_is_refused_with_its_place() {
    let place = Place::new();
    place.batch(&[(sectors(0, 2000), 1)], true);
    let image = fs::OpenOptions::new().write(true).open(image_path(place.directory.path(), DISK)).unwrap();
    image.write_all_at(&[7], 1500 * 512 + 3).unwrap();
    image.write_all_at(&[7], 1016 * 512).unwrap();
    image.write_all_at(&[7], 4000 * 512).unwrap();
    let rotten = [1016, 1500, 4000].map(|sector| sectors(sector, sector + 1)).to_vec();
    assert_eq!(place.refused(sectors(0, SIZE.0)), (rotten.clone(), false));
    assert_eq!(place.refused(sectors(1017, 1500)), (Vec::new(), false));
    let place = place.reopened();
    assert_eq!(place.refused(sectors(0, SIZE.0)), (rotten, false));
    place.batch(&[(sectors(1500, 1501), 9), (sectors(1016, 1017), 0), (sectors(4000, 4001), 9)], true);
    assert!(place.is_sound());
}

/// Power failed while a batch wrote: the place that it wrote is torn, and its sectors are in the journal still.
#[test]
fn a_torn_place_says_nothing_and_the_other_one_counts() {
    let place = Place::new();
    place.batch(&[(sectors(0, 1000), 1)], true);
    place.batch(&[(sectors(0, 8), 2)], false);
    assert_eq!(place.sequences(0), [Some(2), Some(1)]);
    place.flip(8192 + 9);
    let place = place.reopened();
    let (refused, is_doubtful) = place.refused(sectors(0, 1000));
    assert_eq!((refused, is_doubtful), (vec![sectors(0, 8)], true));
    assert_eq!(place.refused(sectors(8, 1000)), (Vec::new(), false));
    place.batch(&[(sectors(0, 8), 2)], true);
    assert_eq!(place.sequences(0), [Some(2), Some(1)], "the torn one is written again");
    assert!(place.is_sound());
}

/// What an attempt that failed wrote is made durable, or forgotten, before anything is written upon it.
#[test]
fn after_a_failure_what_is_there_is_settled_first() {
    let place = Place::new();
    place.batch(&[(sectors(0, 1000), 1)], true);
    for (fill, expected) in [(2, [Some(2), Some(1)]), (3, [Some(2), Some(3)]), (4, [Some(4), Some(3)])] {
        place.batch(&[(sectors(0, 8), fill)], false);
        // Its sync failed.
        place.image.sums.state.set(State::Unsettled);
        assert_eq!(place.sequences(0), expected);
    }
    place.batch(&[(sectors(8, 9), 6)], true);
    assert_eq!((place.sequences(0), place.image.sums.state.get()), ([Some(4), Some(5)], State::Durable));
    assert!(place.is_sound());
}

/// Whatever comes back later, from a device that did not answer or from a page that was never durable, is older.
#[test]
fn what_is_written_outranks_whatever_was() {
    let place = Place::new();
    place.batch_through(&[(sectors(0, 8), 1)], Lsn(70));
    place.batch_through(&[(sectors(0, 8), 2)], Lsn(90));
    assert_eq!(place.sequences(0), [Some(90), Some(70)]);
    place.batch_through(&[(sectors(0, 2032), 0)], Lsn(100));
    place.batch_through(&[(sectors(0, 8), 3)], Lsn(120));
    assert_eq!(place.sequences(0), [None, Some(120)], "emptied, and begun anew");
    place.batch_through(&[(sectors(0, 8), 4)], Lsn(120));
    assert_eq!(place.sequences(0), [Some(121), Some(120)], "the same batch again");
    assert!(place.is_sound());
}

/// A bit of the place that counts flips, and sums are written upon the older one: whoever is refused is told of the sums for good.
#[test]
fn what_was_built_upon_damage_says_so() {
    let place = Place::new();
    place.batch(&[(sectors(0, 1016), 1)], true);
    place.batch(&[(sectors(0, 8), 2)], true);
    place.flip(8192);
    let place = place.reopened();
    assert_eq!(place.refused(sectors(0, 1016)), (vec![sectors(0, 8)], true));
    place.batch(&[(sectors(100, 101), 3)], true);
    place.batch(&[(sectors(101, 102), 3)], true);
    let place = place.reopened();
    assert_eq!(place.refused(sectors(0, 1016)), (vec![sectors(0, 8)], true));
    place.batch(&[(sectors(0, 1016), 4)], true);
    assert!(place.is_sound());
    let image = fs::OpenOptions::new().write(true).open(image_path(place.directory.path(), DISK)).unwrap();
    image.write_all_at(&[7], 100).unwrap();
    assert_eq!(place.refused(sectors(0, 1016)), (vec![sectors(0, 1)], false), "nothing older is left");
}

/// A place that was written and is a hole again: a file system lost it.
#[test]
fn a_place_that_became_a_hole_is_damage() {
    let place = Place::new();
    for fill in [1, 1, 1] {
        place.batch(&[(sectors(0, 1016), fill)], true);
    }
    place.batch(&[(sectors(0, 8), 2)], true);
    place.sums().write_all_at(&[0; 4096], 8192).unwrap();
    let place = place.reopened();
    assert_eq!(place.refused(sectors(0, 1016)), (vec![sectors(0, 8)], true));
    // Where nothing had been before, a hole is none.
    place.batch(&[(sectors(1016, 1020), 2)], true);
    place.sums().write_all_at(&[0; 4096], 2 * 8192).unwrap();
    assert_eq!(place.reopened().refused(sectors(1016, 2032)), (Vec::new(), false));
}

/// Who overwrites what is there needs no space that nobody has reserved.
#[test]
fn the_first_write_of_a_block_takes_the_space_of_both_places() {
    use std::os::unix::fs::MetadataExt;

    let place = Place::new();
    let blocks = || place.sums().metadata().unwrap().blocks();
    let before = blocks();
    place.batch(&[(sectors(0, 1), 1)], true);
    assert_eq!(blocks() - before, PAIR_BYTES as u64 / 512);
    place.batch(&[(sectors(0, 1), 2)], true);
    assert_eq!(blocks() - before, PAIR_BYTES as u64 / 512);
}

#[test]
fn one_copy_of_the_header_that_rots_is_told_and_written_anew() {
    let place = Place::new();
    place.flip(3000);
    let place = place.reopened();
    assert_eq!(place.image.sums.rot().map(|(_, offset)| offset), Some(0));
    place.batch(&[(sectors(0, 8), 1)], true);
    assert_eq!(place.image.sums.rot(), None);
    place.flip(4096 + 3000);
    let place = place.reopened();
    assert_eq!(place.image.sums.rot().map(|(_, offset)| offset), Some(4096));
    assert!(place.is_sound());
}

#[test]
fn a_file_of_sums_that_a_power_cut_left_short_is_as_long_as_it_must_be() {
    let place = Place::new();
    let length = place.sums().metadata().unwrap().len();
    place.sums().set_len(8192).unwrap();
    let place = place.reopened();
    assert_eq!(place.sums().metadata().unwrap().len(), length);
    assert!(place.is_sound());
}

#[test]
fn a_block_that_is_damaged_twice_is_refused_until_it_is_written_anew() {
    let place = Place::new();
    place.batch(&[(sectors(0, 2032), 1)], true);
    place.flip(8192);
    place.flip(8192 + 4096);
    let place = place.reopened();
    assert_eq!(place.refused(sectors(0, SIZE.0)), (vec![sectors(0, 1016)], true));
    place.batch(&[(sectors(10, 20), 3)], true);
    let (refused, _) = place.refused(sectors(0, SIZE.0));
    assert_eq!(refused, [sectors(0, 10), sectors(20, 1016)]);
    place.batch(&[(sectors(0, 1016), 3)], true);
    assert!(place.refused(sectors(0, SIZE.0)).0.is_empty());
}

#[test]
fn a_hole_where_there_should_be_bytes_is_no_hole() {
    let place = Place::new();
    place.batch(&[(sectors(2048, 3072), 1)], true);
    let (image, runtime) = (place.image.clone(), Rc::clone(&place.runtime));
    let found = place.runtime.block_on(async move {
        runtime.zero(&image.file, 2048 * 512..3072 * 512, false).await.expect("punched");
        image.data_ranges(&runtime, 0..SIZE.bytes()).await.expect("told")
    });
    assert_eq!(found, std::slice::from_ref(&(2048 * 512..3072 * 512)));
    // Told block by block.
    assert_eq!(place.refused(sectors(2048, 3072)).0, [sectors(2048, 3048), sectors(3048, 3072)]);
}

#[test]
fn what_an_image_is_filled_with_is_summed_in_any_order() {
    let place = Place::new();
    let (path, runtime) = (place.directory.path().to_owned(), Rc::clone(&place.runtime));
    drop(place.image);
    let image = place.runtime.block_on(async move {
        let with = Rc::clone(&runtime);
        let fill = async |filling: &mut Filling| {
            for start in (0..4).rev() {
                let range = sectors(start * 700 + 300, start * 700 + 600);
                let data = content(range, 9);
                with.write(&filling.file, range.byte_offset(), data.clone()).await?;
                filling.wrote(range, &data).await?;
            }
            Ok(())
        };
        let named = (DISK, TimelineId(1));
        Image::create_filled(&runtime, &path, named, SIZE, Lsn(3), fill).await.expect("filled")
    });
    let place = Place { image, ..place };
    assert!(place.is_sound() && place.reopened().is_sound());
}

#[test]
fn an_image_of_before_there_were_sums_is_checked_where_it_is_written() {
    let place = Place::new();
    place.batch(&[(sectors(0, 3000), 1)], true);
    let checkpoint = crate::image::checkpoint_path(place.directory.path(), DISK);
    let newest = crate::format::checkpoint::Checkpoint::newest(&fs::read(&checkpoint).unwrap()).unwrap();
    let mut old = vec![0; 8192];
    let unsummed = crate::format::checkpoint::Checkpoint { has_sums: false, ..newest };
    unsummed.encode(&mut old[to_usize(newest.slot_offset())..][..4096]);
    fs::write(&checkpoint, old).unwrap();
    let image = fs::OpenOptions::new().write(true).open(image_path(place.directory.path(), DISK)).unwrap();
    image.write_all_at(&[7], 2000 * 512).unwrap();
    // What sums are there are not believed: who wrote that checkpoint did not keep them.
    let place = place.reopened();
    assert!(place.is_sound() && !place.image.sums.has_all());
    place.batch(&[(sectors(1999, 2002), 3), (sectors(2002, 2003), 0)], true);
    assert!(place.is_sound());
    image.write_all_at(&[7], 2000 * 512).unwrap();
    image.write_all_at(&[7], 2002 * 512).unwrap();
    image.write_all_at(&[8], 100 * 512).unwrap();
    assert_eq!(place.refused(sectors(0, SIZE.0)).0, [sectors(2000, 2001), sectors(2002, 2003)]);
    // The next statement says so.
    let runtime = Rc::clone(&place.runtime);
    let mut stated = place.image.clone();
    place.runtime.block_on(async move { stated.advance(&runtime, Lsn(9)).await.expect("stated") });
    let place = place.reopened();
    assert_eq!(place.refused(sectors(0, SIZE.0)).0, [sectors(2000, 2001), sectors(2002, 2003)]);
    let (directory, runtime) = (place.directory, runtime_of(place.image));
    fs::remove_file(sums_path(directory.path(), DISK)).unwrap();
    let (path, with) = (directory.path().to_owned(), Rc::clone(&runtime));
    let missing = runtime.block_on(async move { Image::open(&with, &path, DISK, SIZE).await.map(drop) });
    assert_eq!(missing.expect_err("gone").kind(), ErrorKind::NotFound);
}

/// Another process's, once the image is closed.
fn runtime_of(image: Image) -> Rc<Runtime> {
    drop(image);
    runtime()
}

impl Place {
    /// An image of before there were sums: in its checkpoint, whatever lies beside it.
    fn of_before(self) -> Place {
        let path = crate::image::checkpoint_path(self.directory.path(), DISK);
        let mut file = fs::read(&path).unwrap();
        for slot in Checkpoint::slots(&file).into_iter().flatten() {
            let unsummed = Checkpoint { has_sums: false, ..slot };
            unsummed.encode(&mut file[to_usize(slot.slot_offset())..][..4096]);
        }
        fs::write(&path, file).unwrap();
        self.reopened()
    }

    fn sum_piece(&self, alone: bool) -> Summed {
        let image = self.image.clone();
        let summed =
            async move { image.sums.sum_piece(&image.file, image.sectors(), alone, Planted::NONE).await };
        self.runtime.block_on(summed).expect("summed")
    }

    /// Until all is done; the bytes that were read.
    fn sum(&self) -> u64 {
        let mut read = 0;
        loop {
            match self.sum_piece(false) {
                Summed::Piece(bytes) => read += bytes,
                Summed::Overtaken(_) => panic!("nobody writes"),
                Summed::All => return read,
            }
        }
    }

    fn flip_image(&self, sector: u64) {
        let path = image_path(self.directory.path(), DISK);
        let image = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        image.read_exact_at(&mut byte, sector * 512 + 9).unwrap();
        image.write_all_at(&[byte[0] ^ 1], sector * 512 + 9).unwrap();
    }

    fn suspects(&self) -> Vec<u64> {
        let image = self.image.clone();
        let suspects = async move { image.sums.suspects(sectors(0, SIZE.0)).await };
        self.runtime.block_on(suspects).expect("read").0
    }

    /// Where a copy of the header was damaged, which is written anew.
    fn mend_headers(&self) -> Option<u64> {
        let image = self.image.clone();
        let mended = async move { image.sums.mend_headers(Planted::NONE).await };
        self.runtime.block_on(mended).expect("looked at").and_then(|error| error.offset())
    }

    /// What is wrong with a block's places, which are written anew.
    fn mend(&self, block: u64) -> Option<Error> {
        let image = self.image.clone();
        let looked = async move {
            let of_image = (&image.file, image.sectors());
            image.sums.mend_places(block, image.sums.epoch(), of_image, Planted::NONE).await
        };
        match self.runtime.block_on(looked).expect("looked at") {
            Looked::Overtaken => panic!("nobody writes"),
            Looked::At(found) => found,
        }
    }
}

#[test]
fn an_image_of_before_there_were_sums_gets_them_and_holes_take_none() {
    let place = Place::new();
    place.batch(&[(sectors(0, 1100), 1), (sectors(4990, 5000), 1)], true);
    let place = place.of_before();
    place.flip_image(1050);
    assert_eq!(place.image.sums.unsummed(SIZE), SIZE);
    // What a batch has written since has its sum.
    place.batch(&[(sectors(1090, 1095), 2)], true);
    let before = fs::metadata(sums_path(place.directory.path(), DISK)).unwrap().len();
    assert_eq!(place.sum(), (1016 + 1016 + 5000 - 4 * 1016) * 512, "blocks of holes are not read");
    assert!(place.image.sums.has_all() && place.is_sound());
    assert_eq!(place.image.sums.unsummed(SIZE), SectorCount(0));
    assert_eq!(fs::metadata(sums_path(place.directory.path(), DISK)).unwrap().len(), before);
    assert_eq!((place.sequences(1), place.sequences(2)), ([Some(2), Some(1)], [None, None]));
    let place = place.reopened();
    {
        assert!(place.image.sums.has_all() && place.is_sound(), "and that stays so");
        // What had flipped before is taken for good; what flips from now on is not.
        for sector in [3, 2500, 4999] {
            place.flip_image(sector);
            assert_eq!(place.refused(sectors(0, SIZE.0)), (vec![sectors(sector, sector + 1)], false));
            place.flip_image(sector);
        }
    }
}

#[test]
fn a_process_that_comes_later_goes_on_where_sums_are_missing() {
    let place = Place::new();
    place.batch(&[(sectors(0, 5000), 1)], true);
    let place = place.of_before();
    // A piece of one block.
    assert_eq!(place.sum_piece(true), Summed::Piece(1016 * 512));
    let place = place.reopened();
    assert!(!place.image.sums.has_all(), "its checkpoint says that it has sums, and these, not of what");
    assert_eq!(place.sum(), (5000 - 1016) * 512);
    assert!(place.is_sound());
    // The last step before the header: nothing is read again.
    let place = place.of_before();
    while place.image.sums.unsummed(SIZE) > SectorCount(0) {
        place.sum_piece(true);
    }
    let place = place.reopened();
    assert!(!place.image.sums.has_all());
    assert_eq!(place.sum(), 0);
}

#[test]
fn what_a_batch_writes_meanwhile_is_read_again() {
    let place = Place::new();
    place.batch(&[(sectors(0, 1016), 1)], true);
    let place = place.of_before();
    let (image, runtime) = (place.image.clone(), Rc::clone(&place.runtime));
    let summed = place.runtime.block_on(async move {
        // Who gives sums looks first, lets others have the turn, reads, and takes it again.
        let summing = image.sums.sum_piece(&image.file, SIZE, false, Planted::NONE);
        let batch = async {
            let turn = image.sums.turn().await;
            image.sums.begin();
            runtime.zero(&image.file, 0..1016 * 512, false).await.expect("zeroed");
            let news = [(sectors(0, 1016), None)].into_iter();
            let (gives_up, pace, planted) = (false, &Pace::default(), Planted::NONE);
            let put = Put { through: Lsn(9), gives_up, pace, planted };
            image.sums.put(news, &put, &mut 0).await.expect("put");
            image.sync(&runtime, Lsn(9), Planted::NONE).await.expect("synced");
            drop(turn);
        };
        futures::future::join(summing, batch).await.0.expect("summed")
    });
    assert!(matches!(summed, Summed::Overtaken(_)), "{summed:?}");
    place.sum();
    assert!(place.is_sound());
}

/// Of two places, the one that does not count rots: no read meets it. Nor does one the copy of a header that is not used.
#[test]
fn what_no_read_meets_is_found_and_written_anew() {
    let place = Place::new();
    place.batch(&[(sectors(0, 3000), 1)], true);
    place.batch(&[(sectors(0, 8), 2)], true);
    let place = place.reopened();
    assert!(place.suspects().is_empty());
    for (offset, copy) in [(8192 + 4096 + 50, Copy::Second), (8192 + 50, Copy::First)] {
        place.flip(offset);
        assert_eq!(place.suspects(), [0]);
        let error = place.mend(0).expect("damaged");
        let at = Of::Image(Holes::Zeros).block_offset(0, copy);
        let path = sums_path(place.directory.path(), DISK);
        assert_eq!((error.path(), error.offset()), (Some(&*path), Some(at)));
        assert!(error.to_string().contains("written anew"), "{error}");
        assert!(place.suspects().is_empty() && place.mend(0).is_none() && place.is_sound());
    }
    place.flip(4096 + 700);
    assert_eq!([place.mend_headers(), place.mend_headers()], [Some(4096), None]);
    assert!(place.reopened().is_sound());
}

/// The place that counted rots: the other one is older, and so is what is written anew, which says so.
#[test]
fn what_is_written_anew_from_an_older_place_is_in_doubt() {
    let place = Place::new();
    place.batch(&[(sectors(0, 1016), 1)], true);
    place.batch(&[(sectors(0, 8), 2)], true);
    place.flip(8192);
    let place = place.reopened();
    assert!(place.mend(0).is_some());
    assert_eq!(place.sequences(0), [Some(2), Some(1)]);
    assert_eq!(place.reopened().refused(sectors(0, 1016)), (vec![sectors(0, 8)], true));
}
