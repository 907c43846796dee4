//! What each verb asks of the gateway, and what it says then. Decides nothing but whether to ask first.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arguments::{
    ClientCommand, Consent, DiskCommand, FailoverCommand, GroupCommand, PointCommand, PolicyCommand,
    SourceArgument, VaultCommand,
};
use super::client::Client;
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::output::{Output, complain, confirm, print};
use super::tools::{self, ImageFormat};
use super::{attach, check, history, keys, progress, render, report, tokens, waiting};
use crate::byte_size::ByteSize;
use crate::control::model::{
    AdoptRequest, Disk, DiskRequest, DiskSource, Group, GroupRequest, GroupVerifyRequest, JobResult, Point,
    PointCreated, PointRequest, PointSelection, PolicyForecast, PolicyRequest, RepairRequest, ResizeRequest,
    RestoreRequest, Restored, ResumeRequest, Resumed, Status, Test, TestRequest, VerifyRequest,
};
use crate::control::name::{DiskPath, Name};
use crate::control::selector::PointSelector;
use crate::counted::counted;
use crate::error::{Error, ErrorKind};
use crate::throttle::ByteRate;
use crate::units::SECTOR_BYTES;

const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Whether a test failover outlives the work that it was started for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Never,
    OnSuccess,
}

/// One connection to one gateway, and the form of the answers.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) output: Output,
}

/// Does what `command` says.
pub async fn run(command: ClientCommand, client: Client, output: Output) -> Result<(), Failure> {
    let session = Session { client, output };
    match command {
        ClientCommand::Group(command) => session.group(command).await,
        ClientCommand::Disk(command) => session.disk(command).await,
        ClientCommand::Policy(command) => session.policy(command).await,
        ClientCommand::Point(command) => session.point(command).await,
        ClientCommand::Failover(command) => session.failover(command).await,
        ClientCommand::Restore { group, point, to, format: ImageFormat::Raw, consent } => {
            session.restore(&group, point.point, &to, consent).await
        }
        ClientCommand::Restore { group, point, to, format, consent } => {
            session.restore_as(format, &group, point.point, &to, consent).await
        }
        ClientCommand::Events(arguments) => history::events(&arguments, &session.client, output).await,
        ClientCommand::Jobs => history::jobs(&session.client, output).await,
        ClientCommand::Job(command) => history::job(command, &session.client, output).await,
        ClientCommand::Audit(arguments) => history::audit(arguments.limit, &session.client, output).await,
        ClientCommand::Hooks(command) => history::hooks(command, &session.client, output).await,
        ClientCommand::Status { watch } => session.status(watch).await,
        ClientCommand::Report(arguments) => report::run(arguments, &session.client, output).await,
        ClientCommand::Check(arguments) => check::run(arguments, &session.client, session.output).await,
        ClientCommand::Verify { group, rate } => session.group_verify(&group, rate).await,
        ClientCommand::Vault(VaultCommand::Verify { group, rate }) => session.vault_verify(group, rate).await,
        ClientCommand::Vault(VaultCommand::Repair { group, rate, yes }) => {
            session.vault_repair(&group, rate, yes).await
        }
        ClientCommand::Vault(VaultCommand::Adopt { path, accept_loss, consent }) => {
            session.vault_adopt(&path, accept_loss, consent).await
        }
        ClientCommand::Attach { disk, consumer, at, tls_certificates } => {
            let place = attach::Wanted { at: at.as_deref(), credentials: &tls_certificates };
            attach::run(&disk, consumer, place, &session.client, session.output).await
        }
        ClientCommand::Token(command) => tokens::run(command, &session.client, session.output).await,
        ClientCommand::Key(command) => keys::run(command, &session.client, session.output).await,
    }
}

/// `?group=NAME`, where one is named.
fn of_group(group: Option<&Name>) -> String {
    group.map(|group| format!("?group={group}")).unwrap_or_default()
}

