//! The sums of an overlay on the simulated disk: what deaths of the process and of the machine leave, whatever was under way; what flips.

use std::task::{Context, Poll, Waker};

use super::file::sums_path;
use super::*;
use crate::error::ErrorKind;
use crate::format::overlay_sums::header_offset;
use crate::storage::OpenOptions;
use crate::storage::sim::{
    FaultKind, Matcher, OpKind, ProcessId, Random, SimDisk, SimEnvironment, SimStorage,
};

const DISK: DiskId = DiskId(0xd15c);
/// Neither whole blocks nor whole units, and three pages of these.
const SECTORS: u64 = 1003;
const OVERLAY: &str = "/data/disk.overlay";
const SEEDS: u64 = 150;
const ROUNDS: u64 = 14;

/// A process that has the overlay open.
struct Store {
    id: ProcessId,
    runtime: Rc<Runtime>,
    file: File,
    sums: OverlaySums,
    presence: RefCell<Presence>,
    turns: Turns,
}

fn process(disk: &SimDisk, seed: u64) -> (ProcessId, Rc<Runtime>) {
    let storage = SimStorage::new(disk);
    (storage.process(), Runtime::new(Box::new(storage), SimEnvironment::new(seed)))
}

/// Runs a future to its end, or for so many steps.
fn drive<T>(disk: &SimDisk, runtime: &Runtime, steps: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..steps {
        runtime.step(&mut Vec::new());
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        runtime.storage().start();
        disk.step();
    }
    None
}

fn finish<T>(disk: &SimDisk, runtime: &Runtime, future: impl Future<Output = T>) -> T {
    drive(disk, runtime, 100_000, future).expect("it ends")
}

fn content(sectors: SectorRange, stamp: u8) -> Buffer {
    let mut bytes = vec![stamp; to_usize(sectors.bytes())];
    for (sector, bytes) in (sectors.start..).zip(bytes.chunks_mut(512)) {
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
    }
    Buffer::copy_of(&bytes)
}

impl Store {
    fn create(disk: &SimDisk) -> Store {
        let (_, runtime) = process(disk, 0);
        let made = async {
            runtime.create_directory("/data").await?;
            runtime.sync_directory("/").await?;
            OverlaySums::create(&runtime, Path::new(OVERLAY), DISK, SECTORS).await?;
            let file = runtime.open(OVERLAY, OpenOptions::CREATE).await?;
            runtime.set_length(&file, SECTORS * SECTOR_BYTES).await?;
            runtime.sync(&file).await?;
            runtime.sync_directory("/data").await
        };
        finish(disk, &runtime, made).expect("a new disk");
        Store::open(disk, 1)
    }

    fn open(disk: &SimDisk, seed: u64) -> Store {
        Store::try_open(disk, seed).expect("sound").expect("it has sums")
    }

    fn try_open(disk: &SimDisk, seed: u64) -> Result<Option<Store>> {
        let (id, runtime) = process(disk, seed);
        let opened = async {
            let options = OpenOptions { direct: false, ..OpenOptions::OWNED };
            let file = runtime.open(OVERLAY, options).await?;
            let mut presence = Presence::default();
            for range in runtime.data_ranges(&file, 0..SECTORS * SECTOR_BYTES).await? {
                presence.insert(SectorRange::new(range.start / SECTOR_BYTES, range.end / SECTOR_BYTES));
            }
            let of = (DISK, SECTORS);
            let sums = OverlaySums::open(&runtime, &file, of, presence.clone(), Planted::NONE).await?;
            Ok((file, sums, presence))
        };
        let opened = finish(disk, &runtime, opened);
        opened.map(|(file, sums, presence)| {
            let (presence, turns) = (RefCell::new(presence), Turns::default());
            sums.map(|sums| Store { id, runtime, file, sums, presence, turns })
        })
    }

    async fn write(&self, blocks: SectorRange, stamp: u8) -> Result<()> {
        let _turn = self.turns.take(blocks).await;
        let bytes = content(blocks, stamp).freeze();
        let written = match self.sums.announce(blocks, &bytes, &self.presence).await {
            Ok(()) => self.runtime.write(&self.file, blocks.byte_offset(), bytes).await,
            refused => refused,
        };
        match &written {
            Ok(()) => self.presence.borrow_mut().insert(blocks),
            Err(_) => self.sums.doubt(blocks, &self.presence.borrow()),
        }
        written
    }

    async fn flush(&self) -> Result<()> {
        self.sums.sync().await?;
        self.runtime.sync(&self.file).await
    }

