//! Damage in the vault and the way out of it: what the newest point shows is written anew from the disk, the points that need what
//! is lost go, and retention goes on.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

use afterimage::block::Export;
use afterimage::format::ladder::{Ladder, Rung};
use afterimage::format::record::PointRecord;
use afterimage::protect::repair::{LABEL, Repair, Repaired};
use afterimage::protect::status::Condition;
use afterimage::units::{PointId, SectorRange};
use afterimage::vault::{Vault, VerifyReport, damage, verify};
use afterimage::view::View;

use super::pieces::flatten;
use super::{Harness, Steps, scratch};

const SECTORS: u64 = 4096;

impl Harness {
    /// Has something done to the vault, beside the group.
    pub(super) fn beside<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        work: impl FnOnce(Rc<Vault>) -> F,
    ) -> T {
        let (slot, done) = (Rc::new(RefCell::new(None)), work(Rc::clone(self.group.vault())));
        let filled = Rc::clone(&slot);
        self.runtime.spawn(async move { drop(filled.replace(Some(done.await))) });
        self.drive(|_| slot.borrow().is_some());
        slot.take().expect("filled")
    }

    pub(super) fn look(&mut self) -> VerifyReport {
        self.beside(|vault| async move { verify(&vault, |_, _| Ok(())).await }).expect("it can be read")
    }

    pub(super) fn repair(&mut self) -> Repaired {
        let findings = damage(&self.look().findings);
        let repair = Repair { findings, is_agreed: true, report: Rc::new(|_, _| Ok(())) };
        self.called(|group, done| group.repair(repair, done)).expect("it comes to its end")
    }

    /// What a disk holds at a point.
    pub(super) fn at(&mut self, point: PointId, disk: Export) -> Vec<u8> {
        let Export::Disk(_, id) = disk else { panic!("{disk:?}") };
        let read = |vault: Rc<Vault>| async move {
            let view = View::open(&vault, point).await?;
            view.read(id, SectorRange::new(0, SECTORS)).await
        };
        flatten(&self.beside(read).expect("the point is sound"))
    }

    pub(super) fn blob(&self, point: &PointRecord) -> PathBuf {
        self.group.vault().layout().blob(point.delta.expect("it was written to").blob)
    }

    fn points(&self) -> Vec<PointId> {
        self.group.points().iter().map(|point| point.id).collect()
    }

    /// Lets a ladder at work.
    fn thin(&mut self, ladder: Ladder) {
        self.called(|group, done| group.set_policy(None, Some(ladder), done)).expect("a policy");
    }
}

fn flip(blob: &PathBuf) {
    let mut bytes = fs::read(blob).expect("there");
    bytes[260] ^= 1;
    fs::write(blob, bytes).expect("writable");
}

fn short() -> Ladder {
    Ladder::new(vec![Rung { until_ms: 1, spacing_ms: 0 }]).expect("legal")
}

/// What a disk holds after writes: sectors and a byte.
fn model(writes: &[(u64, u64, u8)]) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SECTORS * 512).expect("small")];
    for &(start, sectors, byte) in writes {
        let range = SectorRange::new(start, start + sectors).byte_range();
        bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].fill(byte);
    }
    bytes
}

#[test]
fn what_the_newest_shows_is_written_anew_while_guests_write() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("d", SECTORS);
    harness.write(disk, 0, 1, 8);
    let first = harness.point("first");
    harness.write(disk, 1000, 2, 2000);
    let second = harness.point("second");
    harness.write(disk, 1100, 3, 8);
    let third = harness.point("third");
    flip(&harness.blob(&second));
    let findings = damage(&harness.look().findings);
    let slot = Rc::new(RefCell::new(None));
    let filled = Rc::clone(&slot);
    let repair = Repair { findings, is_agreed: true, report: Rc::new(|_, _| Ok(())) };
    harness.group.repair(repair, Box::new(move |done| drop(filled.replace(Some(done)))));
    let mut writes = vec![(0, 8, 1), (1000, 2000, 2), (1100, 8, 3)];
    for start in (1000..1128).step_by(8) {
        harness.write(disk, start, 7, 4);
        writes.push((start, 4, 7));
    }
    harness.drive(|_| slot.borrow().is_some());
    let repaired = slot.take().expect("done").expect("repaired");
    let gone: Vec<_> = repaired.going.iter().map(|point| point.id).collect();
    assert_eq!(gone[..2], [second.id, third.id]);
    let made = repaired.point.expect("one was made");
    assert_eq!(made.label, LABEL);
    assert!(repaired.renewed_bytes > 0 && repaired.renewed_bytes < 2000 * 512, "the lost chunk, no more");
    assert_eq!(repaired.left, []);
    assert!(harness.points().starts_with(&[first.id]) && harness.points().ends_with(&[made.id]));
    assert!(harness.at(first.id, disk) == model(&[(0, 8, 1)]));
    assert!(harness.read(disk, 0, SECTORS) == model(&writes));
    let last = harness.point("last");
    assert!(harness.at(last.id, disk) == model(&writes));
    assert_eq!(harness.look().findings, []);
}

