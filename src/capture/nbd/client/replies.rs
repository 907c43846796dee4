//! Replies as a client reads them: chunks gathered into one answer a request, held to the protocol.

use std::collections::HashMap;

use bytes::{Buf, BytesMut};

use super::{Command, Granted, protocol};
use crate::capture::nbd::codec::*;
use crate::error::{Error, Result};
use crate::units::to_usize;

/// A part of a disk, by `base:allocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub bytes: u32,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeros.
    pub zero: bool,
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// The bytes of a READ.
    Data(Vec<u8>),
    /// The extents of a BLOCK_STATUS, from its offset on.
    Extents(Vec<Extent>),
}

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub code: ErrorCode,
    /// What the server says about it; empty in a simple reply.
    pub message: String,
    /// The first byte concerned, where the server told.
    pub offset: Option<u64>,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The request's.
    pub cookie: u64,
    /// How it went.
    pub result: std::result::Result<Answer, Refused>,
}

/// Makes answers of what a server sends, for the requests that it was told of.
#[derive(Debug)]
pub struct ReplyDecoder {
    granted: Granted,
    pending: HashMap<u64, Pending>,
}

#[derive(Debug)]
struct Pending {
    kind: u16,
    offset: u64,
    length: u32,
    /// What chunks have told so far.
    data: Vec<u8>,
    told: Vec<(u64, u64)>,
    extents: Vec<Extent>,
    refused: Option<Refused>,
}

impl ReplyDecoder {
    /// A decoder for a connection on which that was granted.
    pub fn new(granted: Granted) -> ReplyDecoder {
        ReplyDecoder { granted, pending: HashMap::new() }
    }

    /// Notes a request that is sent; `Invalid` if its cookie is in use.
    pub fn expect(&mut self, cookie: u64, command: &Command<'_>) -> Result<()> {
        let (kind, _, offset, length) = command.fields();
        if kind == NBD_CMD_DISC {
            return Ok(());
        }
        let (data, told, extents) = (Vec::new(), Vec::new(), Vec::new());
        let pending = Pending { kind, offset, length, data, told, extents, refused: None };
        match self.pending.insert(cookie, pending) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!("cookie {cookie} is that of a request in flight"))),
        }
    }

    /// Requests that are not answered.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Takes messages off `input` until one completes an answer.
    ///
    /// # Errors
    /// `Protocol` if what came is not an answer to what was asked.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Answered>> {
        loop {
            let Some(magic) = input.first_chunk().map(|magic| u32::from_be_bytes(*magic)) else {
                return Ok(None);
            };
            match magic {
                NBD_SIMPLE_REPLY_MAGIC => return self.simple(input),
                NBD_STRUCTURED_REPLY_MAGIC if self.granted.structured => {
                    let Some((header, payload)) = take_chunk(input) else { return Ok(None) };
                    if let Some(answered) = self.chunk(&header, &payload)? {
                        return Ok(Some(answered));
                    }
                }
                other => return Err(protocol(format!("a reply starts with {other:#x}"))),
            }
        }
    }

    fn simple(&mut self, input: &mut BytesMut) -> Result<Option<Answered>> {
        let Some(reply) = SimpleReply::peek(input).copied() else { return Ok(None) };
        let (cookie, error) = (reply.cookie.get(), reply.error.get());
        let pending = self.pending.get(&cookie).ok_or_else(|| unasked(cookie))?;
        if pending.kind == NBD_CMD_READ && self.granted.structured {
            return Err(protocol("a simple reply to a read, where structured ones were agreed on"));
        }
        let has_data = error == 0 && pending.kind == NBD_CMD_READ;
        let length = if has_data { to_usize(u64::from(pending.length)) } else { 0 };
        if input.len() < SimpleReply::BYTES + length {
            return Ok(None);
        }
        input.advance(SimpleReply::BYTES);
        let data = input.split_to(length);
        self.pending.remove(&cookie);
        let result = match (error, has_data) {
            (0, true) => Ok(Answer::Data(data.to_vec())),
            (0, false) => Ok(Answer::Done),
            _ => Err(Refused { code: ErrorCode(error), message: String::new(), offset: None }),
        };
        Ok(Some(Answered { cookie, result }))
    }

    fn chunk(&mut self, header: &ChunkHeader, payload: &[u8]) -> Result<Option<Answered>> {
        let cookie = header.cookie.get();
        let pending = self.pending.get_mut(&cookie).ok_or_else(|| unasked(cookie))?;
        let ill_formed = || protocol(format!("chunk type {} is ill-formed or unasked", header.kind.get()));
        match (header.kind.get(), pending.kind) {
            (NBD_REPLY_TYPE_NONE, _) if payload.is_empty() => {}
            (NBD_REPLY_TYPE_OFFSET_DATA, NBD_CMD_READ) => {
                pending.data_chunk(payload).ok_or_else(ill_formed)?
            }
            (NBD_REPLY_TYPE_OFFSET_HOLE, NBD_CMD_READ) => {
                pending.hole_chunk(payload).ok_or_else(ill_formed)?
            }
            (NBD_REPLY_TYPE_BLOCK_STATUS, NBD_CMD_BLOCK_STATUS) => {
                pending.status_chunk(payload, self.granted.allocation).ok_or_else(ill_formed)?;
            }
            (kind, _) if kind & NBD_REPLY_TYPE_FLAG_ERROR != 0 => {
                pending.refused = Some(decode_error(kind, payload).ok_or_else(ill_formed)?);
            }
            _ => return Err(ill_formed()),
        }
        if header.flags.get() & NBD_REPLY_FLAG_DONE == 0 {
            return Ok(None);
        }
        let pending = self.pending.remove(&cookie).ok_or_else(|| unasked(cookie))?;
        Ok(Some(Answered { cookie, result: pending.finish()? }))
    }
}

