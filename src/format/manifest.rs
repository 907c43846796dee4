//! Manifest steps and snapshots: a fixed header, chained by checksums, and a payload. `docs/format.md` draws them.
//!
//! In a sealed group the payload is sealed and the header bound to it, under a key of the writer's random id; a writer
//! numbers what it seals, published or not, and so no nonce comes twice.
//!
//! A file is decoded whole or refused. What the payloads say is in [`super::record`]; whether a step may follow the
//! one before it is `vault::State`'s to decide.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum;
use super::codec::{Decoder, Encoder};
use super::delta::DeltaRef;
use super::record::{
    Change, DiskRecord, ForkRecord, GroupRecord, PinRecord, PointDisk, PointRecord, REFERENCE_BYTES, Reached,
    decode_reference, encode_reference,
};
use crate::block::TestId;
use crate::error::{Error, ErrorKind, Result};
use crate::seal::{GroupKeys, Purpose, Sealing, open_units, seal_units, sealed_len};
use crate::units::{BlobId, GroupId, TimelineId, WriterId};

/// Length of the header of a step or snapshot.
pub const HEADER_BYTES: usize = 144;
/// Longest payload of a step.
pub const STEP_PAYLOAD_BYTES_MAX: u64 = 1 << 20;
/// Longest payload of a snapshot.
pub const SNAPSHOT_PAYLOAD_BYTES_MAX: u64 = 1 << 30;

const VERSION: u32 = 1;
const STEP_MAGIC: [u8; 8] = *b"AFTRSTEP";
const SNAPSHOT_MAGIC: [u8; 8] = *b"AFTRSNAP";

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    kind: U16,
    reserved: U16,
    number: U64,
    payload_bytes: U64,
    group: U128,
    writer: U128,
    timeline: U128,
    previous: U128,
    payload_checksum: U128,
    key_generation: U32,
    reserved_long: U32,
    seal_number: U64,
    checksum: U128,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// The number of a manifest step, from 1; 0 precedes all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepNumber(pub u64);

impl StepNumber {
    /// The step after this one.
    #[must_use]
    pub fn next(self) -> StepNumber {
        StepNumber(self.0 + 1)
    }
}

impl fmt::Display for StepNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the header of a step or snapshot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which step; of a snapshot, the step that it stands after.
    pub number: StepNumber,
    /// Whose manifest.
    pub group: GroupId,
    /// Who wrote it.
    pub writer: WriterId,
    /// In which history.
    pub timeline: TimelineId,
    /// Checksum of the step before it; of a snapshot, of the step that it stands after.
    pub previous: u128,
}

/// How a writer seals a file: under the key of its id, with a number that it gives once.
#[derive(Clone, Copy, Debug)]
pub struct WriterSeal<'a> {
    /// The key.
    pub sealing: &'a Sealing,
    /// The number.
    pub number: u64,
}

/// A file's bytes, and the checksum by which the next step names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The whole file.
    pub bytes: Vec<u8>,
    /// The header's own checksum.
    pub checksum: u128,
}

/// One numbered change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number, writer, chain.
    pub header: Header,
    /// What changes.
    pub change: Change,
}

impl Step {
    /// The step's file.
    pub fn encode(&self, seal: Option<WriterSeal<'_>>) -> Encoded {
        let (kind, payload) = self.change.encode();
        encode(STEP_MAGIC, kind, &self.header, payload, seal)
    }

    /// The step in `bytes`, a whole file, and its checksum.
    pub fn decode(bytes: &[u8], keys: &GroupKeys) -> Result<(Step, u128)> {
        let opened = open(bytes, STEP_MAGIC, STEP_PAYLOAD_BYTES_MAX, "manifest step", keys)?;
        let Some(change) = Change::decode(opened.kind, opened.payload())? else {
            let text = format!("manifest step kind {} is not known to this build", opened.kind);
            return Err(Error::new(ErrorKind::Unsupported, text).at_offset(12));
        };
        Ok((Step { header: opened.header, change }, opened.checksum))
    }
}

/// A disk and whether it was removed since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskState {
    /// The disk.
    pub record: DiskRecord,
    /// Whether it left the group; its slot and id stay taken.
    pub removed: bool,
}

