//! The reserve, on a simulated disk that is full to the last byte: what gives space back is done there and nothing else is,
//! whatever dies on the way.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use afterimage::error::{ErrorKind, Result};
use afterimage::format::record::Change;
use afterimage::space_gate::SpaceGates;
use afterimage::storage::sim::{OpKind, Random, SimDisk};
use afterimage::units::{DiskSlot, SectorRange, to_usize};
use afterimage::vault::{Advance, SPARES, Vault, verify};
use afterimage::view::View;

use crate::power::{die_within, prepare_disk, process};
use crate::support::{Group, block_on, flatten, site_keys};

const SEEDS: u64 = 300;
/// Steps within which a process dies: about as many as an advance with its sums takes.
const STEPS: u64 = 240;
/// More than the deltas of the tests hold.
const ROOM_BYTES: u64 = 64 << 10;

/// A vault with three points of two disks on a disk that is about to be full.
fn group(disk: &SimDisk, seed: u64) -> Group {
    let path = prepare_disk(disk);
    let mut group = Group::within(&process(disk, seed).runtime, path, &[64, 32]);
    for number in 0..3 {
        group.write(0, SectorRange::new(u64::from(number) * 8, 40), number);
        group.write(1, SectorRange::new(0, 8 + u64::from(number)), number);
        group.publish();
    }
    group
}

fn refill(group: &Group) -> Result<()> {
    block_on(&group.runtime, group.vault.reserve().refill(ROOM_BYTES, &|| Ok(())))
}

fn fill(disk: &SimDisk) {
    disk.set_capacity(Some(disk.allocated_bytes()));
}

/// Drops the oldest point, then a disk, as far as neither was done.
async fn give_back(vault: &Vault) -> Result<()> {
    let (oldest, has_disk) = {
        let state = vault.manifest().state();
        let oldest = state.points().first().filter(|_| state.points().len() == 3).map(|point| point.id);
        (oldest, state.disks().count() == 2)
    };
    vault.finish_advance().await?;
    if let Some(oldest) = oldest {
        vault.delete_point(oldest).await?;
        assert_eq!(vault.finish_advance().await?, Advance::Done);
    }
    vault.sweep().await?;
    if has_disk {
        vault.manifest().append(Change::DiskRemoved(DiskSlot(1))).await?;
    }
    Ok(())
}

#[test]
fn what_gives_space_back_is_done_on_a_full_disk_and_nothing_else() {
    let disk = SimDisk::new(1);
    let group = group(&disk, 1);
    refill(&group).expect("there is room");
    let whole = to_usize(u64::from(SPARES));
    assert_eq!((group.vault.reserve().spares(), group.vault.reserve().room_bytes()), (whole, ROOM_BYTES));
    fill(&disk);
    let newest = group.points[2].0;
    let held = block_on(&group.runtime, group.vault.hold_point(newest));
    assert_eq!(held.expect_err("no room").kind(), ErrorKind::NoSpace);
    assert_eq!(group.vault.reserve().spares(), whole, "nothing is taken for what gives nothing back");
    block_on(&group.runtime, give_back(&group.vault)).expect("the reserve is for that");
    assert!(group.vault.reserve().spares() < whole);
    disk.set_capacity(None);
    refill(&group).expect("there is room again");
    assert_eq!((group.vault.reserve().spares(), group.vault.reserve().room_bytes()), (whole, ROOM_BYTES));
    let report = block_on(&group.runtime, verify(&group.vault, |_, _| Ok(()))).expect("read");
    assert_eq!(report.findings, []);
}

/// A death let others have it: nothing said that there had been a room.
#[test]
fn a_room_that_was_given_up_is_made_anew_as_far_as_there_is_space_and_is_owed_the_rest_also_after_a_death() {
    const ROOM_BYTES: u64 = 1 << 20;
    let disk = SimDisk::new(1);
    let group = group(&disk, 1);
    let refill = |vault: &Vault| block_on(&group.runtime, vault.reserve().refill(ROOM_BYTES, &|| Ok(())));
    refill(&group.vault).expect("there is room");
    let gates = Arc::<SpaceGates>::default();
    group.vault.reserve().guard(Arc::clone(&gates));
    let gate = gates.of(Some(0));
    fill(&disk);
    let inside = gate.pass().expect("open");
    let waits = block_on(&group.runtime, give_back(&group.vault)).expect_err("somebody else may take it");
    assert_eq!((waits.kind(), group.vault.reserve().room_bytes()), (ErrorKind::NoSpace, ROOM_BYTES));
    drop(inside);
    block_on(&group.runtime, give_back(&group.vault)).expect("the room is for that");
    assert_eq!((group.vault.reserve().room_bytes(), gate.pass().is_err()), (0, true));
    disk.set_capacity(Some(disk.allocated_bytes() + ROOM_BYTES / 2));
    assert_eq!(refill(&group.vault).expect_err("half of it").kind(), ErrorKind::NoSpace);
    let made = group.vault.reserve().room_bytes();
    assert!((ROOM_BYTES / 4..ROOM_BYTES / 2).contains(&made), "{made}");

    let keys = site_keys();
    let opened = Vault::open(&group.runtime, group.vault.layout().root(), &keys);
    let vault = block_on(&group.runtime, opened).expect("sound");
    assert!(vault.reserve().had_room());
    assert_eq!(vault.reserve().room_bytes(), made);
    let reserve = group.vault.reserve();
    reserve.settle(ROOM_BYTES, true);
    assert!(gate.pass().is_err(), "a base needs it");
    disk.set_capacity(None);
    refill(&group.vault).expect("there is room");
    reserve.settle(ROOM_BYTES, true);
    assert!(gate.pass().is_ok());
}

