//! The verb that gives a disk another size.

use std::sync::Arc;

use super::convert;
use super::gateway::{Answering, Inner};
use super::member::Member;
use crate::block::Export;
use crate::byte_size::ByteSize;
use crate::control::model::{Disk, Severity};
use crate::control::name::DiskPath;
use crate::counted::counted;
use crate::error::{Error, Result};
use crate::format::record::DiskRecord;
use crate::units::{GroupId, SectorCount};

impl Inner {
    pub(super) async fn disk_resize(
        self: &Arc<Self>,
        path: DiskPath,
        size: SectorCount,
        lose_tail: bool,
    ) -> Result<Disk> {
        let _turn = self.turn_of(&path.group).await?;
        let (group, id) = self.find_open(&path.group)?;
        let path = DiskPath { group, disk: path.disk };
        let before = self.disk_record(id, &path).await?;
        let name = path.to_string();
        if size < before.sectors {
            // Clients that come from now on are told the size that it will have.
            self.threads.exports().resize(&name, size.bytes());
        }
        let resized = self.resize(id, &before, size, lose_tail).await;
        let now = resized.as_ref().map_or(before.sectors, |record| record.sectors);
        self.threads.exports().resize(&name, now.bytes());
        let record = resized?;
        if record.sectors != before.sectors {
            let [from, to] =
                [before.sectors, record.sectors].map(|sectors| ByteSize(sectors.bytes()).exact());
            let text = format!("disk {path} was resized from {from} to {to}");
            tracing::info!(group = %path.group, "{text}");
            self.tell_now(id, &path.group, (Severity::Info, "disk_resized"), text);
            self.record_events().await;
        }
        self.remember_disk(id, &record).await?;
        convert::disk(&path.group, &record, &self.endpoint())
    }

    async fn resize(
        &self,
        id: GroupId,
        disk: &DiskRecord,
        size: SectorCount,
        lose_tail: bool,
    ) -> Result<DiskRecord> {
        let disk_id = disk.id;
        // Without consent the group says what would be lost.
        let clients = self.threads.exports().sessions_of(Export::Disk(id, disk_id));
        if size < disk.sectors && lose_tail && clients > 0 {
            let clients = counted(usize::try_from(clients).unwrap_or(usize::MAX), "connection");
            let text = format!("the disk would become smaller under {clients}: disconnect its clients first");
            return Err(Error::invalid(text));
        }
        self.ask(id, move |member: &mut Member, answer: Answering<DiskRecord>| match member.group() {
            Ok(group) => group.resize_disk(disk_id, size, lose_tail, answer.callback()),
            Err(error) => answer.send(Err(error)),
        })
        .await
    }
}