/// A directory that is there, by the one name that the kernel has for it.
pub(super) fn existing(directory: &Path) -> Result<PathBuf, Failure> {
    let found = directory.canonicalize().ok().filter(|found| found.is_dir());
    found.ok_or_else(|| {
        Failure::Usage(format!("`{}` is not a directory: create it first", directory.display()))
    })
}

/// Where restored disks go: a directory, or nothing yet. In a file's place no consent puts one.
fn restore_target(path: &Path) -> Result<PathBuf, Failure> {
    if path.metadata().is_ok_and(|found| !found.is_dir()) {
        let text =
            format!("--to `{}`: this is no directory: name one, which is created if missing", path.display());
        return Err(Failure::Usage(text));
    }
    absolute(path)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::Usage(format!("`{}`: {error}", path.display())))
}

impl Session {
    async fn group(&self, command: GroupCommand) -> Result<(), Failure> {
        match command {
            GroupCommand::Create { group, no_points } => {
                let request = GroupRequest { name: group, points: !no_points };
                let group: Group = self.client.post("/v1/groups", &request).await?;
                let how = if no_points { ", without recovery points" } else { "" };
                self.output.show(&group, |group| format!("group {} created{how}\n", group.name))
            }
            GroupCommand::List => {
                let groups: Vec<Group> = self.client.get("/v1/groups").await?;
                self.output.show(&groups, |groups| render::groups(groups))
            }
            GroupCommand::Show { group } => {
                let group: Group = self.client.get(&format!("/v1/groups/{group}")).await?;
                self.output.show(&group, render::group)
            }
            GroupCommand::Pause { group } => {
                let route = format!("/v1/groups/{group}/pause");
                let group: Group = self.client.post(&route, &serde_json::json!({})).await?;
                let text = "no timed points are made, and none go, until `group resume`";
                self.output.show(&group, |group| format!("group {} is paused: {text}\n", group.name))
            }
            GroupCommand::Resume { group, accept_loss, consent } => {
                if accept_loss {
                    let what = format!(
                        "giving up what was written to {group} and rotted in its journal (a recovery point may still hold it: \
                         `point list {group}`)"
                    );
                    confirm(consent.yes, &what).await?;
                }
                let route = format!("/v1/groups/{group}/resume");
                let resumed: Resumed = self.client.post(&route, &ResumeRequest { accept_loss }).await?;
                self.output.show(&resumed, render::resumed)?;
                match resumed.latched.len() {
                    0 => Ok(()),
                    count => {
                        let text = format!("not cleared: {}", counted(count, "latch"));
                        Err(Error::new(ErrorKind::Latched, text).into())
                    }
                }
            }
            GroupCommand::Remove { group, consent } => {
                let what = format!("removing group {group} with its disks and all recovery points");
                confirm(consent.yes, &what).await?;
                self.client.delete::<()>(&format!("/v1/groups/{group}")).await?;
                self.removed(&format!("group {group}"))
            }
        }
    }

    async fn disk(&self, command: DiskCommand) -> Result<(), Failure> {
        match command {
            DiskCommand::Create { disk, source } => self.disk_create(disk, source).await,
            DiskCommand::List { group } => {
                let disks: Vec<Disk> =
                    self.client.get(&format!("/v1/disks{}", of_group(group.as_ref()))).await?;
                self.output.show(&disks, |disks| render::disks(disks))
            }
            DiskCommand::Resize { disk, size, yes_lose_tail } => {
                let route = format!("/v1/groups/{}/disks/{}/resize", disk.group, disk.disk);
                let request = ResizeRequest { size_bytes: size.bytes(), lose_tail: yes_lose_tail };
                let disk: Disk = self.client.post(&route, &request).await?;
                self.output.show(&disk, |disk| {
                    let size = ByteSize(disk.size_bytes).exact();
                    format!("disk {} has {size}: clients see that when they connect anew\n", disk.export)
                })
            }
            DiskCommand::Remove { disk, consent } => {
                confirm(consent.yes, &format!("removing disk {disk} with its content")).await?;
                self.client.delete::<()>(&format!("/v1/groups/{}/disks/{}", disk.group, disk.disk)).await?;
                self.removed(&format!("disk {disk}"))
            }
        }
    }