/// Everything that the steps of a manifest add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The group.
    pub group: GroupRecord,
    /// Whether the group was removed.
    pub removed: bool,
    /// Whether timed points and retention rest.
    pub paused: bool,
    /// The newest test failover's number, 0 if there never was one.
    pub newest_test: TestId,
    /// All disks that ever were, ascending by slot.
    pub disks: Vec<DiskState>,
    /// All points, ascending by marker.
    pub points: Vec<PointRecord>,
    /// All pins, ascending by id.
    pub pins: Vec<PinRecord>,
    /// While the base is on its way to the oldest point: the deltas of the points before it, oldest first.
    pub retired: Option<Vec<DeltaRef>>,
    /// The timelines that the group left, oldest first.
    pub forks: Vec<ForkRecord>,
    /// How far a base that goes in pieces has taken in each of the deltas that it is on its way over.
    pub taken_in: BTreeMap<BlobId, Reached>,
}

/// The state after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Number, writer, chain.
    pub header: Header,
    /// The state.
    pub contents: Contents,
}

impl Snapshot {
    /// The snapshot's file.
    pub fn encode(&self, seal: Option<WriterSeal<'_>>) -> Encoded {
        Snapshot::encode_parts(&self.header, &self.contents, seal)
    }

    /// The file of a snapshot whose contents somebody else owns.
    pub fn encode_parts(header: &Header, contents: &Contents, seal: Option<WriterSeal<'_>>) -> Encoded {
        let mut to = Encoder::new();
        contents.encode(&mut to);
        encode(SNAPSHOT_MAGIC, 0, header, to.finish(), seal)
    }

    /// The snapshot in `bytes`, a whole file.
    pub fn decode(bytes: &[u8], keys: &GroupKeys) -> Result<Snapshot> {
        let opened = open(bytes, SNAPSHOT_MAGIC, SNAPSHOT_PAYLOAD_BYTES_MAX, "manifest snapshot", keys)?;
        if opened.kind != 0 {
            let text = format!("manifest snapshot kind {} is not known to this build", opened.kind);
            return Err(Error::new(ErrorKind::Unsupported, text).at_offset(12));
        }
        let mut from = opened.payload();
        let contents = Contents::decode(&mut from)?;
        from.finish("the snapshot")?;
        Ok(Snapshot { header: opened.header, contents })
    }
}