#[test]
fn a_blob_that_is_gone_has_the_disks_written_anew_and_holes_stay_holes() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("d", SECTORS);
    let Export::Disk(_, id) = disk else { panic!("{disk:?}") };
    harness.write(disk, 0, 1, 8);
    let first = harness.point("first");
    harness.write(disk, 1024, 2, 1024);
    let second = harness.point("second");
    harness.stop();
    let mut harness = Harness::open(&root).expect("reopens");
    fs::remove_file(harness.blob(&second)).expect("there");
    let repaired = harness.repair();
    assert_eq!(repaired.renewed_bytes, SECTORS * 512);
    let made = repaired.point.expect("one was made");
    assert_eq!(harness.points(), [first.id, made.id]);
    assert!(harness.at(made.id, disk) == model(&[(0, 8, 1), (1024, 1024, 2)]));
    let data = |vault: Rc<Vault>| async move {
        let view = View::open(&vault, made.id).await?;
        view.allocation(id, SectorRange::new(0, SECTORS)).await
    };
    let allocated = harness.beside(data).expect("sound");
    let bytes: u64 = allocated.iter().filter(|run| run.allocated).map(|run| run.bytes).sum();
    assert!(bytes < SECTORS * 512, "{allocated:?}");
    assert_eq!(harness.look().findings, []);
}

#[test]
fn a_base_stuck_at_damage_is_sent_on_and_retention_is_no_longer_stalled() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("d", SECTORS);
    harness.write(disk, 0, 1, 8);
    let first = harness.point("first");
    for label in ["b", "c"] {
        harness.write(disk, 16, 2, 8);
        harness.point(label);
    }
    flip(&harness.blob(&first));
    harness.thin(short());
    harness.drive(|group| group.condition() == Condition::RetentionStalled);
    // As it is after a restart, too.
    harness.stop();
    let mut harness = Harness::open(&root).expect("reopens");
    harness.drive(|group| group.condition() == Condition::RetentionStalled);
    let repaired = harness.repair();
    assert_eq!(repaired.left, []);
    harness.drive(|group| group.condition() == Condition::Protected);
    let newest = *harness.points().last().expect("the newest stays");
    assert!(harness.at(newest, disk) == model(&[(0, 8, 1), (16, 8, 2)]));
    assert_eq!(harness.look().findings, []);
}

#[test]
fn without_consent_nothing_changes() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("d", SECTORS);
    harness.write(disk, 0, 1, 8);
    let first = harness.point("first");
    flip(&harness.blob(&first));
    let findings = damage(&harness.look().findings);
    let repair = Repair { findings, is_agreed: false, report: Rc::new(|_, _| Ok(())) };
    let told = harness.called(|group, done| group.repair(repair, done)).expect("it is told");
    assert_eq!((told.going.len(), told.renewed_bytes, told.point), (1, 8 * 512, None));
    assert_eq!(harness.points(), [first.id]);
}

#[test]
fn what_is_sound_is_thinned_beside_what_is_damaged() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("d", SECTORS);
    let mut points = Vec::new();
    for index in 0..9 {
        harness.write(disk, 16 * index, 1, 8);
        points.push(harness.point(&index.to_string()));
    }
    // The base may not pass the first; what follows would merge into the last.
    harness.called(|group, done| group.hold_point(points[0].id, done)).expect("held");
    flip(&harness.blob(&points[4]));
    harness.thin(short());
    harness.drive(|group| group.condition() == Condition::RetentionStalled);
    let expected = [&points[0], &points[3], &points[4], &points[8]].map(|point| point.id);
    assert_eq!(
        harness.points(),
        expected,
        "the damaged one stays as it is, and what it stands between is merged"
    );
    let writes: Vec<_> = (0..4).map(|index| (16 * index, 8, 1)).collect();
    assert!(harness.at(points[3].id, disk) == model(&writes));
}
