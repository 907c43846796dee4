//! The AEAD itself, AES-256-GCM with nonces of 12 bytes and detached tags: bytes in, bytes out, no rule of ours.
//!
//! Two libraries make the same bytes. The gateway has aws-lc-rs, three to four times as fast; what builds without the
//! feature `server` (fuzzers, simulator, loom) has aes-gcm, which is Rust alone. Both choose what the processor can at run
//! time. `docs/adr/0007-two-libraries-for-one-cipher.md` has the figures.

#[cfg(feature = "server")]
mod fast;
#[cfg(any(test, not(feature = "server")))]
mod portable;

#[cfg(feature = "server")]
pub(super) use fast::Cipher;
#[cfg(not(feature = "server"))]
pub(super) use portable::Cipher;

#[cfg(all(test, feature = "server"))]
mod tests {
    use proptest::prelude::*;

    use super::super::sealer::Forged;
    use super::{fast, portable};

    proptest! {
        #[test]
        fn both_libraries_make_and_open_the_same_bytes(
            key in any::<[u8; 32]>(),
            nonce in any::<[u8; 12]>(),
            bound in prop::collection::vec(any::<u8>(), 0..100),
            plain in prop::collection::vec(any::<u8>(), 0..70_000),
            at in any::<prop::sample::Index>(),
        ) {
            let (fast, portable) = (fast::Cipher::new(&key), portable::Cipher::new(&key));
            let mut sealed = plain.clone();
            let tag = fast.seal(nonce, &bound, &mut sealed);
            let mut apart = vec![0; plain.len()];
            prop_assert_eq!(fast.seal_into(nonce, &bound, &plain, &mut apart), tag);
            prop_assert_eq!(&apart, &sealed);
            let mut other = plain.clone();
            prop_assert_eq!(portable.seal(nonce, &bound, &mut other), tag);
            prop_assert_eq!(&other, &sealed);
            prop_assert_eq!(portable.seal_into(nonce, &bound, &plain, &mut apart), tag);
            prop_assert_eq!(&apart, &sealed);

            prop_assert_eq!(fast.open(nonce, &bound, &mut other, &tag), Ok(()));
            prop_assert_eq!(&other, &plain);
            prop_assert_eq!(portable.open(nonce, &bound, &mut apart, &tag), Ok(()));
            prop_assert_eq!(&apart, &plain);
            if !plain.is_empty() {
                let at = at.index(sealed.len());
                sealed[at] ^= 4;
                prop_assert_eq!(fast.open(nonce, &bound, &mut sealed.clone(), &tag), Err(Forged));
                prop_assert_eq!(portable.open(nonce, &bound, &mut sealed, &tag), Err(Forged));
            }
        }
    }
}
