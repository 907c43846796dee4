//! A keyring: the keys of a group under the site key. `docs/format.md` draws it.
//!
//! The file holds the same ring twice, for a bit that flips in the only copy of a key would cost the whole history.

use zerocopy::little_endian::{I64, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum;
use crate::error::{Error, Result};
use crate::seal::{Generation, SiteKeyId, TAG_BYTES, WrappedKey};
use crate::units::{GroupId, WallNanos};

/// Length of a ring without its keys and its checksum.
const HEADER_BYTES: usize = size_of::<RawHeader>();
/// Length of a key.
const ENTRY_BYTES: usize = size_of::<RawEntry>();
/// Length of the checksum.
const SUM_BYTES: usize = 16;
/// Generations that a group can have.
pub const GENERATIONS_MAX: usize = 4096;
/// Longest file.
pub const FILE_BYTES_MAX: u64 = 2 * (HEADER_BYTES + GENERATIONS_MAX * ENTRY_BYTES + SUM_BYTES) as u64;

const MAGIC: [u8; 8] = *b"AFTRKEYS";
const VERSION: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    keys: U32,
    number: U64,
    created: I64,
    group: U128,
    site_key: U128,
    wrapping: U128,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    generation: U32,
    reserved: [u8; 12],
    key: [u8; 32],
    tag: [u8; TAG_BYTES],
}

const _: () = assert!(HEADER_BYTES == 80 && ENTRY_BYTES == 64);

/// Whose keys a ring holds, and what wraps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its number, which its name says too.
    pub number: u64,
    /// When it was made.
    pub created: WallNanos,
    /// The group.
    pub group: GroupId,
    /// The site key.
    pub site_key: SiteKeyId,
    /// Drawn for this wrapping: the wrapping key is derived from the site key with it.
    pub wrapping: u128,
}

/// A ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    /// Whose.
    pub header: Header,
    /// The keys, ascending by generation; at least one.
    pub keys: Vec<WrappedKey>,
}

impl Header {
    fn raw(&self, keys: usize) -> RawHeader {
        RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            keys: u32::try_from(keys).expect("few generations").into(),
            number: self.number.into(),
            created: self.created.0.into(),
            group: self.group.0.into(),
            site_key: self.site_key.0.into(),
            wrapping: self.wrapping.into(),
        }
    }

    /// What is bound to each of `keys` wrapped keys; their generations are nonces.
    pub fn bound(&self, keys: usize) -> Vec<u8> {
        self.raw(keys).as_bytes().to_vec()
    }
}

impl Keyring {
    /// The file.
    pub fn encode(&self) -> Vec<u8> {
        let mut ring = self.header.bound(self.keys.len());
        for WrappedKey { generation, key, tag } in &self.keys {
            let entry = RawEntry { generation: generation.0.into(), reserved: [0; 12], key: *key, tag: *tag };
            ring.extend_from_slice(entry.as_bytes());
        }
        let sum = checksum(&ring);
        ring.extend_from_slice(&sum.to_le_bytes());
        [ring.as_slice(), &ring].concat()
    }

    /// The ring in `bytes`, a whole file: its first copy that is sound.
    ///
    /// # Errors
    /// What is wrong with the first copy, if the second one is not sound either.
    pub fn decode(bytes: &[u8]) -> Result<Keyring> {
        if bytes.len() as u64 > FILE_BYTES_MAX || !bytes.len().is_multiple_of(2) {
            return Err(Error::corrupt("the keyring has a length that no keyring has").at_offset(0));
        }
        let (first, second) = bytes.split_at(bytes.len() / 2);
        decode_copy(first).or_else(|error| decode_copy(second).map_err(|_| error))
    }

    /// Whether both copies are sound.
    pub fn is_whole(bytes: &[u8]) -> bool {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        first == second && decode_copy(first).is_ok()
    }
}

fn decode_copy(bytes: &[u8]) -> Result<Keyring> {
    let corrupt = |text: &str, offset: usize| Error::corrupt(text).at_offset(offset as u64);
    let Ok((raw, rest)) = RawHeader::ref_from_prefix(bytes) else {
        return Err(corrupt("the keyring is shorter than its header", 0));
    };
    if raw.magic != MAGIC {
        return Err(corrupt("not a keyring: its magic is wrong", 0));
    }
    if raw.version.get() != VERSION {
        return Err(Error::unknown_version("the keyring", raw.version, VERSION).at_offset(8));
    }
    let count = raw.keys.get() as usize;
    if !(1..=GENERATIONS_MAX).contains(&count) || rest.len() != count * ENTRY_BYTES + SUM_BYTES {
        return Err(corrupt("the keyring's count of keys does not fit its length", 12));
    }
    let (summed, sum) = bytes.split_at(bytes.len() - SUM_BYTES);
    if checksum(summed).to_le_bytes() != *sum {
        return Err(corrupt("the keyring's checksum does not match", 0));
    }
    let entries = <[RawEntry]>::ref_from_bytes(&rest[..count * ENTRY_BYTES]).expect("measured");
    let mut keys: Vec<WrappedKey> = Vec::with_capacity(count);
    for raw in entries {
        let generation = Generation(raw.generation.get());
        let ascends = keys.last().map_or(Generation(0), |last| last.generation) < generation;
        if !ascends || raw.reserved != [0; 12] {
            return Err(corrupt("the keyring's keys are not legal", HEADER_BYTES));
        }
        keys.push(WrappedKey { generation, key: raw.key, tag: raw.tag });
    }
    let header = Header {
        number: raw.number.get(),
        created: WallNanos(raw.created.get()),
        group: GroupId(raw.group.get()),
        site_key: SiteKeyId(raw.site_key.get()),
        wrapping: raw.wrapping.get(),
    };
    Ok(Keyring { header, keys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn keyring() -> Keyring {
        let key = |generation| WrappedKey {
            generation: Generation(generation),
            key: [u8::try_from(generation).unwrap(); 32],
            tag: [9; TAG_BYTES],
        };
        let header = Header {
            number: 3,
            created: WallNanos(-1),
            group: GroupId(7),
            site_key: SiteKeyId(8),
            wrapping: u128::MAX,
        };
        Keyring { header, keys: vec![key(1), key(2), key(9)] }
    }

    #[test]
    fn a_ring_survives_a_flipped_bit_anywhere_and_two_are_noticed() {
        let ring = keyring();
        let bytes = ring.encode();
        assert_eq!(Keyring::decode(&bytes).unwrap(), ring);
        assert!(Keyring::is_whole(&bytes));
        let half = bytes.len() / 2;
        for bit in 0..bytes.len() * 8 {
            let mut rotten = bytes.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Keyring::decode(&rotten).expect("the other copy"), ring, "bit {bit}");
            assert!(!Keyring::is_whole(&rotten));
            rotten[(bit / 8 + half) % bytes.len()] ^= 1;
            Keyring::decode(&rotten).expect_err("both copies are damaged");
        }
    }

    #[test]
    fn other_lengths_and_versions_are_refused() {
        let bytes = keyring().encode();
        for length in 0..bytes.len() {
            Keyring::decode(&bytes[..length]).expect_err("cut off");
        }
        let mut newer = bytes.clone();
        for half in [0, bytes.len() / 2] {
            newer[half + 8] = 2;
        }
        assert_eq!(Keyring::decode(&newer).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
