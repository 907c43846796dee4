//! The verbs of the API that the demo and the process tests use, typed.

use std::path::Path;

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::progress;
use crate::control::model::{
    Disk, DiskRequest, DiskSource, Group, GroupRequest, GroupStatus, Job, JobResult, Point, PointRequest,
    Policy, RestoreRequest, Restored, Status, Test, TestRequest, VerifyReport, VerifyRequest,
};
use crate::control::name::{Label, Name};
use crate::control::selector::PointSelector;
use crate::error::{Error, ErrorKind};
use crate::units::PointId;

/// One group of one gateway.
pub struct Api {
    client: Client,
    group: Name,
}

impl Api {
    /// The group of that name, which need not be there yet.
    pub fn new(client: Client, group: Name) -> Api {
        Api { client, group }
    }

    fn path(&self, below: &str) -> String {
        format!("/v1/groups/{}{below}", self.group)
    }

    /// `group create`; without `points`, `--no-points`.
    pub async fn create(&self, points: bool) -> Result<Group, Failure> {
        self.client.post("/v1/groups", &GroupRequest { name: self.group.clone(), points }).await
    }

    /// `disk create`
    pub async fn create_disk(&self, name: Name, bytes: u64) -> Result<Disk, Failure> {
        let request = DiskRequest { name, source: DiskSource::SizeBytes(bytes) };
        self.client.post(&self.path("/disks"), &request).await
    }

    /// `policy set`
    pub async fn set_interval(&self, interval_ms: u64) -> Result<Group, Failure> {
        self.client.put(&self.path("/policy"), &Policy { interval_ms }).await
    }

    /// How the group stands.
    pub async fn status(&self) -> Result<GroupStatus, Failure> {
        let status: Status = self.client.get("/v1/status").await?;
        let group = status.groups.into_iter().find(|status| status.group.name == self.group);
        group.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("the gateway has no group {}", self.group)).into()
        })
    }

    /// `point list`
    pub async fn points(&self) -> Result<Vec<Point>, Failure> {
        self.client.get(&self.path("/points")).await
    }

    /// `point create`
    pub async fn create_point(&self, label: Option<Label>) -> Result<Point, Failure> {
        self.client.post(&self.path("/points"), &PointRequest { label }).await
    }

    /// `failover test`
    pub async fn start_test(&self, point: PointId) -> Result<Test, Failure> {
        self.client
            .post(
                &self.path("/tests"),
                &TestRequest { point: by_id(point)?, read_only: false, for_restore: false },
            )
            .await
    }

    /// `failover cleanup`
    pub async fn end_test(&self, test: &Test) -> Result<(), Failure> {
        let route = self.path(&format!("/tests/{}", test.number.0));
        self.client.delete::<Vec<u64>>(&route).await.map(drop)
    }

    /// `restore`
    pub async fn restore(&self, point: PointId, directory: &Path) -> Result<Restored, Failure> {
        let request =
            RestoreRequest { point: by_id(point)?, directory: directory.to_owned(), overwrite: true };
        let job: Job = self.client.post(&self.path("/restore"), &request).await?;
        match progress::watch(&self.client, job, "restoring").await? {
            JobResult::Restored(restored) => Ok(restored),
            other => Err(Error::new(ErrorKind::Protocol, format!("a restore made {other:?}")).into()),
        }
    }

    /// `vault verify`
    pub async fn verify_vault(&self) -> Result<VerifyReport, Failure> {
        let request = VerifyRequest { group: Some(self.group.clone()), rate_bytes_per_s: None };
        let job: Job = self.client.post("/v1/vault/verify", &request).await?;
        match progress::watch(&self.client, job, "verifying the vault").await? {
            JobResult::Verified(report) => Ok(report),
            other => Err(Error::new(ErrorKind::Protocol, format!("a verification made {other:?}")).into()),
        }
    }
}

fn by_id(point: PointId) -> Result<PointSelector, Error> {
    PointSelector::parse(&format!("id:{point}"), Default::default(), &jiff::tz::TimeZone::UTC)
}