    async fn disk_create(&self, path: DiskPath, source: SourceArgument) -> Result<(), Failure> {
        let route = format!("/v1/groups/{}/disks", path.group);
        let disk: Disk = match (source.size, source.import) {
            (Some(size), _) => {
                let source = DiskSource::SizeBytes(size.bytes());
                self.client.post(&route, &DiskRequest { name: path.disk, source }).await?
            }
            (None, Some(file)) => {
                let label = format!("importing {path}");
                let source = DiskSource::Import(absolute(&file)?);
                let request = DiskRequest { name: path.disk, source };
                match progress::run(&self.client, self.client.post(&route, &request), &label).await? {
                    JobResult::Disk(disk) => {
                        complain(&padding(&file, disk.size_bytes));
                        disk
                    }
                    other => return Err(unexpected(&other)),
                }
            }
            (None, None) => return Err(Failure::Usage("write --size SIZE or --import FILE".into())),
        };
        self.output.show(&disk, render::disk_created)
    }

    async fn point(&self, command: PointCommand) -> Result<(), Failure> {
        match command {
            PointCommand::Create { group, label } => {
                let route = format!("/v1/groups/{group}/points");
                let request = PointRequest { label };
                let asked = self.client.post(&route, &request);
                let created: PointCreated = waiting::told(&self.client, &group, asked).await?;
                self.output.show(&created, |created| render::point_created(&created.point))?;
                complain(&render::label_warning(&created));
                complain(&render::lacking_warning(&created.point));
                Ok(())
            }
            PointCommand::Hold { group, point } => self.change_point(&group, "hold", point, "held").await,
            PointCommand::Release { group, point } => {
                self.change_point(&group, "release", point, "released").await
            }
            PointCommand::Delete { group, point, consent } => {
                confirm(consent.yes, &format!("deleting a recovery point of {group}")).await?;
                self.change_point(&group, "delete", point, "deleted").await
            }
            PointCommand::List { group } => {
                let points: Vec<Point> = self.client.get(&format!("/v1/groups/{group}/points")).await?;
                self.output.show(&points, |points| render::points(points))
            }
            PointCommand::Mount { disk, point, partition, directory } => {
                self.mount(&disk, point.point, partition, &directory).await
            }
            PointCommand::Unmount { directory } => self.unmount(&directory).await,
        }
    }

    async fn policy(&self, command: PolicyCommand) -> Result<(), Failure> {
        let PolicyCommand::Set { group, policy, dry_run } = command;
        let interval_ms = policy.interval.map(|policy| policy.interval_ms);
        let request = PolicyRequest { interval_ms, retain: policy.retain };
        if dry_run {
            let route = format!("/v1/groups/{group}/policy/dry-run");
            let forecast: PolicyForecast = self.client.post(&route, &request).await?;
            return self.output.show(&forecast, render::forecast);
        }
        let group: Group = self.client.put(&format!("/v1/groups/{group}/policy"), &request).await?;
        self.output.show(&group, |group| {
            let (interval, retain) = (render::interval(group.policy), render::retain(group));
            format!("group {}: a recovery point every {interval}; kept are {retain}\n", group.name)
        })
    }

    /// Asks for something about one point; `done` is how that reads.
    async fn change_point(
        &self,
        group: &Name,
        verb: &str,
        point: PointSelector,
        done: &str,
    ) -> Result<(), Failure> {
        let route = format!("/v1/groups/{group}/points/{verb}");
        let point: Point = self.client.post(&route, &PointSelection { point }).await?;
        self.output.show(&point, |point| render::point_changed(point, done))
    }

