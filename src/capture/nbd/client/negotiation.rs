//! The client's half of the handshake, sans-IO, and the bytes that it is made of.

use bytes::{Buf, BytesMut};
use zerocopy::IntoBytes;

use super::protocol;
use crate::capture::nbd::codec::*;
use crate::error::{Error, ErrorKind, Result};
use crate::units::to_usize;

/// What a client asks of a server while it shakes hands.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The export's name.
    pub export: String,
    /// Structured replies; without them reads have no typed holes and there is no block status.
    pub structured: bool,
    /// `base:allocation`, for block status; needs `structured`.
    pub allocation: bool,
}

impl Wishes {
    /// Everything that this client knows, for the export of that name.
    pub fn all(export: impl Into<String>) -> Wishes {
        Wishes { export: export.into(), structured: true, allocation: true }
    }
}

/// What the server granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Size of the export in bytes.
    pub size: u64,
    /// `NBD_FLAG_…`, transmission flags.
    pub flags: u16,
    /// Smallest, preferred and largest block size, where the server told.
    pub block_sizes: Option<(u32, u32, u32)>,
    /// Structured replies.
    pub structured: bool,
    /// The id of `base:allocation`.
    pub allocation: Option<u32>,
}

/// Appends the client's flags: fixed newstyle, no zeroes.
pub fn encode_client_flags(out: &mut Vec<u8>) {
    out.extend_from_slice(&(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES).to_be_bytes());
}

/// Appends an option and its data.
pub fn encode_option(option: u32, data: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(data.len()).expect("option data is short");
    let header = OptionHeader { magic: IHAVEOPT.into(), option: option.into(), length: length.into() };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
}

