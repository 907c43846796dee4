//! The verbs that begin, resume and end a whole group.
//!
//! Each holds its group's turn, or that of creations, so that a name has one owner at any time.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::convert;
use super::gateway::{Answering, INTERVAL_MS_DEFAULT, Inner, cached};
use super::group_table::Entry;
use super::member::Member;
use super::opening::Opened;
use super::removal;
use crate::block::Export;
use crate::control::model::{Group, GroupRequest, ResumeRequest, Resumed};
use crate::control::name::Name;
use crate::descriptors::SEGMENTS_AT_REST;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ladder::Ladder;
use crate::format::record::{Change, GroupRecord, PinKind};
use crate::protect::{open, resume};
use crate::units::GroupId;

impl Inner {
    pub(super) async fn group_create(self: &Arc<Self>, request: GroupRequest) -> Result<Group> {
        let GroupRequest { name, points } = request;
        let _turn = self.creating.lock().await;
        // All its digits: `cafe` is a name like any other.
        if name.as_str().parse().is_ok_and(|id: GroupId| id.to_string() == name.as_str()) {
            let text = format!("`{name}` reads as the id of a group: choose another name");
            return Err(Error::invalid(text));
        }
        if self.groups.read().has(&name) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a group {name} already")));
        }
        self.check_descriptors(SEGMENTS_AT_REST)?;
        if self.configuration.keys.seals_groups {
            self.keys.current()?;
        }
        let id = GroupId(self.environment.random_u128());
        let created = self.environment.wall();
        let interval_ms = if points { INTERVAL_MS_DEFAULT } else { 0 };
        let retain = Ladder::default();
        let record = GroupRecord { name: name.to_string(), created, interval_ms, retain };
        let begun = match self.create_vault(id, record).await {
            Ok(()) => self.open(id).await?,
            Err(error) => Opened::Nothing(error),
        };
        let error = match begun {
            Opened::Serving => {
                self.serve_all(id, None).await?;
                self.remember(id).await;
                let (name, entry) = self.find(&name)?;
                return self.group_model(&name, &entry).await;
            }
            Opened::VaultOnly(error) | Opened::Nothing(error) => error,
            Opened::Removed => Error::new(ErrorKind::Shutdown, "the group was removed while it was created"),
        };
        // Nobody has it yet. What cannot be cleared away now is, or is listed, at the next start.
        if let Err(left) = self.clear(id).await {
            tracing::warn!(group = %id, error = %left, "files of a group that could not be created are left");
        }
        Err(error)
    }

    async fn create_vault(&self, id: GroupId, record: GroupRecord) -> Result<()> {
        let plan = self.plan(id);
        let home = self.threads.exports().place_group(id, self.threads.count());
        let (sender, receiver) = oneshot::channel();
        self.threads.command(home, move |host| {
            let runtime = Rc::clone(host.runtime());
            host.runtime().spawn(async move {
                drop(sender.send(open::create_vault(&runtime, &plan, id, record).await.map(drop)));
            });
        })?;
        let lost = |_| Error::new(ErrorKind::Shutdown, "the gateway stopped while the group was created");
        receiver.await.map_err(lost)?
    }

    pub(super) async fn group_pause(self: &Arc<Self>, name: Name) -> Result<Group> {
        let _turn = self.turn_of(&name).await?;
        let (name, id) = self.find_open(&name)?;
        self.set_paused(id, true).await?;
        self.group_model(&name, &self.find(&name)?.1).await
    }

    async fn set_paused(&self, id: GroupId, paused: bool) -> Result<()> {
        self.ask(id, move |member: &mut Member, answer: Answering<()>| match member.group() {
            Ok(group) => group.set_paused(paused, answer.callback()),
            Err(error) => answer.send(Err(error)),
        })
        .await?;
        // Whoever is told that it was done finds it among the events, whatever becomes of this process.
        self.record_events().await;
        Ok(())
    }

    pub(super) async fn group_resume(
        self: &Arc<Self>,
        name: Name,
        request: ResumeRequest,
    ) -> Result<Resumed> {
        let _turn = self.turn_of(&name).await?;
        let (name, entry) = self.find(&name)?;
        let entry = match self.close_failed(&name, &entry).await? {
            Some(closed) => closed,
            None => entry,
        };
        if entry.failure.is_some() {
            self.look_for_key(&entry)?;
            let opened = self.reopen(&name, &entry, request.accept_loss).await;
            self.tell_opening(entry.id, self.environment.wall());
            self.record_events().await;
            let name = opened?;
            self.remember(entry.id).await;
            let group = self.group_model(&name, &self.find(&name)?.1).await?;
            let (cleared, latched) = (Vec::new(), Vec::new());
            return Ok(Resumed { group, opened: true, unpaused: false, cleared, latched });
        }
        let was_paused =
            self.read(entry.id, |member: &mut Member| member.vault().manifest().state().is_paused()).await?;
        if was_paused {
            self.set_paused(entry.id, false).await?;
        }
        let resumed: resume::Resumed = self
            .ask(entry.id, move |member: &mut Member, answer: Answering<_>| match member.group() {
                Ok(group) => group.resume(request.accept_loss, answer.callback()),
                Err(error) => answer.send(Err(error)),
            })
            .await?;
        let group = self.group_model(&name, &entry).await?;
        let resume::Resumed { cleared, latched } = resumed;
        Ok(Resumed { group, opened: false, unpaused: was_paused, cleared, latched })
    }

    /// Closes an open group whose journal or vault failed, so that it can be opened again: its clients are disconnected,
    /// its test failovers go on. `None` if nothing of that kind failed.
    async fn close_failed(&self, name: &Name, entry: &Entry) -> Result<Option<Entry>> {
        let id = entry.id;
        if entry.failure.is_some() {
            return Ok(None);
        }
        let Some(error) = self.read(id, |member| member.failure()).await? else { return Ok(None) };
        let closed = Entry { id, failure: Some(self.failure(&error, true)) };
        self.close_group(name, id).await?;
        self.note(closed.clone(), Some(name.clone()));
        Ok(Some(closed))
    }

    pub(super) async fn group_remove(self: &Arc<Self>, name: Name) -> Result<()> {
        let _turn = self.turn_of(&name).await?;
        let (name, entry) = self.find(&name)?;
        let id = entry.id;
        if entry.failure.is_none() {
            self.end_open(&name, id).await?;
        }
        self.groups.write().remove(id);
        let evicted = match entry.failure.is_some() {
            true => self.evict(&name, &entry).await,
            false => Ok(()),
        };
        let cleared = match evicted {
            Ok(()) => self.clear(id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = cleared {
            // What is left of it is listed, so that it can be removed again.
            self.note_without_vault(id, &error, Some(name));
            self.tell_opening(id, self.environment.wall());
            self.record_events().await;
            return Err(error);
        }
        self.threads.exports().end_refusal(name.as_str());
        self.turns.lock().remove(&id);
        let forgotten = cached(self.catalogue.as_ref().map(|catalogue| catalogue.remove_group(id)));
        self.sampling.forget(id, forgotten).await;
        Ok(())
    }

    /// Ends an open group for good: its clients, its history, its journal. Nothing of it is brought to an end first: what
    /// is about to be deleted needs neither points nor images, for which there may be no room.
    async fn end_open(&self, name: &Name, id: GroupId) -> Result<()> {
        // Before anything ends, so that a refusal leaves all as it was.
        let is_hold = |kind| kind == PinKind::Hold;
        self.read(id, move |member: &mut Member| member.vault().check_removable(is_hold)).await.flatten()?;
        for test in self.test_numbers(id).await? {
            self.end_test(name, id, test).await?;
        }
        let appended = self
            .ask(id, |member: &mut Member, answer: Answering<()>| {
                let vault = Rc::clone(member.vault());
                vault.runtime().clone().spawn(async move {
                    answer.send(match vault.check_removable(|_| true) {
                        Ok(()) => vault.manifest().append(Change::GroupRemoved).await.map(drop),
                        Err(kept) => Err(kept),
                    });
                });
            })
            .await;
        match appended {
            // The tombstone says the same, and takes no room.
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                tracing::warn!(group = %name, %error, "removed without a manifest step");
            }
            appended => appended?,
        }
        self.close_group(name, id).await
    }

    /// Lets an open group go, and its clients with it. First the group, which refuses what waits in it, so that who is still there
    /// hears of it, and no session has to be waited for.
    async fn close_group(&self, name: &Name, id: GroupId) -> Result<()> {
        self.read(id, Member::close_group).await?;
        self.withdraw_disks(name, id).await
    }

    /// Ends the exports of a group's disks, and the sessions on them.
    async fn withdraw_disks(&self, name: &Name, id: GroupId) -> Result<()> {
        for record in self.read(id, |member| member.description().disks).await? {
            let path = convert::disk_path(name, &record.name)?;
            self.withdraw(&path.to_string(), Export::Disk(id, record.id)).await;
        }
        Ok(())
    }

    /// Takes a group that is not at work off its thread, if it is on one, and deletes its files.
    async fn clear(&self, id: GroupId) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        let plan = self.plan(id);
        let home = self.threads.exports().place_group(id, self.threads.count());
        self.threads.command(home, move |host| {
            drop(host.remove(id));
            let runtime = Rc::clone(host.runtime());
            host.runtime().spawn(async move { drop(sender.send(removal::clear(&runtime, &plan).await)) });
        })?;
        let lost =
            |_| Error::new(ErrorKind::Shutdown, "the gateway stopped; the rest is removed at the next start");
        let cleared = receiver.await.map_err(lost)?;
        self.threads.exports().forget_group(id);
        self.events.forget(id);
        self.forget_damage(id).await;
        cleared
    }
}
