//! Disks that join, leave and change their size, on the simulated disk: what each recovery point lists and holds, and what
//! a death leaves of a resize.
//!
//! It began with a disk that shrank and grew between two points: nothing said that what it gained is zeros, so older
//! points' bytes would have shown through.

#[path = "latched_disk/machine.rs"]
#[allow(dead_code)]
mod machine;
#[path = "support/pieces.rs"]
mod pieces;
#[path = "support/stepped.rs"]
mod stepped;

use std::cell::Cell;
use std::rc::Rc;

use afterimage::block::{Request, Response};
use afterimage::error::{ErrorKind, Result};
use afterimage::format::record::{DiskRecord, PointRecord};
use afterimage::protect::adopt;
use afterimage::protect::loss::Terms;
use afterimage::protect::membership::Content;
use afterimage::protect::open;
use afterimage::storage::sim::{FaultKind, Matcher, OpKind};
use afterimage::units::{DiskId, PointId, SectorCount, SectorRange, to_usize};
use afterimage::vault::verify;
use afterimage::view::View;
use machine::{Machine, SECTORS, Steps, fill, image, part, plan};
use pieces::flatten;

/// Smaller than a disk of the machine, by no whole block.
const SMALL: u64 = 101;
/// Larger.
const LARGE: u64 = 4000;

fn resize(machine: &mut Machine, disk: DiskId, sectors: u64) -> Result<DiskRecord> {
    machine.called(|group, done| group.resize_disk(disk, SectorCount(sectors), true, done))
}

fn point(machine: &mut Machine, label: &str) -> PointRecord {
    machine.called(|group, done| group.create_point(label.into(), done)).expect("a point")
}

fn size(machine: &mut Machine, disk: DiskId) -> u64 {
    machine.member(disk).record.sectors.0
}

fn read(machine: &mut Machine, disk: DiskId, sectors: u64) -> Vec<u8> {
    match machine.ask(disk, Request::Read { range: SectorRange::new(0, sectors) }) {
        Ok(Response::Data(pieces)) => flatten(&pieces),
        other => panic!("a read gave {other:?}"),
    }
}

/// What a point holds of a disk; `None` if it does not have it.
fn viewed(machine: &mut Machine, point: PointId, disk: DiskId) -> Option<Vec<u8>> {
    let vault = Rc::clone(machine.group().vault());
    let read = async move {
        let view = View::open(&vault, point).await.expect("the point can be opened");
        let sectors = view.disk(disk).ok()?.sectors().0;
        let range = SectorRange::new(0, sectors);
        Some(flatten(&view.read(disk, range).await.expect("it can be read")))
    };
    machine.run(read)
}

fn sectors_of(count: u64, byte: u8) -> Vec<u8> {
    vec![byte; to_usize(count * 512)]
}

fn filled(machine: &mut Machine, disk: DiskId) {
    for start in (0..SECTORS).step_by(64) {
        assert!(machine.write(disk, start, 1, SECTORS.min(start + 64) - start).is_ok());
    }
}

/// What a disk of ones holds that was cut to `SMALL` and grew to `LARGE`.
fn regrown() -> Vec<u8> {
    [sectors_of(SMALL, 1), sectors_of(LARGE - SMALL, 0)].concat()
}

#[test]
fn what_a_disk_gains_is_zeros_whatever_it_had_there() {
    for between in [false, true] {
        let (mut machine, disk, _) = Machine::new(1);
        filled(&mut machine, disk);
        let before = point(&mut machine, "before");
        // Not destaged yet when the disk shrinks, and never seen again.
        assert!(machine.write(disk, 90, 2, 40).is_ok());
        assert!(machine.write(disk, 90, 1, SMALL - 90).is_ok());
        assert_eq!(resize(&mut machine, disk, SMALL).expect("shrinks").sectors.0, SMALL);
        assert!(machine.ask(disk, Request::Read { range: SectorRange::new(0, SMALL + 1) }).is_err());
        let small = between.then(|| point(&mut machine, "small"));
        resize(&mut machine, disk, LARGE).expect("grows");
        assert_eq!(read(&mut machine, disk, LARGE), regrown());
        let after = point(&mut machine, "after");
        assert!(machine.write(disk, LARGE - 1, 3, 1).is_ok(), "what it gained takes writes");
        assert_eq!(viewed(&mut machine, before.id, disk), Some(sectors_of(SECTORS, 1)), "with its own size");
        assert_eq!(viewed(&mut machine, after.id, disk), Some(regrown()));
        if let Some(small) = &small {
            assert_eq!(viewed(&mut machine, small.id, disk), Some(sectors_of(SMALL, 1)));
        }
        // Merged away, or part of the base: the newer point stays what it is.
        for gone in small.iter().chain([&before]) {
            machine.called(|group, done| group.delete_point(gone.id, done)).expect("goes");
            assert_eq!(viewed(&mut machine, after.id, disk), Some(regrown()), "without {:?}", gone.label);
        }
        let mut machine = machine.restart(true);
        assert_eq!(viewed(&mut machine, after.id, disk), Some(regrown()));
    }
}