    async fn failover(&self, command: FailoverCommand) -> Result<(), Failure> {
        match command {
            FailoverCommand::Test { group, point, read_only } => {
                let route = format!("/v1/groups/{group}/tests");
                let test: Test = self
                    .client
                    .post(&route, &TestRequest { point: point.point, read_only, for_restore: false })
                    .await?;
                self.output.show(&test, render::test_started)?;
                complain(&render::lacking_warning(&test.point));
                Ok(())
            }
            FailoverCommand::List { group } => {
                let tests = self.tests(group.as_ref()).await?;
                self.output.show(&tests, |tests| render::tests(tests))
            }
            FailoverCommand::Cleanup { group, test, all, consent } => {
                let tests = self.tests(Some(&group)).await?;
                let chosen = choose(&group, &tests, test, all)?;
                self.cleanup(&group, chosen, consent).await
            }
        }
    }

    pub(super) async fn tests(&self, group: Option<&Name>) -> Result<Vec<Test>, Failure> {
        self.client.get(&format!("/v1/tests{}", of_group(group))).await
    }

    async fn cleanup(&self, group: &Name, chosen: Vec<&Test>, consent: Consent) -> Result<(), Failure> {
        let written: u64 = chosen.iter().map(|test| test.overlay_bytes).sum();
        let connected: u64 = chosen.iter().map(|test| test.connections).sum();
        if written > 0 || connected > 0 {
            let what = format!(
                "throwing away {} written to {} of {group}, with {} connected",
                counted(written, "byte"),
                render::test_numbers(&chosen),
                counted(connected, "client")
            );
            confirm(consent.yes, &what).await?;
        }
        let mut cleaned: Vec<u64> = Vec::with_capacity(chosen.len());
        for test in chosen {
            let route = format!("/v1/groups/{group}/tests/{}", test.number.0);
            cleaned.extend(self.client.delete::<Vec<u64>>(&route).await?);
        }
        self.output.show(&cleaned, |cleaned| {
            if cleaned.is_empty() {
                return format!("group {group} has no test failover\n");
            }
            cleaned.iter().map(|number| format!("test-{number} of {group} ended\n")).collect()
        })
    }

