//! Points go, and those that stay are what they were: through merges, base advances, open views and reopenings.

use afterimage::error::ErrorKind;
use afterimage::format::ladder::{Ladder, Rung};
use afterimage::units::{GroupNanos, Lsn, PointId, SectorRange, WallNanos};
use afterimage::vault::{Advance, Moment, Vault, verify};
use afterimage::view::View;
use proptest::prelude::*;

use crate::support::{Edit, Group, block_on, edits, flatten, site_keys};

const SIZES: [u64; 2] = [900, 77];
/// When every point is old.
const FAR_AHEAD: Moment =
    Moment { group: GroupNanos(u64::MAX / 2), wall: WallNanos(i64::MAX), lsn: Lsn(u64::MAX) };

#[derive(Clone, Debug)]
enum Step {
    Edit(Edit),
    Publish,
    /// Delete one of the points.
    Delete(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => edits(SIZES, 400).prop_map(Step::Edit),
        3 => Just(Step::Publish),
        2 => any::<prop::sample::Index>().prop_map(Step::Delete),
    ];
    proptest::collection::vec(step, 1..50)
}

/// Deletes a point, and does all that follows.
fn delete(group: &mut Group, index: usize) {
    let (point, _) = group.points.remove(index);
    let deleted = async {
        group.vault.delete_point(point).await?;
        let advance = group.vault.finish_advance().await?;
        assert_eq!(advance == Advance::Done, index == 0, "only the oldest moves the base");
        group.vault.sweep().await
    };
    block_on(&group.runtime, deleted).expect("it may go");
}

pub fn contents(group: &Group, view: &View) -> Vec<Vec<u8>> {
    let read = |disk: &afterimage::view::ViewDisk| {
        let range = SectorRange::new(0, disk.sectors().0);
        flatten(&block_on(&group.runtime, view.read(disk.id(), range)).expect("sound"))
    };
    view.disks().iter().map(read).collect()
}

pub fn check(group: &Group) {
    let listed: Vec<PointId> = group.vault.manifest().state().points().iter().map(|point| point.id).collect();
    let expected: Vec<PointId> = group.points.iter().map(|(point, _)| *point).collect();
    assert_eq!(listed, expected);
    for (point, model) in &group.points {
        let view = block_on(&group.runtime, View::open(&group.vault, *point)).expect("the point is sound");
        assert!(contents(group, &view) == *model, "point {point}");
    }
    let report = block_on(&group.runtime, verify(&group.vault, |_, _| Ok(()))).expect("it can be read");
    assert_eq!(report.findings, [], "nothing is damaged, nothing is left over");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_stays_is_what_it_was(steps in steps()) {
        let mut group = Group::new(&SIZES);
        let mut first = None;
        for step in steps {
            match step {
                Step::Edit(edit) => group.apply(&edit),
                Step::Publish => {
                    let point = group.publish();
                    if first.is_none() {
                        let view = block_on(&group.runtime, View::open(&group.vault, point)).expect("sound");
                        first = Some((view, group.points[0].1.clone()));
                    }
                }
                // The first point is being read.
                Step::Delete(index) if group.points.len() > 2 => {
                    let index = 1 + index.index(group.points.len() - 2);
                    delete(&mut group, index);
                }
                Step::Delete(_) => {}
            }
        }
        group.publish();
        check(&group);
        if let Some((view, model)) = first {
            prop_assert!(contents(&group, &view) == model);
        }
        while group.points.len() > 1 {
            delete(&mut group, 0);
            check(&group);
        }
        let reopened = block_on(&group.runtime, Vault::open(&group.runtime, &group.path(), &site_keys())).expect("sound");
        prop_assert_eq!(&*reopened.manifest().state(), &*group.vault.manifest().state());
    }
}

#[test]
fn a_chunk_that_is_still_whole_is_copied_with_its_origin() {
    let mut group = Group::new(&[4096]);
    group.write(0, SectorRange::new(0, 256), 1);
    group.publish();
    group.write(0, SectorRange::new(1000, 1256), 2);
    let first = group.publish();
    group.write(0, SectorRange::new(2000, 2010), 3);
    group.publish();
    let blob =
        |group: &Group, index: usize| group.vault.manifest().state().points()[index].delta.expect("written");
    let origin = blob(&group, 1).blob;
    assert_eq!(group.points[1].0, first);
    delete(&mut group, 1);
    let merged = blob(&group, 1);
    let reader = block_on(&group.runtime, group.vault.open_delta(&merged)).expect("sound");
    let origins: Vec<_> = reader.tables().chunks.iter().map(|chunk| chunk.origin_blob).collect();
    assert!(origins.contains(&origin), "{origins:?}");
    assert_eq!(reader.header().intervals, 2);
    check(&group);
}

#[test]
fn the_newest_a_held_and_a_read_point_stay() {
    let mut group = Group::new(&[64]);
    for seed in 1..5 {
        group.write(0, SectorRange::new(0, 8), seed);
        group.publish();
    }
    let points: Vec<PointId> = group.points.iter().map(|(point, _)| *point).collect();
    let refused = |point| {
        let error = block_on(&group.runtime, group.vault.delete_point(point)).expect_err("it stays");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    };
    assert!(refused(points[3]).contains("newest"));
    block_on(&group.runtime, group.vault.hold_point(points[0])).expect("it is there");
    let again = block_on(&group.runtime, group.vault.hold_point(points[0])).expect_err("it is held");
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    assert!(refused(points[0]).contains("release"));
    let view = block_on(&group.runtime, View::open(&group.vault, points[1])).expect("sound");
    assert!(refused(points[1]).contains("being read"));
    // Whatever the ladder says.
    let ladder = Ladder::new(vec![Rung { until_ms: 1, spacing_ms: 0 }]).expect("legal");
    let forecast = group.vault.forecast(&ladder, FAR_AHEAD);
    assert_eq!(forecast.points, 1, "only the third can go");
    drop(view);
    assert_eq!(group.vault.forecast(&ladder, FAR_AHEAD).points, 2);
    block_on(&group.runtime, group.vault.release_point(points[0])).expect("it is held");
    assert_eq!(group.vault.forecast(&ladder, FAR_AHEAD).points, 3);
    block_on(&group.runtime, group.vault.release_point(points[0])).expect_err("it is not held");
}

#[test]
fn a_view_of_a_retired_point_is_waited_for() {
    let mut group = Group::new(&[64]);
    for seed in 1..4 {
        group.write(0, SectorRange::new(0, 8 * u64::from(seed)), seed);
        group.publish();
    }
    let (old, model) = group.points[0].clone();
    let view = block_on(&group.runtime, View::open(&group.vault, old)).expect("sound");
    block_on(&group.runtime, group.vault.retire_before(group.points[1].0, None)).expect("no pin names it");
    group.points.remove(0);
    let waits = block_on(&group.runtime, group.vault.finish_advance()).expect("no error");
    assert_eq!(waits, Advance::Waits);
    assert!(contents(&group, &view) == model);
    drop(view);
    // Nothing of the advance was begun but its first step: the next owner goes on.
    let successor =
        block_on(&group.runtime, Vault::open(&group.runtime, &group.path(), &site_keys())).expect("sound");
    group.vault = std::rc::Rc::new(successor);
    let done = block_on(&group.runtime, group.vault.finish_advance()).expect("nobody reads it");
    assert_eq!(done, Advance::Done);
    block_on(&group.runtime, group.vault.sweep()).expect("deleted");
    check(&group);
}
