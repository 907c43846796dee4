//! What the API asks of the site: the verbs of a person, typed.
//!
//! Names, selectors, sizes and policies arrive parsed. An answer is a future, because the data path's threads give
//! it; dropping the future (a client that left) must not leave a verb half done. Long verbs report their
//! [`Progress`] and run in a job; they ask it whether to go on, and when it says no they fail with its error, and leave
//! nothing behind.

use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;

use super::catalogue::Catalogue;
use super::jobs::Progress;
use super::model::{
    AdoptRequest, Adopted, Disk, Event, EventPage, EventQuery, Group, GroupReport, GroupRequest,
    GroupVerified, HookStatus, KeyImport, KeyRotation, KeyText, Keys, Point, PointCreated, PolicyForecast,
    PolicyRequest, RepairReport, RepairRequest, ReportQuery, RestoreRequest, Restored, ResumeRequest,
    Resumed, Status, Test, TestRequest, VerifyReport,
};
use super::name::{DiskPath, Label, Name};
use super::selector::PointSelector;
use crate::block::TestId;
use crate::error::Result;
use crate::throttle::ByteRate;
use crate::units::SectorCount;

/// What the site will answer.
pub type Answer<'a, T> = BoxFuture<'a, Result<T>>;

/// The site, as the API sees it. A group is meant by its name or its id. A group that could not be opened is listed, and
/// serves what its vault can give; what needs it open is refused as `Latched`, with the reason. Errors: `NotFound` for a name that nothing has, `AlreadyExists` for one that is
/// taken, `Latched` for what is in use or failed, `Invalid` for what can't be.
pub trait Backend: Send + Sync + 'static {
    /// Creates an empty group.
    fn group_create(&self, request: GroupRequest) -> Answer<'_, Group>;
    /// Every group, by name, with its disks.
    fn groups(&self) -> Answer<'_, Vec<Group>>;
    /// One group.
    fn group(&self, name: Name) -> Answer<'_, Group>;
    /// Removes a group with its disks, journal, points and test failovers; its clients are disconnected.
    fn group_remove(&self, name: Name) -> Answer<'_, ()>;
    /// Has timed points and retention rest until the group is resumed; its guests do not feel it.
    fn group_pause(&self, name: Name) -> Answer<'_, Group>;
    /// Looks again at a group after a mend: opens it if it could not be opened, else clears what is latched, if it can. Where
    /// writes are lost that rotted in the journal, it can if that is accepted.
    fn group_resume(&self, name: Name, request: ResumeRequest) -> Answer<'_, Resumed>;
    /// Creates a disk of zeros; it is exported when this answers.
    fn disk_create(&self, path: DiskPath, size: SectorCount) -> Answer<'_, Disk>;
    /// Creates a disk with a raw file's content, holes kept; it joins points and exports when the copy is complete.
    fn disk_import(&self, path: DiskPath, file: PathBuf, progress: Progress) -> Answer<'_, Disk>;
    /// Gives a disk another size; clients that connect from then on are told it. A smaller one is refused without `lose_tail`, and
    /// while clients are connected.
    fn disk_resize(&self, path: DiskPath, size: SectorCount, lose_tail: bool) -> Answer<'_, Disk>;
    /// Removes a disk; points made before keep it.
    fn disk_remove(&self, path: DiskPath) -> Answer<'_, ()>;
    /// Changes a group's policy from now on.
    fn policy_set(&self, group: Name, policy: PolicyRequest) -> Answer<'_, Group>;
    /// What a policy would do to a group's points; changes nothing.
    fn policy_dry_run(&self, group: Name, policy: PolicyRequest) -> Answer<'_, PolicyForecast>;
    /// Keeps a point until it is released.
    fn point_hold(&self, group: Name, point: PointSelector) -> Answer<'_, Point>;
    /// Ends a hold.
    fn point_release(&self, group: Name, point: PointSelector) -> Answer<'_, Point>;
    /// Drops a point: the next one takes over what changed up to it. Not the newest, nor one that is held or in use.
    fn point_delete(&self, group: Name, point: PointSelector) -> Answer<'_, Point>;
    /// Makes a point that holds all that was acknowledged before, and nothing issued after the answer. Its label may be
    /// another's too.
    fn point_create(&self, group: Name, label: Option<Label>) -> Answer<'_, PointCreated>;
    /// Every point of a group, oldest first.
    fn points(&self, group: Name) -> Answer<'_, Vec<Point>>;
    /// Serves a point beside ongoing protection.
    fn test_start(&self, group: Name, request: TestRequest) -> Answer<'_, Test>;
    /// Ends one test failover, or all of a group, and throws away what was written to it; says which.
    fn test_cleanup(&self, group: Name, test: Option<TestId>) -> Answer<'_, Vec<TestId>>;
    /// The test failovers of one group, or of all.
    fn tests(&self, group: Option<Name>) -> Answer<'_, Vec<Test>>;
    /// Writes a point's disks to raw files. `AlreadyExists`, before anything is written, if a file is there and the
    /// request does not say `overwrite`.
    fn restore(&self, group: Name, request: RestoreRequest, progress: Progress) -> Answer<'_, Restored>;
    /// What happened, newest first.
    fn events(&self, query: EventQuery) -> Answer<'_, Vec<Event>>;
    /// What came after an event; waits so long until there is some.
    fn events_after(&self, query: EventQuery, wait: Duration) -> Answer<'_, EventPage>;
    /// How the hooks stand, as they are configured.
    fn hooks(&self) -> Answer<'_, Vec<HookStatus>>;
    /// Has a hook told an event that is only for it; how it stands then.
    ///
    /// # Errors
    /// Whatever kept it from being told.
    fn hook_test(&self, name: Name) -> Answer<'_, HookStatus>;
    /// The catalogue, where there is one: the API keeps its jobs and its audit trail there.
    fn catalogue(&self) -> Option<Catalogue>;
    /// What there is of keys, and what the groups need.
    fn keys(&self) -> Answer<'_, Keys>;
    /// Wraps every group's keys under a new site key.
    fn key_rotate(&self, request: KeyRotation) -> Answer<'_, Keys>;
    /// The site key itself.
    fn key_export(&self) -> Answer<'_, KeyText>;
    /// Takes a site key; `AlreadyExists` if another one is here and the request does not say `replace`.
    fn key_import(&self, request: KeyImport) -> Answer<'_, Keys>;
    /// How a group fared over time.
    fn report(&self, group: Name, query: ReportQuery) -> Answer<'_, GroupReport>;
    /// How the gateway stands.
    fn status(&self) -> Answer<'_, Status>;
    /// Reads the vault of one group, or of all, also of those that could not be opened, and checks every step and blob;
    /// faults are findings, not errors.
    fn vault_verify(
        &self,
        group: Option<Name>,
        rate: Option<ByteRate>,
        progress: Progress,
    ) -> Answer<'_, VerifyReport>;
    /// Compares what a group serves with the newest point of its vault, beside its guests.
    fn group_verify(
        &self,
        group: Name,
        rate: Option<ByteRate>,
        progress: Progress,
    ) -> Answer<'_, GroupVerified>;
    /// Has the recovery points go that need what is lost in a group's vault, and writes anew what the newest shows of it; without
    /// consent, only says what would be done. Refused while such a point is held, or in use.
    fn vault_repair(
        &self,
        group: Name,
        request: RepairRequest,
        progress: Progress,
    ) -> Answer<'_, RepairReport>;
    /// Makes a group of a vault whose gateway is gone.
    fn vault_adopt(&self, request: AdoptRequest, progress: Progress) -> Answer<'_, Adopted>;
}
