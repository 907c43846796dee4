//! A group compared with its vault: a flipped bit is found wherever it is, and nothing else is, whatever is written meanwhile.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use afterimage::block::{Export, Refusal, Request, Ticket};
use afterimage::error::ErrorKind;
use afterimage::format::checkpoint::Checkpoint;
use afterimage::format::sums::{Copy, Holes, Of};
use afterimage::protect::verify::{GroupReport, Verification, What};
use afterimage::throttle::Pacing;
use afterimage::units::SectorRange;
use afterimage::view::Origin;
use bytes::Bytes;

use super::{Harness, Steps, scratch};

const SECTORS: u64 = 4096;

impl Harness {
    fn verify(&mut self) -> GroupReport {
        let verification = Verification::new(Pacing::default(), Rc::new(|_, _| Ok(())));
        self.called(|group, done| group.verify(verification, done)).expect("it comes to its end")
    }
}

/// The only file of a directory, of those with this extension.
fn only(directory: PathBuf, extension: &str) -> PathBuf {
    let names = std::fs::read_dir(directory).expect("there").map(|entry| entry.expect("readable").path());
    let mut found = names.filter(|path| path.extension().is_some_and(|found| found == extension));
    let path = found.next().expect("one");
    assert_eq!(found.next(), None);
    path
}

fn flip(path: &Path, offset: u64) {
    let file: File = OpenOptions::new().read(true).write(true).open(path).expect("there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("within it");
    file.write_all_at(&[byte[0] ^ 16], offset).expect("tests may write it");
}

/// A group with one disk, some of which is written, destaged and in a point.
fn group(root: &Path) -> (Harness, Export) {
    let mut harness = Harness::create(root);
    let disk = harness.add_disk("root", SECTORS);
    harness.write(disk, 8, 1, 100);
    harness.write(disk, 3000, 2, 64);
    harness.point("kept");
    harness.stop();
    (Harness::open(root).expect("reopens"), disk)
}

fn only_finding(report: &GroupReport) -> (SectorRange, &What) {
    let [finding] = &report.findings[..] else { panic!("one finding, not {:?}", report.findings) };
    assert_eq!(finding.name, "root");
    (finding.range, &finding.what)
}

#[test]
fn a_sound_group_has_no_findings_and_holes_are_not_read() {
    let (_guard, root) = scratch();
    let (mut harness, disk) = group(&root);
    harness.write(disk, 50, 3, 20);
    let report = harness.verify();
    assert_eq!(report.findings, []);
    assert_eq!(report.compared_bytes, SECTORS * 512);
    assert_eq!(report.newer_bytes, 20 * 512);
    assert!(report.read_bytes < 1 << 20, "two sides of some 100 KiB: {}", report.read_bytes);
    assert!(report.point.is_some());
}

#[test]
fn a_disk_that_left_before_is_noted_as_such() {
    let (_guard, root) = scratch();
    let (mut harness, disk) = group(&root);
    let Export::Disk(_, id) = disk else { panic!("{disk:?}") };
    harness.called(|group, done| group.remove_disk(id, done)).expect("it goes");
    let report = harness.verify();
    assert_eq!(report.findings, []);
    let note = "disk root: it left the group after the newest recovery point, which holds it still";
    assert_eq!(report.notes, [note]);
    assert_eq!((report.read_bytes, report.compared_bytes), (0, 0));
}

#[test]
fn a_bit_flipped_in_an_image_is_named_unless_it_was_written_over() {
    let (_guard, root) = scratch();
    let (mut harness, disk) = group(&root);
    let image = only(root.join("groups/g/images"), "raw");
    flip(&image, 3010 * 512 + 5);
    let report = harness.verify();
    let (range, what) = only_finding(&report);
    assert_eq!(range, SectorRange::new(3010, 3011));
    let What::Unreadable { error } = what else { panic!("{what:?}") };
    let place = format!("{} at byte {}", image.display(), 3010 * 512);
    assert!(error.contains("do not match their sums") && error.contains(&place), "{error}");
    harness.write(disk, 3010, 2, 1);
    assert_eq!(harness.verify().findings, []);
}

/// It was not even read: a bit that had flipped there was found once a guest met it.
#[test]
fn what_no_point_holds_is_compared_with_its_sums() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let images = || {
        let entries = std::fs::read_dir(root.join("groups/g/images")).expect("there");
        let paths = entries.map(|entry| entry.expect("readable").path());
        paths.filter(|path| path.extension().is_some_and(|found| found == "raw")).collect::<BTreeSet<_>>()
    };
    let mut known = BTreeSet::new();
    for (name, note) in
        [("root", "no recovery point yet"), ("data", "disk data: the newest recovery point does not hold it")]
    {
        let disk = harness.add_disk(name, SECTORS);
        harness.write(disk, 3000, 2, 64);
        harness.drive(|group| group.ladder().destaged == group.ladder().visible);
        let report = harness.verify();
        assert_eq!(report.findings, []);
        assert!(report.notes[0].contains(note) && report.notes.len() == 1, "{:?}", report.notes);
        assert!(report.read_bytes >= 64 * 512 && report.read_bytes < 1 << 20, "{}", report.read_bytes);
        let all = images();
        let image = all.difference(&known).next().expect("its image");
        flip(image, 3010 * 512 + 5);
        let report = harness.verify();
        let [finding] = &report.findings[..] else { panic!("one finding, not {:?}", report.findings) };
        assert_eq!((&*finding.name, finding.range), (name, SectorRange::new(3010, 3011)));
        flip(image, 3010 * 512 + 5);
        known = all;
        harness.point("kept");
    }
    assert_eq!(harness.verify().notes, Vec::<String>::new());
}