/// Begins a resize and lets the process die after so many steps; whether the resize had come to its end before.
fn dies_in(mut machine: Machine, disk: DiskId, to: u64, steps: usize, power_cut: bool) -> (Machine, bool) {
    let done = Rc::new(Cell::new(false));
    let noted = Rc::clone(&done);
    let callback = Box::new(move |result: Result<DiskRecord>| noted.set(result.is_ok()));
    machine.group().resize_disk(disk, SectorCount(to), true, callback);
    let taken = (0..steps).take_while(|_| {
        machine.step();
        !done.get()
    });
    let _ = taken.count();
    (machine.restart(power_cut), done.get())
}

#[test]
fn a_death_at_any_moment_leaves_the_one_size_or_the_other() {
    for (from, to) in [(SECTORS, SMALL), (SECTORS, LARGE)] {
        for power_cut in [false, true] {
            let mut seen = [0, 0];
            for steps in 0.. {
                let (mut machine, disk, _) = Machine::new(steps as u64);
                filled(&mut machine, disk);
                let before = point(&mut machine, "before");
                let (mut machine, is_done) = dies_in(machine, disk, to, steps, power_cut);
                let is_new = size(&mut machine, disk) == to;
                assert!(is_new || size(&mut machine, disk) == from, "step {steps}");
                assert!(is_new || !is_done, "what was answered stays: step {steps}");
                assert!(!machine.is_latched(disk), "step {steps}: {:?}", machine.member(disk).last_failure);
                seen[usize::from(is_new)] += 1;
                // Whatever became of it, the next one does it all.
                resize(&mut machine, disk, SMALL).expect("shrinks");
                resize(&mut machine, disk, LARGE).expect("grows");
                assert_eq!(read(&mut machine, disk, LARGE), regrown(), "step {steps}");
                let after = point(&mut machine, "after");
                assert_eq!(viewed(&mut machine, after.id, disk), Some(regrown()), "step {steps}");
                assert_eq!(viewed(&mut machine, before.id, disk), Some(sectors_of(SECTORS, 1)));
                let length = machine.disk.read_file(&image(disk)).expect("there").len();
                assert_eq!(length as u64, LARGE * 512);
                if is_done {
                    break;
                }
            }
            assert!(seen.iter().all(|&times| times > 0), "deaths before and after the step: {seen:?}");
        }
    }
}

