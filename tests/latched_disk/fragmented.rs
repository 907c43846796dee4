//! A disk whose newest bytes are in many small pieces: it began with one client that took gigabytes by asking for their allocation,
//! or by reading them, since each piece fetched the whole payload that it was left of.

use std::time::Duration;

use afterimage::allocation::AllocationRun;
use afterimage::block::{Request, Response};
use afterimage::storage::sim::OpKind;
use afterimage::units::{DiskId, SectorRange, to_usize};

use crate::machine::{Machine, Steps};

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
