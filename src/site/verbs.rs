//! The verbs of the API, carried out on the gateway.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::convert;
use super::gateway::{Answering, Gateway, Inner, SESSIONS_END, cached};
use super::group_table::Entry;
use super::member::Member;
use super::reach::explained;
use super::retention_verbs::PointVerb;
use crate::block::{Export, TestId};
use crate::control::backend::{Answer, Backend};
use crate::control::catalogue::Catalogue;
use crate::control::jobs::Progress;
use crate::control::model::{
    AdoptRequest, Adopted, Disk, Event, EventPage, EventQuery, Group, GroupReport, GroupRequest, GroupStatus,
    GroupVerified, HookStatus, KeyImport, KeyRotation, KeyText, Keys, Point, PointCreated, PolicyForecast,
    PolicyRequest, RepairReport, RepairRequest, ReportQuery, RestoreRequest, Restored, ResumeRequest,
    Resumed, Status, StorageStatus, Test, TestRequest, TlsStatus, TurnedAway, VerifyReport,
};
use crate::control::name::{DiskPath, Label, Name};
use crate::control::selector::{PointSelector, refuse_ambiguous, resolve};
use crate::descriptors;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::{TestFailover, TestListing};
use crate::format::record::{DiskRecord, TestUse};
use crate::protect::membership::Content;
use crate::runtime::Runtime;
use crate::storage::Buffered;
use crate::throttle::ByteRate;
use crate::units::{GroupId, PointId, SECTOR_BYTES, SectorCount, WallNanos};
use crate::vault::Vault;
use crate::view::{self, View};