    /// What a sector holds: 0 where it is a hole, `None` where it is refused.
    fn stamp(&self, disk: &SimDisk, sector: u64) -> Option<u8> {
        let range = SectorRange::new(sector, sector + 1);
        if !self.presence.borrow().lookup(range)[0].1 {
            return Some(0);
        }
        let read = finish(disk, &self.runtime, self.sums.read(range));
        let glanced = finish(disk, &self.runtime, self.sums.glance(range));
        assert_eq!(read.is_ok(), glanced.is_ok(), "nobody writes");
        match read {
            Ok(bytes) => {
                assert_eq!(
                    bytes[..],
                    content(range, bytes[511])[..],
                    "sector {sector} is nothing that was written"
                );
                Some(bytes[511])
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                None
            }
        }
    }

    /// What all sectors hold: block by block, and sector by sector where a block is refused.
    fn stamps(&self, disk: &SimDisk) -> Vec<Option<u8>> {
        let mut stamps = Vec::new();
        for start in (0..SECTORS).step_by(8) {
            let block = SectorRange::new(start, (start + 8).min(SECTORS));
            let is_there = self.presence.borrow().lookup(block) == [(block, true)];
            match finish(disk, &self.runtime, self.sums.glance(block)) {
                Ok(bytes) if is_there => {
                    let sectors = (start..).zip(bytes.chunks(512));
                    stamps.extend(sectors.map(|(sector, bytes)| {
                        let expected = content(SectorRange::new(sector, sector + 1), bytes[511]);
                        assert!(*bytes == expected[..], "sector {sector} is nothing that was written");
                        Some(bytes[511])
                    }));
                }
                _ => stamps.extend((start..block.end).map(|sector| self.stamp(disk, sector))),
            }
        }
        stamps
    }
}

/// What a sector may hold.
#[derive(Clone, Default)]
struct Model {
    /// What was written last; `None` where nobody knows since it is refused.
    now: Option<u8>,
    /// What it held when it was flushed last, and since.
    may: Vec<u8>,
    /// The power failed before what it holds was flushed, and nobody has written it since.
    survived: bool,
}

struct Play {
    disk: SimDisk,
    random: Random,
    model: Vec<Model>,
    refused: usize,
}

impl Play {
    fn draw_batch(&mut self) -> Vec<SectorRange> {
        let mut batch: Vec<SectorRange> = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let start = self.random.below(SECTORS / 8) * 8;
            let end = (start + 8 * (1 + self.random.below(20))).min(SECTORS);
            let blocks = SectorRange::new(start, end);
            if batch.iter().all(|other| other.intersection(blocks).is_none()) {
                batch.push(blocks);
            }
        }
        batch
    }

    fn written(&mut self, batch: &[SectorRange], stamp: u8) {
        for sector in batch.iter().flat_map(|blocks| blocks.start..blocks.end) {
            let model = &mut self.model[to_usize(sector)];
            model.may.push(stamp);
            (model.now, model.survived) = (Some(stamp), false);
        }
    }

    fn flushed(&mut self, meanwhile: &[SectorRange]) {
        for (sector, model) in (0..).zip(&mut self.model) {
            let is_covered = !meanwhile.iter().any(|blocks| (blocks.start..blocks.end).contains(&sector));
            if let Some(now) = model.now.filter(|_| is_covered && !model.survived) {
                model.may = vec![now];
            }
        }
    }

    /// After a death, with these writes under way.
    fn compare(&mut self, store: &Store, batch: &[SectorRange], stamp: u8, power: bool) {
        for (sector, found) in (0..).zip(store.stamps(&self.disk)) {
            let model = &mut self.model[to_usize(sector)];
            let is_hit = batch.iter().any(|blocks| (blocks.start..blocks.end).contains(&sector));
            if is_hit {
                model.may.push(stamp);
            }
            let old = model.now;
            let is_right = match (found, old) {
                // What is torn of the first write into a hole is refused; and a hole's sectors that nobody wrote were never zeros.
                (None, old) if power => is_hit || model.may.len() > 1 || old.is_none(),
                (None, old) => old.is_none() || is_hit && old == Some(0),
                (Some(found), _) if power => model.may.contains(&found),
                (Some(found), Some(old)) => found == old || is_hit && found == stamp,
                (Some(found), None) => model.may.contains(&found),
            };
            assert!(
                is_right,
                "sector {sector}: {found:?} after {old:?}, of {:?}; hit: {is_hit}, power: {power}",
                model.may
            );
            model.now = found;
            model.survived |= power && model.may.len() > 1;
            self.refused += usize::from(found.is_none());
        }
    }
}

