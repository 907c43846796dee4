//! What waits for a connection's socket: headers packed into one reusable buffer, data by reference, zeros by count.
//!
//! Many replies leave in one `writev`. A reply without data costs the bytes of its header, and nothing else.

use std::collections::VecDeque;
use std::io::IoSlice;

use zerocopy::IntoBytes;

use super::codec::*;
use crate::storage::Slice;
use crate::units::to_usize;

/// What zeros are sent from; never written, so it costs address space only.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Most slices that one gather holds: Linux's `UIO_MAXIOV`.
const SLICES_MAX: usize = 1024;
/// Sent header bytes are kept in front of unsent ones up to this, and room for as many once all are sent.
const SENT_BYTES_MAX: usize = 64 << 10;
/// Room for that many segments is kept once all are sent.
const SEGMENTS_KEPT: usize = 1024;

#[derive(Default)]
pub(super) struct Output {
    /// Headers in order; `heads_sent` of them have left.
    heads: Vec<u8>,
    heads_sent: usize,
    segments: VecDeque<Segment>,
    bytes: usize,
    /// Of those, what is data, so that somebody else's memory holds it.
    data_bytes: usize,
    /// Whether data may have come since the last [`Output::let_go`].
    has_new_data: bool,
    /// Bytes that were taken from here and wait for the socket elsewhere, encrypted.
    unsent_bytes: usize,
}

enum Segment {
    /// That many bytes of `heads`, following those of the segment before.
    Head(usize),
    Data(Slice),
    Zeros(usize),
}

impl Output {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the bytes that wait cost in memory. Zeros cost nothing.
    pub(super) fn held_bytes(&self) -> usize {
        let waiting = self.data_bytes + (self.heads.len() - self.heads_sent);
        waiting + self.segments.len() * size_of::<Segment>() + self.unsent_bytes
    }

    pub(super) fn set_unsent(&mut self, bytes: usize) {
        self.unsent_bytes = bytes;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(super) fn head(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.heads.extend_from_slice(bytes);
        self.bytes += bytes.len();
        match self.segments.back_mut() {
            Some(Segment::Head(length)) => *length += bytes.len(),
            _ => self.segments.push_back(Segment::Head(bytes.len())),
        }
    }

    pub(super) fn data(&mut self, slice: Slice) {
        if !slice.is_empty() {
            self.bytes += slice.len();
            self.data_bytes += slice.len();
            self.has_new_data = true;
            self.segments.push_back(Segment::Data(slice));
        }
    }

    pub(super) fn zeros(&mut self, count: u64) {
        if count > 0 {
            self.bytes += to_usize(count);
            self.segments.push_back(Segment::Zeros(to_usize(count)));
        }
    }

    pub(super) fn simple_reply(&mut self, cookie: u64, error: Option<ErrorCode>) {
        let error = error.map_or(0, |code| code.0);
        let reply =
            SimpleReply { magic: NBD_SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie: cookie.into() };
        self.head(reply.as_bytes());
    }

    pub(super) fn chunk(&mut self, cookie: u64, kind: u16, done: bool, payload_bytes: usize) {
        let flags = if done { NBD_REPLY_FLAG_DONE } else { 0 };
        let length = u32::try_from(payload_bytes).expect("chunks are bounded by the largest request");
        let header = ChunkHeader {
            magic: NBD_STRUCTURED_REPLY_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            length: length.into(),
        };
        self.head(header.as_bytes());
    }

    pub(super) fn option_reply(&mut self, option: u32, kind: u32, data: &[&[u8]]) {
        let length: usize = data.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).expect("names and descriptions are short");
        let header = OptionReplyHeader {
            magic: NBD_REP_MAGIC.into(),
            option: option.into(),
            kind: kind.into(),
            length: length.into(),
        };
        self.head(header.as_bytes());
        for part in data {
            self.head(part);
        }
    }

