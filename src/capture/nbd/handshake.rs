//! Fixed newstyle negotiation: from the greeting to an export, option by option.
//!
//! Only one option is served at a time, and its data is complete before it is looked at. An option that cannot be
//! served gets a typed refusal and the haggling goes on; `NBD_OPT_EXPORT_NAME`, which knows no refusal, closes.
//!
//! ```text
//!   Greeting ▶     ◀ client flags, 32 bits
//!   OptionReply* ▶ ◀ option header, data        (repeats)
//!                  ◀ GO or EXPORT_NAME          → transmission
//! ```
//!
//! Where TLS is required (the protocol's FORCEDTLS), STARTTLS comes first: any other option is refused unread until then, and nothing that
//! came before it is remembered after, since anybody on the way may have said it in the client's place.

use std::borrow::Cow;

use bytes::{Buf, BytesMut};
use zerocopy::IntoBytes;

use super::codec::*;
use super::connection::{CloseReason, Step};
use super::output::Output;
use super::request::Negotiated;
use super::{ExportInfo, Exports, Limits};
use crate::units::{SECTOR_BYTES, to_usize};

/// Our name for `base:allocation` in replies to BLOCK_STATUS.
pub(super) const ALLOCATION_CONTEXT: u32 = 1;

/// Replies that wait for the socket, beyond which no further option is looked at: a client that reads has none.
const REPLY_BYTES_MAX: usize = 64 << 10;

pub(super) struct Handshake {
    expect: Expect,
    no_zeroes: bool,
    structured: bool,
    tls: Tls,
    /// The export for which `base:allocation` was selected last.
    allocation_for: Option<String>,
}

enum Expect {
    ClientFlags,
    Option,
    /// The rest of an option that is too long to keep; then its refusal.
    Discard {
        option: u32,
        bytes: usize,
    },
}

/// What is insisted on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    /// It is not to be had here.
    Absent,
    /// It must begin before anything else.
    Required,
    /// All that comes is decrypted, all that goes is encrypted.
    Begun,
}

