//! Files of a disk that cannot be had when its group is opened: the disk is latched alone, and loses nothing.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use afterimage::block::{Refusal, Request};
use afterimage::error::ErrorKind;
use afterimage::image::checkpoint_path;
use afterimage::protect::resume::Finding;
use afterimage::protect::status::Condition;
use afterimage::storage::sim::{FaultKind, Matcher, OpKind};
use afterimage::storage::{Create, OpenOptions};
use afterimage::units::{DiskId, SectorRange};
use afterimage::view::View;

use crate::machine::{Machine, SECTORS, Steps, fill, image, latched, part, plan, side};
use crate::pieces::flatten;

const ELSEWHERE: &str = "/elsewhere";

/// Why a disk's files cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    ImageMissing,
    ImageCutOff,
    ImageCannotBeOpened,
    CheckpointMissing,
    CheckpointCannotBeRead,
    CheckpointDamaged,
}

impl Cause {
    const ALL: [Cause; 6] = [
        Cause::ImageMissing,
        Cause::ImageCutOff,
        Cause::ImageCannotBeOpened,
        Cause::CheckpointMissing,
        Cause::CheckpointCannotBeRead,
        Cause::CheckpointDamaged,
    ];

    fn path(self, disk: DiskId) -> PathBuf {
        match self {
            Cause::ImageMissing | Cause::ImageCutOff | Cause::ImageCannotBeOpened => image(disk),
            _ => checkpoint_path(&plan().images(), disk),
        }
    }

    fn kind(self) -> ErrorKind {
        match self {
            Cause::ImageMissing | Cause::CheckpointMissing => ErrorKind::NotFound,
            Cause::ImageCutOff | Cause::CheckpointDamaged => ErrorKind::Corrupt,
            Cause::ImageCannotBeOpened | Cause::CheckpointCannotBeRead => ErrorKind::Io,
        }
    }

    fn bring_about(self, machine: &mut Machine, disk: DiskId) {
        let path = self.path(disk);
        let fail = |kind| machine.disk.fail_always(Matcher::kind(kind).path(part(&path)), FaultKind::Io);
        match self {
            Cause::ImageMissing | Cause::CheckpointMissing => take_away(machine, &path),
            Cause::ImageCutOff => replace(machine, &path, 4096),
            Cause::CheckpointDamaged => {
                let length = machine.disk.file_length(&path).expect("there");
                replace(machine, &path, length);
            }
            Cause::ImageCannotBeOpened => fail(OpKind::Open),
            Cause::CheckpointCannotBeRead => fail(OpKind::Read),
        }
    }

    fn mend(self, machine: &mut Machine, disk: DiskId) {
        machine.disk.mend();
        if self.kind() != ErrorKind::Io {
            put_back(machine, &self.path(disk));
        }
    }
}

fn elsewhere(path: &Path) -> PathBuf {
    Path::new(ELSEWHERE).join(path.file_name().expect("a file"))
}

fn take_away(machine: &mut Machine, path: &Path) {
    let runtime = Rc::clone(&machine.runtime);
    machine.run(async move { runtime.create_directory(ELSEWHERE).await }).expect("no faults yet");
    machine.rename(path, &elsewhere(path));
}

/// Puts another file of so many zeros in the place of one.
fn replace(machine: &mut Machine, path: &Path, length: u64) {
    take_away(machine, path);
    let (runtime, path) = (Rc::clone(&machine.runtime), path.to_owned());
    machine.run(async move {
        let options = OpenOptions { create: Create::New, ..OpenOptions::OWNED };
        let file = runtime.open(path, options).await.expect("no faults yet");
        runtime.set_length(&file, length).await.expect("room");
    });
}

fn put_back(machine: &mut Machine, path: &Path) {
    let (runtime, place) = (Rc::clone(&machine.runtime), path.to_owned());
    // What stands there instead, if anything.
    drop(machine.run(async move { runtime.remove(place).await }));
    machine.rename(&elsewhere(path), path);
}

fn assert_detached(machine: &mut Machine, disk: DiskId, kind: ErrorKind, names: &Path) {
    let member = machine.member(disk);
    assert_eq!((member.latched, member.image.is_none()), (Some(kind), true));
    let why = machine.group().snapshot().latched_because.join("");
    assert!(why.contains(&part(names)), "{why}");
    assert_eq!(machine.group().condition(), Condition::ImageFailed);
    assert_eq!(machine.write(disk, 0, 9, 1).unwrap_err(), Refusal::Io);
    let all = SectorRange::new(0, SECTORS);
    assert_eq!(machine.ask(disk, Request::Read { range: all }).unwrap_err(), Refusal::Io);
    assert_eq!(machine.ask(disk, Request::Allocation { range: all, runs_max: 1 }).unwrap_err(), Refusal::Io);
}

