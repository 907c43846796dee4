//! A vault is all that is left, and its newest point shows something that is lost: it is named, refused, and given up where somebody
//! says so. It began with a vault that nobody could adopt for one flipped bit.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use afterimage::block::Export;
use afterimage::error::ErrorKind;
use afterimage::extent::Ranges;
use afterimage::format::record::{Membership, PointDisk, PointRecord};
use afterimage::protect::adopt;
use afterimage::protect::loss::{Loss, Terms};
use afterimage::protect::membership::Content;
use afterimage::protect::open;
use afterimage::units::{Lsn, PointId, SectorCount, SectorRange};

use super::{GROUP, Harness, Steps, die_after, plan, rebuild, runtime, scratch};

const SECTORS: u64 = 4096;
/// What an imported disk is full of.
const IMPORTED: u8 = 9;

fn range(start: u64, end: u64) -> SectorRange {
    SectorRange::new(start, end)
}

/// Changes one byte of a file.
fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("long enough");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("writable");
}

fn zero(bytes: &mut [u8], ranges: &[SectorRange]) {
    for range in ranges {
        let range = range.byte_range();
        bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].fill(0);
    }
}

fn lost(loss: &Loss) -> Vec<(&str, &[SectorRange])> {
    loss.disks.iter().map(|lost| (&lost.name[..], lost.ranges.as_slice())).collect()
}

impl Harness {
    /// A disk that is not empty when it joins.
    fn import(&mut self, root: &Path, name: &str) -> Export {
        let source = root.join("source.raw");
        fs::write(&source, vec![IMPORTED; usize::try_from(SECTORS * 512).unwrap()]).expect("room");
        let content = Content::Import(source, Rc::new(|_, _| Ok(())));
        let joined =
            self.called(|group, done| group.add_disk(name.into(), SectorCount(SECTORS), content, done));
        Export::Disk(GROUP, joined.expect("joins").id)
    }

    fn base(&self, disk: Export) -> PathBuf {
        let Export::Disk(_, id) = disk else { panic!("{disk:?}") };
        self.group.vault().layout().base(id)
    }
}

/// A group of which only the vault is left.
struct Left {
    disk: Export,
    first: PointRecord,
    /// What the disk held at the newest point.
    expected: Vec<u8>,
    base: PathBuf,
    /// The delta of sectors 1000..1200, of which 1100..1108 were written anew later.
    blob: PathBuf,
}

fn left_in(root: &Path) -> Left {
    let mut harness = Harness::create(root);
    let disk = harness.import(root, "d");
    harness.write(disk, 0, 1, 8);
    let first = harness.point("first");
    harness.write(disk, 1000, 2, 200);
    let second = harness.point("second");
    harness.write(disk, 1100, 3, 8);
    harness.point("third");
    let expected = harness.read(disk, 0, SECTORS);
    let (base, blob) = (harness.base(disk), harness.blob(&second));
    harness.stop();
    fs::remove_dir_all(root.join("groups/g")).expect("goes");
    Left { disk, first, expected, base, blob }
}

fn refused(root: &Path, terms: Terms) -> String {
    let process = runtime();
    let error =
        process.block_on(rebuild(Rc::clone(&process), plan(root), terms)).expect_err("something is lost");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    error.to_string()
}

fn adopted(root: &Path, terms: Terms) -> (Harness, Loss) {
    let process = runtime();
    let loss = process.block_on(rebuild(Rc::clone(&process), plan(root), terms)).expect("is adopted");
    drop(process);
    (Harness::open(root).expect("opens"), loss)
}

#[test]
fn what_is_lost_is_named_then_given_up_and_repaired() {
    let (_guard, root) = scratch();
    let mut left = left_in(&root);
    flip(&left.blob, 260);
    flip(&left.base, 2000 * 512 + 7);
    let told = refused(&root, Terms::RefuseLoss);
    let (blob, base) = (left.blob.display().to_string(), left.base.display().to_string());
    let size = (92 + 100 + 1) * 512;
    for named in [
        &format!("disk d: {size} bytes (193 sectors: 1000..1100, 1108..1200, 2000..2001)"),
        &blob,
        &base,
        "at byte 1024000",
        "undamaged copy",
        "--accept-loss --yes",
        "no recovery point is without it",
    ] {
        assert!(told.contains(named), "{named} in {told}");
    }
    let listed = Harness::open(&root).err().expect("it is not done").to_string();
    assert!(listed.contains("adoption did not finish") && listed.contains(&told), "{listed}");
    let (mut harness, loss) = adopted(&root, Terms::AcceptLoss);
    let ranges = [range(1000, 1100), range(1108, 1200), range(2000, 2001)];
    assert_eq!(lost(&loss), [("d", &ranges[..])]);
    zero(&mut left.expected, &ranges);
    assert!(harness.read(left.disk, 0, SECTORS) == left.expected);
    harness.write(left.disk, 3000, 4, 8);
    left.expected[3000 * 512..3008 * 512].fill(4);
    let repaired = harness.repair();
    assert_eq!((repaired.left, repaired.renewed_bytes), (vec![], size));
    assert_eq!(harness.look().findings, []);
    let newest = harness.point("newest");
    assert!(harness.at(newest.id, left.disk) == left.expected);
    assert!(harness.read(left.disk, 0, SECTORS) == left.expected);
}