#[test]
fn what_was_flushed_or_outlives_the_process_is_read_and_nothing_else_but_what_was_written() {
    let (mut refused, mut deaths) = (0, 0);
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let mut store = Store::create(&disk);
        let hole = Model { now: Some(0), may: vec![0], survived: false };
        let model = vec![hole; to_usize(SECTORS)];
        let mut play = Play { disk, random: Random::new(seed), model, refused: 0 };
        for stamp in 1..=u8::try_from(ROUNDS).expect("few") {
            let (batch, flushes) = (play.draw_batch(), play.random.chance(1, 3));
            let steps = if play.random.chance(1, 3) { play.random.below(24) } else { 100_000 };
            let work = async {
                let writes = join_all(batch.iter().map(|blocks| store.write(*blocks, stamp)));
                let flush = async { if flushes { store.flush().await } else { Ok(()) } };
                let (written, flushed) = futures::join!(writes, flush);
                written.into_iter().chain([flushed]).collect::<Result<()>>()
            };
            if let Some(done) = drive(&play.disk, &store.runtime, steps, work) {
                done.expect("nothing fails here");
                play.written(&batch, stamp);
                if flushes {
                    play.flushed(&batch);
                }
                continue;
            }
            let power = play.random.chance(1, 2);
            match power {
                true => play.disk.power_cut(),
                false => play.disk.kill_process(store.id),
            }
            deaths += 1;
            drop(store);
            store = Store::open(&play.disk, seed + 1000 * u64::from(stamp));
            play.compare(&store, &batch, stamp, power);
        }
        // Whatever is refused: who writes it anew reads that.
        let all = SectorRange::new(0, SECTORS);
        finish(&play.disk, &store.runtime, store.write(all, 99)).expect("nothing fails here");
        assert!(store.stamps(&play.disk).iter().all(|found| *found == Some(99)), "seed {seed}");
        refused += play.refused;
    }
    assert!(deaths > 150 && refused > 300, "{deaths} deaths, {refused} sectors refused");
}

fn blocks(start: u64, end: u64) -> SectorRange {
    SectorRange::new(start * 8, end * 8)
}

#[test]
fn a_flipped_bit_is_refused_with_its_place_and_healed_by_a_write() {
    let disk = SimDisk::new(7);
    let mut store = Store::create(&disk);
    finish(&disk, &store.runtime, store.write(blocks(0, 40), 5)).expect("nothing fails here");
    for is_opened_anew in [false, true] {
        assert!(disk.rot(Path::new(OVERLAY), 100 * 512 + 77, 3));
        if is_opened_anew {
            disk.kill_process(store.id);
            store = Store::open(&disk, 9);
        }
        let error = finish(&disk, &store.runtime, store.sums.read(blocks(0, 40))).expect_err("refused");
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(100 * 512)), "{error}");
        assert_eq!(error.path(), Some(Path::new(OVERLAY)));
        for sector in 0..320 {
            assert_eq!(store.stamp(&disk, sector).is_none(), sector == 100);
        }
        // A write beside it gives it no sum.
        finish(&disk, &store.runtime, store.write(blocks(13, 14), 6)).expect("nothing fails here");
        assert_eq!(store.stamp(&disk, 100), None);
        finish(&disk, &store.runtime, store.write(blocks(12, 13), 6)).expect("nothing fails here");
        assert_eq!(store.stamp(&disk, 100), Some(6));
    }
}

#[test]
fn flipped_bits_in_the_sums_have_nothing_wrong_read() {
    let sums = sums_path(Path::new(OVERLAY));
    let mut named = 0;
    for bit in 0..200_u64 {
        let disk = SimDisk::new(bit);
        let store = Store::create(&disk);
        for (stamp, is_flushed) in [(1, true), (2, true), (3, false)] {
            finish(&disk, &store.runtime, store.write(blocks(0, 7), stamp)).expect("nothing fails here");
            if is_flushed {
                finish(&disk, &store.runtime, store.flush()).expect("nothing fails here");
            }
        }
        let copy = Copy::BOTH[to_usize(bit % 2)];
        let at = unit_offset(0, copy) + bit * 31 % UNIT_BYTES as u64;
        assert!(disk.rot(&sums, at, u8::try_from(bit % 8).expect("small")));
        disk.kill_process(store.id);
        let store = Store::open(&disk, bit + 1);
        let found: Vec<_> = (0..56).map(|sector| store.stamp(&disk, sector)).collect();
        assert!(found.iter().all(|found| matches!(found, None | Some(3))), "{found:?}");
        if found.contains(&None) {
            let error = finish(&disk, &store.runtime, store.sums.read(blocks(0, 7))).expect_err("refused");
            assert_eq!((error.path(), error.offset()), (Some(&*sums), Some(unit_offset(0, copy))), "{error}");
            named += 1;
        }
        finish(&disk, &store.runtime, store.write(blocks(0, 7), 4)).expect("nothing fails here");
        assert!((0..56).all(|sector| store.stamp(&disk, sector) == Some(4)));
    }
    assert!((50..=150).contains(&named), "of the place that counts, and of no other: {named}");
}

