//! A verification finds what is wrong, and where, and finds nothing where nothing is.

use std::path::{Path, PathBuf};

use afterimage::format::manifest::StepNumber;
use afterimage::format::record::Change;
use afterimage::format::sums::{Copy, Of};
use afterimage::units::{BlobId, DiskId, PointId, SectorCount, SectorRange};
use afterimage::vault::{Advance, SNAPSHOT_STEPS, Severity, VerifyReport, verify, verify_manifest};
use afterimage::view::View;

use crate::support::{Group, block_on, site_keys};

fn group() -> (Group, PathBuf) {
    let mut group = Group::new(&[4096, 64]);
    group.write(0, SectorRange::new(7, 1000), 1);
    let point = group.publish();
    group.write(1, SectorRange::new(0, 64), 2);
    group.publish();
    let delta = group.vault.manifest().state().point(point).expect("published").delta.expect("written");
    let blob = group.vault.layout().blob(delta.blob);
    (group, blob)
}

fn report(group: &Group) -> VerifyReport {
    block_on(&group.runtime, verify(&group.vault, |_, _| Ok(()))).expect("read")
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).expect("there");
    bytes[offset] ^= 4;
    std::fs::write(path, bytes).expect("tests may write it");
}

fn only_damage(report: &VerifyReport) -> (&Path, Option<u64>) {
    assert!(!report.is_sound());
    let [finding] = &report.findings[..] else { panic!("one finding, not {:?}", report.findings) };
    assert_eq!(finding.severity, Severity::Damage);
    (&finding.path, finding.offset)
}

#[test]
fn a_sound_vault_has_no_findings() {
    let (group, _) = group();
    let report = report(&group);
    assert_eq!(report.findings, []);
    assert_eq!((report.blobs, report.bases, report.manifest_files), (2, 2, 5));
    let stored: u64 = group
        .vault
        .manifest()
        .state()
        .points()
        .iter()
        .filter_map(|point| point.delta)
        .map(|delta| delta.total_bytes)
        .sum();
    assert_eq!(report.blob_bytes, stored);
}

#[test]
fn every_byte_of_a_blob_is_looked_at() {
    let (group, blob) = group();
    let length = std::fs::metadata(&blob).expect("there").len();
    let length = usize::try_from(length).expect("small");
    for offset in (0..256).step_by(16).chain((256..length).step_by(40_009)).chain(length - 400..length) {
        flip(&blob, offset);
        let report = report(&group);
        let (path, found) = only_damage(&report);
        assert_eq!(path, blob);
        assert!(found.is_some(), "byte {offset}: {:?}", report.findings);
        let told = report.findings[0].to_string();
        assert_eq!(told.matches(".delta").count(), 1, "the file is named once: {told}");
        assert_eq!(told.matches("at byte").count(), 1, "and the offset: {told}");
        flip(&blob, offset);
    }
    assert!(report(&group).is_sound());
}

#[test]
fn a_bad_manifest_step_is_named() {
    let (group, _) = group();
    let step = group.vault.layout().step(StepNumber(4));
    flip(&step, 146);
    assert_eq!(only_damage(&report(&group)), (step.as_path(), Some(144)));
    std::fs::remove_file(&step).expect("there");
    assert_eq!(only_damage(&report(&group)).0, step);
}

/// The first one hid those behind it.
#[test]
fn every_bad_manifest_step_is_named() {
    let (group, _) = group();
    let named = |report: &VerifyReport| {
        assert!(report.findings.iter().all(|finding| finding.severity == Severity::Damage));
        report.findings.iter().map(|finding| finding.path.clone()).collect::<Vec<_>>()
    };
    let steps = [2, 4].map(|step| group.vault.layout().step(StepNumber(step)));
    steps.iter().for_each(|step| flip(step, 146));
    assert_eq!(named(&report(&group)), steps);
    // Whole by itself, but of another place.
    std::fs::copy(group.vault.layout().step(StepNumber(1)), &steps[0]).expect("copied");
    assert_eq!(named(&report(&group)), steps);
    // Steps are no longer known to add up to anything, until a snapshot says to what.
    let manifest = group.vault.manifest();
    let mut paused = false;
    while manifest.state().newest() < StepNumber(2 * SNAPSHOT_STEPS + 8) {
        paused = !paused;
        block_on(&group.runtime, manifest.append(Change::PauseSet(paused))).expect("appended");
    }
    assert!(report(&group).is_sound(), "snapshots took their place");
    let steps = [SNAPSHOT_STEPS + 3, SNAPSHOT_STEPS + 7, 2 * SNAPSHOT_STEPS + 2];
    let steps = steps.map(|step| group.vault.layout().step(StepNumber(step)));
    steps.iter().for_each(|step| flip(step, 100));
    assert_eq!(named(&report(&group)), steps);
    // As a process finds it that cannot open it.
    let (path, keys) = (group.path(), site_keys());
    let alone = block_on(&group.runtime, verify_manifest(&group.runtime, &path, &keys));
    assert_eq!(named(&alone.expect("read")), steps);
}

