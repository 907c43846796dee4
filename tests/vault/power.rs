//! What deaths leave, on the simulated disk: of the process and of the machine, at any operation, again while opening.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use afterimage::error::ErrorKind;
use afterimage::runtime::Runtime;
use afterimage::storage::sim::{ProcessId, Random, SimDisk, SimEnvironment, SimStorage};
use afterimage::units::{SectorRange, to_usize};
use afterimage::vault::{Vault, verify};
use afterimage::view::{Overlay, View};

use crate::support::{GROUP, Group, TIMELINE, block_on, flatten, group_record, pattern, site_keys};

const SEEDS: u64 = 300;
/// Steps within which a process dies: about as many as its work takes.
const STEPS: u64 = 150;

/// A process on the simulated disk.
pub struct Process {
    pub runtime: Rc<Runtime>,
    pub id: ProcessId,
}

pub fn process(disk: &SimDisk, seed: u64) -> Process {
    let storage = SimStorage::new(disk);
    let id = storage.process();
    Process { runtime: Runtime::new(Box::new(storage), SimEnvironment::new(seed)), id }
}

pub fn prepare_disk(disk: &SimDisk) -> &'static Path {
    let setup = process(disk, 0);
    let made = async {
        setup.runtime.create_directory("/data").await?;
        setup.runtime.sync_directory("/data").await?;
        setup.runtime.sync_directory("/").await
    };
    block_on(&setup.runtime, made).expect("a new disk");
    Path::new("/data/vault")
}

/// Runs a future for up to so many steps, then kills the process or cuts the power; whether it had ended.
pub fn die_within(
    disk: &SimDisk,
    process: Process,
    steps: u64,
    random: &mut Random,
    future: impl Future<Output = ()>,
) -> bool {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut ended = false;
    for _ in 0..random.below(steps) {
        process.runtime.step(&mut Vec::new());
        if future.as_mut().poll(&mut context).is_ready() {
            ended = true;
            break;
        }
        process.runtime.storage().start();
        disk.step();
    }
    if random.chance(1, 2) {
        disk.power_cut();
    } else {
        disk.kill_process(process.id);
    }
    ended
}

#[test]
fn a_published_point_survives_any_death_and_an_unpublished_one_leaves_nothing() {
    let (mut whole, mut torn) = (0, 0);
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(seed);
        let path = prepare_disk(&disk);
        let mut group = Group::within(&process(&disk, seed).runtime, path, &[2000, 64]);
        let mut prepared = Vec::new();
        for number in 0..4 {
            let start = random.below(1500);
            group.write(0, SectorRange::new(start, start + 1 + random.below(500)), number);
            group.zero(1, SectorRange::new(random.below(32), 40), number % 2 == 0);
            prepared.push(group.prepare());
        }
        let Group { log, points: models, .. } = &group;
        let published = Cell::new(0_usize);
        let doomed = process(&disk, seed + SEEDS);
        let runtime = Rc::clone(&doomed.runtime);
        let ended = die_within(&disk, doomed, STEPS, &mut random, async {
            let vault = Vault::open(&runtime, path, &site_keys()).await.expect("sound");
            for (count, point) in (1..).zip(&prepared) {
                point.publish(&vault, log).await.expect("nothing fails here but the process");
                published.set(count);
            }
        });
        // It may die again while it opens.
        let doomed = process(&disk, seed + 2 * SEEDS);
        let runtime = Rc::clone(&doomed.runtime);
        die_within(&disk, doomed, STEPS, &mut random, async {
            Vault::open(&runtime, path, &site_keys()).await.map(drop).expect("sound");
        });
        let successor = process(&disk, seed + 3 * SEEDS).runtime;
        let vault =
            Rc::new(block_on(&successor, Vault::open(&successor, path, &site_keys())).expect("sound"));
        let found: Vec<_> = vault.manifest().state().points().iter().map(|point| point.id).collect();
        assert!(
            found.len() >= published.get(),
            "seed {seed}: {} published, {} there",
            published.get(),
            found.len()
        );
        let report = block_on(&successor, verify(&vault, |_, _| Ok(()))).expect("read");
        assert_eq!(report.findings, [], "seed {seed}");
        for (point, (id, model)) in found.iter().zip(models) {
            assert_eq!(point, id);
            let view = block_on(&successor, View::open(&vault, *point)).expect("sound");
            for (disk, model) in view.disks().iter().zip(model) {
                let all = SectorRange::new(0, disk.sectors().0);
                let pieces = block_on(&successor, view.read(disk.id(), all)).expect("sound");
                assert!(flatten(&pieces) == *model, "seed {seed}: disk {} of point {point}", disk.name());
            }
        }
        if ended { whole += 1 } else { torn += 1 }
    }
    assert!(whole > 10 && torn > 50, "both happened: {whole} ended, {torn} died on the way");
}

