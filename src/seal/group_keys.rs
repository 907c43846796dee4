//! A group's keys, one a generation, and the sealers that come of them.
//!
//! New things are sealed under the newest generation; what is stored says which one it was sealed under. The group key
//! itself seals nothing: each incarnation, blob, side file and writer of the manifest has a key of its own, of a random id.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::sealer::{Nonce, Sealer, TAG_BYTES, Tag};
use super::secret::{SecretKey, SiteKey};
use super::site_keys::SiteKeys;
use super::witness::Witness;
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, Planted};

/// Which of a group's keys, from 1; stored as 0 where nothing is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a key is for; keys of one id for two purposes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Steps and snapshots of one writer.
    Manifest,
    /// One delta blob.
    Delta,
    /// One incarnation of a journal.
    Journal,
    /// One side file.
    Side,
    /// One summary of deltas.
    Summary,
}

impl Purpose {
    fn label(self) -> &'static str {
        match self {
            Purpose::Manifest => "afterimage 1 manifest",
            Purpose::Delta => "afterimage 1 delta",
            Purpose::Journal => "afterimage 1 journal",
            Purpose::Side => "afterimage 1 side file",
            Purpose::Summary => "afterimage 1 summary",
        }
    }
}

/// A sealer, and of which generation its key is.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// To be stated beside what is sealed.
    pub generation: Generation,
    /// What seals.
    pub sealer: Sealer,
}

/// A group key under the site key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// Which one.
    pub generation: Generation,
    /// Sealed.
    pub key: [u8; 32],
    /// Proves it, and what is bound to it.
    pub tag: Tag,
}

/// Length of a wrapped key's bytes and tag.
const _: () = assert!(size_of::<WrappedKey>() == 4 + 32 + TAG_BYTES);

/// The keys of a group; clones share them. None where the group is not sealed.
#[derive(Clone, Debug, Default)]
pub struct GroupKeys(Option<Arc<Ring>>);

struct Ring {
    generations: BTreeMap<Generation, SecretKey>,
    habits: Habits,
}

/// What a simulation wants of keys: a witness, and bugs. Empty in a shipped binary.
#[derive(Clone, Debug, Default)]
pub(super) struct Habits {
    pub(super) witness: Witness,
    pub(super) planted: Planted,
}

impl Ring {
    fn sealer(&self, key: &SecretKey, purpose: Purpose, id: u128) -> Sealer {
        let id = if self.habits.planted.is(Bug::KeysWithoutIds) { 0 } else { id };
        Sealer::new(&key.derive(purpose.label(), id), &self.habits)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.generations.keys()).finish()
    }
}

impl GroupKeys {
    /// Of a group that is not sealed.
    pub const NONE: GroupKeys = GroupKeys(None);

    /// A first generation, of two random numbers.
    pub fn drawn(random: [u128; 2], site: &SiteKeys) -> GroupKeys {
        let generations = BTreeMap::from([(Generation(1), SecretKey::drawn(random))]);
        GroupKeys(Some(Arc::new(Ring { generations, habits: site.habits() })))
    }

    /// These keys, and a newer one.
    ///
    /// # Panics
    /// If the group is not sealed.
    #[must_use]
    pub fn with_next(&self, random: [u128; 2]) -> GroupKeys {
        let Ring { generations, habits } = &**self.0.as_ref().expect("only a sealed group gets new keys");
        let newest = generations.keys().next_back().map_or(0, |newest| newest.0);
        let mut generations = if habits.planted.is(Bug::OldKeysForgotten) {
            let lost = generations.keys().map(|&generation| (generation, SecretKey::drawn(random)));
            lost.collect()
        } else {
            generations.clone()
        };
        generations.insert(Generation(newest + 1), SecretKey::drawn(random));
        GroupKeys(Some(Arc::new(Ring { generations, habits: habits.clone() })))
    }

    /// Whether the group is sealed.
    pub fn is_sealed(&self) -> bool {
        self.0.is_some()
    }

    /// The generation that seals new things.
    pub fn newest(&self) -> Option<Generation> {
        self.0.as_ref().and_then(|ring| ring.generations.keys().next_back().copied())
    }

    /// What seals a thing with a newly drawn id; nothing where the group is not sealed.
    pub fn sealing(&self, purpose: Purpose, id: u128) -> Option<Sealing> {
        let ring = self.0.as_ref()?;
        let is_late = ring.habits.planted.is(Bug::RetiredKeySeals) && purpose == Purpose::Journal;
        let chosen =
            if is_late { ring.generations.first_key_value() } else { ring.generations.last_key_value() };
        let (&generation, key) = chosen.expect("a ring has a key");
        Some(Sealing { generation, sealer: ring.sealer(key, purpose, id) })
    }

    /// What opens a thing that says that it was sealed under `generation`, 0 if it was not; nothing where that is right.
    ///
    /// # Errors
    /// `NoKey` where that key is not here; `Corrupt` for what is not sealed in a group that is.
    pub fn opener(&self, generation: u32, purpose: Purpose, id: u128) -> Result<Option<Sealer>> {
        let Some(ring) = &self.0 else {
            if generation == 0 {
                return Ok(None);
            }
            return Err(Error::new(ErrorKind::NoKey, "this is sealed, and the group has no keys"));
        };
        if generation == 0 {
            return Err(Error::corrupt("this is not sealed, and its group is"));
        }
        let key = ring.generations.get(&Generation(generation)).ok_or_else(|| {
            let text =
                format!("this is sealed under generation {generation} of the group key, which is missing");
            Error::new(ErrorKind::NoKey, text)
        })?;
        Ok(Some(ring.sealer(key, purpose, id)))
    }

