//! What keeps points: holds and test failovers.

use crate::block::TestId;
use crate::error::Result;
use crate::format::codec::{Decoder, Encoder};
use crate::units::{PinId, PointId, WallNanos};

/// What a test failover is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TestUse {
    /// Clients read and write it: it has overlays.
    Rehearsal,
    /// Clients read it.
    ReadOnly,
    /// A restore reads it through another program, which does not outlive its connection: it ends with the gateway.
    Restore,
}

impl TestUse {
    /// Whether writes are refused, so that it needs no overlays.
    pub fn is_read_only(self) -> bool {
        self != TestUse::Rehearsal
    }
}

/// Why a pin exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinKind {
    /// A test failover serves the point.
    Test {
        /// Its number within the group.
        test: TestId,
        /// What for.
        purpose: TestUse,
    },
    /// Somebody wants it kept.
    Hold,
}

/// A durable note that a point's blobs are still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinRecord {
    /// Its id.
    pub id: PinId,
    /// What is needed.
    pub point: PointId,
    /// By whom.
    pub kind: PinKind,
    /// Since when.
    pub created: WallNanos,
}

impl PinRecord {
    pub(in crate::format) const ENCODED_BYTES: usize = 16 + 16 + 1 + 8 + 8;

    pub(in crate::format) fn encode(&self, to: &mut Encoder) {
        to.u128(self.id.0);
        to.u128(self.point.0);
        let (kind, number) = match self.kind {
            PinKind::Test { test, purpose: TestUse::Rehearsal } => (1, test.0),
            PinKind::Test { test, purpose: TestUse::Restore } => (2, test.0),
            PinKind::Test { test, purpose: TestUse::ReadOnly } => (4, test.0),
            PinKind::Hold => (3, 0),
        };
        to.u8(kind);
        to.u64(number);
        to.i64(self.created.0);
    }

    pub(in crate::format) fn decode(from: &mut Decoder<'_>) -> Result<PinRecord> {
        let (id, point) = (PinId(from.u128("pin id")?), PointId(from.u128("point id")?));
        let kind = match (from.u8("pin kind")?, from.u64("pin number")?) {
            (kind @ (1 | 2 | 4), number) if number > 0 => {
                let purpose = match kind {
                    1 => TestUse::Rehearsal,
                    2 => TestUse::Restore,
                    _ => TestUse::ReadOnly,
                };
                PinKind::Test { test: TestId(number), purpose }
            }
            (3, 0) => PinKind::Hold,
            (kind, number) => return Err(from.corrupt(format!("pin kind {kind}, number {number}"))),
        };
        Ok(PinRecord { id, point, kind, created: WallNanos(from.i64("pin time")?) })
    }
}