fn assert_mended(machine: &mut Machine, disk: DiskId, expected: &[u8]) {
    let report = machine.resume().expect("a group that works");
    let found = report.disks.iter().find(|found| found.disk == disk).expect("a disk of the group");
    assert_eq!(found.finding, Finding::Mended);
    assert_eq!(machine.read(disk), expected);
    let left = machine.disk.files();
    assert!(!left.iter().any(|path| part(path).contains(".side-")), "{left:?}");
}

/// What a disk holds in a new recovery point.
fn in_a_point(machine: &mut Machine, disk: DiskId) -> Vec<u8> {
    let point = machine.called(|group, done| group.create_point("now".into(), done)).expect("a point");
    let vault = Rc::clone(machine.group().vault());
    let read = machine.run(async move {
        let view = View::open(&vault, point.id).await?;
        view.read(disk, SectorRange::new(0, SECTORS)).await
    });
    flatten(&read.expect("sound"))
}

#[test]
fn whatever_keeps_an_image_from_being_opened_latches_its_disk_alone() {
    for (seed, cause) in (0..24).zip(Cause::ALL.into_iter().cycle()) {
        let (mut machine, broken, sound) = Machine::new(seed);
        let mut expected = fill(&mut machine, broken);
        machine.drive("destaging", |machine| {
            machine.disk.durable_file(&image(broken)).expect("there") == expected
        });
        // This is in the journal only.
        assert!(machine.write(broken, 90, 3, 20).is_ok());
        expected[90 * 512..110 * 512].fill(3);
        assert!(machine.ask(broken, Request::Flush).is_ok());

        let mut machine = machine.die(seed % 2 == 0);
        cause.bring_about(&mut machine, broken);
        machine.open().unwrap_or_else(|error| panic!("{cause:?} refuses the group: {error}"));
        assert_detached(&mut machine, broken, cause.kind(), &cause.path(broken));
        assert_eq!(in_a_point(&mut machine, broken), expected, "{cause:?}, seed {seed}");
        machine.turn_the_journal_over(sound);
        assert_detached(&mut machine, broken, cause.kind(), &cause.path(broken));

        // Once more, now that the journal no longer has it.
        let mut machine = machine.restart(seed % 3 == 0);
        assert_detached(&mut machine, broken, cause.kind(), &cause.path(broken));
        machine.turn_the_journal_over(sound);
        cause.mend(&mut machine, broken);
        assert_mended(&mut machine, broken, &expected);
        assert_eq!(in_a_point(&mut machine, broken), expected);
        assert!(machine.write(broken, 0, 9, 1).is_ok());
        expected[..512].fill(9);
        assert_eq!(machine.restart(false).read(broken), expected, "{cause:?}, seed {seed}");
    }
}

#[test]
fn an_opening_takes_back_what_was_put_back() {
    for seed in 0..6 {
        let (mut machine, broken, sound) = Machine::new(seed);
        let expected = fill(&mut machine, broken);
        let mut machine = machine.die(false);
        Cause::ImageMissing.bring_about(&mut machine, broken);
        machine.open().expect("opens");
        machine.turn_the_journal_over(sound);
        let mut machine = machine.die(seed % 2 == 0);
        Cause::ImageMissing.mend(&mut machine, broken);
        machine.open().expect("opens");
        assert!(!machine.is_latched(broken));
        assert_eq!(machine.read(broken), expected, "seed {seed}");
    }
}

#[test]
fn a_resume_before_the_mend_says_what_is_missing() {
    let (mut machine, broken, _) = Machine::new(1);
    let expected = fill(&mut machine, broken);
    let mut machine = machine.die(false);
    Cause::ImageMissing.bring_about(&mut machine, broken);
    machine.open().expect("opens");
    for _ in 0..2 {
        let report = machine.resume().expect("a group that works");
        let Finding::Latched { kind, reason } = &report.disks[0].finding else { panic!("{report:?}") };
        assert_eq!(*kind, ErrorKind::NotFound);
        assert!(reason.contains("the image is missing: put its file back"), "{reason}");
    }
    Cause::ImageMissing.mend(&mut machine, broken);
    assert_mended(&mut machine, broken, &expected);
}