/// Why an option is refused, in the protocol's terms and a person's.
struct OptionError(u32, Cow<'static, str>);

impl OptionError {
    const fn new(code: u32, text: &'static str) -> OptionError {
        OptionError(code, Cow::Borrowed(text))
    }
}

impl Handshake {
    /// Greets.
    pub(super) fn new(output: &mut Output) -> Handshake {
        let flags = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES;
        let greeting = Greeting { magic: NBDMAGIC.into(), version: IHAVEOPT.into(), flags: flags.into() };
        output.head(greeting.as_bytes());
        Handshake {
            expect: Expect::ClientFlags,
            no_zeroes: false,
            structured: false,
            tls: Tls::Absent,
            allocation_for: None,
        }
    }

    /// Nothing is told or served before TLS has begun.
    pub(super) fn require_tls(&mut self) {
        self.tls = Tls::Required;
    }

    /// Takes one message off `input`, if a whole one is there.
    pub(super) fn step(
        &mut self,
        input: &mut BytesMut,
        exports: &dyn Exports,
        output: &mut Output,
        limits: &Limits,
        stopping: bool,
    ) -> Step {
        match self.expect {
            Expect::ClientFlags => self.client_flags(input),
            Expect::Option if output.bytes() >= limits.output_bytes_max.min(REPLY_BYTES_MAX) => Step::Blocked,
            Expect::Option => self.option(input, exports, output, limits, stopping),
            Expect::Discard { option, bytes } => self.discard(input, output, option, bytes),
        }
    }

    fn client_flags(&mut self, input: &mut BytesMut) -> Step {
        let Some(flags) = input.first_chunk().map(|flags| u32::from_be_bytes(*flags)) else {
            return Step::NeedInput;
        };
        input.advance(size_of::<u32>());
        if flags & !(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES) != 0 {
            return Step::Close(CloseReason::UnknownClientFlags(flags));
        }
        // Who does not speak fixed newstyle cannot be told anything, nor begin TLS.
        if self.tls == Tls::Required && flags & NBD_FLAG_C_FIXED_NEWSTYLE == 0 {
            return Step::Close(CloseReason::TlsRequired);
        }
        self.no_zeroes = flags & NBD_FLAG_C_NO_ZEROES != 0;
        self.expect = Expect::Option;
        Step::Again
    }

    fn option(
        &mut self,
        input: &mut BytesMut,
        exports: &dyn Exports,
        output: &mut Output,
        limits: &Limits,
        stopping: bool,
    ) -> Step {
        let Some(header) = OptionHeader::peek(input) else { return Step::NeedInput };
        let (magic, option) = (header.magic.get(), header.option.get());
        let length = to_usize(u64::from(header.length.get()));
        if magic != IHAVEOPT {
            return Step::Close(CloseReason::BadOptionMagic(magic));
        }
        if option == NBD_OPT_ABORT {
            output.option_reply(option, NBD_REP_ACK, &[]);
            return Step::Close(CloseReason::Aborted);
        }
        if self.tls == Tls::Required && option != NBD_OPT_STARTTLS {
            return self.before_tls(input, option, length);
        }
        if length > limits.option_bytes_max {
            return self.too_long(input, option, length);
        }
        if input.len() < OptionHeader::BYTES + length {
            return Step::NeedInput;
        }
        input.advance(OptionHeader::BYTES);
        let data = input.split_to(length);
        match (option, stopping) {
            (NBD_OPT_STARTTLS, false) => self.start_tls(&data, input, output),
            (NBD_OPT_EXPORT_NAME, true) => Step::Close(CloseReason::Shutdown),
            (NBD_OPT_EXPORT_NAME, false) => self.export_name(&data, exports, output),
            (_, true) => {
                refuse(output, option, &OptionError::new(NBD_REP_ERR_SHUTDOWN, "the server stops"));
                Step::Again
            }
            (_, false) => self.haggle(option, &data, exports, output),
        }
    }

    /// An option whose client has not begun TLS: its data is not looked at.
    fn before_tls(&mut self, input: &mut BytesMut, option: u32, length: usize) -> Step {
        if option == NBD_OPT_EXPORT_NAME {
            return Step::Close(CloseReason::TlsRequired);
        }
        input.advance(OptionHeader::BYTES);
        self.expect = Expect::Discard { option, bytes: length };
        Step::Again
    }

    fn start_tls(&mut self, data: &[u8], input: &BytesMut, output: &mut Output) -> Step {
        let refusal = match (no_data(data), self.tls) {
            (Err(surplus), _) => surplus,
            (Ok(()), Tls::Absent) => OptionError::new(NBD_REP_ERR_UNSUP, "TLS is not served"),
            (Ok(()), Tls::Begun) => OptionError::new(NBD_REP_ERR_INVALID, "this is TLS already"),
            // A client waits for the answer before it begins TLS: what came already may be anybody's.
            (Ok(()), Tls::Required) if !input.is_empty() => {
                return Step::Close(CloseReason::PlaintextBehindStartTls);
            }
            (Ok(()), Tls::Required) => {
                output.option_reply(NBD_OPT_STARTTLS, NBD_REP_ACK, &[]);
                self.tls = Tls::Begun;
                return Step::StartTls;
            }
        };
        refuse(output, NBD_OPT_STARTTLS, &refusal);
        Step::Again
    }

    fn too_long(&mut self, input: &mut BytesMut, option: u32, length: usize) -> Step {
        if option == NBD_OPT_EXPORT_NAME {
            return Step::Close(CloseReason::ExportUnavailable);
        }
        input.advance(OptionHeader::BYTES);
        if option == NBD_OPT_SET_META_CONTEXT {
            self.allocation_for = None;
        }
        self.expect = Expect::Discard { option, bytes: length };
        Step::Again
    }

    fn discard(&mut self, input: &mut BytesMut, output: &mut Output, option: u32, bytes: usize) -> Step {
        let skipped = bytes.min(input.len());
        input.advance(skipped);
        let bytes = bytes - skipped;
        if bytes > 0 {
            self.expect = Expect::Discard { option, bytes };
            return Step::NeedInput;
        }
        self.expect = Expect::Option;
        let error = match option {
            NBD_OPT_STARTTLS => OptionError::new(NBD_REP_ERR_TOO_BIG, "the option is too long"),
            _ if self.tls == Tls::Required => TLS_REQUIRED,
            NBD_OPT_LIST..=NBD_OPT_SET_META_CONTEXT => {
                OptionError::new(NBD_REP_ERR_TOO_BIG, "the option is too long")
            }
            _ => UNSUPPORTED,
        };
        refuse(output, option, &error);
        Step::Again
    }

    /// Serves an option that knows refusals.
    fn haggle(&mut self, option: u32, data: &[u8], exports: &dyn Exports, output: &mut Output) -> Step {
        let outcome = match option {
            NBD_OPT_LIST => no_data(data).map(|()| list(exports, output)),
            NBD_OPT_STRUCTURED_REPLY => no_data(data).map(|()| self.structured = true),
            NBD_OPT_LIST_META_CONTEXT => self.list_contexts(data, exports, output),
            NBD_OPT_SET_META_CONTEXT => self.set_contexts(data, exports, output),
            NBD_OPT_INFO => self.info(option, data, exports, output).map(drop),
            NBD_OPT_GO => match self.info(option, data, exports, output) {
                Ok(negotiated) => {
                    output.option_reply(option, NBD_REP_ACK, &[]);
                    return Step::Enter(negotiated);
                }
                Err(error) => Err(error),
            },
            _ => Err(UNSUPPORTED),
        };
        match outcome {
            Ok(()) => output.option_reply(option, NBD_REP_ACK, &[]),
            Err(error) => refuse(output, option, &error),
        }
        Step::Again
    }

    fn export_name(&mut self, data: &[u8], exports: &dyn Exports, output: &mut Output) -> Step {
        let Some((name, info)) = text(data).ok().and_then(|name| Some((name, exports.find(name)?))) else {
            return Step::Close(CloseReason::ExportUnavailable);
        };
        let negotiated = self.negotiated(name, &info);
        let flags = negotiated.transmission_flags();
        let reply = ExportNameReply { size: negotiated.size.into(), flags: flags.into() };
        output.head(reply.as_bytes());
        if !self.no_zeroes {
            output.head(&[0; 124]);
        }
        Step::Enter(negotiated)
    }

    fn info(
        &self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        output: &mut Output,
    ) -> Result<Negotiated, OptionError> {
        let mut fields = Fields(data);
        let name = string(&mut fields)?;
        let count = fields.u16().ok_or(ILL_FORMED)?;
        let wanted = fields.bytes(2 * usize::from(count)).ok_or(ILL_FORMED)?;
        if !fields.is_empty() {
            return Err(ILL_FORMED);
        }
        let wants = |kind: u16| wanted.chunks_exact(2).any(|item| item == kind.to_be_bytes());
        let info = find(exports, name)?;
        let negotiated = self.negotiated(name, &info);
        if wants(NBD_INFO_NAME) {
            let kind = NBD_INFO_NAME.to_be_bytes();
            output.option_reply(option, NBD_REP_INFO, &[&kind, name.as_bytes()]);
        }
        if wants(NBD_INFO_DESCRIPTION) {
            let kind = NBD_INFO_DESCRIPTION.to_be_bytes();
            output.option_reply(option, NBD_REP_INFO, &[&kind, shortened(&info.description).as_bytes()]);
        }
        // Block sizes are told unasked as well: a client may ignore them, and its unaligned requests get EINVAL.
        let sizes = InfoBlockSize {
            kind: NBD_INFO_BLOCK_SIZE.into(),
            minimum: BLOCK_SIZE_MIN.into(),
            preferred: BLOCK_SIZE_PREFERRED.into(),
            maximum: BLOCK_SIZE_MAX.into(),
        };
        output.option_reply(option, NBD_REP_INFO, &[sizes.as_bytes()]);
        let flags = negotiated.transmission_flags();
        let export =
            InfoExport { kind: NBD_INFO_EXPORT.into(), size: negotiated.size.into(), flags: flags.into() };
        output.option_reply(option, NBD_REP_INFO, &[export.as_bytes()]);
        Ok(negotiated)
    }

    fn negotiated(&self, name: &str, info: &ExportInfo) -> Negotiated {
        assert!(info.size.is_multiple_of(SECTOR_BYTES), "{name} is {} bytes, not whole sectors", info.size);
        Negotiated {
            export: info.export,
            size: info.size,
            read_only: info.read_only,
            structured: self.structured,
            allocation: self.structured && self.allocation_for.as_deref() == Some(name),
        }
    }

    fn list_contexts(
        &self,
        data: &[u8],
        exports: &dyn Exports,
        output: &mut Output,
    ) -> Result<(), OptionError> {
        let queries = self.context_queries(data, exports)?;
        let matches = |query: &&str| matches!(*query, "base:" | BASE_ALLOCATION);
        if queries.texts.is_empty() || queries.texts.iter().any(matches) {
            context_reply(output, NBD_OPT_LIST_META_CONTEXT, 0);
        }
        Ok(())
    }

    fn set_contexts(
        &mut self,
        data: &[u8],
        exports: &dyn Exports,
        output: &mut Output,
    ) -> Result<(), OptionError> {
        // Also a refused selection replaces the one before.
        self.allocation_for = None;
        let queries = self.context_queries(data, exports)?;
        if queries.texts.contains(&BASE_ALLOCATION) {
            context_reply(output, NBD_OPT_SET_META_CONTEXT, ALLOCATION_CONTEXT);
            self.allocation_for = Some(queries.export_name.to_owned());
        }
        Ok(())
    }

    fn context_queries<'a>(
        &self,
        data: &'a [u8],
        exports: &dyn Exports,
    ) -> Result<ContextQueries<'a>, OptionError> {
        if !self.structured {
            return Err(OptionError::new(NBD_REP_ERR_INVALID, "structured replies come first"));
        }
        let mut fields = Fields(data);
        let export_name = string(&mut fields)?;
        let count = fields.u32().ok_or(ILL_FORMED)?;
        let mut texts = Vec::new();
        for _ in 0..count {
            let query = string(&mut fields)?;
            if !query.contains(':') {
                return Err(OptionError::new(NBD_REP_ERR_INVALID, "a context query starts with NAMESPACE:"));
            }
            texts.push(query);
        }
        if !fields.is_empty() {
            return Err(ILL_FORMED);
        }
        find(exports, export_name)?;
        Ok(ContextQueries { export_name, texts })
    }
}

