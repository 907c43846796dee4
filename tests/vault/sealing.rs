//! Sealed vaults: what is in their files, what a key opens, what a wrong one does not, and what a forger gets.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use afterimage::error::{Error, ErrorKind};
use afterimage::format::checksum;
use afterimage::format::delta::{CHUNK_BYTES, Compression, Content};
use afterimage::format::manifest::{HEADER_BYTES, StepNumber};
use afterimage::random::Random;
use afterimage::seal::{SiteKey, SiteKeys};
use afterimage::units::{PointId, SECTOR_BYTES, SectorRange};
use afterimage::vault::{Severity, Vault, describe_keys, rewrap_keys, verify};
use afterimage::view::View;

use crate::support::{Group, block_on, flatten, pattern, runtime, site_keys};

/// Opens the vault of a group in a process that has these site keys.
fn open(group: &Group, keys: &SiteKeys) -> Result<Vault, Error> {
    let runtime = runtime();
    block_on(&runtime, Vault::open(&runtime, &group.path(), keys))
}

/// What the first disk holds at a point, as a process with these keys reads it.
fn read(group: &Group, keys: &SiteKeys, point: PointId) -> Vec<u8> {
    let vault = Rc::new(open(group, keys).expect("its key is here"));
    let runtime = Rc::clone(vault.runtime());
    let view = block_on(&runtime, View::open(&vault, point)).expect("sound");
    let disk = &view.disks()[0];
    let whole = SectorRange::new(0, disk.sectors().0);
    flatten(&block_on(&runtime, view.read(disk.id(), whole)).expect("sound"))
}

fn files(directory: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(directory).expect("listed").map(|entry| entry.expect("listed").path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let own = files.iter().map(|file| fs::read(file).expect("readable"));
    own.chain(directories.iter().flat_map(|directory| self::files(directory))).collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn neither_bytes_of_guests_nor_names_nor_labels_stand_in_a_sealed_vault() {
    let written = Random::new(7).garbage(4096);
    for is_sealed in [true, false] {
        let mut group = if is_sealed { Group::new(&[64]) } else { Group::plain(&[64]) };
        group.write_bytes(0, SectorRange::new(3, 11), &written);
        group.publish();
        let stored = files(&group.path());
        for (what, part) in [("data", &written[512..544]), ("a name", b"disk0"), ("a label", b"point 1")] {
            let is_there = stored.iter().any(|file| contains(file, part));
            assert_eq!(is_there, !is_sealed, "{what}, sealed: {is_sealed}");
        }
    }
}

#[test]
fn a_wrong_or_missing_site_key_is_said_and_the_right_one_opens() {
    let mut group = Group::new(&[64]);
    group.write(0, SectorRange::new(0, 64), 1);
    let point = group.publish();
    let own = site_keys();
    let id = own.current().expect("it has one").id().to_string();
    for keys in [SiteKeys::default(), SiteKeys::new(vec![SiteKey::drawn([1, 1])])] {
        let error = open(&group, &keys).err().expect("not its key");
        assert_eq!(error.kind(), ErrorKind::NoKey);
        assert!(error.to_string().contains(&id), "{error}");
    }
    assert_eq!(read(&group, &own, point), pattern(64 * SECTOR_BYTES, 1));
    // Whoever takes the keyring away does not get a group that passes for an unsealed one.
    fs::remove_file(group.vault.layout().keyring(1)).expect("it was there");
    assert_eq!(open(&group, &own).err().expect("no keys").kind(), ErrorKind::NoKey);
}

#[test]
fn rotated_keys_open_what_the_old_ones_sealed_and_the_old_site_key_nothing() {
    let mut group = Group::new(&[64]);
    group.write(0, SectorRange::new(0, 8), 1);
    let first = group.publish();
    let old = site_keys();
    let new = SiteKey::drawn([5, 6]);
    let both = SiteKeys::new(vec![new.clone(), old.current().expect("it has one").clone()]);
    let (runtime, layout) = (Rc::clone(&group.runtime), group.vault.layout().clone());
    let rewrapped = block_on(&runtime, rewrap_keys(&runtime, &layout, &both, true)).expect("rewrapped");
    assert!(rewrapped);
    let new = SiteKeys::new(vec![new]);
    assert_eq!(open(&group, &old).err().expect("not its key any more").kind(), ErrorKind::NoKey);
    let described = block_on(&runtime, describe_keys(&runtime, &layout)).expect("read").expect("sealed");
    assert_eq!((Some(described.site_key), described.generations), (new.current().map(SiteKey::id), 2));
    // From the next opening on the newest group key seals.
    let model = group.points[0].1[0].clone();
    group.vault = Rc::new(open(&group, &new).expect("its key"));
    group.runtime = Rc::clone(group.vault.runtime());
    group.write(0, SectorRange::new(8, 16), 2);
    let second = group.publish();
    let delta = group.vault.manifest().state().point(second).and_then(|point| point.delta).expect("written");
    let reader = block_on(&group.runtime, group.vault.open_delta(&delta)).expect("sound");
    assert_eq!(reader.tables().chunks[0].sealed_under.map(|generation| generation.0), Some(2));
    assert_eq!(read(&group, &new, first), model);
    assert_eq!(read(&group, &new, second), group.points[1].1[0]);
}

#[test]
fn one_flipped_bit_in_a_keyring_is_found_and_does_no_harm_and_two_are_refused() {
    let mut group = Group::new(&[64]);
    group.publish();
    let path = group.vault.layout().keyring(1);
    let sound = fs::read(&path).expect("there");
    let mut bytes = sound.clone();
    bytes[100] ^= 4;
    fs::write(&path, &bytes).expect("written");
    open(&group, &site_keys()).expect("the other copy");
    let report = block_on(&group.runtime, verify(&group.vault, |_, _| Ok(()))).expect("read");
    let finding = report.findings.first().expect("found");
    assert_eq!((finding.severity, &finding.path), (Severity::Damage, &path));
    bytes[sound.len() / 2 + 100] ^= 4;
    fs::write(&path, &bytes).expect("written");
    let error = open(&group, &site_keys()).err().expect("both copies are damaged");
    assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(path.as_path())));
}