    /// All of them under a site key; `id` is drawn for this wrapping, and `bound` tells whose keys these are.
    pub fn wrap(&self, site: &SiteKey, id: u128, bound: &[u8]) -> Vec<WrappedKey> {
        let Some(ring) = &self.0 else { return Vec::new() };
        let sealer = wrapper(site, id, &ring.habits);
        let wrap = |(&generation, secret): (&Generation, &SecretKey)| {
            let mut key = *secret.bytes();
            let tag = sealer.seal(wrapping_nonce(generation), bound, &mut key);
            WrappedKey { generation, key, tag }
        };
        ring.generations.iter().map(wrap).collect()
    }

    /// The keys that [`GroupKeys::wrap`] wrapped under `key`, one of the `site`'s; `None` where they, or what was bound, were
    /// changed since.
    pub fn unwrap(
        wrapped: &[WrappedKey],
        (site, key): (&SiteKeys, &SiteKey),
        id: u128,
        bound: &[u8],
    ) -> Option<GroupKeys> {
        let habits = site.habits();
        let sealer = wrapper(key, id, &habits);
        let mut generations = BTreeMap::new();
        for WrappedKey { generation, key, tag } in wrapped {
            let mut secret = SecretKey::new(*key);
            sealer.open(wrapping_nonce(*generation), bound, secret.bytes_mut(), tag).ok()?;
            generations.insert(*generation, secret);
        }
        let is_sound = !generations.is_empty() && generations.len() == wrapped.len();
        is_sound.then(|| GroupKeys(Some(Arc::new(Ring { generations, habits }))))
    }
}

fn wrapper(site: &SiteKey, id: u128, habits: &Habits) -> Sealer {
    Sealer::new(&site.key.derive("afterimage 1 group keys", id), habits)
}

fn wrapping_nonce(generation: Generation) -> Nonce {
    Nonce { counter: generation.0.into(), part: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> GroupKeys {
        GroupKeys::drawn([1, 2], &SiteKeys::default())
    }

    #[test]
    fn every_generation_opens_what_it_sealed_and_the_newest_seals() {
        let first = keys();
        let second = first.with_next([3, 4]);
        assert_eq!((first.newest(), second.newest()), (Some(Generation(1)), Some(Generation(2))));
        let nonce = Nonce { counter: 0, part: 0 };
        for ring in [&first, &second] {
            let sealing = ring.sealing(Purpose::Delta, 7).expect("sealed");
            let mut bytes = *b"bytes";
            let tag = sealing.sealer.seal(nonce, &[], &mut bytes);
            let opener = second.opener(sealing.generation.0, Purpose::Delta, 7).unwrap().expect("sealed");
            opener.open(nonce, &[], &mut bytes, &tag).expect("its own key");
            for (purpose, id) in [(Purpose::Journal, 7), (Purpose::Delta, 8)] {
                let other = second.opener(sealing.generation.0, purpose, id).unwrap().expect("sealed");
                assert_eq!(other.open(nonce, &[], &mut bytes.clone(), &tag), Err(super::super::Forged));
            }
        }
        assert_eq!(first.opener(2, Purpose::Delta, 7).unwrap_err().kind(), ErrorKind::NoKey);
    }

    #[test]
    fn plain_and_sealed_are_not_taken_for_each_other() {
        assert!(GroupKeys::NONE.sealing(Purpose::Manifest, 1).is_none());
        assert!(GroupKeys::NONE.opener(0, Purpose::Manifest, 1).unwrap().is_none());
        assert_eq!(GroupKeys::NONE.opener(1, Purpose::Manifest, 1).unwrap_err().kind(), ErrorKind::NoKey);
        assert_eq!(keys().opener(0, Purpose::Manifest, 1).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn wrapped_keys_open_under_their_site_key_and_binding_only() {
        let (site, other) = (SiteKey::drawn([5, 6]), SiteKey::drawn([5, 7]));
        let ring = keys().with_next([3, 4]);
        let wrapped = ring.wrap(&site, 11, b"group");
        let keys = SiteKeys::new(vec![site.clone(), other.clone()]);
        let unwrap = |wrapped: &[WrappedKey], site: &SiteKey, id, bound: &[u8]| {
            GroupKeys::unwrap(wrapped, (&keys, site), id, bound)
        };
        let again = unwrap(&wrapped, &site, 11, b"group").expect("as wrapped");
        assert_eq!(again.newest(), Some(Generation(2)));
        assert!(unwrap(&wrapped, &other, 11, b"group").is_none());
        assert!(unwrap(&wrapped, &site, 12, b"group").is_none());
        assert!(unwrap(&wrapped, &site, 11, b"other").is_none());
        assert!(unwrap(&[], &site, 11, b"group").is_none());
        let mut swapped = wrapped.clone();
        (swapped[0].key, swapped[1].key) = (wrapped[1].key, wrapped[0].key);
        assert!(unwrap(&swapped, &site, 11, b"group").is_none());
    }
}
