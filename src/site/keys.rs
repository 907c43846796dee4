//! The gateway's site key: found at the start, or made where nothing is sealed yet; shown, rotated, exported, imported.
//!
//! Rotation: the new key is written beside the old one, every group's keys are wrapped anew, and only then it takes the old
//! one's place. Whatever a crash leaves, both keys are there, and the next start goes on. A key that another takes the
//! place of by import stays in a file of its own: no verb destroys a key that something may be sealed under.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::gateway::Inner;
use super::group_table::{Entry, OpeningFailure};
use super::opening::ids;
use crate::control::model::{GroupSeal, KeyImport, KeyRotation, KeyText, Keys};
use crate::data_directory::{self, DataDirectory};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::key_file;
use crate::runtime::Runtime;
use crate::seal::{SiteKey, SiteKeyId, SiteKeys};
use crate::units::GroupId;
use crate::vault::{self, Layout, Wrapped};

/// The site keys of a gateway, and where they are kept.
pub struct KeyStore {
    path: PathBuf,
    /// The one directory that is made where it is missing; any other may be a volume that is not mounted.
    own_directory: PathBuf,
    /// Held while files are changed or read: they and this say the same.
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    keys: SiteKeys,
    /// Whether a rotation was cut off: the first of the keys waits for the others' place.
    is_rotating: bool,
}

impl KeyStore {
    /// Reads the key that is kept at `path`. A new one is made where no group is there that might need another.
    ///
    /// # Errors
    /// `Invalid` where the file holds no key, or others may read it.
    pub fn open(path: &Path, directory: &DataDirectory, environment: &dyn Environment) -> Result<KeyStore> {
        for place in [path.to_owned(), key_file::next(path)] {
            key_file::remove_partial(&place).map_err(|error| {
                Error::io("removing what a crash left of a site key", error).at_path(&place)
            })?;
        }
        let own_directory = data_directory::keys(directory.path());
        let store = KeyStore { path: path.to_owned(), own_directory, held: Mutex::default() };
        if store.look_again()?.current().is_some() {
            return Ok(store);
        }
        if ids([&directory.vault(), &directory.groups()])?.is_empty() {
            let key = SiteKey::drawn([environment.random_u128(), environment.random_u128()]);
            store.make_own_directory()?;
            key_file::create(path, &key)?;
            tracing::info!(id = %key.id(), path = %path.display(), "a site key was made: 'key export' it to a safe place");
            store.held.lock().keys = SiteKeys::new(vec![key]);
        } else {
            tracing::error!(path = %path.display(), "the site key is missing: sealed groups cannot be opened until 'key import'");
        }
        Ok(store)
    }

    /// The keys, for opening and creating groups.
    pub fn site_keys(&self) -> SiteKeys {
        self.held.lock().keys.clone()
    }

    /// Takes what lies in the files now, as a start would; gives the keys that are in use then. Keys that lie there no more
    /// stay in use, and are kept in files of their own where others took their place.
    ///
    /// # Errors
    /// `Invalid`, and nothing has changed, where a file holds no key, or others may read it.
    fn look_again(&self) -> Result<SiteKeys> {
        let mut held = self.held.lock();
        let next = key_file::read(&key_file::next(&self.path))?;
        let is_rotating = next.is_some();
        let mut keys: Vec<SiteKey> = next.into_iter().chain(key_file::read(&self.path)?).collect();
        if keys.is_empty() {
            return Ok(held.keys.clone());
        }
        let gone = |key: &&SiteKey| keys.iter().all(|found| found.id() != key.id());
        let gone: Vec<SiteKey> = held.keys.all().iter().filter(gone).cloned().collect();
        for key in &gone {
            key_file::keep(&self.path, key)?;
        }
        keys.extend(gone);
        if keys.iter().map(SiteKey::id).ne(held.keys.all().iter().map(SiteKey::id)) {
            tracing::info!(id = %keys[0].id(), path = %self.path.display(), "the site key was read from its file");
            held.keys = SiteKeys::new(keys);
        }
        held.is_rotating = is_rotating;
        Ok(held.keys.clone())
    }

    /// The key that wraps. Where there is none, its file is looked at again: it may have been put back.
    pub(super) fn current(&self) -> Result<SiteKey> {
        let held = self.site_keys().current().cloned();
        let current = match held {
            Some(key) => Some(key),
            None => self.look_again()?.current().cloned(),
        };
        current.ok_or_else(|| {
            let text =
                "there is no site key here: 'key import' the one that was exported, or put its file back";
            Error::new(ErrorKind::NoKey, text).at_path(&self.path)
        })
    }