#[test]
fn one_header_of_two_is_enough_and_an_overlay_of_before_has_none() {
    let disk = SimDisk::new(3);
    let sums = sums_path(Path::new(OVERLAY));
    let store = Store::create(&disk);
    disk.kill_process(store.id);
    assert!(disk.rot(&sums, 20, 1));
    let store = Store::open(&disk, 4);
    disk.kill_process(store.id);
    // The first one was written anew.
    assert!(disk.rot(&sums, header_offset(Copy::Second) + 9, 1));
    let store = Store::open(&disk, 8);
    assert_eq!(store.sums.take_rot().len(), 1);
    disk.kill_process(store.id);
    for copy in Copy::BOTH {
        assert!(disk.rot(&sums, header_offset(copy) + 9, 1));
    }
    let error = Store::try_open(&disk, 5).err().expect("neither is sound");
    assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(&*sums)), "{error}");
    let (_, runtime) = process(&disk, 6);
    finish(&disk, &runtime, runtime.remove(&sums)).expect("it is there");
    assert!(Store::try_open(&disk, 7).expect("sound").is_none());
}

#[test]
fn a_write_that_fails_leaves_what_was_there_or_what_was_to_be() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let store = Store::create(&disk);
        finish(&disk, &store.runtime, store.write(blocks(0, 20), 1)).expect("nothing fails yet");
        let of_sums = seed % 2 == 0;
        let (part, fault) = match of_sums {
            true => (".sums", FaultKind::NoSpace),
            false => ("disk.overlay", FaultKind::Io),
        };
        // The first write goes to the sums, the second one to the overlay.
        disk.fail_next(Matcher::kind(OpKind::Write).path(part).after(u64::from(!of_sums)), fault);
        finish(&disk, &store.runtime, store.write(blocks(3, 12), 2)).expect_err("it fails");
        disk.clear_faults();
        let is_right = |store: &Store, stamps: &[u8]| {
            (0..160).all(|sector| store.stamp(&disk, sector).is_some_and(|found| stamps.contains(&found)))
        };
        assert!(is_right(&store, if of_sums { &[1] } else { &[1, 2] }), "seed {seed}");
        // The next one dies on its way: what was there is neither what the last one found nor what it was to leave.
        let died = drive(&disk, &store.runtime, seed % 12, store.write(blocks(0, 12), 3));
        disk.kill_process(store.id);
        drop((store, died));
        let store = Store::open(&disk, seed + 100);
        assert!(is_right(&store, &[1, 2, 3]), "seed {seed}");
    }
}

#[test]
fn who_reads_beside_writes_of_the_same_unit_is_refused_nothing() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let store = Store::create(&disk);
        finish(&disk, &store.runtime, store.write(blocks(0, 14), 1)).expect("nothing fails here");
        let work = async {
            let writes = join_all((0..14).map(|block| store.write(blocks(block, block + 1), 2)));
            let reads = join_all((0..14).map(async |block| {
                let range = blocks(block, block + 1);
                match store.sums.glance(range).await {
                    Err(_) => {
                        let _turn = store.turns.take(range).await;
                        store.sums.read(range).await
                    }
                    read => read,
                }
            }));
            futures::join!(writes, reads, store.flush())
        };
        let (writes, reads, flushed) = finish(&disk, &store.runtime, work);
        writes.into_iter().collect::<Result<()>>().expect("nothing fails here");
        flushed.expect("nothing fails here");
        for (block, read) in (0..).zip(reads) {
            let bytes = read.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(
                [1, 2]
                    .map(|stamp| content(blocks(block, block + 1), stamp))
                    .iter()
                    .any(|content| content[..] == bytes[..])
            );
        }
    }
}