#[test]
fn a_point_that_is_asked_for_while_a_disk_grows_has_the_new_size() {
    let (mut machine, disk, _) = Machine::new(3);
    filled(&mut machine, disk);
    point(&mut machine, "full");
    resize(&mut machine, disk, SMALL).expect("shrinks");
    for steps in 0..60 {
        let to = if size(&mut machine, disk) == SMALL { LARGE } else { SMALL };
        let done = Rc::new(Cell::new(false));
        let noted = Rc::clone(&done);
        let callback = Box::new(move |result: Result<DiskRecord>| noted.set(result.is_ok()));
        machine.group().resize_disk(disk, SectorCount(to), true, callback);
        (0..steps).for_each(|_| machine.step());
        let asked = point(&mut machine, "during");
        let held = viewed(&mut machine, asked.id, disk).expect("has the disk");
        let expected = if held.len() == regrown().len() { regrown() } else { sectors_of(SMALL, 1) };
        assert_eq!(held, expected, "asked for after {steps} steps");
        machine.drive("the resize", |_| done.get());
        let after = point(&mut machine, "after");
        let expected = if to == LARGE { regrown() } else { sectors_of(SMALL, 1) };
        assert_eq!(viewed(&mut machine, after.id, disk), Some(expected), "{steps} steps after it was begun");
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (mut machine, disk, _) = Machine::new(4);
    let expected = fill(&mut machine, disk);
    let refused = |machine: &mut Machine, to, may_lose| {
        let asked = machine
            .called(|group, done| group.resize_disk(disk, SectorCount(to), may_lose, done))
            .expect_err("refused");
        assert_eq!(size(machine, disk), SECTORS);
        asked
    };
    let error = refused(&mut machine, SMALL, false);
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("--yes-lose-tail"), "{error}");
    // A number without a unit was taken for something else.
    let error = refused(&mut machine, 7, false);
    assert!(error.to_string().contains(" to 3584 bytes the disk"), "{error}");
    assert_eq!(refused(&mut machine, 0, true).kind(), ErrorKind::Invalid);
    assert_eq!(refused(&mut machine, 1 << 54, true).kind(), ErrorKind::Invalid, "steps of 512 TiB at most");
    let missing = machine
        .called(|group, done| group.resize_disk(DiskId(1), SectorCount(LARGE), false, done))
        .expect_err("no such disk");
    assert_eq!(missing.kind(), ErrorKind::NotFound);

    machine.group().resize_disk(
        disk,
        SectorCount(LARGE),
        false,
        Box::new(|result| drop(result.expect("grows"))),
    );
    let second = machine.called(|group, done| group.resize_disk(disk, SectorCount(SECTORS + 1), false, done));
    assert_eq!(second.expect_err("one at a time").kind(), ErrorKind::Invalid);
    let removed = machine.called(|group, done| group.remove_disk(disk, done));
    assert_eq!(removed.expect_err("not now").kind(), ErrorKind::Invalid);
    machine.drive("the growth", |machine| size(machine, disk) == LARGE);
    assert_eq!(read(&mut machine, disk, SECTORS), expected);
}

#[test]
fn a_resize_that_fails_leaves_the_disk_as_it_was() {
    for (kind, path) in [
        (OpKind::Write, ".checkpoint"),
        (OpKind::Sync, ".checkpoint"),
        (OpKind::SetLength, ".raw"),
        (OpKind::Sync, ".raw"),
        (OpKind::Publish, "/manifest/"),
        (OpKind::Open, "/base"),
    ] {
        for to in [SMALL, LARGE] {
            let (mut machine, disk, _) = Machine::new(5);
            filled(&mut machine, disk);
            machine.disk.fail_next(Matcher::kind(kind).path(path), FaultKind::Io);
            let failed = resize(&mut machine, disk, to).is_err();
            machine.disk.clear_faults();
            // What fails once the step is made latches the disk, and a resume mends it.
            let expected = if failed { SECTORS } else { to };
            assert_eq!(size(&mut machine, disk), expected, "{kind:?} of {path} on the way to {to}");
            machine.resume().expect("resumes");
            assert!(!machine.is_latched(disk), "{kind:?} of {path} on the way to {to}");
            resize(&mut machine, disk, SMALL).expect("shrinks");
            resize(&mut machine, disk, LARGE).expect("grows");
            let mut machine = machine.restart(true);
            assert_eq!(read(&mut machine, disk, LARGE), regrown(), "{kind:?} of {path} on the way to {to}");
        }
    }
}

#[test]
fn side_files_and_mends_keep_within_the_disk() {
    let (mut machine, disk, _) = Machine::new(6);
    filled(&mut machine, disk);
    // The journal holds the tail for its last point still when the image breaks.
    resize(&mut machine, disk, SMALL).expect("shrinks");
    machine.disk.fail_always(Matcher::kind(OpKind::Write).path(part(&image(disk))), FaultKind::Io);
    assert!(machine.write(disk, SMALL - 1, 2, 1).is_ok());
    machine.drive("a side file", |machine| machine.has_side_file(disk) && machine.is_latched(disk));
    let expected = [sectors_of(SMALL - 1, 1), sectors_of(1, 2)].concat();
    assert_eq!(read(&mut machine, disk, SMALL), expected);
    let refused = resize(&mut machine, disk, LARGE).expect_err("its image fails");
    assert_eq!(refused.kind(), ErrorKind::Latched);
    machine.disk.mend();
    machine.resume().expect("mended");
    let length = machine.disk.read_file(&image(disk)).expect("there").len();
    assert_eq!(length as u64, SMALL * 512, "nothing was written behind its end");
    resize(&mut machine, disk, LARGE).expect("grows");
    let mut machine = machine.restart(false);
    assert_eq!(read(&mut machine, disk, SMALL), expected);
    assert_eq!(read(&mut machine, disk, LARGE)[to_usize(SMALL * 512)..], sectors_of(LARGE - SMALL, 0));
}

