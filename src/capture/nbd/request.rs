//! What a request is worth, decided from its header and what was negotiated by one pure function, [`classify`].
//!
//! TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS carry no payload, so the maximum block size does not bind them: Linux's
//! own client ignores it there, and a range of zeros is one record however long.

use super::codec::*;
use crate::allocation::AllocationRun;
use crate::block::{Export, Refusal, Request};
use crate::units::{SECTOR_BYTES, SectorRange, to_usize};

/// Extents in one answer to BLOCK_STATUS; a client asks again for the rest.
pub(super) const EXTENTS_MAX: usize = 4096;

/// What the handshake agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Negotiated {
    pub(super) export: Export,
    /// Bytes; whole sectors.
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// Structured replies.
    pub(super) structured: bool,
    /// `base:allocation` was selected for this export.
    pub(super) allocation: bool,
}

impl Negotiated {
    pub(super) fn transmission_flags(&self) -> u16 {
        // What only changes an export is not offered where nothing can be changed, as by other servers.
        let access = if self.read_only {
            NBD_FLAG_READ_ONLY
        } else {
            let fast = if self.zeros_are_fast() { NBD_FLAG_SEND_FAST_ZERO } else { 0 };
            NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | fast
        };
        NBD_FLAG_HAS_FLAGS
            | NBD_FLAG_SEND_FLUSH
            | NBD_FLAG_SEND_FUA
            | NBD_FLAG_CAN_MULTI_CONN
            | NBD_FLAG_SEND_CACHE
            | access
            | if self.structured { NBD_FLAG_SEND_DF } else { 0 }
    }

    /// Zeros of a protected disk are a record without payload, which is always faster than a write; those of a test failover
    /// are written to its overlay.
    fn zeros_are_fast(&self) -> bool {
        matches!(self.export, Export::Disk(..))
    }
}

/// What a successful answer looks like.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReplyShape {
    /// Success has nothing to tell.
    Done,
    /// The bytes of a READ; in one chunk if the client said DF.
    Data { offset: u64, length: u32, unfragmented: bool },
    /// The extents of a BLOCK_STATUS; only the first if the client said REQ_ONE.
    Extents { length: u32, first_only: bool },
}

/// Why a request is refused, in the protocol's terms and a person's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: ErrorCode,
    pub(super) message: &'static str,
    /// The first byte of the request that cannot be served, where that is known.
    pub(super) offset: Option<u64>,
}

/// What a request's header asks for.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Ask the disk's owner.
    Ask(Request, ReplyShape),
    /// Ask the disk's owner, with the payload that follows.
    Write {
        range: SectorRange,
        durable: bool,
    },
    /// There is nothing to do.
    Done,
    Refuse(Fault),
    Disconnect,
}

/// Bytes that a request counts towards the limit of payloads: what it brings, or the most that its reply has.
pub(super) fn charge(verdict: &Verdict) -> usize {
    match verdict {
        Verdict::Write { range, .. } | Verdict::Ask(Request::Read { range }, _) => to_usize(range.bytes()),
        Verdict::Ask(Request::Allocation { range, runs_max }, _) => {
            let runs = to_usize(range.sectors()).min(*runs_max);
            runs * (size_of::<AllocationRun>() + size_of::<ExtentDescriptor>())
        }
        _ => 0,
    }
}

fn flags_allowed(kind: u16, negotiated: &Negotiated) -> u16 {
    NBD_CMD_FLAG_FUA
        | match kind {
            NBD_CMD_READ if negotiated.structured => NBD_CMD_FLAG_DF,
            NBD_CMD_WRITE_ZEROES if negotiated.zeros_are_fast() => {
                NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO
            }
            NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE,
            NBD_CMD_BLOCK_STATUS => NBD_CMD_FLAG_REQ_ONE,
            _ => 0,
        }
}

