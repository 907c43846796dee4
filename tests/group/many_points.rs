//! Recovery points that are asked for faster than the journal takes their markers. Together these were reckoned as one frame: where
//! they were larger than a segment, the process ended ("a segment takes the largest record").

use std::cell::Cell;
use std::rc::Rc;

use afterimage::protect::open::GroupPlan;

use super::{Harness, Steps, plan, scratch};

/// Asked for at once: a marker takes a sector and more.
const POINTS: usize = 1000;
const SEGMENT_BYTES: u64 = 256 << 10;

#[test]
fn more_of_them_than_a_segment_holds_are_all_made() {
    let (_guard, root) = scratch();
    let plan = GroupPlan { segment_bytes: SEGMENT_BYTES, journal_bytes: 32 * SEGMENT_BYTES, ..plan(&root) };
    let mut harness = Harness::create_with(plan);
    let disk = harness.add_disk("d", 64);
    harness.write(disk, 0, 1, 8);
    let made = Rc::new(Cell::new(0));
    for number in 0..POINTS {
        let counted = Rc::clone(&made);
        let callback = Box::new(move |point: afterimage::error::Result<_>| {
            counted.set(counted.get() + usize::from(point.is_ok()));
        });
        harness.group.create_point(format!("{number}"), callback);
    }
    harness.until("points", |_| made.get() == POINTS);
    harness.write(disk, 0, 2, 8);
    assert_eq!(harness.read(disk, 0, 8), vec![2; 8 * 512]);
}
