//! When destage begins a batch: what one costs besides its data is shared by what guests wrote meanwhile, or by nobody.

use std::rc::Rc;

use afterimage::env::{Environment, OsEnvironment};
use afterimage::units::{Lsn, MonotonicNanos, WallNanos};

use super::{Harness, Steps, scratch};

/// A clock that stands still, so that no guest is ever idle.
struct NoTimePasses(OsEnvironment);

impl Environment for NoTimePasses {
    fn monotonic(&self) -> MonotonicNanos {
        MonotonicNanos(1)
    }

    fn wall(&self) -> WallNanos {
        self.0.wall()
    }

    fn random_u128(&self) -> u128 {
        self.0.random_u128()
    }
}

const MIB_SECTORS: u64 = 2048;

/// A journal that its interval keeps more than half full wanted a batch after every few writes.
#[test]
fn a_full_journal_is_destaged_in_batches_of_a_part_of_it() {
    let (_guard, root) = scratch();
    Harness::create(&root).stop();
    let mut harness = Harness::open_in(&root, Rc::new(NoTimePasses(OsEnvironment::new()))).expect("opens");
    let disk = harness.add_disk("d", 256 * MIB_SECTORS);
    // Half of 64 MiB.
    let mut written = 0;
    while harness.group.ladder().destaged == Lsn::ZERO || written < 36 {
        harness.write(disk, written * MIB_SECTORS, 1, MIB_SECTORS);
        written += 1;
    }
    let mut batches = vec![harness.group.ladder().destaged];
    for block in 0..200 {
        harness.write(disk, block * 8, 2, 8);
        for _ in 0..50 {
            harness.step();
        }
        batches.push(harness.group.ladder().destaged);
    }
    batches.dedup();
    // What was under way, and one that 800 KiB may have made up to a 32nd of 64 MiB.
    assert!(batches.len() <= 3, "{batches:?}");

    let before = harness.group.ladder().destaged;
    for number in 0..2 {
        harness.write(disk, (written + number) * MIB_SECTORS, 3, MIB_SECTORS);
    }
    harness.drive(|group| group.ladder().destaged > before);
}
