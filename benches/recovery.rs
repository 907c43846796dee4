//! How fast opening scans a journal: 1 GiB of frames as a busy group leaves them, read with O_DIRECT; sealed, as they are unless
//! somebody says otherwise, and plain.
//!
//! `cargo bench --no-default-features --bench recovery`; the goal of part 1 is 1 GB/s.

use std::path::Path;
use std::rc::Rc;

use afterimage::env::OsEnvironment;
use afterimage::format::frame::{Frame, FrameSeal, Payload, Record, RecordKind, header_bytes};
use afterimage::format::marker::Opening;
use afterimage::journal::keys::{FrameKey, JournalKeys};
use afterimage::journal::open::{self, JournalPlan};
use afterimage::journal::recover::Known;
use afterimage::journal::runs::Needs;
use afterimage::journal::scan::Owner;
use afterimage::planted::Planted;
use afterimage::runtime::Runtime;
use afterimage::seal::{GroupKeys, SiteKeys, TAG_BYTES};
use afterimage::storage::{BackendOptions, open_best};
use afterimage::units::{
    DiskSlot, FrameNumber, GroupId, IncarnationId, Lsn, SectorRange, SegmentSequence, TimelineId, WallNanos,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use xxhash_rust::xxh3::xxh3_64;

const SEGMENT_BYTES: usize = 64 << 20;
const SEGMENTS: u64 = 16;
const RECORDS_A_FRAME: usize = 32;
const INCARNATION: IncarnationId = IncarnationId(3);

/// Lays out frames of 32 random 4 KiB writes, chained through all segments.
struct Generator {
    number: FrameNumber,
    lsn: Lsn,
    chain: u64,
    random: u64,
    key: Option<Rc<FrameKey>>,
}

impl Generator {
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn frame(&mut self, segment: u64, offset: usize) -> Vec<u8> {
        let opening = self.number == FrameNumber(1);
        let records = if opening { 1 } else { RECORDS_A_FRAME };
        let payload_pages = u32::try_from(records).expect("few");
        let mut payload = vec![0; records * 4096];
        for word in payload.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next_random().to_le_bytes());
        }
        if opening {
            let body = Opening {
                predecessor: None,
                last_frame: FrameNumber(0),
                last_sum: 0,
                last_lsn: Lsn(0),
                wall: WallNanos(0),
            };
            payload[..512].copy_from_slice(&body.encode());
        }
        let first_sector =
            u32::try_from((offset + header_bytes(records, self.key.is_some())) / 512).expect("small");
        let segment = SegmentSequence(segment + 1);
        let mut tags = Vec::new();
        let key = self.key.clone();
        let records = payload.chunks_exact_mut(4096).enumerate().map(|(index, bytes)| {
            let start = self.random.wrapping_add(index as u64 * 7919) % (1 << 24) * 8;
            let sectors = if opening { 1 } else { 8 };
            let bytes = &mut bytes[..sectors * 512];
            let kind = if opening {
                RecordKind::Opening
            } else {
                RecordKind::Write { disk: DiskSlot(0), range: SectorRange::new(start, start + 8) }
            };
            let sectors = u32::try_from(sectors).expect("few");
            let sector = u32::try_from(index * 8).expect("few");
            if let Some(key) = &key {
                let place = first_sector + sector;
                let plain = bytes.to_vec();
                tags.push(match kind {
                    RecordKind::Opening => key.bind(segment, place, &plain),
                    _ => key.seal(segment, place, &plain, bytes),
                });
            }
            Record { kind, payload: Payload { sector, sectors, sum: xxh3_64(bytes) } }
        });
        let records = records.collect();
        let mut frame = Frame {
            group: GroupId(1),
            timeline: TimelineId(2),
            incarnation: INCARNATION,
            number: self.number,
            chain: self.chain,
            first_lsn: self.lsn,
            durable_through: Lsn(self.lsn.0 - 1),
            segment,
            segment_page: u32::try_from(offset / 4096).expect("small"),
            tail: SegmentSequence(1),
            records,
            payload_pages,
            seal: None,
        };
        if let Some(key) = &self.key {
            frame.seal =
                Some(FrameSeal { generation: key.generation, header: [0; TAG_BYTES], payloads: tags });
            let tag = key.bind_header(&frame);
            frame.seal.iter_mut().for_each(|seal| seal.header = tag);
        }
        let mut bytes = vec![0; frame.header_bytes()];
        self.chain = frame.encode_header(&mut bytes);
        self.lsn = frame.last_lsn().next();
        self.number = frame.number.next();
        bytes.extend(payload);
        bytes
    }
}

fn generate(directory: &Path, keys: &GroupKeys) {
    let mut generator = Generator {
        number: FrameNumber(1),
        lsn: Lsn(1 << 32),
        chain: 0,
        random: 0x9e37_79b9_7f4a_7c15,
        key: FrameKey::begin(keys, INCARNATION),
    };
    for segment in 0..SEGMENTS {
        let mut bytes = Vec::with_capacity(SEGMENT_BYTES);
        while bytes.len() + (RECORDS_A_FRAME + 2) * 4096 <= SEGMENT_BYTES {
            let frame = generator.frame(segment, bytes.len());
            bytes.extend(frame);
        }
        bytes.resize(SEGMENT_BYTES, 0);
        std::fs::write(directory.join(format!("segment-{segment:08}")), bytes).expect("a segment");
    }
}

fn scans(criterion: &mut Criterion) {
    scan(criterion, "scan of 1 GiB, sealed", &GroupKeys::drawn([5, 6], &SiteKeys::default()));
    scan(criterion, "scan of 1 GiB, plain", &GroupKeys::NONE);
}

fn scan(criterion: &mut Criterion, name: &str, keys: &GroupKeys) {
    // In the target directory: a temporary directory may lie in memory, where O_DIRECT means nothing.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    generate(directory.path(), keys);
    let plan = JournalPlan {
        directory: directory.path().to_owned(),
        segment_bytes: SEGMENT_BYTES as u64,
        journal_bytes: (SEGMENTS + 8) * SEGMENT_BYTES as u64,
    };
    let known = Known::of(Owner { group: GroupId(1), timeline: TimelineId(2) });
    let mut group = criterion.benchmark_group("recovery");
    group.throughput(Throughput::Bytes(SEGMENTS * SEGMENT_BYTES as u64)).sample_size(10);
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let storage = open_best(&BackendOptions::default()).expect("a back end").storage;
            let runtime = Runtime::new(storage, Rc::new(OsEnvironment::new()));
            let (plan, keys) = (plan.clone(), JournalKeys::new(keys.clone()));
            let opened = runtime.block_on({
                let runtime = Rc::clone(&runtime);
                async move {
                    open::open(runtime, &plan, known, &Needs::default(), &keys, Planted::NONE).await
                }
            });
            assert!(opened.expect("opens").accepted.len() > 7000);
        });
    });
    group.finish();
}

criterion_group!(benches, scans);
criterion_main!(benches);