impl Backend for Gateway {
    fn group_create(&self, request: GroupRequest) -> Answer<'_, Group> {
        self.detached(|inner| Box::pin(async move { inner.group_create(request).await }))
    }

    fn groups(&self) -> Answer<'_, Vec<Group>> {
        self.detached(|inner| Box::pin(async move { inner.all_groups().await }))
    }

    fn group(&self, name: Name) -> Answer<'_, Group> {
        self.detached(|inner| {
            Box::pin(async move {
                let (name, entry) = inner.find(&name)?;
                inner.group_model(&name, &entry).await
            })
        })
    }

    fn group_remove(&self, name: Name) -> Answer<'_, ()> {
        self.detached(|inner| Box::pin(async move { inner.group_remove(name).await }))
    }

    fn group_pause(&self, name: Name) -> Answer<'_, Group> {
        self.detached(|inner| Box::pin(async move { inner.group_pause(name).await }))
    }

    fn events(&self, query: EventQuery) -> Answer<'_, Vec<Event>> {
        self.detached(|inner| Box::pin(async move { inner.events(query).await }))
    }

    /// Not detached: nothing is half done when who follows leaves.
    fn events_after(&self, query: EventQuery, wait: Duration) -> Answer<'_, EventPage> {
        Box::pin(self.0.events_after(query, wait))
    }

    fn hooks(&self) -> Answer<'_, Vec<HookStatus>> {
        Box::pin(std::future::ready(Ok(self.0.hooks.status())))
    }

    fn hook_test(&self, name: Name) -> Answer<'_, HookStatus> {
        self.detached(|inner| Box::pin(async move { inner.hooks.test(&name).await }))
    }

    fn catalogue(&self) -> Option<Catalogue> {
        self.0.catalogue.clone()
    }

    fn group_resume(&self, name: Name, request: ResumeRequest) -> Answer<'_, Resumed> {
        self.detached(move |inner| Box::pin(async move { inner.group_resume(name, request).await }))
    }

    fn disk_create(&self, path: DiskPath, size: SectorCount) -> Answer<'_, Disk> {
        self.detached(move |inner| {
            Box::pin(async move { inner.disk_add(path, size, || Content::Empty).await })
        })
    }

    fn disk_import(&self, path: DiskPath, file: PathBuf, progress: Progress) -> Answer<'_, Disk> {
        self.detached(|inner| {
            Box::pin(async move { explained(inner.disk_import(path, file, progress).await) })
        })
    }

    fn disk_resize(&self, path: DiskPath, size: SectorCount, lose_tail: bool) -> Answer<'_, Disk> {
        self.detached(move |inner| Box::pin(async move { inner.disk_resize(path, size, lose_tail).await }))
    }

    fn disk_remove(&self, path: DiskPath) -> Answer<'_, ()> {
        self.detached(|inner| Box::pin(async move { inner.disk_remove(path).await }))
    }

    fn policy_set(&self, group: Name, policy: PolicyRequest) -> Answer<'_, Group> {
        self.detached(move |inner| Box::pin(async move { inner.policy_set(group, policy).await }))
    }

    fn policy_dry_run(&self, group: Name, policy: PolicyRequest) -> Answer<'_, PolicyForecast> {
        self.detached(move |inner| Box::pin(async move { inner.policy_dry_run(group, policy).await }))
    }

    fn point_hold(&self, group: Name, point: PointSelector) -> Answer<'_, Point> {
        self.detached(|inner| {
            Box::pin(async move { inner.point_change(group, point, PointVerb::Hold).await })
        })
    }

    fn point_release(&self, group: Name, point: PointSelector) -> Answer<'_, Point> {
        self.detached(|inner| {
            Box::pin(async move { inner.point_change(group, point, PointVerb::Release).await })
        })
    }

    fn point_delete(&self, group: Name, point: PointSelector) -> Answer<'_, Point> {
        self.detached(|inner| {
            Box::pin(async move { inner.point_change(group, point, PointVerb::Delete).await })
        })
    }

    fn point_create(&self, group: Name, label: Option<Label>) -> Answer<'_, PointCreated> {
        self.detached(|inner| Box::pin(async move { inner.point_create(group, label).await }))
    }

    fn points(&self, group: Name) -> Answer<'_, Vec<Point>> {
        self.detached(|inner| Box::pin(async move { inner.points_of(inner.find_vault(&group)?.1).await }))
    }

    fn test_start(&self, group: Name, request: TestRequest) -> Answer<'_, Test> {
        self.detached(|inner| Box::pin(async move { inner.test_start(group, request).await }))
    }

    fn test_cleanup(&self, group: Name, test: Option<TestId>) -> Answer<'_, Vec<TestId>> {
        self.detached(move |inner| Box::pin(async move { inner.test_cleanup(group, test).await }))
    }

    fn tests(&self, group: Option<Name>) -> Answer<'_, Vec<Test>> {
        self.detached(|inner| Box::pin(async move { inner.all_tests(group).await }))
    }

    fn restore(&self, group: Name, request: RestoreRequest, progress: Progress) -> Answer<'_, Restored> {
        self.detached(|inner| {
            Box::pin(async move { explained(inner.restore(group, request, progress).await) })
        })
    }

    fn status(&self) -> Answer<'_, Status> {
        self.detached(|inner| Box::pin(async move { inner.status().await }))
    }

    fn report(&self, group: Name, query: ReportQuery) -> Answer<'_, GroupReport> {
        self.detached(move |inner| Box::pin(async move { inner.report(group, query).await }))
    }

    fn keys(&self) -> Answer<'_, Keys> {
        self.detached(|inner| Box::pin(async move { inner.keys().await }))
    }

    fn key_rotate(&self, request: KeyRotation) -> Answer<'_, Keys> {
        self.detached(move |inner| Box::pin(async move { inner.key_rotate(request).await }))
    }

    fn key_export(&self) -> Answer<'_, KeyText> {
        self.detached(|inner| Box::pin(async move { inner.key_export() }))
    }

    fn key_import(&self, request: KeyImport) -> Answer<'_, Keys> {
        self.detached(|inner| Box::pin(async move { inner.key_import(request).await }))
    }

    fn vault_verify(
        &self,
        group: Option<Name>,
        rate: Option<ByteRate>,
        progress: Progress,
    ) -> Answer<'_, VerifyReport> {
        self.detached(move |inner| Box::pin(async move { inner.vault_verify(group, rate, progress).await }))
    }

    fn group_verify(
        &self,
        group: Name,
        rate: Option<ByteRate>,
        progress: Progress,
    ) -> Answer<'_, GroupVerified> {
        self.detached(move |inner| Box::pin(async move { inner.group_verify(group, rate, progress).await }))
    }

    fn vault_repair(
        &self,
        group: Name,
        request: RepairRequest,
        progress: Progress,
    ) -> Answer<'_, RepairReport> {
        self.detached(move |inner| {
            Box::pin(async move { inner.vault_repair(group, request, progress).await })
        })
    }

    fn vault_adopt(&self, request: AdoptRequest, progress: Progress) -> Answer<'_, Adopted> {
        self.detached(|inner| Box::pin(async move { explained(inner.vault_adopt(request, progress).await) }))
    }
}

