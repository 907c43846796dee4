//! Requests as a client packs them.

use zerocopy::IntoBytes;

use crate::capture::nbd::codec::*;

/// What a client asks during transmission; offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a> {
    /// READ.
    Read {
        /// From where.
        offset: u64,
        /// How many.
        length: u32,
        /// DF: in one chunk.
        unfragmented: bool,
    },
    /// WRITE.
    Write {
        /// From where.
        offset: u64,
        /// The new bytes.
        data: &'a [u8],
        /// FUA.
        durable: bool,
    },
    /// FLUSH.
    Flush,
    /// TRIM.
    Trim {
        /// From where.
        offset: u64,
        /// How many.
        length: u32,
        /// FUA.
        durable: bool,
    },
    /// WRITE_ZEROES.
    WriteZeroes {
        /// From where.
        offset: u64,
        /// How many.
        length: u32,
        /// FUA.
        durable: bool,
        /// NO_HOLE.
        keep_allocated: bool,
        /// FAST_ZERO.
        fast_only: bool,
    },
    /// CACHE.
    Cache {
        /// From where.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// BLOCK_STATUS.
    BlockStatus {
        /// From where.
        offset: u64,
        /// How many.
        length: u32,
        /// REQ_ONE.
        first_only: bool,
    },
    /// DISC; it has no reply.
    Disconnect,
}

impl Command<'_> {
    /// Type, flags, offset and length, as the request carries them.
    pub(super) fn fields(&self) -> (u16, u16, u64, u32) {
        let when = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let fua = |durable: bool| when(durable, NBD_CMD_FLAG_FUA);
        match *self {
            Command::Read { offset, length, unfragmented } => {
                (NBD_CMD_READ, when(unfragmented, NBD_CMD_FLAG_DF), offset, length)
            }
            Command::Write { offset, data, durable } => {
                let length = u32::try_from(data.len()).expect("a payload is at most 32 MiB");
                (NBD_CMD_WRITE, fua(durable), offset, length)
            }
            Command::Flush => (NBD_CMD_FLUSH, 0, 0, 0),
            Command::Trim { offset, length, durable } => (NBD_CMD_TRIM, fua(durable), offset, length),
            Command::WriteZeroes { offset, length, durable, keep_allocated, fast_only } => {
                let flags = fua(durable)
                    | when(keep_allocated, NBD_CMD_FLAG_NO_HOLE)
                    | when(fast_only, NBD_CMD_FLAG_FAST_ZERO);
                (NBD_CMD_WRITE_ZEROES, flags, offset, length)
            }
            Command::Cache { offset, length } => (NBD_CMD_CACHE, 0, offset, length),
            Command::BlockStatus { offset, length, first_only } => {
                (NBD_CMD_BLOCK_STATUS, when(first_only, NBD_CMD_FLAG_REQ_ONE), offset, length)
            }
            Command::Disconnect => (NBD_CMD_DISC, 0, 0, 0),
        }
    }
}

/// Appends a request, with its payload if it has one.
pub fn encode_request(cookie: u64, command: &Command<'_>, out: &mut Vec<u8>) {
    let (kind, flags, offset, length) = command.fields();
    let header = RequestHeader {
        magic: NBD_REQUEST_MAGIC.into(),
        flags: flags.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        offset: offset.into(),
        length: length.into(),
    };
    out.extend_from_slice(header.as_bytes());
    if let Command::Write { data, .. } = command {
        out.extend_from_slice(data);
    }
}
