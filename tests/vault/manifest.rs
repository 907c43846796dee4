//! The manifest: races, lost replies, holes, snapshots, refusals, and a death at any await.

use std::rc::Rc;

use afterimage::block::TestId;
use afterimage::error::{ErrorKind, Result};
use afterimage::format::manifest::StepNumber;
use afterimage::format::record::{Change, PinKind, PinRecord, TestUse};
use afterimage::runtime::Runtime;
use afterimage::units::{DiskSlot, GroupNanos, Lsn, PinId, PointId, SectorRange, WallNanos};
use afterimage::vault::{Layout, Manifest, Refusal, SNAPSHOT_STEPS, State, Vault, destroy, verify};
use tempfile::TempDir;

use crate::support::{
    Fault, GROUP, Group, TIMELINE, block_on, directory, disk_record, faulty_runtime, group_record,
    point_record, runtime, site_keys,
};

fn create(runtime: &Rc<Runtime>, directory: &TempDir) -> (Layout, Vault) {
    let path = directory.path().join("vault");
    let keys = site_keys();
    let created = Vault::create(runtime, &path, GROUP, TIMELINE, group_record("g"), Some(&keys));
    (Layout::new(&path), block_on(runtime, created).expect("a new group"))
}

fn add_disk(state: &State) -> Result<Change> {
    let DiskSlot(slot) = state.next_slot();
    Ok(Change::DiskAdded(disk_record(slot, &format!("disk{slot}"), 8)))
}

#[test]
fn a_lost_reply_is_a_success() {
    for kind in [std::io::ErrorKind::AlreadyExists, std::io::ErrorKind::Other] {
        let directory = directory();
        let (runtime, faults) = faulty_runtime();
        let (layout, vault) = create(&runtime, &directory);
        faults.add("0000000000000002", Fault::LostReply(kind));
        let step = block_on(&runtime, vault.manifest().append_with(add_disk)).expect("it is ours");
        assert_eq!(step, StepNumber(2));
        assert!(faults.are_spent());
        assert_eq!(vault.manifest().state().disks().count(), 1, "added once");
        let again =
            block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
        assert_eq!(*again.state(), *vault.manifest().state());
    }
}

#[test]
fn a_refused_publish_changes_nothing() {
    let directory = directory();
    let (runtime, faults) = faulty_runtime();
    let (_, vault) = create(&runtime, &directory);
    faults.add("0000000000000002", Fault::Refused);
    let error = block_on(&runtime, vault.manifest().append_with(add_disk)).expect_err("no space");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(vault.manifest().state().newest(), StepNumber(1));
    let step = block_on(&runtime, vault.manifest().append_with(add_disk)).expect("space again");
    assert_eq!(step, StepNumber(2));
}

#[test]
fn who_loses_a_race_decides_anew() {
    let directory = directory();
    let runtime = runtime();
    let (layout, vault) = create(&runtime, &directory);
    let other = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
    for _ in 0..20 {
        let both = async {
            let (ours, theirs) =
                futures::join!(vault.manifest().append_with(add_disk), other.append_with(add_disk));
            (ours.expect("decided anew"), theirs.expect("decided anew"))
        };
        let (ours, theirs) = block_on(&runtime, both);
        assert_ne!(ours, theirs);
    }
    let last = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
    let slots: Vec<u32> = last.state().disks().map(|disk| disk.slot.0).collect();
    assert_eq!(slots, (0..40).collect::<Vec<_>>(), "every append once, none lost");
}

#[test]
fn who_loses_a_race_may_be_refused() {
    let directory = directory();
    let runtime = runtime();
    let (layout, vault) = create(&runtime, &directory);
    let other = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
    let added = |slot| Change::DiskAdded(disk_record(slot, "same", 8));
    block_on(&runtime, vault.manifest().append(added(0))).expect("first");
    let error = block_on(&runtime, other.append(added(1))).expect_err("the name is taken by now");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(other.state().newest(), StepNumber(2), "it has learned of the other's step");
}

