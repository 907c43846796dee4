//! The run fuzzer's seed inputs, checked in under `fuzz/corpus/run`, and replayed by the ordinary tests. After a change:
//! `AFTERIMAGE_WRITE_CORPUS=1 cargo test --test run_corpus`.

#[path = "support/run_fuzz.rs"]
mod run_fuzz;

use std::fs;
use std::path::Path;

use afterimage::format::frame::Payload;
use afterimage::format::marker::{Consistency, DiskEntry, Marker};
use afterimage::format::run::{FrameLink, Run, RunExtent, RunLayer, RunPart, RunSource};
use afterimage::units::{
    DiskId, DiskSlot, FrameNumber, GroupId, GroupNanos, IncarnationId, Lsn, PointId, SectorCount,
    SectorRange, SegmentSequence, TimelineId, WallNanos,
};
use proptest::prelude::*;

fn link(number: u64, segment: u64) -> FrameLink {
    FrameLink {
        incarnation: IncarnationId(3),
        number: FrameNumber(number),
        sum: number * 31,
        segment: SegmentSequence(segment),
        last_lsn: Lsn(number * 10),
    }
}

fn marker() -> Marker {
    Marker {
        point: PointId(4),
        wall: WallNanos(5),
        group_time: GroupNanos(6),
        consistency: Consistency::Crash,
        label: "before the upgrade".into(),
        disks: vec![DiskEntry { slot: DiskSlot(0), disk: DiskId(9), sectors: SectorCount(64) }],
    }
}

fn layer(last: u64, disks: &[(u32, u32)], marker: Option<Marker>) -> RunLayer {
    let disks = disks.iter().map(|&(slot, extents)| (DiskSlot(slot), extents)).collect();
    RunLayer { last: Lsn(last), oldest: SegmentSequence(2), data_bytes: 4096, disks, marker }
}

fn encoded(layers: Vec<RunLayer>, payloads: u32) -> Vec<u8> {
    let part = |index, sequence, payloads| RunPart {
        index,
        sequence: SegmentSequence(sequence),
        last_lsn: Lsn(80),
        payloads,
        seal: None,
    };
    let run = Run {
        group: GroupId(1),
        timeline: TimelineId(2),
        begin: link(1, 2),
        end: link(9, 3),
        parts: vec![part(4, 2, payloads), part(0, 3, 0)],
        layers,
    };
    let count: u32 = run.layers.iter().flat_map(|layer| &layer.disks).map(|&(_, extents)| extents).sum();
    let extents = (0..u64::from(count)).map(|index| {
        let source = match index % 3 {
            0 => RunSource::Journal { segment: 4, sector: 8 },
            kind => RunSource::Zero { allocated: kind == 1 },
        };
        RunExtent { range: SectorRange::new(index * 8, index * 8 + 8), source }
    });
    let payloads = (0..payloads).map(|index| Payload { sector: 8 + index * 8, sectors: 8, sum: 7 });
    run.encode(extents, payloads, &[])
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", encoded(vec![], 0)),
        ("marker", encoded(vec![layer(20, &[], Some(marker()))], 1)),
        (
            "layers",
            encoded(vec![layer(20, &[(0, 3), (2, 1)], Some(marker())), layer(90, &[(1, 2)], None)], 5),
        ),
    ]
}

fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/run")
}

#[test]
fn the_seeds_are_what_the_encoder_writes_and_all_are_accepted() {
    for (name, bytes) in seeds() {
        let path = corpus().join(name);
        if std::env::var_os("AFTERIMAGE_WRITE_CORPUS").is_some() {
            fs::write(&path, &bytes).expect("written");
        }
        assert!(fs::read(&path).expect("a seed") == bytes, "{name} is stale");
        assert!(run_fuzz::run(&bytes), "{name}");
    }
}

proptest! {
    #[test]
    fn changed_seeds_do_no_harm(seed in 0..3_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (_, mut bytes) = seeds().swap_remove(seed);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        run_fuzz::run(&bytes);
    }
}