/// The data of INFO and GO.
pub fn info_data(export: &str, items: &[u16]) -> Vec<u8> {
    let mut data = string_data(export);
    data.extend_from_slice(&u16::try_from(items.len()).expect("few items").to_be_bytes());
    data.extend(items.iter().flat_map(|item| item.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string_data(export);
    data.extend_from_slice(&u32::try_from(queries.len()).expect("few queries").to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string_data(query)));
    data
}

fn string_data(text: &str) -> Vec<u8> {
    let mut data = u32::try_from(text.len()).expect("strings are short").to_be_bytes().to_vec();
    data.extend_from_slice(text.as_bytes());
    data
}

/// The client's half of the handshake, fed with what the server says.
#[derive(Debug)]
pub struct Negotiation {
    wishes: Wishes,
    granted: Granted,
    /// The option whose reply is awaited; `None` before the greeting.
    awaited: Option<u32>,
    export_told: bool,
}

impl Negotiation {
    /// A handshake that has not begun; the server speaks first.
    pub fn new(wishes: Wishes) -> Negotiation {
        Negotiation { wishes, granted: Granted::default(), awaited: None, export_told: false }
    }

    /// Takes complete messages off `input` and appends what is to be sent to `output`; gives what was granted once
    /// transmission begins.
    ///
    /// # Errors
    /// `Protocol` if the server breaks it; `NotFound` or `Invalid` if it refuses the export.
    pub fn advance(&mut self, input: &mut BytesMut, output: &mut Vec<u8>) -> Result<Option<Granted>> {
        if self.awaited.is_none() {
            let Some(greeting) = Greeting::peek(input).copied() else { return Ok(None) };
            input.advance(Greeting::BYTES);
            self.greeted(&greeting, output)?;
        }
        while let Some((header, data)) = take_option_reply(input)? {
            if Some(header.option.get()) != self.awaited {
                return Err(protocol(format!("a reply to option {} came unasked", header.option.get())));
            }
            if self.replied(header.kind.get(), &data, output)? {
                return Ok(Some(self.granted));
            }
        }
        Ok(None)
    }

    fn greeted(&mut self, greeting: &Greeting, output: &mut Vec<u8>) -> Result<()> {
        let needed = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES;
        if greeting.magic.get() != NBDMAGIC || greeting.version.get() != IHAVEOPT {
            return Err(protocol("the greeting is not that of an NBD server"));
        }
        if greeting.flags.get() & needed != needed {
            return Err(protocol("the server does not speak fixed newstyle without zeroes"));
        }
        encode_client_flags(output);
        self.ask_next(if self.wishes.structured { NBD_OPT_STRUCTURED_REPLY } else { NBD_OPT_GO }, output);
        Ok(())
    }

    fn ask_next(&mut self, option: u32, output: &mut Vec<u8>) {
        let data = match option {
            NBD_OPT_SET_META_CONTEXT => context_data(&self.wishes.export, &[BASE_ALLOCATION]),
            NBD_OPT_GO => info_data(&self.wishes.export, &[NBD_INFO_BLOCK_SIZE]),
            _ => Vec::new(),
        };
        encode_option(option, &data, output);
        self.awaited = Some(option);
    }

    /// Whether transmission begins.
    fn replied(&mut self, kind: u32, data: &[u8], output: &mut Vec<u8>) -> Result<bool> {
        let refused = kind & NBD_REP_FLAG_ERROR != 0;
        match (self.awaited, kind) {
            (Some(NBD_OPT_STRUCTURED_REPLY), _) if kind == NBD_REP_ACK || refused => {
                self.granted.structured = !refused;
                let contexts = self.wishes.allocation && !refused;
                self.ask_next(if contexts { NBD_OPT_SET_META_CONTEXT } else { NBD_OPT_GO }, output);
            }
            (Some(NBD_OPT_SET_META_CONTEXT), NBD_REP_META_CONTEXT) => {
                let mut fields = Fields(data);
                let id = fields.u32().filter(|_| fields.0 == BASE_ALLOCATION.as_bytes());
                self.granted.allocation = Some(id.ok_or_else(|| protocol("a context that was not asked"))?);
            }
            (Some(NBD_OPT_SET_META_CONTEXT), _) if kind == NBD_REP_ACK || refused => {
                self.granted.allocation = self.granted.allocation.filter(|_| !refused);
                self.ask_next(NBD_OPT_GO, output);
            }
            (Some(NBD_OPT_GO), NBD_REP_INFO) => self.informed(data)?,
            (Some(NBD_OPT_GO), NBD_REP_ACK) if self.export_told => return Ok(true),
            (Some(NBD_OPT_GO), _) if refused => {
                let unknown = kind == NBD_REP_ERR_UNKNOWN;
                let kind = if unknown { ErrorKind::NotFound } else { ErrorKind::Invalid };
                let message = String::from_utf8_lossy(data);
                return Err(Error::new(kind, format!("export {:?} refused: {message}", self.wishes.export)));
            }
            (option, kind) => return Err(protocol(format!("reply {kind:#x} to option {option:?}"))),
        }
        Ok(false)
    }

    fn informed(&mut self, data: &[u8]) -> Result<()> {
        let mut fields = Fields(data);
        let short = || protocol("an information item is too short");
        match fields.u16().ok_or_else(short)? {
            NBD_INFO_EXPORT => {
                self.granted.size = fields.u64().ok_or_else(short)?;
                self.granted.flags = fields.u16().ok_or_else(short)?;
                self.export_told = true;
            }
            NBD_INFO_BLOCK_SIZE => {
                let mut next = || fields.u32().ok_or_else(short);
                self.granted.block_sizes = Some((next()?, next()?, next()?));
            }
            _ => {}
        }
        Ok(())
    }
}

fn take_option_reply(input: &mut BytesMut) -> Result<Option<(OptionReplyHeader, BytesMut)>> {
    let Some(header) = OptionReplyHeader::peek(input).copied() else { return Ok(None) };
    if header.magic.get() != NBD_REP_MAGIC {
        return Err(protocol("an option's reply does not start with its magic number"));
    }
    let length = to_usize(u64::from(header.length.get()));
    if input.len() < OptionReplyHeader::BYTES + length {
        return Ok(None);
    }
    input.advance(OptionReplyHeader::BYTES);
    Ok(Some((header, input.split_to(length))))
}