/// No read meets the place of a block that does not count.
#[test]
fn a_bit_flipped_in_sums_of_an_image_that_nobody_reads_is_named_and_mended() {
    let (_guard, root) = scratch();
    let (mut harness, disk) = group(&root);
    harness.write(disk, 8, 3, 1);
    harness.stop();
    let mut harness = Harness::open(&root).expect("reopens");
    assert_eq!(harness.verify().findings, []);
    let sums = only(root.join("groups/g/images"), "sums");
    for copy in Copy::BOTH {
        let at = Of::Image(Holes::Zeros).block_offset(0, copy);
        flip(&sums, at + 77);
        let report = harness.verify();
        let (range, what) = only_finding(&report);
        assert_eq!(range, SectorRange::new(0, 1016));
        let What::Unreadable { error } = what else { panic!("{what:?}") };
        assert!(error.contains(&format!("{} at byte {at}", sums.display())), "{error}");
        assert_eq!(harness.verify().findings, [], "written anew");
    }
    flip(&sums, 4096 + 1000);
    let report = harness.verify();
    let What::Unreadable { error } = only_finding(&report).1 else { panic!("{report:?}") };
    assert!(
        error.contains("header") && error.contains(&format!("{} at byte 4096", sums.display())),
        "{error}"
    );
    assert_eq!(harness.verify().findings, []);
}

/// Of an image of a version without sums a flipped bit is served; once it has been read for them it is not.
#[test]
fn an_image_of_before_there_were_sums_gets_them_in_the_background() {
    let (_guard, root) = scratch();
    let (harness, disk) = group(&root);
    harness.stop();
    let images = root.join("groups/g/images");
    let checkpoint = only(images.clone(), "checkpoint");
    let mut file = std::fs::read(&checkpoint).expect("there");
    for slot in Checkpoint::slots(&file).into_iter().flatten() {
        let at = usize::try_from(slot.slot_offset()).expect("small");
        Checkpoint { has_sums: false, ..slot }.encode(&mut file[at..at + 4096]);
    }
    std::fs::write(&checkpoint, file).expect("tests may write it");
    let mut harness = Harness::open(&root).expect("reopens");
    harness.drive(|group| group.disks().all(|disk| disk.unsummed_bytes() == 0));
    assert_eq!(harness.verify().notes, Vec::<String>::new());
    flip(&only(images, "raw"), 3010 * 512 + 5);
    let range = SectorRange::new(3010, 3011);
    assert_eq!(harness.ask(disk, Request::Read { range }).err(), Some(Refusal::Io));
}

