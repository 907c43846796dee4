//! The journal fuzzer's seed inputs: segments made by the real writer, checked in under `fuzz/corpus/frame`, and
//! replayed by the ordinary tests. After a change: `AFTERIMAGE_WRITE_CORPUS=1 cargo test --test frame_corpus`.

#[path = "support/frame_fuzz.rs"]
mod frame_fuzz;
#[allow(dead_code)]
#[path = "support/journal_maker.rs"]
mod journal_maker;

use std::fs;
use std::path::{Path, PathBuf};

use afterimage::journal::scan::{Checks, scan_segment};
use afterimage::journal::segments::SegmentIndex;
use journal_maker::{GROUP, Journal};
use proptest::prelude::*;

/// A segment's bytes up to its last frame and a page more: what follows is zeros in all of them.
fn segment(make: impl FnOnce(&Path)) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    make(directory.path());
    let mut bytes = fs::read(directory.path().join("segment-00000000")).expect("the first segment");
    let scan = scan_segment(SegmentIndex(0), &bytes, Checks::ALL);
    let end = scan.frames.last().expect("frames").end_offset();
    bytes.truncate(usize::try_from(end).expect("small") + 4096);
    bytes
}

fn seeds() -> Vec<(&'static str, Vec<u8>, usize)> {
    let open = |directory: &Path, seed| Journal::open_seeded(directory, GROUP, seed);
    vec![
        ("opening", segment(|directory| drop(open(directory, 1))), 1),
        (
            "records",
            segment(|directory| {
                let mut journal = open(directory, 2);
                journal.write(0, 1, 8);
                journal.write(8, 2, 1);
                journal.zero(16, 1 << 20);
                journal.mark("before the upgrade");
                journal.sync();
                journal.seal();
            }),
            6,
        ),
        (
            "batch",
            segment(|directory| {
                let mut journal = open(directory, 3);
                journal.write_together(&[(0, 8), (9, 1), (10, 3), (64, 8)]);
            }),
            2,
        ),
        (
            "reopened",
            segment(|directory| {
                open(directory, 4).write(0, 1, 8);
                open(directory, 5).write(8, 2, 8);
            }),
            4,
        ),
    ]
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/frame")
}

#[test]
fn seeds_are_valid_and_checked_in() {
    for (name, input, frames) in seeds() {
        let path = corpus().join(name);
        if std::env::var_os("AFTERIMAGE_WRITE_CORPUS").is_some() {
            fs::create_dir_all(corpus()).expect("a directory");
            fs::write(&path, &input).expect("written");
        }
        let stored = fs::read(&path).unwrap_or_default();
        assert!(stored == input, "frame/{name} is stale: run with AFTERIMAGE_WRITE_CORPUS=1");
        assert_eq!(frame_fuzz::segment(&input), frames, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What the fuzzer does for hours, for a second: seeds with some bytes changed.
    #[test]
    fn damaged_seeds_keep_the_promises(seed in 0..4_usize, damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        thread_local!(static SEEDS: Vec<(&'static str, Vec<u8>, usize)> = seeds());
        let mut input = SEEDS.with(|seeds| seeds[seed].1.clone());
        for (place, byte) in damage {
            // Half of the changes hit the first frame's fields, where most of the decisions are.
            let place = if place % 2 == 0 { place % 256 } else { place % input.len() };
            input[place] = byte;
        }
        frame_fuzz::segment(&input);
    }
}
