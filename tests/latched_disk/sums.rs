//! Sums of an image that their device does not give: for a moment, which nobody notices, or for good, which is their disk's matter
//! alone. What is merely not given is not written over, until a person says so by resuming the disk.

use std::path::PathBuf;

use afterimage::block::{Refusal, Request, Response};
use afterimage::format::sums::{Copy, Holes, Of};
use afterimage::image::sums::sums_path;
use afterimage::storage::sim::OpKind;
use afterimage::units::{DiskId, SectorRange, to_usize};

use crate::machine::{Machine, SECTORS, image, plan};
use crate::pieces::flatten;

fn sums(disk: DiskId) -> PathBuf {
    sums_path(&plan().images(), disk)
}

/// Where a place of the disk's only block of sums is.
fn place(copy: Copy) -> std::ops::Range<u64> {
    let at = Of::Image(Holes::Zeros).block_offset(0, copy);
    at..at + 4096
}

fn both() -> std::ops::Range<u64> {
    place(Copy::First).start..place(Copy::Second).end
}

fn has(machine: &Machine, disk: DiskId, expected: &[u8]) -> bool {
    machine.disk.durable_file(&image(disk)).is_some_and(|bytes| bytes == expected)
}

/// A disk of two batches, whose newer sums are in one place alone, opened by a process that has nothing in memory; and its content.
fn written(seed: u64) -> (Machine, DiskId, Vec<u8>) {
    let (mut machine, disk, _) = Machine::new(seed);
    let mut expected = vec![0; to_usize(SECTORS * 512)];
    for (start, byte, sectors) in [(0, 1, 100), (10, 2, 7)] {
        assert!(machine.write(disk, start, byte, sectors).is_ok());
        expected[to_usize(start * 512)..to_usize((start + sectors) * 512)].fill(byte);
        machine.drive("destaging", |machine| has(machine, disk, &expected));
    }
    (machine.restart(seed % 2 == 1), disk, expected)
}

fn write_on(machine: &mut Machine, disk: DiskId, expected: &mut [u8]) {
    assert!(machine.write(disk, 200, 3, 1).is_ok());
    expected[200 * 512..201 * 512].fill(3);
}

fn is_served(machine: &mut Machine, disk: DiskId, range: SectorRange, expected: &[u8]) -> bool {
    match machine.ask(disk, Request::Read { range }) {
        Ok(Response::Data(pieces)) => {
            assert!(flatten(&pieces) == expected[to_usize(range.start * 512)..to_usize(range.end * 512)]);
            true
        }
        Err(Refusal::Io) => false,
        other => panic!("a read gave {other:?}"),
    }
}

#[test]
fn a_refusal_that_passes_costs_no_sum() {
    for (seed, withheld) in [(0, place(Copy::First)), (1, place(Copy::Second)), (2, both()), (3, both())] {
        let (mut machine, disk, mut expected) = written(seed);
        assert!(machine.disk.spoil(&sums(disk), withheld));
        let reads = machine.disk.count(OpKind::Read);
        write_on(&mut machine, disk, &mut expected);
        machine.drive("some refused reads", |machine| machine.disk.count(OpKind::Read) > reads + 3 + seed);
        machine.disk.mend();
        machine.drive("destaging", |machine| has(machine, disk, &expected));
        // What is in layers still is served from these.
        let mut machine = machine.restart(true);
        machine.drive("destaging", |machine| has(machine, disk, &expected));
        assert!(machine.read(disk) == expected, "seed {seed}");
        assert!(!machine.is_latched(disk), "seed {seed}");
    }
}

#[test]
fn a_block_that_is_not_given_latches_its_disk_until_it_is() {
    for seed in 0..4 {
        let (mut machine, disk, mut expected) = written(seed);
        assert!(machine.disk.spoil(&sums(disk), both()));
        write_on(&mut machine, disk, &mut expected);
        machine.drive("the latch", |machine| machine.is_latched(disk));
        let reason = machine.member(disk).last_failure.clone().expect("why");
        assert!(reason.contains(".sums"), "{reason}");
        machine.disk.mend();
        machine.resume().expect("a group that works");
        assert!(!machine.is_latched(disk) && machine.read(disk) == expected, "seed {seed}");
        assert!(machine.restart(true).read(disk) == expected, "seed {seed}");
    }
}

#[test]
fn a_resume_goes_on_without_a_block_that_is_gone() {
    for seed in 0..4 {
        let (mut machine, disk, mut expected) = written(seed);
        assert!(machine.disk.spoil(&sums(disk), both()));
        write_on(&mut machine, disk, &mut expected);
        machine.drive("the latch", |machine| machine.is_latched(disk));
        machine.resume().expect("a group that works");
        assert!(!machine.is_latched(disk), "seed {seed}");
        let mut machine = machine.restart(true);
        machine.disk.mend();
        let one = SectorRange::new(200, 201);
        assert!(is_served(&mut machine, disk, one, &expected), "what was written anew has its sum");
        assert!(
            !is_served(&mut machine, disk, SectorRange::new(0, 8), &expected),
            "nobody knows of the rest"
        );
        assert!(machine.write(disk, 0, 9, SECTORS).is_ok());
        machine.drive("destaging", |machine| has(machine, disk, &vec![9; to_usize(SECTORS * 512)]));
        assert!(machine.restart(true).read(disk) == vec![9; to_usize(SECTORS * 512)], "seed {seed}");
    }
}
