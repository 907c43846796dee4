//! When destage begins a batch: what one costs besides its data is shared by what guests wrote meanwhile, or by nobody.

use std::cell::Cell;
use std::rc::Rc;

use afterimage::env::{Environment, OsEnvironment};
use afterimage::units::{Lsn, MonotonicNanos, WallNanos};

use super::{Harness, Steps, scratch};

/// A clock that goes on by ten microseconds each time it is looked at: slowed guests go on, and none is ever idle.
struct LittleTimePasses(OsEnvironment, Cell<u64>);

impl Environment for LittleTimePasses {
    fn monotonic(&self) -> MonotonicNanos {
        self.1.set(self.1.get() + 10_000);
        MonotonicNanos(self.1.get())
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
    let mut harness = Harness::open_in(&root, Rc::new(LittleTimePasses(OsEnvironment::new(), Cell::new(0))))
        .expect("opens");
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
    // Of 36 MiB in batches of 16, and one that 800 KiB may have made up to a 32nd of 64 MiB.
    assert!(batches.len() <= 4, "{batches:?}");

    let before = harness.group.ladder().destaged;
    for number in 0..2 {
        harness.write(disk, (written + number) * MIB_SECTORS, 3, MIB_SECTORS);
    }
    harness.drive(|group| group.ladder().destaged > before);
}