#[test]
fn a_base_that_was_cut_off_is_not_taken_for_zeros() {
    let (_guard, root) = scratch();
    let mut left = left_in(&root);
    let base = OpenOptions::new().write(true).open(&left.base).expect("there");
    base.set_len(4000 * 512).expect("cut off");
    let told = refused(&root, Terms::RefuseLoss);
    assert!(told.contains("4000..4096") && told.contains(&left.base.display().to_string()), "{told}");
    let (mut harness, loss) = adopted(&root, Terms::AcceptLoss);
    let ranges = [range(4000, 4096)];
    assert_eq!(lost(&loss), [("d", &ranges[..])]);
    zero(&mut left.expected, &ranges);
    assert!(harness.read(left.disk, 0, SECTORS) == left.expected);
}

#[test]
fn a_delta_without_tables_is_refused_with_the_point_that_can_be_had_until_it_is_put_back() {
    let (_guard, root) = scratch();
    let left = left_in(&root);
    let length = fs::metadata(&left.blob).expect("there").len();
    let bytes = fs::read(&left.blob).expect("there");
    flip(&left.blob, length - 100);
    for terms in [Terms::RefuseLoss, Terms::AcceptLoss] {
        let told = refused(&root, terms);
        assert!(
            told.contains("cannot be opened") && told.contains(&left.blob.display().to_string()),
            "{told}"
        );
        assert!(told.contains(&left.first.id.to_string()) && !told.contains("--accept-loss"), "{told}");
    }
    fs::write(&left.blob, bytes).expect("put back");
    let (mut harness, loss) = adopted(&root, Terms::RefuseLoss);
    assert!(loss.is_empty());
    assert!(harness.read(left.disk, 0, SECTORS) == left.expected);
}

#[test]
fn a_disk_that_joined_later_has_what_its_base_has_and_the_rest_is_named() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("d", 64);
    harness.write(disk, 0, 1, 8);
    harness.point("first");
    let late = harness.import(&root, "late");
    let base = harness.base(late);
    harness.stop();
    fs::remove_dir_all(root.join("groups/g")).expect("goes");
    flip(&base, 10 * 512);
    assert!(refused(&root, Terms::RefuseLoss).contains("disk late: 512 bytes (1 sector: 10..11)"));
    let (mut harness, loss) = adopted(&root, Terms::AcceptLoss);
    assert_eq!(lost(&loss), [("late", &[range(10, 11)][..])]);
    let mut expected = vec![IMPORTED; usize::try_from(SECTORS * 512).unwrap()];
    zero(&mut expected, &[range(10, 11)]);
    assert!(harness.read(late, 0, SECTORS) == expected);
    // A point has to have it first.
    harness.write(disk, 0, 2, 8);
    harness.point("with it");
    let repaired = harness.repair();
    // The base stays as it is until the point before the disk joined has gone; no point shows it.
    assert!(repaired.left.iter().all(|finding| finding.harmed.is_none()), "{:?}", repaired.left);
    assert!(harness.look().harmed.is_empty());
    let newest = harness.point("newest");
    assert!(harness.at(newest.id, late) == expected);
}

/// It was taken for a disk that had joined later: its image was its base, without a word.
#[test]
fn what_the_newest_point_lacks_by_its_own_account_is_lost_and_no_more() {
    let (_guard, root) = scratch();
    let mut left = left_in(&root);
    let lacking = range(1150, 1160);
    let process = runtime();
    let (publishing, own) = (Rc::clone(&process), plan(&root));
    let published = async move {
        let vault = open::open_vault(&publishing, &own).await?;
        let newest = vault.manifest().state().points().last().cloned().expect("three");
        let lacks = |member: &PointDisk| PointDisk {
            membership: Membership::Lacking([lacking].into()),
            ..member.clone()
        };
        let disks = newest.disks.iter().map(lacks).collect();
        let marker = Lsn(newest.marker.0 + 1);
        vault.publish(PointRecord { id: PointId(77), marker, delta: None, disks, ..newest }).await
    };
    process.block_on(published).expect("published");
    drop(process);
    let told = refused(&root, Terms::RefuseLoss);
    assert!(told.contains("1150..1160") && told.contains("rotted in the journal"), "{told}");
    let (mut harness, loss) = adopted(&root, Terms::AcceptLoss);
    assert_eq!(loss.disks[0].ranges, Ranges::of([lacking]));
    zero(&mut left.expected, &[lacking]);
    assert!(harness.read(left.disk, 0, SECTORS) == left.expected);
}

#[test]
fn one_that_dies_at_any_await_is_listed_and_done_again_on_either_terms() {
    let (_guard, source) = scratch();
    let mut left = left_in(&source);
    flip(&left.blob, 260);
    zero(&mut left.expected, &[range(1000, 1100), range(1108, 1200)]);
    for polls in (0..).step_by(23) {
        let (_guard, root) = scratch();
        fs::create_dir_all(root.join("groups")).expect("a directory");
        fs::create_dir_all(root.join("vault")).expect("a directory");
        let (copying, from) = (runtime(), source.join("vault/g"));
        let (own, fetching) = (plan(&root), Rc::clone(&copying));
        let fetch = async move { adopt::fetch(&fetching, &own, &from, |_, _| Ok(())).await };
        copying.block_on(fetch).expect("copied");
        drop(copying);
        let dying = runtime();
        let mut adoption = Box::pin(rebuild(Rc::clone(&dying), plan(&root), Terms::AcceptLoss));
        let ended = die_after(&dying, polls, &mut adoption);
        drop(adoption);
        dying.abandon_tasks();
        if !ended && Harness::open(&root).is_err() {
            refused(&root, Terms::RefuseLoss);
            drop(adopted(&root, Terms::AcceptLoss));
        }
        let mut harness = Harness::open(&root).expect("adopted");
        assert!(harness.read(left.disk, 0, SECTORS) == left.expected, "after {polls} polls");
        if ended {
            return;
        }
    }
}