#[test]
fn missing_and_short_files_are_named() {
    let (group, blob) = group();
    let base = group.vault.layout().base(group.disks[1].id);
    let file = std::fs::OpenOptions::new().write(true).open(&base).expect("there");
    file.set_len(512).expect("cut");
    assert_eq!(only_damage(&report(&group)).0, base);
    file.set_len(64 * 512).expect("mended");
    let kept = std::fs::read(&blob).expect("there");
    std::fs::write(&blob, &kept[..kept.len() - 1]).expect("cut");
    assert_eq!(only_damage(&report(&group)).0, blob);
    std::fs::remove_file(&blob).expect("there");
    assert_eq!(only_damage(&report(&group)).0, blob);
}

#[test]
fn an_orphan_is_reported_and_harms_nothing() {
    let (group, blob) = group();
    let orphan = group.vault.layout().blob(BlobId(0xdead));
    std::fs::copy(&blob, &orphan).expect("copied");
    let report = report(&group);
    assert!(report.is_sound());
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].path, orphan);
}

/// An import takes its time: the base is there before the step that adds the disk.
#[test]
fn the_base_of_a_disk_that_is_being_created_is_no_orphan() {
    let (group, _) = group();
    let disk = DiskId(0xbeef);
    block_on(&group.runtime, group.vault.bases().create_empty(disk, SectorCount(64))).expect("created");
    assert_eq!(report(&group).findings, []);
    // What another process left would be one.
    let foreign = group.vault.layout().base(DiskId(0xdead));
    std::fs::copy(group.vault.layout().base(disk), &foreign).expect("copied");
    let found: Vec<_> = report(&group).findings.into_iter().map(|finding| finding.path).collect();
    assert_eq!(found, [foreign]);
}

#[test]
fn a_copy_of_a_base_beside_it_is_an_orphan() {
    let (group, _) = group();
    let layout = group.vault.layout();
    let disk = group.vault.manifest().state().all_disks()[0].record.id;
    std::fs::copy(layout.base(disk), layout.unsummed_base(disk)).expect("copied");
    let report = report(&group);
    assert!(report.is_sound());
    let found: Vec<_> = report.findings.iter().map(|finding| finding.path.clone()).collect();
    assert_eq!(found, [layout.unsummed_base(disk)]);
}

/// A group whose first delta is of sectors 7..1000 of a disk, which the third writes anew but for the first.
fn overwritten() -> (Group, Vec<PointId>, PathBuf) {
    let mut group = Group::plain(&[4096, 64]);
    let writes = [(0, 7, 1000, 1), (1, 0, 64, 2), (0, 8, 1000, 3), (0, 0, 8, 4), (0, 2000, 2001, 5)];
    let points = writes.map(|(disk, start, end, seed)| {
        group.write(disk, SectorRange::new(start, end), seed);
        group.publish()
    });
    let delta = group.vault.manifest().state().point(points[0]).expect("published").delta.expect("written");
    let blob = group.vault.layout().blob(delta.blob);
    (group, points.to_vec(), blob)
}

fn harmed(report: &VerifyReport) -> Vec<PointId> {
    report.harmed.iter().map(|point| point.id).collect()
}

#[test]
fn the_points_that_show_a_damaged_chunk_are_named_and_no_others() {
    let (group, points, blob) = overwritten();
    let length = usize::try_from(std::fs::metadata(&blob).expect("there").len()).expect("small");
    // The first chunk is shown until its first sector is written anew, too; those behind it for a point less.
    for (offset, count) in [(300, 3), (length / 2, 2)] {
        flip(&blob, offset);
        let report = report(&group);
        assert_eq!(only_damage(&report).0, blob);
        assert_eq!(harmed(&report), points[..count], "byte {offset}");
        let told = report.findings[0].to_string();
        let oldest = group.vault.manifest().state().point(points[0]).expect("there").clone();
        let first = format!("; {count} recovery points need it: {} of {}", oldest.id, oldest.wall);
        assert!(told.contains(&first) && told.contains(&points[1].to_string()), "{told}");
        assert!(!report.findings[0].alone().to_string().contains("recovery point"));
        flip(&blob, offset);
    }
}

