//! Retention that meets damage is no secret: the group says so until the file is put back.

use std::fs;

use afterimage::format::ladder::{Ladder, Rung};
use afterimage::protect::status::Condition;

use super::{Harness, Steps, scratch};

#[test]
fn retention_that_meets_damage_says_so_until_the_file_is_put_back() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("d", 64);
    let first = {
        harness.write(disk, 0, 1, 8);
        harness.point("a")
    };
    for label in ["b", "c"] {
        harness.write(disk, 16, 2, 8);
        harness.point(label);
    }
    let blob = harness.group.vault().layout().blob(first.delta.expect("it was written to").blob);
    let sound = fs::read(&blob).expect("there");
    let mut damaged = sound.clone();
    damaged[260] ^= 1;
    fs::write(&blob, damaged).expect("writable");
    let short = || Ladder::new(vec![Rung { until_ms: 1, spacing_ms: 0 }]).expect("legal");
    harness.called(|group, done| group.set_policy(None, Some(short()), done)).expect("a policy");
    harness.drive(|group| group.condition() == Condition::RetentionStalled);
    let told = harness.group.take_events();
    assert!(told.iter().any(|told| told.event.text().contains("retention meets damage")), "{told:?}");
    fs::write(&blob, sound).expect("writable");
    // A policy has it look at once.
    harness.called(|group, done| group.set_policy(None, Some(short()), done)).expect("a policy");
    harness.drive(|group| group.condition() == Condition::Protected && group.points().len() == 1);
}