impl Pending {
    fn data_chunk(&mut self, payload: &[u8]) -> Option<()> {
        let mut fields = Fields(payload);
        let offset = fields.u64()?;
        let at = self.tell(offset, fields.0.len() as u64)?;
        self.data[at..at + fields.0.len()].copy_from_slice(fields.0);
        Some(())
    }

    fn hole_chunk(&mut self, payload: &[u8]) -> Option<()> {
        let mut fields = Fields(payload);
        let (offset, length) = (fields.u64()?, fields.u32()?);
        // What no data chunk fills stays zero.
        self.tell(offset, u64::from(length)).filter(|_| fields.is_empty()).map(drop)
    }

    /// Where in `data` that range lies; `None` if it is empty, outside of what was asked, or told before.
    fn tell(&mut self, offset: u64, length: u64) -> Option<usize> {
        let start = offset.checked_sub(self.offset)?;
        let end = start.checked_add(length)?;
        let overlaps = self.told.iter().any(|&(from, to)| start < to && from < end);
        if length == 0 || end > u64::from(self.length) || overlaps {
            return None;
        }
        self.told.push((start, end));
        self.data.resize(to_usize(u64::from(self.length)), 0);
        Some(to_usize(start))
    }

    fn status_chunk(&mut self, payload: &[u8], context: Option<u32>) -> Option<()> {
        let mut fields = Fields(payload);
        if fields.u32() != context || fields.is_empty() || !self.extents.is_empty() {
            return None;
        }
        while !fields.is_empty() {
            let (bytes, flags) = (fields.u32()?, fields.u32()?);
            if bytes == 0 {
                return None;
            }
            let extent =
                Extent { bytes, hole: flags & NBD_STATE_HOLE != 0, zero: flags & NBD_STATE_ZERO != 0 };
            self.extents.push(extent);
        }
        Some(())
    }

    fn finish(self) -> Result<std::result::Result<Answer, Refused>> {
        if let Some(refused) = self.refused {
            return Ok(Err(refused));
        }
        let told: u64 = self.told.iter().map(|(start, end)| end - start).sum();
        match self.kind {
            NBD_CMD_READ if told == u64::from(self.length) => Ok(Ok(Answer::Data(self.data))),
            NBD_CMD_READ => Err(protocol(format!("{told} bytes answer a read of {}", self.length))),
            NBD_CMD_BLOCK_STATUS if self.extents.is_empty() => {
                Err(protocol("a block status without extents"))
            }
            NBD_CMD_BLOCK_STATUS => Ok(Ok(Answer::Extents(self.extents))),
            _ => Ok(Ok(Answer::Done)),
        }
    }
}

fn take_chunk(input: &mut BytesMut) -> Option<(ChunkHeader, BytesMut)> {
    let header = *ChunkHeader::peek(input)?;
    let length = to_usize(u64::from(header.length.get()));
    if input.len() < ChunkHeader::BYTES + length {
        return None;
    }
    input.advance(ChunkHeader::BYTES);
    Some((header, input.split_to(length)))
}

fn decode_error(kind: u16, payload: &[u8]) -> Option<Refused> {
    let mut fields = Fields(payload);
    let code = fields.u32().filter(|&code| code != 0)?;
    let length = fields.u16()?;
    let message = String::from_utf8_lossy(fields.bytes(usize::from(length))?).into_owned();
    let offset = if kind == NBD_REPLY_TYPE_ERROR_OFFSET { Some(fields.u64()?) } else { None };
    Some(Refused { code: ErrorCode(code), message, offset })
}

fn unasked(cookie: u64) -> Error {
    protocol(format!("a reply to cookie {cookie}, which is not in flight"))
}
