//! The keys of a vault's group: numbered rings beside its manifest, of which the newest counts.
//!
//! A ring is immutable. When site or group keys are rotated a new one is put, and then the older ones go. So whatever a
//! crash leaves can be opened by a process that has both site keys. With the vault and an exported site key everything
//! that the vault holds can be read.

use std::rc::Rc;

use super::files::{self, Put, PutError, read_whole};
use super::layout::{Layout, parse_keyring_name};
use crate::error::{Error, ErrorKind, Result};
use crate::format::keyring::{FILE_BYTES_MAX, Header, Keyring};
use crate::planted::Planted;
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, SiteKeyId, SiteKeys};
use crate::units::GroupId;

/// What a vault's newest ring says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The site key that wraps its keys.
    pub site_key: SiteKeyId,
    /// How many keys the group had so far.
    pub generations: u32,
}

/// The numbers of the rings, ascending.
async fn numbers(runtime: &Rc<Runtime>, layout: &Layout) -> Result<Vec<u64>> {
    let names = match runtime.list(layout.keys()).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        names => names?,
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_keyring_name(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The newest ring, if the group is sealed.
async fn newest(runtime: &Rc<Runtime>, layout: &Layout) -> Result<Option<Keyring>> {
    let Some(&number) = numbers(runtime, layout).await?.last() else { return Ok(None) };
    let path = layout.keyring(number);
    let bytes = read_whole(runtime, &path, FILE_BYTES_MAX).await?;
    let ring = Keyring::decode(&bytes).map_err(|error| error.at_path(&path))?;
    if ring.header.number != number {
        let text = format!("the file holds keyring {}, its name says {number}", ring.header.number);
        return Err(Error::corrupt(text).at_path(&path).at_offset(16));
    }
    if !Keyring::is_whole(&bytes) {
        tracing::error!(path = %path.display(), "one of the two copies of the keyring is damaged: 'key rotate' mends it");
    }
    Ok(Some(ring))
}

/// Looks whether the newest ring is whole, both copies of it. Needs no key.
pub(super) async fn check(runtime: &Rc<Runtime>, layout: &Layout) -> Result<()> {
    let Some(&number) = numbers(runtime, layout).await?.last() else { return Ok(()) };
    let path = layout.keyring(number);
    let bytes = read_whole(runtime, &path, FILE_BYTES_MAX).await?;
    if Keyring::is_whole(&bytes) {
        return Ok(());
    }
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let same = first.iter().zip(second).take_while(|(one, other)| one == other).count();
    let text = "the two copies in the keyring differ: 'key rotate' writes it anew";
    Err(Error::corrupt(text).at_path(&path).at_offset(same as u64))
}

/// What the newest ring says, if the group is sealed. Needs no key.
pub async fn describe(runtime: &Rc<Runtime>, layout: &Layout) -> Result<Option<Wrapped>> {
    let ring = newest(runtime, layout).await?;
    Ok(ring.map(|ring| Wrapped {
        site_key: ring.header.site_key,
        generations: ring.keys.last().map_or(0, |key| key.generation.0),
    }))
}

/// The keys of a group; none if it is not sealed.
///
/// # Errors
/// `NoKey` where the site key is not among `site`.
pub(super) async fn open(runtime: &Rc<Runtime>, layout: &Layout, site: &SiteKeys) -> Result<GroupKeys> {
    let Some(ring) = newest(runtime, layout).await? else { return Ok(GroupKeys::NONE) };
    let keys = unwrap(&ring, layout, site)?;
    // A dead process may have published it without living to sync its name. What is sealed under its newest key would be lost with that.
    runtime.sync_directory(layout.keys()).await?;
    Ok(keys)
}

fn unwrap(ring: &Keyring, layout: &Layout, site: &SiteKeys) -> Result<GroupKeys> {
    let Header { number, site_key: id, wrapping, .. } = ring.header;
    let path = layout.keyring(number);
    let site_key = site.find(id).ok_or_else(|| {
        let text = match site.current() {
            Some(current) => {
                format!("the group is sealed under site key {id}, and the key here is {}", current.id())
            }
            None => format!("the group is sealed under site key {id}, and no site key is here"),
        };
        Error::new(ErrorKind::NoKey, text).at_path(&path)
    })?;
    let bound = ring.header.bound(ring.keys.len());
    let keys = GroupKeys::unwrap(&ring.keys, (site, site_key), wrapping, &bound);
    keys.ok_or_else(|| Error::corrupt("the keyring's seal does not fit: it was changed").at_path(&path))
}

/// The keys of a group that is about to be created: a ring that an earlier try left, or a new one.
pub(super) async fn create(
    runtime: &Rc<Runtime>,
    layout: &Layout,
    group: GroupId,
    site: &SiteKeys,
) -> Result<GroupKeys> {
    if let Some(ring) = newest(runtime, layout).await? {
        runtime.sync_directory(layout.keys()).await?;
        return unwrap(&ring, layout, site);
    }
    let random = [runtime.random_u128(), runtime.random_u128()];
    let keys = GroupKeys::drawn(random, site);
    put(runtime, layout, group, 1, &keys, site).await?;
    Ok(keys)
}

/// Puts a ring of these keys under the current site key; durable when this returns.
async fn put(
    runtime: &Rc<Runtime>,
    layout: &Layout,
    group: GroupId,
    number: u64,
    keys: &GroupKeys,
    site: &SiteKeys,
) -> Result<()> {
    let site_key = site
        .current()
        .ok_or_else(|| Error::new(ErrorKind::NoKey, "there is no site key to seal the group's keys with"))?;
    let (created, wrapping) = (runtime.wall(), runtime.random_u128());
    let header = Header { number, created, group, site_key: site_key.id(), wrapping };
    let count = keys.newest().map_or(0, |newest| newest.0) as usize;
    let ring = Keyring { header, keys: keys.wrap(site_key, wrapping, &header.bound(count)) };
    assert_eq!(ring.keys.len(), count, "generations have no gaps");
    let path = layout.keyring(number);
    match files::put(runtime, &path, &ring.encode(), Planted::NONE).await {
        Ok(Put::Ours) => Ok(()),
        Ok(Put::Theirs) => {
            let text = "somebody else put a keyring meanwhile: try again";
            Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&path))
        }
        Err(PutError::Absent(error) | PutError::Unknown(error)) => Err(error.at_path(&path)),
    }
}

/// Wraps a group's keys anew under the current site key, with a new generation if that is asked for, and removes the rings
/// before. Resumable; whether the group is sealed at all. A vault that is open goes on with the keys that it has.
pub async fn rewrap(
    runtime: &Rc<Runtime>,
    layout: &Layout,
    site: &SiteKeys,
    adds_generation: bool,
) -> Result<bool> {
    let Some(ring) = newest(runtime, layout).await? else { return Ok(false) };
    let mut keys = unwrap(&ring, layout, site)?;
    if adds_generation {
        keys = keys.with_next([runtime.random_u128(), runtime.random_u128()]);
    }
    let number = ring.header.number + 1;
    put(runtime, layout, ring.header.group, number, &keys, site).await?;
    for older in numbers(runtime, layout).await?.into_iter().filter(|&older| older < number) {
        runtime.remove(layout.keyring(older)).await?;
    }
    runtime.sync_directory(layout.keys()).await?;
    Ok(true)
}
