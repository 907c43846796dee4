//! One key, ready to seal and to open: AES-256-GCM with detached tags of 16 bytes.
//!
//! Invariant: whoever seals gives each [`Nonce`] once for this key; the simulator's [`Witness`](super::Witness) looks.

use std::fmt;
use std::sync::Arc;

use super::cipher::Cipher;
use super::group_keys::Habits;
use super::secret::SecretKey;
use super::witness::KeyWitness;

/// Length of a tag.
pub const TAG_BYTES: usize = 16;

/// What proves that sealed bytes, and what was bound to them, are as they were sealed.
pub type Tag = [u8; TAG_BYTES];

/// A number that seals once under a key: 64 bits of a counter or place, 32 bits of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nonce {
    /// Which thing.
    pub counter: u64,
    /// Which part of it.
    pub part: u32,
}

impl Nonce {
    /// The 12 bytes that the cipher takes: counter, then part, little-endian.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.counter.to_le_bytes());
        bytes[8..].copy_from_slice(&self.part.to_le_bytes());
        bytes
    }
}

/// Sealed bytes, or what was bound to them, are not what was sealed under this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forged;

/// A key that is ready for use.
#[derive(Clone)]
pub struct Sealer {
    cipher: Arc<Cipher>,
    witness: KeyWitness,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    pub(super) fn new(key: &SecretKey, habits: &Habits) -> Sealer {
        let witness = habits.witness.of_key(key.bytes());
        Sealer { cipher: Arc::new(Cipher::new(key.bytes())), witness }
    }

    /// Seals bytes in place, with `bound` bound to them.
    ///
    /// # Panics
    /// If there are more than 64 GiB of them; nothing here seals more than a unit.
    #[must_use]
    pub fn seal(&self, nonce: Nonce, bound: &[u8], bytes: &mut [u8]) -> Tag {
        self.witness.saw(nonce);
        self.cipher.seal(nonce.to_bytes(), bound, bytes)
    }

    /// Seals `plain` into `sealed`, which is as long.
    ///
    /// # Panics
    /// As [`Sealer::seal`], and if it is not as long.
    #[must_use]
    pub fn seal_into(&self, nonce: Nonce, bound: &[u8], plain: &[u8], sealed: &mut [u8]) -> Tag {
        assert_eq!(plain.len(), sealed.len(), "sealed bytes are as long as plain ones");
        self.witness.saw(nonce);
        self.cipher.seal_into(nonce.to_bytes(), bound, plain, sealed)
    }

    /// Opens sealed bytes in place; on a fault they are of no use.
    pub fn open(&self, nonce: Nonce, bound: &[u8], bytes: &mut [u8], tag: &Tag) -> Result<(), Forged> {
        self.cipher.open(nonce.to_bytes(), bound, bytes, tag)
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::tests::hex;
    use super::*;

    fn sealer(key: &str) -> Sealer {
        let key = hex(key).try_into().expect("32 bytes");
        Sealer::new(&SecretKey::new(key), &Habits::default())
    }

    fn nonce(bytes: &[u8]) -> Nonce {
        let (counter, part) = bytes.split_at(8);
        Nonce {
            counter: u64::from_le_bytes(counter.try_into().expect("8 bytes")),
            part: u32::from_le_bytes(part.try_into().expect("4 bytes")),
        }
    }

    /// McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 13 to 16; NIST has them too (CAVP, gcmEncrypt256).
    #[test]
    fn the_published_vectors_hold() {
        let key = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
        let plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
                     1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255";
        let sealed = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
                      8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad";
        let zeros = "00".repeat(32);
        for (key, iv, plain, bound, sealed, tag) in [
            (zeros.as_str(), "00".repeat(12), "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
            (
                zeros.as_str(),
                "00".repeat(12),
                "00000000000000000000000000000000",
                "",
                "cea7403d4d606b6e074ec5d3baf39d18",
                "d0d1c8a799996bf0265b98b5d48ab919",
            ),
            (key, "cafebabefacedbaddecaf888".into(), plain, "", sealed, "b094dac5d93471bdec1a502270e3cc6c"),
            (
                key,
                "cafebabefacedbaddecaf888".into(),
                &plain[..120],
                "feedfacedeadbeeffeedfacedeadbeefabaddad2",
                &sealed[..120],
                "76fc6ece0f4e1768cddf8853bb2d551b",
            ),
        ] {
            let (sealer, nonce, bound) = (sealer(key), nonce(&hex(&iv)), hex(bound));
            let mut bytes = hex(plain);
            let found = sealer.seal(nonce, &bound, &mut bytes);
            assert_eq!((bytes.as_slice(), found.as_slice()), (hex(sealed).as_slice(), hex(tag).as_slice()));
            let mut apart = vec![0; bytes.len()];
            assert_eq!(sealer.seal_into(nonce, &bound, &hex(plain), &mut apart), found);
            assert_eq!(apart, bytes);
            sealer.open(nonce, &bound, &mut bytes, &found).expect("as it was sealed");
            assert_eq!(bytes, hex(plain));
        }
    }

    #[test]
    fn a_bit_changed_anywhere_is_seen() {
        let sealer = sealer(&"5a".repeat(32));
        let nonce = Nonce { counter: 7, part: 1 };
        let mut sealed = *b"what a guest wrote";
        let tag = sealer.seal(nonce, b"where", &mut sealed);
        let opens = |nonce, bound: &[u8], mut bytes: [u8; 18], tag| {
            sealer.open(nonce, bound, &mut bytes, &tag).map(|()| bytes)
        };
        assert_eq!(opens(nonce, b"where", sealed, tag), Ok(*b"what a guest wrote"));
        assert_eq!(opens(Nonce { part: 2, ..nonce }, b"where", sealed, tag), Err(Forged));
        assert_eq!(opens(Nonce { counter: 8, ..nonce }, b"where", sealed, tag), Err(Forged));
        assert_eq!(opens(nonce, b"there", sealed, tag), Err(Forged));
        for bit in 0..sealed.len() * 8 {
            let mut other = sealed;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opens(nonce, b"where", other, tag), Err(Forged));
        }
        for bit in 0..tag.len() * 8 {
            let mut other = tag;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opens(nonce, b"where", sealed, other), Err(Forged));
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        assert_eq!(format!("{:?}", sealer(&"5a".repeat(32))), "Sealer(…)");
    }
}
