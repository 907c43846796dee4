//! The verbs of the API, carried out on the gateway.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::convert;
use super::gateway::{Answering, Gateway, INTERVAL_MS_DEFAULT, Inner, SESSIONS_END, cached};
use super::member::Member;
use super::removal;
use crate::block::{Export, TestId};
use crate::control::backend::{Answer, Backend};
use crate::control::jobs::Progress;
use crate::control::model::{
    Disk, Group, GroupStatus, Point, Policy, RestoreRequest, Restored, Status, StorageStatus, Test,
    VerifyReport,
};
use crate::control::name::{DiskPath, Label, Name};
use crate::control::selector::{PointSelector, resolve};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::{TestFailover, TestListing};
use crate::format::record::{Change, DiskRecord, GroupRecord};
use crate::protect::membership::Content;
use crate::runtime::Runtime;
use crate::units::{DiskId, GroupId, PointId, SECTOR_BYTES, SectorCount};
use crate::vault::{self, Vault};
use crate::view::{self, View};

impl Backend for Gateway {
    fn group_create(&self, name: Name) -> Answer<'_, Group> {
        self.detached(|inner| Box::pin(async move { inner.group_create(name).await }))
    }

    fn groups(&self) -> Answer<'_, Vec<Group>> {
        self.detached(|inner| Box::pin(async move { inner.all_groups().await }))
    }

    fn group(&self, name: Name) -> Answer<'_, Group> {
        self.detached(|inner| Box::pin(async move { inner.group_model(inner.id(&name)?).await }))
    }

    fn group_remove(&self, name: Name) -> Answer<'_, ()> {
        self.detached(|inner| Box::pin(async move { inner.group_remove(name).await }))
    }

    fn disk_create(&self, path: DiskPath, size: SectorCount) -> Answer<'_, Disk> {
        self.detached(move |inner| {
            Box::pin(async move { inner.disk_add(path, size, || Content::Empty).await })
        })
    }

    fn disk_import(&self, path: DiskPath, file: PathBuf, progress: Progress) -> Answer<'_, Disk> {
        self.detached(|inner| Box::pin(async move { inner.disk_import(path, file, progress).await }))
    }

    fn disk_remove(&self, path: DiskPath) -> Answer<'_, ()> {
        self.detached(|inner| Box::pin(async move { inner.disk_remove(path).await }))
    }

    fn policy_set(&self, group: Name, policy: Policy) -> Answer<'_, Group> {
        self.detached(move |inner| Box::pin(async move { inner.policy_set(group, policy).await }))
    }

    fn point_create(&self, group: Name, label: Option<Label>) -> Answer<'_, Point> {
        self.detached(|inner| Box::pin(async move { inner.point_create(group, label).await }))
    }

    fn points(&self, group: Name) -> Answer<'_, Vec<Point>> {
        self.detached(|inner| Box::pin(async move { inner.points_of(inner.id(&group)?).await }))
    }

    fn test_start(&self, group: Name, point: PointSelector) -> Answer<'_, Test> {
        self.detached(|inner| Box::pin(async move { inner.test_start(group, point).await }))
    }

    fn test_cleanup(&self, group: Name, test: Option<TestId>) -> Answer<'_, Vec<TestId>> {
        self.detached(move |inner| Box::pin(async move { inner.test_cleanup(group, test).await }))
    }

    fn tests(&self, group: Option<Name>) -> Answer<'_, Vec<Test>> {
        self.detached(|inner| Box::pin(async move { inner.all_tests(group).await }))
    }

    fn restore(&self, group: Name, request: RestoreRequest, progress: Progress) -> Answer<'_, Restored> {
        self.detached(|inner| Box::pin(async move { inner.restore(group, request, progress).await }))
    }

    fn status(&self) -> Answer<'_, Status> {
        self.detached(|inner| Box::pin(async move { inner.status().await }))
    }

    fn vault_verify(&self, group: Option<Name>, progress: Progress) -> Answer<'_, VerifyReport> {
        self.detached(|inner| Box::pin(async move { inner.vault_verify(group, progress).await }))
    }
}

