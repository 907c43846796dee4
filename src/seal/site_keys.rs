//! The site keys that a process has: the one that wraps, and, while keys are being rotated, the other one.

use std::sync::Arc;

use super::group_keys::Habits;
use super::secret::{SiteKey, SiteKeyId};
use super::witness::Witness;
use crate::planted::Planted;

/// Site keys; clones share them.
#[derive(Clone, Debug, Default)]
pub struct SiteKeys {
    /// The first one wraps; all unwrap.
    keys: Arc<[SiteKey]>,
    witness: Witness,
    planted: Planted,
}

impl SiteKeys {
    /// These keys, of which the first wraps.
    pub fn new(keys: Vec<SiteKey>) -> SiteKeys {
        SiteKeys { keys: keys.into(), witness: Witness::default(), planted: Planted::NONE }
    }

    /// The same, for a simulation.
    #[must_use]
    pub fn watched_by(self, witness: Witness) -> SiteKeys {
        SiteKeys { witness, ..self }
    }

    /// The same with a bug: for the simulator.
    #[must_use]
    pub fn with_planted(self, planted: Planted) -> SiteKeys {
        SiteKeys { planted, ..self }
    }

    /// The key that wraps, if there is one.
    pub fn current(&self) -> Option<&SiteKey> {
        self.keys.first()
    }

    /// All of them, the one that wraps first.
    pub fn all(&self) -> &[SiteKey] {
        &self.keys
    }

    /// The key with that name, if it is here.
    pub fn find(&self, id: SiteKeyId) -> Option<&SiteKey> {
        self.keys.iter().find(|key| key.id() == id)
    }

    /// What all keys of this process have from it.
    pub(super) fn habits(&self) -> Habits {
        Habits { witness: self.witness.clone(), planted: self.planted }
    }
}
