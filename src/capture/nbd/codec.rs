//! The NBD protocol's constants and fixed layouts: bytes ↔ values, nothing else.
//!
//! Names are those of `doc/proto.md`. All numbers are big-endian. The layouts are read in place, without a copy; they
//! check nothing but their length, so a magic number is still to be compared by whoever reads one.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Smallest unit and alignment of a request: `minimum block size`.
pub const BLOCK_SIZE_MIN: u32 = 512;
/// What requests should be multiples of: `preferred block size`.
pub const BLOCK_SIZE_PREFERRED: u32 = 4096;
/// Longest payload of a request or a reply: `maximum block size`.
pub const BLOCK_SIZE_MAX: u32 = 32 << 20;
/// Longest string, by the protocol's conventions.
pub const STRING_BYTES_MAX: usize = 4096;

/// `INIT_PASSWD`: the server's first eight bytes.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second magic number of the newstyle greeting, and the first field of every option.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// First field of every reply to an option.
pub const NBD_REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First field of every request.
pub const NBD_REQUEST_MAGIC: u32 = 0x2560_9513;
/// First field of a simple reply.
pub const NBD_SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First field of a structured reply chunk.
pub const NBD_STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag: the server speaks fixed newstyle.
pub const NBD_FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: the server can leave the 124 zeroes out.
pub const NBD_FLAG_NO_ZEROES: u16 = 1 << 1;
/// Client flag: the client speaks fixed newstyle.
pub const NBD_FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Client flag: the client wants no 124 zeroes.
pub const NBD_FLAG_C_NO_ZEROES: u32 = 1 << 1;

/// Transmission flag: always set.
pub const NBD_FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: writes will be refused.
pub const NBD_FLAG_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: FLUSH is served.
pub const NBD_FLAG_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: FUA is served.
pub const NBD_FLAG_SEND_FUA: u16 = 1 << 3;
/// Transmission flag: TRIM is served.
pub const NBD_FLAG_SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: WRITE_ZEROES and NO_HOLE are served.
pub const NBD_FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: DF is served; only with structured replies.
pub const NBD_FLAG_SEND_DF: u16 = 1 << 7;
/// Transmission flag: a FLUSH on one connection covers what all others were acknowledged.
pub const NBD_FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: CACHE is understood.
pub const NBD_FLAG_SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: FAST_ZERO is served.
pub const NBD_FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

/// Option: choose an export and begin, without a way to refuse.
pub const NBD_OPT_EXPORT_NAME: u32 = 1;
/// Option: end the session.
pub const NBD_OPT_ABORT: u32 = 2;
/// Option: name the exports.
pub const NBD_OPT_LIST: u32 = 3;
/// Option: begin TLS.
pub const NBD_OPT_STARTTLS: u32 = 5;
/// Option: describe an export.
pub const NBD_OPT_INFO: u32 = 6;
/// Option: describe an export and begin.
pub const NBD_OPT_GO: u32 = 7;
/// Option: use structured replies.
pub const NBD_OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: name metadata contexts.
pub const NBD_OPT_LIST_META_CONTEXT: u32 = 9;
/// Option: select metadata contexts.
pub const NBD_OPT_SET_META_CONTEXT: u32 = 10;
/// Option: use 64-bit headers.
pub const NBD_OPT_EXTENDED_HEADERS: u32 = 11;

/// Option reply: accepted, or the end of a list.
pub const NBD_REP_ACK: u32 = 1;
/// Option reply: an export's name.
pub const NBD_REP_SERVER: u32 = 2;
/// Option reply: an `NBD_INFO` item.
pub const NBD_REP_INFO: u32 = 3;
/// Option reply: a metadata context.
pub const NBD_REP_META_CONTEXT: u32 = 4;
/// Set in every option reply that is an error.
pub const NBD_REP_FLAG_ERROR: u32 = 1 << 31;
/// Option error: unknown option.
pub const NBD_REP_ERR_UNSUP: u32 = NBD_REP_FLAG_ERROR + 1;
/// Option error: forbidden here.
pub const NBD_REP_ERR_POLICY: u32 = NBD_REP_FLAG_ERROR + 2;
/// Option error: ill-formed.
pub const NBD_REP_ERR_INVALID: u32 = NBD_REP_FLAG_ERROR + 3;
/// Option error: TLS comes first.
pub const NBD_REP_ERR_TLS_REQD: u32 = NBD_REP_FLAG_ERROR + 5;
/// Option error: no such export.
pub const NBD_REP_ERR_UNKNOWN: u32 = NBD_REP_FLAG_ERROR + 6;
/// Option error: the server stops.
pub const NBD_REP_ERR_SHUTDOWN: u32 = NBD_REP_FLAG_ERROR + 7;
/// Option error: too large to process.
pub const NBD_REP_ERR_TOO_BIG: u32 = NBD_REP_FLAG_ERROR + 9;