    fn is_rotating(&self) -> bool {
        self.held.lock().is_rotating
    }

    fn make_own_directory(&self) -> Result<()> {
        if self.path.parent() != Some(&self.own_directory) || self.own_directory.is_dir() {
            return Ok(());
        }
        let made = fs::DirBuilder::new().mode(0o700).create(&self.own_directory);
        let above = self.own_directory.parent().unwrap_or(Path::new("/"));
        let made = made.and_then(|()| key_file::sync_directory(above));
        made.map_err(|error| Error::io("making the keys' directory", error).at_path(&self.own_directory))
    }

    /// Writes a new key beside the present one, unless one waits there; from now on it wraps.
    fn begin_rotation(&self, environment: &dyn Environment, new_group_keys: bool) -> Result<()> {
        // Without one there is nothing to rotate.
        self.current()?;
        let mut held = self.held.lock();
        if held.is_rotating {
            return Ok(());
        }
        let key = SiteKey::drawn([environment.random_u128(), environment.random_u128()]);
        self.make_own_directory()?;
        // Before there is a rotation that a crash may cut off: another one may have left it.
        key_file::note_new_group_keys(&self.path, new_group_keys)?;
        key_file::create(&key_file::next(&self.path), &key)?;
        let keys = std::iter::once(key).chain(held.keys.all().iter().cloned()).collect();
        *held = Held { keys: SiteKeys::new(keys), is_rotating: true };
        Ok(())
    }

    /// Whether the rotation under way gives each group a new key, too.
    fn makes_group_keys(&self) -> bool {
        key_file::new_group_keys(&self.path).exists()
    }

    /// The new key takes the old one's place: nothing is wrapped under that any more.
    fn finish_rotation(&self) -> Result<()> {
        let mut held = self.held.lock();
        key_file::rename(&key_file::next(&self.path), &self.path)?;
        let current = held.keys.current().cloned();
        *held = Held { keys: SiteKeys::new(current.into_iter().collect()), is_rotating: false };
        key_file::note_new_group_keys(&self.path, false)
    }

    fn import(&self, key: SiteKey, replaces: bool) -> Result<()> {
        let mut held = self.held.lock();
        if held.is_rotating {
            let text = "the site key is being rotated: 'key rotate' brings that to its end first";
            return Err(Error::new(ErrorKind::Latched, text));
        }
        let lying = Lying::at(&self.path, key.id());
        let replaced: Vec<SiteKey> =
            held.keys.all().iter().filter(|other| other.id() != key.id()).cloned().collect();
        if !replaces {
            self.refuse_to_replace(&lying, held.keys.current().filter(|current| current.id() != key.id()))?;
        }
        // In this order, so that each key that was here is in a file whatever a crash leaves.
        if let Lying::Other { id, .. } = lying
            && !id.is_some_and(|id| key_file::is_kept(&self.path, id))
        {
            key_file::keep_aside(&self.path, id)?;
        }
        for other in &replaced {
            key_file::keep(&self.path, other)?;
        }
        match lying {
            Lying::TheSame => {}
            Lying::Nothing => {
                self.make_own_directory()?;
                key_file::create(&self.path, &key)?;
            }
            Lying::Other { .. } => key_file::replace(&self.path, &key)?,
        }
        tracing::warn!(id = %key.id(), "a site key was imported");
        held.keys = SiteKeys::new(vec![key]);
        Ok(())
    }

    /// What stands in the way of a key that must take nothing's place, if anything does.
    fn refuse_to_replace(&self, lying: &Lying, held: Option<&SiteKey>) -> Result<()> {
        let (what, id) = match (held, lying) {
            (Some(held), _) => {
                let id = held.id();
                let text = format!(
                    "there is a site key already, {id}; groups that it seals cannot be opened without it"
                );
                (text, Some(id))
            }
            (None, Lying::Other { id, what }) => {
                (format!("in the site key's place lies something else: {what}"), *id)
            }
            (None, Lying::Nothing | Lying::TheSame) => return Ok(()),
        };
        let kept = key_file::name_aside(&self.path, id);
        let text = format!("{what}; it would be kept as {}", kept.display());
        Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&self.path))
    }
}

/// What lies where a key is to be put.
enum Lying {
    Nothing,
    /// The very key.
    TheSame,
    /// Another key, or what is none.
    Other {
        id: Option<SiteKeyId>,
        what: String,
    },
}