/// Somebody who may write to the vault, and mends every checksum.
#[test]
fn a_step_with_right_checksums_and_a_wrong_seal_is_refused() {
    let mut group = Group::new(&[64]);
    group.write(0, SectorRange::new(0, 8), 1);
    group.publish();
    let newest = group.vault.manifest().state().newest();
    let path = group.vault.layout().step(newest);
    let sound = fs::read(&path).expect("there");
    for at in [HEADER_BYTES + 3, sound.len() - 1, 56, 65] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        let sum = checksum(&bytes[HEADER_BYTES..]).to_le_bytes();
        bytes[96..112].copy_from_slice(&sum);
        let sum = checksum(&bytes[..HEADER_BYTES - 16]).to_le_bytes();
        bytes[HEADER_BYTES - 16..HEADER_BYTES].copy_from_slice(&sum);
        fs::write(&path, &bytes).expect("written");
        let error = open(&group, &site_keys()).err().expect("forged");
        assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(path.as_path())), "byte {at}");
        assert!(error.to_string().contains("seal"), "{error}");
    }
    fs::write(&path, &sound).expect("written");
    open(&group, &site_keys()).expect("as it was");
    // A step of the same number of another group, whatever its checksums.
    let other = Group::new(&[64]);
    fs::copy(other.vault.layout().step(StepNumber(1)), group.vault.layout().step(StepNumber(1)))
        .expect("copied");
    assert!(open(&group, &site_keys()).is_err());
}

#[test]
fn zeros_are_not_stored_what_compresses_is_shorter_and_what_does_not_is_as_it_was() {
    let chunk_sectors = u64::from(CHUNK_BYTES) / SECTOR_BYTES;
    for is_sealed in [false, true] {
        let mut group = if is_sealed { Group::new(&[4096]) } else { Group::plain(&[4096]) };
        let noise = Random::new(3).garbage(2 * CHUNK_BYTES as usize);
        group.write_bytes(0, SectorRange::new(0, 2 * chunk_sectors), &noise);
        group.write_bytes(0, SectorRange::new(1000, 1064), &vec![0; 64 * 512]);
        group.write(0, SectorRange::new(2000, 2000 + chunk_sectors), 1);
        let point = group.publish();
        let delta =
            group.vault.manifest().state().point(point).and_then(|point| point.delta).expect("written");
        let reader = block_on(&group.runtime, group.vault.open_delta(&delta)).expect("sound");
        let tables = reader.tables();
        let zeros = tables.disks[0]
            .extents
            .iter()
            .filter(|extent| extent.content == Content::Zero { allocated: true });
        assert_eq!(zeros.map(|extent| extent.range).collect::<Vec<_>>(), [SectorRange::new(1000, 1064)]);
        let forms: Vec<_> = tables.chunks.iter().map(|chunk| chunk.compression).collect();
        // The second chunk of noise is not tried; what follows is, and shares chunks with the place that the zeros left.
        let (noise, rest) = forms.split_at(2);
        assert_eq!(noise, [Compression::None; 2]);
        assert!(!rest.is_empty() && rest.iter().all(|form| *form == Compression::Zstd), "{rest:?}");
        let tags = if is_sealed { 32 } else { 0 };
        assert!(tables.chunks[..2].iter().all(|chunk| chunk.stored_bytes == CHUNK_BYTES + tags));
        assert!(tables.chunks[2..].iter().all(|chunk| chunk.stored_bytes < chunk.plain_bytes / 4));
        let view = block_on(&group.runtime, View::open(&group.vault, point)).expect("sound");
        let disk = &view.disks()[0];
        let read = block_on(&group.runtime, view.read(disk.id(), SectorRange::new(0, 4096))).expect("sound");
        assert!(flatten(&read) == group.points[0].1[0], "sealed: {is_sealed}");
    }
}
