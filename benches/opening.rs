//! How long opening takes after a crash with a large backlog: 64 GiB of 4 KiB records that neither images nor vault have.
//!
//! `cargo bench --no-default-features --bench opening [-- GIB [DIRECTORY]]`; the goal of part 2 is 5 s at 64 GiB.
//!
//! Segments are sparse: headers stand where they stood, payloads are holes (of zeros, with the sum of zeros; an opening reads no payload of what is
//! sealed by its seal, so their tags are zeros too). Headers are sealed. Index runs are
//! real, written by the code that the gateway uses. Nothing of it is in the page cache when the journal is opened.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use afterimage::env::OsEnvironment;
use afterimage::extent::{Extent, FrozenMap};
use afterimage::format::frame::{Frame, FrameSeal, Payload, Record, RecordKind};
use afterimage::format::marker::Opening;
use afterimage::format::run::{FrameLink, PartSeal, Run, RunLayer, RunPart};
use afterimage::journal::keys::{FrameKey, JournalKeys};
use afterimage::journal::open::{self, JournalPlan, Recovered};
use afterimage::journal::recover::Known;
use afterimage::journal::runs::{self, Needs, extents_of, link_of};
use afterimage::journal::scan::Owner;
use afterimage::journal::segments::{SegmentIndex, Source, file_name};
use afterimage::planted::Planted;
use afterimage::runtime::Runtime;
use afterimage::seal::{GroupKeys, SiteKeys, TAG_BYTES, Tag};
use afterimage::storage::{BackendOptions, open_best};
use afterimage::units::{
    DiskSlot, FrameNumber, GroupId, IncarnationId, Lsn, SectorRange, SegmentSequence, TimelineId, WallNanos,
};
use xxhash_rust::xxh3::xxh3_64;

const SEGMENT_BYTES: u64 = 64 << 20;
const RECORDS_A_FRAME: usize = 32;
const INCARNATION: IncarnationId = IncarnationId(3);
/// A run and its layer: what 64 MiB of journal say.
const FRAMES_A_RUN: u64 = 480;
const NO_TAG: Tag = [0; TAG_BYTES];
const OWNER: Owner = Owner { group: GroupId(1), timeline: TimelineId(2) };
const DISK_SECTORS: u64 = 1 << 31;

/// Lays out the journal frame by frame.
struct Generator {
    directory: PathBuf,
    segment: File,
    sequence: u64,
    offset: u64,
    number: u64,
    lsn: u64,
    sum: u64,
    random: u64,
    begin: FrameLink,
    extents: BTreeMap<u64, (u64, Source)>,
    parts: Vec<(RunPart, Vec<Payload>)>,
    key: Rc<FrameKey>,
}

