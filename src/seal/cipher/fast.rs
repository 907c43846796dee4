//! AES-256-GCM by aws-lc-rs.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::super::sealer::{Forged, TAG_BYTES, Tag};

/// A key, expanded.
pub struct Cipher(LessSafeKey);

impl Cipher {
    pub fn new(key: &[u8; 32]) -> Cipher {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes");
        Cipher(LessSafeKey::new(key))
    }

    /// Seals in place.
    pub fn seal(&self, nonce: [u8; 12], bound: &[u8], bytes: &mut [u8]) -> Tag {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(bound), bytes);
        let tag = tag.expect("a unit is shorter than what the cipher takes");
        tag.as_ref().try_into().expect("tags of 16 bytes")
    }

    /// Seals into bytes that are as many.
    pub fn seal_into(&self, nonce: [u8; 12], bound: &[u8], plain: &[u8], sealed: &mut [u8]) -> Tag {
        let (nonce, mut tag) = (Nonce::assume_unique_for_key(nonce), [0; TAG_BYTES]);
        self.0
            .seal_out_of_place_scatter(nonce, Aad::from(bound), plain, sealed, &[], &mut tag)
            .expect("a unit is shorter than what the cipher takes");
        tag
    }

    /// Opens in place.
    pub fn open(&self, nonce: [u8; 12], bound: &[u8], bytes: &mut [u8], tag: &Tag) -> Result<(), Forged> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = self.0.open_in_place_separate_tag(nonce, Aad::from(bound), tag, bytes);
        opened.map(|_| ()).map_err(|_| Forged)
    }
}