    async fn restore(
        &self,
        group: &Name,
        point: PointSelector,
        to: &Path,
        consent: Consent,
    ) -> Result<(), Failure> {
        let directory = restore_target(to)?;
        let restoring = async |overwrite| {
            let request = RestoreRequest { point: point.clone(), directory: directory.clone(), overwrite };
            self.restore_once(group, &request).await
        };
        let result = overwriting(consent, &directory, restoring).await?;
        match result {
            JobResult::Restored(restored) => self.show_restored(&restored),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes images of a format that is not the gateway's own, from a test failover.
    async fn restore_as(
        &self,
        format: ImageFormat,
        group: &Name,
        point: PointSelector,
        to: &Path,
        consent: Consent,
    ) -> Result<(), Failure> {
        let directory = restore_target(to)?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| Error::io("creating the directory", error).at_path(&directory))?;
        let writing = async |test: &Test, interrupts: &mut Interrupts| {
            let restoring = async |overwrite| tools::restore(test, &directory, format, overwrite).await;
            tokio::select! {
                restored = overwriting(consent, &directory, restoring) => restored,
                () = interrupts.next() => {
                    Err(Failure::Interrupted("what was written of unfinished images is gone".into()))
                }
            }
        };
        let request = TestRequest { point, read_only: true, for_restore: true };
        let (test, files) = self.with_test(group, &request, Keep::Never, writing).await?;
        let mut bytes = 0;
        for file in &files {
            let metadata = file.metadata().map_err(|error| Error::io("looking", error).at_path(file))?;
            bytes += std::os::unix::fs::MetadataExt::blocks(&metadata) * SECTOR_BYTES;
        }
        self.show_restored(&Restored { point: test.point, files, bytes })
    }

    /// Shows what a restore wrote; it failed if a disk of the point could not be had.
    fn show_restored(&self, restored: &Restored) -> Result<(), Failure> {
        self.output.show(restored, render::restored)?;
        match restored.point.lacks.as_slice() {
            [] => Ok(()),
            lacks => {
                let text = format!(
                    "not restored: {}: the point lacks writes to it that rotted in the journal; choose another point for it",
                    lacks.join(", ")
                );
                Err(Error::new(ErrorKind::NotFound, text).into())
            }
        }
    }

    /// Does `work` on a test failover of a point, which ends with it, also when it fails or is interrupted: interruptions
    /// are the work's to hear, and to put right what it did before the test failover goes.
    pub(super) async fn with_test<T>(
        &self,
        group: &Name,
        request: &TestRequest,
        keep: Keep,
        work: impl AsyncFnOnce(&Test, &mut Interrupts) -> Result<T, Failure>,
    ) -> Result<(Test, T), Failure> {
        let mut interrupts = Interrupts::listen()?;
        let test: Test = self.client.post(&format!("/v1/groups/{group}/tests"), request).await?;
        let worked = work(&test, &mut interrupts).await;
        if keep == Keep::Never || worked.is_err() {
            let ended = self.end_test(group.as_str(), test.number.0).await;
            // The work's own failure says more than what comes of it.
            let done = worked?;
            return ended.map(|()| (test, done));
        }
        worked.map(|done| (test, done))
    }

    pub(super) async fn end_test(&self, group: &str, number: u64) -> Result<(), Failure> {
        self.client.delete::<Vec<u64>>(&format!("/v1/groups/{group}/tests/{number}")).await.map(drop)
    }

    async fn restore_once(&self, group: &Name, request: &RestoreRequest) -> Result<JobResult, Failure> {
        let route = format!("/v1/groups/{group}/restore");
        progress::run(&self.client, self.client.post(&route, request), &format!("restoring {group}")).await
    }

    async fn status(&self, watch: bool) -> Result<(), Failure> {
        if !watch {
            let status: Status = self.client.get("/v1/status").await?;
            return self.output.show(&status, render::status);
        }
        let mut ticks = tokio::time::interval(WATCH_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let status: Status = self.client.get("/v1/status").await?;
            self.output.show_again(&status, render::status)?;
        }
    }

    async fn group_verify(&self, group: &Name, rate: Option<ByteRate>) -> Result<(), Failure> {
        let request = GroupVerifyRequest { rate_bytes_per_s: rate.map(|rate| rate.0) };
        let route = format!("/v1/groups/{group}/verify");
        let asked = self.client.post(&route, &request);
        let report =
            match progress::run_verification(&self.client, asked, &format!("verifying {group}")).await? {
                JobResult::GroupVerified(report) => report,
                other => return Err(unexpected(&other)),
            };
        self.output.show(&report, render::group_verified)?;
        match report.faults.len() as u64 + report.more_faults {
            0 => Ok(()),
            count => Err(Error::corrupt(format!("group {group} has {}", counted(count, "fault"))).into()),
        }
    }

    async fn vault_verify(&self, group: Option<Name>, rate: Option<ByteRate>) -> Result<(), Failure> {
        let label = format!("verifying {}", group.as_ref().map_or("every group", Name::as_str));
        let request = VerifyRequest { group, rate_bytes_per_s: rate.map(|rate| rate.0) };
        let asked = self.client.post("/v1/vault/verify", &request);
        let report = match progress::run_verification(&self.client, asked, &label).await? {
            JobResult::Verified(report) => report,
            other => return Err(unexpected(&other)),
        };
        self.output.show(&report, render::verified)?;
        match report.faults.len() {
            0 => Ok(()),
            count => Err(Error::corrupt(format!("the vault has {}", counted(count, "fault"))).into()),
        }
    }

    async fn vault_repair(&self, group: &Name, rate: Option<ByteRate>, yes: bool) -> Result<(), Failure> {
        let request = RepairRequest { lose_points: yes, rate_bytes_per_s: rate.map(|rate| rate.0) };
        let route = format!("/v1/groups/{group}/repair");
        let label = if yes { format!("repairing {group}") } else { format!("verifying {group}") };
        let report = match progress::run(&self.client, self.client.post(&route, &request), &label).await? {
            JobResult::Repaired(report) => report,
            other => return Err(unexpected(&other)),
        };
        self.output.show(&report, render::repaired)?;
        let (count, what) = match report.done {
            true => (report.left.len(), "left: 'vault verify' says what"),
            false => (report.faults.len(), "and nothing was changed: --yes repairs it"),
        };
        match count {
            0 => Ok(()),
            count => {
                Err(Error::corrupt(format!("the vault of {group} has {} {what}", counted(count, "fault")))
                    .into())
            }
        }
    }

    async fn vault_adopt(&self, path: &Path, accept_loss: bool, consent: Consent) -> Result<(), Failure> {
        let directory = absolute(path)?;
        if accept_loss {
            let what = format!(
                "giving up what the newest recovery point in {} shows and nobody can read (without --accept-loss it is said how much)",
                directory.display()
            );
            confirm(consent.yes, &what).await?;
        }
        let label = format!("adopting {}", directory.display());
        let request = AdoptRequest { directory, accept_loss };
        let asked = self.client.post("/v1/vault/adopt", &request);
        match progress::run(&self.client, asked, &label).await? {
            JobResult::Adopted(adopted) => self.output.show(&*adopted, render::adopted),
            other => Err(unexpected(&other)),
        }
    }

    fn removed(&self, what: &str) -> Result<(), Failure> {
        if self.output.json { print("null\n") } else { print(&format!("{what} removed\n")) }
    }
}

/// Does `work`, which is told whether it may overwrite files; where one stops it, a person is asked, and it is done again.
async fn overwriting<T>(
    consent: Consent,
    directory: &Path,
    work: impl AsyncFn(bool) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match work(consent.yes).await {
        Err(Failure::Failed(error)) if error.kind() == ErrorKind::AlreadyExists && !consent.yes => {
            confirm(false, &format!("overwriting files in {} ({error})", directory.display())).await?;
            work(true).await
        }
        other => other,
    }
}

/// The test failovers that a cleanup means: all, the one named, or the only one.
fn choose<'a>(
    group: &Name,
    tests: &'a [Test],
    number: Option<u64>,
    all: bool,
) -> Result<Vec<&'a Test>, Failure> {
    let Some(number) = number else {
        if all || tests.len() <= 1 {
            return Ok(tests.iter().collect());
        }
        let numbers = render::test_numbers(&tests.iter().collect::<Vec<_>>());
        return Err(Failure::Usage(format!("group {group} has {numbers}: write --test N or --all")));
    };
    match tests.iter().find(|test| test.number.0 == number) {
        Some(test) => Ok(vec![test]),
        None => Err(Error::new(ErrorKind::NotFound, format!("group {group} has no test-{number}")).into()),
    }
}

/// That a file was no whole number of sectors, if so; nothing where the gateway's files are not ours to look at.
fn padding(file: &Path, size_bytes: u64) -> String {
    match file.metadata() {
        Ok(metadata) if (1..SECTOR_BYTES).contains(&size_bytes.saturating_sub(metadata.len())) => format!(
            "note: the file has {}: the disk's last sector is padded with {}\n",
            counted(metadata.len(), "byte"),
            counted(size_bytes - metadata.len(), "zero")
        ),
        _ => String::new(),
    }
}

fn unexpected(result: &JobResult) -> Failure {
    Error::new(ErrorKind::Protocol, format!("the job made something else: {result:?}")).into()
}