impl Generator {
    fn new(directory: &Path, keys: &GroupKeys) -> Generator {
        let segment = File::create(directory.join(file_name(SegmentIndex(0)))).expect("a segment");
        segment.set_len(SEGMENT_BYTES).expect("a length");
        Generator {
            directory: directory.to_owned(),
            segment,
            sequence: 1,
            offset: 0,
            number: 1,
            lsn: 1,
            sum: 0,
            random: 88_172_645_463_325_252,
            begin: runs::NOTHING,
            extents: BTreeMap::new(),
            parts: Vec::new(),
            key: FrameKey::begin(keys, INCARNATION).expect("the group is sealed"),
        }
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn records(&mut self) -> Vec<Record> {
        if self.number == 1 {
            let sum = xxh3_64(&self.opening().encode());
            return vec![Record {
                kind: RecordKind::Opening,
                payload: Payload { sector: 0, sectors: 1, sum },
            }];
        }
        let sum = xxh3_64(&[0; 4096]);
        let records = (0..RECORDS_A_FRAME).map(|index| {
            let start = self.next_random() % (DISK_SECTORS / 8) * 8;
            let kind = RecordKind::Write { disk: DiskSlot(0), range: SectorRange::new(start, start + 8) };
            let sector = u32::try_from(index * 8).expect("few");
            Record { kind, payload: Payload { sector, sectors: 8, sum } }
        });
        records.collect()
    }

    fn opening(&self) -> Opening {
        Opening {
            predecessor: None,
            last_frame: FrameNumber(0),
            last_sum: 0,
            last_lsn: Lsn(0),
            wall: WallNanos(0),
        }
    }

    fn frame(&mut self) {
        let records = self.records();
        let pages = if self.number == 1 { 1 } else { RECORDS_A_FRAME };
        let generation = self.key.generation;
        let seal = FrameSeal { generation, header: NO_TAG, payloads: vec![NO_TAG; records.len()] };
        let mut frame = Frame {
            group: OWNER.group,
            timeline: OWNER.timeline,
            incarnation: INCARNATION,
            number: FrameNumber(self.number),
            chain: self.sum,
            first_lsn: Lsn(self.lsn),
            durable_through: Lsn(self.lsn - 1),
            segment: SegmentSequence(self.sequence),
            segment_page: 0,
            tail: SegmentSequence(1),
            records,
            payload_pages: u32::try_from(pages).expect("few"),
            seal: Some(seal),
        };
        if self.offset + frame.total_bytes() as u64 > SEGMENT_BYTES {
            self.next_segment();
        }
        frame.segment = SegmentSequence(self.sequence);
        frame.segment_page = u32::try_from(self.offset / 4096).expect("small");
        self.seal(&mut frame);
        let mut header = vec![0; frame.header_bytes()];
        self.sum = frame.encode_header(&mut header);
        self.segment.write_all_at(&header, self.offset).expect("written");
        if self.number == 1 {
            let body = self.opening().encode();
            self.segment.write_all_at(&body, self.offset + frame.header_bytes() as u64).expect("written");
        }
        self.note(&frame);
        self.offset += frame.total_bytes() as u64;
        self.number += 1;
        self.lsn += frame.records.len() as u64;
        if self.number.is_multiple_of(FRAMES_A_RUN) {
            self.run(link_of(&frame, self.sum));
        }
    }

    /// Binds the header, and the payload of an opening.
    fn seal(&self, frame: &mut Frame) {
        let opening = (self.number == 1)
            .then(|| self.key.bind(frame.segment, frame.payload_base(), &self.opening().encode()));
        let seal = frame.seal.as_mut().expect("a sealed frame");
        seal.payloads.iter_mut().zip(opening).for_each(|(place, tag)| *place = tag);
        let tag = self.key.bind_header(frame);
        frame.seal.iter_mut().for_each(|seal| seal.header = tag);
    }

    fn next_segment(&mut self) {
        let index = SegmentIndex(u32::try_from(self.sequence).expect("few"));
        self.segment = File::create(self.directory.join(file_name(index))).expect("a segment");
        self.segment.set_len(SEGMENT_BYTES).expect("a length");
        self.sequence += 1;
        self.offset = 0;
    }

    /// What the run to come says of a frame.
    fn note(&mut self, frame: &Frame) {
        let index = u32::try_from(self.sequence - 1).expect("few");
        let base = frame.payload_base();
        if self.parts.last().is_none_or(|(part, _)| part.index != index) {
            let sequence = SegmentSequence(self.sequence);
            let seal = Some(PartSeal { incarnation: INCARNATION, generation: self.key.generation });
            let part = RunPart { index, sequence, last_lsn: Lsn(0), payloads: 0, seal };
            self.parts.push((part, Vec::new()));
        }
        let (part, payloads) = self.parts.last_mut().expect("a part");
        part.last_lsn = frame.last_lsn();
        for record in &frame.records {
            let payload = Payload { sector: base + record.payload.sector, ..record.payload };
            payloads.push(payload);
            if let RecordKind::Write { range, .. } = record.kind {
                let source = Source::Journal { segment: SegmentIndex(index), sector: payload.sector };
                self.extents.insert(range.start, (range.end, source));
            }
        }
        part.payloads = u32::try_from(payloads.len()).expect("few");
    }

    fn run(&mut self, end: FrameLink) {
        let extents = std::mem::take(&mut self.extents).into_iter();
        let extents =
            extents.map(|(start, (end, location))| Extent { range: SectorRange::new(start, end), location });
        let map = FrozenMap::from_sorted(extents.collect()).expect("sorted");
        let parts = std::mem::take(&mut self.parts);
        let layer = RunLayer {
            last: end.last_lsn,
            oldest: parts[0].0.sequence,
            data_bytes: map.len() as u64 * 4096,
            disks: vec![(DiskSlot(0), u32::try_from(map.len()).expect("few"))],
            marker: None,
        };
        let run = Run {
            group: OWNER.group,
            timeline: OWNER.timeline,
            begin: self.begin,
            end,
            parts: parts.iter().map(|(part, _)| *part).collect(),
            layers: vec![layer],
        };
        let payloads: Vec<Payload> = parts.into_iter().flat_map(|(_, payloads)| payloads).collect();
        let tags = vec![NO_TAG; payloads.len()];
        let bytes = run.encode(extents_of(&map), payloads.into_iter(), &tags);
        fs::write(self.directory.join(runs::file_name(end.number)), bytes).expect("written");
        self.begin = end;
    }
}

/// Makes the files durable, and the page cache forget them.
fn forget_cache(directory: &Path) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let file = File::open(entry.expect("an entry").path()).expect("a file");
        file.sync_all().expect("synced");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forgotten");
    }
}