impl Contents {
    fn encode(&self, to: &mut Encoder) {
        self.group.encode(to);
        to.flag(self.removed);
        to.flag(self.paused);
        to.u64(self.newest_test.0);
        to.count(self.disks.len());
        for disk in &self.disks {
            disk.record.encode(to);
            to.flag(disk.removed);
        }
        to.count(self.points.len());
        let mut table: Option<&[PointDisk]> = None;
        for point in &self.points {
            point.encode(to, table);
            table = Some(&point.disks);
        }
        to.count(self.pins.len());
        self.pins.iter().for_each(|pin| pin.encode(to));
        to.flag(self.retired.is_some());
        if let Some(retired) = &self.retired {
            to.count(retired.len());
            retired.iter().for_each(|delta| encode_reference(delta, to));
        }
        to.count(self.forks.len());
        self.forks.iter().for_each(|fork| fork.encode(to));
        // Left out where there is nothing to say: so it was before a base could go in pieces.
        if !self.taken_in.is_empty() {
            to.count(self.taken_in.len());
            for (blob, reached) in &self.taken_in {
                to.u128(blob.0);
                reached.encode(to);
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Contents> {
        let group = GroupRecord::decode(from)?;
        let removed = from.flag("removed flag")?;
        let paused = from.flag("paused flag")?;
        let newest_test = TestId(from.u64("newest test")?);
        let disks = (0..from.count(DISK_BYTES_MIN, "disk count")?)
            .map(|_| {
                let record = DiskRecord::decode(from)?;
                Ok(DiskState { record, removed: from.flag("removed flag")? })
            })
            .collect::<Result<Vec<_>>>()?;
        let points = decode_points(from)?;
        let pins = (0..from.count(PinRecord::ENCODED_BYTES, "pin count")?)
            .map(|_| PinRecord::decode(from))
            .collect::<Result<Vec<_>>>()?;
        let retired = from.flag("retired flag")?.then(|| decode_retired(from)).transpose()?;
        if retired.is_some() && points.is_empty() {
            return Err(from.corrupt("the base is on its way to a point, but there is none"));
        }
        let forks = (0..from.count(ForkRecord::ENCODED_BYTES, "fork count")?)
            .map(|_| ForkRecord::decode(from))
            .collect::<Result<Vec<_>>>()?;
        let sorted = forks.is_sorted_by_key(|fork| fork.marker)
            && disks.is_sorted_by(|a, b| a.record.slot < b.record.slot)
            && points.is_sorted_by(|a, b| a.marker < b.marker)
            && pins.is_sorted_by(|a, b| a.id < b.id);
        if !sorted {
            return Err(from.corrupt("the snapshot's tables are not in order"));
        }
        let taken_in = if from.is_finished() { BTreeMap::new() } else { decode_taken_in(from)? };
        if !taken_in.is_empty() && retired.is_none() {
            return Err(from.corrupt("a base has taken in deltas on its way, but is on its way to no point"));
        }
        Ok(Contents { group, removed, paused, newest_test, disks, points, pins, retired, forks, taken_in })
    }
}

/// Shortest encoded disk and point: bound what a count can make the decoder reserve.
const DISK_BYTES_MIN: usize = 4 + 16 + 8 + 2 + 1;
const POINT_BYTES_MIN: usize = 16 + 8 + 8 + 8 + 1 + 2 + 1 + 1;

fn decode_retired(from: &mut Decoder<'_>) -> Result<Vec<DeltaRef>> {
    let count = from.count(REFERENCE_BYTES, "retired count")?;
    (0..count).map(|_| decode_reference(from)).collect()
}

fn decode_taken_in(from: &mut Decoder<'_>) -> Result<BTreeMap<BlobId, Reached>> {
    let count = from.count(16 + Reached::ENCODED_BYTES, "taken-in count")?;
    if count == 0 {
        return Err(from.corrupt("a table of deltas that were taken in is empty instead of left out"));
    }
    let mut taken_in = BTreeMap::new();
    for _ in 0..count {
        let blob = BlobId(from.u128("delta that was taken in")?);
        if taken_in.last_key_value().is_some_and(|(last, _)| *last >= blob) {
            return Err(from.corrupt("the deltas that were taken in are not in order"));
        }
        taken_in.insert(blob, Reached::decode(from)?);
    }
    Ok(taken_in)
}

fn decode_points(from: &mut Decoder<'_>) -> Result<Vec<PointRecord>> {
    let count = from.count(POINT_BYTES_MIN, "point count")?;
    let mut points: Vec<PointRecord> = Vec::new();
    for _ in 0..count {
        let previous = points.last().map(|point| Arc::clone(&point.disks));
        let point = PointRecord::decode(from, previous.as_ref())?;
        let repeated =
            previous.is_some_and(|previous| !Arc::ptr_eq(&previous, &point.disks) && previous == point.disks);
        if repeated {
            return Err(from.corrupt("a snapshot repeats a disk table instead of sharing it"));
        }
        points.push(point);
    }
    Ok(points)
}

fn encode(
    magic: [u8; 8],
    kind: u16,
    header: &Header,
    mut payload: Vec<u8>,
    seal: Option<WriterSeal<'_>>,
) -> Encoded {
    let plain = payload.len();
    if seal.is_some() {
        payload.resize(sealed_len(plain), 0);
    }
    let mut raw = RawHeader {
        magic,
        version: VERSION.into(),
        kind: kind.into(),
        reserved: 0.into(),
        number: header.number.0.into(),
        payload_bytes: (payload.len() as u64).into(),
        group: header.group.0.into(),
        writer: header.writer.0.into(),
        timeline: header.timeline.0.into(),
        previous: header.previous.into(),
        payload_checksum: 0.into(),
        key_generation: seal.map_or(0, |seal| seal.sealing.generation.0).into(),
        reserved_long: 0.into(),
        seal_number: seal.map_or(0, |seal| seal.number).into(),
        checksum: 0.into(),
    };
    if let Some(WriterSeal { sealing, number }) = seal {
        seal_units(&sealing.sealer, number, raw.as_bytes(), &mut payload, plain);
    }
    raw.payload_checksum = checksum(&payload).into();
    let own = checksum(&raw.as_bytes()[..HEADER_BYTES - 16]);
    raw.checksum = own.into();
    Encoded { bytes: [raw.as_bytes(), payload.as_slice()].concat(), checksum: own }
}

struct Opened<'a> {
    header: Header,
    kind: u16,
    payload: Cow<'a, [u8]>,
    checksum: u128,
}

impl Opened<'_> {
    /// The plain payload. It is as far into the file as the sealed one.
    fn payload(&self) -> Decoder<'_> {
        Decoder::new(&self.payload, HEADER_BYTES as u64)
    }
}