/// Decides what a request is worth. FAST_ZERO needs no look: it is offered only where zeros are always faster than a write.
pub(super) fn classify(header: &RequestHeader, negotiated: &Negotiated) -> Verdict {
    let (kind, flags) = (header.kind.get(), header.flags.get());
    if kind == NBD_CMD_DISC {
        return Verdict::Disconnect;
    }
    if kind == NBD_CMD_FLUSH {
        return classify_flush(header);
    }
    let range = match check(header, negotiated) {
        Ok(range) => range,
        Err(fault) => return Verdict::Refuse(fault),
    };
    let length = header.length.get();
    let durable = flags & NBD_CMD_FLAG_FUA != 0;
    match kind {
        NBD_CMD_BLOCK_STATUS if length == 0 => {
            Verdict::Refuse(Fault::invalid("a block status covers a sector at least"))
        }
        _ if length == 0 => Verdict::Done,
        NBD_CMD_READ => {
            let unfragmented = flags & NBD_CMD_FLAG_DF != 0;
            let shape = ReplyShape::Data { offset: header.offset.get(), length, unfragmented };
            Verdict::Ask(Request::Read { range }, shape)
        }
        NBD_CMD_WRITE => Verdict::Write { range, durable },
        NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES => {
            let keep_allocated = flags & NBD_CMD_FLAG_NO_HOLE != 0;
            Verdict::Ask(Request::Zero { range, durable, keep_allocated }, ReplyShape::Done)
        }
        NBD_CMD_BLOCK_STATUS => {
            let first_only = flags & NBD_CMD_FLAG_REQ_ONE != 0;
            let runs_max = if first_only { 1 } else { EXTENTS_MAX };
            Verdict::Ask(Request::Allocation { range, runs_max }, ReplyShape::Extents { length, first_only })
        }
        // CACHE: reads are as fast as they get.
        _ => Verdict::Done,
    }
}

fn classify_flush(header: &RequestHeader) -> Verdict {
    if header.flags.get() & !NBD_CMD_FLAG_FUA != 0 {
        Verdict::Refuse(UNKNOWN_FLAG)
    } else if header.offset.get() != 0 || header.length.get() != 0 {
        Verdict::Refuse(Fault::invalid("a flush has neither offset nor length"))
    } else {
        Verdict::Ask(Request::Flush, ReplyShape::Done)
    }
}

/// The range of a request on a range, once command, flags, permission, alignment, length and range are in order.
fn check(header: &RequestHeader, negotiated: &Negotiated) -> Result<SectorRange, Fault> {
    let (kind, flags) = (header.kind.get(), header.flags.get());
    let (offset, length) = (header.offset.get(), header.length.get());
    if kind > NBD_CMD_BLOCK_STATUS {
        return Err(Fault::invalid("unknown command"));
    }
    if flags & !flags_allowed(kind, negotiated) != 0 {
        return Err(UNKNOWN_FLAG);
    }
    if kind == NBD_CMD_BLOCK_STATUS && !negotiated.allocation {
        return Err(Fault::invalid("no metadata context was selected"));
    }
    let writes = matches!(kind, NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES);
    if writes && negotiated.read_only {
        return Err(refusal_fault(Refusal::ReadOnly));
    }
    if !offset.is_multiple_of(SECTOR_BYTES) || !u64::from(length).is_multiple_of(SECTOR_BYTES) {
        return Err(Fault::invalid("offset and length must be multiples of 512"));
    }
    // Before the range: too long is too long wherever it would end.
    if matches!(kind, NBD_CMD_READ | NBD_CMD_WRITE) && length > BLOCK_SIZE_MAX {
        let code = if flags & NBD_CMD_FLAG_DF != 0 { NBD_EOVERFLOW } else { NBD_EINVAL };
        return Err(Fault { code, message: "longer than the maximum block size of 32 MiB", offset: None });
    }
    let end = offset.checked_add(u64::from(length)).filter(|&end| end <= negotiated.size);
    let Some(end) = end else {
        let code = if matches!(kind, NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES) { NBD_ENOSPC } else { NBD_EINVAL };
        let first = (length > 0).then(|| offset.max(negotiated.size));
        return Err(Fault { code, message: "beyond the end of the export", offset: first });
    };
    Ok(SectorRange::new(offset / SECTOR_BYTES, end / SECTOR_BYTES))
}

const UNKNOWN_FLAG: Fault = Fault::invalid("a flag that this command does not take");

impl Fault {
    const fn invalid(message: &'static str) -> Fault {
        Fault { code: NBD_EINVAL, message, offset: None }
    }
}

/// A refusal in the protocol's terms.
pub(super) fn refusal_fault(refusal: Refusal) -> Fault {
    let (code, message) = match refusal {
        Refusal::Invalid => (NBD_EINVAL, "the disk has no such range"),
        Refusal::NoSpace => (NBD_ENOSPC, "no space behind the disk"),
        Refusal::ReadOnly => (NBD_EPERM, "the export is read-only"),
        Refusal::Io => (NBD_EIO, "the device failed"),
        Refusal::Shutdown => (NBD_ESHUTDOWN, "the server stops, or the export was removed"),
    };
    Fault { code, message, offset: None }
}

#[cfg(test)]
mod tests;