#[test]
fn an_image_of_another_length_than_a_resize_explains_latches_its_disk() {
    let (mut machine, disk, _) = Machine::new(7);
    filled(&mut machine, disk);
    resize(&mut machine, disk, LARGE).expect("grows");
    let mut next = machine.die(false);
    let (runtime, path) = (Rc::clone(&next.runtime), image(disk));
    next.run(async move {
        let file = runtime.open(path, afterimage::storage::OpenOptions::OWNED).await.expect("there");
        // As long as the disk once was: no resize is under way that would explain it.
        runtime.set_length(&file, SECTORS * 512).await.expect("room");
        runtime.sync(&file).await.expect("room");
    });
    next.open().expect("opens");
    assert!(next.is_latched(disk));
}

#[test]
fn an_adopted_group_has_the_sizes_of_its_newest_point() {
    for to in [SMALL, LARGE] {
        let (mut machine, disk, _) = Machine::new(9);
        filled(&mut machine, disk);
        let full = point(&mut machine, "full");
        if to == LARGE {
            resize(&mut machine, disk, SMALL).expect("shrinks");
            point(&mut machine, "small");
        }
        // No point has it; what the journal says of it is lost.
        resize(&mut machine, disk, to).expect("is resized");
        let mut next = machine.die(false);
        let lost: Vec<_> = next.disk.files().into_iter().filter(|path| path.starts_with("/group")).collect();
        let runtime = Rc::clone(&next.runtime);
        next.run(async move {
            for path in lost {
                runtime.remove(path).await.expect("goes");
            }
            let vault = open::open_vault(&runtime, &plan()).await.expect("is whole");
            let whole = adopt::rebuild(&runtime, &plan(), &vault, Terms::RefuseLoss, |_, _| Ok(())).await;
            assert!(whole.expect("is adopted").is_empty());
            adopt::finish(&runtime, &plan()).await.expect("is adopted");
        });
        next.open().expect("opens");
        let expected = if to == LARGE { SMALL } else { SECTORS };
        assert_eq!(size(&mut next, disk), expected);
        assert_eq!(read(&mut next, disk, expected), sectors_of(expected, 1));
        resize(&mut next, disk, SMALL).expect("shrinks");
        resize(&mut next, disk, LARGE).expect("grows");
        let after = point(&mut next, "after");
        assert_eq!(viewed(&mut next, after.id, disk), Some(regrown()));
        assert_eq!(viewed(&mut next, full.id, disk), Some(sectors_of(SECTORS, 1)));
        let vault = Rc::clone(next.group().vault());
        let report = next.run(async move { verify(&vault, |_, _| Ok(())).await.expect("reads all") });
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

#[test]
fn disks_join_and_leave_at_a_marker() {
    let (mut machine, first, second) = Machine::new(8);
    filled(&mut machine, first);
    let without = point(&mut machine, "without");
    let joined: DiskRecord = machine
        .called(|group, done| group.add_disk("third".into(), SectorCount(SMALL), Content::Empty, done))
        .expect("joins");
    assert!(machine.write(joined.id, 0, 3, SMALL).is_ok());
    let with = point(&mut machine, "with");
    machine.called(|group, done| group.remove_disk(joined.id, done)).expect("leaves");
    let left = point(&mut machine, "left");
    let mut machine = machine.restart(true);
    let listed = |point: &PointRecord| point.disks.iter().map(|disk| disk.disk).collect::<Vec<_>>();
    assert_eq!(listed(&without), [first, second]);
    assert_eq!(listed(&with), [first, second, joined.id]);
    assert_eq!(listed(&left), [first, second]);
    assert_eq!(viewed(&mut machine, without.id, joined.id), None);
    assert_eq!(viewed(&mut machine, with.id, joined.id), Some(sectors_of(SMALL, 3)));
    assert_eq!(viewed(&mut machine, left.id, joined.id), None);
    for point in [without, with, left] {
        assert_eq!(viewed(&mut machine, point.id, first), Some(sectors_of(SECTORS, 1)));
    }
}
