//! `point mount` and `point unmount`: a test failover, and what [`super::tools`] puts up over it.
//!
//! Taking a mount down needs no gateway; ending its test failover does. What no gateway was there to end, the next of these
//! two commands ends.

use std::path::Path;

use super::commands::{Keep, Session, existing};
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::output::complain;
use super::{render, tools};
use crate::control::model::{Test, TestRequest};
use crate::control::name::DiskPath;
use crate::control::selector::PointSelector;
use crate::error::ErrorKind;

impl Session {
    pub(super) async fn mount(
        &self,
        disk: &DiskPath,
        point: PointSelector,
        partition: Option<u32>,
        directory: &Path,
    ) -> Result<(), Failure> {
        let directory = existing(directory)?;
        // Whoever wants to mount need not wait for that.
        if let Err(failure) = self.end_left_tests().await {
            complain(&format!("the test failover of an earlier mount stays: {failure}\n"));
        }
        let mounting = async |test: &Test, interrupts: &mut Interrupts| {
            let gateway = self.client.place().to_path();
            let shown = (test, gateway.as_path());
            tools::mount(shown, disk, partition, &directory, interrupts).await
        };
        // Writable: before it can be read, a file system that was in use at the point replays its own journal.
        let request = TestRequest { point, read_only: false, for_restore: false };
        let (_, mounted) = self.with_test(&disk.group, &request, Keep::OnSuccess, mounting).await?;
        self.output.show(&mounted, render::mounted)
    }

    pub(super) async fn unmount(&self, directory: &Path) -> Result<(), Failure> {
        // On one that is not there nothing is mounted, and that is what is said.
        let found = directory.canonicalize().or_else(|_| std::path::absolute(directory));
        let found = found.unwrap_or_else(|_| directory.to_owned());
        let mounted = tools::unmount(&found).await?;
        match self.end_left_tests().await {
            // What was asked for is done all the same.
            Err(failure) if failure.is_without_gateway() => complain(&render::test_left(&mounted)),
            ended => ended?,
        }
        self.output.show(&mounted, render::unmounted)
    }

    /// Ends the test failovers of mounts that were taken down, now or while no gateway answered.
    async fn end_left_tests(&self) -> Result<(), Failure> {
        for left in tools::left_tests(&self.client.place().to_path())? {
            let tests = match self.tests(Some(&left.group)).await {
                // Gone with its group.
                Err(Failure::Failed(error)) if error.kind() == ErrorKind::NotFound => Vec::new(),
                tests => tests?,
            };
            if let Some(test) = tests.iter().find(|test| left.is(test)) {
                self.end_test(left.group.as_str(), test.number.0).await?;
            }
            left.forget()?;
        }
        Ok(())
    }
}