impl Inner {
    async fn group_create(self: &Arc<Self>, name: Name) -> Result<Group> {
        let _turn = self.turn.lock().await;
        if self.groups.read().contains_key(&name) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a group {name} already")));
        }
        let id = GroupId(self.environment.random_u128());
        let created = self.environment.wall();
        let record = GroupRecord { name: name.to_string(), created, interval_ms: INTERVAL_MS_DEFAULT };
        self.open_group(id, Some(record)).await?;
        self.remember(id).await;
        self.group_model(id).await
    }

    /// Every group's name and id, by name.
    fn directory_of_groups(&self) -> Vec<(Name, GroupId)> {
        self.groups.read().iter().map(|(name, &id)| (name.clone(), id)).collect()
    }

    async fn all_groups(&self) -> Result<Vec<Group>> {
        let mut groups = Vec::new();
        for (_, id) in self.directory_of_groups() {
            groups.push(self.group_model(id).await?);
        }
        Ok(groups)
    }

    async fn group_remove(self: &Arc<Self>, name: Name) -> Result<()> {
        let _turn = self.turn.lock().await;
        let id = self.id(&name)?;
        for test in self.test_numbers(id).await? {
            self.end_test(&name, id, test).await?;
        }
        for record in self.read(id, |member| member.group.snapshot().disks).await? {
            self.withdraw(&disk_path(&name, &record)?.to_string(), Export::Disk(id, record.id)).await;
        }
        self.groups.write().remove(&name);
        self.ask(id, |member: &mut Member, answer: Answering<()>| {
            let vault = Rc::clone(member.group.vault());
            vault.runtime().clone().spawn(async move {
                answer.send(vault.manifest().append(Change::GroupRemoved).await.map(drop));
            });
        })
        .await?;
        self.ask(id, |member: &mut Member, answer: Answering<()>| member.stop(move || answer.send(Ok(()))))
            .await?;
        self.clear(id).await?;
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.remove_group(id))).await;
        Ok(())
    }

    /// Takes a stopped group off its thread and deletes its files.
    async fn clear(&self, id: GroupId) -> Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let plan = self.plan(id);
        self.threads.command_group(id, move |host| {
            drop(host.remove(id));
            let runtime = Rc::clone(host.runtime());
            host.runtime().spawn(async move { drop(sender.send(removal::clear(&runtime, &plan).await)) });
        })?;
        let lost =
            |_| Error::new(ErrorKind::Shutdown, "the gateway stopped; the rest is removed at the next start");
        let cleared = receiver.await.map_err(lost)?;
        self.threads.exports().forget_group(id);
        cleared
    }

    /// Stops serving an export and ends its sessions.
    async fn withdraw(&self, name: &str, export: Export) {
        self.threads.exports().remove(name);
        self.threads.close_sessions(export, SESSIONS_END).finished().await;
    }

    async fn disk_add(
        &self,
        path: DiskPath,
        size: SectorCount,
        content: impl FnOnce() -> Content + Send + 'static,
    ) -> Result<Disk> {
        let _turn = self.turn.lock().await;
        let id = self.id(&path.group)?;
        let name = path.disk.to_string();
        let record: DiskRecord = self
            .ask(id, move |member: &mut Member, answer: Answering<DiskRecord>| {
                member.group.add_disk(name, size, content(), answer.callback());
            })
            .await?;
        self.serve_disk(&path.group, id, &record)?;
        self.remember(id).await;
        convert::disk(&path.group, &record, self.address())
    }

    async fn disk_import(&self, path: DiskPath, file: PathBuf, progress: Progress) -> Result<Disk> {
        let failed = |error| Error::io("reading the file to import", error).at_path(&file);
        let metadata = std::fs::metadata(&file).map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::invalid("not a regular file: give a raw disk image").at_path(&file));
        }
        // A disk has whole sectors; a shorter file is padded with zeros.
        let size = SectorCount(metadata.len().div_ceil(SECTOR_BYTES));
        let content = move || {
            let told = std::cell::Cell::new(0);
            let report = move |done: u64, total: u64| {
                progress.set_total(total);
                progress.advance(done - told.replace(done));
            };
            Content::Import(file, Rc::new(report))
        };
        self.disk_add(path, size, content).await
    }

    async fn disk_remove(&self, path: DiskPath) -> Result<()> {
        let _turn = self.turn.lock().await;
        let id = self.id(&path.group)?;
        let disk = self.disk_id(id, &path).await?;
        self.withdraw(&path.to_string(), Export::Disk(id, disk)).await;
        self.ask(id, move |member: &mut Member, answer: Answering<()>| {
            member.group.remove_disk(disk, answer.callback());
        })
        .await?;
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.remove_disk(disk))).await;
        Ok(())
    }

    async fn disk_id(&self, group: GroupId, path: &DiskPath) -> Result<DiskId> {
        let name = path.disk.to_string();
        let missing =
            || Error::new(ErrorKind::NotFound, format!("there is no disk {path}: 'disk list' shows them"));
        let snapshot = self.read(group, |member| member.group.snapshot()).await?;
        snapshot.disks.iter().find(|disk| disk.name == name).map(|disk| disk.id).ok_or_else(missing)
    }

    async fn policy_set(&self, group: Name, policy: Policy) -> Result<Group> {
        let policy = policy.checked()?;
        let id = self.id(&group)?;
        let interval = Duration::from_millis(policy.interval_ms);
        self.ask(id, move |member: &mut Member, answer: Answering<()>| {
            member.group.set_interval(interval, answer.callback());
        })
        .await?;
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.put_policy(id, policy))).await;
        self.group_model(id).await
    }

    async fn point_create(&self, group: Name, label: Option<Label>) -> Result<Point> {
        let id = self.id(&group)?;
        let label = label.map_or_else(String::new, |label| label.as_str().to_owned());
        let record = self
            .ask(id, move |member: &mut Member, answer: Answering<_>| {
                member.group.create_point(label, answer.callback());
            })
            .await?;
        let point = convert::point(&record);
        let points = std::slice::from_ref(&point);
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.put_points(id, points))).await;
        Ok(point)
    }

    async fn points_of(&self, id: GroupId) -> Result<Vec<Point>> {
        self.read(id, |member| member.group.points().iter().map(convert::point).collect()).await
    }

    async fn select(&self, id: GroupId, selector: &PointSelector) -> Result<PointId> {
        let points = self.points_of(id).await?;
        resolve(selector, &points).map(|point| point.id)
    }

    async fn test_start(&self, group: Name, selector: PointSelector) -> Result<Test> {
        let _turn = self.turn.lock().await;
        let id = self.id(&group)?;
        let point = self.select(id, &selector).await?;
        let listing: TestListing = self
            .ask(id, move |member: &mut Member, answer: Answering<TestListing>| {
                let callback = answer.callback();
                member.tests.start(point, Box::new(|result| callback(result.map(|test| test.listing()))));
            })
            .await?;
        self.serve_test(&group, id, &listing)?;
        self.remember(id).await;
        convert::test(&group, &listing, 0, self.address())
    }

    async fn listings(&self, id: GroupId) -> Result<Vec<TestListing>> {
        self.read(id, |member| member.tests.list().map(TestFailover::listing).collect()).await
    }

    async fn test_numbers(&self, id: GroupId) -> Result<Vec<TestId>> {
        Ok(self.listings(id).await?.iter().map(|listing| listing.test).collect())
    }

    async fn test_cleanup(&self, group: Name, test: Option<TestId>) -> Result<Vec<TestId>> {
        let _turn = self.turn.lock().await;
        let id = self.id(&group)?;
        let ended = match test {
            Some(test) => vec![test],
            None => self.test_numbers(id).await?,
        };
        for &test in &ended {
            self.end_test(&group, id, test).await?;
        }
        Ok(ended)
    }

    async fn end_test(&self, group: &Name, id: GroupId, test: TestId) -> Result<()> {
        let listings = self.listings(id).await?;
        for disk in listings.iter().filter(|listing| listing.test == test).flat_map(|listing| &listing.disks)
        {
            let path = DiskPath { group: group.clone(), disk: convert::name(&disk.name)? };
            self.withdraw(&path.test_export(test), Export::Test(id, disk.id, test)).await;
        }
        self.ask(id, move |member: &mut Member, answer: Answering<()>| {
            member.tests.cleanup(test, answer.callback());
        })
        .await?;
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.remove_test(id, test))).await;
        Ok(())
    }

    async fn all_tests(&self, group: Option<Name>) -> Result<Vec<Test>> {
        let groups = match group {
            Some(name) => vec![(name.clone(), self.id(&name)?)],
            None => self.directory_of_groups(),
        };
        let mut tests = Vec::new();
        for (name, id) in groups {
            for listing in self.listings(id).await? {
                let exports = listing.disks.iter().map(|disk| Export::Test(id, disk.id, listing.test));
                let connections = exports.map(|export| self.threads.exports().sessions_of(export)).sum();
                tests.push(convert::test(&name, &listing, connections, self.address())?);
            }
        }
        Ok(tests)
    }

    async fn restore(&self, group: Name, request: RestoreRequest, progress: Progress) -> Result<Restored> {
        let id = self.id(&group)?;
        let selected = self.select(id, &request.point).await?;
        let RestoreRequest { directory, overwrite, .. } = request;
        let (files, bytes) = self
            .ask(id, move |member: &mut Member, answer: Answering<(Vec<PathBuf>, u64)>| {
                let vault = Rc::clone(member.group.vault());
                vault.runtime().clone().spawn(async move {
                    answer.send(restore(&vault, selected, &directory, overwrite, &progress).await);
                });
            })
            .await?;
        let points = self.points_of(id).await?;
        let missing = || Error::new(ErrorKind::NotFound, "the point is gone");
        let point = points.into_iter().find(|point| point.id == selected).ok_or_else(missing)?;
        Ok(Restored { point, files, bytes })
    }

    async fn status(&self) -> Result<Status> {
        let now = self.environment.wall();
        let mut groups: Vec<GroupStatus> = Vec::new();
        let mut direct = true;
        for (_, id) in self.directory_of_groups() {
            let snapshot = self.read(id, |member| member.group.snapshot()).await?;
            direct &= snapshot.direct;
            let exports = snapshot.disks.iter().map(|disk| Export::Disk(id, disk.id));
            let connections = exports.map(|export| self.threads.exports().sessions_of(export)).sum();
            groups.push(convert::status(&snapshot, connections, now, self.address())?);
        }
        let direct_reason = "the file system of the data directory refuses O_DIRECT";
        Ok(Status {
            site: self.configuration.site.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            listen: self.configuration.nbd.listen.iter().map(ToString::to_string).collect(),
            connections: self.threads.connections() as u64,
            storage: StorageStatus {
                backend: self.storage.backend.clone(),
                backend_reason: self.storage.reason.clone(),
                direct,
                direct_reason: (!direct).then(|| direct_reason.to_owned()),
            },
            groups,
        })
    }

    async fn vault_verify(&self, group: Option<Name>, progress: Progress) -> Result<VerifyReport> {
        let groups = match group {
            Some(name) => vec![self.id(&name)?],
            None => self.directory_of_groups().into_iter().map(|(_, id)| id).collect(),
        };
        let mut report = VerifyReport::default();
        for id in groups {
            let progress = progress.clone();
            let found: vault::VerifyReport = self
                .ask(id, move |member: &mut Member, answer: Answering<vault::VerifyReport>| {
                    let vault = Rc::clone(member.group.vault());
                    vault.runtime().clone().spawn(async move {
                        answer.send(verify(&vault, &progress).await);
                    });
                })
                .await?;
            report.groups += 1;
            report.steps += found.manifest_files;
            report.blobs += found.blobs;
            report.bytes += found.blob_bytes;
            report.faults.extend(found.findings.iter().map(ToString::to_string));
        }
        Ok(report)
    }
}