    /// Adds what waits, in order, as far as one `writev` takes it.
    pub(super) fn gather<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        let mut head = self.heads_sent;
        for segment in &self.segments {
            match segment {
                Segment::Head(length) => {
                    slices.push(IoSlice::new(&self.heads[head..head + length]));
                    head += length;
                }
                Segment::Data(slice) => slices.push(IoSlice::new(slice)),
                Segment::Zeros(count) => {
                    let whole = (0..count / ZEROS.len()).map(|_| ZEROS.len());
                    let lengths = whole.chain(Some(count % ZEROS.len()).filter(|&rest| rest > 0));
                    slices.extend(lengths.map(|length| IoSlice::new(&ZEROS[..length])).take(SLICES_MAX));
                }
            }
            if slices.len() >= SLICES_MAX {
                slices.truncate(SLICES_MAX);
                return;
            }
        }
    }

    /// Forgets the first `count` bytes: they have left.
    pub(super) fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "{count} bytes left of {} that waited", self.bytes);
        self.bytes -= count;
        while count > 0 {
            let front = self.segments.front_mut().expect("segments add up to the bytes that wait");
            let sent = count.min(front.len());
            count -= sent;
            match front {
                Segment::Head(_) => self.heads_sent += sent,
                Segment::Data(_) => self.data_bytes -= sent,
                Segment::Zeros(_) => {}
            }
            if sent == front.len() {
                self.segments.pop_front();
            } else {
                front.skip(sent);
            }
        }
        self.reclaim();
    }

    /// Lets go of buffers that are far larger than what waits of them: what few bytes of a record are read from is all of it, and
    /// would live for as long as the client leaves them unread. To be called when the socket takes no more.
    pub(super) fn let_go(&mut self) {
        let wastes = |segment: &Segment| matches!(segment, Segment::Data(slice) if slice.is_wasteful());
        if !std::mem::take(&mut self.has_new_data) || !self.segments.iter().any(wastes) {
            return;
        }
        // Copies go among the headers, where they take no more than their bytes.
        let before = std::mem::take(self);
        let mut heads = &before.heads[before.heads_sent..];
        for segment in before.segments {
            match segment {
                Segment::Head(length) => {
                    let (head, rest) = heads.split_at(length);
                    self.head(head);
                    heads = rest;
                }
                Segment::Data(slice) if slice.is_wasteful() => self.head(&slice),
                Segment::Data(slice) => self.data(slice),
                Segment::Zeros(count) => self.zeros(count as u64),
            }
        }
        self.has_new_data = false;
    }

    fn reclaim(&mut self) {
        if self.segments.is_empty() {
            self.segments.shrink_to(SEGMENTS_KEPT);
        }
        if self.heads_sent == self.heads.len() {
            self.heads.clear();
            self.heads.shrink_to(SENT_BYTES_MAX);
            self.heads_sent = 0;
        } else if self.heads_sent > SENT_BYTES_MAX.max(self.heads.len() / 2) {
            // Half at least is dropped for what is moved, so a byte is moved once on average, however much waits.
            self.heads.drain(..self.heads_sent);
            self.heads_sent = 0;
        }
    }
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Segment::Head(length) | Segment::Zeros(length) => *length,
            Segment::Data(slice) => slice.len(),
        }
    }

    fn skip(&mut self, count: usize) {
        match self {
            Segment::Head(length) | Segment::Zeros(length) => *length -= count,
            Segment::Data(slice) => *slice = slice.slice(count..slice.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Buffer;

    fn gathered(output: &Output) -> Vec<u8> {
        let mut slices = Vec::new();
        output.gather(&mut slices);
        slices.iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn replies_without_data_are_one_slice() {
        let mut output = Output::default();
        for cookie in 0..32 {
            output.simple_reply(cookie, None);
        }
        let mut slices = Vec::new();
        output.gather(&mut slices);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0].len(), 32 * 16);
        assert_eq!(slices[0][..16], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn whatever_the_socket_takes_the_stream_is_the_same() {
        for (step, zeros) in [(1, 9), (2, 9), (7, 9), (997, ZEROS.len() + 3), (65_537, ZEROS.len() + 3)] {
            let mut output = Output::default();
            output.head(b"head");
            output.data(Buffer::copy_of(b"data of a read").freeze());
            output.zeros(zeros as u64);
            output.head(b"tail");
            let whole = gathered(&output);
            let mut sent = Vec::new();
            while !output.is_empty() {
                let waiting = gathered(&output);
                assert_eq!(waiting.len(), output.bytes());
                let taken = step.min(waiting.len());
                sent.extend_from_slice(&waiting[..taken]);
                output.advance(taken);
            }
            assert!(sent == whole, "in steps of {step}");
            assert!(output.heads.is_empty() && output.segments.is_empty());
        }
    }

    #[test]
    fn what_waits_costs_its_bytes_and_zeros_cost_nothing() {
        let mut output = Output::default();
        output.zeros(1 << 30);
        assert!(output.held_bytes() <= 64);
        output.data(Buffer::copy_of(&[7; 10_000]).freeze());
        output.head(&[8; 1000]);
        assert!((11_000..11_200).contains(&output.held_bytes()));
        output.advance((1 << 30) + 4000);
        assert!((7000..7200).contains(&output.held_bytes()));
        output.advance(7000);
        assert_eq!((output.held_bytes(), output.bytes()), (0, 0));
    }

    #[test]
    fn few_bytes_of_a_large_buffer_do_not_keep_it() {
        let mut output = Output::default();
        let large = Buffer::copy_of(&[7; 1 << 20]).freeze();
        output.head(b"head");
        output.data(large.slice(512..1024));
        output.head(b"tail");
        output.data(large.slice(0..1 << 19));
        output.zeros(9);
        output.advance(2);
        let (whole, bytes) = (gathered(&output), output.bytes());
        output.let_go();
        assert_eq!((gathered(&output), output.bytes()), (whole, bytes));
        assert!(matches!(
            output.segments.make_contiguous(),
            [Segment::Head(518), Segment::Data(_), Segment::Zeros(9)]
        ));
        output.advance(bytes);
        assert_eq!(output.held_bytes(), 0);
    }

    #[test]
    fn a_reply_of_many_pieces_leaves_little_behind() {
        let mut output = Output::default();
        let data = Buffer::copy_of(&[7; 512]).freeze();
        for _ in 0..10_000 {
            output.head(&[0; 32]);
            output.data(data.clone());
        }
        output.advance(output.bytes());
        assert!(output.heads.capacity() <= SENT_BYTES_MAX && output.segments.capacity() <= 2 * SEGMENTS_KEPT);
    }

    #[test]
    fn a_gather_fits_one_writev() {
        let mut output = Output::default();
        output.zeros(2 * SLICES_MAX as u64 * ZEROS.len() as u64);
        let mut slices = Vec::new();
        output.gather(&mut slices);
        assert_eq!(slices.len(), SLICES_MAX);
    }

    #[test]
    fn a_slow_socket_does_not_grow_the_header_buffer_for_ever() {
        let mut output = Output::default();
        output.simple_reply(0, None);
        for cookie in 0..100_000 {
            output.simple_reply(cookie, None);
            output.advance(16);
        }
        assert!(output.heads.len() <= SENT_BYTES_MAX + 64);
    }
}