/// Information: size and transmission flags.
pub const NBD_INFO_EXPORT: u16 = 0;
/// Information: the canonical name.
pub const NBD_INFO_NAME: u16 = 1;
/// Information: a line for a person.
pub const NBD_INFO_DESCRIPTION: u16 = 2;
/// Information: block size constraints.
pub const NBD_INFO_BLOCK_SIZE: u16 = 3;

/// The one metadata context that the protocol defines.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Extent flag in `base:allocation`: not allocated.
pub const NBD_STATE_HOLE: u32 = 1 << 0;
/// Extent flag in `base:allocation`: reads as zeros.
pub const NBD_STATE_ZERO: u32 = 1 << 1;

/// Request type: READ.
pub const NBD_CMD_READ: u16 = 0;
/// Request type: WRITE.
pub const NBD_CMD_WRITE: u16 = 1;
/// Request type: DISC.
pub const NBD_CMD_DISC: u16 = 2;
/// Request type: FLUSH.
pub const NBD_CMD_FLUSH: u16 = 3;
/// Request type: TRIM.
pub const NBD_CMD_TRIM: u16 = 4;
/// Request type: CACHE.
pub const NBD_CMD_CACHE: u16 = 5;
/// Request type: WRITE_ZEROES.
pub const NBD_CMD_WRITE_ZEROES: u16 = 6;
/// Request type: BLOCK_STATUS.
pub const NBD_CMD_BLOCK_STATUS: u16 = 7;

/// Command flag: answer once the data survives a power cut; valid with every command.
pub const NBD_CMD_FLAG_FUA: u16 = 1 << 0;
/// Command flag of WRITE_ZEROES: keep the range allocated.
pub const NBD_CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag of READ: at most one content chunk.
pub const NBD_CMD_FLAG_DF: u16 = 1 << 2;
/// Command flag of BLOCK_STATUS: one extent is enough.
pub const NBD_CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Command flag of WRITE_ZEROES: refuse unless it is faster than a write.
pub const NBD_CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// Chunk flag: the last of its reply.
pub const NBD_REPLY_FLAG_DONE: u16 = 1 << 0;
/// Chunk type: nothing.
pub const NBD_REPLY_TYPE_NONE: u16 = 0;
/// Chunk type: an offset and the bytes there.
pub const NBD_REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// Chunk type: an offset and a number of zeros.
pub const NBD_REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Chunk type: the extents of a metadata context.
pub const NBD_REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Set in every chunk type that is an error.
pub const NBD_REPLY_TYPE_FLAG_ERROR: u16 = 1 << 15;
/// Chunk type: an error.
pub const NBD_REPLY_TYPE_ERROR: u16 = NBD_REPLY_TYPE_FLAG_ERROR + 1;
/// Chunk type: an error and where it happened.
pub const NBD_REPLY_TYPE_ERROR_OFFSET: u16 = NBD_REPLY_TYPE_FLAG_ERROR + 2;

/// The error field of a reply; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