fn disk_path(group: &Name, record: &DiskRecord) -> Result<DiskPath> {
    Ok(DiskPath { group: group.clone(), disk: convert::name(&record.name)? })
}

async fn verify(vault: &Vault, progress: &Progress) -> Result<vault::VerifyReport> {
    let told = std::cell::Cell::new(0);
    vault::verify(vault, |done, total| {
        progress.set_total(total);
        progress.advance(done - told.replace(done));
    })
    .await
}

/// Writes a point's disks to files; what the person agreed to overwrite is removed first.
async fn restore(
    vault: &Rc<Vault>,
    point: PointId,
    directory: &Path,
    overwrite: bool,
    progress: &Progress,
) -> Result<(Vec<PathBuf>, u64)> {
    let view = View::open(vault, point).await?;
    if overwrite {
        remove_old(vault.runtime(), &view, directory).await?;
    }
    let mut told = 0;
    let files = view::restore(&view, directory, |now| {
        progress.set_total(now.bytes_total);
        progress.advance(now.bytes_done - told);
        told = now.bytes_done;
        true
    })
    .await?;
    Ok((files, told))
}

async fn remove_old(runtime: &Rc<Runtime>, view: &View, directory: &Path) -> Result<()> {
    for disk in view.disks() {
        for name in [format!("{}.raw", disk.name()), format!("{}.raw.partial", disk.name())] {
            match runtime.remove(directory.join(name)).await {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}
