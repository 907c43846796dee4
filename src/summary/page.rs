//! What proves a page: a tag in a sealed group, else a sum. Either knows the page's number and the summary's id, so that no
//! page passes for another.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::error::{Error, Result};
use crate::format::summary::{BODY_BYTES, PAGE_BYTES};
use crate::seal::{Nonce, Sealer, TAG_BYTES, Tag};
use crate::units::SummaryId;

const _: () = assert!(PAGE_BYTES - BODY_BYTES == TAG_BYTES && TAG_BYTES == size_of::<u128>());

/// Pages have their numbers as nonces; that of the root lies above them all.
pub(super) const ROOT_COUNTER: u64 = 1 << 63;

fn nonce(page: u64) -> Nonce {
    Nonce { counter: page, part: 0 }
}

fn sum(body: &[u8], id: SummaryId, page: u64) -> u128 {
    // Half of a random id is as good as the whole one against accidents.
    #[allow(clippy::cast_possible_truncation)]
    let seed = (id.0 as u64).wrapping_add(page);
    xxh3_128_with_seed(body, seed)
}

/// Puts what proves a page behind its body, which it seals.
pub(super) fn close(bytes: &mut [u8], id: SummaryId, page: u64, sealer: Option<&Sealer>) {
    let (body, proof) = bytes.split_at_mut(BODY_BYTES);
    match sealer {
        Some(sealer) => proof.copy_from_slice(&sealer.seal(nonce(page), &[], body)),
        None => proof.copy_from_slice(&sum(body, id, page).to_le_bytes()),
    }
}

/// The body of a page that [`close`] closed.
pub(super) fn open<'a>(
    bytes: &'a mut [u8],
    id: SummaryId,
    page: u64,
    sealer: Option<&Sealer>,
) -> Result<&'a [u8]> {
    let (body, proof) = bytes.split_at_mut(BODY_BYTES);
    let is_sound = match sealer {
        Some(sealer) => {
            let tag: &Tag = (&*proof).try_into().expect("a page has room for a tag");
            sealer.open(nonce(page), &[], body, tag).is_ok()
        }
        None => *proof == sum(body, id, page).to_le_bytes(),
    };
    match is_sound {
        true => Ok(body),
        false => Err(Error::corrupt("a page of the summary is not what was written")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{GroupKeys, Purpose, SiteKeys};

    #[test]
    fn a_page_is_itself_in_its_place_only() {
        let keys = GroupKeys::drawn([1, 2], &SiteKeys::default());
        let sealing = keys.sealing(Purpose::Summary, 7).expect("sealed");
        for sealer in [None, Some(&sealing.sealer)] {
            let mut page = vec![0; PAGE_BYTES];
            page[..5].copy_from_slice(b"hello");
            close(&mut page, SummaryId(7), 3, sealer);
            assert_eq!(&open(&mut page.clone(), SummaryId(7), 3, sealer).expect("as closed")[..5], b"hello");
            assert!(open(&mut page.clone(), SummaryId(7), 4, sealer).is_err());
            for bit in [0, 8 * 100, 8 * BODY_BYTES, 8 * PAGE_BYTES - 1] {
                let mut other = page.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(open(&mut other, SummaryId(7), 3, sealer).is_err(), "bit {bit}");
            }
        }
        let mut page = vec![0; PAGE_BYTES];
        close(&mut page, SummaryId(7), 3, None);
        assert!(open(&mut page, SummaryId(8), 3, None).is_err());
    }
}