struct ContextQueries<'a> {
    export_name: &'a str,
    texts: Vec<&'a str>,
}

const UNSUPPORTED: OptionError = OptionError::new(NBD_REP_ERR_UNSUP, "unknown option");
const TLS_REQUIRED: OptionError = OptionError::new(
    NBD_REP_ERR_TLS_REQD,
    "this address serves TLS only: the client must begin with STARTTLS",
);
const ILL_FORMED: OptionError =
    OptionError::new(NBD_REP_ERR_INVALID, "the option's fields and its length disagree");

/// The export of that name, or why there is none.
fn find(exports: &dyn Exports, name: &str) -> Result<ExportInfo, OptionError> {
    exports.find(name).ok_or_else(|| match exports.refusal(name) {
        Some(text) => OptionError(NBD_REP_ERR_UNKNOWN, shortened(&text).to_owned().into()),
        None => OptionError::new(NBD_REP_ERR_UNKNOWN, "no export has that name"),
    })
}

fn refuse(output: &mut Output, option: u32, error: &OptionError) {
    output.option_reply(option, error.0, &[error.1.as_bytes()]);
}

fn no_data(data: &[u8]) -> Result<(), OptionError> {
    let surplus = OptionError::new(NBD_REP_ERR_INVALID, "this option takes no data");
    if data.is_empty() { Ok(()) } else { Err(surplus) }
}