/// It was tried every second, filled the file system each time, and took the room that guests then waited for.
#[test]
fn a_merge_that_found_no_space_is_not_tried_before_there_is_more() {
    let disk = SimDisk::new(1);
    let group = group(&disk, 1);
    fill(&disk);
    let merge = || {
        let before = disk.count(OpKind::Write);
        let merged = group.vault.merge_points(group.points[0].0, group.points[1].0, None);
        let kind = block_on(&group.runtime, merged).map_err(|error| error.kind());
        (kind, disk.count(OpKind::Write) - before)
    };
    let (refused, writes) = merge();
    assert!(refused == Err(ErrorKind::NoSpace) && writes > 0, "{refused:?} after {writes}");
    assert_eq!(merge(), (Err(ErrorKind::NoSpace), 0));
    disk.set_capacity(Some(disk.allocated_bytes() + (1 << 20)));
    assert_eq!(merge().0, Ok(()));
}

#[test]
fn without_a_reserve_a_full_disk_stays_full() {
    let disk = SimDisk::new(1);
    let group = group(&disk, 1);
    fill(&disk);
    let refused = block_on(&group.runtime, give_back(&group.vault));
    assert_eq!(refused.expect_err("no room").kind(), ErrorKind::NoSpace);
    disk.set_capacity(None);
    block_on(&group.runtime, give_back(&group.vault)).expect("there is room again");
}

#[test]
fn what_only_allows_others_to_go_leaves_spares_for_disks_that_are_removed() {
    let disk = SimDisk::new(1);
    let group = group(&disk, 1);
    refill(&group).expect("there is room");
    fill(&disk);
    let pause = |paused| block_on(&group.runtime, group.vault.manifest().append(Change::PauseSet(paused)));
    let paused = (0..SPARES).take_while(|number| pause(number % 2 == 0).is_ok()).count();
    assert!((1..to_usize(u64::from(SPARES))).contains(&paused), "{paused} of {SPARES}");
    block_on(&group.runtime, group.vault.manifest().append(Change::DiskRemoved(DiskSlot(1))))
        .expect("left for it");
}

#[test]
fn deaths_on_a_full_disk_lose_nothing_and_what_they_cut_off_is_done_after_them() {
    let (mut whole, mut torn) = (0, 0);
    for seed in 0..SEEDS {
        let (mut random, disk) = (Random::new(seed), SimDisk::new(seed));
        let group = group(&disk, seed);
        refill(&group).expect("there is room");
        let path = group.vault.layout().root().to_owned();
        fill(&disk);
        let done = Cell::new(false);
        let doomed = process(&disk, seed + SEEDS);
        let runtime = Rc::clone(&doomed.runtime);
        die_within(&disk, doomed, STEPS, &mut random, async {
            let vault = Vault::open(&runtime, &path, &site_keys()).await.expect("sound");
            give_back(&vault).await.expect("the reserve is for that");
            done.set(true);
        });
        let successor = process(&disk, seed + 2 * SEEDS).runtime;
        let vault =
            Rc::new(block_on(&successor, Vault::open(&successor, &path, &site_keys())).expect("sound"));
        block_on(&successor, give_back(&vault)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let report = block_on(&successor, verify(&vault, |_, _| Ok(()))).expect("read");
        assert_eq!(report.findings, [], "seed {seed}");
        for (point, model) in &group.points[1..] {
            let view = block_on(&successor, View::open(&vault, *point)).expect("sound");
            for (disk, model) in view.disks().iter().zip(model) {
                let all = SectorRange::new(0, disk.sectors().0);
                let pieces = block_on(&successor, view.read(disk.id(), all)).expect("sound");
                assert!(flatten(&pieces) == *model, "seed {seed}: disk {} of point {point}", disk.name());
            }
        }
        if done.get() { whole += 1 } else { torn += 1 }
    }
    assert!(whole > 10 && torn > 50, "both happened: {whole} ended, {torn} died on the way");
}
