//! What is damaged goes, with the points that need it; what stays is what it was, however often the repair was broken off.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use afterimage::error::{Error, ErrorKind};
use afterimage::units::{PointId, SectorRange, to_usize};
use afterimage::vault::{Advance, RepairPlan, Severity, Vault, VerifyReport, damage, verify};
use afterimage::view::View;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::{Edit, Group, block_on, edits, flatten, site_keys};

const SIZES: [u64; 2] = [900, 77];

#[derive(Clone, Debug)]
enum Step {
    Edit(Edit),
    Publish,
    /// Delete one of the points that are neither the oldest nor the newest.
    Merge(Index),
    /// Begin to bring the base to a point.
    Retire(Index),
}

#[derive(Clone, Debug)]
enum Damage {
    /// Of one of the deltas: a byte of it.
    Flip(Index, Index),
    RemoveDelta(Index),
    CutBase(usize, Index),
    RemoveBase(usize),
    /// A byte of it, in a hole too.
    FlipBase(usize, Index),
    /// A byte of one of the two copies of its sums, or the same one of both.
    FlipSums(usize, Index, Copies),
    RemoveSums(usize),
}

#[derive(Clone, Copy, Debug)]
enum Copies {
    One,
    Both,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => edits(SIZES, 300).prop_map(Step::Edit),
        5 => Just(Step::Publish),
        1 => any::<Index>().prop_map(Step::Merge),
        1 => any::<Index>().prop_map(Step::Retire),
    ];
    proptest::collection::vec(step, 1..40)
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let damage = prop_oneof![
        6 => (any::<Index>(), any::<Index>()).prop_map(|(blob, byte)| Damage::Flip(blob, byte)),
        2 => any::<Index>().prop_map(Damage::RemoveDelta),
        1 => (0..SIZES.len(), any::<Index>()).prop_map(|(disk, length)| Damage::CutBase(disk, length)),
        1 => (0..SIZES.len()).prop_map(Damage::RemoveBase),
        3 => (0..SIZES.len(), any::<Index>()).prop_map(|(disk, byte)| Damage::FlipBase(disk, byte)),
        1 => (0..SIZES.len(), any::<Index>()).prop_map(|(disk, byte)| Damage::FlipSums(disk, byte, Copies::One)),
        1 => (0..SIZES.len(), any::<Index>()).prop_map(|(disk, byte)| Damage::FlipSums(disk, byte, Copies::Both)),
        1 => (0..SIZES.len()).prop_map(Damage::RemoveSums),
    ];
    proptest::collection::vec(damage, 1..4)
}

fn take(group: &mut Group, step: Step) {
    let count = group.points.len();
    match step {
        Step::Edit(edit) => group.apply(&edit),
        Step::Publish => drop(group.publish()),
        Step::Merge(index) if count > 2 => {
            let (point, _) = group.points.remove(1 + index.index(count - 2));
            block_on(&group.runtime, group.vault.delete_point(point)).expect("it may go");
        }
        Step::Retire(index) if count > 1 && group.vault.manifest().state().base_advance().is_none() => {
            let target = 1 + index.index(count - 1);
            let point = group.points[target].0;
            block_on(&group.runtime, group.vault.retire_before(point, None)).expect("they may go");
            group.points.drain(..target);
        }
        Step::Merge(_) | Step::Retire(_) => {}
    }
}

fn flip(path: &Path, byte: usize) {
    let Ok(mut bytes) = std::fs::read(path) else { return };
    // Cut off by another damage.
    let Some(byte) = bytes.get_mut(byte) else { return };
    *byte ^= 4;
    std::fs::write(path, bytes).expect("tests may write it");
}