/// What the journal holds is brought into an image by way of a side file only: where there can be none, a resume says so.
#[test]
fn without_a_side_file_it_is_not_mended_and_the_journal_keeps_what_it_has() {
    let (mut machine, broken, _) = Machine::new(2);
    let expected = fill(&mut machine, broken);
    let mut machine = machine.die(false);
    Cause::ImageMissing.bring_about(&mut machine, broken);
    machine.disk.fail_always(Matcher::kind(OpKind::Write).path(format!("{broken}.side-")), FaultKind::Io);
    machine.open().expect("opens");
    let report = machine.resume().expect("a group that works");
    let Finding::Latched { reason, .. } = &report.disks[0].finding else { panic!("{report:?}") };
    assert!(reason.contains(".side-"), "{reason}");
    let mut machine = machine.restart(true);
    Cause::ImageMissing.mend(&mut machine, broken);
    assert_mended(&mut machine, broken, &expected);
}

#[test]
fn a_side_file_that_was_counted_on_is_missed() {
    for seed in 0..4 {
        let (machine, broken, sound, expected) = latched(seed);
        let mut machine = machine.die(seed % 2 == 0);
        take_away(&mut machine, &side(broken));
        machine.disk.mend();
        machine.open().expect("opens");
        assert_detached(&mut machine, broken, ErrorKind::NotFound, &side(broken));
        assert!(machine.write(sound, 0, 1, 1).is_ok());
        let report = machine.resume().expect("a group that works");
        assert!(matches!(report.disks[0].finding, Finding::Latched { .. }), "{report:?}");
        put_back(&mut machine, &side(broken));
        assert_mended(&mut machine, broken, &expected);
    }
}

#[test]
fn a_side_file_whose_end_is_damaged_latches_its_disk_alone() {
    for from_end in [8, 100, 130] {
        let (machine, broken, sound, expected) = latched(from_end);
        let mut machine = machine.die(false);
        let length = machine.disk.file_length(&side(broken)).expect("there");
        assert!(machine.disk.rot(&side(broken), length - from_end, 3));
        machine.disk.mend();
        machine.open().expect("opens");
        assert_detached(&mut machine, broken, ErrorKind::Corrupt, &side(broken));
        machine.turn_the_journal_over(sound);
        let mut machine = machine.restart(true);
        assert_detached(&mut machine, broken, ErrorKind::Corrupt, &side(broken));
        assert!(machine.disk.rot(&side(broken), length - from_end, 3), "the bit flips back");
        assert_mended(&mut machine, broken, &expected);
    }
}

#[test]
fn a_disk_leaves_whose_image_is_missing() {
    let (mut machine, broken, sound) = Machine::new(3);
    fill(&mut machine, broken);
    let mut machine = machine.die(false);
    Cause::ImageMissing.bring_about(&mut machine, broken);
    machine.open().expect("opens");
    machine.called(|group, done| group.remove_disk(broken, done)).expect("leaves");
    assert_eq!(machine.group().condition(), Condition::Protected);
    let is_of_disk = |path: &PathBuf| part(path).contains(&broken.to_string()) && path.starts_with("/group");
    // A side file that was being written goes once it is.
    machine.until("its files going", |machine| !machine.disk.files().iter().any(is_of_disk));
    assert!(machine.restart(true).write(sound, 0, 1, 1).is_ok());
}

/// A dead owner's requests end in time, and its lock with them; somebody else's may not.
#[test]
fn an_image_that_stays_locked_latches_its_disk_alone() {
    let (mut machine, broken, sound) = Machine::new(4);
    let expected = fill(&mut machine, broken);
    let mut machine = machine.die(false);
    let mut other = Machine::boot(machine.disk.clone(), Rc::clone(&machine.environment));
    let runtime = Rc::clone(&other.runtime);
    let file = other.run(async move { runtime.open(image(broken), OpenOptions::OWNED).await });
    let file = file.expect("nobody else has it");
    machine.open().expect("opens");
    assert_detached(&mut machine, broken, ErrorKind::Locked, &image(broken));
    assert!(machine.write(sound, 0, 1, 1).is_ok());
    drop(file);
    assert_mended(&mut machine, broken, &expected);
}
