//! An overlay is a model over a view, whatever is written beside what, and after every reopening.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use afterimage::error::ErrorKind;
use afterimage::throttle::Pacing;
use afterimage::units::{SectorRange, to_usize};
use afterimage::view::{Overlay, View};
use proptest::prelude::*;

use crate::support::{Group, block_on, directory, flatten, pattern};

/// Not a whole number of blocks.
const SECTORS: u64 = 1003;

fn view(group: &mut Group) -> Rc<View> {
    group.write(0, SectorRange::new(5, 300), 1);
    group.publish();
    group.zero(0, SectorRange::new(100, 110), true);
    group.write(0, SectorRange::new(990, SECTORS), 2);
    let point = group.publish();
    block_on(&group.runtime, View::open(&group.vault, point)).expect("sound")
}

fn create(group: &Group, view: &Rc<View>, path: &Path) -> Overlay {
    block_on(&group.runtime, Overlay::create(path, view, view.disks()[0].id())).expect("a new overlay")
}

fn open(group: &Group, view: &Rc<View>, path: &Path) -> Overlay {
    block_on(&group.runtime, Overlay::open(path, view, view.disks()[0].id())).expect("it was created")
}

fn assert_is(group: &Group, overlay: &Overlay, model: &[u8]) {
    let whole = SectorRange::new(0, SECTORS);
    let pieces = block_on(&group.runtime, overlay.read(whole)).expect("sound");
    assert!(flatten(&pieces) == model);
    let mut position = 0;
    for run in block_on(&group.runtime, overlay.allocation(whole, usize::MAX)).expect("sound") {
        let end = position + to_usize(run.bytes);
        assert!(run.allocated || model[position..end].iter().all(|&byte| byte == 0));
        position = end;
    }
    assert_eq!(position, model.len());
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        range: SectorRange,
        seed: u8,
        durable: bool,
    },
    Zero {
        range: SectorRange,
        keep_allocated: bool,
    },
    Reopen,
    /// `cp -a`, or `rsync -S`: blocks of zeros become holes.
    CopySparsely,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0..SECTORS, 1..60_u64)
        .prop_map(|(start, sectors)| SectorRange::new(start, (start + sectors).min(SECTORS)));
    let step = prop_oneof![
        5 => (range.clone(), any::<u8>(), any::<bool>())
            .prop_map(|(range, seed, durable)| Step::Write { range, seed, durable }),
        3 => (range, any::<bool>()).prop_map(|(range, keep_allocated)| Step::Zero { range, keep_allocated }),
        1 => Just(Step::Reopen),
        1 => Just(Step::CopySparsely),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn an_overlay_is_a_model(steps in steps()) {
        let mut group = Group::new(&[SECTORS]);
        let view = view(&mut group);
        let directory = directory();
        let path = directory.path().join("overlay");
        let mut overlay = create(&group, &view, &path);
        let mut model = group.model[0].clone();
        for step in steps {
            match step {
                Step::Write { range, seed, durable } => {
                    let bytes = pattern(range.bytes(), seed);
                    block_on(&group.runtime, overlay.write(range, &bytes, durable)).expect("written");
                    model[to_usize(range.byte_offset())..to_usize(range.byte_range().end)].copy_from_slice(&bytes);
                }
                Step::Zero { range, keep_allocated } => {
                    block_on(&group.runtime, overlay.zero(range, false, keep_allocated)).expect("zeroed");
                    model[to_usize(range.byte_offset())..to_usize(range.byte_range().end)].fill(0);
                }
                Step::Reopen => {
                    drop(overlay);
                    overlay = open(&group, &view, &path);
                }
                Step::CopySparsely => {
                    drop(overlay);
                    copy_sparsely(&path);
                    overlay = open(&group, &view, &path);
                }
            }
            assert_is(&group, &overlay, &model);
        }
        drop(overlay);
        assert_is(&group, &open(&group, &view, &path), &model);
        let viewed = block_on(&group.runtime, view.read(view.disks()[0].id(), SectorRange::new(0, SECTORS)));
        prop_assert!(flatten(&viewed.expect("sound")) == group.model[0], "the view is untouched");
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    PathBuf::from(format!("{}{end}", path.display()))
}

/// Has every block of zeros of an overlay, and of its sums, become a hole.
fn copy_sparsely(path: &Path) {
    for path in [path.to_owned(), beside(path, ".sums")] {
        let copy = beside(&path, ".copy");
        let done = Command::new("cp").arg("--sparse=always").arg(&path).arg(&copy).status();
        assert!(done.expect("cp of the GNU coreutils").success());
        std::fs::rename(&copy, &path).expect("its own directory");
    }
}

/// Two requests in the same block, each of which reads the block and writes it back whole: neither may undo the other.
#[test]
fn concurrent_writes_in_one_block_both_stay() {
    let mut group = Group::new(&[SECTORS]);
    let view = view(&mut group);
    let directory = directory();
    let path = directory.path().join("overlay");
    let overlay = create(&group, &view, &path);
    let mut model = group.model[0].clone();
    let writes = (0..64_u64).map(|sector| (SectorRange::new(sector, sector + 1), pattern(512, 7)));
    let writes: Vec<_> = writes.collect();
    for (range, bytes) in &writes {
        model[to_usize(range.byte_offset())..to_usize(range.byte_range().end)].copy_from_slice(bytes);
    }
    let all = writes.iter().map(|(range, bytes)| overlay.write(*range, bytes, false));
    block_on(&group.runtime, futures::future::try_join_all(all)).expect("written");
    assert_is(&group, &overlay, &model);
}

#[test]
fn trimming_an_untouched_hole_takes_no_space_and_gives_back_what_was_written_there() {
    use std::os::unix::fs::MetadataExt;

    let sectors = 1 << 22;
    let mut group = Group::new(&[16]);
    group.disks[0].sectors.0 = sectors;
    group.model[0] = Vec::new();
    group.write_unmodelled(0, SectorRange::new(80, 88), 3);
    let point = group.publish();
    let view = block_on(&group.runtime, View::open(&group.vault, point)).expect("sound");
    let directory = directory();
    let path = directory.path().join("overlay");
    let overlay = create(&group, &view, &path);
    let blocks = || std::fs::metadata(&path).expect("there").blocks() * 512;
    let work = async {
        overlay.write(SectorRange::new(1 << 20, (1 << 20) + 4096), &pattern(2 << 20, 1), true).await?;
        assert!(blocks() >= 2 << 20);
        overlay.zero(SectorRange::new(0, sectors), true, false).await
    };
    block_on(&group.runtime, work).expect("done");
    assert!(blocks() <= 64 << 10, "2 GiB of zeros take {} bytes", blocks());
    drop(overlay);
    let overlay = open(&group, &view, &path);
    let pieces = block_on(&group.runtime, overlay.read(SectorRange::new(0, 4096))).expect("sound");
    assert!(flatten(&pieces).iter().all(|&byte| byte == 0), "what the view holds stays trimmed");
}

/// File systems give back whole blocks: what is left of a short one would be zeros that have no sums.
#[test]
fn a_short_last_block_is_given_back_too() {
    let mut group = Group::new(&[SECTORS]);
    group.write(0, SectorRange::new(5, 300), 1);
    let point = group.publish();
    let view = block_on(&group.runtime, View::open(&group.vault, point)).expect("sound");
    let directory = directory();
    let path = directory.path().join("overlay");
    let overlay = create(&group, &view, &path);
    let end = SectorRange::new(1000, SECTORS);
    block_on(&group.runtime, overlay.write(end, &pattern(end.bytes(), 4), true)).expect("written");
    block_on(&group.runtime, overlay.zero(SectorRange::new(904, SECTORS), true, false)).expect("trimmed");
    assert_eq!(overlay.present_bytes(), 0);
    drop(overlay);
    let overlay = open(&group, &view, &path);
    assert_eq!(overlay.present_bytes(), 0);
    assert_is(&group, &overlay, &group.model[0]);
}

#[test]
fn an_overlay_of_another_size_and_a_range_outside_are_refused() {
    let mut group = Group::new(&[SECTORS]);
    let view = view(&mut group);
    let directory = directory();
    let path = directory.path().join("overlay");
    let overlay = create(&group, &view, &path);
    let outside = block_on(&group.runtime, overlay.read(SectorRange::new(SECTORS - 1, SECTORS + 1)));
    assert_eq!(outside.expect_err("outside").kind(), ErrorKind::Invalid);
    drop(overlay);
    let again = block_on(&group.runtime, Overlay::create(&path, &view, view.disks()[0].id()));
    assert_eq!(again.err().expect("never over another").kind(), ErrorKind::AlreadyExists);
    std::fs::OpenOptions::new().write(true).open(&path).expect("there").set_len(512).expect("cut");
    let cut = block_on(&group.runtime, Overlay::open(&path, &view, view.disks()[0].id()));
    assert_eq!(cut.err().expect("cut off").kind(), ErrorKind::Corrupt);
}

fn flip(file: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;

    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).expect("there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("within it");
    file.write_all_at(&[byte[0] ^ 4], offset).expect("within it");
}

#[test]
fn a_flipped_bit_is_refused_as_the_overlays_own_and_a_write_heals_it() {
    let mut group = Group::new(&[SECTORS]);
    let view = view(&mut group);
    let directory = directory();
    let path = directory.path().join("overlay");
    let overlay = create(&group, &view, &path);
    let mut model = group.model[0].clone();
    let range = SectorRange::new(16, 61);
    let bytes = pattern(range.bytes(), 7);
    model[16 * 512..61 * 512].copy_from_slice(&bytes);
    block_on(&group.runtime, overlay.write(range, &bytes, true)).expect("written");
    drop(overlay);
    flip(&path, 40 * 512 + 9);
    let overlay = open(&group, &view, &path);
    let read = |range| block_on(&group.runtime, overlay.read(range)).map(|pieces| flatten(&pieces));
    let error = read(SectorRange::new(0, SECTORS)).expect_err("refused");
    assert_eq!(
        (error.kind(), error.path(), error.offset()),
        (ErrorKind::Corrupt, Some(&*path), Some(40 * 512))
    );
    assert!(overlay.is_own(&error), "{error}");
    for sound in [SectorRange::new(0, 40), SectorRange::new(41, SECTORS)] {
        let held = &model[to_usize(sound.byte_offset())..to_usize(sound.byte_range().end)];
        assert!(read(sound).expect("sound") == held);
    }
    // The rest of its block has to be read where a part of it is written.
    let part = block_on(&group.runtime, overlay.write(SectorRange::new(42, 43), &pattern(512, 8), false));
    assert_eq!(part.expect_err("the rest is damaged").kind(), ErrorKind::Corrupt);
    let block = pattern(8 * 512, 8);
    block_on(&group.runtime, overlay.write(SectorRange::new(40, 48), &block, false))
        .expect("the whole block");
    model[40 * 512..48 * 512].copy_from_slice(&block);
    assert_is(&group, &overlay, &model);
}

/// Copies that make files sparse had the point show through: found by acceptance, with `cp -a` of a stopped data directory.
#[test]
fn blocks_of_zeros_that_a_copy_made_holes_of_are_zeros_still() {
    let mut group = Group::new(&[SECTORS]);
    let view = view(&mut group);
    let directory = directory();
    let path = directory.path().join("overlay");
    let overlay = create(&group, &view, &path);
    let mut model = group.model[0].clone();
    let range = SectorRange::new(16, 40);
    block_on(&group.runtime, overlay.write(range, &[0; 24 * 512], true)).expect("written");
    model[16 * 512..40 * 512].fill(0);
    drop(overlay);
    copy_sparsely(&path);
    assert_eq!(std::fs::metadata(&path).expect("there").blocks(), 0, "all of it is a hole");
    let overlay = open(&group, &view, &path);
    // What asks for allocation first is told the truth, too.
    let runs = block_on(&group.runtime, overlay.allocation(SectorRange::new(16, 40), 9)).expect("sound");
    assert!(runs.iter().all(|run| run.allocated), "{runs:?}");
    assert_eq!(overlay.present_bytes(), 24 * 512);
    let part = pattern(512, 4);
    block_on(&group.runtime, overlay.write(SectorRange::new(30, 31), &part, true)).expect("written");
    model[30 * 512..31 * 512].copy_from_slice(&part);
    assert_is(&group, &overlay, &model);
    drop(overlay);
    assert_is(&group, &open(&group, &view, &path), &model);
}

/// The damaged places of a unit may have said that a hole was written, with zeros that a copy dropped: nobody can tell. Where one is sound it is
/// believed: a power cut may have torn the other one.
#[test]
fn holes_beside_damaged_sums_are_refused_until_they_are_written_also_when_a_neighbour_is() {
    let mut group = Group::new(&[SECTORS]);
    let view = view(&mut group);
    let directory = directory();
    let path = directory.path().join("overlay");
    let sums = directory.path().join("overlay.sums");
    let overlay = create(&group, &view, &path);
    let whole = |overlay: &Overlay| {
        let read = overlay.read(SectorRange::new(0, SECTORS));
        block_on(&group.runtime, read).map(|pieces| flatten(&pieces))
    };
    for _ in 0..2 {
        block_on(&group.runtime, overlay.write(SectorRange::new(0, 8), &[0; 4096], true)).expect("written");
    }
    drop(overlay);
    copy_sparsely(&path);
    let first_place = 8192;
    flip(&sums, first_place + 77);
    assert!(whole(&open(&group, &view, &path)).is_ok_and(|read| read[..4096] == [0; 4096]));
    copy_sparsely(&path);
    flip(&sums, first_place + 4096 + 77);
    let overlay = open(&group, &view, &path);
    let read = |overlay: &Overlay, start| {
        block_on(&group.runtime, overlay.read(SectorRange::new(start, start + 8)))
            .map(|pieces| flatten(&pieces))
    };
    let error = read(&overlay, 0).expect_err("refused");
    assert_eq!(
        (error.kind(), error.path(), error.offset()),
        (ErrorKind::Corrupt, Some(&*sums), Some(first_place))
    );
    assert!(overlay.is_own(&error));
    assert!(read(&overlay, 16).is_err(), "of the same unit");
    assert!(read(&overlay, 56).expect("of another unit") == group.model[0][56 * 512..64 * 512]);
    let runs = block_on(&group.runtime, overlay.allocation(SectorRange::new(0, 8), 9)).expect("told");
    assert!(runs.iter().all(|run| run.allocated), "never said to be zeros");
    // Part of a block needs the rest of it.
    let part = block_on(&group.runtime, overlay.write(SectorRange::new(17, 18), &pattern(512, 5), false));
    assert_eq!(part.expect_err("the rest is not known").kind(), ErrorKind::Corrupt);
    let block = pattern(4096, 6);
    block_on(&group.runtime, overlay.write(SectorRange::new(16, 24), &block, true)).expect("a whole block");
    drop(overlay);
    let overlay = open(&group, &view, &path);
    assert!(read(&overlay, 16).expect("written anew") == block);
    for still in [0, 8, 48] {
        assert_eq!(read(&overlay, still).expect_err("refused still").kind(), ErrorKind::Corrupt);
    }
    block_on(&group.runtime, overlay.write(SectorRange::new(0, 8), &block, true)).expect("a whole block");
    assert!(read(&overlay, 0).expect("written anew") == block);
}

#[test]
fn an_overlay_of_before_there_were_sums_is_served_and_gets_them() {
    let mut group = Group::new(&[SECTORS]);
    let view = view(&mut group);
    let directory = directory();
    let path = directory.path().join("overlay");
    let sums = directory.path().join("overlay.sums");
    let overlay = create(&group, &view, &path);
    let mut model = group.model[0].clone();
    for (start, seed) in [(3, 5), (30, 6), (700, 7)] {
        let (range, bytes) = (SectorRange::new(start, start + 9), pattern(9 * 512, seed));
        model[to_usize(start * 512)..to_usize((start + 9) * 512)].copy_from_slice(&bytes);
        block_on(&group.runtime, overlay.write(range, &bytes, true)).expect("written");
    }
    drop(overlay);
    std::fs::remove_file(&sums).expect("it has sums");
    std::fs::write(directory.path().join("overlay.sums.partial"), "left by a death").expect("written");
    let overlay = Rc::new(open(&group, &view, &path));
    assert_is(&group, &overlay, &model);
    overlay.give_sums();
    // Beside the pass.
    model[..512].fill(9);
    block_on(&group.runtime, overlay.write(SectorRange::new(0, 1), &[9; 512], false)).expect("written");
    block_on(&group.runtime, overlay.zero(SectorRange::new(696, 704), false, false)).expect("zeroed");
    model[696 * 512..704 * 512].fill(0);
    assert_is(&group, &overlay, &model);
    while !sums.exists() {
        block_on(&group.runtime, group.runtime.sleep(Duration::from_millis(1)));
    }
    drop(overlay);
    let overlay = open(&group, &view, &path);
    assert_is(&group, &overlay, &model);
    drop(overlay);
    flip(&path, 33 * 512 + 5);
    let overlay = open(&group, &view, &path);
    let error = block_on(&group.runtime, overlay.read(SectorRange::new(0, SECTORS))).expect_err("refused");
    assert_eq!((error.path(), error.offset()), (Some(&*path), Some(33 * 512)), "{error}");
}

/// Leftovers of a creation that died: the sums come before the overlay, and are made anew. Those that say something are not.
#[test]
fn sums_without_an_overlay_are_made_anew_and_those_of_an_overlay_are_not() {
    let mut group = Group::new(&[SECTORS]);
    let view = view(&mut group);
    let directory = directory();
    let path = directory.path().join("overlay");
    std::fs::write(directory.path().join("overlay.sums"), "left").expect("written");
    std::fs::write(directory.path().join("overlay.sums.partial"), "left").expect("written");
    let overlay = create(&group, &view, &path);
    let bytes = pattern(8 * 512, 3);
    block_on(&group.runtime, overlay.write(SectorRange::new(8, 16), &bytes, true)).expect("written");
    drop(overlay);
    let create = || block_on(&group.runtime, Overlay::create(&path, &view, view.disks()[0].id()));
    assert_eq!(create().err().expect("never over another").kind(), ErrorKind::AlreadyExists);
    let pieces = block_on(&group.runtime, open(&group, &view, &path).read(SectorRange::new(8, 16)));
    assert!(flatten(&pieces.expect("its sums are its own")) == bytes);
    let elsewhere = directory.path().join("elsewhere");
    std::fs::rename(&path, &elsewhere).expect("its own directory");
    let error = create().err().expect("it was there");
    assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(&*path)), "{error}");
    assert!(error.to_string().contains("put it back"), "{error}");
    std::fs::rename(&elsewhere, &path).expect("its own directory");
    let pieces = block_on(&group.runtime, open(&group, &view, &path).read(SectorRange::new(8, 16)));
    assert!(flatten(&pieces.expect("nothing was cut")) == bytes);
}

