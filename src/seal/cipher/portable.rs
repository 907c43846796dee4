//! AES-256-GCM by aes-gcm.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};

use super::super::sealer::{Forged, Tag};

/// A key, expanded.
pub struct Cipher(Aes256Gcm);

impl Cipher {
    pub fn new(key: &[u8; 32]) -> Cipher {
        Cipher(Aes256Gcm::new(key.into()))
    }

    /// Seals in place.
    pub fn seal(&self, nonce: [u8; 12], bound: &[u8], bytes: &mut [u8]) -> Tag {
        self.seal_buffer(nonce, bound, bytes.into())
    }

    /// Seals into bytes that are as many.
    pub fn seal_into(&self, nonce: [u8; 12], bound: &[u8], plain: &[u8], sealed: &mut [u8]) -> Tag {
        let buffer = InOutBuf::new(plain, sealed).expect("sealed bytes are as long as plain ones");
        self.seal_buffer(nonce, bound, buffer)
    }

    fn seal_buffer(&self, nonce: [u8; 12], bound: &[u8], buffer: InOutBuf<'_, '_, u8>) -> Tag {
        let tag = self.0.encrypt_inout_detached(&nonce.into(), bound, buffer);
        tag.expect("a unit is shorter than what the cipher takes").into()
    }

    /// Opens in place.
    pub fn open(&self, nonce: [u8; 12], bound: &[u8], bytes: &mut [u8], tag: &Tag) -> Result<(), Forged> {
        let opened = self.0.decrypt_inout_detached(&nonce.into(), bound, bytes.into(), &(*tag).into());
        opened.map_err(|_| Forged)
    }
}
