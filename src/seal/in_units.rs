//! Sealing of more than one unit: units of 64 KiB, each with a nonce and a tag of its own, the tags behind them all.
//!
//! ```text
//! +----------- unit 0 ----------+-- … --+-- last --+--------+-- … --+--------+
//! | 65,536 bytes                |       |          | tag 0  |       | tag n  |
//! +-----------------------------+-------+----------+--------+-- … --+--------+
//! ```
//!
//! What is bound must tell the whole length, so that no unit can be cut off the end. Nothing at all is one unit without
//! bytes: its tag still proves what is bound.

use super::sealer::{Forged, Nonce, Sealer, TAG_BYTES, Tag};

/// Bytes of a unit, but for the last one.
pub const UNIT_BYTES: usize = 64 << 10;

fn units(plain: usize) -> usize {
    plain.div_ceil(UNIT_BYTES).max(1)
}

/// Length of `plain` bytes when they are sealed.
pub fn sealed_len(plain: usize) -> usize {
    plain + units(plain) * TAG_BYTES
}

/// Length of what was sealed to `sealed` bytes; `None` if nothing is sealed to that length.
pub fn plain_len(sealed: usize) -> Option<usize> {
    let units = sealed.div_ceil(UNIT_BYTES + TAG_BYTES).max(1);
    let plain = sealed.checked_sub(units * TAG_BYTES)?;
    (sealed_len(plain) == sealed).then_some(plain)
}

fn nonce(counter: u64, unit: usize) -> Nonce {
    Nonce { counter, part: u32::try_from(unit).expect("2^32 units are 256 TiB") }
}

/// Seals the first `plain` of `bytes` in place and puts the tags behind them; `bytes` is exactly so long.
///
/// # Panics
/// If `bytes` is not [`sealed_len`] of `plain` long.
pub fn seal_units(sealer: &Sealer, counter: u64, bound: &[u8], bytes: &mut [u8], plain: usize) {
    assert_eq!(bytes.len(), sealed_len(plain), "the tags need their room");
    let (body, tags) = bytes.split_at_mut(plain);
    let mut rest = body;
    for (unit, tag) in tags.chunks_exact_mut(TAG_BYTES).enumerate() {
        let (now, later) = rest.split_at_mut(rest.len().min(UNIT_BYTES));
        tag.copy_from_slice(&sealer.seal(nonce(counter, unit), bound, now));
        rest = later;
    }
}

/// Opens what [`seal_units`] sealed, in place; gives the plain length, or the offset of the first unit that was changed.
pub fn open_units(
    sealer: &Sealer,
    counter: u64,
    bound: &[u8],
    bytes: &mut [u8],
) -> Result<usize, (u64, Forged)> {
    let plain = plain_len(bytes.len()).ok_or((0, Forged))?;
    let (body, tags) = bytes.split_at_mut(plain);
    let mut rest = body;
    for (unit, tag) in tags.chunks_exact(TAG_BYTES).enumerate() {
        let (now, later) = rest.split_at_mut(rest.len().min(UNIT_BYTES));
        let tag: &Tag = tag.try_into().expect("chunks of that length");
        let opened = sealer.open(nonce(counter, unit), bound, now, tag);
        opened.map_err(|forged| ((unit * UNIT_BYTES) as u64, forged))?;
        rest = later;
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::super::group_keys::Habits;
    use super::super::secret::SecretKey;
    use super::*;

    #[test]
    fn every_length_has_its_own_and_is_opened_again() {
        let sealer = Sealer::new(&SecretKey::new([3; 32]), &Habits::default());
        for plain in [0, 1, 511, UNIT_BYTES - 1, UNIT_BYTES, UNIT_BYTES + 1, 2 * UNIT_BYTES, 200_000] {
            let length = sealed_len(plain);
            assert_eq!(plain_len(length), Some(plain));
            let content: Vec<u8> =
                (0..plain).map(|index| u8::try_from(index % 251).expect("below 256")).collect();
            let mut bytes = [content.as_slice(), &vec![0; length - plain]].concat();
            seal_units(&sealer, 9, b"bound", &mut bytes, plain);
            assert!(plain < 32 || bytes[..plain] != content);
            for at in [0, plain / 2, plain, length - 1] {
                let mut other = bytes.clone();
                other[at] ^= 0x10;
                assert!(open_units(&sealer, 9, b"bound", &mut other).is_err(), "{at} of {length}");
            }
            assert!(open_units(&sealer, 8, b"bound", &mut bytes.clone()).is_err());
            assert_eq!(open_units(&sealer, 9, b"bound", &mut bytes), Ok(plain));
            assert_eq!(bytes[..plain], content);
        }
    }

    #[test]
    fn lengths_that_nothing_has_are_told() {
        for sealed in [0, 1, 15, UNIT_BYTES + TAG_BYTES + 1, UNIT_BYTES + 2 * TAG_BYTES] {
            assert_eq!(plain_len(sealed), None, "{sealed}");
        }
        assert_eq!(plain_len(16), Some(0));
        assert_eq!(plain_len(UNIT_BYTES + 33), Some(UNIT_BYTES + 1));
    }
}
