//! A bit that flips in a checkpoint is told, though the other slot is used; what a power cut may have torn is no alarm.

use std::fs;
use std::path::PathBuf;

use afterimage::image::checkpoint_path;
use afterimage::protect::events::GroupEvent;
use afterimage::units::PAGE_BYTES;

use super::{Harness, plan, scratch};

/// The offsets of the slots of which a group says, when it is opened with these bytes changed, that they have rotted.
fn told(changes: &[(usize, u8)]) -> Vec<u64> {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    // Both slots of its checkpoint have a statement.
    for byte in 1..4 {
        harness.write(disk, 0, byte, 8);
        let visible = harness.group.ladder().visible;
        harness.drive(|group| group.ladder().destaged >= visible);
    }
    let id = harness.group.disks().next().expect("one").record.id;
    harness.stop();
    let path = checkpoint_path(&plan(&root).images(), id);
    let mut bytes = fs::read(&path).expect("there");
    for &(place, bits) in changes {
        bytes[place] ^= bits;
    }
    fs::write(&path, bytes).expect("tests may write it");
    let mut harness = Harness::open(&root).expect("the other slot is used");
    assert_eq!(harness.read(disk, 0, 8), vec![3; 8 * 512]);
    assert!(harness.group.disks().all(|disk| disk.latched.is_none()));
    let rot = |event: GroupEvent| match event {
        GroupEvent::CheckpointRotten { disk, path: named, offset } => {
            assert_eq!((disk.as_str(), &named), ("root", &PathBuf::from(&path)));
            Some(offset)
        }
        _ => None,
    };
    let events = harness.group.take_events();
    let told = events.into_iter().filter_map(|told| rot(told.event)).collect();
    harness.write(disk, 0, 4, 8);
    harness.stop();
    // The next statement took its place.
    let again = Harness::open(&root).expect("sound").group.take_events();
    assert!(again.into_iter().all(|told| rot(told.event).is_none()));
    told
}

#[test]
fn a_flipped_bit_in_a_checkpoint_is_told_with_file_and_offset() {
    assert!(told(&[]).is_empty());
    assert_eq!(told(&[(70, 4)]), [0]);
    assert_eq!(told(&[(PAGE_BYTES + 4000, 128)]), [PAGE_BYTES as u64]);
}

#[test]
fn a_checkpoint_that_may_be_torn_is_no_alarm() {
    assert!(told(&[(30, 255), (70, 255), (200, 1)]).is_empty());
}