#[test]
fn a_bit_flipped_in_a_base_is_named() {
    let (_guard, root) = scratch();
    let (mut harness, _) = group(&root);
    let base = only(root.join("vault/g/base"), "raw");
    flip(&base, 2000 * 512);
    let report = harness.verify();
    let (range, what) = only_finding(&report);
    assert_eq!(range, SectorRange::new(2000, 2008), "as finely as it is read");
    let What::Unreadable { error } = what else { panic!("{what:?}") };
    let place = format!("{} at byte {}", base.display(), 2000 * 512);
    assert!(error.contains(&place), "{error}");
    // Once more: it is as it was.
    flip(&base, 2000 * 512);
    assert_eq!(harness.verify().findings, []);
}

#[test]
fn a_base_without_sums_is_compared_with_its_image() {
    let (_guard, root) = scratch();
    let (mut harness, _) = group(&root);
    let base = only(root.join("vault/g/base"), "raw");
    let unsummed = base.to_str().expect("text").replace(".summed.raw", ".raw");
    std::fs::rename(&base, &unsummed).expect("renamed");
    flip(Path::new(&unsummed), 2000 * 512);
    let report = harness.verify();
    let (range, what) = only_finding(&report);
    assert_eq!(range, SectorRange::new(2000, 2001));
    let What::Differs { vault: Origin::Base { path, offset, has_sums: false }, .. } = what else {
        panic!("{what:?}")
    };
    assert_eq!((path.as_path(), *offset), (Path::new(&unsummed), 2000 * 512));
    let told = report.findings[0].to_string();
    assert!(told.contains("the base is wrong, for the group's checksums fit"), "{told}");
}

#[test]
fn a_bit_flipped_in_a_delta_is_named() {
    let (_guard, root) = scratch();
    let (mut harness, _) = group(&root);
    let blob = only(root.join("vault/g/blobs"), "delta");
    // The first byte after the header: in the first chunk.
    flip(&blob, 4096.min(std::fs::metadata(&blob).expect("there").len() / 4));
    let report = harness.verify();
    assert!(!report.is_sound());
    for finding in &report.findings {
        let What::Unreadable { error } = &finding.what else { panic!("{finding}") };
        assert!(error.contains(&blob.display().to_string()) && error.contains("at byte"), "{error}");
    }
}

#[test]
fn writes_and_points_beside_it_are_no_findings() {
    let (_guard, root) = scratch();
    let (mut harness, disk) = group(&root);
    let image = only(root.join("groups/g/images"), "raw");
    flip(&image, 3010 * 512 + 5);
    // Pieces so small that much happens between two of them.
    let verification =
        Verification { piece_bytes: 4096, ..Verification::new(Pacing::default(), Rc::new(|_, _| Ok(()))) };
    let slot = Rc::new(RefCell::new(None));
    let (filled, points) = (Rc::clone(&slot), Rc::new(RefCell::new(0)));
    harness.group.verify(verification, Box::new(move |result| drop(filled.replace(Some(result)))));
    let mut round: u8 = 0;
    while slot.borrow().is_none() {
        round = round.wrapping_add(1);
        let start = 8 + u64::from(round % 100);
        let request = Request::Write {
            range: SectorRange::new(start, start + 1),
            payload: Bytes::from(vec![round; 512]),
            durable: false,
        };
        harness.group.submit(Ticket { session: 2, request: u64::from(round) }, disk, request);
        if round.is_multiple_of(8) {
            let counted = Rc::clone(&points);
            let made = Box::new(move |point: afterimage::error::Result<_>| {
                *counted.borrow_mut() += u64::from(point.is_ok());
            });
            harness.group.create_point("beside".into(), made);
        }
        harness.step();
    }
    let report = slot.take().expect("filled").expect("it comes to its end");
    assert_eq!(only_finding(&report).0, SectorRange::new(3010, 3011));
    assert!(*points.borrow() > 0, "points came beside it");
}

#[test]
fn it_ends_when_nobody_wants_it_any_more() {
    let (_guard, root) = scratch();
    let (mut harness, _) = group(&root);
    let cancelled = || Err(afterimage::error::Error::new(ErrorKind::Shutdown, "cancelled"));
    let verification = Verification::new(Pacing::default(), Rc::new(move |_, _| cancelled()));
    let error = harness.called(|group, done| group.verify(verification, done)).expect_err("cancelled");
    assert_eq!(error.kind(), ErrorKind::Shutdown);
}