#[test]
fn a_group_is_created_or_not_and_can_be_created_again() {
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(seed);
        let path = prepare_disk(&disk);
        let doomed = process(&disk, seed);
        let runtime = Rc::clone(&doomed.runtime);
        let created = die_within(&disk, doomed, STEPS, &mut random, async {
            let keys = site_keys();
            let created = Vault::create(&runtime, path, GROUP, TIMELINE, group_record("g"), Some(&keys));
            created.await.map(drop).expect("an empty place");
        });
        let successor = process(&disk, seed + SEEDS).runtime;
        match block_on(&successor, Vault::open(&successor, path, &site_keys())) {
            Ok(_) => {}
            Err(error) => {
                assert!(!created, "seed {seed}: {error}");
                assert_eq!(error.kind(), ErrorKind::NotFound, "seed {seed}: {error}");
                let keys = site_keys();
                let again = Vault::create(&successor, path, GROUP, TIMELINE, group_record("g"), Some(&keys));
                block_on(&successor, again).expect("as if nothing had been");
            }
        }
    }
}

/// What was flushed survives a power cut, and what was acknowledged the death of the process. Blocks that were written when the
/// power went, and not flushed, hold what was once written there, or are refused until they are written anew.
#[test]
fn an_overlay_keeps_what_it_promised() {
    const SECTORS: u64 = 403;
    let mut refused = 0;
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(seed);
        let path = prepare_disk(&disk);
        let mut group = Group::within(&process(&disk, seed).runtime, path, &[SECTORS]);
        group.write(0, SectorRange::new(10, 200), 9);
        let point = group.publish();
        let mut model = group.model[0].clone();
        let overlay_path = Path::new("/data/overlay");

        let first = process(&disk, seed + SEEDS);
        let vault = Rc::new(
            block_on(&first.runtime, Vault::open(&first.runtime, path, &site_keys())).expect("sound"),
        );
        let view = block_on(&first.runtime, View::open(&vault, point)).expect("sound");
        let id = view.disks()[0].id();
        let overlay = block_on(&first.runtime, Overlay::create(overlay_path, &view, id)).expect("new");
        let mut unflushed = vec![false; to_usize(SECTORS)];
        let mut once = vec![model.clone()];
        for number in 0..random.below(20) {
            let start = random.below(SECTORS);
            let range = SectorRange::new(start, (start + 1 + random.below(40)).min(SECTORS));
            let bytes = to_usize(range.byte_offset())..to_usize(range.byte_range().end);
            let blocks = to_usize(range.start / 8 * 8)..to_usize(range.end.next_multiple_of(8).min(SECTORS));
            let done = match random.below(4) {
                0 => {
                    model[bytes].fill(0);
                    block_on(&first.runtime, overlay.zero(range, false, random.chance(1, 2)))
                }
                1 => {
                    block_on(&first.runtime, overlay.flush()).expect("nothing fails here");
                    unflushed.fill(false);
                    continue;
                }
                _ => {
                    let payload = pattern(range.bytes(), u8::try_from(number).expect("small"));
                    model[bytes].copy_from_slice(&payload);
                    block_on(&first.runtime, overlay.write(range, &payload, false))
                }
            };
            done.expect("nothing fails here");
            unflushed[blocks].fill(true);
            once.push(model.clone());
        }
        let power = random.chance(1, 2);
        if power {
            disk.power_cut()
        } else {
            disk.kill_process(first.id)
        }
        drop((overlay, view, vault, first));

        let second = process(&disk, seed + 2 * SEEDS).runtime;
        let vault = Rc::new(block_on(&second, Vault::open(&second, path, &site_keys())).expect("sound"));
        let view = block_on(&second, View::open(&vault, point)).expect("sound");
        let overlay = block_on(&second, Overlay::open(overlay_path, &view, id)).expect("it is there");
        for (sector, unflushed) in (0..SECTORS).zip(unflushed) {
            let bytes = to_usize(sector * 512)..to_usize((sector + 1) * 512);
            match block_on(&second, overlay.read(SectorRange::new(sector, sector + 1))) {
                Ok(pieces) if power && unflushed => {
                    let read = flatten(&pieces);
                    assert!(
                        once.iter().any(|model| read == model[bytes.clone()]),
                        "seed {seed}: sector {sector}"
                    );
                }
                Ok(pieces) => assert!(flatten(&pieces) == model[bytes], "seed {seed}: sector {sector}"),
                Err(error) => {
                    assert!(power && unflushed, "seed {seed}: sector {sector}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                    refused += 1;
                }
            }
        }
        let (all, anew) = (SectorRange::new(0, SECTORS), pattern(SECTORS * 512, 77));
        block_on(&second, overlay.write(all, &anew, false)).expect("whatever is refused is written anew");
        assert!(flatten(&block_on(&second, overlay.read(all)).expect("written anew")) == anew, "seed {seed}");
    }
    assert!(refused > 100, "only {refused} torn sectors were refused");
}