/// Operation not permitted.
pub const NBD_EPERM: ErrorCode = ErrorCode(1);
/// Input/output error.
pub const NBD_EIO: ErrorCode = ErrorCode(5);
/// Cannot allocate memory.
pub const NBD_ENOMEM: ErrorCode = ErrorCode(12);
/// Invalid argument.
pub const NBD_EINVAL: ErrorCode = ErrorCode(22);
/// No space left on device.
pub const NBD_ENOSPC: ErrorCode = ErrorCode(28);
/// Value too large.
pub const NBD_EOVERFLOW: ErrorCode = ErrorCode(75);
/// Operation not supported.
pub const NBD_ENOTSUP: ErrorCode = ErrorCode(95);
/// The server stops.
pub const NBD_ESHUTDOWN: ErrorCode = ErrorCode(108);

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $bytes:literal { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl $name {
            /// Length in bytes.
            pub const BYTES: usize = $bytes;

            /// The layout at the front of `bytes`, in place; `None` while there are too few.
            pub fn peek(bytes: &[u8]) -> Option<&$name> {
                $name::ref_from_prefix(bytes).ok().map(|(value, _)| value)
            }
        }

        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

layout!(
    /// What a server says first.
    Greeting, 18 {
        /// `NBDMAGIC`.
        magic: U64,
        /// `IHAVEOPT`.
        version: U64,
        /// Handshake flags.
        flags: U16,
    }
);
layout!(
    /// Precedes an option's data.
    OptionHeader, 16 {
        /// `IHAVEOPT`.
        magic: U64,
        /// `NBD_OPT_…`.
        option: U32,
        /// Bytes of data that follow.
        length: U32,
    }
);
layout!(
    /// Precedes the data of a reply to an option.
    OptionReplyHeader, 20 {
        /// `NBD_REP_MAGIC`.
        magic: U64,
        /// The option that it answers.
        option: U32,
        /// `NBD_REP_…`.
        kind: U32,
        /// Bytes of data that follow.
        length: U32,
    }
);
layout!(
    /// The answer to `NBD_OPT_EXPORT_NAME`, less the 124 zeroes.
    ExportNameReply, 10 {
        /// Bytes.
        size: U64,
        /// Transmission flags.
        flags: U16,
    }
);
layout!(
    /// The `NBD_INFO_EXPORT` item.
    InfoExport, 12 {
        /// `NBD_INFO_EXPORT`.
        kind: U16,
        /// Bytes.
        size: U64,
        /// Transmission flags.
        flags: U16,
    }
);
layout!(
    /// The `NBD_INFO_BLOCK_SIZE` item.
    InfoBlockSize, 14 {
        /// `NBD_INFO_BLOCK_SIZE`.
        kind: U16,
        /// Smallest.
        minimum: U32,
        /// Preferred.
        preferred: U32,
        /// Largest.
        maximum: U32,
    }
);
layout!(
    /// A request; a WRITE's payload follows.
    RequestHeader, 28 {
        /// `NBD_REQUEST_MAGIC`.
        magic: U32,
        /// `NBD_CMD_FLAG_…`.
        flags: U16,
        /// `NBD_CMD_…`.
        kind: U16,
        /// The client's name for it, given back in the reply.
        cookie: U64,
        /// Byte offset on the export.
        offset: U64,
        /// Bytes.
        length: U32,
    }
);
layout!(
    /// A simple reply; a successful READ's bytes follow.
    SimpleReply, 16 {
        /// `NBD_SIMPLE_REPLY_MAGIC`.
        magic: U32,
        /// Zero, or an [`ErrorCode`].
        error: U32,
        /// The request's.
        cookie: U64,
    }
);
layout!(
    /// Precedes the payload of a structured reply's chunk.
    ChunkHeader, 20 {
        /// `NBD_STRUCTURED_REPLY_MAGIC`.
        magic: U32,
        /// `NBD_REPLY_FLAG_…`.
        flags: U16,
        /// `NBD_REPLY_TYPE_…`.
        kind: U16,
        /// The request's.
        cookie: U64,
        /// Bytes of payload that follow.
        length: U32,
    }
);
layout!(
    /// One extent of an `NBD_REPLY_TYPE_BLOCK_STATUS` chunk.
    ExtentDescriptor, 8 {
        /// Bytes; not zero.
        length: U32,
        /// `NBD_STATE_…`.
        flags: U32,
    }
);

/// Reads fields off the front of an option's or chunk's data; each is `None` where too few bytes are left.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*front)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WRITE with FUA of 512 bytes at 4096, as the protocol's "Request message" lays it out.
    const WRITE: [u8; 28] = [
        0x25, 0x60, 0x95, 0x13, // NBD_REQUEST_MAGIC
        0x00, 0x01, // NBD_CMD_FLAG_FUA
        0x00, 0x01, // NBD_CMD_WRITE
        0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, // cookie
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, // offset
        0x00, 0x00, 0x02, 0x00, // length
    ];

    #[test]
    fn a_request_header_reads_as_the_protocol_lays_it_out() {
        let header = RequestHeader::peek(&WRITE).unwrap();
        assert_eq!(header.magic.get(), NBD_REQUEST_MAGIC);
        assert_eq!(header.flags.get(), NBD_CMD_FLAG_FUA);
        assert_eq!(header.kind.get(), NBD_CMD_WRITE);
        assert_eq!(header.cookie.get(), 0x1122_3344_5566_7788);
        assert_eq!((header.offset.get(), header.length.get()), (4096, 512));
        assert_eq!(header.as_bytes(), WRITE);
        assert!(RequestHeader::peek(&WRITE[..27]).is_none());
    }

    #[test]
    fn magic_numbers_spell_what_the_protocol_says() {
        assert_eq!(&NBDMAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&IHAVEOPT.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn fields_end_where_the_bytes_end() {
        let mut fields = Fields(&[0, 1, 0, 0, 0, 2, 9]);
        assert_eq!((fields.u16(), fields.u32()), (Some(1), Some(2)));
        assert_eq!(fields.u16(), None);
        assert_eq!(fields.bytes(1), Some(&[9][..]));
        assert!(fields.is_empty());
        assert_eq!(fields.u64(), None);
    }
}
