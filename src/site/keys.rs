//! The gateway's site key: found at the start, or made where nothing is sealed yet; shown, rotated, exported, imported.
//!
//! Rotation: the new key is written beside the old one, every group's keys are wrapped anew, and only then it takes the old
//! one's place. Whatever a crash leaves, both keys are there, and the next start goes on. A key that another takes the
//! place of by import stays in a file of its own: no verb destroys a key that something may be sealed under.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use parking_lot::RwLock;
use tokio::sync::oneshot;

use super::gateway::Inner;
use super::key_file;
use super::opening::ids;
use crate::control::model::{GroupSeal, KeyImport, KeyRotation, KeyText, Keys};
use crate::data_directory::DataDirectory;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Runtime;
use crate::seal::{SiteKey, SiteKeys};
use crate::units::GroupId;
use crate::vault::{self, Layout, Wrapped};

/// The site keys of a gateway, and where they are kept.
pub struct KeyStore {
    path: PathBuf,
    keys: RwLock<SiteKeys>,
    /// Whether a rotation was cut off: the first of the keys waits for the others' place.
    is_rotating: RwLock<bool>,
}

impl KeyStore {
    /// Reads the key that is kept at `path`. A new one is made where no group is there that might need another.
    ///
    /// # Errors
    /// `Invalid` where the file holds no key, or others may read it.
    pub fn open(path: &Path, directory: &DataDirectory, environment: &dyn Environment) -> Result<KeyStore> {
        let next = key_file::read(&key_file::next(path))?;
        let is_rotating = next.is_some();
        let mut keys: Vec<SiteKey> = next.into_iter().chain(key_file::read(path)?).collect();
        if keys.is_empty() {
            if ids([&directory.vault(), &directory.groups()])?.is_empty() {
                let key = SiteKey::drawn([environment.random_u128(), environment.random_u128()]);
                key_file::create(path, &key)?;
                tracing::info!(id = %key.id(), path = %path.display(), "a site key was made: 'key export' it to a safe place");
                keys.push(key);
            } else {
                tracing::error!(path = %path.display(), "the site key is missing: sealed groups cannot be opened until 'key import'");
            }
        }
        let (keys, is_rotating) = (RwLock::new(SiteKeys::new(keys)), RwLock::new(is_rotating));
        Ok(KeyStore { path: path.to_owned(), keys, is_rotating })
    }

    /// The keys, for opening and creating groups.
    pub fn site_keys(&self) -> SiteKeys {
        self.keys.read().clone()
    }

    /// Writes a new key beside the present one, unless one waits there; from now on it wraps.
    fn begin_rotation(&self, environment: &dyn Environment) -> Result<()> {
        if *self.is_rotating.read() {
            return Ok(());
        }
        let present = self.keys.read().current().cloned();
        let present = present.ok_or_else(|| self.missing())?;
        let key = SiteKey::drawn([environment.random_u128(), environment.random_u128()]);
        key_file::create(&key_file::next(&self.path), &key)?;
        *self.keys.write() = SiteKeys::new(vec![key, present]);
        *self.is_rotating.write() = true;
        Ok(())
    }

    /// The new key takes the old one's place: nothing is wrapped under that any more.
    fn finish_rotation(&self) -> Result<()> {
        key_file::rename(&key_file::next(&self.path), &self.path)?;
        let current = self.keys.read().current().cloned();
        *self.keys.write() = SiteKeys::new(current.into_iter().collect());
        *self.is_rotating.write() = false;
        Ok(())
    }

    fn import(&self, key: SiteKey, replaces: bool) -> Result<()> {
        if *self.is_rotating.read() {
            let text = "the site key is being rotated: 'key rotate' brings that to its end first";
            return Err(Error::new(ErrorKind::Latched, text));
        }
        match self.keys.read().current().map(SiteKey::id) {
            Some(present) if present == key.id() => return Ok(()),
            Some(present) if !replaces => return Err(key_file::already_there(&self.path, present)),
            Some(present) => key_file::rename(&self.path, &key_file::replaced(&self.path, present))?,
            None => {}
        }
        key_file::create(&self.path, &key)?;
        tracing::warn!(id = %key.id(), "a site key was imported");
        *self.keys.write() = SiteKeys::new(vec![key]);
        Ok(())
    }

    fn missing(&self) -> Error {
        let text = "there is no site key here: 'key import' the one that was exported";
        Error::new(ErrorKind::NoKey, text).at_path(&self.path)
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
        self.keys.begin_rotation(&*self.environment)?;
        self.rewrap_all(request.new_group_keys).await?;
        self.keys.finish_rotation()?;
        self.keys().await
    }

    /// Goes on with a rotation that was cut off. One that cannot be finished leaves both keys in use.
    pub(super) async fn resume_rotation(&self) {
        if !*self.keys.is_rotating.read() {
            return;
        }
        let finished = match self.rewrap_all(false).await {
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
        let key = self.keys.site_keys().current().cloned().ok_or_else(|| self.keys.missing())?;
        Ok(KeyText { key: key.to_text().to_string() })
    }

    /// Takes a site key that was exported.
    pub(super) async fn key_import(&self, request: KeyImport) -> Result<Keys> {
        let _turn = self.creating.lock().await;
        self.keys.import(SiteKey::from_text(&request.key)?, request.replace)?;
        self.keys().await
    }
}