#[test]
fn a_blob_whose_tables_are_lost_harms_all_points_from_its_own_on() {
    let (group, points, blob) = overwritten();
    std::fs::remove_file(&blob).expect("there");
    let report = report(&group);
    assert_eq!(harmed(&report), points);
    let told = report.findings[0].to_string();
    assert!(told.contains("5 recovery points need it") && told.ends_with(", and 2 more"), "{told}");
    // It hides nothing either: what lies beneath it may be shown.
    let second = group.vault.manifest().state().point(points[1]).expect("there").delta.expect("written");
    std::fs::remove_file(group.vault.layout().blob(second.blob)).expect("there");
    assert_eq!(self::report(&group).findings.len(), 2);
}

#[test]
fn a_damaged_base_harms_the_points_until_its_disk_is_written_anew() {
    let (group, points, _) = overwritten();
    let base = group.vault.layout().base(group.disks[1].id);
    std::fs::OpenOptions::new().write(true).open(&base).expect("there").set_len(512).expect("cut");
    assert_eq!(harmed(&report(&group)), points[..1]);
    std::fs::remove_file(group.vault.layout().base(group.disks[0].id)).expect("there");
    assert_eq!(harmed(&report(&group)), points, "most of that disk was never written");
}

#[test]
fn a_damaged_manifest_harms_all_points() {
    let (group, points, _) = overwritten();
    flip(&group.vault.layout().step(StepNumber(4)), 146);
    assert_eq!(harmed(&report(&group)), points);
}

#[test]
fn harmed_points_can_be_deleted_from_the_newest_and_take_the_damage_along() {
    let (group, points, blob) = overwritten();
    flip(&blob, 300);
    let delete = |point| block_on(&group.runtime, group.vault.delete_point(point));
    for point in points[..3].iter().rev() {
        delete(*point).expect("whoever comes after it does not show the damage");
    }
    let advanced = block_on(&group.runtime, group.vault.finish_advance()).expect("nothing damaged is read");
    assert_eq!(advanced, Advance::Done);
    block_on(&group.runtime, group.vault.sweep()).expect("deleted");
    let report = report(&group);
    assert!(report.is_sound() && report.harmed.is_empty(), "{:?}", report.findings);
}

/// The group whose base has taken up its first two points; its sums, and where the copies of their first block are.
fn advanced() -> (Group, Vec<PointId>, PathBuf, [u64; 2]) {
    let (group, points, _) = overwritten();
    advance(&group, points[1]);
    assert_eq!(group.vault.bases().take_rots(), []);
    let sums = group.vault.layout().sums(group.disks[0].id);
    (group, points, sums, Copy::BOTH.map(|copy| Of::Base.block_offset(0, copy)))
}

fn advance(group: &Group, point: PointId) {
    block_on(&group.runtime, group.vault.retire_before(point, None)).expect("a step");
    assert_eq!(block_on(&group.runtime, group.vault.finish_advance()).expect("applied"), Advance::Done);
    block_on(&group.runtime, group.vault.sweep()).expect("swept");
}

#[test]
fn sums_of_a_base_that_an_advance_writes_upon_damage_are_named_and_not_the_base() {
    let (group, points, sums, copies) = advanced();
    copies.iter().for_each(|offset| flip(&sums, usize::try_from(*offset).expect("small") + 9));
    let before = report(&group);
    assert_eq!(only_damage(&before), (&*sums, Some(copies[0])));
    // It writes sectors 8..1000 of 0..1016.
    advance(&group, points[2]);
    let [rot] = &group.vault.bases().take_rots()[..] else { panic!("one block") };
    assert_eq!((&rot.path, rot.offset, rot.is_lost), (&sums, copies[0], true));
    let after = report(&group);
    assert!(!after.is_sound());
    for finding in &after.findings {
        assert_eq!((finding.path.as_path(), finding.offset), (&*sums, Some(copies[0])), "{finding}");
    }
    let oldest = block_on(&group.runtime, View::open(&group.vault, points[2])).expect("a point");
    let read = |start, end| {
        let read = oldest.read(group.disks[0].id, SectorRange::new(start, end));
        block_on(&group.runtime, read).map(drop)
    };
    read(8, 1000).expect("written anew");
    let refused = read(1000, 1001).expect_err("nobody knows");
    assert_eq!((refused.path(), refused.offset()), (Some(&*sums), Some(copies[0])));
}

#[test]
fn one_copy_of_sums_of_a_base_that_an_advance_writes_anew_is_told() {
    for copy in 0..2 {
        let (group, points, sums, copies) = advanced();
        flip(&sums, usize::try_from(copies[copy]).expect("small") + 9);
        advance(&group, points[2]);
        let [rot] = &group.vault.bases().take_rots()[..] else { panic!("one block") };
        assert_eq!((&rot.path, rot.offset, rot.is_lost), (&sums, copies[copy], false));
        assert!(report(&group).is_sound() && report(&group).findings.is_empty());
    }
}