impl Inner {
    async fn all_groups(&self) -> Result<Vec<Group>> {
        let mut groups = Vec::new();
        for (name, entry) in self.groups_now() {
            let model = match (self.group_model(&name, &entry).await, self.find_by_id(entry.id)) {
                (Err(error), None) if is_gone(&error) => continue,
                (Err(error), Some((name, entry))) if is_gone(&error) => {
                    self.group_model(&name, &entry).await?
                }
                (model, _) => model?,
            };
            groups.push(model);
        }
        Ok(groups)
    }

    /// Every group by name, as the table has it now.
    pub(super) fn groups_now(&self) -> Vec<(Name, Entry)> {
        self.groups.read().list()
    }

    /// Stops serving an export and ends its sessions.
    pub(super) async fn withdraw(&self, name: &str, export: Export) {
        self.threads.exports().remove(name);
        self.threads.close_sessions(export, SESSIONS_END).finished().await;
    }

    async fn disk_add(
        &self,
        path: DiskPath,
        size: SectorCount,
        content: impl FnOnce() -> Content + Send + 'static,
    ) -> Result<Disk> {
        // And one that it opens for a moment.
        self.check_descriptors(descriptors::FILES_OF_DISK + 1)?;
        // Copying an image takes its time, so this is in nobody's turn: the manifest gives a name once.
        let (_, id) = self.find_open(&path.group)?;
        let name = path.disk.to_string();
        let record: DiskRecord = self
            .ask(id, move |member: &mut Member, answer: Answering<DiskRecord>| match member.group() {
                Ok(group) => group.add_disk(name, size, content(), answer.callback()),
                Err(error) => answer.send(Err(error)),
            })
            .await?;
        let _turn = self.turn_of_id(id).await;
        let gone = || Error::new(ErrorKind::NotFound, "the group was removed meanwhile");
        let (group, entry) = self.find_by_id(id).ok_or_else(gone)?;
        // Whoever opened the group again meanwhile serves the disk already.
        let export = convert::disk_path(&group, &record.name)?.to_string();
        if entry.failure.is_none() && !self.threads.exports().has(&export) {
            self.serve_disk(&group, id, &record)?;
        }
        self.remember_disk(id, &record).await?;
        convert::disk(&group, &record, &self.endpoint())
    }