/// What no read meets is looked at all the same, and what counts no more is mended before the other place goes, too.
#[test]
fn a_verification_reads_both_places_of_the_sums_and_mends_what_does_not_count() {
    let mut group = Group::new(&[SECTORS]);
    let view = view(&mut group);
    let directory = directory();
    let (path, sums) = (directory.path().join("overlay"), directory.path().join("overlay.sums"));
    let overlay = create(&group, &view, &path);
    let mut model = group.model[0].clone();
    let range = SectorRange::new(0, 112);
    for seed in [3, 4] {
        let bytes = pattern(range.bytes(), seed);
        block_on(&group.runtime, overlay.write(range, &bytes, true)).expect("written");
        model[..112 * 512].copy_from_slice(&bytes);
    }
    let throttle = Pacing::default().on(&group.runtime);
    let verify = |overlay: &Overlay| {
        let report = block_on(&group.runtime, overlay.verify(&throttle, || Ok(()))).expect("wanted");
        let faults: Vec<_> =
            report.faults.into_iter().map(|(range, error)| (range.start, error.offset())).collect();
        (faults, report.mended.into_iter().map(|rot| rot.offset).collect::<Vec<_>>())
    };
    assert_eq!(verify(&overlay), (vec![], vec![]));
    let (header, old_place, new_place) = (4096, 8192, 8192 + 4096 + 512);
    flip(&sums, header + 20);
    flip(&sums, old_place + 5);
    flip(&path, 70 * 512 + 3);
    assert_eq!(verify(&overlay), (vec![(70, Some(70 * 512))], vec![header, old_place]));
    assert_eq!(verify(&overlay), (vec![(70, Some(70 * 512))], vec![]));
    // The place that counts: what it said is in no other.
    flip(&sums, new_place + 5);
    let (faults, mended) = verify(&overlay);
    assert_eq!((faults[0], mended), ((56, Some(new_place)), vec![]));
    let bytes = pattern(56 * 512, 5);
    block_on(&group.runtime, overlay.write(SectorRange::new(56, 112), &bytes, true)).expect("anew");
    model[56 * 512..112 * 512].copy_from_slice(&bytes);
    assert_eq!(verify(&overlay), (vec![], vec![]));
    // The other place of the unit that was mended is one to live by.
    flip(&sums, old_place + 4096 + 9);
    drop(overlay);
    let overlay = open(&group, &view, &path);
    assert_is(&group, &overlay, &model);
    assert_eq!(verify(&overlay), (vec![], vec![old_place + 4096]));
}
