//! A disk whose newest bytes are in many small pieces: it began with one client that took gigabytes by asking for their allocation,
//! or by reading them, since each piece fetched the whole payload that it was left of.

use std::time::Duration;

use afterimage::allocation::AllocationRun;
use afterimage::block::{Request, Response};
use afterimage::storage::sim::{FaultKind, Matcher, OpKind};
use afterimage::units::{DiskId, SectorRange, to_usize};

use crate::machine::{Machine, Steps, image, part};
use crate::pieces::flatten;

/// Sectors of one payload.
const PAYLOAD: u64 = 32;

/// A disk of whose first payload one sector in `every` is left, the others written anew one by one; all of it is in the journal, and
/// none of that in memory. And what it holds.
fn fragmented(every: u64) -> (Machine, DiskId, Vec<u8>) {
    let (mut machine, disk, other) = Machine::new(5);
    // Nothing is destaged meanwhile.
    machine.called(|group, done| group.set_policy(Some(Duration::from_secs(3600)), None, done)).expect("set");
    assert!(machine.write(disk, 0, 1, PAYLOAD).is_ok());
    let mut expected = vec![1; to_usize(PAYLOAD * 512)];
    for sector in (0..PAYLOAD).filter(|sector| sector % every != 1) {
        assert!(machine.write(disk, sector, 2, 1).is_ok());
        expected[to_usize(sector * 512)..to_usize((sector + 1) * 512)].fill(2);
    }
    // The cache holds 64 KiB.
    for round in 0..2 {
        assert!(machine.write(other, round * 128, 3, 128).is_ok());
    }
    (machine, disk, expected)
}

/// Half of a payload is kept whole, a quarter is copied out of it.
#[test]
fn what_is_left_of_a_payload_is_fetched_once() {
    for every in [2, 4] {
        let (mut machine, disk, expected) = fragmented(every);
        let before = machine.disk.count(OpKind::Read);
        let contents = machine.read(disk);
        assert_eq!(contents[..expected.len()], expected, "one in {every} is left");
        // One for each sector's payload, were the old one fetched for each sector that is left of it, and one of the image. Destage may
        // have begun to read besides.
        let reads = machine.disk.count(OpKind::Read) - before;
        assert!((2..PAYLOAD).contains(&reads), "{reads} reads, and one sector in {every} is left");
    }
}

#[test]
fn an_allocation_ends_before_the_run_that_is_one_too_many() {
    let (mut machine, disk, _) = fragmented(2);
    let range = SectorRange::new(0, 256);
    let zero = Request::Zero { range: SectorRange::new(1, 2), durable: false, keep_allocated: false };
    assert!(machine.ask(disk, zero).is_ok());
    let mut runs = |runs_max| match machine.ask(disk, Request::Allocation { range, runs_max }) {
        Ok(Response::Allocation(runs)) => runs,
        other => panic!("an allocation gave {other:?}"),
    };
    let run = |sectors: u64, allocated| AllocationRun { bytes: sectors * 512, allocated };
    let all = [run(1, true), run(1, false), run(PAYLOAD - 2, true), run(256 - PAYLOAD, false)];
    assert_eq!(runs(1), all[..1]);
    assert_eq!(runs(3), all[..3]);
    assert_eq!(runs(4096), all);
}

/// Sectors of a disk of so many pieces that a mend brings them in more than one run.
const LARGE: u64 = 10_000;
/// One in so many of its sectors is zeroed by itself.
const SPACED: u64 = 2;

#[test]
fn a_mend_brings_all_of_many_layers_and_of_many_pieces() {
    let (mut machine, _, _) = Machine::new(6);
    machine.called(|group, done| group.set_policy(Some(Duration::from_secs(3600)), None, done)).expect("set");
    let disk = machine.join("large", LARGE).id;
    let mut expected = vec![0; to_usize(LARGE * 512)];
    for start in (0..LARGE).step_by(100) {
        assert!(machine.write(disk, start, 1, 100).is_ok());
    }
    expected.fill(1);
    machine.drive("destaging", |machine| machine.disk.durable_file(&image(disk)).expect("there") == expected);

    // Neither image nor side files take anything, so that the journal goes on holding all of it, in layers that each point begins anew.
    let broken = format!("/{disk}.");
    machine.disk.fail_always(Matcher::kind(OpKind::Write).path(&*broken), FaultKind::NoSpace);
    for round in 0..24 {
        let byte = 2 + u8::try_from(round).expect("few");
        assert!(machine.write(disk, round * 10, byte, 15).is_ok());
        expected[to_usize(round * 10 * 512)..to_usize((round * 10 + 15) * 512)].fill(byte);
        machine.called(|group, done| group.create_point(String::new(), done)).expect("points go on");
    }
    latch(&mut machine, &broken, disk);
    mend(&mut machine, disk, &expected);

    // This time a side file has all of it, in one piece for each sector.
    let only_image = part(&image(disk));
    machine.disk.fail_always(Matcher::kind(OpKind::Zero).path(&*only_image), FaultKind::NoSpace);
    let sectors = (0..LARGE).step_by(to_usize(SPACED));
    let zero = |sector| SectorRange::new(sector, sector + 1);
    let zeros = sectors.clone().map(|sector| Request::Zero {
        range: zero(sector),
        durable: false,
        keep_allocated: false,
    });
    let tickets: Vec<_> = zeros.map(|request| machine.submit(disk, request)).collect();
    machine.drive("zeros", |machine| {
        tickets.iter().all(|ticket| machine.replies().iter().any(|(other, _)| other == ticket))
    });
    for sector in sectors {
        expected[to_usize(sector * 512)..to_usize((sector + 1) * 512)].fill(0);
    }
    latch(&mut machine, &only_image, disk);
    machine.drive("a side file", |machine| !machine.member(disk).sides.is_empty());
    mend(&mut machine, disk, &expected);
}

/// What had no space fails.
fn latch(machine: &mut Machine, path: &str, disk: DiskId) {
    machine.disk.mend();
    for kind in [OpKind::Write, OpKind::Zero] {
        machine.disk.fail_always(Matcher::kind(kind).path(path), FaultKind::Io);
    }
    machine.drive("the latch", |machine| machine.is_latched(disk));
}

/// All of it is in the image then, and is what its sums say, also for the next process.
fn mend(machine: &mut Machine, disk: DiskId, expected: &[u8]) {
    machine.disk.mend();
    machine.resume().expect("nothing is broken");
    assert!(!machine.is_latched(disk));
    assert!(machine.disk.durable_file(&image(disk)).expect("there") == expected);
    match machine.ask(disk, Request::Read { range: SectorRange::new(0, LARGE) }) {
        Ok(Response::Data(pieces)) => assert!(flatten(&pieces) == expected),
        other => panic!("a read gave {other:?}"),
    }
}