    async fn disk_import(&self, path: DiskPath, file: PathBuf, progress: Progress) -> Result<Disk> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let text = "there is no file to import: name a raw disk image on the gateway's machine";
                Error::new(ErrorKind::NotFound, text).at_path(&file)
            }
            _ => Error::io("reading the file to import", error).at_path(&file),
        };
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
                progress.go_on()
            };
            Content::Import(file, Rc::new(report))
        };
        self.disk_add(path, size, content).await
    }

    async fn disk_remove(&self, path: DiskPath) -> Result<()> {
        let _turn = self.turn_of(&path.group).await?;
        let (group, id) = self.find_open(&path.group)?;
        let path = DiskPath { group, disk: path.disk };
        let disk = self.disk_record(id, &path).await?.id;
        // It refuses its clients from now on; if it cannot be removed, it goes on serving them.
        self.ask(id, move |member: &mut Member, answer: Answering<()>| match member.group() {
            Ok(group) => group.remove_disk(disk, answer.callback()),
            Err(error) => answer.send(Err(error)),
        })
        .await?;
        self.withdraw(&path.to_string(), Export::Disk(id, disk)).await;
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.remove_disk(disk))).await;
        Ok(())
    }

    pub(super) async fn disk_record(&self, group: GroupId, path: &DiskPath) -> Result<DiskRecord> {
        let name = path.disk.to_string();
        let missing =
            || Error::new(ErrorKind::NotFound, format!("there is no disk {path}: 'disk list' shows them"));
        let description = self.read(group, |member| member.description()).await?;
        description.disks.into_iter().find(|disk| disk.name == name).ok_or_else(missing)
    }

    async fn point_create(&self, group: Name, label: Option<Label>) -> Result<PointCreated> {
        let (_, id) = self.find_open(&group)?;
        let label = label.map_or_else(String::new, |label| label.as_str().to_owned());
        refuse_ambiguous(&label, self.environment.wall())?;
        let record = self
            .ask(id, move |member: &mut Member, answer: Answering<_>| match member.group() {
                Ok(group) => group.create_point(label, answer.callback()),
                Err(error) => answer.send(Err(error)),
            })
            .await?;
        let point = self.described(id, convert::point(&record)).await?;
        let points = std::slice::from_ref(&point);
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.put_points(id, points))).await;
        let same_label = match point.label.clone() {
            None => 0,
            // It is published, and one of them.
            Some(label) => self.read(id, move |member| member.labelled(&label)).await?.saturating_sub(1),
        };
        Ok(PointCreated { point, same_label })
    }

    pub(super) async fn points_of(&self, id: GroupId) -> Result<Vec<Point>> {
        self.read(id, |member| convert::points(member)).await
    }

    async fn select(&self, id: GroupId, selector: &PointSelector) -> Result<PointId> {
        let points = self.points_of(id).await?;
        resolve(selector, &points, self.environment.wall()).map(|point| point.id)
    }

    async fn test_start(&self, group: Name, request: TestRequest) -> Result<Test> {
        let _turn = self.turn_of(&group).await?;
        let (group, id) = self.find_vault(&group)?;
        let point = self.select(id, &request.point).await?;
        let purpose = match (request.for_restore, request.read_only) {
            (true, _) => TestUse::Restore,
            (false, true) => TestUse::ReadOnly,
            (false, false) => TestUse::Rehearsal,
        };
        let listing: TestListing = self
            .ask(id, move |member: &mut Member, answer: Answering<TestListing>| match member.tests() {
                Ok(tests) => {
                    let callback = answer.callback();
                    let listed =
                        move |result: Result<TestFailover>| callback(result.map(|test| test.listing()));
                    tests.start(point, purpose, Box::new(listed));
                }
                Err(error) => answer.send(Err(error)),
            })
            .await?;
        self.serve_test(&group, id, &listing)?;
        // Alone: a long history is not written anew for it.
        let known = convert::catalogue_test(&listing);
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.put_test(id, known))).await;
        let mut test = convert::test(&group, &listing, 0, &self.endpoint())?;
        test.point = self.described(id, test.point).await?;
        Ok(test)
    }

    /// A point as the list of its group has it.
    async fn described(&self, id: GroupId, point: Point) -> Result<Point> {
        let wanted = point.id;
        Ok(self.read(id, move |member| convert::listed_point(member, wanted)).await?.unwrap_or(point))
    }

    async fn listings(&self, id: GroupId) -> Result<Vec<TestListing>> {
        self.read(id, |member| member.test_listings()).await
    }

    pub(super) async fn test_numbers(&self, id: GroupId) -> Result<Vec<TestId>> {
        Ok(self.listings(id).await?.iter().map(|listing| listing.test).collect())
    }

    async fn test_cleanup(&self, group: Name, test: Option<TestId>) -> Result<Vec<TestId>> {
        let _turn = self.turn_of(&group).await?;
        let (group, id) = self.find_vault(&group)?;
        let ended = match test {
            Some(test) => vec![test],
            None => self.test_numbers(id).await?,
        };
        for &test in &ended {
            self.end_test(&group, id, test).await?;
        }
        Ok(ended)
    }

    pub(super) async fn end_test(&self, group: &Name, id: GroupId, test: TestId) -> Result<()> {
        let listings = self.listings(id).await?;
        for disk in listings.iter().filter(|listing| listing.test == test).flat_map(|listing| &listing.disks)
        {
            let path = convert::disk_path(group, &disk.name)?;
            self.withdraw(&path.test_export(test), Export::Test(id, disk.id, test)).await;
        }
        self.ask(id, move |member: &mut Member, answer: Answering<()>| match member.tests() {
            Ok(tests) => tests.cleanup(test, answer.callback()),
            Err(error) => answer.send(Err(error)),
        })
        .await?;
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.remove_test(id, test))).await;
        Ok(())
    }

    async fn all_tests(&self, group: Option<Name>) -> Result<Vec<Test>> {
        let groups = match group {
            Some(name) => vec![self.find_vault(&name)?],
            None => {
                let hosted = self.groups_now().into_iter().filter(|(_, entry)| entry.is_hosted());
                hosted.map(|(name, entry)| (name, entry.id)).collect()
            }
        };
        let mut tests = Vec::new();
        for (name, id) in groups {
            let listings = match self.listings(id).await {
                Err(error) if is_gone(&error) => continue,
                listings => listings?,
            };
            for listing in listings {
                let exports = listing.disks.iter().map(|disk| Export::Test(id, disk.id, listing.test));
                let connections = exports.map(|export| self.threads.exports().sessions_of(export)).sum();
                tests.push(convert::test(&name, &listing, connections, &self.endpoint())?);
            }
        }
        Ok(tests)
    }

    async fn restore(&self, group: Name, request: RestoreRequest, progress: Progress) -> Result<Restored> {
        let (_, id) = self.find_vault(&group)?;
        let selected = self.select(id, &request.point).await?;
        let RestoreRequest { directory, overwrite, .. } = request;
        let _claim = RestoreClaim::new(self, &directory)?;
        let (files, bytes) = self
            .ask(id, move |member: &mut Member, answer: Answering<(Vec<PathBuf>, u64)>| {
                let vault = Rc::clone(member.vault());
                vault.runtime().clone().spawn(async move {
                    answer.send(restore(&vault, selected, &directory, overwrite, &progress).await);
                });
            })
            .await?;
        let missing = || Error::new(ErrorKind::NotFound, "the point is gone");
        let point = self.read(id, move |member| convert::listed_point(member, selected)).await?;
        let point = point.ok_or_else(missing)?;
        Ok(Restored { point, files, bytes })
    }

    async fn status(&self) -> Result<Status> {
        let now = self.environment.wall();
        let mut groups: Vec<GroupStatus> = Vec::new();
        let mut buffered = None;
        for (name, entry) in self.groups_now() {
            let asked = self.group_status(&name, &entry, now).await;
            if let Some((mut status, why_buffered)) = self.unless_gone(entry.id, asked, now).await? {
                buffered = buffered.or(why_buffered);
                status.verify = self.verify_status(entry.id, status.group.created).await;
                groups.push(status);
            }
        }
        Ok(Status {
            site: self.configuration.site.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            listen: self.configuration.nbd.listen.iter().map(ToString::to_string).collect(),
            tls: self
                .configuration
                .nbd
                .tls
                .as_ref()
                .map(|tls| TlsStatus { client_certificates: tls.client_ca.is_some() }),
            connections: self.threads.connections() as u64,
            connections_limit: self.configuration.nbd.connections_max.get() as u64,
            turned_away: self.threads.turned_away(),
            buffers_bytes: self.threads.buffered_bytes().await as u64,
            buffers_limit_bytes: self.configuration.nbd.buffers.0,
            buffers_total_bytes: self.threads.budget().held() as u64,
            buffers_total_limit_bytes: self.configuration.nbd.buffers_total.0,
            frames_total_bytes: self.frames.bytes() as u64,
            frames_total_limit_bytes: self.frames.bytes_max() as u64,
            buffers_waiting_ms: self.buffers_waiting().map(convert::milliseconds),
            // What the API's own clients take is known to the API.
            api_connections: 0,
            api_connections_limit: 0,
            api_turned_away: TurnedAway::default(),
            descriptors: descriptors::open().unwrap_or(0) as u64,
            descriptors_limit: descriptors::limit().map(|limit| limit as u64),
            event_counts: self.events.counts(),
            hooks: self.hooks.status(),
            storage: StorageStatus {
                backend: self.storage.backend.clone(),
                backend_reason: self.storage.reason.clone(),
                direct: buffered.is_none(),
                direct_reason: buffered.map(|buffered| buffered.to_string()),
            },
            groups,
        })
    }

    /// How a group stands, and why its files go through the page cache, if they do as far as is known.
    async fn group_status(
        &self,
        name: &Name,
        entry: &Entry,
        now: WallNanos,
    ) -> Result<(GroupStatus, Option<Buffered>)> {
        let group = self.group_model(name, entry).await?;
        if let Some(failure) = group.failure.clone() {
            let points = match entry.is_hosted() {
                true => Some(self.read(entry.id, |member| member.points()).await?),
                false => None,
            };
            let churn = self.sampling.churn(entry.id, now);
            return Ok((convert::failed_status(group, failure, points.as_deref(), churn, now), None));
        }
        let id = entry.id;
        let snapshot =
            self.read(id, |member| member.group().map(|group| group.snapshot())).await.flatten()?;
        self.sampling.note(&snapshot, self.environment.wall());
        let churn = self.sampling.churn(id, now);
        let exports = snapshot.disks.iter().map(|disk| Export::Disk(id, disk.id));
        let connections = exports.map(|export| self.threads.exports().sessions_of(export)).sum();
        Ok((convert::status(group, &snapshot, connections, churn, now), snapshot.buffered))
    }

    /// What was asked of a group for a listing; asked again as it is now if it changed meanwhile, `None` if it went.
    async fn unless_gone(
        &self,
        id: GroupId,
        asked: Result<(GroupStatus, Option<Buffered>)>,
        now: WallNanos,
    ) -> Result<Option<(GroupStatus, Option<Buffered>)>> {
        if !asked.as_ref().is_err_and(is_gone) {
            return asked.map(Some);
        }
        let Some((name, entry)) = self.find_by_id(id) else { return Ok(None) };
        self.group_status(&name, &entry, now).await.map(Some)
    }
}

/// Whether a group answered nothing because it left its thread meanwhile: it was removed, or is opened anew.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Shutdown | ErrorKind::NotFound)
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
        progress.go_on()
    })
    .await?;
    Ok((files, told))
}

/// A directory that one restore writes to: two would take each other's files for left-overs.
struct RestoreClaim<'a> {
    inner: &'a Inner,
    directory: PathBuf,
}

impl RestoreClaim<'_> {
    fn new<'a>(inner: &'a Inner, directory: &Path) -> Result<RestoreClaim<'a>> {
        if !inner.restoring.lock().insert(directory.to_owned()) {
            let text = "another restore is writing there: wait for its end, or choose another directory";
            return Err(Error::invalid(text).at_path(directory));
        }
        Ok(RestoreClaim { inner, directory: directory.to_owned() })
    }
}

impl Drop for RestoreClaim<'_> {
    fn drop(&mut self) {
        self.inner.restoring.lock().remove(&self.directory);
    }
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