#[test]
fn a_hole_stops_the_replay_loudly() {
    let directory = directory();
    let runtime = runtime();
    let (layout, vault) = create(&runtime, &directory);
    for _ in 0..4 {
        block_on(&runtime, vault.manifest().append_with(add_disk)).expect("appended");
    }
    std::fs::remove_file(layout.step(StepNumber(3))).expect("it was there");
    let error = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone()))
        .err()
        .expect("a step is lost");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.path(), Some(layout.step(StepNumber(3)).as_path()));
}

#[test]
fn a_step_of_another_chain_is_noticed() {
    let runtime = runtime();
    let (one, two) = (directory(), directory());
    let (layout, vault) = create(&runtime, &one);
    let (others, other) = create(&runtime, &two);
    for vault in [&vault, &other] {
        block_on(&runtime, vault.manifest().append_with(add_disk)).expect("appended");
    }
    std::fs::copy(others.step(StepNumber(2)), layout.step(StepNumber(2))).expect("copied over");
    let error = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone()))
        .err()
        .expect("a stranger's step");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let renamed = std::fs::rename(layout.step(StepNumber(1)), layout.step(StepNumber(3)));
    renamed.expect("moved");
    assert!(
        block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).is_err(),
        "a name that lies"
    );
}

/// Some change that fits whatever came before.
fn change(number: u64, state: &State) -> Change {
    let disks: Vec<_> = state.disks().cloned().collect();
    match number % 5 {
        0 => add_disk(state).expect("always fits"),
        1 => Change::PolicySet { interval_ms: Some(u32::try_from(number).expect("small")), retain: None },
        2 if disks.len() > 3 => Change::DiskRemoved(disks[0].slot),
        _ => Change::PointPublished(point_record(number + 1, &disks)),
    }
}

#[test]
fn snapshot_and_steps_are_what_all_steps_are() {
    let directory = directory();
    let runtime = runtime();
    let (layout, vault) = create(&runtime, &directory);
    for number in 0..2 * SNAPSHOT_STEPS + 40 {
        let appended = vault.manifest().append_with(|state| Ok(change(number, state)));
        block_on(&runtime, appended).expect("appended");
        if number % 100 == 0 {
            let again =
                block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
            assert_eq!(*again.state(), *vault.manifest().state());
        }
    }
    let again = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
    assert_eq!(*again.state(), *vault.manifest().state());
    assert!(!layout.step(StepNumber(SNAPSHOT_STEPS)).exists(), "replaced by the older snapshot");
    assert!(layout.step(StepNumber(SNAPSHOT_STEPS + 1)).exists(), "the newest snapshot has no copy yet");
    let report = block_on(&runtime, verify(&vault, |_, _| Ok(()))).expect("read");
    let damaged: Vec<_> =
        report.findings.iter().filter(|finding| !finding.path.starts_with(layout.bases())).collect();
    assert!(damaged.is_empty(), "{damaged:?}");
}