fn resident_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find(|line| line.starts_with("RssAnon")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let gib: u64 = words.first().map_or(64, |word| word.parse().expect("GiB of backlog"));
    // In the target directory: a temporary directory may lie in memory, where O_DIRECT means nothing.
    let root = words.get(1).map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let scratch = tempfile::tempdir_in(root).expect("a directory");
    let keys = GroupKeys::drawn([5, 6], &SiteKeys::default());
    let mut generator = Generator::new(scratch.path(), &keys);
    while generator.sequence * SEGMENT_BYTES < gib << 30 {
        generator.frame();
    }
    let (frames, records) = (generator.number - 1, generator.lsn - 1);
    drop(generator);
    forget_cache(scratch.path());
    let storage = open_best(&BackendOptions::default()).expect("a back end").storage;
    let backend = storage.backend();
    let runtime = Runtime::new(storage, Rc::new(OsEnvironment::new()));
    let plan = JournalPlan {
        directory: scratch.path().to_owned(),
        segment_bytes: SEGMENT_BYTES,
        journal_bytes: (gib << 30) + 16 * SEGMENT_BYTES,
    };
    let known = Known::of(OWNER);
    let needs = Needs { vaulted: Lsn(0), stored: BTreeMap::from([(DiskSlot(0), Lsn(0))]) };
    let (opening, before, began) = (Rc::clone(&runtime), resident_mib(), now());
    let opened = runtime.block_on(async move {
        let keys = JournalKeys::new(keys);
        open::open(opening, &plan, known, &needs, &keys, Planted::NONE).await
    });
    let seconds = began.elapsed().as_secs_f64();
    let opened = opened.expect("opens");
    assert_eq!(opened.position.accepted, Lsn(records), "everything was accepted");
    let is_run = |piece: &&Recovered| matches!(piece, Recovered::Run(_));
    println!(
        "{gib} GiB, {frames} frames, {records} records: opened in {seconds:.2} s over {:?}, {} MiB of memory, {} runs, {} frames read",
        backend,
        resident_mib() - before,
        opened.accepted.iter().filter(is_run).count(),
        opened.accepted.iter().filter(|piece| !is_run(piece)).count(),
    );
}
