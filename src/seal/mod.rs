//! Sealing: the one AEAD seam (AES-256-GCM, keys by HKDF-SHA256), and the keys that stand above it. `docs/sealing.md` says
//! what it protects from, and from what not.
//!
//! ```text
//!  site key ──wraps──▶ group key, generation n ──HKDF, random id──▶ key of one incarnation, blob, writer: nonces count
//! ```
//!
//! Pure: no I/O, no clock, no randomness of its own. Invariants: a (key, nonce) pair seals once, for keys are of ids that
//! are drawn anew and nonces are places or counters under them; no key is ever shown, and memory that held one is
//! cleared. A group without keys seals nothing, and pays nothing.

mod cipher;
mod group_keys;
mod in_units;
mod sealer;
mod secret;
mod site_keys;
mod witness;

pub use group_keys::{Generation, GroupKeys, Purpose, Sealing, WrappedKey};
pub use in_units::{UNIT_BYTES, open_units, plain_len, seal_units, sealed_len};
pub use sealer::{Forged, Nonce, Sealer, TAG_BYTES, Tag};
pub use secret::{SiteKey, SiteKeyId};
pub use site_keys::SiteKeys;
pub use witness::Witness;
