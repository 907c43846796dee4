//! Guests that never flush, under a policy that makes no point for long: what they wrote becomes durable all the same, and index runs
//! say it again, so that the next opening need not read it. A backlog of 64 GiB, made by such a guest, took 46 s to open.

use std::path::Path;

use afterimage::protect::open::GroupPlan;

use super::{Harness, plan, scratch};

/// More than four layers of a map of this size have extents: enough for the runs, and too few for the map to be full.
const WRITES: u64 = 8000;
const MAP_BYTES: usize = 512 << 10;

#[test]
fn what_is_never_flushed_gets_index_runs() {
    let (_guard, root) = scratch();
    let plan = GroupPlan { map_bytes_max: MAP_BYTES, index_bytes_min: 64 << 10, ..plan(&root) };
    let journal = plan.journal();
    let mut harness = Harness::create_with(plan);
    let disk = harness.add_disk("d", 4 * WRITES);
    // Neighbours would be one extent. The disk is never left alone for long enough that destage begins, which syncs.
    let written = (0..WRITES).find(|number| {
        harness.write(disk, 4 * number, 1, 1);
        has_run(&journal)
    });
    assert!(written.is_some(), "no index run after {WRITES} writes");
    drop(harness);
    let mut harness = Harness::open(&root).expect("opens");
    assert!(harness.group.adopted_runs() > 0, "the opening read what a run says");
    assert_eq!(harness.read(disk, 0, 1), vec![1; 512]);
}

fn has_run(journal: &Path) -> bool {
    let names =
        std::fs::read_dir(journal).expect("a journal").map(|entry| entry.expect("a name").file_name());
    names.into_iter().any(|name| name.to_str().is_some_and(afterimage::journal::runs::is_file_name))
}
