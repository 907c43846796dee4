//! Base advances on a device that does not give at once what is asked of it.

use afterimage::error::Result;
use afterimage::storage::sim::{FaultKind, Matcher, OpKind, SimDisk};
use afterimage::units::SectorRange;
use afterimage::vault::Advance;
use afterimage::view::View;

use crate::power::{prepare_disk, process};
use crate::support::{Group, block_on, flatten};

const SECTORS: u64 = 512;

/// Sums that the advance would not have written itself, had it taken them for lost, were refused for good.
#[test]
fn sums_of_a_base_that_were_not_given_once_are_not_taken_for_lost() {
    // The first reads of the file are of its header and of the two copies of its only block.
    for failing in [1..3, 1..4, 2..3, 0..1] {
        let disk = SimDisk::new(7);
        let vault = prepare_disk(&disk);
        let process = process(&disk, 1);
        let mut group = Group::within(&process.runtime, vault, &[SECTORS]);
        for (seed, sectors) in [(1, 0..100), (2, 100..200), (3, 200..300), (4, 300..400)] {
            group.write(0, SectorRange::new(sectors.start, sectors.end), seed);
            group.publish();
        }
        advance(&group, 1).expect("nothing fails yet");
        for _ in failing.clone() {
            let reads = Matcher::kind(OpKind::Read).path(".sums").after(failing.start);
            disk.fail_next(reads, FaultKind::Io);
        }
        while advance(&group, 2).is_err() {}
        assert_eq!(group.vault.bases().take_rots(), [], "{failing:?}");

        let (point, model) = &group.points[2];
        let view = block_on(&group.runtime, View::open(&group.vault, *point)).expect("sound");
        let read = block_on(&group.runtime, view.read(group.disks[0].id, SectorRange::new(0, SECTORS)));
        let read = read.unwrap_or_else(|error| panic!("{failing:?}: {error}"));
        assert!(flatten(&read) == model[0], "{failing:?}");
    }
}

/// Brings the base to a point; to be called again where that fails.
fn advance(group: &Group, index: usize) -> Result<()> {
    let run = async {
        if group.vault.finish_advance().await? == Advance::None {
            group.vault.retire_before(group.points[index].0, None).await?;
            group.vault.finish_advance().await?;
        }
        Ok(())
    };
    block_on(&group.runtime, run)
}