impl Lying {
    fn at(path: &Path, wanted: SiteKeyId) -> Lying {
        match key_file::look(path) {
            Ok(None) => Lying::Nothing,
            Ok(Some(key)) if key.id() == wanted => Lying::TheSame,
            Ok(Some(key)) => Lying::Other { id: Some(key.id()), what: format!("site key {}", key.id()) },
            Err(unusable) => Lying::Other { id: unusable.id, what: unusable.problem },
        }
    }
}

impl Inner {
    /// What there is of keys, and what the groups need.
    pub(super) async fn keys(&self) -> Result<Keys> {
        let site = self.keys.site_keys();
        let mut groups = Vec::new();
        for (name, entry) in self.groups_now() {
            let wrapped = self.with_rings(entry.id, |runtime, layout| async move {
                vault::describe_keys(&runtime, &layout).await
            });
            let wrapped: Option<Wrapped> = wrapped.await?;
            groups.push(GroupSeal {
                group: name,
                site_key: wrapped.map(|wrapped| wrapped.site_key.to_string()),
                generations: wrapped.map_or(0, |wrapped| wrapped.generations),
                has_key: wrapped.is_none_or(|wrapped| site.find(wrapped.site_key).is_some()),
            });
        }
        let site_key = site.current().map(|key| key.id().to_string());
        Ok(Keys { site_key, file: self.keys.path.clone(), groups })
    }

    /// Wraps every group's keys under a new site key.
    pub(super) async fn key_rotate(&self, request: KeyRotation) -> Result<Keys> {
        // Nobody creates a group meanwhile: its keys would be wrapped under the key that goes.
        let _turn = self.creating.lock().await;
        self.keys.begin_rotation(&*self.environment, request.new_group_keys)?;
        self.rewrap_all(request.new_group_keys || self.keys.makes_group_keys()).await?;
        self.keys.finish_rotation()?;
        self.keys().await
    }

    /// Goes on with a rotation that was cut off. One that cannot be finished leaves both keys in use.
    pub(super) async fn resume_rotation(&self) {
        if !self.keys.is_rotating() {
            return;
        }
        let finished = match self.rewrap_all(self.keys.makes_group_keys()).await {
            Ok(()) => self.keys.finish_rotation(),
            Err(error) => Err(error),
        };
        match finished {
            Ok(()) => tracing::info!("a rotation of the site key that was cut off is done"),
            Err(error) => {
                tracing::error!(%error, "the site key's rotation is not done: 'key rotate' tries again")
            }
        }
    }

    async fn rewrap_all(&self, adds_generation: bool) -> Result<()> {
        for id in ids([&self.directory.vault()])? {
            let site = self.keys.site_keys();
            let wanted = site.current().map(SiteKey::id);
            let rewrapped = self.with_rings(id, move |runtime, layout| async move {
                let wrapped = vault::describe_keys(&runtime, &layout).await?;
                let is_done = wrapped.is_none_or(|wrapped| Some(wrapped.site_key) == wanted);
                if !is_done {
                    vault::rewrap_keys(&runtime, &layout, &site, adds_generation).await?;
                }
                Ok(())
            });
            rewrapped.await?;
        }
        Ok(())
    }

    /// Works on a group's keyrings on a data thread; it need not be open.
    async fn with_rings<T: Send + 'static, W: Future<Output = Result<T>>>(
        &self,
        id: GroupId,
        work: impl FnOnce(Rc<Runtime>, Layout) -> W + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let layout = Layout::new(self.plan(id).vault);
        self.threads.command(0, move |host| {
            let runtime = Rc::clone(host.runtime());
            host.runtime().spawn(async move { drop(sender.send(work(Rc::clone(&runtime), layout).await)) });
        })?;
        receiver.await.map_err(|_| Error::new(ErrorKind::Shutdown, "the gateway is stopping"))?
    }

    /// The site key, to be kept where the vault is not.
    pub(super) fn key_export(&self) -> Result<KeyText> {
        Ok(KeyText { key: self.keys.current()?.to_text().to_string() })
    }

    /// Looks at the key's file again for a group that lacks its key; whoever resumes it may have put that back.
    pub(super) fn look_for_key(&self, entry: &Entry) -> Result<()> {
        if entry.failure.as_ref().is_some_and(OpeningFailure::wants_key) {
            self.keys.look_again()?;
        }
        Ok(())
    }

    /// Takes a site key that was exported.
    pub(super) async fn key_import(&self, request: KeyImport) -> Result<Keys> {
        let _turn = self.creating.lock().await;
        self.keys.import(SiteKey::from_text(&request.key)?, request.replace)?;
        self.keys().await
    }
}