fn list(exports: &dyn Exports, output: &mut Output) {
    for name in exports.names() {
        let length = u32::try_from(name.len()).expect("export names are short");
        output.option_reply(
            NBD_OPT_LIST,
            NBD_REP_SERVER,
            &[length.to_be_bytes().as_slice(), name.as_bytes()],
        );
    }
}

fn context_reply(output: &mut Output, option: u32, id: u32) {
    output.option_reply(
        option,
        NBD_REP_META_CONTEXT,
        &[id.to_be_bytes().as_slice(), BASE_ALLOCATION.as_bytes()],
    );
}

/// A 32-bit length and that many bytes of text.
fn string<'a>(fields: &mut Fields<'a>) -> Result<&'a str, OptionError> {
    let length = fields.u32().ok_or(ILL_FORMED)?;
    text(fields.bytes(to_usize(u64::from(length))).ok_or(ILL_FORMED)?)
}

/// A string by the protocol's conventions.
fn text(bytes: &[u8]) -> Result<&str, OptionError> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(OptionError::new(NBD_REP_ERR_TOO_BIG, "a string has at most 4096 bytes"));
    }
    let not_text = OptionError::new(NBD_REP_ERR_INVALID, "a string is UTF-8 without NUL");
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or(not_text)
}

/// As much of `text` as a string may hold.
fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(STRING_BYTES_MAX)]
}

#[cfg(test)]
mod tests;
