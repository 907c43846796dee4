//! Where a view has its bytes from: for whoever finds that they are wrong, and has to name a file.

use std::path::PathBuf;

use super::tables::Trouble;
use super::{View, ViewDisk};
use crate::delta::Place;
use crate::error::Result;
use crate::units::{DiskId, SectorRange};

/// Where a view has a range from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A chunk of a delta: what is read of it is compared with its checksum.
    Delta {
        /// The blob.
        path: PathBuf,
        /// Where the chunk is stored.
        offset: u64,
    },
    /// A delta's tables say that it is zeros: they were compared with their checksum.
    Zeros,
    /// A base, whose sectors are compared with their sums, unless it is one of before there were sums.
    Base {
        /// The base.
        path: PathBuf,
        /// The first byte there.
        offset: u64,
        /// Whether it has sums.
        has_sums: bool,
    },
}

impl View {
    /// Where the bytes of a range are, in order and without gaps.
    pub async fn origins(&self, disk: DiskId, range: SectorRange) -> Result<Vec<(SectorRange, Origin)>> {
        let disk = self.checked(disk, range)?;
        loop {
            match self.try_origins(disk, range).await {
                Ok(origins) => return Ok(origins),
                Err(trouble) => self.mend(trouble).await?,
            }
        }
    }

    async fn try_origins(
        &self,
        disk: &ViewDisk,
        range: SectorRange,
    ) -> std::result::Result<Vec<(SectorRange, Origin)>, Trouble> {
        let mut origins = Vec::new();
        for (range, place) in self.tables.lookup(disk.slot, range).await? {
            let origin = match place {
                Some(Place::Zero { .. }) => Origin::Zeros,
                Some(Place::Chunk { layer, chunk, .. }) => {
                    let (blob, chunk) = self.tables.stored(layer, chunk).await?;
                    Origin::Delta { path: self.vault.layout().blob(blob), offset: chunk.offset }
                }
                None => Origin::Base {
                    path: disk.base.file().path().to_owned(),
                    offset: range.byte_offset(),
                    has_sums: disk.base.has_sums(),
                },
            };
            origins.push((range, origin));
        }
        Ok(origins)
    }
}

impl Origin {
    /// The same, `bytes` further on in the disk.
    #[must_use]
    pub fn advanced(self, bytes: u64) -> Origin {
        match self {
            Origin::Base { path, offset, has_sums } => {
                Origin::Base { path, offset: offset + bytes, has_sums }
            }
            same => same,
        }
    }
}
