//! The simulator's eye on the seam: every (key, nonce) pair that seals, and whether one comes twice. Keys come from ids,
//! so it is shared by everything that ever runs in one simulation, also by two copies of one data directory.
//!
//! Without the `sim` feature it is empty and looks at nothing.

use super::sealer::Nonce;

#[cfg(feature = "sim")]
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

/// What was seen of the pairs of one simulation.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    #[cfg(feature = "sim")]
    seen: Option<Arc<Mutex<Seen>>>,
}

#[cfg(feature = "sim")]
#[derive(Debug, Default)]
struct Seen {
    pairs: HashSet<(u128, Nonce)>,
    repeated: Option<Nonce>,
}

impl Witness {
    /// A witness that looks.
    #[cfg(feature = "sim")]
    pub fn watching() -> Witness {
        Witness { seen: Some(Arc::default()) }
    }

    /// How many pairs there were, and the first that came twice.
    #[cfg(feature = "sim")]
    pub fn testimony(&self) -> (u64, Option<Nonce>) {
        let Some(seen) = &self.seen else { return (0, None) };
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.pairs.len() as u64, seen.repeated)
    }

    /// The same, for what one key seals.
    #[cfg_attr(not(feature = "sim"), allow(unused_variables, clippy::unused_self))]
    pub(super) fn of_key(&self, key: &[u8; 32]) -> KeyWitness {
        KeyWitness {
            #[cfg(feature = "sim")]
            witness: self.clone(),
            #[cfg(feature = "sim")]
            key: u128::from_le_bytes(key[..16].try_into().expect("16 of 32 bytes")),
        }
    }
}

/// A witness of one key.
#[derive(Clone)]
pub(super) struct KeyWitness {
    #[cfg(feature = "sim")]
    witness: Witness,
    #[cfg(feature = "sim")]
    key: u128,
}

impl KeyWitness {
    /// A nonce seals now.
    #[cfg(feature = "sim")]
    pub(super) fn saw(&self, nonce: Nonce) {
        let Some(seen) = &self.witness.seen else { return };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.pairs.insert((self.key, nonce)) {
            seen.repeated.get_or_insert(nonce);
        }
    }

    /// A nonce seals now.
    #[cfg(not(feature = "sim"))]
    #[allow(clippy::unused_self)]
    pub(super) fn saw(&self, _nonce: Nonce) {}
}