fn damage_it(group: &Group, damage: &Damage) {
    let layout = group.vault.layout();
    let newest = group.points.last().expect("there is one").0;
    let marker = group.vault.manifest().state().point(newest).expect("there").marker;
    let deltas = group.vault.manifest().state().deltas_up_to(marker);
    let blob = |index: &Index| layout.blob(deltas[index.index(deltas.len())].blob);
    match damage {
        Damage::Flip(index, byte) if !deltas.is_empty() => {
            let path = blob(index);
            let length = std::fs::metadata(&path).map_or(1, |metadata| metadata.len());
            flip(&path, byte.index(to_usize(length)));
        }
        Damage::RemoveDelta(index) if !deltas.is_empty() => drop(std::fs::remove_file(blob(index))),
        Damage::CutBase(disk, length) => {
            let base = std::fs::OpenOptions::new().write(true).open(layout.base(group.disks[*disk].id));
            let length = length.index(to_usize(SIZES[*disk])) as u64 * 512;
            drop(base.and_then(|base| base.set_len(length)));
        }
        Damage::RemoveBase(disk) => drop(std::fs::remove_file(layout.base(group.disks[*disk].id))),
        Damage::FlipBase(disk, byte) => {
            flip(&layout.base(group.disks[*disk].id), byte.index(to_usize(SIZES[*disk] * 512)));
        }
        Damage::FlipSums(disk, byte, copies) => {
            let path = layout.sums(group.disks[*disk].id);
            // Of the header or of the only block.
            let byte = byte.index(2 * 4096);
            flip(&path, byte);
            if matches!(copies, Copies::Both) {
                flip(&path, byte + (1 << 20));
            }
        }
        Damage::RemoveSums(disk) => drop(std::fs::remove_file(layout.sums(group.disks[*disk].id))),
        Damage::Flip(..) | Damage::RemoveDelta(_) => {}
    }
}

fn look(group: &Group) -> VerifyReport {
    block_on(&group.runtime, verify(&group.vault, |_, _| Ok(()))).expect("it can be read")
}

fn plan(group: &Group) -> RepairPlan {
    let mut findings = damage(&look(group).findings);
    block_on(&group.runtime, group.vault.plan_repair(&mut findings)).expect("the manifest is sound")
}

/// What the group does: what the newest point lacks is written anew with what the disks hold. Guests write meanwhile.
fn renew(group: &mut Group, plan: &RepairPlan) {
    for (slot, ranges) in &plan.renewed {
        let disk = slot.0 as usize;
        for range in ranges.as_slice() {
            let bytes = range.byte_range();
            let held = group.model[disk][to_usize(bytes.start)..to_usize(bytes.end)].to_vec();
            group.write_bytes(disk, *range, &held);
        }
    }
    group.publish();
}

/// Has the points go, and is broken off after `steps`; whether it came to its end.
fn retire(group: &mut Group, steps: usize) -> bool {
    let findings = damage(&look(group).findings);
    let left = Cell::new(steps);
    let proceed = || match left.get().checked_sub(1) {
        Some(fewer) => {
            left.set(fewer);
            Ok(())
        }
        None => Err(Error::new(ErrorKind::Shutdown, "broken off")),
    };
    let retired = block_on(&group.runtime, group.vault.retire_harmed(&findings, proceed));
    if let Err(error) = retired {
        assert_eq!(error.kind(), ErrorKind::Shutdown, "{error}");
        // As another process finds it.
        let (path, keys) = (group.path(), site_keys());
        let reopened = block_on(&group.runtime, Vault::open(&group.runtime, &path, &keys)).expect("sound");
        group.vault = Rc::new(reopened.with_fan_out(2));
        return false;
    }
    let left = block_on(&group.runtime, group.vault.still_damaged(&findings)).expect("it can be read");
    assert_eq!(left, [], "nothing is damaged any more");
    true
}

fn contents(group: &Group, point: PointId) -> Vec<Vec<u8>> {
    let view = block_on(&group.runtime, View::open(&group.vault, point)).expect("the point is sound");
    let read = |disk: &afterimage::view::ViewDisk| {
        let range = SectorRange::new(0, disk.sectors().0);
        flatten(&block_on(&group.runtime, view.read(disk.id(), range)).expect("sound"))
    };
    view.disks().iter().map(read).collect()
}

/// Repairs; gives the points that went.
fn repair(group: &mut Group, mut steps: usize) -> Vec<PointId> {
    let before = plan(group);
    if !before.renewed.is_empty() {
        renew(group, &before);
        assert!(plan(group).renewed.is_empty(), "the newest is sound now");
    }
    let going: Vec<_> = plan(group).going.iter().map(|point| point.id).collect();
    assert!(before.going.iter().all(|point| going.contains(&point.id)));
    while !retire(group, steps) {
        steps += 1;
    }
    going
}