/// What a snapshot replaces goes file by file; a death in between made verifications take for lost what was about to go, and every point for
/// harmed.
#[test]
fn what_a_snapshot_replaced_may_be_there_in_part() {
    let directory = directory();
    let runtime = runtime();
    let (layout, vault) = create(&runtime, &directory);
    let append_up_to = |number| {
        while vault.manifest().state().newest() < StepNumber(number) {
            let newest = vault.manifest().state().newest().0;
            block_on(&runtime, vault.manifest().append_with(|state| Ok(change(newest, state))))
                .expect("appended");
        }
    };
    let damage = || {
        let report = block_on(&runtime, verify(&vault, |_, _| Ok(()))).expect("read");
        report
            .findings
            .into_iter()
            .filter(|finding| !finding.path.starts_with(layout.bases()))
            .collect::<Vec<_>>()
    };
    append_up_to(2 * SNAPSHOT_STEPS + 40);
    let replaced: Vec<_> = [SNAPSHOT_STEPS + 40, SNAPSHOT_STEPS + 41, 2 * SNAPSHOT_STEPS]
        .map(|step| layout.step(StepNumber(step)))
        .into_iter()
        .chain([layout.snapshot(StepNumber(SNAPSHOT_STEPS))])
        .map(|path| (std::fs::read(&path).expect("not replaced yet"), path))
        .collect();
    append_up_to(3 * SNAPSHOT_STEPS + 40);
    for (bytes, path) in &replaced {
        assert!(!path.exists(), "{}: replaced", path.display());
        std::fs::write(path, bytes).expect("put back");
        assert_eq!(damage(), [], "{} is there again", path.display());
    }
    let again = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
    assert_eq!(*again.state(), *vault.manifest().state());
    append_up_to(4 * SNAPSHOT_STEPS + 40);
    assert!(replaced.iter().all(|(_, path)| !path.exists()), "the next snapshot goes on with it");
}

#[test]
fn a_writer_that_slept_through_a_snapshot_does_not_believe_its_own_success() {
    let directory = directory();
    let runtime = runtime();
    let (layout, vault) = create(&runtime, &directory);
    let sleeper = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
    for number in 0..2 * SNAPSHOT_STEPS + 1 {
        let appended = vault.manifest().append_with(|state| Ok(change(number, state)));
        block_on(&runtime, appended).expect("appended");
    }
    assert!(!layout.step(StepNumber(2)).exists(), "the sleeper's next step is free again");
    let newest = vault.manifest().state().newest();
    let step = block_on(&runtime, sleeper.append(Change::PolicySet { interval_ms: Some(7), retain: None }))
        .expect("anew");
    assert_eq!(step, newest.next());
    let again = block_on(&runtime, Manifest::open(&runtime, &layout, vault.keys().clone())).expect("sound");
    assert_eq!(again.state().record().interval_ms, 7);
}

