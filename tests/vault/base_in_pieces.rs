//! A base that goes in pieces: whatever stops it between two of them, every point is what it was, and what the base has
//! taken in is given back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

use afterimage::error::ErrorKind;
use afterimage::units::{PointId, SectorRange};
use afterimage::vault::{Advance, Vault};
use afterimage::view::View;

use crate::retention::{check, contents};
use crate::support::{Fault, Faults, Group, block_on, directory, faulty_runtime, site_keys};

/// Two disks: a base goes over one after the other.
const SIZES: [u64; 2] = [4000, 1000];
const PIECE_BYTES: u64 = 64 << 10;

struct Site {
    group: Group,
    faults: Faults,
    _directory: tempfile::TempDir,
}

impl Site {
    /// A group of four points, each of which differs from the one before it all over, whose base goes in pieces.
    fn new() -> Site {
        let directory = directory();
        let (runtime, faults) = faulty_runtime();
        let mut group = Group::within(&runtime, &directory.path().join("vault"), &SIZES);
        for seed in 1..5 {
            for start in (0..SIZES[0] - 100).step_by(150) {
                let range = SectorRange::new(start, start + 20 + u64::from(seed) * 15);
                group.write_bytes(0, range, &noise(range.bytes(), start + u64::from(seed)));
            }
            group.zero(0, SectorRange::new(1000 + u64::from(seed), 1100), seed % 2 == 0);
            group.write(1, SectorRange::new(u64::from(seed) * 100, 900), seed);
            group.publish();
        }
        group.summarize();
        let mut site = Site { group, faults, _directory: directory };
        site.reopen();
        site
    }

    fn reopen(&mut self) {
        let (path, keys) = (self.group.path(), site_keys());
        let opened = Vault::open(&self.group.runtime, &path, &keys);
        let vault = block_on(&self.group.runtime, opened).expect("sound");
        self.group.vault = Rc::new(vault.with_fan_out(2).with_pieces(PIECE_BYTES));
    }

    /// Sends the base to the third point.
    fn retire(&mut self) {
        let (target, _) = self.group.points[2];
        block_on(&self.group.runtime, self.group.vault.retire_before(target, None)).expect("no pin names it");
        self.group.points.drain(..2);
    }

    /// Has the base go on, and refuses the step after so many.
    fn advance(&self, steps: u64) -> afterimage::error::Result<Advance> {
        let next = self.group.vault.manifest().state().newest().0 + 1 + steps;
        self.faults.add(&format!("{next:016}"), Fault::Refused);
        block_on(&self.group.runtime, self.group.vault.finish_advance())
    }

    fn pieces(&self) -> usize {
        self.group.vault.manifest().state().taken_in().len()
    }

    /// Bytes that the deltas take on their file system.
    fn stored_bytes(&self) -> u64 {
        let blobs = fs::read_dir(self.group.path().join("blobs")).expect("a directory");
        blobs.map(|blob| blob.expect("a file").metadata().expect("there").blocks() * 512).sum()
    }

    fn view(&self, point: PointId) -> Rc<View> {
        block_on(&self.group.runtime, View::open(&self.group.vault, point)).expect("sound")
    }
}

/// What no compression makes shorter.
fn noise(bytes: u64, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(next).collect()
}

#[test]
fn what_stops_it_between_two_pieces_changes_no_point() {
    let mut site = Site::new();
    site.retire();
    let mut stored = site.stored_bytes();
    let (mut stops, mut given) = (0, 0);
    loop {
        match site.advance(1) {
            Ok(advance) => {
                assert_eq!(advance, Advance::Done);
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}"),
        }
        stops += 1;
        assert!(site.pieces() > 0, "it came further");
        check(&site.group);
        site.reopen();
        check(&site.group);
        given += stored - site.stored_bytes();
        stored = site.stored_bytes();
    }
    assert!(stops > 5, "{stops} stops");
    assert!(given > stored, "{given} bytes were given back before the last piece, {stored} after it");
    assert_eq!(site.pieces(), 0);
    block_on(&site.group.runtime, site.group.vault.sweep()).expect("deleted");
    check(&site.group);
    site.reopen();
    check(&site.group);
}

#[test]
fn a_view_that_is_opened_between_two_pieces_stays_right() {
    let mut site = Site::new();
    site.retire();
    site.advance(3).expect_err("there is no space for the fourth step");
    assert!(site.pieces() > 0);
    let views: Vec<_> =
        site.group.points.iter().map(|(point, model)| (site.view(*point), model.clone())).collect();
    let before = site.stored_bytes();
    // Nothing may be given back now: it is written at once.
    let advance = block_on(&site.group.runtime, site.group.vault.finish_advance()).expect("there is room");
    assert_eq!(advance, Advance::Done);
    block_on(&site.group.runtime, site.group.vault.sweep()).expect("none of them may go");
    assert_eq!(site.stored_bytes(), before, "the views read it");
    for (view, model) in &views {
        assert!(contents(&site.group, view) == *model, "point {}", view.point().id);
    }
    drop(views);
    block_on(&site.group.runtime, site.group.vault.sweep()).expect("deleted");
    check(&site.group);
}

/// What is left of a delta that is damaged is hidden by later ones, and the rest by what the base has taken in.
#[test]
fn a_damaged_delta_of_which_nothing_is_needed_any_more_holds_nothing_up() {
    let directory = directory();
    let (runtime, faults) = faulty_runtime();
    let mut group = Group::within(&runtime, &directory.path().join("vault"), &[1000]);
    let all = SectorRange::new(0, 1000);
    for seed in 1..5 {
        group.write_bytes(0, all, &noise(all.bytes(), seed));
        group.publish();
    }
    let first = group.vault.manifest().state().points()[0].delta.expect("it was written to").blob;
    let mut site = Site { group, faults, _directory: directory };
    site.reopen();
    site.retire();
    site.advance(2).expect_err("there is no space for the third step");
    let blob = site.group.vault.layout().blob(first);
    let mut bytes = fs::read(&blob).expect("it is there");
    bytes[40] ^= 1;
    fs::write(&blob, bytes).expect("writable");
    site.reopen();
    assert!(site.pieces() > 0);
    let advance = block_on(&site.group.runtime, site.group.vault.finish_advance()).expect("hidden");
    assert_eq!(advance, Advance::Done);
    block_on(&site.group.runtime, site.group.vault.sweep()).expect("deleted");
    check(&site.group);
}

/// A repair may send on a base that did not arrive.
#[test]
fn a_base_that_is_sent_on_takes_up_what_it_had_not() {
    let mut site = Site::new();
    let (second, _) = site.group.points[1];
    block_on(&site.group.runtime, site.group.vault.retire_before(second, None)).expect("no pin names it");
    site.group.points.drain(..1);
    site.advance(3).expect_err("there is no space for the fourth step");
    let (third, _) = site.group.points[1];
    let on = afterimage::format::record::Change::PointsRetired(third);
    block_on(&site.group.runtime, site.group.vault.manifest().append(on)).expect("it may be sent on");
    site.group.points.drain(..1);
    check(&site.group);
    site.advance(2).expect_err("there is no space for the third step");
    check(&site.group);
    site.reopen();
    let advance = block_on(&site.group.runtime, site.group.vault.finish_advance()).expect("there is room");
    assert_eq!(advance, Advance::Done);
    block_on(&site.group.runtime, site.group.vault.sweep()).expect("deleted");
    check(&site.group);
}