fn check(group: &mut Group, going: &[PointId]) {
    group.points.retain(|(point, _)| !going.contains(point));
    let listed: Vec<PointId> = group.vault.manifest().state().points().iter().map(|point| point.id).collect();
    let expected: Vec<PointId> = group.points.iter().map(|(point, _)| *point).collect();
    assert_eq!(listed, expected, "those go that need what is lost, and no others");
    for (point, model) in &group.points {
        assert!(contents(group, *point) == *model, "point {point}");
    }
    let mut findings = look(group).findings;
    // One copy of what is there twice: nothing is lost.
    findings.retain(|finding| finding.severity != Severity::Cache);
    assert_eq!(findings, [], "nothing is damaged, nothing is left over");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_stays_is_what_it_was(
        steps in steps(),
        damages in damages(),
        broken_off in 0_usize..4,
        later in edits(SIZES, 300),
    ) {
        let mut group = Group::new(&SIZES);
        steps.into_iter().for_each(|step| take(&mut group, step));
        group.publish();
        damages.iter().for_each(|damage| damage_it(&group, damage));
        group.apply(&later);
        let going = repair(&mut group, broken_off);
        check(&mut group, &going);
        // And everything goes on: the base takes up what is left.
        group.publish();
        let newest = group.points.last().expect("there is one").0;
        let advanced = async {
            group.vault.retire_before(newest, None).await?;
            group.vault.finish_advance().await?;
            group.vault.sweep().await
        };
        block_on(&group.runtime, advanced).expect("nothing is in the way");
        let gone: Vec<_> = group.points.iter().map(|(point, _)| *point).filter(|point| *point != newest).collect();
        check(&mut group, &gone);
    }
}

/// Five points, of which the third writes all of the first's sectors anew; the blobs of their deltas.
fn five() -> (Group, Vec<PointId>, Vec<std::path::PathBuf>) {
    let mut group = Group::new(&[4096, 64]);
    let writes = [(0, 8, 1000, 1), (1, 0, 64, 2), (0, 0, 1000, 3), (0, 2000, 2001, 4), (0, 3000, 3001, 5)];
    let points = writes.map(|(disk, start, end, seed)| {
        group.write(disk, SectorRange::new(start, end), seed);
        group.publish()
    });
    let blob = |point: &PointId| {
        let delta = group.vault.manifest().state().point(*point).expect("published").delta.expect("written");
        group.vault.layout().blob(delta.blob)
    };
    let blobs = points.iter().map(blob).collect();
    (group, points.to_vec(), blobs)
}

#[test]
fn a_damaged_delta_that_was_overwritten_costs_the_points_until_then_and_nothing_is_renewed() {
    let (mut group, points, blobs) = five();
    flip(&blobs[0], 300);
    let plan = plan(&group);
    assert!(plan.renewed.is_empty());
    assert_eq!(plan.going.iter().map(|point| point.id).collect::<Vec<_>>(), points[..2]);
    let going = repair(&mut group, 99);
    check(&mut group, &going);
    assert_eq!(group.points.len(), 3);
}

#[test]
fn a_damaged_delta_that_the_newest_shows_is_renewed_by_its_sectors() {
    let (mut group, points, blobs) = five();
    flip(&blobs[3], 300);
    let plan = plan(&group);
    assert_eq!(plan.renewed_bytes(), 512);
    assert_eq!(plan.going.iter().map(|point| point.id).collect::<Vec<_>>(), points[3..]);
    let going = repair(&mut group, 99);
    check(&mut group, &going);
    assert_eq!(group.points.len(), 4, "three that came before, and the repaired one");
}

#[test]
fn of_a_delta_without_tables_everything_is_renewed() {
    let (mut group, points, blobs) = five();
    std::fs::remove_file(&blobs[3]).expect("there");
    let plan = plan(&group);
    assert_eq!(plan.renewed_bytes(), (4096 + 64) * 512 - 512, "all but what was written since");
    assert_eq!(plan.going.iter().map(|point| point.id).collect::<Vec<_>>(), points[3..]);
    let going = repair(&mut group, 99);
    check(&mut group, &going);
    assert_eq!(group.points.len(), 4);
}