#[test]
fn a_second_group_in_the_same_place_is_refused() {
    let directory = directory();
    let runtime = runtime();
    let (layout, _vault) = create(&runtime, &directory);
    let keys = site_keys();
    let again = Vault::create(&runtime, layout.root(), GROUP, TIMELINE, group_record("h"), Some(&keys));
    let error = block_on(&runtime, again).err().expect("one has begun");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn what_does_not_fit_is_refused_with_its_reason() {
    let mut group = Group::new(&[64, 64]);
    let point = group.publish();
    let pin =
        |id, point, kind| Change::PinAdded(PinRecord { id: PinId(id), point, kind, created: WallNanos(4) });
    let first = pin(1, point, PinKind::Test { test: TestId(1), purpose: TestUse::Rehearsal });
    block_on(&group.runtime, group.vault.manifest().append(first)).expect("the point exists");
    let (disks, missing) = (group.disks.clone(), PointId(404));
    let later = |number| point_record(number, &disks);
    let cases = [
        (Change::GroupCreated(group_record("x")), Refusal::Creation),
        (Change::DiskAdded(disk_record(7, "disk0", 8)), Refusal::NameTaken("disk0".to_owned())),
        (Change::DiskAdded(disk_record(1, "new", 8)), Refusal::DiskTaken(disks[1].id)),
        (Change::DiskRemoved(DiskSlot(9)), Refusal::UnknownSlot(DiskSlot(9))),
        (Change::PointPublished(later(1)), Refusal::PointTaken(point)),
        (
            Change::PointPublished({
                let mut point = later(3);
                point.marker = Lsn(100);
                point
            }),
            Refusal::PointOutOfOrder { found: Lsn(100), newest: Lsn(100) },
        ),
        (
            Change::PointPublished({
                let mut point = later(3);
                point.group_time = GroupNanos(0);
                point
            }),
            Refusal::TimeWentBack { found: GroupNanos(0), newest: GroupNanos(1) },
        ),
        (
            Change::PointPublished(point_record(3, &[disk_record(5, "x", 8)])),
            Refusal::UnknownSlot(DiskSlot(5)),
        ),
        (pin(2, missing, PinKind::Hold), Refusal::UnknownPoint(missing)),
        (pin(1, point, PinKind::Hold), Refusal::PinTaken(PinId(1))),
        (
            pin(2, point, PinKind::Test { test: TestId(1), purpose: TestUse::Rehearsal }),
            Refusal::TestTaken(TestId(1)),
        ),
        (
            pin(2, point, PinKind::Test { test: TestId(1), purpose: TestUse::ReadOnly }),
            Refusal::TestTaken(TestId(1)),
        ),
        (Change::PinRemoved(PinId(9)), Refusal::UnknownPin(PinId(9))),
        (Change::GroupRemoved, Refusal::Pinned),
    ];
    let state = group.vault.manifest().state();
    for (change, refusal) in cases {
        assert_eq!(state.check(&change), Err(refusal), "{change:?}");
    }
    assert!(matches!(
        state.check(&Change::PolicySet { interval_ms: Some(0), retain: None }),
        Err(Refusal::Malformed(_))
    ));
    assert_eq!(state.next_test(), TestId(2));
}

#[test]
fn a_removed_group_is_gone_also_when_the_removal_is_interrupted() {
    let group = Group::new(&[64]);
    let path = group.path();
    // As after a death right after the step.
    block_on(&group.runtime, group.vault.manifest().append(Change::GroupRemoved)).expect("nothing pins it");
    let error =
        block_on(&group.runtime, Vault::open(&group.runtime, &path, &site_keys())).err().expect("removed");
    assert_eq!(error.kind(), ErrorKind::Shutdown);
    // As after a death in the middle of the deletion.
    std::fs::write(group.vault.layout().tombstone(), []).expect("written");
    std::fs::remove_file(group.vault.layout().step(StepNumber(1))).expect("deleted");
    let error =
        block_on(&group.runtime, Vault::open(&group.runtime, &path, &site_keys())).err().expect("removed");
    assert_eq!(error.kind(), ErrorKind::Shutdown);
    block_on(&group.runtime, destroy(&group.runtime, &path)).expect("deleted");
    assert!(!path.exists());
}

/// Polls a future a number of times, and then drops it with its runtime: a death at that await. Gives back whether it
/// had ended.
fn die_after<T>(runtime: &Rc<Runtime>, polls: usize, future: impl Future<Output = T>) -> bool {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..polls {
        runtime.step(&mut Vec::new());
        if future.as_mut().poll(&mut context).is_ready() {
            return true;
        }
        runtime.storage().start();
        runtime.storage().wait();
    }
    false
}

#[test]
fn a_death_at_any_await_of_a_publication_leaves_all_of_the_point_or_nothing() {
    for polls in 0..200 {
        let mut group = Group::new(&[4096]);
        group.write(0, SectorRange::new(5, 900), 1);
        let first = group.publish();
        let path = group.path();
        // Its own process, which dies.
        let process = runtime();
        let vault = block_on(&process, Vault::open(&process, &path, &site_keys())).expect("sound");
        group.write(0, SectorRange::new(100, 800), 2);
        let second = group.prepare();
        let published = second.publish(&vault, &group.log);
        let ended = die_after(&process, polls, published);
        drop((vault, process));
        let successor = runtime();
        let vault = block_on(&successor, Vault::open(&successor, &path, &site_keys())).expect("sound");
        let points = vault.manifest().state().points().len();
        assert!(points == 2 || (points == 1 && !ended), "a published point is there");
        assert!(vault.manifest().state().point(first).is_some());
        let report = block_on(&successor, verify(&vault, |_, _| Ok(()))).expect("read");
        assert_eq!(report.findings, [], "after {polls} polls");
        if ended {
            assert!(polls > 8, "there are that many awaits to die at");
            return;
        }
    }
    panic!("publishing never ended");
}