fn open<'a>(
    bytes: &'a [u8],
    magic: [u8; 8],
    payload_max: u64,
    what: &str,
    keys: &GroupKeys,
) -> Result<Opened<'a>> {
    let corrupt = |text: &str, offset: u64| Error::corrupt(format!("{what}: {text}")).at_offset(offset);
    let (raw, payload) =
        RawHeader::ref_from_prefix(bytes).map_err(|_| corrupt("shorter than its header", 0))?;
    if raw.magic != magic {
        return Err(corrupt("its magic is wrong", 0));
    }
    if raw.version.get() != VERSION {
        return Err(Error::unknown_version(&format!("the {what}"), raw.version, VERSION).at_offset(8));
    }
    if raw.checksum.get() != checksum(&raw.as_bytes()[..HEADER_BYTES - 16]) {
        return Err(corrupt("its header's checksum does not match", 0));
    }
    let length = raw.payload_bytes.get();
    if length != payload.len() as u64 || length > payload_max {
        let text = format!("{} bytes of payload follow, its header says {length}", payload.len());
        return Err(corrupt(&text, 24));
    }
    if raw.payload_checksum.get() != checksum(payload) {
        return Err(corrupt("its payload's checksum does not match", HEADER_BYTES as u64));
    }
    let is_plain = raw.key_generation.get() == 0;
    if raw.reserved.get() != 0
        || raw.number.get() == 0
        || raw.reserved_long.get() != 0
        || (is_plain && raw.seal_number.get() != 0)
    {
        return Err(corrupt("its header's fields are not legal", 14));
    }
    let header = Header {
        number: StepNumber(raw.number.get()),
        group: GroupId(raw.group.get()),
        writer: WriterId(raw.writer.get()),
        timeline: TimelineId(raw.timeline.get()),
        previous: raw.previous.get(),
    };
    let payload = open_payload(raw, payload, what, keys)?;
    Ok(Opened { header, kind: raw.kind.get(), payload, checksum: raw.checksum.get() })
}

/// The plain payload, once its seal was compared.
fn open_payload<'a>(
    raw: &RawHeader,
    payload: &'a [u8],
    what: &str,
    keys: &GroupKeys,
) -> Result<Cow<'a, [u8]>> {
    let opener = keys.opener(raw.key_generation.get(), Purpose::Manifest, raw.writer.get());
    let opener =
        opener.map_err(|error| Error::new(error.kind(), format!("{what}: {error}")).at_offset(112))?;
    let Some(sealer) = opener else { return Ok(Cow::Borrowed(payload)) };
    let mut bound = RawHeader::read_from_bytes(raw.as_bytes()).expect("of the same size");
    (bound.payload_checksum, bound.checksum) = (0.into(), 0.into());
    let mut opened = payload.to_vec();
    let plain = open_units(&sealer, raw.seal_number.get(), bound.as_bytes(), &mut opened);
    let plain = plain.map_err(|(offset, _)| {
        let text = format!("{what}: its seal does not fit: it was changed, or is another group's");
        Error::corrupt(text).at_offset(HEADER_BYTES as u64 + offset)
    })?;
    opened.truncate(plain);
    Ok(Cow::Owned(opened))
}