#[test]
fn a_base_that_was_sent_past_the_damage_is_sent_on() {
    let (mut group, points, blobs) = five();
    block_on(&group.runtime, group.vault.retire_before(points[1], None)).expect("it may go");
    group.points.remove(0);
    flip(&blobs[0], 300);
    let stuck = block_on(&group.runtime, group.vault.finish_advance()).expect_err("it needs what is lost");
    assert_eq!(stuck.kind(), ErrorKind::Corrupt);
    let refused = block_on(&group.runtime, group.vault.retire_before(points[3], None)).expect_err("stuck");
    assert!(refused.to_string().contains("on its way"), "{refused}");
    let going = repair(&mut group, 99);
    assert_eq!(going, points[1..2]);
    check(&mut group, &going);
    assert!(group.vault.manifest().state().base_advance().is_none());
}

/// Has the base go to a point, all the way.
fn advance_to(group: &mut Group, point: PointId) {
    block_on(&group.runtime, group.vault.retire_before(point, None)).expect("they may go");
    group.points.retain(|(other, _)| group.vault.manifest().state().point(*other).is_some());
    while block_on(&group.runtime, group.vault.finish_advance()).expect("it reads nothing of it")
        != Advance::None
    {}
}

/// A repair in whose midst the base took up what hides part of the damage found its own point in need of what was lost, and asked to be
/// repeated: it went by what was found before (sim 913 of 22 November 2026).
#[test]
fn what_an_advance_wrote_anew_is_damaged_no_more() {
    let (mut group, points, _) = five();
    advance_to(&mut group, points[1]);
    let sums = group.vault.layout().sums(group.disks[0].id);
    // Both copies of the first block: sectors 0..1016.
    flip(&sums, 4096 + 50);
    flip(&sums, 4096 + 50 + (1 << 20));
    let found = damage(&look(&group).findings);
    advance_to(&mut group, points[3]);
    let mut left = block_on(&group.runtime, group.vault.still_damaged(&found)).expect("it can be read");
    let plan = block_on(&group.runtime, group.vault.plan_repair(&mut left)).expect("the manifest is sound");
    assert_eq!(plan.renewed_bytes(), 16 * 512, "sectors 1000..1016, which no delta had");
    let going = repair(&mut group, 99);
    check(&mut group, &going);
}

#[test]
fn held_points_and_views_are_named_and_nothing_goes() {
    let (group, points, blobs) = five();
    flip(&blobs[0], 300);
    block_on(&group.runtime, group.vault.hold_point(points[1])).expect("there");
    let lease = {
        let marker = group.vault.manifest().state().point(points[0]).expect("there").marker;
        group.vault.leases().take(marker, Vec::new())
    };
    let findings = damage(&look(&group).findings);
    let refused = block_on(&group.runtime, group.vault.retire_harmed(&findings, || Ok(())));
    let told = refused.expect_err("they are kept").to_string();
    assert!(told.contains(&points[1].to_string()) && told.contains("'point release' it"), "{told}");
    assert!(told.contains(&points[0].to_string()) && told.contains("is being read"), "{told}");
    assert_eq!(group.vault.manifest().state().points().len(), 5);
    drop(lease);
    block_on(&group.runtime, group.vault.release_point(points[1])).expect("held");
    block_on(&group.runtime, group.vault.retire_harmed(&findings, || Ok(()))).expect("they may go");
    assert_eq!(block_on(&group.runtime, group.vault.finish_advance()).expect("sound"), Advance::None);
}

#[test]
fn no_repair_goes_by_a_damaged_manifest() {
    let (group, ..) = five();
    flip(&group.vault.layout().step(afterimage::format::manifest::StepNumber(4)), 146);
    let mut findings = damage(&look(&group).findings);
    let refused =
        block_on(&group.runtime, group.vault.plan_repair(&mut findings)).expect_err("it says nothing");
    assert!(refused.to_string().contains("vault adopt"), "{refused}");
}
